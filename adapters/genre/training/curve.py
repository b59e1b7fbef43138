"""A run's log as a picture.

Owns: `curve.svg` from `log.jsonl`: the loss by step, the validation metrics by epoch. Ignores: where the log came from.

    {"step": 40, "epoch": 0, "seconds": 12.1, "loss": 0.61, "learning_rate": 0.0009}
    {"step": 96, "epoch": 0, "seconds": 30.5, "valid.like.auc": 0.761}
"""

import json
import math
from pathlib import Path
from typing import Any

from genre.files import atomic

SHOWN = 4
"""Validation metrics in one picture, the deciding ones first."""


def draw_curve(folder: Path) -> Path | None:
    """Draw a run folder's log; the file appears whole. None where there is nothing to draw."""
    lines = read_log(folder / "log.jsonl")
    losses = [(line["step"], line["loss"]) for line in lines if _number(line.get("loss"))]
    validations = [line for line in lines if any(key.startswith("valid.") for key in line)]
    if not losses:
        return None
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*losses, strict=True), color="0.8", linewidth=0.8)
    left.plot([step for step, _ in losses], _smooth([value for _, value in losses]), linewidth=1.6)
    left.set(xlabel="step", ylabel="training loss", title=f"{len(losses):,} steps")
    names = [key for key in validations[0] if key.startswith("valid.")][:SHOWN] if validations else []
    for name in names:
        points = [(line["step"], line[name]) for line in validations if _number(line.get(name))]
        right.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name.removeprefix("valid.")) if points else None
    right.set(xlabel="step", title="validation")
    if names:
        right.legend(fontsize="small")
    path = folder / "curve.svg"
    with atomic(path) as aside:
        figure.savefig(aside, format="svg", metadata={"Date": None})
    return path


def read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that was cut while it was written is left out."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            found = json.loads(text)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            lines.append(found)
    return lines


def _smooth(values: list[float], *, keep: float = 0.9) -> list[float]:
    """The running mean with exponential weights, without the pull of its start (Kingma and Ba 2015, section 3)."""
    smoothed, total = [], 0.0
    for count, value in enumerate(values, 1):
        total = keep * total + (1 - keep) * value
        smoothed.append(total / (1 - keep**count))
    return smoothed


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
