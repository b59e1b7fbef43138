"""AUC over all events, and within each user.

Owns: both formulas, with an optional weight per event, and the one sort that many weightings share. Ignores
intervals (`genre.evaluation.metrics.bootstrap`) and other metrics (`genre.evaluation.metrics.feedback`).

    >>> auc(labels=[1, 0, 1, 0], scores=[0.9, 0.1, 0.4, 0.4])  # 3 of 4 pairs in order, 1 tied
    0.875
    >>> gauc(labels=[1, 0, 1, 0, 1], scores=[2, 1, 3, 4, 9], users=["a", "a", "b", "b", "c"])  # c has one label
    0.5
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from genre.evaluation.metrics.checks import Floats, Integers, Vector, binary_labels, event_weights, finite, ratio, same_length


def auc(labels: Vector, scores: Vector, *, weights: Vector | None = None) -> float:
    """Return the area under the ROC curve: the share of (positive, negative) pairs that the scores put in order.

    AUC = Σ_p Σ_q w_p w_q ([s_p > s_q] + ½ [s_p = s_q]) / (Σ_p w_p · Σ_q w_q) over positives p and negatives q.

    Ties count half. NaN without a positive or without a negative, so for an empty input too.

    Raises:
        DataError: A label is neither 0 nor 1, a score is not finite, or the lengths differ.
    """
    truth, values = binary_labels(labels), finite(scores, "score")
    count = same_length(labels=truth, scores=values)
    return float(AucOrder(truth, values)(event_weights(weights, count)[None, :])[0])


class AucOrder:
    """The order of one set of scores, sorted once, to be weighted many times.

    Args:
        truth: [n] of 0 and 1.
        values: [n] finite scores.
    """

    def __init__(self, truth: Floats, values: Floats) -> None:
        self.positive = np.flatnonzero(truth == 1)
        negative = np.flatnonzero(truth == 0)
        self.negative = negative[np.argsort(values[negative], kind="stable")]
        self.below = np.searchsorted(values[self.negative], values[self.positive], side="left")
        self.up_to = np.searchsorted(values[self.negative], values[self.positive], side="right")

    def __call__(self, weights: Floats) -> Floats:
        """Return the R values of the AUC for [R, n] weights."""
        negatives = _cumulated(weights[:, self.negative])
        positives = weights[:, self.positive]
        in_order = negatives[:, self.below]
        in_order += negatives[:, self.up_to]
        wins = np.einsum("rp,rp->r", positives, in_order) / 2
        return ratio(wins, positives.sum(axis=1) * negatives[:, -1])


class UserAucs(NamedTuple):
    """The AUC within each user that has both labels.

    `users`: int64 [V] codes; `values`: float64 [V]; `weights`: float64 [V], the users' total event weight; `left_out`:
    how many users were left out since their labels are all 1 or all 0.
    """

    users: Integers
    values: Floats
    weights: Floats
    left_out: int


def user_aucs(labels: Vector, scores: Vector, users: Vector, *, weights: Vector | None = None) -> UserAucs:
    """Return the AUC within each user, ties counted half, and the number of users of one label, who have none.

    Args:
        labels: [n] of 0 and 1.
        scores: [n].
        users: [n] codes or names, in any order.
        weights: [n], ones by default. A user whose positives or negatives weigh nothing is left out.

    Raises:
        DataError: As `auc`.
    """
    truth, values = binary_labels(labels), finite(scores, "score")
    _, user = np.unique(np.asarray(users), return_inverse=True)
    count = same_length(labels=truth, scores=values, users=user)
    weight = event_weights(weights, count)
    total = int(user.max(initial=-1)) + 1
    levels, level = np.unique(values, return_inverse=True)
    key = user.astype(np.int64) * len(levels) + level
    positive, negative = np.flatnonzero(truth == 1), np.flatnonzero(truth == 0)
    negative = negative[np.argsort(key[negative], kind="stable")]
    sums = _cumulated(weight[None, negative])[0]
    held = key[negative]
    below = sums[np.searchsorted(held, key[positive], side="left")]
    up_to = sums[np.searchsorted(held, key[positive], side="right")]
    first = sums[np.searchsorted(held, user[positive].astype(np.int64) * len(levels), side="left")]
    wins = np.bincount(user[positive], weights=weight[positive] * ((below + up_to) / 2 - first), minlength=total)
    up: Floats = np.bincount(user[positive], weights=weight[positive], minlength=total).astype(np.float64)
    down: Floats = np.bincount(user[negative], weights=weight[negative], minlength=total).astype(np.float64)
    kept = np.flatnonzero((up > 0) & (down > 0))
    return UserAucs(kept, wins[kept] / (up[kept] * down[kept]), up[kept] + down[kept], total - len(kept))


def gauc(labels: Vector, scores: Vector, users: Vector, *, weights: Vector | None = None) -> float:
    """Return the AUC within each user, averaged with the weight of the user's events.

    GAUC = Σ_u n_u AUC_u / Σ_u n_u, n_u the number (or total weight) of the events of user u (Zhu et al. 2017, eq. 8).

    Ties count half within a user. Users of one label are left out; `user_aucs` counts them. NaN if none is left.

    Raises:
        DataError: As `auc`.
    """
    result = user_aucs(labels, scores, users, weights=weights)
    return float(ratio(np.array(result.weights @ result.values), np.array(result.weights.sum())))


def _cumulated(weights: Floats) -> Floats:
    """[R, m] to [R, m + 1]: the sum of the first 0, 1, … m columns."""
    sums = np.zeros((weights.shape[0], weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums
