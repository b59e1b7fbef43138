"""Metrics of the order within an impression, averaged over impressions.

Owns: AUC, reciprocal rank and NDCG of the items shown together, as the MIND benchmark has them. Ignores intervals
(`genre.evaluation.metrics.bootstrap`) and rankings of the whole catalogue (`genre.evaluation.metrics.ranking`).

Every impression counts once, however many items it shows. One whose labels are all 1 or all 0 has no order to get right: it is
left out, and does not count in n either.

**Ties.** An impression's value is its mean over all orders of the items that have equal scores (McSherry and Najork 2008), so the
order in a file can neither help nor hurt.

    >>> impression_mrr(labels=[1, 0, 1, 0, 0], scores=[9, 5, 1, 7, 8], impressions=[0, 0, 0, 1, 1])  # ranks 1 and 3
    0.6666666666666666
    >>> round(impression_ndcg(labels=[0, 1], scores=[3, 3], impressions=[7, 7], k=5), 4)  # first or second
    0.8155
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from genre.errors import DataError
from genre.evaluation.metrics.auc import user_aucs
from genre.evaluation.metrics.checks import Floats, Integers, Vector, binary_labels, event_weights, finite, ratio, same_length


class ImpressionValues(NamedTuple):
    """One value per impression that has both labels.

    `values`: float64 [V]; `first`: int64 [V], one event of each, to look up its user.
    """

    values: Floats
    first: Integers


def impression_auc(labels: Vector, scores: Vector, impressions: Vector, *, weights: Vector | None = None) -> float:
    """Return the mean over impressions of the AUC within each, ties counted half.

    Args:
        labels: [n] of 0 and 1.
        scores: [n], larger is better.
        impressions: [n] codes or names, in any order.
        weights: [n], ones by default; an impression weighs as much as its events on average.

    NaN if no impression has both labels.

    Raises:
        DataError: A label is neither 0 nor 1, a score is not finite, or the lengths differ.
    """
    return _mean(auc_values(labels, scores, impressions), impressions, weights)


def impression_mrr(labels: Vector, scores: Vector, impressions: Vector, *, weights: Vector | None = None) -> float:
    """Return the mean over impressions of Σ_p 1 / rank(p) / P over the P positives p of each.

    With several clicks it is their mean reciprocal rank, not that of the first one (MIND's own definition). Arguments, ties,
    empty input and `Raises` as for `impression_auc`.
    """
    return _mean(reciprocal_values(labels, scores, impressions), impressions, weights)


def impression_ndcg(labels: Vector, scores: Vector, impressions: Vector, k: int, *, weights: Vector | None = None) -> float:
    """Return the mean over impressions of DCG@k / ideal DCG@k, gains 1 and 0.

    DCG@k = Σ_p [rank(p) ≤ k] / log2(1 + rank(p)); the ideal one has the positives first. Arguments, ties, empty input and
    `Raises` as for `impression_auc`.
    """
    return _mean(ndcg_values(labels, scores, impressions, k), impressions, weights)


def auc_values(labels: Vector, scores: Vector, impressions: Vector) -> ImpressionValues:
    """Return the AUC of each impression."""
    found = user_aucs(labels, scores, impressions)
    _, first = np.unique(np.asarray(impressions), return_index=True)
    return ImpressionValues(found.values, first[found.users])


def reciprocal_values(labels: Vector, scores: Vector, impressions: Vector) -> ImpressionValues:
    """Return the mean reciprocal rank of each impression's positives."""
    order = _Order(labels, scores, impressions)
    return order.values(1 / np.arange(1, order.longest + 1), np.maximum(order.positives, 1))


def ndcg_values(labels: Vector, scores: Vector, impressions: Vector, k: int) -> ImpressionValues:
    """Return the NDCG@k of each impression."""
    order = _Order(labels, scores, impressions)
    place = np.arange(1, order.longest + 1)
    discount = np.where(place <= k, 1 / np.log2(1 + place), 0.0)
    return order.values(discount, np.cumsum(discount)[np.maximum(order.positives, 1) - 1])


class _Order:
    """Events in impressions, best first; what the gains of a discount by rank are summed over.

    Attributes:
        positives: int64 [G] positives of each impression.
        longest: Events of the longest impression (at least 1).
    """

    def __init__(self, labels: Vector, scores: Vector, impressions: Vector) -> None:
        truth, values = binary_labels(labels), finite(scores, "score")
        _, first, group = np.unique(np.asarray(impressions), return_index=True, return_inverse=True)
        same_length(labels=truth, scores=values, impressions=group)
        self._first, groups = first.astype(np.int64), len(first)
        order = np.lexsort((-values, group))
        group, truth, values = group[order], truth[order], values[order]
        sizes = np.bincount(group, minlength=groups)
        self.positives = np.bincount(group, truth, groups).astype(np.int64)
        self._kept = (self.positives > 0) & (self.positives < sizes)
        self.longest = int(sizes.max(initial=1))
        place = np.arange(len(group)) - (np.cumsum(sizes) - sizes)[group]
        opens = np.ones(len(group), dtype=bool)  # where a block of equal scores begins
        opens[1:] = (group[1:] != group[:-1]) | (values[1:] != values[:-1])
        starts = np.flatnonzero(opens)
        self._length = np.diff(np.append(starts, len(group)))
        self._from = place[starts]
        self._group = group[starts]
        self._clicks = np.add.reduceat(truth, starts) if len(starts) else np.empty(0)

    def values(self, discount: Floats, ideal: Floats) -> ImpressionValues:
        """Sum each impression's discounts at its positives' ranks, of equal scores their mean; divide by the ideal sum."""
        sums = np.concatenate([[0.0], np.cumsum(discount)])
        share = (sums[self._from + self._length] - sums[self._from]) / self._length
        total = np.bincount(self._group, self._clicks * share, len(self.positives))
        return ImpressionValues((total / ideal)[self._kept], self._first[self._kept])


def _mean(found: ImpressionValues, impressions: Vector, weights: Vector | None) -> float:
    names = np.asarray(impressions)
    weight = event_weights(weights, len(names))
    _, group = np.unique(names, return_inverse=True)
    mean = np.bincount(group, weight) / np.maximum(np.bincount(group), 1) if len(group) else np.empty(0)
    chosen = mean[group[found.first]]
    return float(ratio(np.array(chosen @ found.values), np.array(chosen.sum())))


def need_impressions(name: str, impressions: object) -> None:
    """Refuse a metric over impressions where there are none.

    Raises:
        DataError: `impressions` is None.
    """
    if impressions is None:
        raise DataError(
            f"{name} is a mean over impressions, and the log has none",
            got="no column impression_id",
            expected="events that were shown together under one impression_id",
            todo="import the log with --map impression_id=THEIRS, or take auc and gauc",
        )
