"""Predictions of a part's targets, so that two models can be compared target by target.

Owns: the files `predictions.parquet` and `baselines.npz` of a run folder; predictions of a version, a run folder or a baseline,
with the conditions that they were made under. Ignores: what is computed from them.

    like = from_version(registry, "like@production", log, base, part="test")["like"]
    like.under      # {"data": "9f3c…", "split": {"kind": "temporal", …}, "part": "test", "label": "rating > 3", …}

The file has the columns task: str, event: int64 (position in the log's order), user: int32, item: int32 (codes), label: float64,
impression: int64, score: float64 (a probability or a value) or classes: list of float64, rank: float64 for next-item tasks. Its
metadata hold the data's digest, the split, the part and the tasks.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from genre.data.dataset import DataKind, Dataset
from genre.data.sequences.windows import WindowRule
from genre.data.splits import PARTS, SplitConfig
from genre.engine.versions import by_split, read_adapter
from genre.errors import DataError, InputError, first_line
from genre.evaluation.metrics import metric
from genre.evaluation.targets import Targets
from genre.files import atomic
from genre.jobs.baselines import baseline_scorers
from genre.jobs.evaluate import item_texts_of, task_metrics
from genre.jobs.loading import load_base, open_data, restore
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.registry import Manifest, Registry
from genre.tasks import Task
from genre.training.prediction import Predicted, predict

FILE = "predictions.parquet"
BASELINES = "baselines.npz"
"""The baselines' scores of the same targets in a run folder: an array for each `task/baseline`."""
_KEY = "genre"
_COLUMNS: dict[str, pl.DataType] = {
    **{"task": pl.String(), "event": pl.Int64(), "user": pl.Int32(), "item": pl.Int32(), "label": pl.Float64()},
    **{"impression": pl.Int64(), "score": pl.Float64(), "rank": pl.Float64(), "classes": pl.List(pl.Float64)},
}


def write_predictions(folder: Path, found: Predicted, tasks: Iterable[Task], *, data: str, split: SplitConfig, part: str) -> None:
    """Write a model's predictions into a run folder.

    Raises:
        DiskError: The disk is full or not writable.
    """
    by_name = {task.name: task for task in tasks}
    about = {"schema": 1, "data": data, "split": split.model_dump(mode="json", exclude_none=True), "part": part}
    about["tasks"] = [task.model_dump(mode="json") for task in by_name.values()]
    parts = [_frame(by_name[name], targets, scores) for name, (targets, scores, _) in found.items() if len(targets)]
    frame = pl.concat(parts) if parts else pl.DataFrame(schema=_COLUMNS)
    with atomic(folder / FILE) as aside:
        frame.write_parquet(aside, compression="zstd", metadata={_KEY: json.dumps(about)})


def write_baselines(folder: Path, found: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write the baselines' scores (n,) or (n, C) or ranks (n,), by task and name, of a run's targets into its folder.

    Raises:
        DiskError: The disk is full or not writable.
    """
    arrays: dict[str, Any] = {f"{task}/{name}": scores for task, own in found.items() for name, scores in own.items()}
    with atomic(folder / BASELINES) as aside, aside.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def read_predictions(folder: Path) -> tuple[dict[str, tuple[Task, Targets, np.ndarray]], dict[str, Any]]:
    """Read the predictions of a run folder.

    Returns:
        By task name: the task, its targets, and its scores (n,) or (n, C), or ranks (n,); then the file's `data`, `split` and
        `part`.

    Raises:
        DataError: There is no such file, or it is damaged.
    """
    file = folder / FILE
    if not file.is_file():
        todo = "genre train leaves one; a version is named as name:version"
        raise DataError("the run has no predictions", got=folder, expected=f"a run folder with {FILE}", todo=todo)
    try:
        frame = pl.read_parquet(file)
        about = json.loads(pl.read_parquet_metadata(file)[_KEY])
        tasks = [Task.model_validate(row) for row in about["tasks"]]
        return {task.name: _of_task(task, frame.filter(pl.col("task") == task.name)) for task in tasks}, about
    except (pl.exceptions.PolarsError, OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(f"{file} is damaged", got=first_line(error), expected="what genre train writes") from None


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
    column = frame["impression"] if "impression" in frame.columns else None
    impression = None if column is None or column.null_count() else column.to_numpy()
    return task, Targets(event, user, item, label, impression=impression), scores


@dataclass(frozen=True)
class Scored:
    """One model's predictions for one task.

    Attributes:
        name: Of the model.
        task: The task.
        targets: The targets, in the log's order.
        scores: (n,) or (n, C); ranks (n,) for next-item tasks.
        under: The conditions that have to be equal for two to be compared, by name.
        window: Events that the model reads at most; None if unknown. May differ.
        rule: Its rule for longer histories.
        text: The text columns that a published version reads.
        item_texts: Gives (N, r) text vectors of a published version's items, of length one; None if its encoder has none.
    """

    name: str
    task: Task
    targets: Targets
    scores: np.ndarray
    under: Mapping[str, Any]
    window: int | None = None
    text: tuple[str, ...] = ()
    item_texts: Callable[[], np.ndarray] | None = None
    rule: WindowRule = "sliding"


def resampled_metrics(task: Task) -> list[str]:
    """A task's metrics that can be resampled by user: of a ranking only the ranks are kept, not the lists."""
    return [name for name in task.metrics if metric(name).kind not in ("list", "quality")]


def from_version(
    registry: Registry, ref: str, data: Dataset, base: Base, *, part: str, task: str | None = None
) -> dict[str, Scored]:
    """A published version's predictions on its own split of some data, by task, or of one `task` alone.

    Raises:
        ManifestError: It does not fit the base.
        InputError: It was trained on other data, so its training events may be among the targets; or it has no such task.
    """
    loaded = read_adapter(registry, ref, base)
    trained = loaded.manifest.data
    if trained is None or trained.digest != data.digest:
        what = f"{ref} was trained on other data, which may contain the targets"
        expected = f"digest {trained.digest[:12]}" if trained else "a version that records its data"
        raise InputError(what, got=f"data of digest {data.digest[:12]}", expected=expected, todo="name its data set")
    if task is not None:
        check_task(loaded.tasks, task, ref)
        loaded = replace(loaded, tasks={task: loaded.tasks[task]}, heads={task: loaded.heads[task]})
    name, found = f"{loaded.name}:{loaded.version}", dict[str, Scored]()
    for one in by_split(loaded):
        model, builder, split = restore(one, data, base)
        try:
            predicted = predict(model, builder, split, PARTS[part], max_events=one.reading.max_events)
        finally:
            model.release()
        for key, (targets, scores, _) in predicted.items():
            under = _under(model.tasks[key], data.digest, split.config, part)
            window, text = one.reading.max_events or None, tuple(one.reading.text)
            reads = window, text, item_texts_of(model), one.reading.window
            found[key] = Scored(name, model.tasks[key], targets, scores, under, *reads)
    return found


class Sources:
    """Reads the models of one comparison; the data and a base that both use are loaded once.

    Args:
        registry: A folder or URL.
        data: The data set's folder or name, or None.
        part: `valid` or `test`.
        reporter: Receives progress.
    """

    def __init__(self, registry: str, data: str | None, *, part: str, reporter: Reporter | None = None) -> None:
        self.registry = Registry(registry)
        self.data = data
        self.part = part
        self.reporter = reporter or Reporter.silent()
        self._opened: Dataset | None = None
        self._base: Base | None = None

    def open(self, who: str, kind: DataKind) -> Dataset:
        """Open the data set, on behalf of `who`.

        Raises:
            InputError: None was named.
        """
        if self.data is None:
            raise InputError(f"{who} needs the data", got="no --data", expected="--data DIR")
        if self._opened is None or self._opened.kind != kind:
            self._opened = open_data(self.data, kind)
        return self._opened

    def read(self, ref: str, base: str | None = None, task: str | None = None) -> dict[str, Scored]:
        """The predictions of a run folder (a path with a slash, or a folder here), or of a published version, by task.

        Raises:
            InputError: There is nothing of that name, it does not fit the data, or it has no such task.
        """
        if _is_run(ref):
            if self.part != "test":
                raise InputError("a run folder has predictions of its test part only", got=self.part, expected="--part test")
            found = from_run(Path(ref))
            if task is None:
                return found
            check_task(found, task, ref)
            return {task: found[task]}
        manifest = self.registry.resolve(ref).manifest
        data = self.open(f"the version {ref}", manifest.reads)
        with self.reporter.phase(f"evaluating {ref} on the {self.part} part"):
            if self._base is None or not _is_base_of(manifest, self._base):
                self._base = None  # two bases may not fit into memory
                self._base = load_base(manifest, base)
            return from_version(self.registry, ref, data, self._base, part=self.part, task=task)

    def record(self, ref: str, found: Iterable[Scored]) -> str | None:
        """Record baselines of a version's test part beside the others in the registry, and return a line about it.

        Only those that have no record there; None if nothing was recorded. Metrics over all lists are left out.

        Raises:
            IntegrityError: The record there is damaged.
            DiskError: The registry is not writable.
        """
        if self.part != "test" or _is_run(ref):
            return None
        version = self.registry.resolve(ref)
        held = self.registry.baselines(version)
        known: dict[str, Any] = {} if held is None else held.model_dump(mode="json")["baselines"]
        fresh = [each for each in found if each.name not in known.get(each.task.name, {})]
        if not fresh:
            return None
        for each in fresh:
            task = each.task.model_copy(update={"metrics": tuple(resampled_metrics(each.task))})
            known.setdefault(task.name, {})[each.name] = task_metrics(task, each.targets, each.scores, None, 0)
        self.registry.record_baselines(version, known, notes=() if held is None else held.notes)
        return f"recorded beside {version.ref}: {', '.join(f'{each.name} of {each.task.name}' for each in fresh)}"


def _is_run(ref: str) -> bool:
    return "/" in ref or (Path(ref) / FILE).is_file()


def _is_base_of(manifest: Manifest, base: Base) -> bool:
    wanted = manifest.base
    depth = wanted.depth or base.full_depth
    return (base.fingerprint, base.depth, base.quantization) == (wanted.fingerprint, depth, wanted.quantization)


def from_run(folder: Path) -> dict[str, Scored]:
    """A run's predictions of its test part, by task.

    Raises:
        DataError: The folder holds no predictions.
    """
    tasks, about = read_predictions(folder)
    config = SplitConfig.model_validate(about["split"])
    return {
        name: Scored(str(folder), task, targets, scores, _under(task, about["data"], config, about["part"]))
        for name, (task, targets, scores) in tasks.items()
    }


def baselines_of_run(folder: Path) -> dict[str, dict[str, Scored]]:
    """The predictions of a run's baselines, by task and name; none where they were not evaluated."""
    own = from_run(folder)
    found: dict[str, dict[str, Scored]] = {task: {} for task in own}
    if (folder / BASELINES).is_file():
        with np.load(folder / BASELINES) as held:
            for key in held.files:
                task, _, name = key.rpartition("/")
                found[task][name] = replace(own[task], name=name, scores=held[key])
    return found


def check_task(known: Iterable[str], task: str, whose: str) -> None:
    """Refuse a task that a model does not have.

    Raises:
        InputError: There is no such task.
    """
    names = list(known)
    if task not in names:
        raise InputError(f"{whose} has no such task", got=task, expected=", ".join(names) or "none")


def with_baseline(
    found: Mapping[str, Scored], name: str, data: Dataset, reporter: Reporter | None = None
) -> list[tuple[Scored, Scored]]:
    """Pair every task with a baseline of this name, where it has one; the reporter receives a bar.

    Raises:
        InputError: No task has one.
    """
    chosen, refused = [], dict[str, InputError]()
    label = f"baseline {name.replace('_', ' ')}"
    with (reporter or Reporter.silent()).bar(label, len(found)) as bar:

        def progress(state: str) -> None:
            bar.label = f"{label}, {state}"

        for task, scored in found.items():
            try:
                chosen.append((scored, from_baseline(name, scored, data, progress)))
            except InputError as error:
                refused[task] = error
            bar.advance(1)
    if not chosen:
        raise next(iter(refused.values()))
    return chosen


def from_baseline(name: str, beside: Scored, data: Dataset, progress: Callable[[str], None] = lambda state: None) -> Scored:
    """A baseline's predictions of another's targets; `progress` gets a line about each epoch of one that trains.

    Raises:
        InputError: There is no such baseline for the task, or the data differ.
    """
    if beside.under["data"] != data.digest:
        raise InputError(
            "the data set is not the one of the predictions", got=data.digest[:12], expected=beside.under["data"][:12]
        )
    task = beside.task
    if task.kind == "text" and not beside.text:
        got, expected = "a run folder", "a published version"
        raise InputError(f"{beside.name} does not record which columns it reads", got=got, expected=expected)
    split = data.split(SplitConfig.model_validate(beside.under["split"]))
    more: dict[str, Any] = {"window": beside.window, "rule": beside.rule, "item_texts": beside.item_texts, "progress": progress}
    known = baseline_scorers(task, data, beside.text, split, beside.targets, **more)
    if name not in known:
        expected = ", ".join(known) or f"none is known for a task with loss {task.loss}"
        raise InputError(f"task {task.name!r} has no such baseline", got=name, expected=expected)
    return Scored(name, task, beside.targets, known[name]()[0], beside.under)


def _under(task: Task, data: str, config: SplitConfig, part: str) -> dict[str, Any]:
    under: dict[str, Any] = {"data": data, "split": config.model_dump(mode="json", exclude_none=True), "part": part}
    under |= {"kind": task.kind, "label": task.label}
    return under | ({"seen items": task.seen} if task.kind == "next_item" else {})
