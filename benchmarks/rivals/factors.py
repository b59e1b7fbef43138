"""Matrix factorization by `implicit`: alternating least squares, folded in from each history, and BPR.

Sources: Hu, Koren, Volinsky 2008; Rendle et al. 2009. BPR has no fold-in: a target's user vector is the one of its user's
training events.
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


class LeastSquares:
    """Implicit-feedback ALS; the user vector is solved from the target's own history."""

    def __init__(self, log: Interactions, split: Split, *, factors: int, regularization: float, alpha: float) -> None:
        from implicit.als import AlternatingLeastSquares

        self.log = log
        self.histories = Histories(log, split)
        self.settings: dict[str, Any] = {"factors": factors, "regularization": regularization, "alpha": alpha}
        model = AlternatingLeastSquares(
            factors=factors, regularization=regularization, alpha=alpha, iterations=15, random_state=0, num_threads=1
        )
        model.fit(training_matrix(log, split), show_progress=False)
        self.items = np.asarray(model.item_factors, np.float64)
        self.penalty = regularization
        self.alpha = alpha

    def blocks(self, found: Targets) -> Iterator[Block]:
        """Scores of the whole catalogue for each target."""
        gram = self.items.T @ self.items + self.penalty * np.eye(self.items.shape[1])
        for rows in block_rows(len(found)):
            history = recent(self.log, self.histories, found.event[rows], 10**9, 1.0)
            scores = np.empty(history.shape, dtype=np.float32)
            for place in range(history.shape[0]):
                own = self.items[history.indices[history.indptr[place] : history.indptr[place + 1]]]
                user = np.linalg.solve(gram + (self.alpha - 1) * own.T @ own, self.alpha * own.sum(0))
                scores[place] = self.items @ user
            yield rows, scores


class PairwiseRanking:
    """BPR."""

    def __init__(self, log: Interactions, split: Split, *, factors: int, regularization: float, rate: float) -> None:
        from implicit.bpr import BayesianPersonalizedRanking

        self.settings: dict[str, Any] = {"factors": factors, "regularization": regularization, "learning_rate": rate}
        model = BayesianPersonalizedRanking(
            factors=factors, regularization=regularization, learning_rate=rate, iterations=150, random_state=0, num_threads=1
        )
        model.fit(training_matrix(log, split), show_progress=False)
        self.users = np.asarray(model.user_factors)
        self.items = np.asarray(model.item_factors)

    def blocks(self, found: Targets) -> Iterator[Block]:
        """Scores of the whole catalogue for each target."""
        for rows in block_rows(len(found)):
            yield rows, (self.users[found.user[rows]] @ self.items.T).astype(np.float32)


def als(log: Interactions, split: Split) -> Ranker:
    """ALS, tuned."""
    grid = [{"factors": f, "regularization": r, "alpha": a} for f, r, a in product((32, 64, 128), (0.1, 10.0), (1.0, 5.0, 20.0))]
    return best_of(LeastSquares, grid, log, split)


def bpr(log: Interactions, split: Split) -> Ranker:
    """BPR, tuned."""
    grid = [{"factors": f, "regularization": r, "rate": v} for f, r, v in product((32, 64), (0.01, 0.05), (0.02, 0.05))]
    return best_of(PairwiseRanking, grid, log, split)
