"""The items and their features.

Owns: one row per item, an item's code (its row), texts and dense vectors of chosen columns, search by title. Ignores users.

A row of MovieLens-100K's catalogue:

    item_id: "1", title: "Toy Story", year: 1995, genres: "Animation, Children's, Comedy"
"""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import polars as pl

from genre.errors import DataError, InputError

SHOWN = 5
"""Items that a message about an ambiguous title names."""

_TEXT_TYPES = (pl.String, pl.Categorical, pl.Enum)


class Catalogue:
    """Every item, in a fixed order; an item's code is its row. Immutable.

    Args:
        frame: `item_id` (str, unique, no null) and any text, number, category or list columns.

    Raises:
        DataError: If `item_id` is missing, null or repeated.
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        if "item_id" not in frame.columns:
            got, expected = ", ".join(frame.columns) or "no columns", "item_id, then title and any other columns"
            todo = "name yours with --map item_id=THEIRS"
            raise DataError("the items have no column 'item_id'", got=got, expected=expected, todo=todo)
        ids = frame["item_id"]
        if ids.dtype != pl.String or ids.null_count() or ids.n_unique() != len(ids):
            got = f"{ids.dtype}, {ids.n_unique()} different of {len(ids)}"
            raise DataError("item ids are not usable", got=got, expected="one text id per item, none twice")
        self.frame = frame.select("item_id", pl.exclude("item_id"))

    def __len__(self) -> int:
        return self.frame.height

    def __repr__(self) -> str:
        return f"Catalogue({self.size} items: {', '.join(self.frame.columns)})"

    @property
    def size(self) -> int:
        """The number of items."""
        return self.frame.height

    @cached_property
    def item_ids(self) -> list[str]:
        """The ids, in code order."""
        return self.frame["item_id"].to_list()

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {item: code for code, item in enumerate(self.item_ids)}

    def code(self, item_id: str) -> int:
        """Return the item's code, 0 to size - 1.

        Raises:
            DataError: If there is no such item.
        """
        if item_id not in self._codes:
            expected = f"an id of the catalogue ({self.size} items, such as {', '.join(self.item_ids[:3])})"
            todo = "give a known item_id, or the item itself"
            raise DataError("unknown item", got=repr(item_id), expected=expected, todo=todo)
        return self._codes[item_id]

    def codes(self, item_ids: Sequence[str]) -> np.ndarray:
        """Return the codes of several items, int32[n].

        Raises:
            DataError: If one is unknown.
        """
        return np.fromiter((self.code(item) for item in item_ids), dtype=np.int32, count=len(item_ids))

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._codes

    def column(self, name: str) -> pl.Series:
        """Return a column.

        Raises:
            DataError: If there is no such column.
        """
        if name not in self.frame.columns:
            got, todo = ", ".join(self.frame.columns), "choose one of those, or import the items with this column"
            raise DataError(f"the catalogue has no column '{name}'", got=got, expected=f"a column '{name}'", todo=todo)
        return self.frame[name]

    def texts(self, columns: Sequence[str], separator: str = "; ") -> list[str]:
        """Return one text per item: the values of `columns`, those that are there, joined by `separator`.

        Lists of texts are joined by ", ". An item without any of the columns gives the empty text.

        Raises:
            DataError: If a column is missing or is a dense one.
        """
        parts = [self._as_text(name).alias(str(number)) for number, name in enumerate(columns)]
        if not parts:
            return [""] * self.size
        frame = pl.DataFrame(parts)
        return frame.select(pl.concat_str(pl.all(), separator=separator, ignore_nulls=True)).to_series().to_list()

    def titles(self) -> list[str]:
        """Return a name for each item: its title, or its id where there is none."""
        if "title" not in self.frame.columns:
            return list(self.item_ids)
        titles = self._as_text("title").to_list()
        return [title or item for title, item in zip(titles, self.item_ids, strict=True)]

    def _as_text(self, name: str) -> pl.Series:
        series = self.column(name)
        if isinstance(series.dtype, pl.List | pl.Array):
            if series.dtype.inner not in _TEXT_TYPES:
                raise DataError(f"column '{name}' is not text", got=str(series.dtype), expected="text, number or category")
            series = pl.DataFrame(series).select(pl.col(name).cast(pl.List(pl.String)).list.join(", ")).to_series()
        series = series.cast(pl.String)
        stripped = series.str.strip_chars()
        return pl.DataFrame({"text": stripped}).select(pl.when(pl.col("text") != "").then(pl.col("text"))).to_series()

    def dense(self, column: str) -> np.ndarray:
        """Return a column of numbers or of equally long lists of numbers as float32 [N, d]; an empty cell gives zeros.

        Raises:
            DataError: If the column is missing, is not a number, is ragged, or holds a value that is not finite.
        """
        series = self.column(column)
        if isinstance(series.dtype, pl.Array):
            series = series.arr.to_list()
        inner = series.dtype.inner if isinstance(series.dtype, pl.List) else series.dtype
        if not (inner.is_numeric() or inner == pl.Boolean):
            raise DataError(f"column '{column}' is not dense", got=str(series.dtype), expected="numbers or lists of numbers")
        lists = series if isinstance(series.dtype, pl.List) else series.reshape((-1, 1)).arr.to_list()
        return self._stack(lists, column)

    def _stack(self, lists: pl.Series, column: str) -> np.ndarray:
        lengths = lists.list.len().drop_nulls()
        shortest, width = int(lengths.min() or 0), int(lengths.max() or 0)  # type: ignore[arg-type]
        if shortest != width:
            raise DataError(f"column '{column}' is ragged", got=f"{shortest} to {width} numbers", expected="one length")
        dense = np.zeros((self.size, width), dtype=np.float32)
        filled = lists.is_not_null().to_numpy()
        if not width:
            return dense
        values = lists.drop_nulls().explode().cast(pl.Float32).fill_null(0.0).to_numpy()
        dense[filled] = values.reshape(-1, width)
        broken = np.flatnonzero(~np.isfinite(dense).all(axis=1))
        if broken.size:
            got = f"item {self.item_ids[broken[0]]} and {broken.size - 1} more"
            raise DataError(f"column '{column}' has values that are not finite", got=got, expected="finite numbers")
        return dense

    @cached_property
    def digest(self) -> str:
        """sha256 of the content, in code order."""
        return hash_frame(self.frame)


_ARTICLE = re.compile(r"^(.+), (the|a|an|der|die|das|le|la|les|l'|il|lo|el|los|las)( \(.*\))?$")
"""A title that was turned round for sorting, as film catalogues do: "matrix, the (1999)"."""
_YEAR = re.compile(r" \(\d{4}\)$")


def _turn(title: str) -> str:
    """A title in lower case with its article in front: "matrix, the (1999)" as "the matrix (1999)"."""
    found = _ARTICLE.match(title)
    if found is None:
        return title
    name, article, rest = found.groups()
    return f"{article}{'' if article.endswith(chr(39)) else ' '}{name}{rest or ''}"


class Titles:
    """A search index over the titles of one catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.titles = catalogue.titles()
        self.turned = pl.Series([_turn(title.lower()) for title in self.titles], dtype=pl.String)
        self.folded = pl.Series(
            [
                f"{title.lower()}\n{turned}\n{item.lower()}"
                for title, turned, item in zip(self.titles, self.turned, catalogue.item_ids, strict=True)
            ],
            dtype=pl.String,
        )

    def of(self, item_id: str) -> str:
        """Return the title of an item; an id that the catalogue does not have is its own title."""
        return self.titles[self.catalogue.code(item_id)] if item_id in self.catalogue else item_id

    def find(self, text: str) -> str:
        """Return the id of the one item that a text names: by id, by title, or by a part that one title alone has.

        Case does not count, "The Matrix" finds "Matrix, The (1999)", and a title without its year the one that has it.

        Raises:
            InputError: It names no item, or several.
        """
        wanted = text.lower().strip()
        if text in self.catalogue:
            return text
        same = [code for code, title in enumerate(self.titles) if title.lower() == wanted] if wanted else []
        plain = _turn(wanted)
        same = same or [code for code, title in enumerate(self.turned) if plain and plain in (title, _YEAR.sub("", title))]
        found = [{"item_id": self.catalogue.item_ids[code], "title": self.titles[code]} for code in same]
        found = found or (self.search(wanted, SHOWN + 1) if wanted else [])
        if len(found) == 1:
            return found[0]["item_id"]
        if not found:
            todo = "give a part of a title, or an item_id"
            raise InputError("no item has this title", got=repr(text[:80]), expected="a title of the catalogue", todo=todo)
        shown = ", ".join(f"{item['title']} ({item['item_id']})" for item in found[:SHOWN])
        more = ", …" if len(found) > SHOWN else ""
        got, todo = f"{text[:80]!r}: {shown}{more}", "give more of it, or its item_id"
        raise InputError("several items have this title", got=got, expected="one item", todo=todo)

    def search(self, text: str, limit: int) -> list[dict[str, str]]:
        """Find items whose title or id contains a text, case aside: first those that begin with it, each in catalogue order."""
        wanted = text.lower().strip()
        found = self.folded.str.contains(wanted, literal=True).to_numpy()
        first = self.folded.str.starts_with(wanted).to_numpy() | self.turned.str.starts_with(wanted).to_numpy()
        codes = [*np.flatnonzero(first)[:limit], *np.flatnonzero(found & ~first)[:limit]][:limit]
        return [{"item_id": self.catalogue.item_ids[code], "title": self.titles[code]} for code in codes]


def hash_frame(frame: pl.DataFrame) -> str:
    """Return the sha256 of a frame's names and values in order; the file format and the chunks do not matter."""
    total = hashlib.sha256()
    for name in frame.columns:
        total.update(name.encode() + b"\x1f")
        _hash_series(total, frame[name])
    return total.hexdigest()


def _hash_series(total: "hashlib._Hash", series: pl.Series) -> None:
    if isinstance(series.dtype, pl.Array):
        series = series.arr.to_list()
    if isinstance(series.dtype, _TEXT_TYPES):
        series = series.cast(pl.String)
    total.update(_kind(series.dtype).encode() + np.packbits(series.is_null().to_numpy()).tobytes())
    if isinstance(series.dtype, pl.List):
        total.update(series.list.len().fill_null(0).to_numpy().astype("<u4").tobytes())
        _hash_series(total, series.filter(series.list.len().fill_null(1) > 0).explode())  # polars differ on what is empty
    elif series.dtype == pl.String:
        total.update(series.str.len_bytes().fill_null(0).to_numpy().astype("<u4").tobytes())
        for start in range(0, len(series), 1_000_000):
            total.update((series[start : start + 1_000_000].str.join().item() or "").encode())
    else:
        values = series.cast(pl.Float64 if _kind(series.dtype) == "float" else pl.Int64).fill_null(0).to_numpy()
        total.update(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes())


def _kind(dtype: pl.DataType) -> str:
    """Name a type independently of the library, whose names may change, while a digest must not."""
    if isinstance(dtype, pl.List):
        return "list"
    if dtype == pl.String:
        return "text"
    return "float" if dtype.is_float() or dtype.is_decimal() else "whole"
