"""Maximal marginal relevance: against a direct loop, over planted clusters, and in requests."""

import time

import numpy as np
import pytest

from builders import LIKE, publish_stirred, recipe
from genre.engine import Engine, Request
from genre.engine.reranking import diversify
from genre.modules.base.base import Base


def direct(scores, vectors, k, amount):
    """The formula, item by item."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    worth = (scores - scores.min()) / (scores.max() - scores.min())
    chosen = []
    while len(chosen) < k:
        left = [i for i in range(len(scores)) if i not in chosen]
        value = {i: (1 - amount) * worth[i] - amount * max((unit[i] @ unit[j] for j in chosen), default=0.0) for i in left}
        chosen.append(max(left, key=lambda i: (value[i], -i)))
    return chosen


@pytest.mark.parametrize("amount", [0.0, 0.2, 0.7, 1.0])
def test_it_is_the_formula(amount):
    draw = np.random.default_rng(3)
    scores, vectors = -np.sort(-draw.normal(size=25)), draw.normal(size=(25, 4)).astype(np.float32)
    assert diversify(scores, vectors, 8, amount).tolist() == direct(scores, vectors, 8, amount)
    assert diversify(scores, vectors, 99, 0.0).tolist() == list(range(25))


def test_it_spreads_over_planted_clusters():
    draw = np.random.default_rng(0)
    centres = np.eye(5, dtype=np.float32)
    cluster = np.repeat(np.arange(5), 20)  # the scores of one cluster are all above those of the next
    vectors = centres[cluster] + 0.05 * draw.normal(size=(100, 5)).astype(np.float32)
    scores = np.linspace(9, 1, 100)
    spread = [len(set(cluster[diversify(scores, vectors, 5, amount)].tolist())) for amount in (0.0, 0.3, 0.95, 1.0)]
    assert spread[0] == 1 and spread == sorted(spread) and spread[-2:] == [5, 5]


def test_equal_scores_and_little_to_choose_from():
    vectors = np.array([[1.0, 0], [1, 0], [0, 1]], dtype=np.float32)
    assert diversify(np.ones(3), vectors, 2, 0.5).tolist() == [0, 2]
    assert diversify(np.empty(0), np.empty((0, 2)), 5, 0.5).tolist() == []
    assert sorted(diversify(np.ones(3), np.zeros((3, 2)), 9, 1.0).tolist()) == [0, 1, 2]


@pytest.fixture(scope="module")
def engine(tiny, trained, tmp_path_factory):
    base = Base.load(str(tiny))
    text = recipe(tiny, LIKE, name="words", sequence={"item": "text"}, encoder={"use": "none"})
    publish_stirred(trained.registry, text, trained.log, base, tmp_path_factory.mktemp("w"), seed=3)
    with Engine(base, trained.registry, data=trained.log) as engine:
        yield engine


@pytest.mark.parametrize("adapter", ["next_item", "like"])
def test_zero_is_no_reranking_bit_for_bit(engine, adapter):
    plain, zero, some = engine.score([Request(adapter, user_id="u3", k=5, diversity=d) for d in (None, 0.0, 0.6)])
    assert plain.results == zero.results  # ids and scores, to the last bit
    scores = {item.item_id: item.score for item in engine.score([Request(adapter, user_id="u3", k=30)])[0].results}
    assert all(item.score == pytest.approx(scores[item.item_id], abs=1e-6) for item in some.results)
    assert some.results[0] == plain.results[0] and len(some.results) == len(plain.results) == 5


def test_more_diversity_is_less_alike(engine):
    def distance(amount):
        ids = [item.item_id for item in engine.score([Request("next_item", user_id="u3", k=4, diversity=amount)])[0].results]
        vectors = engine.cache.source.catalogue_of and _vectors(engine, ids)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return 1 - (unit @ unit.T)[np.triu_indices(4, 1)].mean()

    assert distance(1.0) > distance(0.0)


def _vectors(engine, ids):
    with engine.planned(Request("next_item", user_id="u3", k=4)) as job:
        space = job.inline.space
        return space.vectors[[space.catalogue.code(item) for item in ids]].numpy()


def test_an_adapter_without_item_vectors_says_so(engine):
    refused, plain = engine.score([Request("words", history=[], k=2, diversity=d) for d in (0.5, 0)])
    assert "diversity needs item vectors: got words, which reads items as text" in refused.error
    assert plain.error is None and len(plain.results) == 2


@pytest.mark.slow  # it measures time
def test_the_cost_over_a_thousand_candidates_is_small():
    draw = np.random.default_rng(0)
    scores, vectors = -np.sort(-draw.normal(size=1000)), draw.normal(size=(1000, 576)).astype(np.float32)
    diversify(scores, vectors, 10, 0.3)
    begun = time.perf_counter()
    for _ in range(10):
        diversify(scores, vectors, 10, 0.3)
    assert (time.perf_counter() - begun) / 10 < 0.1  # a pass over the base takes longer
