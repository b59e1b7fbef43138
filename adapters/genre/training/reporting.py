"""The log of a run, its picture, and the trackers beside it.

Owns: `log.jsonl`, `curve.svg` (the loss by step, the validation metrics by epoch), TensorBoard, MLflow and others through
accelerate. Ignores: what is trained.

    {"step": 40, "epoch": 0, "seconds": 12.1, "loss": 0.61, "learning_rate": 0.0009}
    {"step": 96, "epoch": 0, "seconds": 30.5, "valid.like.auc": 0.761}

    tensorboard   RUN/tracker/                  tensorboard --logdir runs
    mlflow        MLFLOW_TRACKING_URI           by default mlflow.db in the folder of the call; "@" in a name becomes "_at_"
    wandb         RUN/wandb/, and the service   WANDB_MODE=offline keeps it on this machine
    comet_ml      the service                   COMET_API_KEY
    aim           RUN/.aim/                     aim up --repo RUN
    none
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from genre.errors import JobError, RecipeError, first_line
from genre.files import atomic
from genre.recipe import Recipe

SHOWN = 4
"""Validation metrics in one picture, the deciding ones first."""


def append_log(folder: Path, line: dict[str, Any]) -> None:
    """Append a line to a run folder's log."""
    with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run folder's log; one that was cut while it was written is left out."""
    file = folder / "log.jsonl"
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            found = json.loads(text)
        except ValueError:
            continue
        if isinstance(found, dict) and isinstance(found.get("step"), int):
            lines.append(found)
    return lines


def trim_log(folder: Path, step: int, epoch: int) -> None:
    """Remove the steps after a checkpoint, and the validations from its epoch on: they are about to be written again."""
    if not (folder / "log.jsonl").exists():
        return
    old = [line for line in read_log(folder) if line["step"] <= step and not (_validates(line) and line["epoch"] >= epoch)]
    with atomic(folder / "log.jsonl") as aside:
        aside.write_text("".join(json.dumps(line) + "\n" for line in old), encoding="utf-8")


def draw_curve(folder: Path) -> Path | None:
    """Draw a run folder's log; the file appears whole. None where there is nothing to draw."""
    lines = read_log(folder)
    losses = [(line["step"], line["loss"]) for line in lines if _is_number(line.get("loss"))]
    validations = [line for line in lines if _validates(line)]
    if not losses:
        return None
    path = folder / "curve.svg"
    with drawing(path, width=9, height=3.2) as figure:
        _draw_log(figure, losses, validations)
    return path


@contextmanager
def drawing(path: Path, *, width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure of so many inches to draw on, written to an SVG file that appears whole when the block ends well."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    yield figure
    with atomic(path) as aside:
        figure.savefig(aside, format="svg", metadata={"Date": None})


def _draw_log(figure: Any, losses: list[tuple[int, float]], validations: list[dict[str, Any]]) -> None:
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*losses, strict=True), color="0.8", linewidth=0.8)
    left.plot([step for step, _ in losses], smooth([value for _, value in losses]), linewidth=1.6)
    left.set(xlabel="step", ylabel="training loss", title=f"{len(losses):,} steps")
    names = [key for key in validations[0] if key.startswith("valid.")][:SHOWN] if validations else []
    for name in names:
        points = [(line["step"], line[name]) for line in validations if _is_number(line.get(name))]
        if points:
            right.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name.removeprefix("valid."))
    right.set(xlabel="step", title="validation")
    if names:
        right.legend(loc="best", fontsize="small")  # without loc matplotlib warns on a slow machine


_PACKAGES = {"mlflow": "mlflow-skinny sqlalchemy alembic"}
"""What to install for a tracker, where that is not of its name."""
_HINTS = {
    "wandb": "log in, or keep it on this machine with WANDB_MODE=offline",
    "comet_ml": "set COMET_API_KEY",
    "mlflow": "look at MLFLOW_TRACKING_URI; a folder needs MLFLOW_ALLOW_FILE_STORE=true, sqlite:///FILE does not",
}
_NOT_MLFLOWS = re.compile(r"[^\w\-. :/]", re.ASCII)


def check_tracker(name: str) -> str | None:
    """Check that a recipe's tracker is installed; accelerate's name for it, None for `none`.

    Raises:
        RecipeError: Its package is not installed.
    """
    if name == "none":
        return None
    if find_spec(name) is None:
        what = f"train.tracker {name} needs a package that is not installed"
        todo = "install it, or set train.tracker to tensorboard or none"
        raise RecipeError(what, got=f"no {name}", expected=f"pip install {_PACKAGES.get(name, name)}", todo=todo)
    return name


def start_tracker(accelerator: Any, recipe: Recipe, folder: Path) -> None:
    """Start the accelerator's tracker, its files in the run folder, the flattened recipe as its configuration.

    Raises:
        JobError: It cannot start, for want of a login say.
    """
    name = recipe.train.tracker
    if name == "none":
        return
    project, run = "tracker" if name == "tensorboard" else "genre", f"{recipe.name}/{folder.name}"
    options = {"wandb": {"name": run, "dir": str(folder), "settings": {"silent": True}}, "mlflow": {"run_name": run}}
    try:
        accelerator.init_trackers(project, config=flatten_values(recipe.model_dump(mode="json")), init_kwargs=options)
    except Exception as error:  # each tracker has its own tree
        todo = _HINTS.get(name, "set train.tracker: none")
        raise JobError(f"the tracker {name} cannot start", got=first_line(error), todo=todo) from None


def for_tracker(name: str, values: dict[str, float]) -> dict[str, float]:
    """Values of a log line under names that a tracker takes."""
    return {mlflow_name(key): value for key, value in values.items()} if name == "mlflow" else values


def mlflow_name(name: str) -> str:
    """A metric's name for MLflow, which takes no `@`: `next_item.ndcg_at_10`."""
    return _NOT_MLFLOWS.sub("_", name.replace("@", "_at_"))


def flatten_values(value: Any, path: str = "") -> dict[str, Any]:
    """Nested values as `a.b`, as strings and numbers: every tracker takes these."""
    if isinstance(value, list) and any(isinstance(each, dict) for each in value):
        value = {str(index): each for index, each in enumerate(value)}
    if isinstance(value, dict):
        return {key: inner for name, each in value.items() for key, inner in flatten_values(each, f"{path}.{name}").items()}
    return {path.lstrip("."): value if isinstance(value, bool | int | float | str) else str(value)}


def smooth(values: Sequence[float], *, keep: float = 0.9) -> list[float]:
    """The running mean with exponential weights, without the pull of its start (Kingma and Ba 2015, section 3)."""
    smoothed, total = [], 0.0
    for count, value in enumerate(values, 1):
        total = keep * total + (1 - keep) * value
        smoothed.append(total / (1 - keep**count))
    return smoothed


def _validates(line: dict[str, Any]) -> bool:
    return any(key.startswith("valid.") for key in line)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
