"""Policies that draw lists by chance, and the probability of each choice.

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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from genre.errors import InputError
from genre.evaluation.metrics.checks import Floats

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

    def draw(self, scores: Floats, k: int, rng: np.random.Generator) -> tuple[np.ndarray, Floats]:
        """Draw a list.

        Args:
            scores: (C,) finite, best first; of these the pool is taken.
            k: Its length; at most the pool's.
            rng: Where chance comes from.

        Returns:
            (min(k, pool),) int64 indices into `scores`, and (min(k, pool),) float64 propensities in (0, 1].
        """
        logits = self._logits(scores)
        left, chosen, propensities = np.ones(len(logits), dtype=bool), [], []
        for _ in range(min(k, len(logits))):
            shares = self._shares(logits, left)
            index = int(rng.choice(len(logits), p=shares))
            chosen.append(index)
            propensities.append(shares[index])
            left[index] = False
        return np.array(chosen, dtype=np.int64), np.array(propensities)

    def places(self, scores: Floats, shown: Sequence[int | None]) -> Iterator[Floats]:
        """Yield, for each place of a list that was shown, the probability of every item of the pool, given the places before.

        Args:
            scores: (C,) finite, best first; of these the pool is taken.
            shown: Indices into `scores`; None for an item without a score, which this policy cannot show.

        Yields:
            (min(C, pool),) float64, of sum 1; all zero where nothing is left.
        """
        logits = self._logits(scores)
        left = np.ones(len(logits), dtype=bool)
        for index in shown:
            yield self._shares(logits, left) if left.any() else np.zeros(len(logits))
            if index is not None and index < len(left):
                left[index] = False

    def _logits(self, scores: Floats) -> Floats:
        """Those of the pool, best first."""
        return np.asarray(scores[: self.pool], dtype=np.float64) / (self.amount if self.kind == "softmax" else 1.0)

    def _shares(self, logits: Floats, left: np.ndarray) -> Floats:
        """The probability of each of the pool; of what is not left, 0."""
        if self.kind == "epsilon":
            shares = np.where(left, self.amount / left.sum(), 0.0)
            shares[np.argmax(left)] += 1 - self.amount
            return shares
        inside = np.where(left, logits, -np.inf)
        weights = np.exp(inside - inside.max())
        return np.asarray(weights / weights.sum())
