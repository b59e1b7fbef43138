"""Rows that hold several events, to a row per event.

Owns: lists of objects beside the user's columns, lists of equal lengths, fields of an object. Ignores files (`tables`) and the
meaning of columns.

    {"session": 1, "events": [{"aid": 7, "ts": 5}, {"aid": 8, "ts": 6}]}     session  aid  ts
                                                                         ->        1    7   5
                                                                                   1    8   6
    {"user": 1, "items": [7, 8], "times": [5, 6]}                        ->  likewise: user, items, times
"""

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from genre.data.schema import PLACE, REQUIRED, Report
from genre.errors import DataError

OUTER = "outer_"
"""Before the name of a column beside a list whose objects have a key of that name."""


def unnest(table: pl.DataFrame, mapping: Mapping[str, str], needed: Sequence[str], report: Report) -> pl.DataFrame:
    """Return a log with a row per event.

    A list of objects is one of events if a needed column is missing without it: the objects' keys become columns beside the
    others, an outer one of the same name gets `OUTER` before it. If the items are lists, lists that are as long in every row go
    with them. Lists may be texts, `[1, 2]` in a CSV. Rows keep their order, events that of their list. A table of another kind
    stays as it is.

    Args:
        table: A log.
        mapping: Our column to theirs; one as `user.id` is the field `id` of a column of objects `user`.
        needed: Our columns without which there is no log.
        report: Gets a note, and counts rows without events.

    Raises:
        DataError: Several lists may be the events, or lists that belong together differ in length.
    """
    table = _with_fields(table, mapping)
    theirs, items = [mapping.get(name, name) for name in needed], mapping.get("item_id", "item_id")
    while missing := [name for name in theirs if name not in table.columns]:
        table = _with_lists(table, table.columns)
        lists = {name: dtype.inner.fields for name, dtype in table.schema.items() if _is_list(dtype, pl.Struct)}  # type: ignore[attr-defined]
        if not lists:
            return table
        table = _explode_objects(table, _list_of_events(lists, [*missing, *mapping.values()]), report)
    if isinstance(_with_lists(table, [items])[items].dtype, pl.List):
        table = _with_lists(table, table.columns)
    if isinstance(table[items].dtype, pl.List | pl.Array):
        return _explode_lists(table, items, theirs, report)
    return table


def needed_columns(order: str | None) -> tuple[str, ...]:
    """Return our columns without which there is no log: no times where something else orders events."""
    return REQUIRED if order in (None, "hash") else tuple(name for name in REQUIRED if name != "timestamp")


def _is_list(dtype: pl.DataType, inner: type[pl.DataType]) -> bool:
    return isinstance(dtype, pl.List | pl.Array) and isinstance(dtype.inner, inner)


def _with_fields(table: pl.DataFrame, mapping: Mapping[str, str]) -> pl.DataFrame:
    """Columns for fields that the mapping names, `user.id`."""
    for theirs in mapping.values():
        column, *path = theirs.split(".")
        if theirs in table.columns or not path or not isinstance(table.schema.get(column), pl.Struct):
            continue
        found = table[column]
        while path and isinstance(found.dtype, pl.Struct) and path[0] in [field.name for field in found.dtype.fields]:
            found = found.struct.field(path.pop(0))
        if not path:
            table = table.with_columns(found.alias(theirs))
    return table


def _with_lists(table: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Turn columns of texts into lists where each cell is one, as JSON or Python writes it, or numpy does (`[1 2]`)."""
    return table.with_columns(_listed(table[name]) for name in names if table.schema[name] == pl.String)


def _listed(series: pl.Series) -> pl.Series:
    filled = series.drop_nulls()
    if filled.is_empty() or not filled[0].lstrip().startswith("[") or not filled.str.contains(r"(?s)^\s*\[.*\]\s*$").all():
        return series
    try:
        return series.str.json_decode(infer_schema_length=None)
    except pl.exceptions.PolarsError:
        pass
    try:
        return pl.Series(series.name, [None if text is None else _of_python(text) for text in series], strict=False)
    except (pl.exceptions.PolarsError, ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return series


def _of_python(text: str) -> list[Any]:
    if re.fullmatch(r"\s*\[[^,'\"\[\]{}]*\]\s*", text):  # numpy, or one element
        return text.strip().strip("[]").split()
    found = ast.literal_eval(text.strip())
    if not isinstance(found, list):
        raise ValueError(text)
    return found


def _list_of_events(lists: Mapping[str, Sequence[pl.Field]], wanted: Sequence[str]) -> str:
    holding = [name for name, fields in lists.items() if any(field.name in wanted for field in fields)] or [*lists]
    if len(holding) > 1:
        todo = "leave out all but one, or name the keys of one with --map"
        raise DataError("several columns are lists of objects", got=", ".join(holding), expected="one list of events", todo=todo)
    return holding[0]


def _explode_objects(table: pl.DataFrame, column: str, report: Report) -> pl.DataFrame:
    events = _one_per_event(table, [column], report)
    fields = [field.name for field in events[column].dtype.fields]  # type: ignore[attr-defined]
    twice = [name for name in fields if name in table.columns and name != column]
    if twice:
        report.note(f"{', '.join(twice)} of the list '{column}' is taken, the outer one is {OUTER}{twice[0]}")
    inner = events[column].struct.unnest()
    return events.drop(column).rename({name: f"{OUTER}{name}" for name in twice}).hstack(inner)


def _explode_lists(table: pl.DataFrame, items: str, needed: Sequence[str], report: Report) -> pl.DataFrame:
    lengths = _lengths(table, items)
    lists = [name for name, dtype in table.schema.items() if isinstance(dtype, pl.List | pl.Array)]
    along = [name for name in lists if _lengths(table, name).equals(lengths)]
    if odd := next((name for name in lists if name in needed and name not in along), None):
        row = int((_lengths(table, odd) != lengths).arg_max() or 0)
        got = f"row {row} (the first is 0): {lengths[row]} {items}, {_lengths(table, odd)[row]} {odd}"
        raise DataError(f"the lists '{items}' and '{odd}' differ in length", got=got, expected="one of each per event")
    return _one_per_event(table, along, report)


def _lengths(table: pl.DataFrame, name: str) -> pl.Series:
    series = table[name]
    return (series.arr.to_list() if isinstance(series.dtype, pl.Array) else series).list.len().fill_null(0)


def _one_per_event(table: pl.DataFrame, lists: list[str], report: Report) -> pl.DataFrame:
    filled = table.filter(_lengths(table, lists[0]) > 0).drop(PLACE, strict=False)
    events = filled.explode(lists)
    names = ", ".join(f"'{name}'" for name in lists)
    report.add("rows without events", table.height - filled.height)
    report.note(f"{events.height:,} events come from the list{'s' if len(lists) > 1 else ''} {names} of {filled.height:,} rows")
    return events
