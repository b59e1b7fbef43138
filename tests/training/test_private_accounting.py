"""Budgets: epsilon as Opacus counts it and as formulas do, the search for noise, delta, plans that cannot be."""

import itertools
import math
import sys

import numpy as np
import pytest
import torch
from scipy.stats import norm

from genre.errors import InputError, RecipeError
from genre.privacy import PrivacyConfig
from genre.training.private.accounting import EPSILON_ERROR, epsilon_of, find_sigma, make_plan
from genre.training.private.noise import Noise

opacus = pytest.importorskip("opacus", reason="the extra privacy")

SETTINGS = [
    (sigma, rate, steps, delta)
    for (sigma, rate), (steps, delta) in itertools.product(
        [(0.8, 0.01), (1.1, 0.05), (2.0, 0.1), (4.0, 0.5), (6.0, 1.0)], [(20, 1e-5), (100, 1e-5), (400, 1e-6), (60, 1e-3)]
    )
]


@pytest.mark.parametrize(
    "settings", [SETTINGS[5:6], pytest.param(SETTINGS, marks=pytest.mark.slow)], ids=["one", "twenty"]
)  # 20 s: every epsilon is computed twice and bounded once
def test_epsilon_is_that_of_opacus(settings):
    """Counted step by step there, at once here; and below the bound by Rényi divergences, which is looser."""
    assert len(settings) in (1, 20)
    for sigma, rate, steps, delta in settings:
        accountant, renyi = opacus.accountants.PRVAccountant(), opacus.accountants.RDPAccountant()
        for _ in range(steps):
            accountant.step(noise_multiplier=sigma, sample_rate=rate)
        renyi.history = list(accountant.history)
        found = epsilon_of([(sigma, rate, steps)], delta)
        with np.errstate(divide="ignore", invalid="ignore"):
            assert found == pytest.approx(accountant.get_epsilon(delta=delta), abs=1e-3)
        assert found <= renyi.get_epsilon(delta=delta) + EPSILON_ERROR


def gaussian_delta(sigma, epsilon):
    """Delta of one Gaussian mechanism, exactly (Balle and Wang 2018, theorem 8)."""
    return norm.cdf(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * norm.cdf(-0.5 / sigma - epsilon * sigma)


@pytest.mark.parametrize(("sigma", "times"), [(1.0, 1), (3.0, 1), (4.0, 16), (10.0, 40)])
def test_without_sampling_epsilon_is_the_closed_form(sigma, times):
    found = epsilon_of([(sigma, 1.0, times)], 1e-5)
    assert (
        gaussian_delta(sigma / math.sqrt(times), found)
        <= 1e-5
        <= gaussian_delta(sigma / math.sqrt(times), found - 3 * EPSILON_ERROR)
    )


def test_the_search_finds_the_least_noise():
    before = [(4.0, 1.0, 1)]
    sigma = find_sigma(before, 0.1, 50, 3.0, 1e-5)
    assert epsilon_of([*before, (sigma, 0.1, 50)], 1e-5) <= 3.0 < epsilon_of([*before, (sigma / 1.004, 0.1, 50)], 1e-5)


def test_a_plan_spends_its_budget_and_no_more():
    plan = make_plan(PrivacyConfig(epsilon=4, users=10), users=100, epochs=3)
    assert (plan.sample_rate, plan.steps, plan.steps_per_epoch, plan.delta) == (0.1, 30, 10, 5e-4), plan
    assert plan.statistics_sigma is not None and plan.spent(0) <= 0.4
    spent = [plan.spent(steps) for steps in (0, 10, 20, 30)]
    assert spent == sorted(spent) and 3.97 < spent[-1] <= 4.0


@pytest.mark.parametrize("users", [3, 10, 943, 22_363, 1_000_000, 7_654_321])
def test_delta_is_below_a_tenth_of_one_over_the_users(users):
    delta = PrivacyConfig(epsilon=1).delta_of(users)
    assert 0.4 / (20 * users) < delta <= 1 / (20 * users) * 1.0001 and f"{delta:.0e}" == f"{delta:.6e}"[0] + f"{delta:.6e}"[8:]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"users": 101}, "train.privacy.users: got 101; expected at most 100"),
        ({"delta": 0.01}, "train.privacy.delta: got 0.01; expected below 1.0e-03"),
        ({"epsilon": 1e-4, "statistics": 0}, "no noise keeps this run within its budget: got epsilon 0.0001, delta 0.0005"),
        ({"statistics": 1e-9}, "no noise keeps the share of train.privacy.statistics within its budget: got epsilon 2e-09"),
        ({"delta": 1e-30}, "the accountant cannot compute epsilon: got delta 1e-30; set train.privacy.delta to auto"),
    ],
)
def test_plans_that_cannot_be_are_refused(config, message):
    with pytest.raises(RecipeError, match=message):
        make_plan(PrivacyConfig(**{"epsilon": 2, "users": 10} | config), users=100, epochs=1)


def test_without_opacus_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with pytest.raises(InputError, match=r"pip install 'genre-adapters\[privacy\]'"):
        epsilon_of([(1.2345, 0.1, 7)], 1e-5)


# --- noise ------------------------------------------------------------------------------------------------------------


def test_noise_has_the_variance_that_was_accounted_for():
    """Over 100,000 draws from the operating system: variance, mean, kurtosis and independence of neighbours."""
    noisy, noise = Noise().release(torch.zeros(100_000), clip=0.5, sigma=3.0)
    drawn = noise.double().numpy() / 1.5
    assert torch.equal(noisy, noise)
    assert drawn.var() == pytest.approx(1, abs=6 * math.sqrt(2 / 1e5)) and drawn.mean() == pytest.approx(
        0, abs=6 / math.sqrt(1e5)
    )
    assert (drawn**4).mean() == pytest.approx(3, abs=6 * math.sqrt(96 / 1e5))
    half = len(drawn) // 2
    assert np.corrcoef(drawn[:half], drawn[half:])[0, 1] == pytest.approx(0, abs=6 / math.sqrt(half))
    assert len(np.unique(drawn)) > 99_000


def test_every_user_takes_part_with_the_same_probability_by_itself():
    draws = np.stack([Noise().bernoulli(0.1, 500) for _ in range(800)])
    shares, sizes = draws.mean(0), draws.sum(1)
    error = math.sqrt(0.09 / 800)
    assert draws.mean() == pytest.approx(0.1, abs=6 * error / math.sqrt(500)) and np.abs(shares - 0.1).max() < 6 * error
    assert sizes.var() == pytest.approx(45, rel=0.35)  # of Poisson sampling; a fixed number of users would have none
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 6 / math.sqrt(800)


def test_noise_without_a_seed_never_repeats_whatever_torch_and_numpy_are_seeded_with():
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        found.append(Noise().normal(4))
    assert not np.array_equal(*found) and np.array_equal(Noise(7).normal(4), Noise(7).normal(4))
