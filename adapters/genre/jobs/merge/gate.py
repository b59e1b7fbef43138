"""The quality gate of a merge: each task's own head on the merged update, under its parent's split.

Owns: the options of a merge, the metrics of updates, the search for weights, the gate, the transfer matrix. Ignores: which
versions can be merged, what becomes of the result.

    evaluator = Evaluator(parents, data, base, MergeOptions("taste"), Reporter.silent())
    evaluator.gate(evaluator.merged((0.5, 0.5)))["like"]["ratio"]       # 0.993: the merged AUC over the parent's, on validation

The metric that decides for a task is its first one whose direction is known.
"""

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from genre.data.dataset import Dataset
from genre.data.sequences.text_rows import Builder
from genre.data.splits import PARTS
from genre.engine.versions import Loaded, Low, by_split
from genre.errors import DataError, ManifestError, QualityError
from genre.evaluation.metrics.bootstrap import RESAMPLES
from genre.jobs.evaluate import Metrics, task_metrics
from genre.jobs.loading import lora_layers, restore
from genre.jobs.merge.methods import Method, merge
from genre.modules.base.base import Base
from genre.modules.recommender import Recommender
from genre.progress import Reporter
from genre.registry import higher_is_better
from genre.registry.manifest import canonical
from genre.tasks import Task
from genre.training.prediction import list_facts, predict

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
ROUNDS = 2
MERGED = "merged"


@dataclass(frozen=True)
class MergeOptions:
    """The options of a merge.

    Attributes:
        name: The merged adapter's, in the registry.
        method: `linear`, `ties`, `dare_ties` or `svd`.
        weights: One per parent, `search`, or None for equal ones that add up to 1.
        rank: svd: the result's; by default the largest of the parents'.
        density: ties and dare_ties: the share of values to keep.
        floor: The share of each parent's metric to reach on validation; 0 accepts everything.
        seed: dare_ties: of the random drops.
        aliases: Of the new version, beside `latest`.
    """

    name: str
    method: Method = "svd"
    weights: tuple[float, ...] | Literal["search"] | None = None
    rank: int | None = None
    density: float = 0.5
    floor: float = 0.95
    seed: int = 0
    aliases: tuple[str, ...] = ("candidate",)


@dataclass(frozen=True)
class _Group:
    """The tasks that share a split, ready to be evaluated with any update."""

    model: Recommender
    builder: Builder
    split: Any

    def metrics(self, low: Low, part: str, *, resamples: int) -> dict[str, Metrics]:
        """The metrics of each task's own head on an update; tasks without targets in the part are left out."""
        model, builder = self.model, self.builder
        with _applied(model, low):
            most = builder.layout.max_events
            found = predict(model, builder, self.split, PARTS[part], max_events=most)
        metrics = {}
        for name, (targets, scores, top) in found.items():
            if len(targets):
                task, size = model.tasks[name], builder.data.item_count
                facts = list_facts(model, builder, self.split, task, targets)
                metrics[name] = task_metrics(task, targets, scores, top, size, facts=facts, resamples=resamples)
        return metrics


class Evaluator:
    """Evaluates updates on every parent's tasks, each under its own split.

    Attributes:
        parents: In the order given; one may occur twice.
        distinct: Each parent once, by `name:version`.
        deciding: For each task the metric that decides: its first one whose direction is known.
        splits: For each task the split that it is evaluated under.
    """

    def __init__(self, parents: Sequence[Loaded], data: Dataset, base: Base, options: MergeOptions, reporter: Reporter) -> None:
        self.parents = parents
        self.options = options
        self.reporter = reporter
        self.distinct = {f"{parent.name}:{parent.version}": parent for parent in parents}
        self.deciding = {name: _deciding(task) for parent in parents for name, task in parent.tasks.items()}
        by_config: dict[bytes, Loaded] = {}
        self.splits: dict[str, Any] = {}
        for one in (one for parent in self.distinct.values() for one in by_split(parent)):
            config = (one.manifest.data.split or {}).get("split") if one.manifest.data else None
            held = by_config.setdefault(canonical(config), replace(one, low={}))
            by_config[canonical(config)] = replace(held, tasks=held.tasks | one.tasks, heads=held.heads | one.heads)
            self.splits |= dict.fromkeys(one.tasks, config)
        self.groups = [_Group(*restore(group, data, base)) for group in by_config.values()]
        self._own: dict[str, float] | None = None

    def metrics(self, low: Low, part: str, *, resamples: int = 0) -> dict[str, Metrics]:
        """Every task's metrics with one update."""
        return {name: own for group in self.groups for name, own in group.metrics(low, part, resamples=resamples).items()}

    def merged(self, weights: Sequence[float]) -> Low:
        """The parents' updates merged."""
        given, updates = self.options, [parent.low for parent in self.parents]
        return merge(updates, weights, method=given.method, rank=given.rank, density=given.density, seed=given.seed)

    def gate(self, low: Low) -> dict[str, dict[str, Any]]:
        """For each task the deciding metric on validation: the parent's, the update's, the bound, and whether it is met."""
        own, found = self.own(), self._values(low, self.deciding)
        return {name: _compare(self.deciding[name], own[name], found[name], self.options.floor) for name in self.deciding}

    def own(self) -> dict[str, float]:
        """For each task the deciding metric of its parent on validation; computed once."""
        if self._own is None:
            found: dict[str, float] = {}
            for ref, parent in self.distinct.items():
                with self.reporter.phase(f"evaluating {ref} on its own tasks"):
                    found |= self._values(parent.low, parent.tasks)
            self._own = found
        return self._own

    def _values(self, low: Low, tasks: Iterable[str]) -> dict[str, float]:
        metrics, found = self.metrics(low, "valid"), {}
        for name in tasks:
            value = metrics.get(name, {}).get(self.deciding[name], {}).get("value")
            if value is None:
                what = f"task {name!r} has no {self.deciding[name]} on the validation part, which the gate needs"
                expected = "a split with validation events of both labels"
                raise DataError(what, got=f"split {json.dumps(self.splits[name])}", expected=expected)
            found[name] = float(value)
        return found

    def search(self) -> tuple[tuple[float, ...], list[dict[str, Any]]]:
        """Search, coordinate by coordinate, for the weights with the best worst ratio to a parent, then the best mean ratio."""
        count = len(self.parents)
        tried: dict[tuple[float, ...], tuple[float, float]] = {}

        def value(weights: tuple[float, ...]) -> tuple[float, float]:
            if weights not in tried:
                ratios = [row["ratio"] for row in self.gate(self.merged(weights)).values()]
                tried[weights] = min(ratios), sum(ratios) / len(ratios)
            return tried[weights]

        best: tuple[float, ...] = (1 / count,) * count
        self.own()
        with self.reporter.bar("searching weights", ROUNDS * count) as bar:
            for _ in range(ROUNDS):
                before = best
                for index in range(count):
                    options = [(*best[:index], weight, *best[index + 1 :]) for weight in GRID]
                    best = max([best, *filter(any, options)], key=value)  # the first of equals: no move without a gain
                    bar.advance(1)
                if best == before:
                    break
        rows = [{"weights": list(weights), "worst": worst, "mean": mean} for weights, (worst, mean) in tried.items()]
        return best, rows

    def transfer(self, low: Low) -> dict[str, dict[str, Metrics]]:
        """For each task: the test metrics of its own head on every parent's update, and on the merged one."""
        matrix: dict[str, dict[str, Metrics]] = {name: {} for name in self.deciding}
        for source, update in [*((ref, parent.low) for ref, parent in self.distinct.items()), (MERGED, low)]:
            with self.reporter.phase(f"evaluating {source} on the test part of {len(matrix)} tasks"):
                metrics = self.metrics(update, "test", resamples=RESAMPLES)
            for name, row in matrix.items():
                row[source] = metrics.get(name, {})
        return matrix


@contextlib.contextmanager
def _applied(model: Recommender, low: Low) -> Iterator[None]:
    """Keep an update on the base for the time of the block."""
    model.put(lora_layers(model.base, low))
    try:
        yield
    finally:
        model.release()


def _deciding(task: Task) -> str:
    name = next((name for name in task.metrics if higher_is_better(name) is not None), None)
    if name is None:
        got, expected = ", ".join(task.metrics), "a metric whose direction is known"
        raise ManifestError(f"task {task.name!r} has no metric to decide on", got=got, expected=expected)
    return name


def _compare(metric: str, parent: float, merged: float, floor: float) -> dict[str, Any]:
    """One row of the gate; `ratio` is 1 where merged and parent are equal, and more where merged is better."""
    higher = bool(higher_is_better(metric))
    bound = floor * parent if higher else parent / floor if floor else None
    passed = bound is None or (merged >= bound if higher else merged <= bound)
    above, below = (merged, parent) if higher else (parent, merged)
    row = {"metric": metric, "higher_is_better": higher, "parent": parent, "merged": merged, "bound": bound}
    return row | {"ratio": above / below if below else 1.0, "passed": passed}


def check_gate(gate: Mapping[str, Mapping[str, Any]], options: MergeOptions) -> None:
    """Check that every row of a gate has passed.

    Raises:
        QualityError: One has not; the message names each task and metric, the parent's value and the bound.
    """
    missed = {name: row for name, row in gate.items() if not row["passed"]}
    if missed:
        got = [f"{name}.{row['metric']} {row['merged']:.4f} (parent {row['parent']:.4f})" for name, row in missed.items()]
        sides = [f"at {'least' if row['higher_is_better'] else 'most'} {row['bound']:.4f}" for row in missed.values()]
        what = f"{options.name} is not published: below {options.floor:g} of a parent on validation"
        todo = "try --weights search, --method svd with a higher --rank, or a lower --floor"
        raise QualityError(what, got=", ".join(got), expected=", ".join(sides), todo=todo)
