"""The metrics by the names that recipes use.

Owns: `Metric` (what a name means: direction, kind, cut-off, formula, and the form a bootstrap needs), the table
`METRICS`, and `metric`, which reads a name such as `ndcg@10`. Ignores the formulas themselves.

    >>> metric("ndcg@10").direction, metric("ndcg@10").kind, metric("rmse").direction
    ('higher', 'ranking', 'lower')
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from genre.errors import RecipeError
from genre.evaluation.metrics import feedback, impressions, lists, ranking
from genre.evaluation.metrics.auc import AucOrder, auc, gauc, user_aucs
from genre.evaluation.metrics.calibration import CalibrationOrder, ece
from genre.evaluation.metrics.checks import Floats, Integers, Vector, binary_labels, finite, probabilities, same_length, sums_by

Direction: TypeAlias = Literal["higher", "lower"]
Kind: TypeAlias = Literal["feedback", "ranking", "list", "quality"]
Prepared: TypeAlias = Callable[[Floats], Floats]
"""Weights of the users, [R, U], to R values of the metric."""
Prepare: TypeAlias = Callable[[Any, Any, Integers, int, Any], Prepared]
"""Labels (None for ranks), scores or ranks, user codes [n], U, and impressions [n] or None, to a `Prepared`."""

CUTOFFS = (5, 10, 20)


@dataclass(frozen=True)
class Metric:
    """One metric under its full name.

    Attributes:
        name: As in a recipe, such as `auc` or `hr@10`.
        direction: Whether a `higher` or a `lower` value is better.
        kind: `feedback` (of labels and scores), `ranking` (of the ranks of the targets), `list` (of all top lists together) or
            `quality` (of each top list or rank, given facts about the items).
        function: The formula. Called with (labels, scores), (labels, scores, users) if `by_user`, (labels, scores, impressions)
            if `by_impression`, (ranks), (top, catalogue_size) or (top or ranks, facts); all take `weights=`.
        prepare: For the bootstrap: sorts or sums once, then weighs users many times. None for lists.
        k: The cut-off of a ranking or list metric.
        by_user: Whether the formula needs to know whose event it is.
        by_impression: Whether it needs to know which events were shown together.
        terms: Of a quality metric: (top or ranks, facts) to the value of each target, NaN where it has none; what `prepare` takes
            for scores.
        of_ranks: Whether a quality metric is of ranks, and not of top lists.
    """

    name: str
    direction: Direction
    kind: Kind
    function: Callable[..., float]
    prepare: Prepare | None
    k: int | None = None
    by_user: bool = False
    by_impression: bool = False
    terms: Callable[..., Floats] | None = None
    of_ranks: bool = False

    def better(self, value: float, than: float) -> bool:
        """Return whether `value` is strictly better; any number is better than NaN, NaN than nothing."""
        if np.isnan(value) or np.isnan(than):
            return bool(np.isnan(than) and not np.isnan(value))
        return value > than if self.direction == "higher" else value < than


def metric(name: str) -> Metric:
    """Return the metric of a name; a ranking or list metric may have any cut-off, such as `hr@50`.

    Raises:
        RecipeError: There is no such metric, or its cut-off is missing or not a positive number.
    """
    if name in METRICS:
        return METRICS[name]
    family, at, cutoff = name.partition("@")
    if family in _CUT and at and cutoff.isascii() and cutoff.isdigit() and int(cutoff) > 0:
        return _CUT[family](int(cutoff))
    known = sorted(METRICS)
    near = difflib.get_close_matches(name, known, n=1)
    todo = f"did you mean {near[0]}?" if near else None
    raise RecipeError("unknown metric", got=repr(name), expected=f"one of {', '.join(known)}", todo=todo)


def _additive(statistics: Callable[[Any, Any], Floats], finish: feedback.Finish) -> Prepare:
    def prepare(labels: Any, scores: Any, users: Integers, count: int, shown: Any = None) -> Prepared:
        each = statistics(labels, scores)
        same_length(scores=each, users=users)
        totals = sums_by(users, each, count)
        return lambda weights: finish(weights @ totals)

    return prepare


def _prepare_auc(labels: Any, scores: Any, users: Integers, count: int, shown: Any = None) -> Prepared:
    truth, values = binary_labels(labels), finite(scores, "score")
    same_length(labels=truth, scores=values, users=users)
    order = AucOrder(truth, values)
    return lambda weights: order(weights[:, users])


def _prepare_ece(labels: Any, scores: Any, users: Integers, count: int, shown: Any = None) -> Prepared:
    truth, values = binary_labels(labels), probabilities(scores)
    same_length(labels=truth, scores=values, users=users)
    order = CalibrationOrder(truth, values)
    return lambda weights: order(weights[:, users])


def _prepare_gauc(labels: Any, scores: Any, users: Integers, count: int, shown: Any = None) -> Prepared:
    # All events of a user share one weight here, so its own AUC never changes: it is a mean over users.
    found = user_aucs(labels, scores, users)
    codes = np.unique(users)[found.users]
    totals = np.zeros((count, 2))
    totals[codes] = np.stack([found.weights, found.weights * found.values], axis=1)
    return lambda weights: feedback.mean(weights @ totals)


def _of_ranks(terms: Callable[[Vector, int], Floats], k: int) -> Prepare:
    def statistics(labels: Any, ranks: Any) -> Floats:
        each = terms(ranks, k)
        return np.stack([np.ones(len(each)), each], axis=1)

    return _additive(statistics, feedback.mean)


def _feedback(name: str, direction: Direction, function: Callable[..., float], prepare: Prepare) -> Metric:
    return Metric(name, direction, "feedback", function, prepare, by_user=name == "gauc")


def _shown(
    name: str,
    function: Callable[..., float],
    values: Callable[[Any, Any, Any], impressions.ImpressionValues],
    k: int | None = None,
) -> Metric:
    def prepare(labels: Any, scores: Any, users: Integers, count: int, shown: Any = None) -> Prepared:
        impressions.need_impressions(name, shown)
        found = values(labels, scores, shown)
        each = np.stack([np.ones(len(found.values)), found.values], axis=1)
        totals = sums_by(users[found.first], each, count)
        return lambda weights: feedback.mean(weights @ totals)

    return Metric(name, "higher", "feedback", function, prepare, k, by_impression=True)


def _shown_ndcg(k: int) -> Metric:
    name = f"impression_ndcg@{k}"
    return _shown(name, partial(impressions.impression_ndcg, k=k), partial(impressions.ndcg_values, k=k), k)


def _ranked(family: str, function: Callable[..., float], terms: Callable[[Vector, int], Floats], k: int) -> Metric:
    return Metric(f"{family}@{k}", "higher", "ranking", partial(function, k=k), _of_ranks(terms, k), k)


def _listed(family: str, direction: Direction, function: Callable[..., float], k: int) -> Metric:
    def cut(top: Any, catalogue_size: int, *, weights: Vector | None = None) -> float:
        return function(top, k, catalogue_size, weights=weights)

    return Metric(f"{family}@{k}", direction, "list", cut, None, k)


def _judged(family: str, function: Callable[..., float], terms: Callable[..., Floats], k: int) -> Metric:
    def cut(given: Any, facts: lists.ListFacts, *, weights: Vector | None = None) -> float:
        return function(given, k, facts, weights=weights)

    def values(given: Any, facts: lists.ListFacts) -> Floats:
        return terms(given, k, facts)

    prepare = _of_ranks(lambda each, _: finite(each, "value"), k)
    return Metric(f"{family}@{k}", "higher", "quality", cut, prepare, k, terms=values, of_ranks=family == "serendipity")


_CUT: dict[str, Callable[[int], Metric]] = {
    "hr": partial(_ranked, "hr", ranking.hr, ranking.hits),
    "ndcg": partial(_ranked, "ndcg", ranking.ndcg, ranking.gains),
    "mrr": partial(_ranked, "mrr", ranking.mrr, ranking.reciprocals),
    "coverage": partial(_listed, "coverage", "higher", ranking.coverage),
    "gini": partial(_listed, "gini", "lower", ranking.gini),
    "diversity": partial(_judged, "diversity", lists.diversity, lists.distances),
    "novelty": partial(_judged, "novelty", lists.novelty, lists.information),
    "serendipity": partial(_judged, "serendipity", lists.serendipity, lists.surprises),
    "impression_ndcg": _shown_ndcg,
}

_PLAIN = [
    _feedback("auc", "higher", auc, _prepare_auc),
    _feedback("gauc", "higher", gauc, _prepare_gauc),
    _feedback("log_loss", "lower", feedback.log_loss, _additive(feedback.log_loss_statistics, feedback.mean)),
    _feedback("rmse", "lower", feedback.rmse, _additive(feedback.squared_error_statistics, feedback.root_mean)),
    _feedback("mae", "lower", feedback.mae, _additive(feedback.absolute_error_statistics, feedback.mean)),
    _feedback("ece", "lower", ece, _prepare_ece),
    _feedback("accuracy", "higher", feedback.accuracy, _additive(feedback.accuracy_statistics, feedback.mean)),
    _feedback("f1", "higher", feedback.f1, _additive(feedback.positive_statistics, feedback.positive_f1)),
    _shown("impression_auc", impressions.impression_auc, impressions.auc_values),
    _shown("impression_mrr", impressions.impression_mrr, impressions.reciprocal_values),
    _feedback("macro_f1", "higher", feedback.macro_f1, _additive(feedback.f1_statistics, feedback.macro_mean)),
]

METRICS: dict[str, Metric] = {each.name: each for each in _PLAIN} | {
    f"{family}@{k}": build(k) for family, build in _CUT.items() for k in CUTOFFS
}
"""Every metric at the usual cut-offs; `metric` builds the others."""
