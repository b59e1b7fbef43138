"""From one score per target of a split to metrics with intervals.

Owns: which events are targets, the check that every target has one score, and the figures of a task. Ignores who
scores: an adapter, an engine or a baseline hands over one number per target (`evaluate_feedback`), or ranks and top
lists (`evaluate_ranking`, from `genre.evaluation.ranking.rank_in_blocks`).

    found = targets(log, split, TEST, label=like)             # like: float64[n], one per event of log.frame, NaN where unknown
    evaluate_feedback(["auc"], found, scores)["auc"].as_dict()
    # {"value": 0.776, "interval": [0.758, 0.793], "n": 10000}
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genre.data.interactions import Interactions
from genre.data.splits import Split
from genre.errors import DataError, RecipeError
from genre.evaluation.metrics.bootstrap import RESAMPLES, Figure, bootstrap
from genre.evaluation.metrics.by_name import Kind, Metric, metric
from genre.evaluation.metrics.checks import Floats, Vector, same_length
from genre.evaluation.metrics.lists import ListFacts


@dataclass(frozen=True)
class Targets:
    """The events that are scored.

    Attributes:
        event: int64[n], places in `log.frame`, ascending.
        user: int32[n], user codes.
        item: int32[n], item codes.
        label: float64[n] without NaN; None for next-item tasks.
        dropped: Events of the part that have no label and so are not targets.
        impression: int64[n], which of them were shown together; None if the log has no impressions.
    """

    event: npt.NDArray[np.int64]
    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    label: npt.NDArray[np.float64] | None
    dropped: int = 0
    impression: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.event)

    def take(self, rows: npt.NDArray[np.integer] | slice) -> Targets:
        """Return some of the targets; `dropped` stays that of the whole."""
        label = None if self.label is None else self.label[rows]
        shown = None if self.impression is None else self.impression[rows]
        return Targets(self.event[rows], self.user[rows], self.item[rows], label, self.dropped, shown)


def targets(log: Interactions, split: Split, part: int, label: npt.NDArray[np.float64] | None = None) -> Targets:
    """Return the events of a part as targets; those whose label is NaN are dropped and counted.

    Args:
        log: The log.
        split: A split of this log.
        part: 1 for validation, 2 for test.
        label: float64[n], one per event of `log.frame`; None for next-item tasks, where every event is a target.

    Raises:
        DataError: The split or the label belongs to another log.
    """
    same_length(events=log.user_codes, parts=split.part, labels=label)
    event = np.flatnonzero(split.part == part)
    known = event if label is None else event[~np.isnan(label[event])]
    chosen = None if label is None else np.asarray(label, dtype=np.float64)[known]
    shown = None if log.impressions is None else log.impressions[known]
    return Targets(known, log.user_codes[known], log.item_codes[known], chosen, len(event) - len(known), shown)


def evaluate_feedback(
    metrics: Iterable[str], targets: Targets, scores: Vector, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Figure]:
    """Return the feedback metrics of one score per target.

    Args:
        metrics: Names such as `auc` and `rmse`.
        targets: With labels.
        scores: [n] probabilities of label 1, or values; [n, C] class probabilities.
        resamples: Of the user bootstrap.
        seed: Of the user bootstrap.

    Raises:
        RecipeError: A name is unknown or not a feedback metric.
        DataError: The targets have no labels, or a score is missing or not finite (the message names its row).
    """
    if targets.label is None:
        raise DataError("feedback metrics need labels", got="targets of a next-item task", expected="labelled targets")
    chosen = _of_kinds(metrics, "feedback")
    given = np.asarray(scores)
    same_length(targets=targets.event, scores=given)
    about: dict[str, Any] = {"impressions": targets.impression, "resamples": resamples, "seed": seed}
    return {each.name: bootstrap(each, targets.user, targets.label, given, **about) for each in chosen}


def evaluate_ranking(
    metrics: Iterable[str],
    targets: Targets,
    ranks: Vector,
    top: npt.NDArray[np.int32] | None,
    catalogue_size: int,
    *,
    facts: ListFacts | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Figure]:
    """Return ranking, list and quality metrics of one rank and one top list per target.

    A list metric has no interval (its `low` and `high` are NaN): a resample of the users never covers as much of the
    catalogue as all of them.

    Args:
        metrics: Names such as `ndcg@10` and `coverage@10`.
        targets: The targets.
        ranks: float64[n] from 1, by the mid-rank rule.
        top: int32[n, K] item codes, best first, -1 where a list ends early; None if no metric is of lists.
        catalogue_size: N.
        facts: What quality metrics need; None if there are none among the metrics.
        resamples: Of the user bootstrap.
        seed: Of the user bootstrap.

    Raises:
        RecipeError: A name is unknown or a feedback metric.
        DataError: A rank is missing or not finite, or lists are missing or too short, or facts are missing.
    """
    chosen = _of_kinds(metrics, "ranking", "list", "quality")
    given: Floats = np.asarray(ranks, dtype=np.float64)
    same_length(targets=targets.event, ranks=given, lists=top)
    figures = {}
    for each in chosen:
        if each.kind == "ranking":
            figures[each.name] = bootstrap(each, targets.user, None, given, resamples=resamples, seed=seed)
        elif each.terms is not None:
            values = _judged(each, given, top, facts)
            known = ~np.isnan(values)
            figures[each.name] = bootstrap(each, targets.user[known], None, values[known], resamples=resamples, seed=seed)
        else:
            figures[each.name] = _listed(each, targets, top, catalogue_size)
    return figures


def _judged(chosen: Metric, ranks: Floats, top: npt.NDArray[np.int32] | None, facts: ListFacts | None) -> Floats:
    assert chosen.terms is not None
    if facts is None:
        raise DataError(f"{chosen.name} needs facts of the items", got="none", expected="training counts and item vectors")
    if chosen.of_ranks:
        return chosen.terms(ranks, facts)
    if top is None:
        raise DataError(f"{chosen.name} needs top lists", got="ranks only", expected="the best items of each target")
    return chosen.terms(top, facts)


def _listed(chosen: Metric, targets: Targets, top: npt.NDArray[np.int32] | None, catalogue_size: int) -> Figure:
    if top is None:
        raise DataError(f"{chosen.name} needs top lists", got="ranks only", expected="the best items of each target")
    value = chosen.function(top, catalogue_size)
    return Figure(value, math.nan, math.nan, len(targets), len(np.unique(targets.user)))


def _of_kinds(names: Iterable[str], *kinds: Kind) -> list[Metric]:
    chosen = [metric(name) for name in names]
    wrong = [each.name for each in chosen if each.kind not in kinds]
    if wrong:
        task = "feedback" if kinds == ("feedback",) else "next-item"
        raise RecipeError(f"a metric does not fit a {task} task", got=", ".join(wrong), expected=" or ".join(kinds))
    return chosen
