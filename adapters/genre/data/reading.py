"""An import's reading of times and ids, in words.

Owns: the line about a column of times, notes on ids that look alike. Ignores the reading itself (`genre.data.times`).

    time_reading(pl.Series(["2024-03-01T10:00:00+01:00"]), "s")   ->  "dates with a zone, turned into UTC"
    alike_notes(events, used, none)  ->  ["user_id: 2 ids differ by case alone, such as 'ABC' …"]
"""

from datetime import UTC, datetime
from unicodedata import is_normalized

import numpy as np
import polars as pl

from genre.data.numbers import MISSING
from genre.data.times import DAY, UNITS, is_form, may_be_days

_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
_ZONE = r"(?i)(?:Z|UTC|GMT)(?: \d{4})?$|(?::\d{2}(?:[.,]\d+)?|[ap]m|utc|gmt)\s*[+-]\d{2}(?::?\d{2})?(?:$|\s)"
_NUMBER = r"^[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?$"
_DAY_NUMBER = DAY.removesuffix("$") + r"(?:\.0*)?$"

_STEPS = {"day": 86_400_000_000, "hour": 3_600_000_000, "minute": 60_000_000, "second": 1_000_000, "millisecond": 1_000}
_EARLY = 315_532_800  # 1980: a log of that age is one in another unit
_PLAUSIBLE = (631_152_000, 4_102_444_800)  # 1990 and 2100

_SHEET_DAYS = (32_874, 55_153)  # 1990 and 2051, counted from 1899-12-30

_INVISIBLE = r"[\s\p{Cc}\p{Cf}]+"
_EXAMPLES = 3
_HARDLY = 0.05  # of a log's ids in the table of items or users
_SHORTENED = r"^\d(?:\.\d+)?[eE]\+\d{2,}$"


def time_reading(series: pl.Series, time_unit: str) -> str:
    """Return the kind of a column of times as the source has it: numbers with their unit, or dates with their zone.

    Args:
        series: The column as it came, of any type; cells that are not times count as dates.
        time_unit: Of numbers: s, ms, us or ns; or the form of texts.
    """
    if isinstance(series.dtype, pl.Datetime) and series.dtype.time_zone:
        return f"dates in {series.dtype.time_zone}, turned into UTC"
    if series.dtype.is_temporal():
        return "dates without a zone, taken for UTC"
    if is_form(time_unit):
        return f"dates as {time_unit}, {'turned into' if '%z' in time_unit else 'taken for'} UTC"
    whole = series.cast(pl.Int64, strict=False)
    if not whole.null_count() and not may_be_days(whole):  # most often, and found cheaply
        return f"{_NAMES[time_unit]} since 1970, in UTC"
    text = series.cast(pl.String, strict=False).str.strip_chars().drop_nulls()
    text = text.filter(text != "")
    number, day = text.str.contains(_NUMBER), text.str.contains(_DAY_NUMBER)
    days = day.sum() > number.sum() / 2
    if days:
        number = number & ~day
    if number.sum() > len(text) / 2 or text.is_empty():
        return f"{_NAMES[time_unit]} since 1970, in UTC"
    dates = text.filter(~number)
    zoned = int(dates.str.contains(_ZONE).sum())
    if zoned == len(dates):
        return "dates with a zone, turned into UTC"
    if zoned:
        return f"dates, {zoned:,} of {len(dates):,} with a zone, turned into UTC, the others taken for UTC"
    return f"{'days as numbers' if days else 'dates'} without a zone, taken for UTC"


def time_step(times_us: np.ndarray) -> str:
    """Return the coarsest step that all times, in microseconds (n,), are multiples of: "day", …, "microsecond"."""
    return next((name for name, step in _STEPS.items() if not (times_us % step).any()), "microsecond")


def odd_times_notes(seconds: pl.Series) -> list[str]:
    """Return a line for times at 0, and for those after 2100, where most others are plausible: marks for "not known"."""
    plausible = seconds.is_between(*_PLAUSIBLE).sum()
    if plausible <= len(seconds) / 2:
        return []
    zero, late = int((seconds == 0).sum()), seconds.filter(seconds > _PLAUSIBLE[1])
    notes = []
    if zero:
        notes.append(f"{zero:,} of {len(seconds):,} times are 0, 1970-01-01; if that means nothing: --missing timestamp=VALUE")
    if len(late):
        year = datetime.fromtimestamp(int(late.max()), UTC).year  # type: ignore[arg-type]
        notes.append(f"{len(late):,} of {len(seconds):,} times are after 2100, up to the year {year}: such marks are no times")
    return notes


def unit_hint(seconds: np.ndarray, reading: str) -> str:
    """Return a doubt about the unit of numeric times, seconds (n,), where another one gives years that a log may be of."""
    if "since 1970" not in reading or not len(seconds) or seconds.max() >= _EARLY:
        return ""
    if kind := _coarse(seconds):
        return f"the numbers look like {kind}, and are read as {reading.partition(' ')[0]}: write dates, such as 2024-03-01"
    unit = next(unit for unit, name in _NAMES.items() if reading.startswith(name))
    last = int(seconds.max()) * UNITS[unit]
    for other in list(UNITS)[: list(UNITS).index(unit)]:
        if _PLAUSIBLE[0] <= last // UNITS[other] <= _PLAUSIBLE[1]:
            year = datetime.fromtimestamp(last // UNITS[other], UTC).year
            return f"all before 1980: as {_NAMES[other]} they would end in {year}, --time-unit {other}"
    return ""


def _coarse(numbers: np.ndarray) -> str:
    """Return another meaning that all numbers may have, which as seconds lie in the first days of 1970."""
    low, high = int(numbers.min()), int(numbers.max())
    if low >= 1900 and high < 2100:
        return "years"
    if low >= 190_001 and high < 210_000 and np.isin(numbers % 100, range(1, 13)).all():
        return "months"
    return "days of a spreadsheet" if low >= _SHEET_DAYS[0] and high < _SHEET_DAYS[1] else ""


def id_notes(events: pl.Series, theirs: pl.Series | None, used: pl.Series) -> list[str]:
    """Return a line for ids that are a word for nothing, that look alike, or that hardly match those of their table.

    Args:
        events: The id of each event, under the column's name.
        theirs: The ids of the table of items or users; None where there is none.
        used: Those of the events, each once.
    """
    notes = []
    for word in used.filter(used.str.to_lowercase().is_in(list(MISSING))).sort():
        count = int((events == word).sum())
        share = f"{count:,} of {len(events):,} events ({count / len(events):.1%})"
        notes.append(f"{events.name} '{word}' has {share}; kept as an id")
    short = used.filter(used.str.contains(_SHORTENED)).sort()
    if len(short):
        what = f"{len(short):,} ids such as '{short[0]}' look like numbers that a spreadsheet shortened"
        notes.append(f"{events.name}: {what}: different ids may have become one")
    theirs = events[:0] if theirs is None else theirs.drop_nulls().unique()
    met = int(used.is_in(theirs.implode()).sum())
    if not len(theirs) or met > _HARDLY * len(used):
        return [*notes, *alike_notes(events, used, theirs)]
    pairs = (
        pl.DataFrame({"ours": used})
        .with_columns(_bare("ours"))
        .join(pl.DataFrame({"theirs": theirs}).with_columns(_bare("theirs")), on="bare")
        .sort("ours")
    )
    ours, other = pairs.row(0)[0:3:2] if pairs.height else (used.sort()[0], theirs.sort()[0])
    likely = "; they match but for zeros, case and signs" if pairs.height else ""
    what = f"{met:,} of {len(used):,} different {events.name} of the log are in its table"
    strangers = f"{what}: the log has such as '{ours}', the table '{other}'{likely}"
    return [*notes, *alike_notes(events, used, events[:0]), strangers]


def _bare(name: str) -> pl.Expr:
    """An id without leading zeros, case and signs."""
    return pl.col(name).str.to_lowercase().str.replace_all(r"[^\p{L}\d]", "").str.strip_chars_start("0").alias("bare")


def alike_notes(events: pl.Series, used: pl.Series, others: pl.Series) -> list[str]:
    """Return a line for each way in which ids look alike: case, signs that do not show, leading zeros.

    Args:
        events: The id of each event, under the column's name.
        used: The same, each once.
        others: Ids, each once, that may have no event.
    """
    every = pl.DataFrame({"id": pl.concat([used.alias("id"), others.filter(~others.is_in(used.implode())).alias("id")])})
    x = pl.col("id")
    plain = {
        "by case alone": x.str.to_lowercase(),
        "by blanks and signs that do not show alone": x.str.normalize("NFKC").str.replace_all(_INVISIBLE, ""),
        "by leading zeros alone": x.str.replace(r"^(\p{L}*)0+(\d)", "$1$2"),
    }
    found = [(reason, _pairs(every.with_columns(key.alias("key")), events)) for reason, key in plain.items()]
    return [_alike_line(events.name, reason, pairs) for reason, pairs in found if pairs.height]


def _pairs(keys: pl.DataFrame, events: pl.Series) -> pl.DataFrame:
    """Ids with a key that others have too: a row per key, ids and their counts of events as lists, the most events first."""
    some = keys.filter(keys["key"].is_duplicated())
    if some.is_empty():  # the usual case, without a count over all events
        return some
    counts = events.filter(events.is_in(some["id"].implode())).alias("id").value_counts(name="n")
    shared = some.join(counts, on="id", how="left").with_columns(pl.col("n").fill_null(0))
    shared = shared.sort("n", "id", descending=[True, False])
    grouped = shared.group_by("key").agg("id", "n")
    return grouped.sort(pl.col("n").list.sum(), "key", descending=[True, False])


def _alike_line(name: str, reason: str, pairs: pl.DataFrame) -> str:
    total = int(pairs["id"].list.len().sum())
    shown = "; ".join(_alike(ids[:_EXAMPLES], events) for ids, events in pairs.head(_EXAMPLES).select("id", "n").iter_rows())
    return f"{name}: {total:,} ids differ {reason}, such as {shown}; kept apart: if they are one, write them alike"


def _alike(ids: list[str], events: list[int]) -> str:
    counts = [f"{count:,}" for count in events[: len(ids)]]
    return f"{' and '.join(map(_shown, ids))} ({' and '.join(counts)} events)"


def _shown(text: str) -> str:
    """An id in quotes, with signs that do not show as escapes."""
    return repr(text) if text.isprintable() and is_normalized("NFC", text) else ascii(text)
