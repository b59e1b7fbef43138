"""Exploration: lists that are drawn, with the probability of each choice.

Owns: the policies, their draws and their probabilities. Ignores: where scores come from, what happens to a list.

    policy = Exploration.parse("epsilon=0.1")
    indices, propensities = policy.draw(scores, k=10, rng=np.random.default_rng())     # of (C,) scores, best first

A list is drawn one place after the other from what is left of the pool, so a propensity is that of the item at its place, given
the items at the places before it; the product over the places is the probability of the list, and of the first place it is
the whole truth.

    epsilon=ε               the best that is left; with probability ε any that is left: P = (1 - ε) [best] + ε / left
    softmax=T               P ∝ exp(s / T) over what is left (Plackett and Luce)
    top-k-sampling=N        softmax at T = 1 over the N best
"""

import threading
from dataclasses import dataclass
from typing import Self

import numpy as np

from genre.errors import InputError

POOL = 100
LARGEST_POOL = 1000
BOUNDS = {"epsilon": (0.0, 1.0), "softmax": (1e-6, 1e6), "top-k-sampling": (1.0, float(LARGEST_POOL))}
"""The least and the largest amount of each kind of policy."""


@dataclass(frozen=True)
class Exploration:
    """A policy that draws lists.

    Attributes:
        kind: One of `BOUNDS`.
        amount: ε, the temperature T in units of scores, or N.
        pool: The best so many items can be shown; all others have a propensity of 0.
    """

    kind: str
    amount: float
    pool: int = POOL

    @classmethod
    def parse(cls, text: str, pool: int = POOL) -> Self:
        """Read a policy from `KIND=AMOUNT`.

        Raises:
            InputError: There is no such policy, or its amount is out of bounds.
        """
        kind, _, amount = text.partition("=")
        try:
            value = float(amount)
        except ValueError:
            value = float("nan")
        best = kind == "top-k-sampling"
        if kind not in BOUNDS or not BOUNDS[kind][0] <= value <= BOUNDS[kind][1] or (best and value % 1):
            expected = "epsilon=0 to 1, softmax=TEMPERATURE above 0, or top-k-sampling=1 to 1000"
            raise InputError("--explore cannot be used", got=repr(text), expected=expected)
        return cls(kind, value, int(value) if best else pool)

    def __str__(self) -> str:
        return f"{self.kind}={self.amount:g}"

    def draw(self, scores: np.ndarray, k: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw a list.

        Args:
            scores: (C,) finite, best first; of these the pool is taken.
            k: Its length; at most the pool's.
            rng: Where chance comes from.

        Returns:
            (min(k, pool),) int64 indices into `scores`, and (min(k, pool),) float64 propensities in (0, 1].
        """
        left = np.arange(min(len(scores), self.pool))
        logits = np.asarray(scores[: len(left)], dtype=np.float64) / (self.amount if self.kind == "softmax" else 1.0)
        chosen, propensities = [], []
        for _ in range(min(k, len(left))):
            shares = self._shares(logits[left])
            place = int(rng.choice(len(left), p=shares))
            chosen.append(left[place])
            propensities.append(shares[place])
            left = np.delete(left, place)
        return np.array(chosen, dtype=np.int64), np.array(propensities)

    def _shares(self, logits: np.ndarray) -> np.ndarray:
        """The probability of each of what is left, best first."""
        if self.kind == "epsilon":
            shares = np.full(len(logits), self.amount / len(logits))
            shares[0] += 1 - self.amount
            return shares
        weights = np.exp(logits - logits.max())
        return np.asarray(weights / weights.sum())


class Explorer:
    """A policy with chance of its own, for several threads."""

    def __init__(self, policy: Exploration) -> None:
        self.policy = policy
        self._rng = np.random.default_rng()
        self._lock = threading.Lock()

    def draw(self, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw a list; see `Exploration.draw`."""
        with self._lock:
            return self.policy.draw(scores, k, self._rng)
