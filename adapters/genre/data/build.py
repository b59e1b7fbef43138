"""A table of any origin to checked, coded and ordered events.

Owns: renaming by a mapping, the rules for bad rows, counts of skipped rows. Ignores files.

    build(frame, mapping={"user_id": "userId", "item_id": "movieId"})
    # DataError: 60 of 1,000 rows are not usable: got row 17 (the first is 0): rating 'good'; expected a number …
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from genre.data.catalogue import Catalogue
from genre.data.features import align_users, complete_items, describe_items, item_columns_of
from genre.data.fields import EXPECTED, clean, ids, order_numbers, plain_ids
from genre.data.numbers import equals, sentinel_note, thousands_note, to_numbers
from genre.data.order import FILE, HASH, order_events, tied_events
from genre.data.reading import id_notes, odd_times_notes, time_reading
from genre.data.schema import ALIASES, FEEDBACK, REQUIRED, SHOWN, SUBSECOND, Report, event_columns
from genre.data.times import check_time_step, is_form, short_float_note
from genre.errors import DataError, InputError


class Built(NamedTuple):
    """The parts of an `Interactions`: see there."""

    frame: pl.DataFrame
    catalogue: Catalogue
    users: pl.DataFrame | None
    user_ids: list[str]
    user_codes: np.ndarray
    item_codes: np.ndarray


def build(
    frame: Any,
    items: Any,
    users: Any,
    report: Report,
    *,
    mapping: Mapping[str, str],
    time_unit: str,
    max_bad: float,
    item_columns: list[str] | None,
    guess_numbers: bool,
    stored: bool,
    order: str,
    timed: bool,
    missing: Sequence[tuple[str, str]],
) -> Built:
    """Check a log and bring it into the contract's order. See `Interactions.from_frame` for the arguments.

    Raises:
        DataError: A column is missing, too many rows are bad, or no event is left.
    """
    tables = {"log": to_polars(frame, "log"), "items": to_polars(items, "items"), "users": to_polars(users, "users")}
    tables = rename(tables, mapping, report)
    if not stored:
        tables = {name: None if table is None else with_plain_ids(table, report) for name, table in tables.items()}
    if guess_numbers:
        tables = {name: None if table is None else to_numbers(table, tuple(EXPECTED), report) for name, table in tables.items()}
    unknown = _empty_missing(tables, missing)
    assert tables["log"] is not None
    log = _with_order(tables["log"], order, report)
    described = [name for name in item_columns_of(log, tables["items"], item_columns) if name != order]
    kept = _keep_known(log.drop(described), report, max_bad).filter(~unknown)
    _count_unknown(unknown, missing, log, report)
    events = check_events(kept, time_unit, max_bad, report, stored=stored, order=order)
    item_table = tables["items"]
    if described:  # item columns of bad rows do not count
        item_table = describe_items(
            log.filter(~unknown).filter(kept["row"].is_in(events["row"].implode())), item_table, described, report
        )
    user_ids = events["user_id"].unique().sort()
    used = events["item_id"].unique()
    if not stored:
        for name, found in (("user_id", user_ids), ("item_id", used)):
            side = tables["users" if name == "user_id" else "items"]
            theirs = None if side is None or name not in side.columns else ids(side[name])
            report.notes += id_notes(events[name], theirs, found)
    catalogue = complete_items(item_table, used, report)
    codes = _encode(events["user_id"], user_ids), _encode(events["item_id"], catalogue.frame["item_id"])
    times = times_of(events)
    ranks = ranks_of(events, order)
    sequence = order_events(user_ids.to_list(), catalogue.item_ids, *codes, times, events["row"].to_numpy(), ranks)
    if timed or order != FILE:  # else the same item twice is just that
        sequence = _without_duplicates(events, sequence, codes, times, order, report)
    return Built(
        frame=events[sequence].rechunk(),
        catalogue=catalogue,
        users=align_users(tables["users"], user_ids, report),
        user_ids=user_ids.to_list(),
        user_codes=codes[0][sequence],
        item_codes=codes[1][sequence],
    )


def _empty_missing(tables: dict[str, pl.DataFrame | None], missing: Sequence[tuple[str, str]]) -> pl.Series:
    """Make cells of the values that mean "not known" empty, in all tables; return the mask of events whose feedback it was.

    Raises:
        InputError: No table has such a column.
    """
    log = tables["log"]
    assert log is not None
    unknown = pl.Series([False]).new_from_index(0, log.height)
    for name, value in missing:
        found = [key for key, table in tables.items() if table is not None and name in table.columns]
        if not found:
            raise InputError("--missing is about an unknown column", got=name, expected=f"one of {', '.join(log.columns)}")
        for key in found:
            table = tables[key]
            assert table is not None
            mask = equals(table[name], value)
            if key == "log" and name in FEEDBACK:
                unknown = unknown | mask
            tables[key] = table.with_columns(pl.when(~mask).then(pl.col(name)).alias(name))
    return unknown


def _count_unknown(unknown: pl.Series, missing: Sequence[tuple[str, str]], log: pl.DataFrame, report: Report) -> None:
    """Count the events that have no feedback, with the values that mean so."""
    rows = (log["row"] if "row" in log.columns else pl.int_range(log.height, eager=True)).filter(unknown).to_list()
    values = " or ".join(f"{name} {value}" for name, value in missing if name in FEEDBACK)
    report.add("events without feedback", len(rows), f"row {rows[0]} (the first is 0): {values}" if rows else "", rows)


def _with_order(log: pl.DataFrame, order: str, report: Report) -> pl.DataFrame:
    """Check the column that orders equal times, and make it one of numbers; a log without times gets 0 for all of them.

    Raises:
        DataError: There is no such column, or it has another use.
    """
    if order not in (HASH, FILE):
        if order not in log.columns or order in (*REQUIRED, SUBSECOND, "impression_id"):
            got = ", ".join(c for c in log.columns if c not in (*REQUIRED, SUBSECOND, "impression_id")) or "no other column"
            expected = "file, hash or a column of numbers of the log"
            raise DataError(f"events cannot be ordered by '{order}'", got=got, expected=expected, todo="name one with --order")
        if log[order].dtype.is_temporal():
            log = log.with_columns(order_numbers(log[order]))
    if order == HASH or "timestamp" in log.columns:
        return log
    report.note(f"the log has no times: events {'of a user follow the file' if order == FILE else f'follow {order}'}")
    return log.with_columns(pl.lit(0, pl.Int64).alias("timestamp"))


def ranks_of(events: pl.DataFrame, order: str) -> np.ndarray | None:
    """Return the numbers that order equal times, (n,); None where hashes do."""
    return None if order == HASH else events["row" if order == FILE else order].to_numpy()


def to_polars(table: Any, name: str) -> pl.DataFrame | None:
    """Return a polars or pandas frame as polars; None stays None.

    Raises:
        DataError: If it is neither.
    """
    if isinstance(table, pl.LazyFrame):
        table = table.collect()
    if isinstance(table, pl.DataFrame):
        return _with_texts(table)
    if table is None:
        return None
    if type(table).__module__.partition(".")[0] == "pandas":
        try:
            return _with_texts(pl.from_pandas(table))
        except (ImportError, pl.exceptions.PolarsError, TypeError, ValueError) as error:
            todo = "pip install 'genre-adapters[pandas]', or give a polars frame"
            raise DataError(f"the {name} cannot be read from pandas", got=error, expected="plain columns", todo=todo) from error
    raise DataError(f"the {name} is not a table", got=type(table).__name__, expected="a polars or a pandas frame")


def _with_texts(table: pl.DataFrame) -> pl.DataFrame:
    """Bytes that are all UTF-8 as texts: older writers of Parquet do not mark texts as such."""
    for name in (name for name, dtype in table.schema.items() if dtype == pl.Binary):
        with suppress(pl.exceptions.PolarsError):
            table = table.with_columns(pl.col(name).cast(pl.String))
    return table


def _check_our_name(ours: str, theirs: str, mapping: Mapping[str, str], tables: Mapping[str, pl.DataFrame | None]) -> None:
    """Refuse a near miss of a required column, such as user for user_id."""
    columns = {column for table in tables.values() if table is not None for column in table.columns}
    for name in REQUIRED:
        near = plain_name(ours) in (plain_name(name), *ALIASES[name])
        if near and ours != name and theirs in columns and name not in columns and name not in mapping:
            raise DataError(f"--map {ours}={theirs} misses our name", got=ours, expected=name, todo=f"give --map {name}={theirs}")


def rename(tables: dict[str, pl.DataFrame | None], mapping: Mapping[str, str], report: Report) -> dict[str, pl.DataFrame | None]:
    """Rename columns by a mapping from our name to theirs, in every table that has theirs.

    Raises:
        DataError: If no table has a column that the mapping names.
    """
    renamed = dict(tables)
    for ours, theirs in mapping.items():
        _check_our_name(ours, theirs, mapping, renamed)
        if not any(table is not None and theirs in table.columns for table in tables.values()):
            found = ", ".join(tables["log"].columns) if tables["log"] is not None else "nothing"
            what, todo = f"no column '{theirs}' to take {ours} from", f"map one of those: {ours}=THEIRS"
            if any(table is not None and ours in table.columns for table in tables.values()) and theirs in ALIASES:
                what, todo = (
                    f"--map {ours}={theirs} is the wrong way round",
                    f"give --map {theirs}={ours}, our name first",
                )
            raise DataError(what, got=found, expected=f"a column '{theirs}'", todo=todo)
    for name, table in tables.items():
        wanted = {ours: theirs for ours, theirs in mapping.items() if table is not None and theirs in table.columns}
        if table is None or not wanted:
            continue
        replaced = [ours for ours in wanted if ours in table.columns and ours not in wanted.values()]
        report.add("columns replaced by the mapping", len(replaced), ", ".join(replaced))
        ours_now = table.with_columns(pl.col(theirs).alias(ours) for ours, theirs in wanted.items())
        renamed[name] = ours_now.drop(set(wanted.values()) - set(wanted))
    return renamed


def with_plain_ids(
    table: pl.DataFrame, report: Report, names: Sequence[str] = ("user_id", "item_id", "impression_id")
) -> pl.DataFrame:
    """Return a table with its ids in the form of `plain_ids`; those that lost a `.0` are noted."""
    plain = {name: plain_ids(table[name]) for name in names if name in table.columns}
    for name, series in plain.items():
        if series.dtype != pl.String or table[name].dtype != pl.String:
            continue
        cut = table[name].filter((table[name].str.strip_chars() != series).fill_null(False))
        if len(cut):
            report.note(f"{name}: {len(cut):,} ids such as '{cut[0]}' are read as '{plain_ids(cut[:1])[0]}'")
    return table.with_columns(plain.values())


def _keep_known(log: pl.DataFrame, report: Report, max_bad: float) -> pl.DataFrame:
    """Check the required columns; leave out columns of a kind that an event cannot hold."""
    missing = [name for name in REQUIRED if name not in log.columns]
    if missing:
        close = {c: name for name in missing for c in log.columns if plain_name(c) in (plain_name(name), *ALIASES[name])}
        theirs = {name: c for c, name in reversed(close.items())}
        what = "column '{}' is missing" if len(missing) == 1 else "columns '{}' are missing"
        got = ", ".join(c for c in log.columns if c != "row") or "no columns"
        todo = "name yours with " + " ".join(f"--map {name}={theirs.get(name, 'THEIRS')}" for name in missing)
        if missing == ["timestamp"] and not theirs:
            todo += "; a log without times needs --order file or --order COLUMN"
        raise DataError(what.format("', '".join(missing)), got=got, expected=", ".join(REQUIRED), todo=todo)
    if log.is_empty():
        report.check(0, 0, None, max_bad)
        raise DataError("the log is empty", got="0 events", expected="at least one event")
    odd = [c for c in log.columns if c not in REQUIRED and not _is_plain(log[c].dtype)]
    if lost := next((c for c in odd if c in (*FEEDBACK, "impression_id")), None):
        expected = EXPECTED[lost]
        todo = f"map a field of it, --map {lost}={lost}.FIELD, or another column" if log[lost].dtype == pl.Struct else ""
        raise DataError(f"column '{lost}' is not usable", got=str(log[lost].dtype), expected=expected, todo=todo)
    report.add("columns of the log that are not a number or text", len(odd), ", ".join(odd))
    return _with_rows(log.drop(odd))


def _is_plain(dtype: pl.DataType) -> bool:
    """Return whether a column of events holds numbers or texts."""
    return not (dtype.is_nested() or dtype.is_temporal() or dtype in (pl.Object, pl.Binary))


def plain_name(name: str) -> str:
    """Return a column's name without case, spaces and other signs: "User ID" and "userId" are alike."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _with_rows(log: pl.DataFrame) -> pl.DataFrame:
    if "row" not in log.columns:
        return log.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    rows = log["row"].cast(pl.Int64, strict=False)
    if rows.null_count() or rows.n_unique() != len(rows) or int(rows.min() or 0) < 0:  # type: ignore[arg-type]
        got, todo = f"{rows.n_unique()} different of {len(rows)}", "give the column another name, such as --map line=row"
        expected = "the place in the source file: a different whole number from 0 for every event"
        raise DataError("column 'row' is not usable", got=got, expected=expected, todo=todo)
    return log.with_columns(rows)


def check_events(
    log: pl.DataFrame, time_unit: str, max_bad: float, report: Report, *, stored: bool = False, order: str = HASH
) -> pl.DataFrame:
    """Return the usable events with the contract's types and column order; count the others in `report`.

    Raises:
        DataError: If more than `max_bad` of the rows are bad, or all are.
    """
    names = [*REQUIRED, "row", *event_columns(log)]
    check_time_step(log["timestamp"], time_unit)
    cells = [order_numbers(log[name]) if name == order else clean(name, log[name], time_unit, stored=stored) for name in names]
    cleaned = _split_times(pl.DataFrame(cells), log)
    bad = np.zeros(log.height, dtype=bool)
    worst, most = None, 0
    for name in (name for name in names if name in EXPECTED or name == order):
        here = np.flatnonzero(cleaned[name].is_null().to_numpy() & ~bad)
        if here.size:
            first, *others = here[:SHOWN].tolist()
            example = _name_row(log, name, first, time_unit)
            three = "; ".join([example, *(f"row {log['row'][place]}: {_cell(log, name, place)}" for place in others)])
            report.add(f"bad {name}", here.size, three, log["row"].to_numpy()[here].tolist(), shown=SHOWN)
            if here.size > most:  # the commonest reason speaks for all
                worst, most = (example, _expected(name, time_unit)), here.size
            bad[here] = True
    report.check(int(bad.sum()), log.height, worst, max_bad)
    events = cleaned if worst is None else cleaned.filter(~pl.Series(bad))
    report.note(thousands_note(log["rating"]) if "rating" in log.columns else "")
    if not stored:
        report.times = report.times or time_reading(log["timestamp"].filter(~pl.Series(bad)), time_unit)
        report.notes += odd_times_notes(events["timestamp"])
        for name in event_columns(events):
            report.note(sentinel_note(events[name]))
    report.note(short_float_note(events["timestamp"]))
    return events


def _split_times(cleaned: pl.DataFrame, log: pl.DataFrame) -> pl.DataFrame:
    """Times of microseconds to seconds and, where there is a fraction, `SUBSECOND`.

    Raises:
        DataError: The log has a column `SUBSECOND` that is none.
    """
    seconds, fraction = cleaned["timestamp"] // 1_000_000, cleaned["timestamp"] % 1_000_000
    stored = log.get_column(SUBSECOND, default=None)
    if stored is not None:
        if not stored.dtype.is_integer() or stored.null_count() or not stored.is_between(0, 999_999).all():
            todo = "leave the column out, or give it another name"
            expected = "the microseconds of the timestamp within its second, 0 to 999,999"
            raise DataError(f"column '{SUBSECOND}' is not usable", got=str(stored.dtype), expected=expected, todo=todo)
        fraction = fraction if (fraction != 0).any() else stored
    parts = [seconds.alias("timestamp")]
    if stored is not None or (fraction != 0).any():
        parts.append(fraction.fill_null(0).cast(pl.Int32).alias(SUBSECOND))
    return cleaned.select("user_id", "item_id", *parts, pl.exclude("user_id", "item_id", "timestamp"))


def times_of(events: pl.DataFrame) -> np.ndarray:
    """Return the times of events in microseconds since 1970, int64[n]."""
    times = events["timestamp"].to_numpy() * 1_000_000
    return times + events[SUBSECOND].to_numpy() if SUBSECOND in events.columns else times


def _name_row(log: pl.DataFrame, name: str, place: int, time_unit: str) -> str:
    text = f"row {log['row'][place]} (the first is 0): {name} {_cell(log, name, place)}"
    if name != "timestamp" or is_form(time_unit):
        return text
    value = str(log[name][place])
    if time_unit == "s" and re.fullmatch(r"\d{12,}(\.\d*)?", value.strip()):
        text += ", which looks like milliseconds: --time-unit ms"
    elif re.match(r"\s*\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}", value):
        text += ", where the day or the month may come first: --time-format %d/%m/%Y or one like it"
    return text


def _expected(name: str, time_unit: str) -> str:
    if name == "timestamp" and is_form(time_unit):
        return f"a time as {time_unit}"
    return EXPECTED.get(name, "a number or a date: equal times are ordered by it")


def _cell(log: pl.DataFrame, name: str, place: int) -> str:
    value = log[name][place]
    return str(value) if value is None else repr(value)[:60]


def _encode(series: pl.Series, ids: pl.Series) -> np.ndarray:
    return series.cast(pl.Enum(ids)).to_physical().cast(pl.Int32).to_numpy()


def _without_duplicates(
    events: pl.DataFrame,
    sequence: np.ndarray,
    codes: tuple[np.ndarray, np.ndarray],
    times: np.ndarray,
    order: str,
    report: Report,
) -> np.ndarray:
    """Drop events that equal an earlier one in everything but their row; but in file order they are neighbours."""
    keys = (times[sequence],) if order == FILE else (codes[1][sequence], times[sequence])
    near = tied_events(codes[0][sequence], *keys)
    if not near.size:
        return sequence
    first = events[sequence[near]].select(pl.struct(pl.exclude("row")).is_first_distinct()).to_series()
    drop = near[~first.to_numpy()]
    rows = np.sort(events["row"].to_numpy()[sequence[drop]])
    report.add("duplicate events", drop.size, f"row {rows[0]}" if drop.size else "", rows.tolist())
    return np.delete(sequence, drop)
