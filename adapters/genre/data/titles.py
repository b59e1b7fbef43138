"""Items by what people call them.

Owns: the titles of a catalogue, search by a part of a title. Ignores who asks.

    Titles(catalogue).search("star w", 5)  ->  [{"item_id": "50", "title": "Star Wars"}, …]
"""

import numpy as np
import polars as pl

from genre.data.catalogue import Catalogue
from genre.errors import InputError

SHOWN = 5


class Titles:
    """The titles of one catalogue, made once."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.titles = catalogue.titles()
        self.folded = pl.Series(
            [f"{title.lower()}\n{item.lower()}" for title, item in zip(self.titles, catalogue.item_ids, strict=True)]
        )

    def of(self, item_id: str) -> str:
        """The title of an item; what the catalogue does not have is its own title."""
        return self.titles[self.catalogue.code(item_id)] if item_id in self.catalogue else item_id

    def find(self, text: str) -> str:
        """The id of the one item that a person means: by its id, its title (case aside), or a part that one title alone has.

        Raises:
            InputError: No item is meant, or several are.
        """
        wanted = text.lower().strip()
        if text in self.catalogue:
            return text
        same = [code for code, title in enumerate(self.titles) if title.lower() == wanted] if wanted else []
        found = [{"item_id": self.catalogue.item_ids[code], "title": self.titles[code]} for code in same]
        found = found or (self.search(wanted, SHOWN + 1) if wanted else [])
        if len(found) == 1:
            return found[0]["item_id"]
        if not found:
            todo = "give a part of a title, or an item_id"
            raise InputError("no item has this title", got=repr(text[:80]), expected="a title of the catalogue", todo=todo)
        shown = ", ".join(f"{item['title']} ({item['item_id']})" for item in found[:SHOWN])
        more = ", …" if len(found) > SHOWN else ""
        raise InputError(
            "several items have this title",
            got=f"{text[:80]!r}: {shown}{more}",
            expected="one item",
            todo="give more of it, or its item_id",
        )

    def search(self, text: str, limit: int) -> list[dict[str, str]]:
        """Items whose title or id contains a text, case aside; those that begin with it first, then in the catalogue's order."""
        wanted = text.lower().strip()
        found = self.folded.str.contains(wanted, literal=True).to_numpy()
        first = self.folded.str.starts_with(wanted).to_numpy()
        codes = [*np.flatnonzero(first)[:limit], *np.flatnonzero(found & ~first)[:limit]][:limit]
        return [{"item_id": self.catalogue.item_ids[code], "title": self.titles[code]} for code in codes]
