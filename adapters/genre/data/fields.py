"""Field parsing: ids, times and feedback out of columns of any type.

Owns: the usable values of each column. Ignores how numbers are written (`genre.data.numbers`), and the treatment of the others
(`genre.data.build`). Every function takes a column of any type and returns one of the schema's, with null for a value that is not
usable.

    times_us(pl.Series(["881250949.5", "2024-03-01T12:00:00Z", "soon"]))  ->  [881250949500000, 1709294400000000, null]
"""

import numpy as np
import polars as pl

from genre.data.numbers import numbers
from genre.data.schema import FEEDBACK, LAST_SECOND, RATING_LIMIT
from genre.errors import DataError, InputError

UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""Units of numeric timestamps: how many make a second."""

EXPECTED = {
    "user_id": "an id, not empty",
    "item_id": "an id, not empty",
    "timestamp": "seconds since 1970, or an ISO date",
    "rating": "a number between -1e6 and 1e6",
    "click": "0 or 1",
    "behaviour": "a word such as view, cart, purchase",
    "impression_id": "an id, not empty",
}
"""The usable values of each column, for messages."""

_LAST_US = (LAST_SECOND + 1) * UNITS["us"] - 1

_FEW_TIMES = 8  # so few may be multiples of anything

_DATE_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y%m%d %H%M%S", "%Y%m%d%H%M%S", "%Y%m%d")
_DAY = r"^(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(([01]\d|2[0-3])[0-5]\d[0-5]\d)?$"
_ZONED_FORMATS = ("%Y-%m-%d %H:%M:%S%.f%z", "%Y-%m-%d %H:%M%z", "%Y%m%d %H%M%S%z")


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
        rating = numbers(series)
        return _where(rating, (pl.col("x").is_finite()) & (pl.col("x").abs() <= RATING_LIMIT))
    if name == "click":
        click = series.cast(pl.Int8) if series.dtype == pl.Boolean else numbers(series)
        return _where(click, (pl.col("x") == 0) | (pl.col("x") == 1)).cast(FEEDBACK["click"])
    if name == "behaviour":
        text = series.cast(pl.String).str.strip_chars()
        return _where(text, pl.col("x") != "")
    return series.cast(pl.Int8) if series.dtype == pl.Boolean else _plain(series)


def ids(series: pl.Series) -> pl.Series:
    """Return ids as text: whole floats lose their point (pandas makes them of integers), an empty text is none."""
    if series.dtype.is_float():
        whole = _where(series, pl.col("x").is_finite() & (pl.col("x") == pl.col("x").floor()))
        series = whole.cast(pl.Int64, strict=False)
    if isinstance(series.dtype, pl.List | pl.Array | pl.Struct | pl.Object):
        return pl.Series(series.name, [None] * len(series), dtype=pl.String)
    text = series.cast(pl.String)
    return text if not (text == "").any() else _where(text, pl.col("x") != "")


def order_numbers(series: pl.Series) -> pl.Series:
    """Return a column that orders events as numbers: whole ones as they are, dates as microseconds; null is not usable."""
    if series.dtype.is_integer():
        return series.cast(pl.Int64, strict=False)
    if isinstance(series.dtype, pl.Datetime | pl.Date):
        return series.cast(pl.Datetime("us")).dt.epoch("us")
    found = numbers(series)
    return _where(found, pl.col("x").is_finite())


def plain_ids(series: pl.Series) -> pl.Series:
    """Return ids of texts in the one form that they have in every table: no space around them, `17850` for `17850.0`.

    Whoever writes a column of whole numbers with an empty cell (pandas does) gives them all a `.0`.
    """
    if isinstance(series.dtype, pl.Categorical | pl.Enum):
        series = series.cast(pl.String)
    if series.dtype != pl.String:
        return series
    text = series.str.strip_chars()
    return text.str.replace(r"^(-?\d+)\.0$", "$1") if text.str.ends_with(".0").any() else text


def times_us(series: pl.Series, time_unit: str = "s", *, stored: bool = False) -> pl.Series:
    """Return int64 microseconds since 1970; dates without a zone are UTC; before 1970 or after 9999 is null.

    A column of days as numbers (20240301) is one of dates, unless a data set folder has `stored` it: those are seconds.

    Raises:
        InputError: If `time_unit` is none of s, ms, us, ns.
    """
    if time_unit not in UNITS:
        raise InputError("unknown time unit", got=repr(time_unit), expected=", ".join(UNITS))
    days = None if stored else _days_us(series)
    if days is not None:
        found = days
    elif isinstance(series.dtype, pl.Datetime | pl.Date):
        found = series.cast(pl.Datetime("us")).dt.epoch("us")
    elif series.dtype.is_integer():
        found = _whole_us(series.cast(pl.Int64, strict=False), time_unit)
    elif series.dtype.is_float() or series.dtype.is_decimal():
        found = _float_us(series.cast(pl.Float64), time_unit)
    elif series.dtype == pl.String:
        text = series.str.strip_chars()
        exact = text.cast(pl.Int64, strict=False)  # first, since a float64 cannot hold every nanosecond
        found = _whole_us(exact, time_unit)
        if exact.null_count() > text.null_count():
            floats = _float_us(text.cast(pl.Float64, strict=False), time_unit)
            found = found.fill_null(_where(floats, exact.is_null())).fill_null(_dates(_where(text, exact.is_null())))
    else:
        return pl.Series(series.name, [None] * len(series), dtype=pl.Int64)
    return _where(found, pl.col("x").is_between(0, _LAST_US))


def check_time_step(series: pl.Series, time_unit: str) -> None:
    """Refuse a column of short floats that cannot tell one second (or other unit) of its times from the next.

    Raises:
        DataError: Its steps are longer than its unit.
    """
    if series.dtype not in (pl.Float16, pl.Float32):
        return
    values = series.cast(pl.Float32).to_numpy()
    last = np.nanmax(np.where(np.isfinite(values), values, 0), initial=0)
    step = float(np.spacing(np.float16(last) if series.dtype == pl.Float16 else last))
    if step > 1:
        bits = 16 if series.dtype == pl.Float16 else 32
        got, expected = f"steps of {step:,.0f} {time_unit} at {last:.0f}", "whole numbers, dates or 64-bit floats"
        todo = "export the times again, as int64"
        raise DataError(f"{bits}-bit floats cannot hold these times", got=got, expected=expected, todo=todo)


def short_float_note(seconds: pl.Series) -> str:
    """Return a line if times look as if they had once been 32-bit floats: multiples of 128 s that are no whole hours."""
    step, times = 128, seconds.to_numpy()
    if seconds.n_unique() < _FEW_TIMES or times.min() < 2**30 or (times % step).any() or not (times % 3600).any():
        return ""
    return f"all times are multiples of {step} s, as a 32-bit float leaves them: the order within {step} s is lost"


def _whole_us(values: pl.Series, time_unit: str) -> pl.Series:
    """Whole numbers to microseconds; those after 9999, which might not fit into 64 bits, are null."""
    last = min((LAST_SECOND + 1) * UNITS[time_unit] - 1, 2**63 - 1)
    kept = _where(values, pl.col("x").is_between(0, last))
    return kept // 1000 if time_unit == "ns" else kept * (UNITS["us"] // UNITS[time_unit])


def _float_us(values: pl.Series, time_unit: str) -> pl.Series:
    """Floats to microseconds, to the nearest: at today's epoch a float64 of seconds holds quarters of one."""
    near = (values * (UNITS["us"] / UNITS[time_unit])).round()
    return _where(near, pl.col("x").is_finite() & pl.col("x").is_between(0, _LAST_US)).cast(pl.Int64, strict=False)


def _days_us(series: pl.Series) -> pl.Series | None:
    """Days as numbers, such as 20240301, or 20240301123000, to microseconds; None unless most of a column's numbers are days.

    As seconds, all of them would lie in August 1970. A number that is no day is null then; other texts are read as dates.
    """
    if series.dtype.is_float() or series.dtype.is_decimal():
        series = _where(series.cast(pl.Float64), pl.col("x") == pl.col("x").floor())
    if series.dtype.is_numeric():
        series = series.cast(pl.Int64, strict=False)
    if not series.dtype.is_integer() and series.dtype != pl.String:
        return None
    values = series.str.strip_chars().cast(pl.Float64, strict=False) if series.dtype == pl.String else series
    if not (values.is_between(19000101, 20991231) | values.is_between(19000101000000, 20991231235959)).any():
        return None
    text = series.cast(pl.String).str.strip_chars().str.replace(r"^(\d+)\.0*$", "$1")
    number, day = text.str.contains(r"^\d+$").fill_null(False), text.str.contains(_DAY).fill_null(False)
    return _dates(_where(text, day | ~number)) if day.sum() > number.sum() / 2 else None


def _dates(text: pl.Series) -> pl.Series:
    """ISO dates to microseconds: with T or a space, with or without seconds, fractions after a point or a comma, and a zone."""
    plain = text.str.replace(r"[Tt]", " ").str.replace(r"(:\d{2}),(\d+)", "$1.$2").str.replace(r"\s*(Z|z|UTC|GMT)$", "")
    found = _parse(plain, _DATE_FORMATS, None)
    if found.null_count() == text.null_count():
        return found
    full = plain.str.replace(r"([\d:])\s*([+-]\d{2})$", "$1$2:00").str.replace(r"\s+([+-]\d{2}:?\d{2})$", "$1")
    return found.fill_null(_parse(full, _ZONED_FORMATS, "UTC"))


def _parse(text: pl.Series, formats: tuple[str, ...], zone: str | None) -> pl.Series:
    found = pl.Series(text.name, [None] * len(text), dtype=pl.Int64)
    for form in formats:
        if found.null_count() > text.null_count():
            found = found.fill_null(text.str.to_datetime(form, strict=False, time_unit="us", time_zone=zone).dt.epoch("us"))
    return found


def _plain(series: pl.Series) -> pl.Series:
    if isinstance(series.dtype, pl.Categorical | pl.Enum):
        return series.cast(pl.String)
    return series.cast(pl.Float64) if series.dtype in (pl.Decimal, pl.Float32) else series


def _where(series: pl.Series, condition: pl.Expr | pl.Series) -> pl.Series:
    """Null where the condition on column "x" is false or null."""
    kept = pl.DataFrame({"x": series}).select(pl.when(condition).then(pl.col("x")))
    return kept.to_series().rename(series.name)
