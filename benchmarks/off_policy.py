"""Off-policy values: obp's estimators for policies that did not write the log, with intervals over resampled rounds.

    rounds = Rounds(action, reward, propensity, candidates)
    estimate(rounds, {"greedy": greedy(scores, candidates), "uniform": uniform(candidates)}, expected)

One round is one impression: a context x, the item a that the logging policy showed with probability p, and the reward r.
With w = min(π(a|x) / p, clip) and a model q(x, a) of the reward, fitted elsewhere:

    ips    Σ w r / n                                                Horvitz and Thompson 1952; unbiased where no w is clipped
    snips  Σ w r / Σ w                                              Swaminathan and Joachims 2015
    dr     Σ [Σ_b π(b|x) q(x, b) + w (r - q(x, a))] / n             Dudík et al. 2014

Each is `obp.ope`'s. Its intervals are not used: those of snips hold Σ w fixed. Here a resample draws n of the n rounds with
replacement and estimates anew, all policies and estimators on the same draws; intervals are 95 % percentiles.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

ESTIMATORS = ("ips", "snips", "dr")
CLIP = 100.0
FEW = 10
"""With fewer rewards than this under a policy's weights, an interval made of them promises too much, and is marked; with none
there is no interval."""


@dataclass(frozen=True)
class Rounds:
    """The decisions of one logging policy in n rounds with at most K candidates each.

    Attributes:
        action: int64 [n], the place of what was shown among the candidates.
        reward: float64 [n].
        propensity: float64 [n], in (0, 1].
        candidates: bool [n, K], which places there are.
    """

    action: np.ndarray
    reward: np.ndarray
    propensity: np.ndarray
    candidates: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.action)
        if not count:
            raise ValueError("there are no rounds: got 0; expected at least one")
        if self.candidates.shape[:1] != (count,) or self.reward.shape != (count,) or self.propensity.shape != (count,):
            raise ValueError(f"the rounds' arrays differ in length: expected {count} of each")
        bad = ~((self.propensity > 0) & (self.propensity <= 1))
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(f"the propensity of round {row} is none: got {self.propensity[row]}; expected above 0, at most 1")
        if not np.isfinite(self.reward).all():
            raise ValueError(f"the reward of round {int(np.argmin(np.isfinite(self.reward)))} is not a finite number")
        places = self.candidates.shape[1]
        shown = (self.action >= 0) & (self.action < places)
        shown[shown] = self.candidates[np.flatnonzero(shown), self.action[shown]]
        if not shown.all():
            raise ValueError(f"round {int(np.argmin(shown))} shows what is not a candidate: got place {self.action[~shown][0]}")


def uniform(candidates: np.ndarray) -> np.ndarray:
    """[n, K] probabilities, the same for every candidate of a round."""
    return candidates / candidates.sum(1, keepdims=True)


def greedy(scores: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """[n, K] the best candidate of each round, the first of equal ones."""
    best = np.where(candidates, scores, -np.inf).argmax(1)
    return np.eye(candidates.shape[1])[best]


def softmax(logits: np.ndarray, candidates: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """[n, K] π(a|x) ∝ exp(z_a / T) over the candidates."""
    inside = np.where(candidates, logits / temperature, -np.inf)
    raised = np.exp(inside - inside.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def estimate(
    rounds: Rounds,
    policies: Mapping[str, np.ndarray],
    expected: np.ndarray,
    *,
    clip: float = CLIP,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The logging policy's own value and each policy's, by three estimators, with 95 % intervals.

    Args:
        rounds: What the logging policy did.
        policies: For each policy float64 [n, K], the probability of every candidate.
        expected: float64 [n, K], q(x, a), from a model that has not seen these rounds.
        clip: The largest weight.
        resamples: Of the rounds.
        seed: Of the resamples.

    Raises:
        ValueError: A policy is not a distribution over the candidates, or `expected` has another shape.
    """
    folded = {name: _fold(rounds, name, policy, expected, clip) for name, policy in policies.items()}
    draw, count = np.random.default_rng(seed), len(rounds.action)
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in folded}
    logged = []
    for rows in (np.arange(count), *(draw.integers(0, count, count) for _ in range(resamples))):
        logged.append(rounds.reward[rows].mean())
        for name, one in folded.items():
            drawn[name].append(one.estimate(rows))
    own = np.array(logged)
    found: dict[str, Any] = {"logging": {"on_policy": _interval(own), "rounds": count, "rewards": float(rounds.reward.sum())}}
    for name, one in folded.items():
        values, weights = np.array(drawn[name]), one.weights()
        if not weights["rewards_with_weight"]:  # resamples of no reward at all have no spread: an interval would be a boast
            values = values[:1]
        found[name] = {key: _interval(values[:, place]) for place, key in enumerate(ESTIMATORS)}
        apart = values - own[: len(values), None]
        found[name]["minus_logging"] = {key: _interval(apart[:, place]) for place, key in enumerate(ESTIMATORS)}
        found[name]["weights"] = weights
    return found


@dataclass(frozen=True)
class _Folded:
    """Reduce a policy to two actions per round, the shown one and all others; the estimates stay the same."""

    reward: np.ndarray
    propensity: np.ndarray
    policy: np.ndarray
    expected: np.ndarray
    clip: float

    def estimate(self, rows: np.ndarray) -> np.ndarray:
        """[3] ips, snips and dr of some rounds; snips is NaN where none of them has weight."""
        from obp import ope

        log = {
            "reward": self.reward[rows],
            "action": np.zeros(len(rows), dtype=np.int64),
            "pscore": self.propensity[rows],
            "action_dist": self.policy[rows][:, :, None],
        }
        ips = ope.InverseProbabilityWeighting().estimate_policy_value(**log)
        held = (self.policy[rows, 0] > 0).any()
        snips = ope.SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**log) if held else np.nan
        expected = self.expected[rows][:, :, None]
        dr = ope.DoublyRobust().estimate_policy_value(**log, estimated_rewards_by_reg_model=expected)
        return np.array([ips, snips, dr], dtype=np.float64)

    def weights(self) -> dict[str, Any]:
        """Count the part of the log that a policy's value rests on."""
        weight = self.policy[:, 0] / self.propensity
        rewards = int(((weight > 0) & (self.reward > 0)).sum())
        return {
            "effective_rounds": float(weight.sum() ** 2 / (weight**2).sum()) if weight.any() else 0.0,
            "rounds_with_weight": int((weight > 0).sum()),
            "rewards_with_weight": rewards,
            "few_rewards": rewards < FEW,
            "clip": self.clip,
            "clipped": int(np.isclose(weight, self.clip).sum()),
            "largest": float(weight.max()),
            "mean": float(weight.mean()),
        }


def _fold(rounds: Rounds, name: str, policy: np.ndarray, expected: np.ndarray, clip: float) -> _Folded:
    if policy.shape != rounds.candidates.shape or expected.shape != rounds.candidates.shape:
        raise ValueError(
            f"policy {name!r} or the model has another shape: got {policy.shape}, {expected.shape}; "
            f"expected {rounds.candidates.shape}"
        )
    outside = np.where(rounds.candidates, 0, policy)
    if not (np.allclose(policy.sum(1), 1) and (policy >= 0).all() and not outside.any()):
        raise ValueError(f"policy {name!r} is not a distribution over the candidates of every round")
    rows = np.arange(len(rounds.action))
    shown = policy[rows, rounds.action]
    rest = 1 - shown
    whole = np.where(rounds.candidates, policy * expected, 0).sum(1)
    own = expected[rows, rounds.action]
    others = np.divide(whole - shown * own, rest, out=np.zeros_like(rest), where=rest > 1e-12)
    propensity = np.maximum(rounds.propensity, shown / clip)  # so that no weight is above the clip
    return _Folded(rounds.reward.astype(np.float64), propensity, np.stack([shown, rest], 1), np.stack([own, others], 1), clip)


def _interval(values: np.ndarray) -> dict[str, Any]:
    """The first value with the percentiles of the others; None where there is none."""
    known = values[1:][~np.isnan(values[1:])]
    interval = [float(value) for value in np.quantile(known, [0.025, 0.975])] if len(known) else None
    return {"value": None if np.isnan(values[0]) else float(values[0]), "interval": interval}
