"""Plots of a study: its history, the learning curves, a slice per key, the importance of keys.

Owns: four PNG files. Ignores: Optuna; a trial here is a row of `trials.jsonl`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from genre.files import atomic, disk_errors
from genre.jobs.tuning.space import Parameter

Row = Mapping[str, Any]
_COLOURS = {"complete": "#1f6fb4", "pruned": "#b8b8b8", "failed": "#c23b22"}


def draw(
    folder: Path,
    rows: Sequence[Row],
    parameters: Sequence[Parameter],
    objective: str,
    shares: Mapping[str, float],
    *,
    up: bool,
) -> list[Path]:
    """Draw the plots that have something to show.

    Args:
        folder: Gets the files.
        rows: The finished trials.
        parameters: The keys that varied.
        objective: The metric's name.
        shares: The importance of each key; empty for no such plot.
        up: Higher is better.

    Returns:
        The files that were written; those of an earlier call that no longer have anything to show are removed.
    """
    complete = [row for row in rows if row["state"] == "complete"]
    wanted: dict[str, Callable[[Any], None] | None] = {
        "history": (lambda figure: _history(figure, rows, complete, objective, up)) if complete else None,
        "curves": (lambda figure: _curves(figure, rows, objective)) if any(row["by_epoch"] for row in rows) else None,
        "slices": (lambda figure: _slices(figure, rows, parameters, objective)) if complete else None,
        "importance": (lambda figure: _importance(figure, shares)) if shares else None,
    }
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, paint in wanted.items():
        file = folder / f"{name}.png"
        if paint is None:
            file.unlink(missing_ok=True)
        else:
            _save(file, paint, columns=min(len(parameters), 3) if name == "slices" else 1, count=len(parameters))
            written.append(file)
    return written


def _save(file: Path, paint: Callable[[Any], None], *, columns: int, count: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = -(-count // columns) if columns > 1 else 1
    figure = Figure(figsize=(max(7.0, 3.6 * columns), 3.0 * lines + 0.8), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    paint(figure)
    with atomic(file) as aside:
        canvas.print_figure(aside, format="png")


def _history(figure: Any, rows: Sequence[Row], complete: Sequence[Row], objective: str, up: bool) -> None:
    axes = figure.add_subplot()
    best, steps = None, []
    for row in complete:
        better = best is None or (row["value"] > best if up else row["value"] < best)
        best = row["value"] if better else best
        steps.append(best)
    axes.step([row["trial"] for row in complete], steps, where="post", color="#e08a1e", label="best so far")
    for state, colour in _COLOURS.items():
        shown = [(row["trial"], _last(row)) for row in rows if row["state"] == state and _last(row) is not None]
        if shown:
            axes.scatter(*zip(*shown, strict=True), s=22, color=colour, label=state, zorder=3)
    for row in rows:
        if row["state"] == "failed" and _last(row) is None:
            axes.axvline(row["trial"], color=_COLOURS["failed"], alpha=0.4, linewidth=1)
    _label(axes, "trial", f"{objective}, validation")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="best", fontsize=8)


def _curves(figure: Any, rows: Sequence[Row], objective: str) -> None:
    axes = figure.add_subplot()
    for row in rows:
        epochs = [int(epoch) for epoch in row["by_epoch"]]
        axes.plot(epochs, list(row["by_epoch"].values()), color=_COLOURS[row["state"]], alpha=0.7, marker=".", linewidth=1)
    _label(axes, "epoch", f"{objective}, validation")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _slices(figure: Any, rows: Sequence[Row], parameters: Sequence[Parameter], objective: str) -> None:
    columns = min(len(parameters), 3)
    grid = figure.subplots(-(-len(parameters) // columns), columns, squeeze=False, sharey=True)
    for index, parameter in enumerate(parameters):
        axes = grid[index // columns][index % columns]
        choices = parameter.values
        for state in ("pruned", "complete"):
            shown = [row for row in rows if row["state"] == state and _last(row) is not None]
            values = [row["parameters"][parameter.key] for row in shown]
            at = [choices.index(value) for value in values] if choices else values
            axes.scatter(at, [_last(row) for row in shown], s=20, color=_COLOURS[state], label=state)
        if choices:
            names = [value if isinstance(value, str) else json.dumps(value) for value in choices]
            axes.set_xticks(range(len(names)), names, fontsize=8)
        elif parameter.log:
            axes.set_xscale("log")
        _label(axes, parameter.key, f"{objective}, validation" if index % columns == 0 else "", grid="y" if choices else "both")
    for index in range(len(parameters), grid.size):
        grid[index // columns][index % columns].set_axis_off()


def _importance(figure: Any, shares: Mapping[str, float]) -> None:
    axes = figure.add_subplot()
    keys = list(shares)[::-1]
    axes.barh(keys, [shares[key] for key in keys], color=_COLOURS["complete"])
    _label(axes, "share in being among the better trials (PED-ANOVA)", "", grid="x")


def _label(axes: Any, x: str, y: str, *, grid: str = "both") -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis=grid, alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _last(row: Row) -> float | None:
    """The value to plot for a trial: its own, else the last one before it ended."""
    if row["value"] is not None:
        return float(row["value"])
    return float(list(row["by_epoch"].values())[-1]) if row["by_epoch"] else None
