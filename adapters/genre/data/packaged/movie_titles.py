"""Which movie of MovieLens is which item of MovieLens-100K.

Owns: movie ids and titles out of a table that a package ships as a pickle, read without running any of its code; the match
by title and year. Ignores what the ids are for.

RecBole's graph files beside ML-100K name movies by MovieLens' own ids, which ML-100K does not use: their 50 is The Usual
Suspects, ML-100K's 50 is Star Wars. Titles tell:

    item 12, "Usual Suspects, The", 1995     is     movie 50, "Usual Suspects, The", 1995
    item 50, "Star Wars", 1977               is     movie 260, "Star Wars: Episode IV - A New Hope", 1977
"""

import io
import lzma
import pickle
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from genre.errors import DownloadError


def read_titles(path: Path) -> pl.DataFrame:
    """Read movie_id (str), title (str), year (int) of every movie of a pickled pandas frame of ratings, packed by xz.

    Nothing of pandas is imported or called: its classes are replaced by `_Inert`, and only NumPy arrays are built.

    Raises:
        DownloadError: If the file is no such frame.
    """
    try:
        frame = _Reader(io.BytesIO(lzma.decompress(path.read_bytes()))).load()
        columns = _columns(frame)
        table = pl.DataFrame(
            {
                "movie_id": pl.Series(columns["movieId"].astype(np.int64)).cast(pl.String),
                "title": pl.Series([title if isinstance(title, str) else None for title in columns["title"]], dtype=pl.String),
                "year": pl.Series(columns["year"].astype(np.float64)).fill_nan(None).cast(pl.Int64),
            }
        )
    except (
        lzma.LZMAError,
        pickle.UnpicklingError,
        EOFError,
        KeyError,
        AttributeError,
        TypeError,
        ValueError,
        IndexError,
    ) as error:
        raise DownloadError(
            f"{path.name} cannot be read", got=f"{error!r}"[:200], expected="a frame of movieId, title, year"
        ) from error
    return table.unique(subset="movie_id", keep="first", maintain_order=True)


def match_movies(items: pl.DataFrame, movies: pl.DataFrame) -> pl.DataFrame:
    """Find each item's movie by title and year.

    Titles are compared without case, accents, punctuation and what stands in parentheses. A pair is taken if neither side has
    another candidate; first by the whole title in the same year, then in a neighbouring year, then by another title that stands
    in parentheses, then by what stands before a colon, the last two in the same year.

    Args:
        items: item_id, title, year.
        movies: movie_id, title, year.

    Returns:
        item_id, movie_id: each at most once, in the items' order.
    """
    found = pl.DataFrame(schema={"item_id": pl.String, "movie_id": pl.String})
    keyed = [_keys(items, "item_id"), _keys(movies, "movie_id")]
    for kinds, years in ((("whole",), 0), (("whole",), 1), (("whole", "other"), 0), (("whole", "other", "short"), 0)):
        left = keyed[0].filter(pl.col("kind").is_in(kinds) & ~pl.col("item_id").is_in(found["item_id"].implode()))
        right = keyed[1].filter(pl.col("kind").is_in(kinds) & ~pl.col("movie_id").is_in(found["movie_id"].implode()))
        pairs = left.join(right, on="key").filter((pl.col("year") - pl.col("year_right")).abs() <= years)
        pairs = pairs.select("item_id", "movie_id").unique()
        pairs = pairs.filter(~pl.col("item_id").is_duplicated() & ~pl.col("movie_id").is_duplicated())
        found = pl.concat([found, pairs])
    return items.select("item_id").join(found, on="item_id", maintain_order="left")


def _keys(table: pl.DataFrame, id_column: str) -> pl.DataFrame:
    rows = []
    for name, title, year in table.select(id_column, "title", "year").iter_rows():
        if not title or year is None:
            continue
        others = re.findall(r"\(([^()]*)\)", title)
        whole = re.sub(r"\([^()]*\)", " ", title)
        texts = [("whole", whole), *(("other", re.sub(r"^a\.?k\.?a\.? ", "", other)) for other in others)]
        texts += [("short", whole.partition(":")[0])] if ":" in whole else []
        rows += [(name, key, kind, year) for kind, text in texts if (key := _plain(text))]
    return pl.DataFrame(rows, schema={id_column: pl.String, "key": pl.String, "kind": pl.String, "year": pl.Int64}, orient="row")


def _plain(title: str) -> str:
    letters = unicodedata.normalize("NFKD", title.lower().replace("&", " and "))
    return " ".join(re.findall(r"[a-z0-9]+", letters.encode("ascii", "ignore").decode()))


class _Inert:
    """Stands for a class or a function of pandas: keeps what it is given and does nothing."""

    given: tuple[Any, ...]
    state: Any

    def __new__(cls, *given: Any) -> "_Inert":
        made = super().__new__(cls)
        made.given, made.state = given, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _array(buffer: Any, dtype: np.dtype[Any], shape: tuple[int, ...], order: Any) -> np.ndarray:
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _empty(subtype: type, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    return np.ndarray(shape, dtype=kind)  # filled by the array's own __setstate__


class _Reader(pickle.Unpickler):
    """Builds NumPy arrays and plain values; every name of pandas becomes `_Inert`, any other is refused."""

    known = {
        ("builtins", "slice"): slice,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.numeric", "_frombuffer"): _array,
        ("numpy.core.multiarray", "_reconstruct"): _empty,
        ("numpy._core.multiarray", "_reconstruct"): _empty,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name in the pickle stands for."""
        if module.partition(".")[0] == "pandas":
            return _Inert
        try:
            return self.known[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a frame") from None


def _columns(frame: Any) -> dict[str, np.ndarray]:
    """Column name to values, out of what a pickled frame holds: its labels, and blocks of columns with their places."""
    blocks, (labels, _) = frame.state["_mgr"].given
    names = labels.given[1]["data"]
    columns = {}
    for block in blocks:
        values, places, _ = block.given
        for name, row in zip(names[places], values, strict=True):
            columns[name] = row
    return columns
