"""Calibration: equal-mass bins by hand, like a plain loop, and where the truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genre.errors import DataError
from genre.evaluation.metrics import bootstrap, ece, reliability
from genre.evaluation.metrics.calibration import BINS

EVENTS = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.001, 0.1, 0.25, 0.5, 0.9, 1.0]), st.integers(0, 4)),
    min_size=1,
    max_size=60,
)


def plain(labels, scores, weights):
    """The definition, one different score after the other."""
    total, below, sums = sum(weights), 0.0, [0.0] * BINS
    for level in sorted(set(scores)):
        own = [i for i, score in enumerate(scores) if score == level]
        mass = sum(weights[i] for i in own)
        place = min(int(BINS * (below + mass / 2) / total), BINS - 1) if total else 0
        sums[place] += sum(weights[i] * (labels[i] - scores[i]) for i in own)
        below += mass
    return sum(map(abs, sums)) / total if total else math.nan


def test_by_hand():
    # Twenty events, two a bin; only the last bin is wrong: it says .9 twice and is right once.
    scores = [i / 100 for i in range(18)] + [0.9, 0.9]
    labels = [0] * 19 + [1]
    low = sum(scores[:18])
    assert ece(labels, scores) == pytest.approx((low + abs(1 - 1.8)) / 20)
    # Residuals of one bin cancel, those of two do not: one event a bin here.
    assert ece([1, 0], [0.5, 0.5]) == 0 and ece([1, 0], [0.5, 0.6]) == pytest.approx((0.5 + 0.6) / 2)
    # A hundred events whose score is .005: one bin, as equal scores share one.
    assert ece([1] + [0] * 99, [0.005] * 100) == pytest.approx(0.01 - 0.005)


def test_equal_width_would_not_see_it():
    """Rare labels: the mean is right, the order is upside down; all scores lie below 1/10."""
    scores = np.array([0.01] * 500 + [0.03] * 500)
    labels = np.zeros(1000)
    labels[:15], labels[500:505] = 1, 1
    assert labels.mean() == pytest.approx(scores.mean())
    assert ece(labels, scores) == pytest.approx(0.02)


@settings(deadline=None)
@given(EVENTS)
def test_equals_a_plain_loop(events):
    labels, scores, weights = zip(*events, strict=True)
    assert ece(labels, scores, weights=weights) == pytest.approx(plain(labels, scores, weights), abs=1e-12, nan_ok=True)


def test_perfect_scores_leave_what_chance_does_and_bent_ones_do_not():
    random = np.random.default_rng(0)
    truth = random.beta(1, 60, 200_000)
    labels = (random.random(len(truth)) < truth).astype(float)
    assert ece(labels, truth) < 0.001
    assert ece(labels, 2 * truth.clip(0, 0.5)) == pytest.approx(truth.mean(), abs=0.001)
    assert ece(labels, np.full(len(truth), labels.mean())) == pytest.approx(0, abs=1e-9)


def test_the_interval_holds_a_known_error():
    """Scores that are twice the truth err by the truth's mean; most intervals of drawn logs hold it."""
    held = 0
    for seed in range(12):
        random = np.random.default_rng(seed)
        truth = random.uniform(0.05, 0.2, 2000)
        labels = (random.random(2000) < truth).astype(float)
        figure = bootstrap("ece", np.arange(2000), labels, 2 * truth, resamples=100)
        held += figure.low <= 0.125 <= figure.high
    assert held >= 10


def test_bins_of_a_plot():
    random = np.random.default_rng(3)
    scores = random.random(5000)
    labels = (random.random(5000) < scores).astype(float)
    found = reliability(labels, scores)
    assert [each.n for each in found] == [500] * 10
    assert np.all(np.diff([each.score for each in found]) > 0)
    assert all(each.interval[0] <= each.share <= each.interval[1] for each in found)
    assert sum(each.interval[0] <= each.score <= each.interval[1] for each in found) >= 8
    error = sum(each.n * abs(each.share - each.score) for each in found) / 5000
    assert error == pytest.approx(ece(labels, scores))
    # No click at all: the interval still says that there may be some (Wilson: z² / (n + z²)).
    (lone,) = reliability(np.zeros(96), np.full(96, 0.01))
    assert lone.interval == pytest.approx((0, 1.96**2 / (96 + 1.96**2)), abs=1e-4)
    assert reliability([], []) == []


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 2], [0.1, 0.2], "the label of row 1 is not a class: got 2.0; expected 0 or 1"),
        ([0, 1], [0.1, 1.2], r"the score of row 1 is not a probability: got 1.2; expected a number in \[0, 1\]"),
        ([0, 1], [-0.1, 0.2], "the score of row 0 is not a probability"),
        ([0, 1], [math.nan, 0.2], "the score of row 0 is not a finite number"),
        ([0, 1, 1], [0.1, 0.2], "the arrays of a metric differ in length"),
    ],
)
@pytest.mark.parametrize("function", [ece, reliability])
def test_bad_input_is_refused(function, labels, scores, message):
    with pytest.raises(DataError, match=message):
        function(labels, scores)
