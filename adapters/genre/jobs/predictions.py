"""What a run predicted, kept in its folder, so that two runs can be compared target by target.

Owns: the file `predictions.parquet`. Ignores: how predictions came about, what is computed from them.

    task: str, event: int64 (place in the log's order), user: int32, item: int32 (codes), label: float64, impression: int64,
    score: float64 (a probability or a value) or classes: list of float64; rank: float64 for next-item tasks

Its metadata say what they were made on: the data's digest, the split, the part, the tasks.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from genre.data.splits import SplitConfig
from genre.errors import DataError
from genre.evaluation.targets import Targets
from genre.files import atomic
from genre.tasks import Task
from genre.training.prediction import Predicted

FILE = "predictions.parquet"
_KEY = "genre"
_COLUMNS: dict[str, pl.DataType] = {
    "task": pl.String(), "event": pl.Int64(), "user": pl.Int32(), "item": pl.Int32(), "label": pl.Float64(),
    "impression": pl.Int64(), "score": pl.Float64(), "rank": pl.Float64(), "classes": pl.List(pl.Float64),
}  # fmt: skip


def write_predictions(folder: Path, found: Predicted, tasks: Iterable[Task], *, data: str, split: SplitConfig, part: str) -> None:
    """Write what a model predicted beside a run's other files.

    Raises:
        DiskError: The disk is full or not writable.
    """
    by_name = {task.name: task for task in tasks}
    about = {
        "schema": 1, "data": data, "split": split.model_dump(mode="json", exclude_none=True), "part": part,
        "tasks": [task.model_dump(mode="json") for task in by_name.values()],
    }  # fmt: skip
    parts = [_frame(by_name[name], targets, scores) for name, (targets, scores, _) in found.items() if len(targets)]
    frame = pl.concat(parts) if parts else pl.DataFrame(schema=_COLUMNS)
    with atomic(folder / FILE) as aside:
        frame.write_parquet(aside, compression="zstd", metadata={_KEY: json.dumps(about)})


def read_predictions(folder: Path) -> tuple[dict[str, tuple[Task, Targets, np.ndarray]], dict[str, Any]]:
    """Read them again.

    Returns:
        For each task itself, its targets, and its scores (n,) or (n, C), or ranks (n,); then what they were made on: `data`,
        `split`, `part`.

    Raises:
        DataError: There are none, or the file is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        raise DataError(
            "a run without predictions", got=folder, expected=f"a run folder with {FILE}",
            todo="genre train leaves one; a version is named as name:version",
        )  # fmt: skip
    try:
        frame = pl.read_parquet(file)
        about = json.loads(pl.read_parquet_metadata(file)[_KEY])
        tasks = [Task.model_validate(row) for row in about["tasks"]]
        return {task.name: _of_task(task, frame.filter(pl.col("task") == task.name)) for task in tasks}, about
    except (pl.exceptions.PolarsError, OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{file} is damaged", got=str(error).splitlines()[0][:200], expected="what genre train writes") from None


def _frame(task: Task, targets: Targets, scores: np.ndarray) -> pl.DataFrame:
    kind = "rank" if task.kind == "next_item" else "score" if scores.ndim == 1 else "classes"
    values: dict[str, Any] = {name: [None] * len(targets) for name in _COLUMNS}
    values |= {"task": [task.name] * len(targets), "event": targets.event, "user": targets.user, "item": targets.item}
    values |= {"label": targets.label, "impression": targets.impression, kind: scores.astype(np.float64)}
    return pl.DataFrame(values, schema_overrides=_COLUMNS)


def _of_task(task: Task, frame: pl.DataFrame) -> tuple[Task, Targets, np.ndarray]:
    label = None if task.kind == "next_item" else frame["label"].to_numpy()
    event, user, item = (frame[name].to_numpy() for name in ("event", "user", "item"))
    if task.kind == "next_item":
        scores = frame["rank"].to_numpy()
    elif frame["classes"].null_count() < len(frame):
        scores = np.array(frame["classes"].to_list(), dtype=np.float64)
    else:
        scores = frame["score"].to_numpy()
    shown = frame["impression"] if "impression" in frame.columns else None
    impression = None if shown is None or shown.null_count() else shown.to_numpy()
    return task, Targets(event, user, item, label, impression=impression), scores
