"""The budget of a private run: the noise that it needs for its planned steps, and the epsilon that was spent.

Owns: epsilon of steps and statistics together, by Opacus' PRV accountant; the search for the noise. Ignores: gradients, models.

    plan = make_plan(recipe.train.privacy, users=943, epochs=20)
    plan.sigma, plan.sample_rate, plan.steps         # 1.06, 0.05, 400
    plan.spent(steps=120)                            # the epsilon of what was released so far

Source: Gopi, Lee and Wutschitz, Numerical Composition of Differential Privacy (2021).
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from genre.errors import InputError, RecipeError
from genre.privacy import PrivacyConfig

Mechanism = tuple[float, float, int]
"""(noise multiplier, probability that a user takes part, how often): a Gaussian mechanism, maybe on a Poisson sample."""

EPSILON_ERROR = 1e-2
"""Absolute error of an epsilon, which is an upper bound in any case: Opacus' own default."""
LEAST_NOISE, MOST_NOISE = 0.05, 1e4
"""Noise multipliers that are looked at: with less epsilon is endless, with more nothing trains."""
UNSPENT = 2e-3
"""Share of a budget that the search for its noise may leave."""


@dataclass(frozen=True)
class Plan:
    """The planned noise of a run.

    Attributes:
        epsilon, delta: The budget.
        clip: Largest norm of a user's gradient.
        users: n, all users of the log.
        expected_users: B, users that a step draws in expectation.
        steps: Of the whole run; those that draw nobody count.
        steps_per_epoch: 1 / q, rounded.
        sigma: Noise multiplier of the steps: the noise's standard deviation over `clip`.
        statistics_sigma: That of the statistics; None without them.
        map_sigma, map_steps: That of the item map's steps, of all users each, and their number; None and 0 without one.
        secret: True if the noise cannot be recomputed from the recipe.
    """

    epsilon: float
    delta: float
    clip: float
    users: int
    expected_users: float
    steps: int
    steps_per_epoch: int
    sigma: float
    statistics_sigma: float | None
    secret: bool
    map_sigma: float | None = None
    map_steps: int = 0

    @property
    def sample_rate(self) -> float:
        """q: the probability that a step draws a user."""
        return self.expected_users / self.users

    def mechanisms(self, steps: int) -> list[Mechanism]:
        """The mechanisms whose results are known after so many steps."""
        before: list[Mechanism] = [] if self.statistics_sigma is None else [(self.statistics_sigma, 1.0, 1)]
        before += [] if self.map_sigma is None else [(self.map_sigma, 1.0, self.map_steps)]
        return before + ([(self.sigma, self.sample_rate, steps)] if steps else [])

    def spent(self, steps: int) -> float:
        """The epsilon of the statistics, the item map and so many steps, at the plan's delta."""
        return epsilon_of(self.mechanisms(steps), self.delta)


def make_plan(config: PrivacyConfig, *, users: int, epochs: int, map_steps: int = 0) -> Plan:
    """Find the noise that keeps a run of so many epochs within its budget.

    Args:
        config: The section `train.privacy`.
        users: All users of the log.
        epochs: Each has as many steps as draw every user once in expectation.
        map_steps: Steps of the item map, if the section has one.

    Raises:
        RecipeError: More users per step than there are, or no noise is enough.
        InputError: Opacus is not installed.
    """
    expected = config.users or max(1, round(users / 20))
    if expected > users:
        raise RecipeError("train.privacy.users", got=expected, expected=f"at most {users:,}, all users of the log")
    rate, per_epoch = expected / users, max(1, round(users / expected))
    steps, delta = per_epoch * epochs, config.delta_of(users)
    if delta * 10 * users >= 1:
        todo = "set train.privacy.delta to auto"
        raise RecipeError(
            "train.privacy.delta", got=f"{delta:g}", expected=f"below {1 / (10 * users):.1e}, 1 / (10 users)", todo=todo
        )
    first: list[Mechanism] = []
    if config.statistics:
        share = config.epsilon * config.statistics
        first = [(find_sigma([], 1.0, 1, share, delta, what="the share of train.privacy.statistics"), 1.0, 1)]
    map_sigma = None
    if config.item_map:
        share = config.epsilon * config.item_map
        map_sigma = find_sigma([], 1.0, map_steps, share, delta, what="the share of train.privacy.item_map")
        first.append((map_sigma, 1.0, map_steps))
    sigma = find_sigma(first, rate, steps, config.epsilon, delta)
    return Plan(
        config.epsilon,
        delta,
        config.clip,
        users,
        float(expected),
        steps,
        per_epoch,
        sigma,
        first[0][0] if config.statistics else None,
        config.noise_seed is None,
        map_sigma,
        map_steps if config.item_map else 0,
    )


def find_sigma(
    before: Sequence[Mechanism], rate: float, steps: int, epsilon: float, delta: float, *, what: str = "this run"
) -> float:
    """A noise multiplier that keeps some steps after other mechanisms within a budget, and leaves less than `UNSPENT` of it.

    By regula falsi between logarithms, in which epsilon is nearly a line.

    Raises:
        RecipeError: Even `MOST_NOISE` is too little.
    """
    low, high = (LEAST_NOISE, math.inf), (MOST_NOISE, 0.0)
    sigma = min(max(math.sqrt(rate**2 * steps) / epsilon * math.sqrt(2 * math.log(1 / delta)), 0.5), MOST_NOISE)
    while True:
        found = epsilon_of([*before, (sigma, rate, steps)], delta)
        if (1 - UNSPENT) * epsilon <= found <= epsilon:
            return sigma
        if found > epsilon:
            low = sigma, found
        else:
            high = sigma, found
        if low[0] * (1 + 1e-6) >= high[0]:
            if high[1] > 0:
                return high[0]
            todo = "raise epsilon or delta, or train fewer epochs"
            got = f"epsilon {epsilon:g}, delta {delta:g}"
            raise RecipeError(f"no noise keeps {what} within its budget", got=got, todo=todo)
        sigma = _between(low, high, (1 - UNSPENT / 2) * epsilon)


def _between(low: tuple[float, float], high: tuple[float, float], epsilon: float) -> float:
    """The noise between two pairs of noise and epsilon at which a line through their logarithms has some epsilon."""
    if math.isinf(low[1]) or high[1] == 0:  # one end was never computed
        step = 2 if high[1] == 0 else 0.5
        known = low[0] if high[1] == 0 else high[0]
        return min(max(known * step, low[0]), high[0]) if low[0] < known * step < high[0] else math.sqrt(low[0] * high[0])
    share = math.log(low[1] / epsilon) / math.log(low[1] / high[1])
    return low[0] * (high[0] / low[0]) ** min(max(share, 0.02), 0.98)


@cache
def _epsilon(mechanisms: tuple[Mechanism, ...], delta: float) -> float:
    accountant = need_accountant()()
    accountant.history = list(mechanisms)
    with warnings.catch_warnings():  # of the Rényi orders that bound the domain, when there is much noise
        warnings.simplefilter("ignore")
        try:
            return float(accountant.get_epsilon(delta, eps_error=EPSILON_ERROR))
        except ValueError as error:  # its own words: floating-point errors would dominate
            todo = "set train.privacy.delta to auto, or raise it"
            raise RecipeError("the accountant cannot compute epsilon", got=f"delta {delta:g}", todo=todo) from error


def epsilon_of(mechanisms: Sequence[Mechanism], delta: float) -> float:
    """The epsilon of some mechanisms together, an upper bound; 0 for none, and infinite where there is too little noise."""
    own = tuple(each for each in mechanisms if each[2])
    if not own:
        return 0.0
    if min(sigma for sigma, _, _ in own) <= LEAST_NOISE:
        return float("inf")
    return _epsilon(own, delta)


def need_accountant() -> Any:
    """Import Opacus' PRV accountant.

    Raises:
        InputError: Opacus is not installed.
    """
    try:
        from opacus.accountants import PRVAccountant
    except ImportError:
        raise InputError("train.privacy needs opacus' accountants", todo="pip install 'genre-adapters[privacy]'") from None
    return PRVAccountant
