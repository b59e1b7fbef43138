"""One model's predictions of some targets, with what they were made under.

Owns: where predictions come from: a published version, a run folder, a baseline. Ignores: what is computed from them.

    like = from_version(registry, "like@production", log, part="test")["like"]
    like.under      # {"data": "9f3c…", "split": {"kind": "temporal", …}, "part": "test", "label": "rating > 3", …}
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genre.data.dataset import DataKind, Dataset
from genre.data.splits import PARTS, SplitConfig
from genre.engine.versions import by_split, read_adapter
from genre.errors import InputError
from genre.evaluation.targets import Targets
from genre.jobs.evaluate import baselines, restore
from genre.jobs.inputs import load_base, open_data
from genre.jobs.predictions import FILE, read_predictions
from genre.modules.base.base import Base
from genre.registry import Registry
from genre.tasks import Task
from genre.training.prediction import BATCH_TOKENS, predict


@dataclass(frozen=True)
class Scored:
    """One model's predictions for one task.

    Attributes:
        name: Whose they are.
        task: The task.
        targets: What is predicted, in the log's order.
        scores: (n,) or (n, C); ranks (n,) for next-item tasks.
        under: What has to be equal for two to be compared, by name.
        window: Events that the model saw at most; None if it is not known. May differ.
        text: The text columns that a published version reads.
    """

    name: str
    task: Task
    targets: Targets
    scores: np.ndarray
    under: Mapping[str, Any]
    window: int | None = None
    text: tuple[str, ...] = ()


def from_version(registry: Registry, ref: str, data: Dataset, base: Base, *, part: str) -> dict[str, Scored]:
    """A published version's predictions on its own split of a log (or of labelled texts), by task.

    Raises:
        ManifestError: It does not fit the base.
        InputError: It was trained on other data, so that what it learnt from may be among the targets.
    """
    loaded = read_adapter(registry, ref, base)
    trained = loaded.manifest.data
    if trained is None or trained.digest != data.digest:
        what = f"{ref} was trained on other data, so it may have learnt from the targets"
        expected = f"that of digest {trained.digest[:12]}" if trained else "a version that says its data"
        raise InputError(what, got=f"data of digest {data.digest[:12]}", expected=expected, todo="name its data set")
    name, found = f"{loaded.name}:{loaded.version}", dict[str, Scored]()
    for one in by_split(loaded):
        model, builder, chosen = restore(one, data, base)
        try:
            predicted = predict(model, builder, chosen, PARTS[part], max_events=one.reading.max_events, batch_tokens=BATCH_TOKENS)
        finally:
            model.release()
        for task, (targets, scores, _) in predicted.items():
            under = _under(model.tasks[task], data.digest, chosen.config, part)
            window, text = one.reading.max_events or None, tuple(one.reading.text)
            found[task] = Scored(name, model.tasks[task], targets, scores, under, window, text)
    return found


class Sources:
    """Where the models of one comparison come from; the log and a base that both use are loaded once.

    Args:
        registry: A folder or URL.
        data: The data set's folder or name, or None.
        part: `valid` or `test`.
    """

    def __init__(self, registry: str, data: str | None, *, part: str) -> None:
        self.registry, self.data, self.part = Registry(registry), data, part
        self._opened: Dataset | None = None
        self._base: Base | None = None

    def open(self, who: str, kind: DataKind) -> Dataset:
        """The log, or the labelled texts.

        Raises:
            InputError: None was named.
        """
        if self.data is None:
            raise InputError(f"{who} needs the data", got="no --data", expected="--data DIR")
        if self._opened is None or self._opened.kind != kind:
            self._opened = open_data(self.data, kind)
        return self._opened

    def read(self, ref: str, base: str | None = None) -> dict[str, Scored]:
        """A run folder's predictions (a path with a slash, or a folder here), or a published version's, by task.

        Raises:
            InputError: There is nothing of that name, or it does not go with the data.
        """
        if "/" in ref or (Path(ref) / FILE).is_file():
            if self.part != "test":
                raise InputError("a run folder has predictions of its test part only", got=self.part, expected="--part test")
            return from_run(Path(ref))
        manifest = self.registry.resolve(ref).manifest
        wanted = manifest.base
        data = self.open(f"the version {ref}", manifest.reads)
        held = self._base
        if held is None or (held.fingerprint, held.depth, held.quantization) != (
            wanted.fingerprint, wanted.depth or held.full_depth, wanted.quantization,
        ):  # fmt: skip
            self._base = None  # two bases may not fit into memory
            self._base = load_base(manifest, base)
        assert self._base is not None
        return from_version(self.registry, ref, data, self._base, part=self.part)


def from_run(folder: Path) -> dict[str, Scored]:
    """What a run predicted of its test part, by task.

    Raises:
        DataError: The folder holds no predictions.
    """
    tasks, about = read_predictions(folder)
    config = SplitConfig.model_validate(about["split"])
    return {
        name: Scored(str(folder), task, targets, scores, _under(task, about["data"], config, about["part"]))
        for name, (task, targets, scores) in tasks.items()
    }


def only(found: Mapping[str, Scored], task: str | None, whose: str) -> dict[str, Scored]:
    """All tasks, or the one that is asked for.

    Raises:
        InputError: There is no such task.
    """
    if task is None:
        return dict(found)
    if task not in found:
        raise InputError(f"{whose} has no such task", got=task, expected=", ".join(found) or "none")
    return {task: found[task]}


def with_baseline(found: Mapping[str, Scored], name: str, data: Dataset) -> list[tuple[Scored, Scored]]:
    """Every task that has such a baseline, beside it.

    Raises:
        InputError: No task has one.
    """
    chosen, refused = [], dict[str, InputError]()
    for task, scored in found.items():
        try:
            chosen.append((scored, from_baseline(name, scored, data)))
        except InputError as error:
            refused[task] = error
    if not chosen:
        raise next(iter(refused.values()))
    return chosen


def from_baseline(name: str, beside: Scored, data: Dataset) -> Scored:
    """A baseline's predictions of another's targets.

    Raises:
        InputError: There is no such baseline for the task, or the data are others.
    """
    if beside.under["data"] != data.digest:
        raise InputError("the data are not what was predicted", got=data.digest[:12], expected=beside.under["data"][:12])
    task = beside.task
    if task.kind == "text" and not beside.text:
        got, expected = "a run folder", "a published version"
        raise InputError(f"{beside.name} does not say which columns a baseline is to read", got=got, expected=expected)
    chosen = data.split(SplitConfig.model_validate(beside.under["split"]))
    known = baselines(task, data, beside.text, chosen, beside.targets)
    if name not in known:
        expected = ", ".join(known) or f"none is known for a task with loss {task.loss}"
        raise InputError(f"task {task.name!r} has no such baseline", got=name, expected=expected)
    return Scored(name, task, beside.targets, known[name]()[0], beside.under)


def _under(task: Task, data: str, config: SplitConfig, part: str) -> dict[str, Any]:
    under: dict[str, Any] = {"data": data, "split": config.model_dump(mode="json", exclude_none=True), "part": part}
    under |= {"kind": task.kind, "label": task.label}
    return under | ({"seen items": task.seen} if task.kind == "next_item" else {})
