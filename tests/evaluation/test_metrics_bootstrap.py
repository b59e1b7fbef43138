"""The user bootstrap against a naive one that repeats the events of every user drawn."""

import json
import math
import time

import numpy as np
import pytest

from genre.errors import DataError
from genre.evaluation.metrics import METRICS, Figure, bootstrap, metric, paired_bootstrap, paired_draws
from genre.evaluation.metrics.bootstrap import user_draws

RESAMPLED = sorted(name for name, each in METRICS.items() if each.prepare and not each.by_impression)


def small(name, seed=3):
    """Twelve users in scattered order, scores with ties."""
    random = np.random.default_rng(seed)
    users = random.integers(0, 12, 80) * 7
    if metric(name).kind == "ranking":
        return users, None, random.integers(2, 40, 80) / 2
    if metric(name).kind == "quality":  # what it is of each target
        return users, None, random.integers(0, 9, 80) / 8
    return users, random.integers(0, 2, 80), random.integers(0, 11, 80) / 10


def apply(name, users, labels, scores, rows):
    """Compute a metric on the named rows, each draw of a user standing for a user of its own."""
    if metric(name).kind == "ranking":
        return metric(name).function(scores[rows])
    if metric(name).kind == "quality":
        return scores[rows].mean()
    extra = (users,) if metric(name).by_user else ()
    return metric(name).function(labels[rows], scores[rows], *extra)


def naive(name, users, labels, scores, resamples, seed):
    codes = np.unique(users, return_inverse=True)[1]
    count = codes.max() + 1
    values = []
    for draw in user_draws(count, resamples, seed, block=1):
        drawn = np.repeat(np.arange(count), draw[0].astype(int))
        rows = [np.flatnonzero(codes == user) for user in drawn]
        owner = np.repeat(np.arange(count), [len(each) for each in rows])
        values.append(apply(name, owner, labels, scores, np.concatenate(rows)))
    return np.array(values)


@pytest.mark.parametrize("name", RESAMPLED)
def test_equals_the_naive_bootstrap(name):
    users, labels, scores = small(name)
    figure = bootstrap(name, users, labels, scores, resamples=60, seed=5)
    values = naive(name, users, labels, scores, 60, 5)
    assert figure.value == pytest.approx(apply(name, users, labels, scores, slice(None)))
    assert (figure.low, figure.high) == pytest.approx(tuple(np.nanquantile(values, [0.025, 0.975])))
    assert figure.n == 80 and figure.users == 12


@pytest.mark.parametrize("name", ["auc", "gauc", "rmse", "ndcg@10"])
def test_paired_equals_the_naive_difference(name):
    users, labels, scores = small(name)
    other = small(name, seed=4)[2]
    figure = paired_bootstrap(name, users, labels, scores, other, resamples=60, seed=5)
    difference = naive(name, users, labels, scores, 60, 5) - naive(name, users, labels, other, 60, 5)
    assert (figure.low, figure.high) == pytest.approx(tuple(np.quantile(difference, [0.025, 0.975])))
    assert paired_bootstrap(name, users, labels, scores, scores).as_dict()["interval"] == [0, 0]
    again, draws = paired_draws(name, users, labels, scores, other, resamples=60, seed=5)
    assert again == figure and draws == pytest.approx(difference)


def test_draws_are_multinomial_and_do_not_depend_on_blocks():
    whole = np.concatenate(list(user_draws(9, 20, 1, block=20)))
    assert np.array_equal(whole, np.concatenate(list(user_draws(9, 20, 1, block=7))))
    assert whole.sum(axis=1).tolist() == [9] * 20
    assert not np.array_equal(whole, np.concatenate(list(user_draws(9, 20, 2, block=20))))


def test_interval_covers_the_spread_of_a_mean():
    random = np.random.default_rng(0)
    truth, noise = np.zeros(4000), random.normal(size=4000)
    figure = bootstrap("mae", np.arange(4000), truth, noise)
    half = 1.96 * np.abs(noise).std() / math.sqrt(4000)
    assert (figure.high - figure.low) / 2 == pytest.approx(half, rel=0.1)


def test_gauc_counts_the_events_that_it_uses():
    figure = bootstrap("gauc", ["a", "a", "b", "b", "b"], [1, 0, 1, 1, 1], [0.2, 0.1, 0.4, 0.5, 0.6])
    assert (figure.value, figure.n, figure.users) == (1.0, 2, 1)


@pytest.mark.parametrize("name", RESAMPLED)
def test_no_event_gives_nan_and_none_in_json(name):
    figure = bootstrap(name, [], None if metric(name).kind == "ranking" else [], [])
    assert json.dumps(figure.as_dict()) == '{"value": null, "interval": [null, null], "n": 0}'


def test_figure_is_a_value():
    assert Figure(0.5, 0.25, 0.75, 10, 3).as_dict() == {"value": 0.5, "interval": [0.25, 0.75], "n": 10}


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="coverage@10 has no user bootstrap"):
        bootstrap("coverage@10", [0], None, [[1]])
    with pytest.raises(DataError, match="got 2 scores, 1 users"):
        bootstrap("mae", [0], [1, 2], [1, 2])
    with pytest.raises(DataError, match="the score of row 1 is not a finite number"):
        bootstrap("auc", [0, 1], [1, 0], [0.5, math.nan])


@pytest.mark.parametrize("name", ["auc", "gauc", "log_loss", "ndcg@10"])
def test_ten_thousand_targets_take_under_three_seconds(name):
    random = np.random.default_rng(0)
    users, labels, scores = random.integers(0, 900, 10_000), random.integers(0, 2, 10_000), random.random(10_000)
    labels, scores = (None, 1 + scores * 50) if metric(name).kind == "ranking" else (labels, scores)
    start = time.process_time()
    bootstrap(name, users, labels, scores)
    assert time.process_time() - start < 3
