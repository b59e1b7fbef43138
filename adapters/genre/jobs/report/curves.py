"""The page and the plot of a learning curve.

Owns: their words and colours. Ignores: how a curve is measured (`genre.jobs.tuning.curves`).

    write_curve(learning_curve(recipe, folder), folder, "genre bench recipe.yaml --sizes 100,all")

`curve.html` has the tables beside the plot, `curve.svg` the plot alone, for a page of yours; both follow the reader's light or
dark theme.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genre.files import write_text
from genre.jobs.report.figures import ACCENT, INK, REST, figure_of, intervals, render, svg_of

METHODS = {
    "adapter": ("adapter", ACCENT, "-"),
    "head_only": ("heads on the frozen base", ACCENT, "--"),
    "no_base": ("heads without the base", ACCENT, ":"),
    "best_by_id": ("best by id, tuned", INK, "-"),
    "text_neighbours": ("text neighbours, whitened", REST, "-"),
    "ease_text": ("EASE plus text", INK, "--"),
}
"""What a reader calls each method, its colour and line."""
SCOPES = {"all": "all test events", "held_out": "test events of items held out of training"}
_THEMES = (
    "<style>svg{--accent:#0f766e;--rest:#94a3b8;--soft:#475569}"
    "@media(prefers-color-scheme:dark){svg{--accent:#5ec4b6;--rest:#78818a;--soft:#a6acb2}}</style>"
)
"""The colours of `base.html`, for a plot outside it."""


def write_curve(found: Mapping[str, Any], folder: Path, command: str) -> Path:
    """Write a curve's page and plot into a folder and return the page.

    Raises:
        DiskError: The disk is full or not writable.
    """
    parts = [_part(name, scope, found["metric"]) for name, scope in found["scopes"].items()]
    title = f"GENRE: learning curve of {found['recipe']}"
    page = folder / "curve.html"
    write_text(page, render("curve.html", title=title, command=command, metric=found["metric"], seed=found["seed"], parts=parts))
    drawn = str(parts[0]["plot"])
    start = drawn.index(">") + 1
    write_text(folder / "curve.svg", drawn[:start] + _THEMES + drawn[start:])
    return page


def _part(name: str, scope: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """What the page shows of a scope."""
    shown = {"plot": plot(scope, metric), "table": table(scope), "differences": differences(scope)}
    return shown | {"title": SCOPES[name], "n": scope["points"][0]["n"], "conclusion": scope["conclusion"]}


def table(scope: Mapping[str, Any]) -> list[list[str]]:
    """A header and a row per method: its figure with its interval at each size."""
    points = scope["points"]
    rows = [["", *(point["words"] for point in points)]]
    for name, (words, _, _) in METHODS.items():
        if any(name in point["figures"] for point in points):
            rows.append([words, *(_cell(name, point) for point in points)])
    return rows


def differences(scope: Mapping[str, Any]) -> list[list[str]]:
    """A row per paired difference: its value with its interval at each size."""
    points = scope["points"]
    rows = []
    for name in dict.fromkeys(name for point in points for name in point["differences"]):
        rows.append([name.replace("_", " "), *(_shown(point["differences"].get(name), "difference", "+") for point in points)])
    return rows


def _cell(name: str, point: Mapping[str, Any]) -> str:
    shown = _shown(point["figures"].get(name), "value")
    return f"{shown} ({point['best_by_id'].replace('_', ' ')})" if name == "best_by_id" else shown


def _shown(figure: Mapping[str, Any] | None, key: str, sign: str = "") -> str:
    if figure is None or figure[key] is None:
        return "–"
    text = f"{figure[key]:{sign}.4f}"
    if figure["interval"] is None:
        return text
    low, high = figure["interval"]
    return f"{text} [{low:{sign}.4f}, {high:{sign}.4f}]"


def plot(scope: Mapping[str, Any], metric: str) -> Any:
    """Every method's figure against the training events, with 95 % intervals; of one size, side by side."""
    points: Sequence[Mapping[str, Any]] = scope["points"]
    known = {name: style for name, style in METHODS.items() if all(name in point["figures"] for point in points)}
    if len(points) == 1:
        alone = {words: points[0]["figures"][name] for name, (words, _, _) in known.items()}
        return intervals({words: (each["value"], each["interval"]) for words, each in alone.items()}, metric)
    figure, axes = figure_of(6.4, 3.6)
    events = [point["events"] for point in points]
    for place, (name, (words, colour, line)) in enumerate(known.items()):
        figures = [point["figures"][name] for point in points]
        shifted = [count * 1.02 ** (place - len(known) / 2) for count in events]
        for x, each in zip(shifted, figures, strict=True):
            axes.plot([x, x], each["interval"] or [each["value"]] * 2, color=colour, linewidth=1, alpha=0.4)
        values = [each["value"] for each in figures]
        axes.plot(shifted, values, line, marker="o", markersize=4, linewidth=1.5, color=colour, label=words)
    axes.set_xscale("log")
    axes.set_xticks(events, [f"{point['users']:,}\n{point['events']:,}" for point in points])
    axes.minorticks_off()
    axes.set_xlabel("training users, training events", fontsize=8, color=INK)
    axes.set_ylabel(metric, fontsize=8, color=INK)
    axes.grid(axis="y", color=REST, alpha=0.25)
    legend = axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for text in legend.get_texts():
        text.set_color(INK)
    return svg_of(figure)
