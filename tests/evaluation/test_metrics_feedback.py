"""Feedback metrics against fractions worked out by hand, brute force and scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from genre.errors import DataError
from genre.evaluation.metrics import accuracy, auc, ece, f1, gauc, log_loss, macro_f1, mae, rmse, user_aucs

EVENTS = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.integers(0, 3), st.integers(0, 4)),
    min_size=1,
    max_size=40,
)


def brute_auc(labels, scores, weights):
    """Count every pair: the definition, one by one."""
    won = total = 0.0
    for i, label in enumerate(labels):
        for j, other in enumerate(labels):
            if label == 1 and other == 0:
                pair = weights[i] * weights[j]
                total += pair
                won += pair * (scores[i] > scores[j]) + pair * (scores[i] == scores[j]) / 2
    return won / total if total else math.nan


@settings(deadline=None)
@given(EVENTS)
def test_auc_is_the_share_of_pairs_in_order(events):
    labels, scores, weights, _ = zip(*events, strict=True)
    assert auc(labels, scores, weights=weights) == pytest.approx(brute_auc(labels, scores, weights), nan_ok=True)


@settings(deadline=None)
@given(EVENTS)
def test_gauc_is_the_mean_of_user_aucs_by_events(events):
    labels, scores, weights, users = map(np.array, zip(*events, strict=True))
    total, won = 0.0, 0.0
    for user in set(users.tolist()):
        mine = users == user
        own = brute_auc(labels[mine], scores[mine], weights[mine])
        if not math.isnan(own):
            won, total = won + own * weights[mine].sum(), total + weights[mine].sum()
    expected = won / total if total else math.nan
    assert gauc(labels, scores, users, weights=weights) == pytest.approx(expected, nan_ok=True)


def test_auc_by_hand_and_like_scikit_learn():
    assert auc([1, 0, 1, 0], [0.9, 0.1, 0.4, 0.4]) == 3.5 / 4
    assert auc([1, 0], [0.3, 0.3]) == 1 / 2
    random = np.random.default_rng(0)
    labels, scores, weights = random.integers(0, 2, 500), random.integers(0, 30, 500) / 30, random.random(500)
    assert auc(labels, scores, weights=weights) == pytest.approx(sk.roc_auc_score(labels, scores, sample_weight=weights))


def test_gauc_leaves_out_and_counts_users_of_one_label():
    labels, scores = [1, 0, 1, 0, 0, 1, 1], [2, 1, 3, 4, 0, 9, 9]
    users = ["a", "a", "b", "b", "b", "c", "c"]  # a: 1; b: 1 of 2 pairs; c: no negative
    assert gauc(labels, scores, users) == pytest.approx((2 * 1 + 3 * 1 / 2) / 5)
    found = user_aucs(labels, scores, users)
    assert found.values.tolist() == [1, 0.5] and found.weights.tolist() == [2, 3] and found.left_out == 1


def test_means_by_hand():
    assert log_loss([1, 0], [0.5, 0.75]) == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert log_loss([1, 0], [0.5, 0.75], weights=[3, 1]) == pytest.approx((3 * math.log(2) + math.log(4)) / 4)
    assert log_loss([2, 0], [[0.25, 0.25, 0.5], [0.125, 0.875, 0]]) == pytest.approx((math.log(2) + math.log(8)) / 2)
    assert log_loss([1], [0.0]) == pytest.approx(-math.log(1e-7))
    assert rmse([1, 2, 3], [1, 4, 2]) == pytest.approx(math.sqrt(5 / 3))
    assert mae([1, 2, 3], [1, 4, 2]) == 3 / 3
    assert mae([1, 2, 3], [1, 4, 2], weights=[0, 1, 3]) == 5 / 4


def test_classes_by_hand():
    assert accuracy([1, 0, 1], [0.5, 0.5, 0.1]) == 1 / 3  # exactly one half counts as 1
    assert accuracy([0, 1], [[0.5, 0.5], [0.4, 0.6]]) == 1  # of equal class scores the lower code
    assert macro_f1([1, 0, 1, 0], [0.9, 0.9, 0.9, 0.1]) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert f1([1, 0, 1, 0], [0.5, 0.9, 0.9, 0.1]) == pytest.approx(2 * 2 / (2 * 2 + 1 + 0))  # one of three calls is wrong
    assert f1([1, 0, 1], [0.9, 0.9, 0.1], weights=[3, 1, 2]) == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert math.isnan(f1([0, 0], [0.1, 0.2])) and f1([0, 1], [0.9, 0.2]) == 0


def test_classes_like_scikit_learn():
    random = np.random.default_rng(1)
    scores, labels, weights = random.random((200, 5)), random.integers(0, 4, 200), random.random(200)
    best = scores.argmax(axis=1)
    assert accuracy(labels, scores, weights=weights) == pytest.approx(sk.accuracy_score(labels, best, sample_weight=weights))
    assert macro_f1(labels, scores, weights=weights) == pytest.approx(
        sk.f1_score(labels, best, average="macro", sample_weight=weights)
    )
    shares = scores / scores.sum(axis=1, keepdims=True)
    assert log_loss(labels, shares) == pytest.approx(sk.log_loss(labels, shares, labels=range(5)))


@pytest.mark.parametrize("function", [auc, log_loss, rmse, mae, ece, accuracy, f1, macro_f1])
def test_no_event_gives_nan(function):
    assert math.isnan(function([], []))
    assert math.isnan(function([1, 0], [0.2, 0.3], weights=[0, 0]))


def test_one_label_gives_nan():
    assert math.isnan(auc([1, 1], [0.1, 0.2])) and math.isnan(gauc([1, 1], [0.1, 0.2], [0, 0]))
    assert math.isnan(gauc([], [], []))


@pytest.mark.parametrize("function", [auc, log_loss, rmse, mae, ece, accuracy, f1, macro_f1])
def test_nan_score_names_its_row(function):
    with pytest.raises(DataError, match="the score of row 1 is not a finite number: got nan"):
        function([1, 0, 1], [0.2, math.nan, 0.3])


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="the label of row 1 is not a class: got 3.0; expected 0 or 1"):
        auc([1, 3], [0.1, 0.2])
    with pytest.raises(DataError, match="the label of row 0 is not a finite number"):
        rmse([math.nan], [1])
    with pytest.raises(DataError, match="the score of row 0 is not a probability: got 1.5"):
        log_loss([1], [1.5])
    with pytest.raises(DataError, match="got 2 labels, 1 scores"):
        mae([1, 2], [1])
    with pytest.raises(DataError, match="the weight of row 1 is negative"):
        mae([1, 2], [1, 2], weights=[1, -1])
    with pytest.raises(DataError, match="expected a class code from 0 to 2"):
        accuracy([3], [[0.1, 0.2, 0.7]])
