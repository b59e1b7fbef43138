"""Ranks, ranking metrics and top lists against fractions worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genre.errors import DataError
from genre.evaluation.metrics import coverage, gini, hr, mid_ranks, mrr, ndcg, top_items

LISTS = [[0, 1, 2], [0, 1, 3], [0, -1, -1]]


def test_rank_counts_better_and_half_of_the_equal_others():
    scores = np.array([[5, 3, 3, 3, 1], [5, 3, 3, 3, 1]], dtype=np.float32)
    assert mid_ranks(scores, np.array([1, 4])).tolist() == [1 + 1 + 2 / 2, 5]


def test_a_constant_scorer_is_in_the_middle():
    assert mid_ranks(np.zeros((2, 10)), np.array([0, 9])).tolist() == [11 / 2, 11 / 2]


def test_ranking_metrics_by_hand():
    ranks = [1, 2.5, 3, 11]
    assert hr(ranks, 10) == 3 / 4 and hr(ranks, 2) == 1 / 4
    assert ndcg(ranks, 10) == pytest.approx((1 + 1 / math.log2(3.5) + 1 / 2) / 4)
    assert mrr(ranks, 10) == pytest.approx((1 + 1 / 2.5 + 1 / 3) / 4)
    assert mrr(ranks, 10, weights=[0, 2, 0, 2]) == pytest.approx(1 / 2.5 / 2)


def test_coverage_and_gini_by_hand():
    assert coverage(LISTS, 3, 8) == 4 / 8 and coverage(LISTS, 1, 8) == 1 / 8
    assert coverage(LISTS, 3, 8, weights=[0, 0, 1]) == 1 / 8
    # Exposures 1, 1, 2, 3 of 4 items: (-3·1 - 1·1 + 1·2 + 3·3) / (4 · 7).
    assert gini(LISTS, 3, 4) == pytest.approx(7 / 28)
    assert gini([[0], [0]], 1, 4) == pytest.approx(3 / 4)
    assert gini([[0], [1], [2], [3]], 1, 4) == 0


def test_no_target_gives_nan():
    for function in (hr, ndcg, mrr):
        assert math.isnan(function([], 10))
    for function in (coverage, gini):
        assert math.isnan(function(np.empty((0, 20)), 10, 5))
    assert math.isnan(gini([[-1, -1]], 2, 5)) and coverage([[-1, -1]], 2, 5) == 0


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="the score of row 1 for item 0 is not a number"):
        mid_ranks(np.array([[1, 2], [np.nan, 1]]), np.array([0, 0]))
    with pytest.raises(DataError, match="the rank of row 1 is not a finite number"):
        hr([1, math.nan], 5)
    with pytest.raises(DataError, match="the rank of row 0 is below 1"):
        ndcg([0], 5)
    with pytest.raises(DataError, match="too short: got 3; expected at least 5"):
        coverage(LISTS, 5, 8)
    with pytest.raises(DataError, match="list 1 holds an unknown item: got 3; expected codes below 3"):
        gini(LISTS, 3, 3)


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from([0, 1, 2, -np.inf]), min_size=6, max_size=6), max_size=5), st.integers(1, 8))
def test_top_items_are_those_of_a_full_sort(rows, k):
    scores = np.array(rows, dtype=np.float32).reshape(-1, 6)
    order = np.array([3, 1, 5, 0, 2, 4])
    place = np.argsort(order)
    for row, best in zip(scores, top_items(scores, k, order), strict=True):
        listed = sorted((c for c in range(6) if row[c] > -np.inf), key=lambda c: (-row[c], place[c]))[:k]
        assert best.tolist() == listed + [-1] * (k - len(listed))
