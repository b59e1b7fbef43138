"""PureSVD with a ridge, in closed form, that counts the latest events most.

Source: Cremonesi, Koren and Turrin 2010. It is of whole sets of items; here an event counts decay^age, as it does in the
neighbours of `rivals.neighbours`, and for decay 1 it is as published.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from genre.data.interactions import Interactions
from genre.data.splits import Split
from genre.evaluation.history import Histories
from genre.evaluation.ranking import Block, block_rows
from genre.evaluation.targets import Targets
from rivals.common import Ranker, best_of, recent, training_matrix

DECAYS = (1.0, 0.98, 0.95, 0.9, 0.8, 0.7)


class Linear:
    """score_i = Σ over the history's items j of decay^age(j) B_ji."""

    def __init__(self, log: Interactions, split: Split, weights: np.ndarray, decay: float, settings: dict[str, Any]) -> None:
        self.log = log
        self.histories = Histories(log, split)
        self.weights = weights
        self.decay = decay
        self.settings = settings | {"decay": decay}

    def blocks(self, found: Targets) -> Iterator[Block]:
        """Scores of the whole catalogue for each target."""
        for rows in block_rows(len(found)):
            history = recent(self.log, self.histories, found.event[rows], 10**9, self.decay)
            yield rows, np.asarray(history @ self.weights, dtype=np.float32)


def recent_svd(log: Interactions, split: Split) -> Ranker:
    """PureSVD, rank, ridge and decay tuned."""
    _, values, right = np.linalg.svd(training_matrix(log, split).toarray().astype(np.float64), full_matrices=False)

    def make(log: Interactions, split: Split, *, rank: int, ridge: float, decay: float) -> Linear:
        factors, squares = right[:rank].T, values[:rank] ** 2
        weights = (factors * (squares / (squares + ridge))) @ factors.T
        return Linear(log, split, weights.astype(np.float32), decay, {"rank": rank, "ridge": ridge})

    grid = [{"rank": k, "ridge": r, "decay": d} for k, r, d in product((32, 64, 128), (100.0, 300.0, 1000.0, 3000.0), DECAYS)]
    return best_of(make, grid, log, split)
