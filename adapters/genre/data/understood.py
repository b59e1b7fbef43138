"""An import in words: the use of each column, times, order, what was left out.

Owns: the report that `genre data import` prints before it writes, as a dict and as lines. Ignores reading and writing.

    understood(log)["columns"]["interactions"]["rating"]   ->  {"from": "stars", "role": "feedback", "values": "1 to 5"}
    lines(understood(log))[0]                               ->  "Interactions(shop: 400 events, 20 users, 50 items)"
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from genre.data.describe import distribution, span
from genre.data.interactions import Interactions
from genre.data.reading import time_step, unit_hint
from genre.data.schema import DatasetInfo
from genre.data.texts.dataset import Texts

_WORDS = {"event": "label or context", "feature": "not read, kept for slices", "dense": "vector"}
"""Roles that need another word than their own."""

_NAMED = 5


def understood(data: Interactions | Texts) -> dict[str, Any]:
    """Return what an import understood, ready for JSON.

    `columns` holds for each table its columns but keys, each with `from` (their name), `role` and, of events, labels and vectors,
    `values`; `keys` maps our key columns to theirs, of labelled texts those that are mapped; `time` and `order` are None there.
    """
    info, log = data.info, data if isinstance(data, Interactions) else None
    tables: dict[str, pl.DataFrame | None] = {"texts": data.frame}
    keys = [*info.mapping.keys() & {"group_id", "text_id"}]  # without them each text is one of its own
    keys.sort()
    if log is not None:
        tables = {"interactions": log.frame, "items": log.catalogue.frame, "users": log.users}
        keys = ["user_id", "item_id", *(["timestamp"] if info.timed else [])]
    return {
        "summary": repr(data),
        "format": info.format,
        "keys": {name: info.mapping.get(name, name) for name in keys},
        "time": None if log is None or not info.timed else _time(log),
        "order": None if log is None else {"rule": log.tie_rule, "ties": tie_share(log)},
        "columns": {name: _columns(info, name, table) for name, table in tables.items()},
        "skipped": info.skipped,
        "examples": list(info.examples),
        "notes": list(info.notes),
    }


def tie_share(log: Interactions) -> float:
    """Return the share of events whose place among their user's is known neither by time nor by a named order."""
    return round(float(log.undecided.mean()), 6)


def _time(log: Interactions) -> dict[str, Any]:
    reading = log.info.times
    about = {"read_as": reading, "step": time_step(log.times_us), "doubt": unit_hint(log.timestamps, reading)}
    return about | span(log.frame["timestamp"])


def _columns(info: DatasetInfo, table: str, frame: pl.DataFrame | None) -> dict[str, dict[str, Any]]:
    if frame is None:
        return {}
    return {name: _column(info, frame[name], role) for name, role in info.roles.get(table, {}).items()}


def _column(info: DatasetInfo, series: pl.Series, role: str) -> dict[str, Any]:
    about = {"from": info.mapping.get(series.name, series.name), "role": role}
    if role == "dense":
        filled = series.drop_nulls().list.len() if isinstance(series.dtype, pl.List) else None
        sizes = [series.dtype.size] if filled is None else filled.unique().to_list()  # type: ignore[attr-defined]
        return about | {"values": f"{sizes[0]} numbers" if len(sizes) == 1 else f"{len(sizes)} different lengths"}
    return about | {"values": _values(series)} if role in ("feedback", "event", "label") else about


def _values(series: pl.Series) -> str:
    """A column's values in a few words, with the share of empty cells."""
    filled = series.drop_nulls()
    if filled.is_empty():
        return "empty"
    empty = f", {series.null_count() / len(series):.1%} empty" if series.null_count() else ""
    if filled.dtype.is_numeric():
        low, high = float(filled.min()), float(filled.max())  # type: ignore[arg-type]
        return (f"{low:g} to {high:g}" if low != high else f"always {low:g}") + empty
    found = distribution(series)
    values = list(found.get("values") or found["most"])
    more = found.get("different", len(values)) - _NAMED
    return ", ".join(value[:30] for value in values[:_NAMED]) + (f" and {more:,} more" if more > 0 else "") + empty


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return the report of `understood` as lines."""
    kind = f"read as {found['format']}" if found["format"] else ""
    keys = ", ".join(_from(name, theirs) for name, theirs in found["keys"].items())
    told = [found["summary"], ": ".join(part for part in (kind, keys) if part)]
    if found["time"] is not None:
        time = found["time"]
        about = [time["read_as"], f"whole {time['step']}s", time["doubt"]]
        told.append(f"times: {'; '.join(part for part in about if part)}")
        told.append(f"span: {time['first']} to {time['last']} ({time['days']:,} days)")
    if found["order"] is not None:
        order = found["order"]
        told.append(f"order: {order['rule']}; {order['ties']:.1%} of events are such ties")
    for table, columns in found["columns"].items():
        told.append(f"columns of {table}: {', '.join(_line(name, each) for name, each in columns.items()) or 'none'}")
    told += [f"skipped: {reason}: {count:,}" for reason, count in found["skipped"].items()]
    return [*told, *(f"first: {each}" for each in found["examples"]), *(f"note: {each}" for each in found["notes"])]


def _from(name: str, theirs: str) -> str:
    return name if name == theirs else f"{name} ← {theirs}"


def _line(name: str, column: Mapping[str, str]) -> str:
    about = [_WORDS.get(column["role"], column["role"]), column.get("values", "")]
    return f"{_from(name, column['from'])} ({': '.join(part for part in about if part)})"
