"""Field parsing: ids and feedback out of columns of any type.

Owns: the usable values of each column. Ignores how numbers and times are written (`genre.data.numbers`, `genre.data.times`), and
the treatment of the others (`genre.data.build`). Every function takes a column of any type and returns one of the schema's, with
null for a value that is not usable.

    clean("click", pl.Series(["1", "false", "True", "often"]))  ->  [1, 0, 1, null]
"""

from collections.abc import Mapping

import polars as pl

from genre.data.numbers import TRUTH, YES, keep_where, numbers, truth_values
from genre.data.schema import FEEDBACK, RATING_LIMIT
from genre.data.times import times_us
from genre.errors import DataError

EXPECTED = {
    "user_id": "an id, not empty",
    "item_id": "an id, not empty",
    "timestamp": "seconds since 1970, or an ISO date",
    "rating": "a number between -1e6 and 1e6",
    "click": "0 or 1, or true or false",
    "behaviour": "a word such as view, cart, purchase",
    "impression_id": "an id, not empty",
}
"""The usable values of each column, for messages."""


def clean(name: str, series: pl.Series, time_unit: str = "s", *, stored: bool = False) -> pl.Series:
    """Return column `name` in the schema's type; null where the value is not usable.

    Times are microseconds here. Extra columns keep their values (numbers, texts; booleans become 0 and 1): nulls there are
    allowed.
    """
    if name in ("user_id", "item_id", "impression_id"):
        return ids(series)
    if name == "timestamp":
        return times_us(series, time_unit, stored=stored)
    if name == "rating":
        rating = _numbers_or(series, TRUTH)
        return keep_where(rating, (pl.col("x").is_finite()) & (pl.col("x").abs() <= RATING_LIMIT))
    if name == "click":
        click = _numbers_or(series, TRUTH | YES)
        return keep_where(click, (pl.col("x") == 0) | (pl.col("x") == 1)).cast(FEEDBACK["click"])
    if name == "behaviour":
        text = series.cast(pl.String).str.strip_chars()
        return keep_where(text, pl.col("x") != "")
    return series.cast(pl.Int8) if series.dtype == pl.Boolean else _plain(series)


def _numbers_or(series: pl.Series, words: Mapping[str, str]) -> pl.Series:
    """Return numbers, and those that words stand for; the words are looked for only where something is not a number."""
    found = numbers(series)
    return found if found.null_count() == series.null_count() else numbers(truth_values(series, words))


def ids(series: pl.Series) -> pl.Series:
    """Return ids as text: whole floats lose their point (pandas makes them of integers), an empty text is none.

    Raises:
        DataError: Floats are too short for their ids: different ones would become one.
    """
    if series.dtype.is_float():
        whole = keep_where(series, pl.col("x").is_finite() & (pl.col("x") == pl.col("x").floor()))
        _check_exact(whole)
        series = whole.cast(pl.Int64, strict=False)
    if series.dtype.is_nested() or series.dtype.is_temporal() or series.dtype in (pl.Object, pl.Binary):
        return pl.Series(series.name, [None] * len(series), dtype=pl.String)
    text = series.cast(pl.String)
    return text if not (text == "").any() else keep_where(text, pl.col("x") != "")


def _check_exact(values: pl.Series) -> None:
    """Refuse whole numbers beyond those that a column of floats tells apart."""
    digits, bits = (11, 16) if values.dtype == pl.Float16 else (24, 32) if values.dtype == pl.Float32 else (53, 64)
    largest = float(values.cast(pl.Float64).abs().max() or 0)  # type: ignore[arg-type]
    if largest <= 2**digits:
        return
    got, todo = f"{values.name} {largest:.0f}", "export the ids again, as whole numbers or texts"
    raise DataError(f"{bits}-bit floats cannot hold these ids", got=got, expected=f"at most {2**digits}", todo=todo)


def order_numbers(series: pl.Series) -> pl.Series:
    """Return a column that orders events as numbers: whole ones as they are, dates, also as texts, as microseconds.

    Null is not usable.
    """
    if series.dtype.is_integer():
        return series.cast(pl.Int64, strict=False)
    if isinstance(series.dtype, pl.Datetime | pl.Date):
        return series.cast(pl.Datetime("us")).dt.epoch("us")
    found = numbers(series)
    if series.dtype == pl.String and found.null_count() == len(found):
        return times_us(series)
    return keep_where(found, pl.col("x").is_finite())


def plain_ids(series: pl.Series) -> pl.Series:
    """Return ids of texts in the one form that they have in every table: no space around them, `17850` for `17850.0`.

    Whoever writes a column of whole numbers with an empty cell (pandas does) gives them all a `.0`; a database's decimals have as
    many zeros as their scale.
    """
    if isinstance(series.dtype, pl.Decimal):
        return series.cast(pl.String).str.replace(r"\.0+$", "")
    if isinstance(series.dtype, pl.Categorical | pl.Enum):
        series = series.cast(pl.String)
    if series.dtype != pl.String:
        return series
    text = series.str.strip_chars()
    return text.str.replace(r"^(-?\d+)\.0$", "$1") if text.str.ends_with(".0").any() else text


def _plain(series: pl.Series) -> pl.Series:
    if isinstance(series.dtype, pl.Categorical | pl.Enum):
        return series.cast(pl.String)
    return series.cast(pl.Float64) if series.dtype in (pl.Decimal, pl.Float32) else series
