"""Plots as inline SVG and pages from templates, for the demo and the benchmarks."""

import io
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"
ACCENT, REST, INK = "#0f766e", "#94a3b8", "#475569"


def render(template: str, **values: Any) -> str:
    """A self-contained HTML page."""
    import jinja2

    loader = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined)
    return loader.get_template(template).render(**values)


def intervals(values: dict[str, tuple[float, list[float] | None]], label: str) -> Any:
    """Points with 95 % intervals; the first one is the adapter's."""
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


def curve(lines: list[dict[str, Any]], window: int = 20) -> Any:
    """Training loss by step, and its running mean."""
    figure, axes = figure_of(5.2, 1.9)
    losses = [line["loss"] for line in lines if "loss" in line]
    means = [sum(losses[max(0, i - window) : i + 1]) / len(losses[max(0, i - window) : i + 1]) for i in range(len(losses))]
    axes.plot(losses, color=REST, linewidth=0.8, alpha=0.6)
    axes.plot(means, color=ACCENT, linewidth=1.6)
    axes.set_xlabel(f"step (line: mean of {window})", fontsize=8, color=INK)
    axes.set_ylabel("training loss", fontsize=8, color=INK)
    return svg_of(figure)


def figure_of(width: float, height: float) -> Any:
    """Create a plain figure of the given size in inches, with its axes."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height))
    axes.tick_params(labelsize=8, colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(REST)
    return figure, axes


def svg_of(figure: Any) -> Any:
    """A figure as inline SVG."""
    from markupsafe import Markup
    from matplotlib import pyplot

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True)
    pyplot.close(figure)
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])
