"""Names, directions, and the same metrics as evaluate.Metric."""

import socket

import evaluate
import numpy as np
import pytest

from genre.errors import DataError, RecipeError
from genre.evaluation.metrics import METRICS, ListFacts, as_evaluate, metric

PROBABILITIES, LABELS, USERS = [0.9, 0.2, 0.6, 0.4], [1, 0, 0, 1], ["a", "a", "b", "b"]
ROWS, RELEVANT = [[0.1, 0.9, 0.5], [0.3, 0.3, 0.3]], [2, 0]


def test_names_of_the_recipes_are_known():
    for name in ("auc", "gauc", "log_loss", "rmse", "mae", "ece", "accuracy", "f1", "macro_f1"):
        assert METRICS[name].kind == "feedback" and METRICS[name].name == name
    for k in (5, 10, 20):
        assert all(METRICS[f"{family}@{k}"].kind == "ranking" for family in ("hr", "ndcg", "mrr"))
        assert all(METRICS[f"{family}@{k}"].kind == "list" for family in ("coverage", "gini"))
        assert all(METRICS[f"{family}@{k}"].kind == "quality" for family in ("diversity", "novelty", "serendipity"))
    lower = {name for name, each in METRICS.items() if each.direction == "lower"}
    assert lower == {"log_loss", "rmse", "mae", "ece", "gini@5", "gini@10", "gini@20"}


def test_a_name_may_have_any_cutoff():
    assert metric("hr@50").k == 50 and metric("hr@50").function([50, 51]) == 1 / 2
    assert metric("gini@1").function([[0], [1]], 2) == 0


@pytest.mark.parametrize("name", ["acu", "hr", "hr@", "hr@0", "hr@x", "hr@-1", "auc@10", "recall@10", ""])
def test_unknown_name_is_refused(name):
    with pytest.raises(RecipeError, match="unknown metric"):
        metric(name)


def test_a_misspelt_name_is_guessed():
    with pytest.raises(RecipeError, match=r"got 'ndgc@10'.*did you mean ndcg@10\?"):
        metric("ndgc@10")


def test_better_knows_direction_and_nan():
    assert metric("auc").better(0.8, 0.7) and not metric("auc").better(0.7, 0.7)
    assert metric("rmse").better(0.7, 0.8)
    assert metric("auc").better(0.1, float("nan")) and not metric("auc").better(float("nan"), 0.1)


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_every_metric_is_an_evaluate_metric_offline(name, offline, tmp_path):
    wrapped, chosen = as_evaluate(name, cache_dir=str(tmp_path)), METRICS[name]
    assert isinstance(wrapped, evaluate.Metric)
    if chosen.kind == "feedback":
        extra = {"users": USERS} if chosen.by_user else {"impressions": USERS} if chosen.by_impression else {}
        result = wrapped.compute(predictions=PROBABILITIES, references=LABELS, **extra)
        assert result == {name: chosen.function(LABELS, PROBABILITIES, **extra)}
    elif chosen.kind == "ranking":
        assert wrapped.compute(predictions=ROWS, references=RELEVANT) == {name: chosen.function([2, 2])}
    elif chosen.kind == "quality":
        counts, vectors, lists = [4, 2, 2], [[1.0, 0], [1, 1], [0, 1]], [[1, 2, 0], [0, 1, 2]]
        facts = ListFacts(np.array(counts), np.array(vectors), np.array([2.5, 1]))
        result = wrapped.compute(predictions=ROWS, references=RELEVANT, counts=counts, vectors=vectors)
        assert result == {name: chosen.function([2, 2] if chosen.of_ranks else lists, facts)}
        with pytest.raises(DataError, match=f"{name} needs (vectors|counts) of the candidates: got none; .*one each of 3"):
            wrapped.compute(predictions=ROWS, references=RELEVANT)
    else:
        lists = [[1, 2, 0], [0, 1, 2]]
        assert wrapped.compute(predictions=ROWS, references=RELEVANT) == {name: chosen.function(lists, 3)}


def test_class_scores_go_through_evaluate(tmp_path):
    wrapped = as_evaluate("accuracy", cache_dir=str(tmp_path))
    assert wrapped.compute(predictions=[[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]], references=[2, 1]) == {"accuracy": 0.5}


def test_evaluate_adds_in_batches(tmp_path):
    wrapped = as_evaluate("auc", cache_dir=str(tmp_path))
    for start in (0, 2):
        wrapped.add_batch(predictions=PROBABILITIES[start : start + 2], references=LABELS[start : start + 2])
    assert wrapped.compute() == {"auc": 3 / 4}


def test_evaluate_gauc_asks_for_users(tmp_path):
    with pytest.raises(DataError, match="gauc needs to know whose event it is"):
        as_evaluate("gauc", cache_dir=str(tmp_path)).compute(predictions=PROBABILITIES, references=LABELS)


def test_evaluate_takes_arrays(tmp_path):
    arrays = np.array(PROBABILITIES, dtype=np.float32), np.array(LABELS)
    result = as_evaluate("auc", cache_dir=str(tmp_path)).compute(predictions=arrays[0], references=arrays[1])
    assert result == {"auc": 3 / 4}


def test_scores_that_float32_cannot_tell_apart_stay_apart():
    """2**24 and 2**24 + 1 are one number in float32: each row's list would then hold the same item."""
    scores = [[2**24 + 1, 2**24], [2**24, 2**24 + 1]]
    assert as_evaluate("coverage@1").compute(predictions=scores, references=[0, 1]) == {"coverage@1": 1.0}
