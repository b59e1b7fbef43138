"""Items that requests name: catalogue codes, and items that are given by their columns only.

Owns: the codes of one `score` call, the item vectors of each encoder for them. Ignores: requests, adapters.
"""

import json
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import polars as pl
import torch
from torch import Tensor

from genre.assembly import SharedEncoder
from genre.base import Base
from genre.catalogue import Catalogue
from genre.errors import GenreError, RequestError


class ItemSpace:
    """A catalogue as one encoder (or a text-only adapter) sees it; its tables are computed once.

    Attributes:
        catalogue: N items.
        texts: (N,) text of each item, for text slots.
        vectors: (N, D) item vectors of the encoder; None without one.
    """

    def __init__(
        self, catalogue: Catalogue, text: tuple[str, ...], shared: SharedEncoder | None, base: Base, forward: Lock
    ) -> None:
        self.forward = forward
        self.catalogue, self.text, self.shared, self.base = catalogue, text, shared, base
        self.texts = catalogue.texts(list(text))
        self.vectors: Tensor | None = None
        if shared is not None:
            with forward:  # texts are embedded by the bare base: no other batch may route rows meanwhile
                self.vectors = vectors_of(shared, catalogue, base)


class Inline:
    """The items of one call that only have columns; their codes follow the catalogue's."""

    def __init__(self, space: ItemSpace) -> None:
        self.space = space
        self.rows: dict[str, dict[str, Any]] = {}

    def code(self, item: str | Mapping[str, Any]) -> int:
        """The code of an item id or of an item given by its columns.

        Raises:
            RequestError: The id is unknown, or the columns are not usable.
        """
        if isinstance(item, str):
            if item not in self.space.catalogue:
                raise RequestError(
                    "unknown item",
                    got=item,
                    expected="an item of the catalogue",
                    todo='give its columns instead: {"item": {"title": …}}',
                )
            return self.space.catalogue.code(item)
        if not isinstance(item, Mapping) or not item:
            raise RequestError(
                "an item cannot be read", got=repr(item)[:80], expected="an item id, or an object with its columns"
            )
        columns = {str(key): value for key, value in item.items()}
        known = set(self.space.catalogue.frame.columns)
        if stray := sorted(set(columns) - known):
            raise RequestError("an item has an unknown column", got=stray[0], expected=", ".join(sorted(known)))
        key = json.dumps(columns, sort_keys=True, default=str)
        if key not in self.rows:
            self._check(columns)
            self.rows[key] = columns
        return self.space.catalogue.size + list(self.rows).index(key)

    def item_id(self, code: int) -> str:
        """The id that a result carries: the catalogue's, or the one given inline, or the title."""
        if code < self.space.catalogue.size:
            return self.space.catalogue.item_ids[code]
        row = list(self.rows.values())[code - self.space.catalogue.size]
        return str(row.get("item_id") or row.get("title") or f"inline-{code - self.space.catalogue.size}")

    def _check(self, columns: dict[str, Any]) -> None:
        """Refuse an item that cannot become a row, so that it fails with its own request and not with the whole call."""
        schema, shared = self.space.catalogue.frame.schema, self.space.shared
        texts = all(isinstance(value, str) and schema[name] == pl.String for name, value in columns.items())
        if not texts or (shared is not None and shared.encoder.spec.dense):
            self._extra([columns])

    def _extra(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], Tensor | None]:
        """Texts and vectors of items that are given by their columns."""
        space = self.space
        try:
            schema = {name: kind for name, kind in space.catalogue.frame.schema.items() if name != "item_id"}
            values = [{name: row.get(name) for name in schema} for row in rows]
            frame = pl.DataFrame(values, schema=schema).with_columns(
                pl.Series("item_id", [f"\x00inline-{i}" for i in range(len(values))])
            )
            extra = Catalogue(frame.select("item_id", *schema))
            with space.forward:
                vectors = None if space.shared is None else vectors_of(space.shared, extra, space.base)
            return extra.texts(list(space.text)), vectors
        except (TypeError, ValueError, RuntimeError, pl.exceptions.PolarsError, GenreError) as error:
            raise RequestError("an inline item cannot be used", got=str(error).splitlines()[0][:160]) from None

    def tables(self) -> tuple[Sequence[str], Tensor | None]:
        """Texts and vectors of catalogue and inline items together.

        Raises:
            RequestError: The inline columns cannot become a catalogue.
        """
        space = self.space
        if not self.rows:
            return space.texts, space.vectors
        texts, vectors = self._extra(list(self.rows.values()))
        both = None if vectors is None or space.vectors is None else torch.cat([space.vectors, vectors])
        return [*space.texts, *texts], both


@torch.no_grad()
def vectors_of(shared: SharedEncoder, catalogue: Catalogue, base: Base) -> Tensor:
    """(N, D) float32 item vectors of a catalogue."""
    encoder = shared.encoder.eval()
    return encoder.item_vectors(encoder.table(catalogue, base).to(base.device))
