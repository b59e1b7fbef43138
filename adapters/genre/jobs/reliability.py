"""Reliability plots: what a task's probabilities say beside what happened.

Owns: the bins of every log-loss task as plain values, and their picture.
Ignores: the binning (`genre.evaluation.metrics.calibration`).

    {"click": [{"n": 1200, "score": 0.0021, "share": 0.0025, "interval": [0.0008, 0.0073]}, …]}
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from genre.evaluation.metrics.calibration import reliability
from genre.files import atomic
from genre.tasks import Task
from genre.training.prediction import Predicted

Bins = Sequence[Mapping[str, Any]]


def reliability_of(found: Predicted, tasks: Iterable[Task]) -> dict[str, list[dict[str, Any]]]:
    """The bins of every task with loss log_loss that has targets, as JSON holds them."""
    binary = {task.name for task in tasks if task.is_binary and task.kind != "next_item"}
    return {
        name: [asdict(each) | {"interval": list(each.interval)} for each in reliability(targets.label, scores)]
        for name, (targets, scores, _) in found.items()
        if name in binary and targets.label is not None and len(targets)
    }


def draw_reliability(found: Mapping[str, Any], beside: Path) -> dict[str, Path]:
    """Draw what `evaluate` found, for each task that has bins: `out/report.json` → `out/report.reliability.TASK.svg`."""
    return {
        name: draw_bins(figures["reliability"], beside.with_name(f"{beside.stem}.{plot_name(name)}"), f"{name}, {found['part']}")
        for name, figures in found["tasks"].items()
        if "reliability" in figures
    }


def plot_name(task: str) -> str:
    """What a task's plot is called in a run folder."""
    return f"reliability.{task}.svg"


def draw_bins(bins: Bins, path: Path, title: str) -> Path:
    """Draw bins as points with their intervals beside the diagonal of perfect calibration; the file appears whole."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2, 3.8), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.subplots()
    end = 1.05 * max(max(each["score"], each["interval"][1]) for each in bins)
    axes.plot([0, end], [0, end], color="0.6", linewidth=0.8, linestyle="--", label="perfect")
    score, share = ([each[key] for each in bins] for key in ("score", "share"))
    reach = [
        [each["share"] - each["interval"][0] for each in bins],
        [each["interval"][1] - each["share"] for each in bins],
    ]
    axes.errorbar(score, share, yerr=reach, fmt="o-", markersize=4, linewidth=1, elinewidth=0.8, label="bins of equal mass, 95 %")
    axes.set(xlim=(0, end), ylim=(0, end), xlabel="mean predicted probability", ylabel="share of label 1", title=title)
    axes.legend(fontsize="small", loc="upper left")
    with atomic(path) as aside:
        figure.savefig(aside, format="svg", metadata={"Date": None})
    return path
