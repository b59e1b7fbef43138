"""Times out of columns of any type, as microseconds since 1970.

Owns: units of numeric timestamps, days as numbers, dates as texts, floats too short for their times. Ignores the treatment of a
cell that is not a time: it is null here (`genre.data.build`).

    times_us(pl.Series(["881250949.5", "2024-03-01T12:00:00Z", "soon"]))      ->  [881250949500000, 1709294400000000, null]
    times_us(pl.Series(["2014/4/1", "2014-12-06 02", "03/01/2024"]))          ->  [1396310400000000, 1417831200000000, null]
    times_us(pl.Series(["Fri Aug 25 13:55:02 -0700 2017", "Nov 5, 2011"]))    ->  [1503694502000000, 1320451200000000, null]

Day and month in numbers are read only after a year: 03/01/2024 is March or January. Names of months and days are English.
"""

from datetime import UTC, datetime

import numpy as np
import polars as pl

from genre.data.numbers import keep_where
from genre.data.schema import LAST_SECOND
from genre.errors import DataError, InputError

UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
"""Units of numeric timestamps: how many make a second."""

_LAST_US = (LAST_SECOND + 1) * UNITS["us"] - 1

_FEW_TIMES = 8  # so few may be multiples of anything

DAY = r"^(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:(?:[01]\d|2[0-3])(?:[0-5]\d){0,2})?$"
"""A day as a number, perhaps with its hour, minute and second: 20240301, 2024030112, 202403011230, 20240301123059."""


_SAMPLE = 64
_LARGER = 16

_USUAL = (
    *("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.fZ", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"),
    *("%Y-%m-%d %H:%M:%S%.f UTC", "%Y-%m-%d %H:%M:%S%.f%z", "%Y-%m-%dT%H:%M:%S%.f%z", "%Y/%m/%d %H:%M:%S%.f", "%Y/%m/%d"),
    *("%Y%m%d", "%Y%m%d%H%M%S", "%a %b %d %H:%M:%S %z %Y", "%a, %d %b %Y %H:%M:%S %z"),
)
"""Formats of whole columns, read without a change to their texts."""

_PLAIN = (
    *("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d", "%Y-%m-%d %I:%M:%S %p", "%Y-%m-%d %I:%M %p"),
    *("%Y-%m-%d %H:%M:%S%.f%z", "%Y-%m-%d %H:%M%z", "%Y-%m-%d %I:%M:%S %p%z"),
    *("%Y%m%d", "%Y%m%d%H%M%S", "%Y%m%d %H%M%S", "%Y%m%d %H%M%S%z"),
)
"""Formats of the texts that `_reorder` returns."""

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = r"(" + "|".join(_MONTHS) + r")[a-z]*\.?"
_CLOCK = r"\d{1,2}:\d{2}(?::\d{2})?(?:\.\d+)?"
_REORDERED = (
    (r"\s+", " "),
    (r" ?\(.*\)$", ""),  # JavaScript names the zone after its offset
    (r"(?i)^(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*[.,]? ", ""),
    (rf"({_CLOCK}),(\d+)", "$1.$2"),
    (r"(?i)([\dm]) ?(?:z|utc|gmt)( \d{4})?$", "$1$2"),
    (r"(?i) (?:utc|gmt)([+-]\d)", " $1"),
    (rf"(?i)^{_MONTH} (\d{{1,2}}) ({_CLOCK})((?: [+-]\d{{2}}:?\d{{2}})?) (\d{{4}})$", "$5-$1-$2 $3$4"),
    (rf"(?i)^{_MONTH} (\d{{1,2}})(?:st|nd|rd|th)?,? (\d{{4}}),? ?(?:at )?", "$3-$1-$2 "),
    (rf"(?i)^(\d{{1,2}})[ /-]{_MONTH},?[ /-](\d{{4}})[ ,:]*", "$3-$2-$1 "),
    (rf"(?i)^(\d{{4}})[ /-]{_MONTH}[ /-](\d{{1,2}})", "$1-$2-$3"),
    (r"^(\d{4})[/.](\d{1,2})[/.](\d{1,2})", "$1-$2-$3"),
    (r"(?i)^(\d{4}-(?:\d{1,2}|[a-z]{3})-\d{1,2}|\d{8})t", "$1 "),
    (r"(?i)^(\d{4}-(?:\d{1,2}|[a-z]{3})-\d{1,2} \d{1,2})$", "$1:00"),  # an hour
    (r"([\dm]) ?([+-]\d{2}):?(\d{2})$", "$1$2$3"),
    (r"(:\d{2}(?:\.\d+)?) ?([+-]\d{2})$", "${1}${2}00"),
    (r"^\s+|\s+$", ""),
)
"""What a date becomes step by step: year, month, day, time, and the zone's offset with four digits."""


def times_us(series: pl.Series, time_unit: str = "s", *, stored: bool = False) -> pl.Series:
    """Return int64 microseconds since 1970; dates without a zone are UTC; before 1970 or after 9999 is null.

    A column of days as numbers (20240301, also with hour, minute and second) is one of dates, unless a data set folder has
    `stored` it: those are seconds.

    Args:
        series: Times of any type.
        time_unit: Of numbers: s, ms, us or ns; or the form that all texts have, of strftime (`%d/%m/%Y`).
        stored: True for the column of a data set folder.

    Raises:
        InputError: If `time_unit` is none of s, ms, us, ns, and no form of a day.
    """
    if is_form(time_unit) and not series.dtype.is_temporal():
        return keep_where(_of_form(series, time_unit), pl.col("x").is_between(0, _LAST_US))
    if time_unit not in UNITS and not is_form(time_unit):
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
            found = found.fill_null(keep_where(floats, exact.is_null())).fill_null(_dates(keep_where(text, exact.is_null())))
    else:
        return pl.Series(series.name, [None] * len(series), dtype=pl.Int64)
    return keep_where(found, pl.col("x").is_between(0, _LAST_US))


def is_form(time_unit: str) -> bool:
    """Return whether a time unit is the form of texts instead, such as `%d/%m/%Y`."""
    return "%" in time_unit


def _of_form(series: pl.Series, form: str) -> pl.Series:
    """Texts of one form to microseconds; a form that does not read the day that it writes is refused."""
    day = pl.Series([datetime(2024, 1, 31, tzinfo=UTC)])
    plain = form.replace(".%f", "%.f")  # the digits of polars' %f are nanoseconds
    works = "%f" not in plain
    try:
        works = works and _by_format(day.dt.strftime(plain), plain).equals(day.dt.epoch("us"))
        found = _by_format(series.cast(pl.String, strict=False).str.strip_chars(), plain) if works else series
    except pl.exceptions.PolarsError:
        works = False
    if not works:
        expected = "a day and perhaps a time, such as '%d/%m/%Y %H:%M:%S'"
        raise InputError("--time-format is not usable", got=repr(form), expected=expected)
    return found


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


def may_be_days(values: pl.Series) -> bool:
    """Return whether any of a column's numbers could be a day, such as 20240301 or 20240301123000 (see `DAY`)."""
    longer = (1, 100, 10_000, 1_000_000)  # hour, minute, second
    return any(bool(values.is_between(19000101 * each, 20991232 * each, closed="left").any()) for each in longer)


def short_float_note(seconds: pl.Series) -> str:
    """Return a line if times look as if they had once been 32-bit floats: multiples of 128 s that are not whole hours."""
    step, times = 128, seconds.to_numpy()
    if (times[:_SAMPLE] % step).any():  # the usual case, at once
        return ""
    if seconds.n_unique() < _FEW_TIMES or times.min() < 2**30 or (times % step).any() or not (times % 3600).any():
        return ""
    return f"all times are multiples of {step} s, as a 32-bit float leaves them: the order within {step} s is lost"


def _whole_us(values: pl.Series, time_unit: str) -> pl.Series:
    """Whole numbers to microseconds; those after 9999, which might not fit into 64 bits, are null."""
    last = min((LAST_SECOND + 1) * UNITS[time_unit] - 1, 2**63 - 1)
    kept = keep_where(values, pl.col("x").is_between(0, last))
    return kept // 1000 if time_unit == "ns" else kept * (UNITS["us"] // UNITS[time_unit])


def _float_us(values: pl.Series, time_unit: str) -> pl.Series:
    """Floats to microseconds, to the nearest: at today's epoch a float64 of seconds holds quarters of one."""
    near = (values * (UNITS["us"] / UNITS[time_unit])).round()
    return keep_where(near, pl.col("x").is_finite() & pl.col("x").is_between(0, _LAST_US)).cast(pl.Int64, strict=False)


def _days_us(series: pl.Series) -> pl.Series | None:
    """Days as numbers, such as 20240301, or 20240301123000, to microseconds; None unless most of a column's numbers are days.

    As seconds, all of them would lie in August 1970. A number that is not a day is null then; other texts are read as dates.
    """
    if series.dtype.is_float() or series.dtype.is_decimal():
        series = keep_where(series.cast(pl.Float64), pl.col("x") == pl.col("x").floor())
    if series.dtype.is_numeric():
        series = series.cast(pl.Int64, strict=False)
    if not series.dtype.is_integer() and series.dtype != pl.String:
        return None
    values = series.str.strip_chars().cast(pl.Float64, strict=False) if series.dtype == pl.String else series
    if not may_be_days(values):
        return None
    text = series.cast(pl.String).str.strip_chars().str.replace(r"^(\d+)\.0*$", "$1")
    number, day = text.str.contains(r"^\d+$").fill_null(False), text.str.contains(DAY).fill_null(False)
    if day.sum() <= number.sum() / 2:
        return None
    whole = text.str.replace(r"^(\d{10})$", "${1}0000").str.replace(r"^(\d{12})$", "${1}00")
    return _dates(keep_where(pl.select(pl.when(day).then(whole).otherwise(text)).to_series(), day | ~number))


def _dates(text: pl.Series) -> pl.Series:
    """Dates and times as texts to microseconds; the forms that are rare in a column are brought into a usual one first."""
    found = _parse(text, _USUAL, all_rows=False)
    odd = (found.is_null() & text.is_not_null()).arg_true()
    if not len(odd):
        return found
    rare = text[odd]
    different = rare.unique()
    return found.scatter(odd, rare.replace_strict(different, _parse(_reorder(different), _PLAIN), return_dtype=pl.Int64))


def _reorder(text: pl.Series) -> pl.Series:
    """Return dates as texts in the order of `_PLAIN`, if they are any."""
    for pattern, replacement in _REORDERED:
        text = text.str.replace_all(pattern, replacement)
    numbers = {f"-{month}-": f"-{number}-" for number, month in enumerate(_MONTHS, 1)}
    return text.str.replace_many(list(numbers), list(numbers.values()), ascii_case_insensitive=True)


def _parse(text: pl.Series, formats: tuple[str, ...], *, all_rows: bool = True) -> pl.Series:
    """Read texts by the format that fits most of a sample, then the others likewise; null where none does.

    Without `all_rows` it ends at a sample that no format fits.
    """
    found = pl.Series(text.name, [None], dtype=pl.Int64).new_from_index(0, len(text))
    left, size = text.is_not_null().arg_true(), _SAMPLE
    while len(left):
        sample = text[left[:size]]
        form = max(formats, key=lambda each: _by_format(sample, each).count())
        if not _by_format(sample, form).count():
            if not all_rows:
                break
            left, size = left[size:], size * _LARGER
            continue
        values = _by_format(text if len(left) == len(text) else text[left], form)
        good = values.is_not_null()
        found = values if good.all() and len(left) == len(text) else found.scatter(left.filter(good), values.filter(good))
        left = left.filter(~good)
    return found


def _by_format(text: pl.Series, form: str) -> pl.Series:
    zone = "UTC" if "%z" in form else None
    return text.str.to_datetime(form, strict=False, time_unit="us", time_zone=zone).dt.epoch("us")
