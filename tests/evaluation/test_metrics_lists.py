"""Diversity, novelty and serendipity against fractions worked out by hand, their intervals, and ranks by popularity."""

import math

import numpy as np
import pytest

from fakes import planted_log
from genre.data.splits import SplitConfig, split
from genre.errors import DataError
from genre.evaluation.baselines import popularity_blocks, popularity_ranks
from genre.evaluation.metrics import ListFacts, bootstrap, diversity, metric, novelty, serendipity
from genre.evaluation.ranking import rank_in_blocks
from genre.evaluation.targets import Targets, evaluate_ranking, targets

COUNTS = np.array([6, 2, 0, 0])
VECTORS = np.array([[2.0, 0], [0, 3], [-1, 0], [1, 1]])
FACTS = ListFacts(COUNTS, VECTORS, np.array([1.0, 2, 3.5]))
LISTS = [[0, 1, 2], [0, 3, -1], [1, -1, -1]]


def test_diversity_is_the_mean_distance_of_pairs():
    first, second = (1 + 2 + 1) / 3, 1 - 1 / math.sqrt(2)  # 0 and 1 at a right angle, 0 and 2 opposite; the last has no pair
    assert diversity(LISTS, 3, FACTS) == pytest.approx((first + second) / 2)
    assert diversity(LISTS, 2, FACTS) == pytest.approx((1 + second) / 2)
    assert diversity(LISTS, 3, FACTS, weights=[3, 1, 5]) == pytest.approx((3 * first + second) / 4)
    assert math.isnan(diversity(LISTS, 1, FACTS)) and math.isnan(diversity(np.empty((0, 5)), 3, FACTS))


def test_diversity_is_what_a_loop_over_pairs_says():
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(30, 7))
    top = np.array([draw.permutation(30)[:6] for _ in range(9)])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [1 - unit[a] @ unit[b] for row in top for x, a in enumerate(row) for b in row[:x]]
    assert diversity(top, 6, ListFacts(np.ones(30), vectors, np.ones(9))) == pytest.approx(np.mean(pairs))


def test_novelty_is_the_self_information_of_popularity():
    bits = [math.log2(12 / 7), math.log2(12 / 3), math.log2(12), math.log2(12)]
    expected = [sum(bits[:3]) / 3, (bits[0] + bits[3]) / 2, bits[1]]
    assert novelty(LISTS, 3, FACTS) == pytest.approx(np.mean(expected))
    assert novelty(LISTS, 1, FACTS) == pytest.approx((2 * bits[0] + bits[1]) / 3)
    assert math.isnan(novelty([[-1, -1, -1]], 3, FACTS))


def test_serendipity_counts_hits_that_popularity_misses():
    assert serendipity([1, 1, 2.5], 3, FACTS) == 1 / 3 and serendipity([1, 1, 3.5], 3, FACTS) == 0
    assert serendipity([1, 1, 1], 1, FACTS) == 2 / 3 and math.isnan(serendipity([], 1, ListFacts(COUNTS, None, np.empty(0))))


def test_figures_have_intervals_over_users():
    found = Targets(np.arange(3), np.array([0, 0, 1], np.int32), np.array([0, 1, 2], np.int32), None)
    names = ["diversity@3", "novelty@3", "serendipity@3"]
    figures = evaluate_ranking(names, found, [1, 1, 2], np.array(LISTS, dtype=np.int32), 4, facts=FACTS)
    assert figures["diversity@3"].n == 2 and figures["novelty@3"].n == 3  # the list without a pair does not count
    assert figures["novelty@3"].value == pytest.approx(novelty(LISTS, 3, FACTS))
    assert figures["novelty@3"].low <= figures["novelty@3"].value <= figures["novelty@3"].high
    values = metric("novelty@3").terms(LISTS, FACTS)
    assert bootstrap("novelty@3", found.user, None, values) == figures["novelty@3"]


def test_bad_input_is_refused():
    found = Targets(np.arange(3), np.array([0, 0, 1], np.int32), np.array([0, 1, 2], np.int32), None)
    with pytest.raises(DataError, match="novelty@5 needs facts of the items"):
        evaluate_ranking(["novelty@5"], found, [1, 1, 1], None, 4)
    with pytest.raises(DataError, match="novelty@5 needs top lists"):
        evaluate_ranking(["novelty@5"], found, [1, 1, 1], None, 4, facts=FACTS)
    with pytest.raises(DataError, match="diversity needs item vectors"):
        diversity(LISTS, 3, ListFacts(COUNTS, None, FACTS.popular))
    with pytest.raises(DataError, match="list 0 holds an unknown item: got 7; expected codes below 4"):
        novelty([[7]], 1, FACTS)
    with pytest.raises(DataError, match="got 2 ranks, 3 popular"):
        serendipity([1, 2], 3, FACTS)


@pytest.mark.parametrize("seen", ["masked", "kept"])
def test_ranks_by_popularity_are_those_of_its_blocks(seen):
    log = planted_log(users=20, items=15, events=9)
    chosen = split(log, SplitConfig(kind="last_n", n=2))
    found = targets(log, chosen, 2)
    counts, ranks = popularity_ranks(log, chosen, found, seen=seen)
    assert counts.sum() == (chosen.part == 0).sum()
    assert ranks.tolist() == rank_in_blocks(log, chosen, found, popularity_blocks(log, chosen, found), seen=seen).ranks.tolist()
