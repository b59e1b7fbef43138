"""Evaluation of a published version, or of a trained model, on a part of a split: every task's metrics beside its baselines'.

Owns: metrics beside those of the baselines, on cold items and without ties, reliability plots. Ignores: how a metric is computed,
training.

    evaluate(Registry("registry"), "like@production", log)["tasks"]["like"]["adapter"]["auc"]["value"]      # 0.7918
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from genre.data.dataset import Dataset
from genre.data.interactions import need_log
from genre.data.sequences.text_rows import Builder
from genre.data.splits import PARTS, Split, training_events
from genre.engine.versions import Loaded, by_split, read_adapter
from genre.errors import InputError
from genre.evaluation.baselines import chosen_baselines
from genre.evaluation.labels import known_labels
from genre.evaluation.metrics.bootstrap import MIN_USERS, RESAMPLES
from genre.evaluation.metrics.by_name import metric
from genre.evaluation.metrics.calibration import reliability
from genre.evaluation.metrics.lists import ListFacts
from genre.evaluation.protocol import ties_of
from genre.evaluation.ranking import Seen
from genre.evaluation.targets import Targets, evaluate_feedback, evaluate_ranking
from genre.jobs.baselines import Scores, baseline_scorers
from genre.jobs.figures import Evaluation
from genre.jobs.loading import load_base, restore
from genre.modules.base.base import Base
from genre.modules.embedding import SoftTokens
from genre.modules.recommender import Recommender
from genre.modules.text_vectors import whitening_of
from genre.progress import Reporter
from genre.registry import Registry
from genre.tasks import Task
from genre.training.prediction import Predicted, list_facts, predict
from genre.training.reporting import drawing

Metrics = dict[str, dict[str, Any]]
"""By metric: value, interval, n, users; as manifests hold them."""

COLD = 5
"""Items with fewer training events are cold."""


def evaluate(
    registry: Registry,
    ref: str,
    data: Dataset,
    base: Base | None = None,
    *,
    part: str = "test",
    seen: Seen | None = None,
    baselines: str = "all",
    reporter: Reporter | None = None,
) -> Evaluation:
    """Evaluate a published version under its own protocol, beside the baselines.

    Args:
        registry: Holds the version.
        ref: The version.
        data: What it is evaluated on.
        base: Its base; by default found by the name in the manifest.
        part: `valid` or `test`.
        seen: Rank with items of the history `masked` or `kept`, whatever the next-item tasks say; the protocol says so.
        baselines: Which baselines, as `genre.evaluation.baselines.chosen_baselines` reads it.
        reporter: Receives progress; by default bars in a notebook, nothing in a script.

    Returns:
        A dict, which has its figures as a table in `.frame`:
        `{"ref", "digest", "protocol", "tasks": {task: {"adapter": {metric: …}, "baselines": {name: {metric: …}}}}}`.
        A log's task with targets on cold items has `"cold": {"items", "adapter", "baselines"}` as well, on those alone;
        where order matters it has `"ties": {"rule", "tied", "targets", "line"}`, and with some but not all targets tied
        `"untied": {"targets", "adapter", "baselines"}` on the others. A task with loss log_loss has the bins of its reliability
        plot, `"reliability": [{n, score, share, interval}]`.

    Raises:
        ManifestError: The version does not fit the base.
        InputError: `seen`, and no task is a next-item task; or there is no such baseline.
    """
    chosen_baselines(baselines)
    reporter = reporter or Reporter.here()
    manifest = registry.resolve(ref).manifest
    base = base or load_base(manifest)
    loaded = with_seen(read_adapter(registry, ref, base), seen)
    reporter.line(f"evaluating {ref} ({loaded.version}) on the {part} part")
    tasks: dict[str, Any] = {}
    for one in by_split(loaded):
        model, builder, split = restore(one, data, base)
        warn_few_users(model.tasks.values(), data, split, part, reporter)
        try:
            with reporter.phase(f"predicting {', '.join(model.tasks)}", at_once=False):
                found = predict(model, builder, split, PARTS[part], max_events=one.reading.max_events)
            results = with_baselines(task_results(found, model, builder, split), builder, split, baselines, reporter)
            bins = reliability_of(found, model.tasks.values())
        finally:
            model.release()
        tasks |= {name: _with_parts(result, builder, split) for name, result in results.items()}
        for name, own in bins.items():
            tasks[name]["reliability"] = own
    lines = {name: _with_ties(line, tasks.get(name, {})) for name, line in loaded.manifest.protocol.items()}
    about = {"ref": ref, "digest": loaded.digest, "part": part, "protocol": lines}
    return Evaluation(about | {"quantization": base.quantization, "precision": base.precision, "tasks": tasks})


def with_seen(loaded: Loaded, seen: Seen | None) -> Loaded:
    """A version whose next-item tasks rank with items of the history `masked` or `kept`; itself for None.

    Raises:
        InputError: It has no next-item task.
    """
    if seen is None:
        return loaded
    ranking = {name: task.model_copy(update={"seen": seen}) for name, task in loaded.tasks.items() if task.kind == "next_item"}
    if not ranking:
        raise InputError(
            "--seen is for next-item tasks", got=f"{loaded.name} with {', '.join(loaded.tasks)}", todo="leave it out"
        )
    lines = {
        name: re.sub("seen items (masked|kept)", f"seen items {seen}", line) for name, line in loaded.manifest.protocol.items()
    }
    manifest = loaded.manifest.model_copy(update={"protocol": lines})
    return replace(loaded, tasks=loaded.tasks | ranking, manifest=manifest)


def evaluate_model(
    model: Recommender, builder: Builder, split: Any, *, part: int, max_events: int
) -> dict[str, tuple[Metrics, dict[str, Metrics]]]:
    """Every task's metrics on one part of a split, and the baselines' on the same targets."""
    found = predict(model, builder, split, part, max_events=max_events)
    results = with_baselines(task_results(found, model, builder, split), builder, split, "all", Reporter.silent())
    return {name: result.metrics() for name, result in results.items()}


def task_results(found: Predicted, model: Recommender, builder: Builder, split: Any) -> "dict[str, TaskResult]":
    """Every task's predictions, still without baselines; tasks without targets are left out."""
    results = {}
    for name, (targets, scores, top) in found.items():
        task = model.tasks[name]
        if len(targets):
            facts = list_facts(model, builder, split, task, targets)
            results[name] = TaskResult(task, targets, (scores, top), builder.data.item_count, facts, item_texts_of(model))
    return results


def item_texts_of(model: Recommender) -> Callable[[], np.ndarray] | None:
    """A function that gives a model's `item_texts`; None if its encoder reads none."""
    return None if model.soft is None or not model.soft.encoder.spec.text else partial(item_texts, model.soft)


@torch.no_grad()
def item_texts(soft: SoftTokens) -> np.ndarray:
    """(N, D) whitened text vectors of length one, from an encoder's text features."""
    text = soft.table.features["text"]
    if not soft.encoder.spec.whiten:
        text = text @ whitening_of(text)
    return F.normalize(text, dim=-1).cpu().numpy()


def with_baselines(
    results: "Mapping[str, TaskResult]", builder: Builder, split: Any, which: str, reporter: Reporter
) -> "dict[str, TaskResult]":
    """Every task's result beside those of its baselines on the same targets.

    Args:
        results: From `task_results`.
        builder: Of the model's rows.
        split: The split.
        which: Which baselines, as `genre.evaluation.baselines.chosen_baselines` reads it.
        reporter: Receives a bar, and what a baseline leaves out.
    """
    names = chosen_baselines(which)

    def progress(state: str) -> None:  # runs inside the bar below
        bar.label = f"{bar.label.partition(',')[0]}, {state}"

    notes: dict[str, list[str]] = {name: [] for name in results}
    scorers = {
        (name, baseline): run
        for name, result in results.items()
        if names
        for baseline, run in baseline_scorers(
            result.task,
            builder.data,
            builder.layout.text,
            split,
            result.targets,
            window=builder.layout.max_events,
            rule=builder.layout.window,
            item_texts=result.texts,
            report=notes[name].append,
            progress=progress,
        ).items()
        if baseline in names
    }
    scores: dict[str, dict[str, Scores]] = {name: {} for name in results}
    if scorers:
        with reporter.bar("baselines", len(scorers)) as bar:
            for (name, baseline), run in scorers.items():
                bar.label = f"baseline {baseline.replace('_', ' ')} of {name}"
                scores[name][baseline] = run()
                bar.advance(1)
    for name in {word.strip() for word in which.split(",")} & names - {baseline for _, baseline in scorers}:
        reporter.line(f"no task here has the baseline {name}")
    for name, lines in notes.items():
        for line in lines:
            reporter.line(f"{name}: {line}")
    return {name: replace(each, baselines=scores[name], notes=tuple(notes[name])) for name, each in results.items()}


def warn_few_users(tasks: Iterable[Task], data: Dataset, split: Split, part: str, reporter: Reporter) -> None:
    """Report tasks with targets of so few users (of labelled texts: groups) that their intervals mean little."""
    labels = {task.name: data.labels_of(task) for task in tasks}
    events = {name: np.flatnonzero((split.part == PARTS[part]) & known_labels(label)) for name, label in labels.items()}
    owners = {name: len(np.unique(data.owners(own)[0])) for name, own in events.items() if len(own)}
    if few := [f"{name} {count}" for name, count in owners.items() if count < MIN_USERS]:
        which = f"few {data.owner} on the {part} part ({', '.join(few)})"
        reporter.line(f"{which}: an interval over fewer than {MIN_USERS} is not reliable")


@dataclass(frozen=True)
class TaskResult:
    """An adapter's and the baselines' predictions of a task's targets.

    `texts` gives the items' text vectors to baselines; `notes` are what baselines left out.
    """

    task: Task
    targets: Targets
    adapter: Scores
    item_count: int
    facts: ListFacts | None
    texts: Callable[[], np.ndarray] | None = None
    baselines: dict[str, Scores] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def own_metrics(self) -> Metrics:
        """The adapter's metrics on all targets."""
        return self._of(self.adapter)

    def metrics(self) -> tuple[Metrics, dict[str, Metrics]]:
        """The metrics on all targets, the adapter's and the baselines'."""
        return self.own_metrics(), {name: self._of(scores) for name, scores in self.baselines.items()}

    def take(self, mask: np.ndarray) -> "TaskResult | None":
        """The result on some targets, (n,) bool, without metrics over all lists (coverage, Gini); None if nothing is left."""
        metrics = tuple(name for name in self.task.metrics if metric(name).kind != "list")
        if not metrics or not mask.any():
            return None
        task, targets = self.task.model_copy(update={"metrics": metrics}), self.targets.take(np.flatnonzero(mask))
        baselines = {name: _masked(scores, mask) for name, scores in self.baselines.items()}
        facts = None if self.facts is None else self.facts.take(mask)
        return TaskResult(task, targets, _masked(self.adapter, mask), self.item_count, facts, baselines=baselines)

    def _of(self, scores: Scores) -> Metrics:
        return task_metrics(self.task, self.targets, *scores, self.item_count, facts=self.facts)


def _masked(scores: Scores, mask: np.ndarray) -> Scores:
    return scores[0][mask], None if scores[1] is None else scores[1][mask]


def _with_parts(result: TaskResult, builder: Builder, split: Split) -> dict[str, Any]:
    """A task's entry in the result of `evaluate`: all targets, then those on cold items and those that are no tie."""
    own, others = result.metrics()
    entry: dict[str, Any] = {"adapter": own, "baselines": others}
    if builder.data.catalogue is None:
        return entry
    log = need_log(builder.data)
    mask = training_events(log, split.part)[result.targets.item] < COLD
    if mask.any():
        entry["cold"] = {"items": f"items with fewer than {COLD} training events"} | _entry_of(result, mask)
    if (ties := ties_of(log, split, result.targets)) is not None:
        entry["ties"] = {"rule": ties.rule, "tied": ties.tied, "targets": ties.targets, "line": ties.words}
        if ties.tied and ties.others.any():
            entry["untied"] = {"targets": ties.name} | _entry_of(result, ties.others)
    return entry


def _entry_of(result: TaskResult, mask: np.ndarray) -> dict[str, Any]:
    """The metrics on some targets, (n,) bool."""
    some = result.take(mask)
    own, others = some.metrics() if some is not None else ({}, {name: {} for name in result.baselines})
    return {"adapter": own, "baselines": others}


def _with_ties(line: str, entry: Mapping[str, Any]) -> str:
    """A protocol's line with the number of ties among the targets, where there are any."""
    return "; ".join(part for part in (line, entry.get("ties", {}).get("line")) if part)


def untied_metrics(results: "Mapping[str, TaskResult]", builder: Builder, split: Split) -> dict[str, Metrics]:
    """An adapter's metrics on the targets that are no tie, of each task where some but not all are ties."""
    found = {}
    for name, result in results.items():
        ties = None if builder.data.catalogue is None else ties_of(need_log(builder.data), split, result.targets)
        if ties is not None and ties.tied and (some := result.take(ties.others)) is not None:
            found[name] = some.own_metrics()
    return found


def task_metrics(
    task: Task,
    targets: Targets,
    scores: np.ndarray,
    top: np.ndarray | None,
    item_count: int,
    *,
    facts: ListFacts | None = None,
    resamples: int = RESAMPLES,
) -> Metrics:
    """A task's metrics of one prediction from `predict`; `facts` for quality metrics. Metrics without a value are left out."""
    if task.kind == "next_item":
        found = evaluate_ranking(task.metrics, targets, scores, top, item_count, facts=facts, resamples=resamples)
    else:
        found = evaluate_feedback(task.metrics, targets, scores, resamples=resamples)
    entries = {name: figure.as_dict() for name, figure in found.items() if np.isfinite(figure.value)}
    return {name: entry | ({"interval": None} if None in entry["interval"] else {}) for name, entry in entries.items()}


def reliability_of(found: Predicted, tasks: Iterable[Task]) -> dict[str, list[dict[str, Any]]]:
    """The bins of the reliability plot of every task with loss log_loss that has targets, as JSON holds them."""
    binary = {task.name for task in tasks if task.is_binary and task.kind != "next_item"}
    return {
        name: [asdict(each) | {"interval": list(each.interval)} for each in reliability(targets.label, scores)]
        for name, (targets, scores, _) in found.items()
        if name in binary and targets.label is not None and len(targets)
    }


def draw_reliability(found: Mapping[str, Any], beside: Path) -> dict[str, Path]:
    """Draw the bins in a result of `evaluate`: `out/report.json` → `out/report.reliability.TASK.svg`."""
    return {
        name: draw_bins(entry["reliability"], beside.with_name(f"{beside.stem}.{plot_name(name)}"), f"{name}, {found['part']}")
        for name, entry in found["tasks"].items()
        if "reliability" in entry
    }


def plot_name(task: str) -> str:
    """The file name of a task's reliability plot in a run folder."""
    return f"reliability.{task}.svg"


def draw_bins(bins: Sequence[Mapping[str, Any]], path: Path, title: str) -> Path:
    """Draw bins as points with their intervals beside the diagonal of perfect calibration; the file appears whole."""
    end = 1.05 * max(max(each["score"], each["interval"][1]) for each in bins)
    score, share = ([each[key] for each in bins] for key in ("score", "share"))
    errors = np.abs([[each["share"] - each["interval"][side] for each in bins] for side in (0, 1)])
    label = "bins of equal mass, 95 %"
    with drawing(path, width=4.2, height=3.8) as figure:
        axes = figure.subplots()
        axes.plot([0, end], [0, end], color="0.6", linewidth=0.8, linestyle="--", label="perfect")
        axes.errorbar(score, share, yerr=errors, fmt="o-", markersize=4, linewidth=1, elinewidth=0.8, label=label)
        axes.set(xlim=(0, end), ylim=(0, end), xlabel="mean predicted probability", ylabel="share of label 1", title=title)
        axes.legend(fontsize="small", loc="upper left")
    return path
