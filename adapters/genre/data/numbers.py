"""Numbers out of texts, as people and spreadsheets write them.

Owns: decimal points and commas, thousands separators, columns that are numbers but for a few signs of nothing. Ignores the
meaning of columns.

    numbers(pl.Series(["3,5", "4", "1.234,5"]))      ->  [3.5, 4.0, 1234.5]     a comma before the decimals
    numbers(pl.Series(["1,234", "987", "15,780"]))   ->  [1234.0, 987.0, 15780.0]
    numbers(pl.Series(["1,234", "3,5", "4.5"]))      ->  [null, 3.5, 4.5]       both kinds of decimals: 1,234 may be either
"""

from collections.abc import Mapping
from itertools import pairwise

import polars as pl

from genre.data.schema import PLACE, Report

MISSING = (
    *("na", "n/a", "#n/a", "n.a.", "n.a", "nan", "nat", "<na>", "null", "(null)", "none", "nil", "\\n", "undefined"),
    *("missing", "unknown", "#value!", "#ref!", "#div/0!"),
)
"""Words for "nothing", in small letters."""

TRUTH = {"true": "1", "false": "0"}
"""Words of booleans, in small letters, in any column."""

YES = {"yes": "1", "no": "0", "y": "1", "n": "0", "t": "1", "f": "0"}
"""Further ones where a column can be nothing but a boolean; elsewhere they may be texts for a prompt."""

_FEW = 0.2
"""A column of texts with at most this share of cells that are not numbers is worth a note."""

_SAMPLE = 64

_NEGATIVE = (-1.0, -9.0, -99.0, -999.0, -9999.0)
_LARGE = (99.0, 999.0, 9999.0)
_FEW_VALUES = 3  # a click's or a vote's -1 is a value like the others
_MANY = 0.3
_FAR = 1.5

_GROUPED = r"^[+-]?[1-9]\d{0,2}(?:['’\u00a0\u202f]\d{3})+(?:[.,]\d*)?$"
_COMMA_GROUPS = r"^[+-]?[1-9]\d{0,2}(?:(?:,\d{3})+\.\d*|(?:,\d{3}){2,})$"
_POINT_GROUPS = r"^[+-]?[1-9]\d{0,2}(?:(?:\.\d{3})+,\d+|(?:\.\d{3}){2,})$"
_COMMA_OR_GROUP = r"^[+-]?[1-9]\d{0,2},\d{3}$"
_POINT_OR_GROUP = r"^[+-]?[1-9]\d{0,2}\.\d{3}$"
_COMMA = r"^[+-]?\d*,\d+$"
_IS_COMMA = rf"{_POINT_GROUPS}|^[+-]?(?:\d*,(?:\d{{1,2}}|\d{{4,}})|(?:0\d*|\d{{4,}}),\d{{3}})$"
_IS_POINT = rf"{_COMMA_GROUPS}|^[+-]?(?:\d*\.(?:\d{{1,2}}|\d{{4,}})|(?:0\d*|\d{{4,}})?\.\d{{3}})$"
_WHOLE = r"^[+-]?\d+$"


def numbers(series: pl.Series) -> pl.Series:
    """Return float64; what is not a number, or may be two, gives null.

    A comma before three digits separates thousands, unless the column has decimal commas elsewhere ("3,5"), where it is one.
    """
    if series.dtype.is_numeric():
        return series.cast(pl.Float64)
    if series.dtype not in (pl.String, pl.Categorical):
        return pl.Series(series.name, [None] * len(series), dtype=pl.Float64)
    return _plain(series.cast(pl.String).str.strip_chars()).cast(pl.Float64, strict=False)


def truth_values(series: pl.Series, words: Mapping[str, str]) -> pl.Series:
    """Return booleans as 1 and 0, and texts with `words` for them in any case as "1" and "0"; other cells as they are."""
    if series.dtype == pl.Boolean:
        return series.cast(pl.Int8)
    if series.dtype not in (pl.String, pl.Categorical):
        return series
    text = series.cast(pl.String)
    small = text.str.strip_chars().str.to_lowercase()
    return small.replace_strict(words, default=text, return_dtype=pl.String)


def _plain(text: pl.Series) -> pl.Series:
    """Numbers as texts with a decimal point and no thousands separators; other texts as they are."""
    if not text.str.contains(r"\d[,.'’\u00a0\u202f]\d{3}|,\d").any():
        return text
    x = pl.col("x")
    signs = pl.when(x.str.contains(_GROUPED)).then(x.str.replace_all(r"['’\u00a0\u202f]", "")).otherwise(x)
    frame = pl.DataFrame({"x": text}).with_columns(signs)
    comma, point = frame.select(x.str.contains(_IS_COMMA).any().alias("c"), x.str.contains(_IS_POINT).any().alias("p")).row(0)
    without_commas, without_points = x.str.replace_all(",", "", literal=True), x.str.replace_all(".", "", literal=True)
    nothing = pl.lit(None, pl.String)
    comma_or_group = nothing if comma and point else x.str.replace(",", ".", literal=True) if comma else without_commas
    point_or_group = nothing if comma and point else without_points if comma else x
    readings = {  # the first pattern that a text has
        _COMMA_GROUPS: without_commas,
        _POINT_GROUPS: without_points.str.replace(",", ".", literal=True),
        _COMMA_OR_GROUP: comma_or_group,
        _POINT_OR_GROUP: point_or_group,
        _COMMA: x.str.replace(",", ".", literal=True),
    }
    plain = x
    for pattern, reading in reversed(readings.items()):
        plain = pl.when(x.str.contains(pattern)).then(reading).otherwise(plain)
    return frame.select(plain).to_series().rename(text.name)


def thousands_note(series: pl.Series) -> str:
    """Return a line if a column has commas that are read as thousands separators, though they could be decimal ones."""
    if series.dtype != pl.String or not series.str.contains(",", literal=True).any():
        return ""
    text = series.str.strip_chars()
    either = text.filter(text.str.contains(_COMMA_OR_GROUP).fill_null(False))
    if either.is_empty() or text.str.contains(_IS_COMMA).any() or text.str.contains(_IS_POINT).any():
        return ""
    return f"{series.name}: '{either[0]}' is read as {either[0].replace(',', '')}, the comma as a thousands separator"


def equals(series: pl.Series, value: str) -> pl.Series:
    """Return the mask of cells that are a value: as a number where it is one, else as a text."""
    number = pl.Series([value]).cast(pl.Float64, strict=False)[0]
    same = numbers(series) == number if number is not None and series.dtype != pl.Boolean else pl.Series([None] * len(series))
    if not series.dtype.is_nested():
        same = same.cast(pl.Boolean).fill_null(False) | (series.cast(pl.String).str.strip_chars() == value)
    return same.fill_null(False)


def sentinel_note(series: pl.Series) -> str:
    """Return a line if a lone value at an end of a column's range looks like a mark for "not known", such as -1 or 99."""
    filled = series.drop_nulls()
    if not filled.dtype.is_numeric() or filled.n_unique() <= _FEW_VALUES:
        return ""
    counts = filled.cast(pl.Float64).alias("value").value_counts().sort("value")
    values, total = counts["value"].to_list(), len(filled)
    for place, rest in ((0, values[1:]), (-1, values[:-1])):
        value, share = values[place], counts["count"][place] / total
        gap = abs(value - (rest[0] if place == 0 else rest[-1]))
        widest = max(high - low for low, high in pairwise(rest))
        low = place == 0 and (value in _NEGATIVE and rest[0] >= 0 or value == 0 and rest[0] > 0 and share > _MANY)
        far = value in (*_NEGATIVE, 0.0, *_LARGE) and gap > _FAR * widest and (place == 0 or gap > rest[-1] - rest[0])
        if low or far:
            rows = f"{counts['count'][place]:,} of {total:,} values ({share:.1%})"
            others = f"the others are {rest[0]:g} to {rest[-1]:g}"
            return f"{series.name} {value:g} has {rows}; {others}. If it means nothing: --missing {series.name}={value:g}"
    return ""


def to_numbers(table: pl.DataFrame, kept: tuple[str, ...], report: Report) -> pl.DataFrame:
    """Turn columns of texts that are numbers into numbers, but ids, titles and those with a rule of their own, `kept`.

    A column of `true` and `false` becomes one of booleans, as in Parquet. One where a number starts with a needless zero (a zip
    code), or has more digits than 64 bits hold, stays text. Signs of nothing ("—", "n/a") become empty; other cells that are no
    numbers keep the column a text. Either is noted.
    """
    names = [c for c in table.columns if table[c].dtype == pl.String and c not in (*kept, "title", "row", PLACE)]
    return table.with_columns(_number_column(table[name], report) for name in names)


def _number_column(series: pl.Series, report: Report) -> pl.Series:
    text = series.str.strip_chars()
    filled = text.filter((text != "").fill_null(False))
    if not len(filled) or filled.str.contains(r"^[+-]?0\d|^\+").any():
        return series
    if filled[:_SAMPLE].str.to_lowercase().is_in(list(TRUTH)).any():
        return _boolean_column(series, text, report)
    plain = _plain(text)
    values = plain.cast(pl.Float64, strict=False)
    good = values.is_finite().fill_null(False)
    odd = text.filter((~good & (text != "")).fill_null(False))
    if len(odd) >= len(filled) / 2 or not _mean_nothing(odd):
        if len(odd) <= _FEW * len(filled):
            report.note(
                f"{series.name} stays text: {len(odd):,} of {len(filled):,} cells are not numbers, such as '{odd[0][:40]}'"
            )
        return series
    if len(odd):
        report.note(f"{series.name}: {len(odd):,} of {len(filled):,} cells are not numbers, such as '{odd[0]}': empty now")
    report.note(thousands_note(series))
    kept = pl.DataFrame({"x": plain}).select(pl.when(good).then(pl.col("x"))).to_series().rename(series.name)
    if not kept.drop_nulls().str.contains(_WHOLE).all():
        return kept.cast(pl.Float64)
    exact = kept.cast(pl.Int64, strict=False)
    if exact.null_count() == kept.null_count():
        return exact
    longest = kept.filter(kept.is_not_null() & exact.is_null())[0]
    report.note(f"{series.name} stays text: numbers of so many digits as '{longest[:40]}' are ids")
    return series


def _boolean_column(series: pl.Series, text: pl.Series, report: Report) -> pl.Series:
    """Return a column of true and false, in any case, as booleans; as it is if other words are in it."""
    small = text.str.to_lowercase()
    found = small.replace_strict({"true": True, "false": False}, default=None, return_dtype=pl.Boolean)
    odd = text.filter(found.is_null() & ~small.is_in(["", *MISSING]).fill_null(True))
    if 0 < len(odd) <= _FEW * len(text):
        rows = f"{len(odd):,} of {len(text):,} cells are neither true nor false"
        report.note(f"{series.name} stays text: {rows}, such as '{odd[0][:40]}'")
    return series if len(odd) else found


def _mean_nothing(texts: pl.Series) -> bool:
    return bool((~texts.str.contains(r"[\p{L}\d]") | texts.str.to_lowercase().is_in(list(MISSING))).all())


def keep_where(series: pl.Series, condition: pl.Expr | pl.Series) -> pl.Series:
    """Null where the condition on column "x" is false or null."""
    kept = pl.DataFrame({"x": series}).select(pl.when(condition).then(pl.col("x")))
    return kept.to_series().rename(series.name)
