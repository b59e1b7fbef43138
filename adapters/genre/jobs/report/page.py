"""The page of runs: each task's figures beside its baselines', the training curve, the cost, the recipe.

Owns: reading run folders, the words of the page. Ignores: how a run came about; it needs no base and no data.

    write_page([Path("runs/like/1")], Path("runs/like/1/report.html"))
"""

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from genre.errors import InputError
from genre.evaluation.metrics.by_name import metric as find_metric
from genre.files import write_text
from genre.jobs.evaluate import plot_name
from genre.jobs.report.figures import curve, intervals, render
from genre.jobs.train import METRICS
from genre.recipe import Recipe
from genre.training.reporting import read_log

Metrics = Mapping[str, Mapping[str, Any]]
SHOWN = 6
"""Validation metrics in the table of epochs."""


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The run folders among some folders, and those inside a folder of several.

    Raises:
        InputError: A folder holds no run that was evaluated.
    """
    found: list[Path] = []
    for folder in folders:
        runs = [folder] if (folder / METRICS).is_file() else sorted(path.parent for path in folder.glob(f"*/{METRICS}"))
        if not runs:
            got = f"{folder}, a run that has not ended" if (folder / "recipe.yaml").is_file() else folder
            expected, todo = f"a run folder with {METRICS}, such as runs/like/1", "genre train writes one"
            raise InputError("no finished run is there", got=got, expected=expected, todo=todo)
        found += runs
    return found


def write_page(folders: Sequence[Path], out: Path) -> None:
    """Write the page of some run folders.

    Raises:
        InputError: A file of a run folder cannot be read.
        DiskError: The disk is full or not writable.
    """
    runs = [_read(folder) for folder in folders]
    command = f"genre report {' '.join(map(str, folders))}"
    title = f"GENRE: {', '.join(dict.fromkeys(run['name'] for run in runs))}"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, render("run.html", runs=runs, title=title, command=command))


def _read(folder: Path) -> dict[str, Any]:
    recipe = Recipe.read(folder / "recipe.yaml")
    report, environment = (_read_json(folder / name) for name in (METRICS, "environment.json"))
    validation = report["validation"]
    lines = read_log(folder)
    names = [name for name in (validation[0] if validation else {}) if name not in ("epoch", "step")][:SHOWN]
    return {
        "name": recipe.name,
        "about": _about(folder, recipe),
        "tasks": [_task(folder, name, own, report["baselines"].get(name, {})) for name, own in report["metrics"].items()],
        "curve": curve(lines) if any("loss" in line for line in lines) else None,
        "cost": _cost(report["cost"]),
        "validated": names,
        "validation": [{"epoch": line["epoch"], "cells": [_number(line.get(name)) for name in names]} for line in validation],
        "notes": [f"skipped: {number:,} {reason}" for reason, number in report["skipped"].items()],
        "recipe": (folder / "recipe.yaml").read_text(encoding="utf-8"),
        "environment": _environment(environment),
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read", got=str(error)[:200], expected="the file that genre train wrote") from None
    return dict(found)


def _about(folder: Path, recipe: Recipe) -> str:
    base, split = recipe.base, recipe.data.split
    layers = "all layers" if base.depth is None else f"the first {base.depth} layers"
    return f"{folder}: data {recipe.data.path}, split {split.kind}; base {base.name}, {layers}; adapter {recipe.adapter.kind}"


def _task(folder: Path, name: str, own: Metrics, baselines: Mapping[str, Metrics]) -> dict[str, Any]:
    first = next(iter(own))
    direction = find_metric(first).direction
    figures = {"adapter": own[first]} | {label: found[first] for label, found in baselines.items() if first in found}
    plot = folder / plot_name(name)
    rows = [
        {
            "metric": metric,
            "n": "" if entry.get("n") is None else f"{entry['n']:,}",
            "adapter": _with_interval(entry),
            "others": [_number(found.get(metric, {}).get("value")) for found in baselines.values()],
        }
        for metric, entry in own.items()
    ]
    return {
        "name": name,
        "metric": first,
        "direction": direction,
        "verdict": verdict(first, figures),
        "plot": intervals({label: (entry["value"], entry.get("interval")) for label, entry in figures.items()}, first),
        "reliability": _as_address(plot) if plot.is_file() else None,
        "baselines": list(baselines),
        "rows": rows,
    }


def verdict(name: str, figures: Metrics) -> str:
    """A sentence on a task's deciding metric: the adapter beside its best baseline, and whether the intervals lie apart."""
    own = figures["adapter"]
    said = f"{name} is {_with_interval(own)}"
    others = {label: entry for label, entry in figures.items() if label != "adapter"}
    if not others:
        return f"{said}."
    metric = find_metric(name)
    best = next(iter(others))
    for label, entry in others.items():
        if metric.better(entry["value"], others[best]["value"]):
            best = label
    other = others[best]
    better = metric.better(own["value"], other["value"])
    said += f", {'better' if better else 'not better'} than the best baseline, {best.replace('_', ' ')}: {_with_interval(other)}."
    if not (own.get("interval") and other.get("interval")):
        return said
    apart = own["interval"][0] > other["interval"][1] or own["interval"][1] < other["interval"][0]
    return f"{said} The intervals {'lie apart' if apart else 'overlap: genre compare tests the difference user by user'}."


def _as_address(path: Path) -> str:
    """An SVG file as an address that an image of the page may have."""
    return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _cost(cost: Mapping[str, Any]) -> list[tuple[str, str]]:
    seconds = float(cost["seconds"])
    rows = [("training", f"{seconds:,.0f} s"), ("tokens", f"{cost['tokens']:,}")]
    rows.append(("tokens/s", f"{cost['tokens'] / max(seconds, 1e-9):,.0f}"))
    rows.append(("peak memory", f"{cost['peak_memory_bytes'] / 2**20:,.0f} MiB"))
    return [*rows, ("LoRA parameters", f"{cost['lora_params']:,}"), ("parameters of heads", f"{cost['head_params']:,}")]


def _environment(found: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    return f"Python {found['python']}, {packages}; {found['cores']} cores, {found['processor']}, {found['device']}."


def _with_interval(entry: Mapping[str, Any]) -> str:
    interval = entry.get("interval")
    return _number(entry["value"]) + (f" [{interval[0]:.4f}, {interval[1]:.4f}]" if interval else "")


def _number(value: Any) -> str:
    return "–" if value is None else f"{value:.4f}"
