"""Public logs by their name: which of their columns is which, and what else the general import has to know of them.

Owns: the description of a format, choosing the file's kind, applying the description to a table. Ignores the formats themselves
(`genre.data.importers.public`), and the rules for events (`genre.data.build`).

    Log(names=("events.csv",), mapping={"user_id": "visitorid", "behaviour": "event", …}, time_unit="ms")

    timestamp,visitorid,event,itemid,transactionid          timestamp, user_id, behaviour, item_id, transactionid
    1433221332117,257597,view,355908,                 ->    1433221332117, 257597, view, 355908, (empty)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import polars as pl

from genre.data.importers.delimited import read_csv, read_head
from genre.data.importers.nested import needed_columns, unnest
from genre.data.importers.tables import read_table
from genre.data.schema import PLACE, REQUIRED, Report
from genre.errors import DataError

Prepare = Callable[[pl.DataFrame, Report], pl.DataFrame]


@dataclass(frozen=True)
class Side:
    """A table of items or users of a public log.

    Attributes:
        mapping: Our column to theirs; those that the file lacks are passed over.
        dropped: Columns of no use, or not known at the time of an event (an average rating).
        separator: Between the cells of a CSV; None finds it.
        prepare: What a mapping cannot say, done to the table before it.
    """

    mapping: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    separator: str | None = None
    prepare: Prepare | None = None


@dataclass(frozen=True)
class Log(Side):
    """One kind of file with events of a public log.

    Attributes:
        names: Its usual names, as patterns in small letters, without .gz.
        marks: Columns that tell it from the other kinds where the name is another; none stands for those of the mapping.
        columns: The columns of a file without a header.
        constants: Columns that every row of this file has the same value in, such as a behaviour.
        quote: Around cells of a CSV; `none` if quotes are part of the texts.
        time_unit: Of numeric timestamps.
        order: What orders equal times; None for a hash.
        missing: Columns with values that mean "not known".
        item_columns: Columns that describe items; None looks for usual names.
    """

    names: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None
    constants: Mapping[str, str] = field(default_factory=dict)
    quote: str = '"'
    time_unit: str = "s"
    order: str | None = None
    missing: tuple[tuple[str, str], ...] = ()
    item_columns: tuple[str, ...] | None = None

    def items_of(self, table: pl.DataFrame, given: list[str] | None) -> list[str] | None:
        """Return the columns that describe items: the user's, or those of the format that the table has."""
        if given is not None or self.item_columns is None:
            return given
        return [name for name in self.item_columns if name in table.columns]

    def missing_of(
        self, table: pl.DataFrame, given: Sequence[tuple[str, str]], mapping: Mapping[str, str]
    ) -> list[tuple[str, str]]:
        """Return the user's values that mean "not known", and the format's of columns that the user neither names nor maps."""
        named = {column for column, _ in given} | mapping.keys()
        return [*given, *(pair for pair in self.missing if pair[0] not in named and pair[0] in table.columns)]


@dataclass(frozen=True)
class Format:
    """A public log: its kinds of files with events, and its tables of items and users.

    Attributes:
        logs: The kinds of files; the first one is taken for a file of another name.
        items: The table of items.
        users: The table of users.
        sure: Names, as patterns, that say what a file is without `--format`.
        parts: Several such files in a folder are one log: months, clicks beside purchases.
    """

    logs: tuple[Log, ...]
    sure: tuple[str, ...]
    items: Side = Side()
    users: Side = Side()
    parts: bool = False


def is_sure(path: Path, format: Format) -> bool:
    """Return whether the name of a file, or of one in a folder, says that it is of this format."""
    files = path.glob("*") if path.is_dir() else [path]
    return any(_first_match(file, format.sure) < len(format.sure) for file in files)


def read_log(
    path: Path, name: str, format: Format, mapping: Mapping[str, str], report: Report, *, options: Mapping[str, Any]
) -> tuple[pl.DataFrame, Log]:
    """Read a file of a public log, or all such files of a folder in the order of their patterns, with our names for its columns.

    Args:
        path: The file or the folder.
        name: The format's name.
        format: Its description.
        mapping: The user's own, our column to theirs: it wins over the format's, and keeps the columns that it names.
        report: Counts what is left out.
        options: separator, encoding, quote, order as the user gave them; None takes the format's.

    Returns:
        The table, and the kind of the file, which has options for the general import.

    Raises:
        DataError: If there is no such file, or it has other columns.
    """
    if not path.is_dir():
        return _read_file(path, name, format, mapping, report, options)
    patterns = [pattern for log in format.logs for pattern in log.names]
    found = [(_first_match(file, patterns), file.name, file) for file in path.glob("*") if file.is_file()]
    files = [file for place, _, file in sorted(found) if place < len(patterns)]
    if not files or (len(files) > 1 and not format.parts):
        got = ", ".join(file.name for file in files) or "no such file in the folder"
        expected = f"one file named {' or '.join(patterns)}"
        raise DataError(
            f"{path} holds {'several logs' if files else 'no log'} of {name}", got=got, expected=expected, todo="name the file"
        )
    parts = [_read_file(file, name, format, mapping, report, options) for file in files]
    first = 0
    for file, (part, _) in zip(files, parts, strict=True):
        report.note(f"rows {first:,} to {first + part.height - 1:,} are those of {file.name}" if len(files) > 1 else "")
        first += part.height
    table = pl.concat([part.drop(PLACE, strict=False) for part, _ in parts], how="diagonal_relaxed")
    return table, parts[0][1]


def apply(table: pl.DataFrame, side: Side, mapping: Mapping[str, str], report: Report) -> pl.DataFrame:
    """Return a table with our names, and report them; columns that the user's own mapping takes its values from stay for it."""
    if side.prepare is not None:
        table = side.prepare(table, report)
    given = {ours: theirs for ours, theirs in mapping.items() if theirs in table.columns}
    named = {ours: theirs for ours, theirs in side.mapping.items() if ours not in given and theirs in table.columns}
    report.mapping = named | report.mapping
    gone = (set(named.values()) | set(side.dropped)) - set(named) - set(given.values())
    table = table.with_columns(pl.col(theirs).alias(ours) for ours, theirs in named.items())
    return table.drop([column for column in table.columns if column in gone])


def _read_file(
    path: Path, name: str, format: Format, mapping: Mapping[str, str], report: Report, options: Mapping[str, Any]
) -> tuple[pl.DataFrame, Log]:
    if not path.is_file():
        raise DataError(f"{path} cannot be read", got="no such file", expected=f"a {name} log")
    kind = _by_name(path, format) or _by_width(path, format, options["encoding"])
    own: dict[str, Any] = {
        "separator": options["separator"] or kind.separator,
        "encoding": options["encoding"],
        "quote": kind.quote if options["quote"] is None else options["quote"],
    }
    if kind.columns is not None:
        _check_width(path, name, kind, own["separator"], options["encoding"])
        table = read_csv(path, columns=list(kind.columns), report=report, **own)
    else:
        unread = set(kind.dropped) - set(mapping.values())
        table = read_table(path, report=report, dropped=unread, **own)
        kind = kind if _fits(table, kind) else next((log for log in format.logs if _fits(table, log)), kind)
    before = [column for column in table.columns if column != PLACE]
    table = unnest(table, {**kind.mapping, **mapping}, needed_columns(options["order"] or kind.order), report)
    table = apply(table, kind, mapping, report)
    table = table.with_columns(pl.lit(value).alias(c) for c, value in kind.constants.items() if c not in mapping)
    if any(ours not in table.columns and mapping.get(ours) not in table.columns for ours in REQUIRED if ours in kind.mapping):
        what, todo = f"{path.name} is not a log of {name}", "name its columns with --map, or leave --format out"
        raise DataError(what, got=", ".join(before)[:200], expected=f"columns {', '.join(kind.mapping.values())}", todo=todo)
    return table, kind


def _check_width(path: Path, name: str, kind: Log, separator: str | None, encoding: str) -> None:
    """Refuse a file without a header whose first line has more or fewer cells than its kind has columns."""
    first, columns = _first_line(path, encoding), kind.columns or ()
    found = len(first.split(separator or ","))
    if first and found != len(columns):
        todo = "name its columns with --format csv --columns"
        got, expected = f"{found} cells in the first line", f"{len(columns)}: {', '.join(columns)}"
        raise DataError(f"{path.name} is not a log of {name}", got=got, expected=expected, todo=todo)


def _first_line(path: Path, encoding: str) -> str:
    return next(iter(read_head(path, encoding).splitlines()), "")


def _by_name(path: Path, format: Format) -> Log | None:
    return next((log for log in format.logs if _first_match(path, log.names) < len(log.names)), None)


def _first_match(path: Path, patterns: Sequence[str]) -> int:
    """Return the place of the first pattern that a name has, their number if it has none."""
    return next((place for place, pattern in enumerate(patterns) if fnmatch(_plain_name(path), pattern)), len(patterns))


def _plain_name(path: Path) -> str:
    return path.name.lower().removesuffix(".gz")


def _by_width(path: Path, format: Format, encoding: str) -> Log:
    """Return the kind of a file of an unusual name: without a header, the one that has as many cells as its first line."""
    headless = [(log, log.columns) for log in format.logs if log.columns is not None]
    if not headless:
        return format.logs[0]
    line = _first_line(path, encoding)
    return next((log for log, names in headless if len(line.split(log.separator or ",")) == len(names)), headless[0][0])


def _fits(table: pl.DataFrame, kind: Log) -> bool:
    return set(kind.marks or kind.mapping.values()) <= set(table.columns)
