"""Off-policy values: what a policy would have earned on the lists that another one showed.

    rounds = Rounds(reward, propensity, policy, expected, outlook, users)
    estimate(rounds)["estimates"]["snips"]      # {"value": 0.031, "interval": [0.027, 0.036]}

A list of L places was drawn one place after the other, place k with propensity p_k given the places before it; the policy π asked
about would have drawn the same with π_k. With the weight w_k = min(Π_{j≤k} π_j / p_j, clip), w_0 = 1, the reward r_k and a model
q_k of it, fitted on other users, a list's value is

    ips       Σ_k w_k r_k                                              Horvitz and Thompson 1952; McInerney et al. 2020
    snips     Σ_k w_k r_k / mean(w_k)                                  Swaminathan and Joachims 2015
    dr        Σ_k w_{k-1} E_π[q_k] + w_k (r_k - q_k)                   Dudík et al. 2014; Kiyohara et al. 2022
    switch_dr the same, without the second term where w_k > switch     Wang et al. 2017

and the policy's is the mean over the lists. A log of single items has L = 1. Intervals draw users again, all estimators and, of
equal users, all policies on the same draws: 95 % percentiles.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from genre.errors import DataError
from genre.evaluation.metrics.bootstrap import RESAMPLES, user_draws
from genre.evaluation.metrics.checks import Floats, Integers

ESTIMATORS = ("ips", "snips", "dr", "switch_dr")
CLIP, SWITCH = 100.0, 10.0
PRIOR = 20.0
"""Showings at the mean reward that an item's own rewards are added to."""
FEW = 10
"""With fewer rewards than this under a policy's weights, an interval made of them promises too much, and is marked; with none
there is no interval."""
_BLOCK = 2**21


@dataclass(frozen=True)
class Rounds:
    """Logged lists and what a policy thinks of them; n lists of at most L places, NaN beyond a list's end.

    Attributes:
        reward: (n, L) float64.
        propensity: (n, L) float64 in (0, 1], of what was shown at its place, given the places before.
        policy: (n, L) float64 in [0, 1], the same of the policy that is evaluated.
        expected: (n, L) float64, the model's reward of what was shown.
        outlook: (n, L) float64, the model's mean reward of what the policy would show there.
        users: (n,) int64 codes from 0 without gaps, of whom the intervals draw.

    Raises:
        DataError: There are no lists, shapes differ, or a number is none of the above.
    """

    reward: Floats
    propensity: Floats
    policy: Floats
    expected: Floats
    outlook: Floats
    users: Integers

    def __post_init__(self) -> None:
        if not self.reward.size:
            raise DataError("there are no rounds", got=0, expected="at least one")
        there = ~np.isnan(self.reward)
        for name in ("reward", "propensity", "policy", "expected", "outlook"):
            values = getattr(self, name)
            if values.shape != self.reward.shape:
                raise DataError(f"{name} of the rounds has another shape", got=values.shape, expected=self.reward.shape)
            good = np.isfinite(values)
            if name in ("propensity", "policy"):
                good &= (values >= 0) & (values <= 1 + 1e-9) & ((values > 0) | (name == "policy"))
            if not good[there].all():
                row, place = np.argwhere(there & ~good)[0]
                expected = {"propensity": "above 0, at most 1", "policy": "from 0 to 1"}.get(name, "a finite number")
                raise DataError(f"{name} of round {row}, place {place + 1}", got=values[row, place], expected=expected)
        if not there[:, 0].all() or (there[:, 1:] & ~there[:, :-1]).any():
            raise DataError("a round has a gap", got="NaN before a reward", expected="NaN after the end of a list alone")
        if self.users.shape != self.reward.shape[:1] or set(np.unique(self.users)) != set(range(self.users.max() + 1)):
            raise DataError("users of the rounds", got=self.users.shape, expected="a code from 0 without gaps for each")

    @classmethod
    def of_choices(
        cls,
        action: Integers,
        reward: Floats,
        propensity: Floats,
        candidates: np.ndarray,
        policy: Floats,
        expected: Floats,
    ) -> "Rounds":
        """Single items, each a user's own: of at most K candidates one was shown.

        Args:
            action: (n,) the place of what was shown among the candidates.
            reward: (n,).
            propensity: (n,).
            candidates: (n, K) bool, which places there are.
            policy: (n, K), a distribution over the candidates.
            expected: (n, K), the model's reward of each.

        Raises:
            DataError: Something that is no candidate was shown, or `policy` is no such distribution.
        """
        rows = np.arange(len(action))
        if not candidates[rows, np.clip(action, 0, candidates.shape[1] - 1)].all() or not (action < candidates.shape[1]).all():
            raise DataError("a round shows what is no candidate", expected="a place among the candidates")
        if not (np.allclose(policy.sum(1), 1) and (policy >= 0).all() and not np.where(candidates, 0, policy).any()):
            raise DataError("a policy is no distribution over the candidates of every round")
        outlook = np.where(candidates, policy * expected, 0).sum(1)
        reward, propensity, shown, model, outlook = (
            np.asarray(each, dtype=np.float64)[:, None]
            for each in (reward, propensity, policy[rows, action], expected[rows, action], outlook)
        )
        return cls(reward, propensity, shown, model, outlook, rows)


def estimate(
    rounds: Rounds, *, clip: float = CLIP, switch: float = SWITCH, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """The policy's value by every estimator, the logging policy's own, and what the weights rest on.

    Args:
        rounds: The lists.
        clip: The largest weight.
        switch: The largest weight with which `switch_dr` corrects its model.
        resamples: Of the users.
        seed: Of the resamples.

    Returns:
        `{"lists", "users", "rewards", "logging": {value, interval}, "estimates": {name: {value, interval}},
        "minus_logging": {name: …}, "weights": {…}}`; values are rewards per list. `weights.mean` is (value, interval) of the
        weight at the last place: its expectation is 1 for whatever policy, unless that policy shows what the log never could, or
        the propensities are wrong.
    """
    drawn = _draw(rounds, clip, switch, resamples, seed)
    values, logging = drawn.values, drawn.logging
    if not drawn.weights["rewards_with_weight"]:  # resamples of no reward at all have no spread: an interval would be a boast
        values = {name: each[:1] for name, each in values.items()}
    return {
        "lists": len(rounds.reward),
        "users": int(rounds.users.max()) + 1,
        "rewards": float(np.nansum(rounds.reward)),
        "logging": _interval(logging),
        "estimates": {name: _interval(each) for name, each in values.items()},
        "minus_logging": {name: _interval(each - logging[: len(each)]) for name, each in values.items()},
        "weights": drawn.weights | {"mean": _interval(drawn.mean)},
    }


def estimate_difference(
    new: Rounds,
    old: Rounds,
    estimator: str,
    *,
    clip: float = CLIP,
    switch: float = SWITCH,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The value of one policy minus that of another on the same lists, users drawn again for both at once.

    Args:
        new: The lists under the one.
        old: The same lists under the other.
        estimator: One of `ESTIMATORS`.
        clip: The largest weight.
        switch: As of `estimate`.
        resamples: Of the users.
        seed: Of the resamples.

    Returns:
        `{"new", "old", "difference": {value, interval}, "weights": {"new": …, "old": …}}`. There is no interval where one of them
        has no rewards with weight.

    Raises:
        DataError: The lists are not the same.
    """
    if not (np.array_equal(new.users, old.users) and np.array_equal(new.reward, old.reward, equal_nan=True)):
        raise DataError("two policies are compared on different lists", expected="the same lists, in the same order")
    one, other = (_draw(each, clip, switch, resamples, seed) for each in (new, old))
    difference = one.values[estimator] - other.values[estimator]
    if not (one.weights["rewards_with_weight"] and other.weights["rewards_with_weight"]):
        difference = difference[:1]
    first = {name: _interval(each.values[estimator][:1])["value"] for name, each in (("new", one), ("old", other))}
    return first | {"difference": _interval(difference), "weights": {"new": one.weights, "old": other.weights}}


@dataclass(frozen=True)
class _Drawn:
    """(1 + resamples,) of the lists and of each resample: values by estimator, the log's own, the mean last weight."""

    values: dict[str, Floats]
    logging: Floats
    mean: Floats
    weights: dict[str, Any]


def _draw(rounds: Rounds, clip: float, switch: float, resamples: int, seed: int) -> _Drawn:
    there = ~np.isnan(rounds.reward)
    reward, expected, outlook = (np.where(there, each, 0.0) for each in (rounds.reward, rounds.expected, rounds.outlook))
    whole = np.cumprod(np.where(there, rounds.policy / rounds.propensity, 1.0), axis=1)
    weight = np.minimum(whole, clip)
    before = np.hstack([np.ones((len(weight), 1)), weight[:, :-1]])
    correction = weight * (reward - expected)
    model = np.where(there, before * outlook, 0.0)
    final = weight[np.arange(len(weight)), there.sum(1) - 1]
    sums = np.hstack(
        [
            np.ones((len(reward), 1)),
            reward.sum(1, keepdims=True),
            (weight * reward).sum(1, keepdims=True),
            (model + correction).sum(1, keepdims=True),
            (model + np.where(weight <= switch, correction, 0.0)).sum(1, keepdims=True),
            final[:, None],
            *(np.where(there, each, 0.0) for each in (np.ones_like(weight), weight, weight * reward)),
        ]
    )
    count = int(rounds.users.max()) + 1
    by_user = np.zeros((count, sums.shape[1]))
    np.add.at(by_user, rounds.users, sums)
    blocks = user_draws(count, resamples, seed, block=max(1, _BLOCK // count)) if resamples else ()
    totals = np.vstack([by_user.sum(0), *(draw @ by_user for draw in blocks)])
    values, logging, mean = _values(totals, rounds.reward.shape[1])
    rewards = int(((weight > 0) & (reward > 0)).sum())
    weights = {
        "effective_lists": float(final.sum() ** 2 / (final**2).sum()) if final.any() else 0.0,
        "lists_with_weight": int((final > 0).sum()),
        "rewards_with_weight": rewards,
        "few_rewards": rewards < FEW,
        "clip": clip,
        "clipped": int((whole > clip).any(1).sum()),
        "largest": float(weight.max()),
    }
    return _Drawn(values, logging, mean, weights)


def item_rewards(items: Integers, rewards: Floats, size: int) -> Floats:
    """A model of the reward: (size,) each item's mean reward, shrunk towards that of all; 0 where there are no rewards.

    Args:
        items: (n,) codes below `size`.
        rewards: (n,).
        size: The number of items.
    """
    mean = rewards.mean() if len(rewards) else 0.0
    totals, counts = (np.bincount(items, weights, size) for weights in (rewards, None))
    return np.asarray((totals + PRIOR * mean) / (counts + PRIOR))


def _values(totals: Floats, places: int) -> tuple[dict[str, Floats], Floats, Floats]:
    """Of sums (1 + resamples, …) each estimator's values, the logging policy's, and the mean last weight, (1 + resamples,)."""
    lists = totals[:, 0]
    reached, weights, earned = (totals[:, 6 + part * places : 6 + (part + 1) * places] for part in range(3))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(reached > 0, earned / weights * reached / lists[:, None], 0.0)  # NaN where a place has no weight at all
        ips, dr, switch_dr, mean, logging = (totals[:, column] / lists for column in (2, 3, 4, 5, 1))
    return {"ips": ips, "snips": share.sum(1), "dr": dr, "switch_dr": switch_dr}, logging, mean


def _interval(values: Floats) -> dict[str, Any]:
    """The first value with the percentiles of the others; None where there is none."""
    known = values[1:][~np.isnan(values[1:])]
    interval = [float(value) for value in np.quantile(known, [0.025, 0.975])] if len(known) else None
    return {"value": None if np.isnan(values[0]) else float(values[0]), "interval": interval}
