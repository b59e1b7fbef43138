"""Statistics of privacy attacks against hand figures, closed forms and mechanisms of known epsilon."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from genre.evaluation.privacy import (
    chance,
    confidence_of,
    epsilon_bound,
    exact_interval,
    least_epsilon,
    likelihood_ratios,
    membership,
    true_positives,
)


def test_all_guesses_right_without_delta_has_a_closed_form():
    for m in (10, 100, 1000):
        share = 0.05 ** (1 / m)  # the accuracy of randomized response with which m of m are right in 5 % of runs
        wanted = math.log(share / (1 - share))
        assert least_epsilon(m, m, m, delta=0, error=0.05) == pytest.approx(wanted, abs=1e-6)
    assert least_epsilon(1000, 1000, 1000, delta=0, error=0.05) == pytest.approx(5.809, abs=1e-3)
    assert least_epsilon(100, 100, 50, delta=0, error=0.05) == 0


def test_the_probability_with_delta_is_that_of_a_slow_reading_of_the_theorem():
    def slow(m, r, v, epsilon, delta):
        q = math.exp(epsilon) / (1 + math.exp(epsilon))
        own = sum(binom.pmf(k, r, q) for k in range(v, r + 1))
        best = max(sum(binom.pmf(k, r, q) for k in range(max(0, v - i), v)) / i for i in range(1, m + 1))
        return min(1.0, own + 2 * m * delta * best)

    for m, r, v in ((20, 20, 17), (50, 30, 28), (100, 10, 10), (40, 40, 21)):
        for epsilon, delta in ((0.0, 1e-3), (0.5, 0.0), (2.0, 1e-5)):
            assert chance(m, r, v, epsilon, delta) == pytest.approx(slow(m, r, v, epsilon, delta), rel=1e-9)
    assert least_epsilon(1000, 1000, 1000, delta=1e-5, error=0.05) < least_epsilon(1000, 1000, 1000, delta=0, error=0.05)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_bounds_on_randomized_response_stay_below_its_epsilon(epsilon):
    draw, runs, above, bounds = np.random.default_rng(7), 80, 0, []
    for _ in range(runs):
        included = draw.random(150) < 0.5
        told = included ^ (draw.random(150) > 1 / (1 + math.exp(-epsilon)))
        bound = epsilon_bound(told + 0.1 * draw.random(150), included)
        bounds.append(bound.epsilon)
        above += bound.epsilon > epsilon
    assert above <= 0.05 * runs
    assert epsilon < 1 or np.median(bounds) > epsilon / 3, "and they are not idle"


def test_bounds_on_gaussian_noise_stay_below_its_epsilon():
    delta, epsilon = 1e-4, 2.0
    sigma = 1 / 0.5786  # the analytic Gaussian mechanism: Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ) = δ, checked below
    from scipy.stats import norm

    mu = 1 / sigma
    assert norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu) == pytest.approx(delta, rel=0.1)
    draw, above = np.random.default_rng(3), 0
    for _ in range(80):
        included = draw.random(200) < 0.5
        above += epsilon_bound(included + sigma * draw.standard_normal(200), included, delta=delta).epsilon > epsilon
    assert above <= 4


def test_scores_that_tell_everything_prove_much_and_constant_ones_nothing():
    included = np.arange(200) % 2 == 0
    assert epsilon_bound(included.astype(float), included).epsilon > 3.5
    assert epsilon_bound(np.zeros(200), np.random.default_rng(0).random(200) < 0.5).epsilon == 0
    assert epsilon_bound(np.zeros(1), np.array([True])).epsilon == 0


def test_true_positives_count_above_a_threshold_that_few_others_pass():
    scores = np.concatenate([np.arange(100.0), [200.0, 98.5, 50.0, 98.0]])
    member = np.arange(104) >= 100
    assert true_positives(scores, member) == 0.5  # one of 100 others may pass: the threshold is 98, and a tie does not
    assert true_positives(scores, member, rate=0.0) == 0.25
    assert true_positives(scores, member, rate=1.0) == 1


def test_exact_intervals_are_those_of_clopper_and_pearson():
    assert exact_interval(0, 10) == (0.0, pytest.approx(0.3085, abs=1e-4))
    assert exact_interval(10, 10) == (pytest.approx(0.6915, abs=1e-4), 1.0)
    assert exact_interval(3, 10) == (pytest.approx(0.0667, abs=1e-4), pytest.approx(0.6525, abs=1e-4))


def test_membership_counts_a_user_once():
    draw = np.random.default_rng(0)
    member = np.arange(400) % 2 == 0
    scores = draw.standard_normal(400) + member
    once = membership(scores, member, np.arange(400))
    copied = membership(np.tile(scores, 4), np.tile(member, 4), np.tile(np.arange(400), 4))
    assert once.auc == pytest.approx(copied.auc) and once.tpr_interval == copied.tpr_interval
    assert once.auc_interval == pytest.approx(copied.auc_interval)
    assert (copied.members, copied.others, copied.trials) == (200, 200, 1600)
    assert once.auc_interval[0] < 0.76 < once.auc_interval[1]  # Φ(1 / √2)


def test_confidence_is_the_logit_of_a_likelihood():
    for p in (0.01, 0.5, 0.9):
        assert confidence_of(np.array([-math.log(p)]))[0] == pytest.approx(math.log(p / (1 - p)))
    assert np.isfinite(confidence_of(np.array([0.0, 50.0, 1000.0]))).all()


def halves(draw, shadows, users):
    """(S, U) bool: pairs of random halves."""
    return np.stack([row for _ in range(shadows // 2) for half in [draw.random(users) < 0.5] for row in (half, ~half)])


def test_ratios_find_members_where_each_user_has_a_level_of_their_own():
    draw, users = np.random.default_rng(1), np.arange(300)
    inside = halves(draw, 8, 300)
    confidence = 5 * draw.standard_normal(300) + inside + 0.5 * draw.standard_normal(inside.shape)
    ratio, above = likelihood_ratios(confidence[0], confidence[2:], inside[2:])
    plain = membership(confidence[0], inside[0], users).auc
    assert plain < 0.65 < 0.85 < membership(ratio, inside[0], users).auc
    assert membership(above, inside[0], users).auc > 0.8
    none, _ = likelihood_ratios(confidence[0], confidence[1:2], inside[1:2])
    assert np.isnan(none).all()


@pytest.mark.parametrize("shadows", [4, 6])
def test_ratios_find_nobody_where_training_leaves_no_trace(shadows):
    draw, users = np.random.default_rng(2), np.arange(600)
    inside = halves(draw, shadows, 600)
    confidence = 5 * draw.standard_normal(600) + draw.standard_normal(inside.shape)
    for scores in likelihood_ratios(confidence[0], confidence[2:], inside[2:]):
        low, high = membership(scores, inside[0], users).auc_interval
        assert low < 0.5 < high


@pytest.mark.parametrize("canaries", [3, 7, 11, 199])
def test_of_an_odd_number_of_canaries_none_is_guessed_about_twice(canaries):
    included = np.arange(canaries) >= canaries // 2
    found = epsilon_bound(-np.arange(canaries, dtype=np.float64), ~included)
    assert found.guesses <= canaries and found.right == found.guesses
