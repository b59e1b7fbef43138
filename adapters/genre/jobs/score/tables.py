"""Recommendations as a table: a row per user and item, best first, with titles, as Parquet or CSV.

Owns: the columns, the way from result lines to the table. Ignores: how results come about; lines are written first, since those
can be resumed, and the table appears whole at the end.

    write_table(Path("out.parquet.jsonl"), Path("out.parquet"), log.catalogue)
    # user_id rank item_id title                      score  adapter   digest   note
    # 196     1    50      Star Wars (1977)           5.21   next_item 3f09…    null
"""

from collections.abc import Collection
from pathlib import Path

import polars as pl

from genre.data.catalogue import Catalogue
from genre.errors import InputError
from genre.files import atomic, disk_errors

SUFFIXES = (".parquet", ".csv")
_LINE = pl.Schema(
    {
        "id": pl.String(),
        "adapter": pl.String(),
        "digest": pl.String(),
        "results": pl.List(pl.Struct({"item_id": pl.String(), "score": pl.Float64()})),
        "note": pl.String(),
        "error": pl.String(),
    }
)


def is_table(output: str) -> bool:
    """Return whether an output is a table, by its suffix."""
    return Path(output).suffix.lower() in SUFFIXES


def lines_of(table: Path) -> Path:
    """The file of result lines that a table is made from, which is removed when the table is there."""
    return table.with_name(table.name + ".jsonl")


def write_table(lines: Path, target: Path, catalogue: Catalogue) -> None:
    """Make a table of a file of result lines; both are streamed.

    A user whose row failed, or to whom nothing is left to recommend, has one row without an item, and the reason as its note.

    Raises:
        DiskError: The disk is full; the lines stay.
    """
    titles = pl.LazyFrame(
        {"item_id": catalogue.item_ids, "title": catalogue.titles()}, schema={"item_id": pl.String(), "title": pl.String()}
    )
    table = (
        pl.scan_ndjson(lines, schema=_LINE)
        .with_columns(results=pl.when(pl.col("results").list.len() > 0).then("results"))  # explode may drop an empty list
        .with_columns(rank=pl.int_ranges(1, pl.col("results").list.len() + 1))
        .explode("results", "rank")
        .unnest("results")
        .join(titles, on="item_id", how="left", maintain_order="left")
        .select(
            pl.col("id").alias("user_id"),
            "rank",
            "item_id",
            "title",
            "score",
            "adapter",
            "digest",
            pl.coalesce("error", "note").alias("note"),
        )
    )
    with disk_errors(target), atomic(target) as aside:
        if target.suffix.lower() == ".csv":
            table.sink_csv(aside)
        else:
            table.sink_parquet(aside, compression="zstd")


def check_table(table: Path, adapter: str, user_ids: Collection[str]) -> None:
    """Check that a table that is there already is the one that is asked for.

    Raises:
        InputError: It is of another adapter, of other users, or no such table.
    """
    todo = "remove it to start over, or name another output"
    expected = f"{len(user_ids):,} users by {adapter}"
    try:
        scan = pl.scan_csv(table, infer_schema=False) if table.suffix.lower() == ".csv" else pl.scan_parquet(table)
        found = scan.select("user_id", "adapter").unique().collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        got = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{table} is not a table of recommendations", got=got, expected=expected, todo=todo) from None
    adapters = ", ".join(sorted(found["adapter"].drop_nulls().unique())) or "none"
    if set(found["user_id"]) != set(user_ids) or adapters != adapter:
        got = f"{found['user_id'].n_unique():,} users by {adapters}"
        raise InputError(f"{table} is of another input", got=got, expected=expected, todo=todo)
