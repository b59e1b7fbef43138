"""The chance that lists are drawn by.

Owns: one generator for all threads. Ignores: policies (`genre.evaluation.exploring`).
"""

import threading

import numpy as np

from genre.evaluation.exploring import Exploration


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
