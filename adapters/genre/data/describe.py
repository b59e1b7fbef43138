"""Columns in figures, for `genre data describe`.

Owns: quantiles, distributions, coverage and time spans. Ignores their display.

    distribution(log.frame["rating"])     ->  {"values": {"1": 6110, "2": 11370, …}, "empty": 0}
"""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

_MOST_VALUES = 12


def span(times: pl.Series) -> dict[str, Any]:
    """Return the first and last of some seconds as ISO times, and the days between."""
    first, last = int(times.min()), int(times.max())  # type: ignore[arg-type]
    iso = [datetime.fromtimestamp(second, UTC).isoformat().replace("+00:00", "Z") for second in (first, last)]
    return {"first": iso[0], "last": iso[1], "days": round((last - first) / 86400, 2)}


def quantiles(counts: np.ndarray) -> dict[str, float]:
    """Return the least, median, mean and greatest of some counts."""
    low, middle, high = np.quantile(counts, [0.0, 0.5, 1.0]).tolist()
    return {"min": low, "median": middle, "mean": round(float(counts.mean()), 3), "max": high}


def distribution(series: pl.Series) -> dict[str, Any]:
    """Count the values of a column; where there are many, return quantiles of numbers, or the commonest texts."""
    filled = series.drop_nulls()
    counts = filled.alias("value").value_counts(sort=True)
    if counts.height <= _MOST_VALUES:
        rows = counts.sort("value").rows()
        return {"values": {_label(value): count for value, count in rows}, "empty": series.null_count()}
    if series.dtype.is_numeric():
        return {**quantiles(filled.to_numpy().astype(np.float64)), "empty": series.null_count()}
    most = {_label(value): count for value, count in counts.rows()[:_MOST_VALUES]}
    return {"most": most, "different": counts.height, "empty": series.null_count()}


def _label(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def coverage(series: pl.Series) -> float:
    """Return the share of filled cells."""
    there = series.is_not_null()
    if series.dtype == pl.String:
        there = there & (series != "").fill_null(False)
    return round(float(there.mean() or 0.0), 6)  # type: ignore[arg-type]
