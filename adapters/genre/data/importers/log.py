"""A log in any of the formats to a data set.

Owns: the reader of each format, the files of items and users beside a log, the record of the source. Ignores the rules for events
(`genre.data.build`).

    uid,sku,when
    7,50,1997-12-04

    import_log("events.csv", mapping={"user_id": "uid", "item_id": "sku", "timestamp": "when"}).write("data/shop")
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from genre.data.build import rename
from genre.data.graph import with_graph
from genre.data.importers.amazon import read_metadata, read_reviews
from genre.data.importers.lists import read_lists
from genre.data.importers.mind import BEHAVIORS, read_mind
from genre.data.importers.movielens import Tables, read_movielens
from genre.data.importers.named import Log, Side, apply, is_sure, read_log
from genre.data.importers.nested import needed_columns, unnest
from genre.data.importers.public import PUBLIC
from genre.data.importers.served import read_served
from genre.data.importers.tables import check_header, read_atomic, read_table
from genre.data.importers.text_options import check_options, options_of
from genre.data.interactions import DatasetInfo, Interactions
from genre.data.order import FILE
from genre.data.schema import MAX_BAD, PLACE, Report
from genre.data.times import is_form
from genre.errors import DataError, InputError

FORMATS = ("csv", "atomic", "movielens", "mind", "amazon", "lists", "served", *(name for name in PUBLIC if name != "amazon"))
"""`csv` is any table: CSV, TSV, Parquet, JSON; `lists` is a line of items per user;
`served` is what `genre serve --served-log` wrote. Those of `PUBLIC` are public logs by name."""


_SAMPLE = 64
_SEPARATORS = ",;|"
_OWN_TIMES = ("mind", "amazon", "movielens", "served")  # their readers give seconds


def import_log(
    log: str | Path,
    *,
    format: str | None = None,
    items: str | Path | None = None,
    users: str | Path | None = None,
    mapping: Mapping[str, str] | None = None,
    name: str | None = None,
    licence: str = "",
    time_unit: str | None = None,
    max_bad: float = MAX_BAD,
    item_columns: list[str] | None = None,
    separator: str | None = None,
    encoding: str = "utf-8",
    quote: str | None = None,
    columns: list[str] | None = None,
    graph: str | Path | None = None,
    order: str | None = None,
    missing: Sequence[tuple[str, str]] = (),
    time_format: str | None = None,
) -> Interactions:
    """Read a log, and its items and users, in one of `FORMATS`.

    Args:
        log: A file; for atomic, movielens, mind and public logs also the folder it is in.
        format: None takes atomic for .inter, the format whose file name is unmistakable, csv otherwise and with `columns`. With a
            mapping no public log is inferred.
        items: A table of items; atomic, movielens and mind find theirs beside the log.
        users: A table of users; atomic and movielens find theirs.
        mapping: Our column to theirs, in all three; wins over that of a public log.
        name: The data set's name; None takes the log's.
        licence: Terms of use, kept in dataset.json.
        time_unit: Of numeric timestamps: s, ms, us or ns; None takes the format's, or s.
        max_bad: The share of bad rows above which the log is refused.
        item_columns: Columns of the log that describe items; None looks for usual names.
        separator: Of a CSV; None finds it.
        encoding: Of a CSV or JSON lines.
        quote: Around cells of a CSV; `none` if quotes are part of the texts; None takes the format's, or `"`.
        columns: The columns' names, in order, of a CSV log without a header.
        graph: A table of edges, source and target (who follows whom): vectors of items, see `genre.data.graph.with_graph`.
        order: What orders equal times: a column of the log, `file`, or `hash`, the default. With one of the former two the log
            needs no times. The lists of `lists` follow the file.
        missing: Columns with values that mean "not known": see `Interactions.from_frame`.
        time_format: The form of strftime that all times have, such as `%d/%m/%Y`, where a day could be a month.

    Raises:
        InputError: If the format is unknown, or an option has no effect on such a log.
        DataError: If a file or its content is not usable.
    """
    log = Path(log)
    format = format or ("csv" if columns is not None else _guess_format(log, mapped=bool(mapping)))
    if format not in FORMATS:
        raise InputError("unknown format", got=repr(format), expected=", ".join(FORMATS))
    if columns is not None and format != "csv":
        raise InputError("--columns names the columns of a CSV", got=f"--format {format}", expected="--format csv")
    if format == "lists" and order not in (None, FILE):
        raise InputError("a file of lists has no other order", got=f"--order {order}", expected="--order file, or no --order")
    order = FILE if format == "lists" else order
    if time_format is not None:
        time_unit = _checked_form(time_format, time_unit, format)
    report, mapping = Report(), dict(mapping or {})
    options: dict[str, Any] = {"separator": separator, "encoding": encoding, "quote": '"' if quote is None else quote}
    public = None if _is_json_of_amazon(format, log) else PUBLIC.get(format)
    if public is None and time_unit is not None and format in (*_OWN_TIMES, "lists"):
        got, expected = f"a log of format {format}", "a format whose times may have another unit"
        raise InputError("--time-unit has no effect here", got=got, expected=expected, todo="leave --time-unit out")
    sides = [Path(side) for side in (None if format == "amazon" else items, users, graph) if side is not None]
    _check_text_options(log, format, public is None, sides, {"separator": separator, "encoding": encoding, "quote": quote})
    if public is None:
        (table, item_table, user_table), kind = _read_own(format, log, columns, mapping, order, options, max_bad, report), Log()
    else:
        given = options | {"quote": quote, "order": order}
        (table, kind), item_table, user_table = read_log(log, format, public, mapping, report, options=given), None, None
    item_side, user_side = (Side(), Side()) if public is None else (public.items, public.users)
    if items is not None:
        read = read_metadata if format == "amazon" else _side_reader(options, item_side)
        item_table = apply(_read_side(Path(items), read, "items", report), item_side, mapping, report)
    if users is not None:
        user_table = apply(_read_side(Path(users), _side_reader(options, user_side), "users", report), user_side, mapping, report)
    if graph is not None:
        edges = _read_side(Path(graph), _side_reader(options, Side()), "graph", report)
        ends = {ours: theirs for ours, theirs in mapping.items() if ours in ("source", "target")}
        mapping = {ours: theirs for ours, theirs in mapping.items() if ours not in ends}
        item_table = _with_graph(item_table, rename({"log": edges}, ends, report)["log"], mapping, report)
    return Interactions.from_frame(
        _with_places(table),
        item_table,
        user_table,
        mapping,
        info=source_info(log, name, licence, format, mapping),
        time_unit="s" if public is None and format in _OWN_TIMES else time_unit or kind.time_unit,
        max_bad=max_bad,
        item_columns=kind.items_of(table, item_columns),
        guess_numbers=True,
        order=order or kind.order,
        missing=kind.missing_of(table, missing, mapping),
        report=report,
    )


def _checked_form(time_format: str, time_unit: str | None, format: str) -> str:
    if not is_form(time_format):
        raise InputError("--time-format is not usable", got=repr(time_format), expected="a form such as %d/%m/%Y %H:%M:%S")
    if time_unit is not None:
        raise InputError("--time-format is for texts", got=f"--time-unit {time_unit} too", expected="one of them")
    if format in (*_OWN_TIMES, "lists"):
        raise InputError("--time-format is not usable", got=f"--format {format}", expected="a format whose times may differ")
    return time_format


def _check_text_options(log: Path, format: str, own: bool, sides: Sequence[Path], given: Mapping[str, str | None]) -> None:
    """Refuse an option of text files that neither the log nor a table beside it takes; `own`: the format has its own reader."""
    table = format == "csv" or not own
    of_log = options_of(log) if table else ("encoding",) if format == "lists" else ()
    of_sides = (option for side in sides for option in options_of(side))
    check_options(given, {*of_log, *of_sides}, log.name if table else f"a log of format {format}")


def _is_json_of_amazon(format: str, log: Path) -> bool:
    return format == "amazon" and not log.is_dir() and ".csv" not in (suffix.lower() for suffix in log.suffixes)


def _read_own(
    format: str,
    log: Path,
    columns: list[str] | None,
    mapping: Mapping[str, str],
    order: str | None,
    options: Mapping[str, Any],
    max_bad: float,
    report: Report,
) -> Tables:
    """Read a log in a format that has a reader of its own."""
    read: dict[str, Callable[[], Tables]] = {
        "csv": lambda: (_read_events(log, columns, mapping, order, options, report), None, None),
        "atomic": lambda: _read_atomic_set(_find_atomic(log)),
        "movielens": lambda: read_movielens(log),
        "mind": lambda: read_mind(log, report, max_bad=max_bad),
        "amazon": lambda: (read_reviews(log, report), None, None),
        "served": lambda: (read_served(log, report), None, None),
        "lists": lambda: (read_lists(log, report, options["encoding"]), None, None),
    }
    return read[format]()


def _read_events(
    log: Path,
    columns: list[str] | None,
    mapping: Mapping[str, str],
    order: str | None,
    options: Mapping[str, Any],
    report: Report,
) -> pl.DataFrame:
    """Read any table with a row per event, or with lists of events."""
    table = read_table(log, columns=columns, report=report, **options)
    needed = needed_columns(order)
    if columns is None and not any(mapping.get(name, name) in table.columns for name in needed):
        check_header(log, table)
    events = unnest(table, mapping, needed, report)
    report.note(_list_note(events, *(mapping.get(name, name) for name in ("user_id", "item_id"))))
    return events


def _list_note(table: pl.DataFrame, user: str, item: str) -> str:
    """Return a line if each user has one row, and an item there that looks like a list of items."""
    if not {user, item} <= set(table.columns) or table.height < 2 or table[item].dtype != pl.String:
        return ""
    for part in (table[item][:_SAMPLE], table[item]):
        if not part.str.contains(rf"[^\s{_SEPARATORS}][\s{_SEPARATORS}]+[^\s{_SEPARATORS}]").all():
            return ""
    if table[user].is_duplicated().any():
        return ""
    what = f"each user has one row, and {item} there looks like a list, such as '{table[item][0][:40]}'"
    return f"{what}: it is read as one item; a line of items per user is --format lists"


def _with_graph(
    items: pl.DataFrame | None, edges: pl.DataFrame | None, mapping: Mapping[str, str], report: Report
) -> pl.DataFrame:
    if items is None or edges is None:
        expected = "--items F, with an item_id and perhaps an author"
        raise InputError("--graph needs a table of items", got="none", expected=expected)
    names = {ours: mapping.get(ours, ours) for ours in ("item_id", "author")}
    names = {ours: theirs if theirs in items.columns else ours for ours, theirs in names.items()}
    return with_graph(items, edges, report, **names)


def _guess_format(log: Path, *, mapped: bool) -> str:
    if log.suffix == ".inter" or (log.is_dir() and any(log.glob("*.inter"))):
        return "atomic"
    if log.name == BEHAVIORS or (log.is_dir() and any([*log.glob(BEHAVIORS), *log.glob(f"*/{BEHAVIORS}")])):
        return "mind"
    sure = [] if mapped else [name for name, format in PUBLIC.items() if is_sure(log, format)]
    if len(sure) > 1:
        todo = "name the file, or its --format"
        raise DataError(f"{log} holds several logs", got=", ".join(sure), expected="files of one format", todo=todo)
    if sure:
        return sure[0]
    movielens = log.name in ("u.data", "ratings.dat") or (log.name == "ratings.csv" and log.with_name("movies.csv").is_file())
    return "movielens" if log.is_dir() or movielens else "csv"


def _find_atomic(log: Path) -> Path:
    if not log.is_dir():
        return log
    found = sorted(log.glob("*.inter"))
    if len(found) != 1:
        raise DataError(f"{log} is not a folder of atomic files", got=f"{len(found)} .inter files", expected="one")
    return found[0]


def _read_atomic_set(log: Path) -> Tables:
    beside = [log.with_suffix(suffix) for suffix in (".item", ".user")]
    items, users = (read_atomic(path) if path.is_file() else None for path in beside)
    return read_atomic(log), items, users


def _side_reader(options: Mapping[str, Any], side: Side) -> Callable[[Path, Report], pl.DataFrame]:
    options = dict(options) | {"separator": options["separator"] or side.separator}

    def read(path: Path, report: Report) -> pl.DataFrame:
        if path.suffix in (".item", ".user"):
            return read_atomic(path)
        return read_table(path, report=report, **options)

    return read


def _read_side(path: Path, read: Callable[[Path, Report], pl.DataFrame], what: str, report: Report) -> pl.DataFrame:
    """Read a table of items or users; rows that it leaves out are counted under its name, and are not bad rows of the log."""
    own = Report()
    table = read(path, own).drop(PLACE, strict=False)
    for reason, count in own.counts.items():
        report.add(f"{what}: {reason}", count)
    report.examples += [f"{what}: {example}" for example in own.examples]
    report.notes += [f"{what}: {note}" for note in own.notes]
    return table


def _with_places(log: pl.DataFrame) -> pl.DataFrame:
    """The log with `row` where reading left lines out, unless it has such a column of its own."""
    if PLACE not in log.columns:
        return log
    return log.drop(PLACE) if "row" in log.columns else log.rename({PLACE: "row"})


def source_info(
    source: Path, name: str | None, licence: str, format: str = "", mapping: Mapping[str, str] | None = None
) -> DatasetInfo:
    """Return the record of a source file: its name and checksum, the licence that was named, and the way it is read."""
    checksum = ""
    if source.is_file():
        with source.open("rb") as file:
            checksum = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    name = name or source.name.partition(".")[0] or "log"
    info = DatasetInfo(name=name, source=source.name, checksum=checksum, licence=licence)
    return info.model_copy(update={"format": format, "mapping": dict(mapping or {})})
