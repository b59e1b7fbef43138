"""A published version, or a trained model, on a part of a split: every task's figures beside its baselines'."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from genre.data.dataset import Dataset
from genre.data.interactions import Interactions, need_log
from genre.data.sequences.text_rows import Builder, rows_of
from genre.data.splits import PARTS, Split, SplitConfig, training_events
from genre.data.texts.dataset import Texts
from genre.engine.versions import Loaded, Low, by_split, read_adapter
from genre.errors import ManifestError
from genre.evaluation.baselines import Blocks, feedback_baselines, ranking_baselines
from genre.evaluation.labels import known_labels
from genre.evaluation.metrics.bootstrap import MIN_USERS, RESAMPLES
from genre.evaluation.metrics.by_name import metric
from genre.evaluation.metrics.lists import ListFacts
from genre.evaluation.ranking import rank_in_blocks
from genre.evaluation.targets import Targets, evaluate_feedback, evaluate_ranking
from genre.evaluation.text_baselines import text_baselines
from genre.jobs.inputs import load_base
from genre.jobs.reliability import reliability_of
from genre.modules.base.base import Base
from genre.modules.embedding import SoftTokens
from genre.modules.lora.layer import LoraLinear
from genre.modules.recommender import Recommender
from genre.progress import Reporter
from genre.registry import Registry
from genre.tasks import Task
from genre.training.prediction import BATCH_TOKENS, Predicted, list_facts, predict

Figures = dict[str, dict[str, Any]]
COLD = 5
"""Items with fewer training events are cold."""


def evaluate(
    registry: Registry,
    ref: str,
    data: Dataset,
    base: Base | None = None,
    *,
    part: str = "test",
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Evaluate a published version under its own protocol, beside the baselines.

    Returns:
        `{"ref", "digest", "protocol", "tasks": {task: {"adapter": {metric: figure}, "baselines": {name: {metric: figure}}}}}`.
        Where a log's task has targets on cold items it has `"cold": {"items", "adapter", "baselines"}` as well, on those alone;
        a task with loss log_loss has the bins of its reliability plot, `"reliability": [{n, score, share, interval}]`.

    Raises:
        ManifestError: The version does not fit the base.
    """
    say = reporter or Reporter.silent()
    manifest = registry.resolve(ref).manifest
    base = base or load_base(manifest)
    loaded = read_adapter(registry, ref, base)
    say.line(f"evaluating {ref} ({loaded.version}) on the {part} part")
    tasks: dict[str, Any] = {}
    for one in by_split(loaded):
        model, builder, chosen = restore(one, data, base)
        say_few_users(model.tasks.values(), data, chosen, part, say)
        try:
            found = predict(model, builder, chosen, PARTS[part], max_events=one.reading.max_events, batch_tokens=BATCH_TOKENS)
            judged = judged_tasks(found, model, builder, chosen)
            bins = reliability_of(found, model.tasks.values())
        finally:
            model.release()
        tasks |= {name: _with_cold(task, builder, chosen) for name, task in judged.items()}
        for name, own in bins.items():
            tasks[name]["reliability"] = own
    return {
        "ref": ref,
        "digest": loaded.digest,
        "part": part,
        "protocol": manifest.protocol,
        "quantization": base.quantization,
        "tasks": tasks,
    }


def say_few_users(tasks: Iterable[Task], data: Dataset, chosen: Split, part: str, say: Reporter) -> None:
    """Say in a line which tasks have targets of so few users (of labelled texts: groups) that their intervals mean little."""
    labels = {task.name: data.labels_of(task) for task in tasks}
    events = {name: np.flatnonzero((chosen.part == PARTS[part]) & known_labels(label)) for name, label in labels.items()}
    owners = {name: len(np.unique(data.owners(own)[0])) for name, own in events.items() if len(own)}
    if few := [f"{name} {count}" for name, count in owners.items() if count < MIN_USERS]:
        say.line(
            f"few {data.owner} on the {part} part ({', '.join(few)}): an interval over fewer than {MIN_USERS} cannot say much"
        )


Said = tuple[np.ndarray, np.ndarray | None]
"""Scores or ranks, one per target; and top lists of next-item tasks."""


@dataclass(frozen=True)
class Judged:
    """What an adapter and the baselines say of a task's targets."""

    task: Task
    targets: Targets
    own: Said
    others: dict[str, Said]
    size: int
    facts: ListFacts | None

    def whole(self) -> tuple[Figures, dict[str, Figures]]:
        """The figures on all targets, the adapter's and the baselines'."""
        return self._of(self.own), {name: self._of(said) for name, said in self.others.items()}

    def part(self, mask: np.ndarray) -> tuple[Figures, dict[str, Figures]]:
        """The figures on some targets, (n,) bool, without those of all lists together (coverage, Gini)."""
        metrics = tuple(name for name in self.task.metrics if metric(name).kind != "list")
        if not metrics or not mask.any():
            return {}, {name: {} for name in self.others}
        cut = Judged(
            self.task.model_copy(update={"metrics": metrics}), self.targets.take(np.flatnonzero(mask)), _cut(self.own, mask),
            {name: _cut(said, mask) for name, said in self.others.items()}, self.size,
            None if self.facts is None else self.facts.take(mask),
        )  # fmt: skip
        return cut.whole()

    def _of(self, said: Said) -> Figures:
        return figures_of(self.task, self.targets, *said, self.size, facts=self.facts)


def _cut(said: Said, mask: np.ndarray) -> Said:
    return said[0][mask], None if said[1] is None else said[1][mask]


def _with_cold(judged: Judged, builder: Builder, chosen: Any) -> dict[str, Any]:
    """A task's figures on all targets, and beside them on those of items with fewer than `COLD` training events."""
    own, others = judged.whole()
    result: dict[str, Any] = {"adapter": own, "baselines": others}
    if builder.data.catalogue is not None:
        mask = training_events(need_log(builder.data), chosen.part)[judged.targets.item] < COLD
        if mask.any():
            own, others = judged.part(mask)
            result["cold"] = {"items": f"items with fewer than {COLD} training events", "adapter": own, "baselines": others}
    return result


def restore(loaded: Loaded, data: Dataset, base: Base) -> tuple[Recommender, Builder, Any]:
    """A published version as a model on a log (or on labelled texts), with the split it was trained under."""
    config = SplitConfig.model_validate((loaded.manifest.data.split or {}).get("split")) if loaded.manifest.data else None
    if config is None:
        raise ManifestError("data.split", got=None, expected="the split that the version was trained under")
    return *stand(loaded, data, base), data.split(config)


def stand(loaded: Loaded, data: Dataset, base: Base) -> tuple[Recommender, Builder]:
    """A published version as a model that scores rows of some data; the base carries it until `release`.

    Raises:
        InputError: The version reads the other kind of data.
    """
    base.need_bare()
    builder = rows_of(data, loaded.reading)
    soft = None
    if loaded.shared is not None and data.catalogue is not None:
        soft = SoftTokens(loaded.shared.encoder, loaded.shared.encoder.table(data.catalogue, base))
    model = Recommender(base, loaded.tasks.values(), dict(loaded.heads), soft)
    model.put(low_layers(base, loaded.low))
    return model.eval(), builder


@torch.no_grad()
def low_layers(base: Base, low: Low, *, dropout: float = 0.0) -> dict[str, LoraLinear]:
    """A stored update as layers over the base's linears, ready for `Recommender.put`; the base is not touched."""
    layers: dict[str, LoraLinear] = {}
    for name, (a, b, scale) in low.items():
        layer = LoraLinear(base.model.get_submodule(name), rank=a.shape[0], scale=scale, dropout=dropout)
        layer.lora_A.copy_(a)
        layer.lora_B.copy_(b)
        layers[name] = layer
    return layers


def measure(
    model: Recommender, builder: Builder, chosen: Any, *, part: int, max_events: int, batch_tokens: int = BATCH_TOKENS
) -> dict[str, tuple[Figures, dict[str, Figures]]]:
    """Every task's figures on one part of a split, and the baselines' on the same targets."""
    return judge(predict(model, builder, chosen, part, max_events=max_events, batch_tokens=batch_tokens), model, builder, chosen)


def judge(found: Predicted, model: Recommender, builder: Builder, chosen: Any) -> dict[str, tuple[Figures, dict[str, Figures]]]:
    """Every task's figures of what was predicted, and the baselines' on the same targets."""
    return {name: judged.whole() for name, judged in judged_tasks(found, model, builder, chosen).items()}


def judged_tasks(found: Predicted, model: Recommender, builder: Builder, chosen: Any) -> dict[str, Judged]:
    """What was predicted beside what the baselines say of the same targets; tasks without targets are left out."""
    results = {}
    for name, (targets, scores, top) in found.items():
        task = model.tasks[name]
        if len(targets):
            facts = list_facts(model, builder, chosen, task, targets)
            others = {known: run() for known, run in baselines(task, builder.data, builder.layout.text, chosen, targets).items()}
            results[name] = Judged(task, targets, (scores, top), others, builder.data.item_count, facts)
    return results


def figures_of(
    task: Task,
    targets: Targets,
    scores: np.ndarray,
    top: np.ndarray | None,
    size: int,
    *,
    facts: ListFacts | None = None,
    resamples: int = RESAMPLES,
) -> Figures:
    """A task's metrics of what `predict` found, in a catalogue of `size` items; `facts` for quality metrics."""
    if task.kind == "next_item":
        return _plain(evaluate_ranking(task.metrics, targets, scores, top, size, facts=facts, resamples=resamples))
    return _plain(evaluate_feedback(task.metrics, targets, scores, resamples=resamples))


def baselines(task: Task, data: Dataset, text: Sequence[str], chosen: Split, targets: Targets) -> dict[str, Callable[[], Said]]:
    """Return, by name, functions that run a task's baselines on some targets.

    Args:
        task: The task.
        data: The data.
        text: The text columns that the adapter reads.
        chosen: A split of the data.
        targets: The targets.
    """
    if isinstance(data, Texts):
        scores = text_baselines(data, text, chosen, task, targets)
        return {name: partial(_without_lists, value) for name, value in scores.items()}
    log = need_log(data)
    if task.kind == "next_item":
        blocks = ranking_baselines(log, chosen, targets)
        return {name: partial(_ranked, log, chosen, targets, make, task) for name, make in blocks.items()}
    if task.loss == "cross_entropy":
        return {}
    scores = feedback_baselines(log, chosen, log.labels_of(task), targets, binary=task.is_binary)
    return {name: partial(_without_lists, value) for name, value in scores.items()}


def _without_lists(scores: np.ndarray) -> Said:
    return scores, None


def _ranked(log: Interactions, chosen: Split, targets: Targets, make: Blocks, task: Task) -> Said:
    found = rank_in_blocks(log, chosen, targets, make(), seen=task.seen)
    return found.ranks, found.top


def _plain(figures: dict[str, Any]) -> Figures:
    """Figures as manifests hold them: no NaN."""
    found: Figures = {}
    for name, figure in figures.items():
        if np.isfinite(figure.value):
            entry = figure.as_dict()
            if None in entry["interval"]:
                entry["interval"] = None
            found[name] = entry
    return found
