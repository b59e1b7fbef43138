"""The served log of `genre serve` as events: what was shown, with its propensity, and what came of it.

Owns: the query, names and types. Ignores: how the log is written (`genre.serving.served`).

    user_id 196, item_id 50, timestamp 881250949, impression_id 0b8a…, position 1, propensity 0.91, click 1, reward 1.0, policy …
"""

import sqlite3
from contextlib import closing
from pathlib import Path

import polars as pl

from genre.data.schema import Report
from genre.errors import DataError

NO_USER = "impressions without a user_id"
_COLUMNS = {
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
}
_QUERY = f"""
SELECT {", ".join(f"{value} AS {name}" for name, (value, _) in _COLUMNS.items())}
FROM shown JOIN impressions USING (impression) ORDER BY time, impression, position
"""


def read_served(path: Path, report: Report) -> pl.DataFrame:
    """Read a served log, also while a service writes it.

    `reward` is 0 where none was sent, and `click` is whether it is above 0. Lists for requests without a user_id have no user to
    learn of: they are left out and counted.

    Raises:
        DataError: The file is no served log, or none of its lists has a user_id.
    """
    expected = "the file of `genre serve --served-log`"
    if not path.is_file():
        raise DataError(f"{path} is no served log", got="a folder" if path.is_dir() else "no such file", expected=expected)
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            rows = connection.execute(_QUERY).fetchall()
    except sqlite3.Error as error:
        raise DataError(f"{path} is no served log", got=str(error), expected=expected) from None
    table = pl.DataFrame(rows, schema={name: kind for name, (_, kind) in _COLUMNS.items()}, orient="row")
    table = table.with_columns(pl.col("reward").fill_null(0.0))
    table = table.with_columns((pl.col("reward") > 0).cast(pl.Int64).alias("click"))
    named = table.filter(pl.col("user_id").is_not_null())
    left_out = table["impression_id"].n_unique() - named["impression_id"].n_unique()
    if left_out and named.is_empty():
        todo = "send user_id with the requests to /v1/recommend"
        raise DataError(f"no list of {path} has a user_id", got=f"{left_out:,} without", expected="one or more", todo=todo)
    if left_out:
        report.add(NO_USER, left_out)
    return named
