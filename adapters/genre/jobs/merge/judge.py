"""What a merge is judged by: each task's own head on an update, under its parent's split.

Owns: the options of a merge, measuring updates, the search for weights, the quality gate, the transfer matrix. Ignores: which
versions can be merged, what becomes of the result.

    judge = Judge(parents, data, base, Options("taste"), Reporter.silent())
    judge.gate(judge.merged((0.5, 0.5)))["like"]["ratio"]       # 0.993: the merged AUC over the parent's, on validation

A task's metric here is its first one whose direction is known.
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
from genre.jobs.evaluate import Figures, figures_of, low_layers, restore
from genre.jobs.merge.methods import Method, merge
from genre.modules.base.base import Base
from genre.modules.recommender import Recommender
from genre.progress import Reporter
from genre.registry import higher_is_better
from genre.registry.manifest import canonical
from genre.tasks import Task
from genre.training.prediction import BATCH_TOKENS, list_facts, predict

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
ROUNDS = 2
MERGED = "merged"


@dataclass(frozen=True)
class Options:
    """How to merge.

    Attributes:
        name: Of the merged adapter in the registry.
        method: `linear`, `ties`, `dare_ties` or `svd`.
        weights: One per parent, `search`, or None for equal ones that add up to 1.
        rank: svd: of the result; by default the largest of the parents'.
        density: ties and dare_ties: the share of values that is kept.
        floor: The share of each parent's metric that has to be reached on validation; 0 lets everything pass.
        seed: dare_ties: of the draws.
        aliases: That the new version gets beside `latest`.
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
class _Bench:
    """The tasks that share a split, ready to be scored with any update."""

    model: Recommender
    builder: Builder
    split: Any

    def figures(self, low: Low, part: str, *, resamples: int) -> dict[str, Figures]:
        """Each task's own head on an update's states; tasks without targets in the part are left out."""
        model, builder = self.model, self.builder
        with _carrying(model, low):
            found = predict(
                model, builder, self.split, PARTS[part], max_events=builder.layout.max_events, batch_tokens=BATCH_TOKENS
            )
        figures = {}
        for name, (targets, scores, top) in found.items():
            if len(targets):
                task, size = model.tasks[name], builder.data.item_count
                facts = list_facts(model, builder, self.split, task, targets)
                figures[name] = figures_of(task, targets, scores, top, size, facts=facts, resamples=resamples)
        return figures


class Judge:
    """Measures updates on every parent's tasks, each under its own split.

    Attributes:
        parents: As they were named; one may occur twice.
        distinct: Each parent once, by `name:version`.
        metrics: For each task the metric that decides: its first one whose direction is known.
        splits: For each task the split that it is measured under.
    """

    def __init__(self, parents: Sequence[Loaded], data: Dataset, base: Base, options: Options, say: Reporter) -> None:
        self.parents, self.options, self.say = parents, options, say
        self.distinct = {f"{parent.name}:{parent.version}": parent for parent in parents}
        self.metrics = {name: _metric(task) for parent in parents for name, task in parent.tasks.items()}
        groups: dict[bytes, Loaded] = {}
        self.splits: dict[str, Any] = {}
        for one in (one for parent in self.distinct.values() for one in by_split(parent)):
            config = (one.manifest.data.split or {}).get("split") if one.manifest.data else None
            held = groups.setdefault(canonical(config), replace(one, low={}))
            groups[canonical(config)] = replace(held, tasks=held.tasks | one.tasks, heads=held.heads | one.heads)
            self.splits |= dict.fromkeys(one.tasks, config)
        self.benches = [_Bench(*restore(group, data, base)) for group in groups.values()]
        self._own: dict[str, float] | None = None

    def figures(self, low: Low, part: str, *, resamples: int = 0) -> dict[str, Figures]:
        """Every task's figures with one update."""
        found: dict[str, Figures] = {}
        for bench in self.benches:
            found |= bench.figures(low, part, resamples=resamples)
        return found

    def merged(self, weights: Sequence[float]) -> Low:
        """The parents' updates merged."""
        given = self.options
        return merge(
            [parent.low for parent in self.parents], weights, method=given.method, rank=given.rank, density=given.density,
            seed=given.seed,
        )  # fmt: skip

    def gate(self, low: Low) -> dict[str, dict[str, Any]]:
        """For each task the metric on validation: the parent's, the update's, what is asked for, and whether it is met."""
        if self._own is None:
            self._own = {}
            for ref, parent in self.distinct.items():
                self.say.line(f"measuring {ref} on its own tasks")
                self._own |= self._values(parent.low, parent.tasks)
        found = self._values(low, self.metrics)
        return {name: _compare(self.metrics[name], self._own[name], found[name], self.options.floor) for name in self.metrics}

    def _values(self, low: Low, tasks: Iterable[str]) -> dict[str, float]:
        figures, found = self.figures(low, "valid"), {}
        for name in tasks:
            figure = figures.get(name, {}).get(self.metrics[name])
            if figure is None:
                raise DataError(
                    f"task {name!r} has no {self.metrics[name]} on the validation part, which the gate is held on",
                    got=f"split {json.dumps(self.splits[name])}", expected="a split with validation events of both kinds",
                )  # fmt: skip
            found[name] = float(figure["value"])
        return found

    def search(self) -> tuple[tuple[float, ...], list[dict[str, Any]]]:
        """Coordinate search for the weights whose worst task, then whose mean, is best beside the parents' on validation."""
        count = len(self.parents)
        tried: dict[tuple[float, ...], tuple[float, float]] = {}

        def value(weights: tuple[float, ...]) -> tuple[float, float]:
            if weights not in tried:
                ratios = [row["ratio"] for row in self.gate(self.merged(weights)).values()]
                tried[weights] = min(ratios), sum(ratios) / len(ratios)
            return tried[weights]

        best: tuple[float, ...] = (1 / count,) * count
        with self.say.bar("searching weights", ROUNDS * count) as bar:
            for _ in range(ROUNDS):
                before = best
                for place in range(count):
                    options = [(*best[:place], weight, *best[place + 1 :]) for weight in GRID]
                    best = max([best, *filter(any, options)], key=value)  # the first of equals: no move without a gain
                    bar.advance(1)
                if best == before:
                    break
        rows = [{"weights": list(weights), "worst": worst, "mean": mean} for weights, (worst, mean) in tried.items()]
        return best, rows

    def transfer(self, low: Low) -> dict[str, dict[str, Figures]]:
        """For each task: the test figures with every parent's update under the task's own head, and with the merged one."""
        matrix: dict[str, dict[str, Figures]] = {name: {} for name in self.metrics}
        for source, update in [*((ref, parent.low) for ref, parent in self.distinct.items()), (MERGED, low)]:
            self.say.line(f"measuring {source} on the test part of {len(matrix)} tasks")
            figures = self.figures(update, "test", resamples=RESAMPLES)
            for name, row in matrix.items():
                row[source] = figures.get(name, {})
        return matrix


@contextlib.contextmanager
def _carrying(model: Recommender, low: Low) -> Iterator[None]:
    """The base carries an update for the time of the block."""
    model.put(low_layers(model.base, low))
    try:
        yield
    finally:
        model.release()


def _metric(task: Task) -> str:
    known = [name for name in task.metrics if higher_is_better(name) is not None]
    if not known:
        raise ManifestError(
            f"task {task.name!r} cannot be gated", got=", ".join(task.metrics), expected="a metric whose direction is known"
        )
    return known[0]


def _compare(metric: str, parent: float, merged: float, floor: float) -> dict[str, Any]:
    """One row of the gate; `ratio` is 1 where merged and parent are equal, and more where merged is better."""
    higher = bool(higher_is_better(metric))
    bound = floor * parent if higher else parent / floor if floor else None
    passed = bound is None or (merged >= bound if higher else merged <= bound)
    above, below = (merged, parent) if higher else (parent, merged)
    ratio = above / below if below else 1.0
    return {
        "metric": metric, "higher_is_better": higher, "parent": parent, "merged": merged, "bound": bound, "ratio": ratio,
        "passed": passed,
    }  # fmt: skip


def check_gate(gate: Mapping[str, Mapping[str, Any]], options: Options) -> None:
    """Check that every row of a gate has passed.

    Raises:
        QualityError: One has not; the message names each task and metric, the parent's value and the bound.
    """
    missed = {name: row for name, row in gate.items() if not row["passed"]}
    if missed:
        side = {True: "at least", False: "at most"}
        got = [f"{name}.{row['metric']} {row['merged']:.4f} (parent {row['parent']:.4f})" for name, row in missed.items()]
        raise QualityError(
            f"{options.name} is not published: below {options.floor:g} of a parent on validation",
            got=", ".join(got),
            expected=", ".join(f"{side[row['higher_is_better']]} {row['bound']:.4f}" for row in missed.values()),
            todo="try --weights search, --method svd with a higher --rank, or a lower --floor",
        )  # fmt: skip
