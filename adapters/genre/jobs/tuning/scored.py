"""One model's predictions of some targets, with what they were made under.

Owns: where predictions come from: a published version, a run folder, a baseline. Ignores: what is computed from them.

    like = from_version(registry, "like@production", log, part="test")["like"]
    like.under      # {"data": "9f3c…", "split": {"kind": "temporal", …}, "part": "test", "label": "rating > 3", …}
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genre.data.interactions import Interactions
from genre.data.sequences.rows import EventColumns
from genre.data.sequences.text_rows import TextRows
from genre.data.splits import PARTS, SplitConfig, split
from genre.data.texts.dataset import Texts
from genre.engine.versions import by_split, read_adapter
from genre.errors import InputError
from genre.evaluation.baselines import feedback_baselines, ranking_baselines
from genre.evaluation.ranking import rank_in_blocks
from genre.evaluation.targets import Targets
from genre.evaluation.text_baselines import text_baselines
from genre.jobs.evaluate import restore
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
        rows: For versions of labelled texts, what they read.
    """

    name: str
    task: Task
    targets: Targets
    scores: np.ndarray
    under: Mapping[str, Any]
    window: int | None = None
    rows: TextRows | None = None


def from_version(registry: Registry, ref: str, log: Interactions | Texts, base: Base, *, part: str) -> dict[str, Scored]:
    """A published version's predictions on its own split of a log (or of labelled texts), by task.

    Raises:
        ManifestError: It does not fit the base.
        InputError: It was trained on other data, so that what it learnt from may be among the targets.
    """
    loaded = read_adapter(registry, ref, base)
    data = loaded.manifest.data
    if data is None or data.digest != log.digest:
        raise InputError(
            f"{ref} was trained on other data, so it may have learnt from the targets", got=f"data of digest {log.digest[:12]}",
            expected=f"that of digest {data.digest[:12]}" if data else "a version that says its data", todo="name its data set",
        )  # fmt: skip
    name, found = f"{loaded.name}:{loaded.version}", dict[str, Scored]()
    for one in by_split(loaded):
        model, builder, chosen = restore(one, log, base)
        try:
            predicted = predict(model, builder, chosen, PARTS[part], max_events=one.reading.max_events, batch_tokens=BATCH_TOKENS)
        finally:
            model.release()
        for task, (targets, scores, _) in predicted.items():
            under = _under(model.tasks[task], log.digest, chosen.config, part)
            read = (None, builder) if isinstance(builder, TextRows) else (one.reading.max_events, None)
            found[task] = Scored(name, model.tasks[task], targets, scores, under, *read)
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
        self._opened: Interactions | Texts | None = None
        self._base: Base | None = None

    def open(self, who: str, *, texts: bool) -> Interactions | Texts:
        """The log, or the labelled texts.

        Raises:
            InputError: None was named.
        """
        if self.data is None:
            raise InputError(f"{who} needs the data", got="no --data", expected="--data DIR")
        if self._opened is None or isinstance(self._opened, Texts) != texts:
            self._opened = open_data(self.data, texts=texts)
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
        wanted, texts = manifest.base, any(task.get("kind") == "text" for task in manifest.tasks)
        log = self.open(f"the version {ref}", texts=texts)
        held = self._base
        if held is None or (held.fingerprint, held.depth, held.quantization) != (
            wanted.fingerprint, wanted.depth or held.full_depth, wanted.quantization,
        ):  # fmt: skip
            self._base = None  # two bases may not fit into memory
            self._base = load_base(manifest, base)
        assert self._base is not None
        return from_version(self.registry, ref, log, self._base, part=self.part)


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


def with_baseline(found: Mapping[str, Scored], name: str, log: Interactions | Texts) -> list[tuple[Scored, Scored]]:
    """Every task that has such a baseline, beside it.

    Raises:
        InputError: No task has one.
    """
    chosen, refused = [], dict[str, InputError]()
    for task, scored in found.items():
        try:
            chosen.append((scored, from_baseline(name, scored, log)))
        except InputError as error:
            refused[task] = error
    if not chosen:
        raise next(iter(refused.values()))
    return chosen


def from_baseline(name: str, beside: Scored, log: Interactions | Texts) -> Scored:
    """A baseline's predictions of another's targets.

    Raises:
        InputError: There is no such baseline for the task, or the data are others.
    """
    if beside.under["data"] != log.digest:
        raise InputError("the data are not what was predicted", got=log.digest[:12], expected=beside.under["data"][:12])
    task = beside.task
    known = _text_baselines(beside, log) if isinstance(log, Texts) else _baselines(beside, log)
    if name not in known:
        expected = ", ".join(known) or f"none is known for a task with loss {task.loss}"
        raise InputError(f"task {task.name!r} has no such baseline", got=name, expected=expected)
    return Scored(name, task, beside.targets, known[name](), beside.under)


def _baselines(beside: Scored, log: Interactions) -> dict[str, Callable[[], np.ndarray]]:
    task, targets = beside.task, beside.targets
    chosen = split(log, SplitConfig.model_validate(beside.under["split"]))
    if task.kind == "next_item":
        blocks = ranking_baselines(log, chosen, targets)
        return {
            name: lambda make=make: rank_in_blocks(log, chosen, targets, make(), seen=task.seen).ranks  # type: ignore[misc]
            for name, make in blocks.items()
        }
    if task.loss == "cross_entropy":
        return {}
    scores = feedback_baselines(log, chosen, task.labels(EventColumns(log)), targets, binary=task.is_binary)
    return {name: lambda value=value: value for name, value in scores.items()}  # type: ignore[misc]


def _text_baselines(beside: Scored, texts: Texts) -> dict[str, Callable[[], np.ndarray]]:
    if beside.rows is None:
        raise InputError(
            f"{beside.name} does not say which columns a baseline is to read", got="a run folder", expected="a published version"
        )
    chosen = texts.split(SplitConfig.model_validate(beside.under["split"]))
    scores = text_baselines(beside.rows, chosen, beside.task, beside.targets)
    return {name: lambda value=value: value for name, value in scores.items()}  # type: ignore[misc]


def _under(task: Task, data: str, config: SplitConfig, part: str) -> dict[str, Any]:
    under: dict[str, Any] = {"data": data, "split": config.model_dump(mode="json", exclude_none=True), "part": part}
    under |= {"kind": task.kind, "label": task.label}
    return under | ({"seen items": task.seen} if task.kind == "next_item" else {})
