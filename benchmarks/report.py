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


def bars(values: dict[str, tuple[float, list[float] | None]], label: str) -> Any:
    """Horizontal bars with 95 % intervals; the first one is the adapter's."""
    figure, axes = _figure(5.2, 0.42 * len(values) + 0.7)
    names = [name.replace("_", " ") for name in values][::-1]
    numbers = [value for value, _ in values.values()][::-1]
    colours = [ACCENT if name == "adapter" else REST for name in names]
    axes.barh(names, numbers, color=colours, height=0.62)
    for place, (value, interval) in enumerate(list(values.values())[::-1]):
        if interval:
            axes.plot(interval, [place, place], color=INK, linewidth=1.4)
        axes.text((interval or [0, value])[1], place, f"  {value:.4f}", va="center", fontsize=8, color=INK)
    lows = [interval[0] if interval else value for value, interval in values.values()]
    highs = [interval[1] if interval else value for value, interval in values.values()]
    spread = max(highs) - min(lows)
    axes.set_xlim(max(0.0, min(lows) - 0.35 * spread), max(highs) + 0.3 * spread)
    axes.set_xlabel(label, fontsize=8, color=INK)
    return _svg(figure)


def curve(lines: list[dict[str, Any]]) -> Any:
    """Training loss by step."""
    figure, axes = _figure(5.2, 1.9)
    points = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    axes.plot([step for step, _ in points], [loss for _, loss in points], color=ACCENT, linewidth=1.2)
    axes.set_xlabel("step", fontsize=8, color=INK)
    axes.set_ylabel("training loss", fontsize=8, color=INK)
    return _svg(figure)


def _figure(width: float, height: float) -> Any:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height))
    axes.tick_params(labelsize=8, colors=INK, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(REST)
    return figure, axes


def _svg(figure: Any) -> Any:
    from markupsafe import Markup
    from matplotlib import pyplot

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True)
    pyplot.close(figure)
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])
