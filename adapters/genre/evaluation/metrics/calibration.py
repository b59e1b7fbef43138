"""Calibration: equal-mass bins of predicted probabilities, their error, and the data of a reliability plot.

Owns: the binning, the expected calibration error with an optional weight per event, and the bins as rows. Ignores
intervals of the error (`genre.evaluation.metrics.bootstrap`) and drawing.

Ten bins hold a tenth of the events each, by their scores. Bins of equal width would put a rare label's events, whose scores
are all small, into the first bin, where the error only compares means.

    >>> ece(labels=[0, 1, 0, 1], scores=[0.1, 0.1, 0.8, 0.8])  # two scores, two bins: |1 - .2| / 4 + |1 - 1.6| / 4
    0.35
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from genre.evaluation.metrics.checks import (
    Floats,
    Integers,
    Vector,
    binary_labels,
    event_weights,
    probabilities,
    ratio,
    same_length,
)

BINS = 10
"""Bins of equal mass (Nguyen and O'Connor 2015, section 4; the error itself: Guo et al. 2017, eq. 5)."""


def ece(labels: Vector, scores: Vector, *, weights: Vector | None = None) -> float:
    """Return the expected calibration error over 10 bins of equal mass.

    ECE = Σ_b |Σ_{i in b} w_i (y_i - p_i)| / Σ w. Events are sorted by score; bin b holds those whose middle, the weight of all
    lower scores plus half that of their own score, lies in [b/10, (b+1)/10) of the total weight. Equal scores share a bin.
    NaN for an empty input. Of n events with perfect scores it is not 0 but what chance leaves, about Σ_b √(n_b p (1 - p)) / n.

    Raises:
        DataError: A label is neither 0 nor 1, a score is not a probability, or the lengths differ.
    """
    truth, given = binary_labels(labels), probabilities(scores)
    count = same_length(labels=truth, scores=given)
    return float(CalibrationOrder(truth, given)(event_weights(weights, count)[None, :])[0])


class CalibrationOrder:
    """The order of one set of scores, sorted once, to be weighted many times; every weighting has bins of its own.

    Args:
        truth: [n] of 0 and 1.
        given: [n] probabilities.
    """

    def __init__(self, truth: Floats, given: Floats) -> None:
        self.order = np.argsort(given, kind="stable")
        self.residual = (truth - given)[self.order]
        held = given[self.order]
        self.starts = np.flatnonzero(np.concatenate([[True], held[1:] != held[:-1]])) if len(held) else np.empty(0, np.int64)

    def __call__(self, weights: Floats) -> Floats:
        """Return the R errors for [R, n] weights."""
        total = weights.sum(axis=1)
        if not len(self.starts):
            return np.full(len(weights), np.nan)
        sorted_ = weights[:, self.order]
        mass = np.add.reduceat(sorted_, self.starts, axis=1)
        residual = np.zeros((len(weights), len(self.starts) + 1))
        np.cumsum(np.add.reduceat(sorted_ * self.residual, self.starts, axis=1), axis=1, out=residual[:, 1:])
        ends = self._ends(mass, total)
        return ratio(np.abs(np.diff(np.take_along_axis(residual, ends, axis=1), axis=1)).sum(axis=1), total)

    def _ends(self, mass: Floats, total: Floats) -> Integers:
        """[R, L] weight of each different score to [R, 11]: before which score each bin ends, the first column 0."""
        middle = np.cumsum(mass, axis=1) - mass / 2
        ends = np.zeros((len(mass), BINS + 1), dtype=np.int64)
        for row, (places, whole) in enumerate(zip(middle, total, strict=True)):
            ends[row, 1:-1] = np.searchsorted(places, whole * np.arange(1, BINS) / BINS, side="left")
        ends[:, -1] = mass.shape[1]
        return ends

    def bins(self) -> Integers:
        """[n] the bin of each event in the order given, where all weigh the same; some bins may be empty."""
        count = np.diff(np.append(self.starts, len(self.order))).astype(np.float64)
        ends = self._ends(count[None, :], np.array([count.sum()]))[0]
        of_level = np.repeat(np.arange(BINS), np.diff(ends))
        found = np.empty(len(self.order), dtype=np.int64)
        found[self.order] = np.repeat(of_level, count.astype(np.int64))
        return found


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability plot.

    Attributes:
        n: Events.
        score: Their mean score.
        share: The share of them that has label 1.
        interval: 95 % of that share by Wilson's score interval, which takes the events for independent.
    """

    n: int
    score: float
    share: float
    interval: tuple[float, float]


def reliability(labels: Vector, scores: Vector) -> list[Bin]:
    """Return the bins of `ece` that hold events, lowest scores first; none for an empty input.

    Raises:
        DataError: As `ece`.
    """
    from scipy.stats import binomtest

    truth, given = binary_labels(labels), probabilities(scores)
    if not same_length(labels=truth, scores=given):
        return []
    bins, found = CalibrationOrder(truth, given).bins(), []
    for number in np.unique(bins):
        mine = bins == number
        count, right = int(mine.sum()), int(truth[mine].sum())
        interval = binomtest(right, count).proportion_ci(method="wilson")
        found.append(Bin(count, float(given[mine].mean()), right / count, (float(interval.low), float(interval.high))))
    return found
