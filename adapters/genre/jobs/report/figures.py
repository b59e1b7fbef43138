"""Plots as inline SVG, and pages from templates.

Owns: the plots that several pages share, their colours, `base.html`, which every page extends. Ignores: which figures a page
shows.

    render("run.html", runs=[...])      # "<!doctype html>…"

Plots are drawn in three colours, which become variables of the page's style, so that they follow its light or dark theme.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genre.training.reporting import smooth

TEMPLATES = Path(__file__).parent
ACCENT, REST, INK = "#0f766e", "#94a3b8", "#475569"
_VARIABLES = {ACCENT: "var(--accent)", REST: "var(--rest)", INK: "var(--soft)"}

Figures = dict[str, tuple[float, Sequence[float] | None]]
"""By name a value and its interval, if it has one."""


def render(template: str, folder: Path = TEMPLATES, **values: Any) -> str:
    """A self-contained HTML page from a template in a folder, which may extend `base.html` of this one."""
    import jinja2

    loader = jinja2.FileSystemLoader([folder, TEMPLATES])
    templates = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return templates.get_template(template).render(**values)


def intervals(values: Figures, label: str) -> Any:
    """Points with 95 % intervals; the one named `adapter` stands out."""
    figure, axes = figure_of(5.2, 0.4 * len(values) + 0.7)
    for place, (name, (value, interval)) in enumerate(reversed(values.items())):
        colour = ACCENT if name == "adapter" else INK
        low, high = interval or [value, value]
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round", alpha=0.45)
        axes.plot(value, place, "o", color=colour, markersize=6)
        axes.annotate(f"{value:.4f}", (high, place), (6, 0), textcoords="offset points", va="center", fontsize=8, color=colour)
    axes.set_yticks(range(len(values)), [name.replace("_", " ") for name in reversed(values)])
    axes.set_ylim(-0.6, len(values) - 0.4)
    axes.margins(x=0.12)
    axes.grid(axis="x", color=REST, alpha=0.25)
    axes.set_xlabel(label, fontsize=8, color=INK)
    return svg_of(figure)


def curve(lines: Sequence[Mapping[str, Any]]) -> Any:
    """Training loss by step, and its running mean."""
    figure, axes = figure_of(5.2, 1.9)
    losses = [line["loss"] for line in lines if line.get("loss") is not None]
    axes.plot(losses, color=REST, linewidth=0.8, alpha=0.6)
    axes.plot(smooth(losses), color=ACCENT, linewidth=1.6)
    axes.set_xlabel("step", fontsize=8, color=INK)
    axes.set_ylabel("training loss", fontsize=8, color=INK)
    return svg_of(figure)


def figure_of(width: float, height: float) -> Any:
    """Create a plain figure of the given size in inches, with its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.tick_params(labelsize=8, colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(REST)
    return figure, axes


def svg_of(figure: Any) -> Any:
    """A figure as inline SVG, its colours those of the page."""
    from markupsafe import Markup

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return Markup(text)
