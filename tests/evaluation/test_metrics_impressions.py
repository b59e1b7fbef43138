"""Metrics over impressions: hand fractions, the benchmark's own formulas, ties, intervals, and what is refused."""

import itertools
import math

import numpy as np
import polars as pl
import pytest

import genre
from builders import recipe
from fakes import browsing_log
from genre.data.splits import SplitConfig, split
from genre.errors import DataError, RecipeError
from genre.evaluation.metrics import (
    as_evaluate,
    bootstrap,
    impression_auc,
    impression_mrr,
    impression_ndcg,
    metric,
    paired_bootstrap,
)
from genre.evaluation.targets import Targets, evaluate_feedback, targets
from genre.jobs.predictions import read_predictions, write_predictions
from genre.tasks import Task

LABELS = [1, 0, 0, 1, 0, 1, 0]
SCORES = [0.9, 0.5, 0.7, 0.1, 0.3, 0.2, 0.8]
SHOWN = ["a", "a", "a", "b", "b", "b", "b"]
"""In a the click is first of three; in b the clicks are third and fourth of four."""


def test_hand_fractions():
    assert impression_auc(LABELS, SCORES, SHOWN) == (1 + 0) / 2
    assert impression_mrr(LABELS, SCORES, SHOWN) == pytest.approx((1 + (1 / 3 + 1 / 4) / 2) / 2)
    ideal = 1 + 1 / math.log2(3)
    assert impression_ndcg(LABELS, SCORES, SHOWN, 5) == pytest.approx((1 + (1 / 2 + 1 / math.log2(5)) / ideal) / 2)
    assert impression_ndcg(LABELS, SCORES, SHOWN, 3) == pytest.approx((1 + (1 / 2) / ideal) / 2)
    assert impression_ndcg(LABELS, SCORES, SHOWN, 1) == 1 / 2


def test_the_events_order_does_not_matter():
    order = [4, 0, 6, 2, 3, 5, 1]
    mixed = [[values[place] for place in order] for values in (LABELS, SCORES, SHOWN)]
    for function in (impression_auc, impression_mrr, lambda *given: impression_ndcg(*given, 5)):
        assert function(*mixed) == pytest.approx(function(LABELS, SCORES, SHOWN))


def benchmark(labels, scores, k):
    """AUC, MRR and NDCG@k of one impression without ties, as MIND's script writes them."""
    order = np.argsort(scores)[::-1]
    truth = np.take(labels, order)
    mrr = np.sum(truth / (np.arange(len(truth)) + 1)) / np.sum(truth)
    gains = (2.0 ** truth[:k] - 1) / np.log2(np.arange(len(truth[:k])) + 2)
    best = np.sort(labels)[::-1][:k]
    ideal = (2.0**best - 1) / np.log2(np.arange(len(best)) + 2)
    pairs = [(p > q) for p in scores[labels == 1] for q in scores[labels == 0]]
    return np.mean(pairs), mrr, np.sum(gains) / np.sum(ideal)


def test_they_are_the_benchmarks_formulas():
    draw = np.random.default_rng(0)
    parts, rows = [], []
    for impression in range(50):
        size = int(draw.integers(2, 40))
        labels = np.zeros(size, dtype=int)
        labels[draw.choice(size, size=int(draw.integers(1, size)), replace=False)] = 1
        scores = draw.permutation(size).astype(float)
        parts.append(benchmark(labels, scores, 5))
        rows += zip(labels, scores, [impression] * size, strict=True)
    labels, scores, shown = (np.array(column) for column in zip(*draw.permutation(np.array(rows)), strict=True))
    found = (
        impression_auc(labels, scores, shown),
        impression_mrr(labels, scores, shown),
        impression_ndcg(labels, scores, shown, 5),
    )
    assert found == pytest.approx(np.mean(parts, axis=0))


def test_ties_are_the_mean_over_all_orders():
    labels, scores = np.array([1, 0, 1, 0, 0]), np.array([2.0, 2.0, 1.0, 1.0, 1.0])
    spread = []
    for first in itertools.permutations([0, 1]):
        for second in itertools.permutations([2, 3, 4]):
            own = np.empty(5)
            own[[*first, *second]] = [5, 4, 3, 2, 1]
            spread.append((impression_mrr(labels, own, [0] * 5), impression_ndcg(labels, own, [0] * 5, 3)))
    found = impression_mrr(labels, scores, [0] * 5), impression_ndcg(labels, scores, [0] * 5, 3)
    assert found == pytest.approx(np.mean(spread, axis=0))


def test_impressions_of_one_label_say_nothing():
    labels, scores, shown = [*LABELS, 1, 1, 0], [*SCORES, 0.1, 0.2, 0.3], [*SHOWN, "c", "c", "d"]
    for function in (impression_auc, impression_mrr, lambda *given: impression_ndcg(*given, 5)):
        assert function(labels, scores, shown) == pytest.approx(function(LABELS, SCORES, SHOWN))
        assert math.isnan(function([1, 1], [0.1, 0.2], ["a", "a"])) and math.isnan(function([], [], []))
    figure = bootstrap("impression_mrr", [0, 0, 0, 1, 1, 1, 1, 2, 2, 3], labels, scores, impressions=shown, resamples=0)
    assert (figure.n, figure.users) == (2, 2)


@pytest.mark.parametrize("name", ["impression_auc", "impression_mrr", "impression_ndcg@5", "impression_ndcg@7"])
def test_a_users_weight_is_that_of_its_impressions(name):
    draw = np.random.default_rng(1)
    users = np.repeat(np.arange(12), 10)
    shown = users * 2 + np.tile([0] * 5 + [1] * 5, 12)
    labels, scores = (draw.random(120) < 0.4).astype(float), draw.random(120).round(1)
    chosen = metric(name)
    weights = draw.integers(0, 3, size=12).astype(float)
    prepared = chosen.prepare(labels, scores, users, 12, shown)
    assert prepared(weights[None])[0] == pytest.approx(chosen.function(labels, scores, shown, weights=weights[users]))
    figure = bootstrap(name, users, labels, scores, impressions=shown, resamples=200)
    assert figure.low < figure.value < figure.high and figure.value == pytest.approx(chosen.function(labels, scores, shown))
    assert paired_bootstrap(name, users, labels, scores, scores, impressions=shown, resamples=50).value == 0
    computed = as_evaluate(name).compute(predictions=scores, references=labels, impressions=shown)
    assert computed == {name: pytest.approx(figure.value)}


def test_they_need_impressions():
    found = Targets(np.arange(2), np.zeros(2, np.int32), np.zeros(2, np.int32), np.array([0.0, 1.0]))
    with pytest.raises(DataError, match="impression_mrr is a mean over impressions, and the log has none: got no column"):
        evaluate_feedback(["impression_mrr"], found, [0.1, 0.2])
    with pytest.raises(DataError, match="impression_auc is a mean over impressions"):
        as_evaluate("impression_auc").compute(predictions=[0.1], references=[1])


def test_one_name_for_two_users_is_two_impressions():
    log = browsing_log(users=8, items=8, kinds=2, views=2)
    chosen = split(log, SplitConfig(kind="user_ratio", valid=0.1, test=0.5))
    found = targets(log, chosen, 2, label=log.column("bought"))
    assert found.impression is not None and len(found.impression) == len(found)
    same = genre.Interactions.from_frame(log.frame.drop("row").with_columns(impression_id=pl.lit("one")))
    assert same.impressions is not None and len(set(same.impressions.tolist())) == len(same.user_ids)


def test_a_wrong_metric_is_refused_before_training(tiny, log, tmp_path):
    base = genre.Base.load(str(tiny))
    for metrics, error, text in (
        (["impression_auc"], DataError, "impression_auc is a mean over impressions"),
        (["ndcg@10"], RecipeError, "task 'like': a metric does not fit a feedback task: got ndcg@10"),
        (["auk"], RecipeError, "unknown metric: got 'auk'"),
    ):
        task = {"name": "like", "kind": "feedback", "label": "rating > 3", "metrics": metrics}
        with pytest.raises(error, match=text):
            genre.train(recipe(tiny, task), log=log, base=base, folder=tmp_path / "run")
        assert base.occupied_by is None


@pytest.mark.parametrize("shown", [np.array([3, 3, 8]), None])
def test_a_runs_predictions_keep_what_was_shown_together(tmp_path, shown):
    found = Targets(np.arange(3), np.zeros(3, np.int32), np.zeros(3, np.int32), np.array([0.0, 1.0, 1.0]), impression=shown)
    task = Task(name="news", kind="feedback", label="click")
    write_predictions(
        tmp_path,
        {"news": (found, np.array([0.1, 0.2, 0.3]), None)},
        [task],
        data="d",
        split=SplitConfig(kind="temporal"),
        part="test",
    )
    _, again, _ = read_predictions(tmp_path)[0]["news"]
    assert (again.impression is None) if shown is None else again.impression.tolist() == shown.tolist()
