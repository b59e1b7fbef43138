"""Items and users of a log: their tables checked, completed and aligned.

Owns: the catalogue's order, rows for items and users that have none, item columns of the log itself. Ignores events' order and
feedback.

A log with a title in every row gives its own catalogue:

    user_id, item_id, timestamp, rating, title          items: item_id, title
    7, 50, 881250949, 5, Star Wars               ->     50, Star Wars
"""

import polars as pl

from genre.data.catalogue import Catalogue
from genre.data.fields import ids
from genre.data.schema import FEEDBACK, KEYS, Report
from genre.errors import DataError

ITEM_NAMES = frozenset(
    {"title", "name", "item_title", "item_name", "product_title", "product_name", "movie_title"}
    | {"genres", "genre", "category", "categories", "main_category", "brand", "description", "abstract"}
    | {"author", "artist", "album", "publisher", "release_year", "year"}
)
"""Columns of a log that describe its items, by their lower-case name."""


def item_columns_of(log: pl.DataFrame, items: pl.DataFrame | None, columns: list[str] | None) -> list[str]:
    """Return those of a log's columns that describe its items.

    Args:
        log: A log.
        items: A table of items; when given, the log's columns stay events' unless they are named.
        columns: The ones that do; None takes those with a usual name (`ITEM_NAMES`) and lists of numbers.

    Raises:
        DataError: If a named column is missing.
    """
    if columns is None and items is not None or "item_id" not in log.columns:
        return []
    if columns is None:
        return [c for c in log.columns if c not in (*KEYS, *FEEDBACK, "impression_id") and _describes_items(c, log[c])]
    for name in columns:
        if name not in log.columns:
            raise DataError(f"the log has no item column '{name}'", got=", ".join(log.columns), expected=f"a column '{name}'")
    return list(columns)


def describe_items(log: pl.DataFrame, items: pl.DataFrame | None, columns: list[str], report: Report) -> pl.DataFrame:
    """Return a table of items with columns of the log: the first value of each item, beside the columns of `items`.

    Args:
        log: The usable rows of a log with an `item_id`.
        items: A table of items, or None.
        columns: The columns of the log.
        report: Counts items with several values.
    """
    with_id = log.select("item_id", *columns).with_columns(ids(log["item_id"])).drop_nulls("item_id")
    table = with_id.group_by("item_id", maintain_order=True).agg(pl.col(columns).drop_nulls().first()).sort("item_id")
    _count_conflicts(with_id, columns, report)
    return table if items is None else items.with_columns(ids(items["item_id"])).join(table, on="item_id", how="left")


def _describes_items(name: str, series: pl.Series) -> bool:
    dense = isinstance(series.dtype, pl.List | pl.Array) and series.dtype.inner.is_numeric()
    return name.lower() in ITEM_NAMES or dense


def _count_conflicts(with_id: pl.DataFrame, columns: list[str], report: Report) -> None:
    for name in columns:
        if not with_id[name].dtype.is_nested():
            several = (
                with_id.group_by("item_id").agg(pl.col(name).drop_nulls().n_unique()).filter(pl.col(name) > 1).sort("item_id")
            )
            example = f"item {several['item_id'][0]}; the first was kept" if several.height else ""
            report.add(f"items with several values of {name}", several.height, example)


def complete_items(items: pl.DataFrame | None, used: pl.Series, report: Report) -> Catalogue:
    """Return the catalogue: the items in their table's order, then those only in the log, by id, with empty columns.

    Args:
        items: The table of items, or None.
        used: The ids in the log, each once.
        report: Counts items without an id, repeated ones, and those without a row.
    """
    if items is None:
        return Catalogue(pl.DataFrame({"item_id": used.sort()}))
    table = _unique_rows(items, "item_id", "items", report)
    missing = used.filter(~used.is_in(table["item_id"].implode())).sort()
    if len(missing):
        report.add("items without a row", len(missing), f"item {missing[0]}")
        table = pl.concat([table, pl.DataFrame({"item_id": missing})], how="diagonal")
    return Catalogue(table)


def align_users(users: pl.DataFrame | None, user_ids: pl.Series, report: Report) -> pl.DataFrame | None:
    """Return one row per user of the log, in its order; users without events are left out and counted."""
    if users is None:
        return None
    table = _unique_rows(users, "user_id", "users", report)
    active = table["user_id"].is_in(user_ids.implode())
    report.add("users without events", int((~active).sum()))
    report.add("users without a row", len(user_ids) - int(active.sum()))
    return pl.DataFrame({"user_id": user_ids}).join(table, on="user_id", how="left", maintain_order="left")


def _unique_rows(table: pl.DataFrame, key: str, what: str, report: Report) -> pl.DataFrame:
    if key not in table.columns:
        got, expected = ", ".join(table.columns) or "no columns", f"{key} and other columns"
        todo = f"name yours with --map {key}=THEIRS"
        raise DataError(f"column '{key}' is missing in the {what}", got=got, expected=expected, todo=todo)
    odd = [name for name in table.columns if not _can_hold(table[name].dtype)]
    report.add(f"columns of the {what} that are not a number, text or list", len(odd), ", ".join(odd))
    table = table.drop(odd).with_columns(ids(table[key]))
    report.add(f"{what} without an id", table[key].null_count())
    table = table.drop_nulls(key)
    once = table.unique(subset=[key], keep="first", maintain_order=True)
    report.add(f"{what} given twice", table.height - once.height)
    return once


def _can_hold(dtype: pl.DataType) -> bool:
    if isinstance(dtype, pl.List | pl.Array):
        return dtype.inner.is_numeric() or dtype.inner == pl.String
    return not dtype.is_nested() and dtype not in (pl.Object, pl.Binary, pl.Duration)
