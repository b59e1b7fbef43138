"""A stranger's log to a data set.

Owns: which reader a format has, where it looks for items and users, what is remembered of the source. Ignores the rules
for events (`interactions_build`).

    import_log("events.csv", mapping={"user_id": "uid", "item_id": "sku", "timestamp": "when"}).write("data/shop")
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from genre.errors import DataError, InputError
from genre.interactions import DatasetInfo, Interactions
from genre.interactions_atomic import read_atomic
from genre.interactions_movielens import Tables, read_movielens
from genre.interactions_read import read_table
from genre.interactions_schema import MAX_BAD

FORMATS = ("csv", "atomic", "movielens")
"""csv stands for every table with a header: CSV, TSV, Parquet, JSON lines."""


def import_log(
    log: str | Path,
    *,
    format: str | None = None,
    items: str | Path | None = None,
    users: str | Path | None = None,
    mapping: Mapping[str, str] | None = None,
    name: str | None = None,
    licence: str = "",
    time_unit: str = "s",
    max_bad: float = MAX_BAD,
    item_columns: list[str] | None = None,
    separator: str | None = None,
    encoding: str = "utf-8",
) -> Interactions:
    """Read a log, and its items and users, in one of `FORMATS`.

    Args:
        log: A file; for atomic and movielens also the folder it is in.
        format: None takes atomic for .inter, movielens for its file names, csv otherwise.
        items: A table of items; atomic and movielens find theirs beside the log.
        users: A table of users; likewise.
        mapping: Our column to theirs, in all three.
        name: The data set's name; None takes the log's.
        licence: Terms of use, kept in dataset.json.
        time_unit: Of numeric timestamps: s, ms, us or ns.
        max_bad: The share of bad rows above which the log is refused.
        item_columns: Columns of the log that describe items; None looks for usual names.
        separator: Of a CSV; None finds it.
        encoding: Of a CSV or JSON lines.

    Raises:
        InputError: If the format is unknown.
        DataError: If a file or its content is not usable.
    """
    log = Path(log)
    format = format or _guess_format(log)
    if format not in FORMATS:
        raise InputError("unknown format", got=repr(format), expected=", ".join(FORMATS))
    if format == "movielens":
        tables = read_movielens(log)
    elif format == "atomic":
        log = _find_atomic(log)
        tables = _read_atomic_set(log)
    else:
        tables = read_table(log, separator=separator, encoding=encoding), None, None
    beside = [_read_side(path, separator, encoding) for path in (items, users)]
    return Interactions.from_frame(
        tables[0],
        beside[0] if beside[0] is not None else tables[1],
        beside[1] if beside[1] is not None else tables[2],
        mapping,
        info=DatasetInfo(
            name=name or log.name.partition(".")[0] or "log",
            source=log.name,
            checksum=_checksum(log),
            licence=licence,
        ),
        time_unit=time_unit,
        max_bad=max_bad,
        item_columns=item_columns,
        guess_numbers=True,
    )


def _guess_format(log: Path) -> str:
    if log.suffix == ".inter" or (log.is_dir() and any(log.glob("*.inter"))):
        return "atomic"
    movielens = log.name in ("u.data", "ratings.dat") or (log.name == "ratings.csv" and log.with_name("movies.csv").is_file())
    return "movielens" if log.is_dir() or movielens else "csv"


def _find_atomic(log: Path) -> Path:
    if not log.is_dir():
        return log
    found = sorted(log.glob("*.inter"))
    if len(found) != 1:
        raise DataError(f"{log} is no folder of atomic files", got=f"{len(found)} .inter files", expected="one")
    return found[0]


def _read_atomic_set(log: Path) -> Tables:
    beside = [log.with_suffix(suffix) for suffix in (".item", ".user")]
    items, users = (read_atomic(path) if path.is_file() else None for path in beside)
    return read_atomic(log), items, users


def _read_side(path: str | Path | None, separator: str | None, encoding: str) -> pl.DataFrame | None:
    if path is None:
        return None
    path = Path(path)
    return read_atomic(path) if path.suffix in (".item", ".user") else read_table(path, separator=separator, encoding=encoding)


def _checksum(log: Path) -> str:
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
