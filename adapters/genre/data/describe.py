"""A log in figures.

Owns: the figures of `genre data describe`. Ignores their display.

    {"events": 100000, "users": 943, "items": 1682, "ties": 0.7605, "density": 0.063, "feedback": {"rating": {…}}, …}
"""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from genre.data.catalogue import Catalogue
from genre.data.order import tied_events
from genre.data.schema import DatasetInfo, event_columns

_MOST_VALUES = 12


def describe(
    frame: pl.DataFrame,
    catalogue: Catalogue,
    users: pl.DataFrame | None,
    info: DatasetInfo,
    user_offsets: np.ndarray,
    item_codes: np.ndarray,
) -> dict[str, Any]:
    """Return figures of a log, ready for JSON.

    `ties` is the share of events that share their second with another event of the same user; `density` is events /
    (users x items used); `sparsity` is 1 - density; text coverage is the share of items with a value, per column.
    """
    events_per_user, events_per_item = np.diff(user_offsets), np.bincount(item_codes, minlength=catalogue.size)
    used = int((events_per_item > 0).sum())
    density = frame.height / (len(events_per_user) * used)
    codes = np.repeat(np.arange(len(events_per_user)), events_per_user)
    return {
        "name": info.name,
        "source": info.source,
        "licence": info.licence,
        "events": frame.height,
        "users": len(events_per_user),
        "items": catalogue.size,
        "items_without_events": catalogue.size - used,
        "time_span": _span(frame["timestamp"]),
        "ties": round(tied_events(codes, frame["timestamp"].to_numpy()).size / frame.height, 6),
        "density": round(density, 6),
        "sparsity": round(1 - density, 6),
        "events_per_user": quantiles(events_per_user),
        "events_per_item": quantiles(events_per_item[events_per_item > 0]),
        "feedback": {name: distribution(frame[name]) for name in event_columns(frame) if name != "impression_id"},
        "impressions": frame["impression_id"].n_unique() if "impression_id" in frame.columns else None,
        "item_columns": {name: coverage(catalogue.frame[name]) for name in catalogue.frame.columns[1:]},
        "user_columns": {} if users is None else {name: coverage(users[name]) for name in users.columns[1:]},
        "skipped": info.skipped,
        "examples": list(info.examples),
    }


def _span(times: pl.Series) -> dict[str, Any]:
    first, last = int(times.min()), int(times.max())  # type: ignore[arg-type]
    iso = [datetime.fromtimestamp(second, UTC).isoformat().replace("+00:00", "Z") for second in (first, last)]
    return {"first": iso[0], "last": iso[1], "days": round((last - first) / 86400, 2)}


def quantiles(counts: np.ndarray) -> dict[str, float]:
    """Least, median, mean and greatest of some counts."""
    low, middle, high = np.quantile(counts, [0.0, 0.5, 1.0]).tolist()
    return {"min": low, "median": middle, "mean": round(float(counts.mean()), 3), "max": high}


def distribution(series: pl.Series) -> dict[str, Any]:
    """Counts per value where there are few; otherwise, quantiles of numbers, or the commonest texts."""
    known = series.drop_nulls()
    counts = known.value_counts(sort=True)
    if counts.height <= _MOST_VALUES:
        rows = counts.sort(series.name).rows()
        return {"values": {_label(value): count for value, count in rows}, "empty": series.null_count()}
    if series.dtype.is_numeric():
        return {**quantiles(known.to_numpy().astype(np.float64)), "empty": series.null_count()}
    return {
        "most": {_label(v): n for v, n in counts.rows()[:_MOST_VALUES]},
        "different": counts.height,
        "empty": series.null_count(),
    }


def _label(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def coverage(series: pl.Series) -> float:
    """Share of the cells that hold something."""
    there = series.is_not_null()
    if series.dtype == pl.String:
        there = there & (series != "").fill_null(False)
    return round(float(there.mean() or 0.0), 6)  # type: ignore[arg-type]
