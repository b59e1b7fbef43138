"""The figures of evaluations and runs as tables: for notebooks as HTML, as polars frames for everything else.

Owns: a row per task, scorer and metric. Ignores: how a figure is computed.

    evaluate(registry, "like@production", log).frame        # task, targets, scorer, metric, value, low, high, n
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from genre import display

PARTS = ("cold", "untied")
"""The further entries of a task that have figures of their own, on some targets only."""

_TYPES = {name: pl.String for name in ("task", "targets", "scorer", "metric")} | {
    "value": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "n": pl.Int64,
}


def frame_of(tasks: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """A row for each task, targets (`all`, `cold`, `untied`), scorer (`adapter` or a baseline) and metric.

    Args:
        tasks: For each task `{"adapter": {metric: {value, interval, n}}, "baselines": {name: {metric: …}}}`, with `cold` and
            `untied` of the same form where there are such.
    """
    rows = []
    for task, entry in tasks.items():
        for targets, figures in [("all", entry), *((part, entry[part]) for part in PARTS if part in entry)]:
            scorers = {"adapter": figures["adapter"], **figures["baselines"]}
            rows += [(task, targets, *row[1:]) for name, own in scorers.items() for row in display.figure_rows(task, name, own)]
    return pl.DataFrame(rows, schema=_TYPES, orient="row")


def html_of(title: str, tasks: Mapping[str, Mapping[str, Any]], note: str = "") -> str:
    """The same rows as HTML."""
    frame = frame_of(tasks)
    return display.table(title, frame.columns, frame.rows(), note=note)


class Evaluation(dict[str, Any]):
    """The outcome of `evaluate`: a dict, ready for JSON, that notebooks show as a table."""

    def __repr__(self) -> str:
        own = [
            f"{task}.{metric} {found['value']:.4f}"
            for task, entry in self["tasks"].items()
            for metric, found in entry["adapter"].items()
        ]
        return f"Evaluation({self['ref']} on the {self['part']} part: {', '.join(own)})"

    def _repr_html_(self) -> str:
        note = " ".join(f"{task}: {line}." for task, line in self["protocol"].items())
        return html_of(f"{self['ref']} on the {self['part']} part", self["tasks"], note)

    @property
    def frame(self) -> pl.DataFrame:
        """A row for each task, targets (all, cold, untied), scorer (adapter or a baseline) and metric: value, low, high, n."""
        return frame_of(self["tasks"])
