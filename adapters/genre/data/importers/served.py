"""The served log of `genre serve`: what was shown, with its propensity, and what came of it.

Owns: the query, names and types; several files as one. Ignores: how the log is written (`genre.serving.served`), how lists become
events of another log (`genre.data.shown`).

    user_id 196, item_id 50, timestamp 881250949, impression_id 0b8a…, position 1, propensity 0.91, click 1, reward 1.0, policy …
"""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import polars as pl

from genre.data.schema import Report
from genre.errors import DataError

SCHEMA = 1
"""The version of the tables, SQLite's user_version."""
EXPECTED = "the file of `genre serve --served-log`"
NO_USER = "impressions without a user_id"
COLUMNS = {
    "user_id": ("impressions.user", pl.String),
    "item_id": ("item", pl.String),
    "timestamp": ("CAST(time AS INTEGER)", pl.Int64),
    "impression_id": ("impression", pl.String),
    "position": ("position", pl.Int64),
    "propensity": ("propensity", pl.Float64),
    "score": ("score", pl.Float64),
    "reward": ("reward", pl.Float64),
    "policy": ("policy", pl.String),
    "adapter": ("adapter", pl.String),
    "digest": ("digest", pl.String),
    "rewarded": ("rewarded", pl.Float64),
}
"""Of what was shown: name → SQL and type."""
_QUERY = f"""
SELECT {", ".join(f"{value} AS {name}" for name, (value, _) in COLUMNS.items())}
FROM shown JOIN impressions USING (impression) ORDER BY time, impression, position
"""


def read_served(path: Path, report: Report) -> pl.DataFrame:
    """Read a served log as events, also while a service writes it.

    `reward` is 0 where none was sent, and `click` is whether it is above 0. Lists for requests without a user_id have no user to
    learn of: they are left out and counted.

    Raises:
        DataError: The file is no served log, or none of its lists has a user_id.
    """
    table = read_lists(path).drop("rewarded").with_columns(pl.col("reward").fill_null(0.0))
    table = table.with_columns((pl.col("reward") > 0).cast(pl.Int64).alias("click"))
    named = table.filter(pl.col("user_id").is_not_null())
    left_out = table["impression_id"].n_unique() - named["impression_id"].n_unique()
    if left_out and named.is_empty():
        todo = "send user_id with the requests to /v1/recommend"
        raise DataError(f"no list of {path} has a user_id", got=f"{left_out:,} without", expected="one or more", todo=todo)
    if left_out:
        report.add(NO_USER, left_out)
    return named


def read_lists(path: Path) -> pl.DataFrame:
    """Read what a served log holds, one row for each item shown, by time, list and place; also while a service writes it.

    Returns:
        The columns of an event without `click`; `reward` and `rewarded`, the second when it came, are null where none was sent.

    Raises:
        DataError: The file is no served log of this version.
    """
    if not path.is_file():
        raise DataError(f"{path} is no served log", got="a folder" if path.is_dir() else "no such file", expected=EXPECTED)
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version not in (0, SCHEMA):
                todo = "read it with the release of GENRE that wrote it"
                raise DataError(f"{path} is no served log of this version", got=version, expected=SCHEMA, todo=todo)
            rows = connection.execute(_QUERY).fetchall()
    except sqlite3.Error as error:
        raise DataError(f"{path} is no served log", got=str(error), expected=EXPECTED) from None
    return pl.DataFrame(rows, schema={name: kind for name, (_, kind) in COLUMNS.items()}, orient="row")


def gather_lists(paths: Sequence[Path]) -> pl.DataFrame:
    """Read several served logs as one; see `read_lists`.

    An item of a list that several files hold, such as a log and its earlier copy, counts once, with the reward that came first.

    Args:
        paths: Files, or folders with served logs in them, such as those that a full log was moved to.

    Raises:
        DataError: A file is no served log, or a folder holds none.
    """
    files = [file for path in paths for file in (_logs_in(path) if path.is_dir() else [path])]
    rows = pl.concat([read_lists(file) for file in dict.fromkeys(file.resolve() for file in files)])
    once = rows.sort("rewarded", nulls_last=True, maintain_order=True).unique(("impression_id", "item_id"), keep="first")
    return once.sort("timestamp", "impression_id", "position")


def _logs_in(folder: Path) -> list[Path]:
    """The databases of a folder, without what SQLite and the service keep beside them."""
    beside = ("-wal", "-shm", "-journal", ".lock")
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.endswith(beside)]
    if not files:
        raise DataError(f"{folder} holds no served log", got="no file", expected=EXPECTED)
    return files
