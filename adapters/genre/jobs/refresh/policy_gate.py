"""The off-policy gate of a refresh: is the new version's policy worth less than the old one's on lists that neither learnt from?

Owns: the rule. Ignores: the lists (`refresh.feedback`), how a value is estimated (`genre.jobs.off_policy`).

**The rule.** As of `refresh.gate`: not worse means that the whole 95 % interval of the difference, users drawn again for both
versions at once, lies above minus the margin, a share of the old value. It cannot be told where the weights of either version are
worth too few equal lists, of too few users, or rest on too few rewards.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import polars as pl

from genre.data.interactions import Interactions
from genre.errors import InputError
from genre.evaluation.exploring import POOL, Exploration
from genre.evaluation.off_policy import FEW, estimate_difference
from genre.jobs.off_policy import policy_rounds
from genre.jobs.refresh.gate import Outcome
from genre.jobs.refresh.plan import MIN_USERS
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.registry import Registry

LEAST_LISTS = 100


@dataclass(frozen=True)
class PolicyGate:
    """What an off-policy gate asks for.

    Attributes:
        estimator: The estimate that decides: `snips` or `dr`.
        explore: The policy that both versions' scores are drawn by, as `genre serve --explore` reads it; None for the one that
            most of the lists were drawn by.
        pool: The best so many items that it draws from.
        places: Only the first so many places of a list.
        least: The number of equal lists that each version's weights are worth at least.
    """

    estimator: str = "snips"
    explore: str | None = None
    pool: int = POOL
    places: int | None = None
    least: int = LEAST_LISTS

    def check(self) -> None:
        """Check the options.

        Raises:
            InputError: One is out of range.
        """
        if self.estimator not in ("snips", "dr"):
            raise InputError("--estimator cannot be used", got=self.estimator, expected="snips or dr")
        for name, value in (("explore-pool", self.pool), ("places", self.places), ("least-lists", self.least)):
            if value is not None and value < 1:
                raise InputError(f"--{name} is too small", got=value, expected="1 or more")
        if self.explore is not None:
            Exploration.parse(self.explore, self.pool)


@dataclass(frozen=True)
class PolicyVerdict:
    """The comparison of two versions' off-policy values.

    Attributes:
        estimator, policy: Of both values.
        old, new: The values, rewards per list.
        difference: new - old.
        interval: Of the difference, 95 %; None where it cannot be computed.
        lists, users: Of the held-out part of the served log.
        effective_lists: The fewer equal lists that a version's weights are worth.
        margin: The loss that still counts as not worse.
        outcome: By the rule.
        reason: What keeps it from being told, if anything does.
    """

    estimator: str
    policy: str
    old: float | None
    new: float | None
    difference: float | None
    interval: tuple[float, float] | None
    lists: int
    users: int
    effective_lists: float
    margin: float | None
    outcome: Outcome
    reason: str | None

    @classmethod
    def of(cls, found: Mapping[str, Any], gate: PolicyGate, policy: str, lists: int, users: int, tolerance: float) -> Self:
        """Decide on what `estimate_difference` found."""
        weights = found["weights"].values()
        effective, rewards = (min(each[name] for each in weights) for name in ("effective_lists", "rewards_with_weight"))
        difference, interval = found["difference"]["value"], found["difference"]["interval"]
        margin = None if found["old"] is None else tolerance * abs(found["old"])
        reason: str | None = None
        outcome: Outcome = "cannot be told"
        if effective < gate.least:
            reason = f"the weights are worth {effective:,.0f} equal lists, expected at least {gate.least:,}"
            reason += ": wait for more lists, or judge fewer places" if gate.places != 1 else ": wait for more lists"
        elif users < MIN_USERS:
            reason = f"the lists are of {users} users, expected at least {MIN_USERS}"
        elif rewards < FEW or interval is None or margin is None:
            reason = f"the values rest on {rewards} rewards, expected at least {FEW}"
        elif interval[0] >= -margin:
            outcome = "not worse"
        elif difference < -margin:
            outcome = "worse"
        else:
            reason = "the interval of the difference reaches below the margin"
        ends = None if interval is None else (interval[0], interval[1])
        values = found["old"], found["new"], difference
        return cls(gate.estimator, policy, *values, ends, lists, users, effective, margin, outcome, reason)

    def line(self) -> str:
        """The comparison in one line."""
        about = f"on {self.lists:,} lists of {self.users:,} users worth {self.effective_lists:,.0f} equal ones"
        if self.interval is None or self.difference is None or self.margin is None:
            return f"off-policy value by {self.estimator} under {self.policy}: no interval {about}: {self.outcome}"
        low, high = self.interval
        return (
            f"off-policy value by {self.estimator} under {self.policy} {self.new:.4f}, before {self.old:.4f}, "
            f"difference {self.difference:+.4f} [{low:+.4f}, {high:+.4f}] {about}, margin {self.margin:.4f}: {self.outcome}"
        )


def policy_of(gate: PolicyGate, rows: pl.DataFrame) -> Exploration:
    """The policy that both versions are judged by, on lists that were shown.

    Raises:
        InputError: Most of the lists were drawn by a policy that is not known here.
    """
    return Exploration.parse(gate.explore or rows.unique("impression_id")["policy"].mode().sort()[0], gate.pool)


def judge(
    registry: Registry,
    refs: tuple[str, str],
    lists: Interactions,
    histories: Interactions,
    gate: PolicyGate,
    tolerance: float,
    *,
    base: Base,
    reporter: Reporter,
) -> PolicyVerdict:
    """Compare two versions on lists.

    Args:
        registry: Holds both.
        refs: The old and the new version.
        lists: What was shown, with `policy`, `propensity` and `reward`.
        histories: Where users' histories come from, by time.
        gate: The options.
        tolerance: The loss that still counts as not worse, a share of the old value.
        base: The versions' base.
        reporter: Receives progress.
    """
    policy = policy_of(gate, lists.frame)
    asked: dict[str, Any] = {"data": histories, "base": base, "places": gate.places, "reward": "reward", "reporter": reporter}
    old, new = (policy_rounds(registry, ref, lists, policy, **asked).rounds for ref in refs)
    found = estimate_difference(new, old, gate.estimator)
    return PolicyVerdict.of(found, gate, str(policy), len(new.reward), len(lists.user_ids), tolerance)
