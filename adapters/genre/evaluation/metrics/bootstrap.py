"""Intervals of metrics: users are drawn again, not events.

Owns: the user bootstrap (percentile, 95 %) of one metric and of the difference of two scorers on the same events, and
`Figure`, the value with its interval. Ignores formulas (`genre.evaluation.metrics.by_name`).

Events of one user depend on each other, so a resample draws U of the U users with replacement: user u's events get
weight c_u, (c_1 … c_U) multinomial, and the metric is computed with these weights (Efron and Tibshirani 1993,
chapter 13, for the percentiles). Nothing is sorted twice: AUC sorts once and then cumulates weights, all others are
functions of totals per user.

    >>> bootstrap("mae", users=[0, 0, 1], labels=[1, 2, 3], scores=[1, 2, 3]).as_dict()
    {'value': 0.0, 'interval': [0.0, 0.0], 'n': 3}
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from genre.errors import DataError
from genre.evaluation.metrics.auc import user_aucs
from genre.evaluation.metrics.by_name import Metric, Prepared, metric
from genre.evaluation.metrics.checks import Floats, Integers, Vector, same_length
from genre.evaluation.metrics.impressions import auc_values

RESAMPLES = 1000
LEVEL = 0.95
MIN_USERS = 20
"""With fewer users an interval is too narrow: resamples of a few users vary less than users do."""
_BLOCK = 2**21
"""At most about this many weights (users or events, times resamples) are held at once."""


@dataclass(frozen=True)
class Figure:
    """A value with its 95 % interval.

    Attributes:
        value: The metric, or the difference of two.
        low: The 2.5 % percentile; NaN where there is no interval.
        high: The 97.5 % percentile; NaN where there is no interval.
        n: Events (or lists) that the value is made of.
        users: Users that they belong to. For GAUC, `n` and `users` leave out the users of one label. For metrics over
            impressions, `n` counts impressions, and both leave out those of one label.
    """

    value: float
    low: float
    high: float
    n: int
    users: int

    def as_dict(self) -> dict[str, Any]:
        """Return `{"value", "interval": [low, high], "n"}`, with None for NaN, which JSON has not."""
        value, low, high = (None if math.isnan(x) else float(x) for x in (self.value, self.low, self.high))
        return {"value": value, "interval": [low, high], "n": self.n}


def bootstrap(
    name: str | Metric,
    users: Vector,
    labels: Vector | None,
    scores: Vector,
    *,
    impressions: Vector | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Figure:
    """Return a metric with its user-bootstrap interval.

    Args:
        name: A feedback or ranking metric, or its name.
        users: [n] whose event it is, codes or names in any order.
        labels: [n]; None for a ranking metric.
        scores: [n] (or [n, C]); the ranks for a ranking metric.
        impressions: [n] which events were shown together, each impression one user's; needed for metrics over impressions.
        resamples: How often users are drawn.
        seed: Of the draws; equal seeds and users give equal draws, whatever the metric.

    A resample that has no value (all labels alike) is left out of the percentiles. No event: NaN throughout.

    Raises:
        DataError: The metric is of lists, or what the metric refuses.
    """
    chosen = _resampled(name)
    codes, count = _codes(users)
    prepared = chosen.prepare(labels, scores, codes, count, impressions) if chosen.prepare else _never()
    value = float(prepared(np.ones((1, count)))[0])
    low, high = _percentiles(_draws([prepared], count, len(codes), resamples, seed))
    n, kept = _counted(chosen, labels, scores, codes, count, impressions)
    return Figure(value, low, high, n, kept)


def paired_bootstrap(
    name: str | Metric,
    users: Vector,
    labels: Vector | None,
    scores_a: Vector,
    scores_b: Vector,
    *,
    impressions: Vector | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Figure:
    """Return metric(a) - metric(b) on the same events, with the interval of the difference.

    Both are computed on the same draws, so what users have in common cancels. Arguments, empty input and `Raises` as
    for `bootstrap`.
    """
    draws = paired_draws(name, users, labels, scores_a, scores_b, impressions=impressions, resamples=resamples, seed=seed)
    return draws[0]


def paired_draws(
    name: str | Metric,
    users: Vector,
    labels: Vector | None,
    scores_a: Vector,
    scores_b: Vector,
    *,
    impressions: Vector | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Figure, Floats]:
    """Return what `paired_bootstrap` does, and the difference of each resample that has one, float64 [≤ resamples]."""
    chosen = _resampled(name)
    codes, count = _codes(users)
    both = [
        chosen.prepare(labels, each, codes, count, impressions) if chosen.prepare else _never() for each in (scores_a, scores_b)
    ]
    value = _difference(both, np.ones((1, count)))[0]
    drawn = _draws(both, count, len(codes), resamples, seed)
    n, kept = _counted(chosen, labels, scores_a, codes, count, impressions)
    return Figure(float(value), *_percentiles(drawn), n, kept), drawn


def user_draws(users: int, resamples: int, seed: int, *, block: int) -> Iterator[Floats]:
    """Yield float64 [≤ block, U] multinomial weights of the users, `resamples` rows in all; each row sums to U."""
    generator = np.random.default_rng(seed)
    share = np.full(users, 1 / users)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        yield generator.multinomial(users, share, size=rows).astype(np.float64)


def _draws(scorers: list[Prepared], users: int, events: int, resamples: int, seed: int) -> Floats:
    """The metric (or difference) of each resample that has one."""
    if users == 0 or resamples == 0:
        return np.empty(0)
    block = max(1, _BLOCK // max(events, users))
    values = np.concatenate([_difference(scorers, draw) for draw in user_draws(users, resamples, seed, block=block)])
    return values[~np.isnan(values)]


def _percentiles(values: Floats) -> tuple[float, float]:
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _difference(scorers: list[Prepared], weights: Floats) -> Floats:
    first, *others = scorers
    result = first(weights)
    for other in others:
        result = result - other(weights)
    return result


def _resampled(name: str | Metric) -> Metric:
    chosen = metric(name) if isinstance(name, str) else name
    if chosen.prepare is None:
        raise DataError(
            f"{chosen.name} has no user bootstrap",
            got="top lists",
            expected="a feedback or ranking metric",
            todo="a resample misses a third of the users, so it always covers less than all of them; report the value",
        )
    return chosen


def _never() -> Prepared:
    raise AssertionError("_resampled lets no such metric through")


def _codes(users: Vector) -> tuple[Integers, int]:
    names, codes = np.unique(np.asarray(users), return_inverse=True)
    return codes.astype(np.int64), len(names)


def _counted(
    chosen: Metric, labels: Any, scores: Any, codes: Integers, count: int, impressions: Vector | None
) -> tuple[int, int]:
    if chosen.by_impression:
        first = auc_values(labels, scores, impressions).first  # type: ignore[arg-type]
        return len(first), len(np.unique(codes[first]))
    if not chosen.by_user:
        return same_length(scores=np.asarray(scores), users=codes), count
    found = user_aucs(labels, scores, codes)
    return int(found.weights.sum()), len(found.users)
