"""Nearest neighbours: of items (cosine with shrinkage) and of sequences (recent events against all training users).

Sources: Deshpande and Karypis 2004 (item-based top-N); Ludewig and Jannach 2018 (V-SKNN: the latest events weigh most).
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import scipy.sparse as sp

from genre.data.interactions import Interactions
from genre.data.splits import Split
from genre.evaluation.history import Histories
from genre.evaluation.ranking import Block, block_rows
from genre.evaluation.targets import Targets
from rivals.common import Ranker, best_of, recent, training_matrix


class ItemNeighbours:
    """score_i = Σ over the history's items j of cosine(i, j), each item keeping its k nearest."""

    def __init__(self, log: Interactions, split: Split, *, k: int, shrink: float, decay: float) -> None:
        self.log = log
        self.histories = Histories(log, split)
        self.settings: dict[str, Any] = {"k": k, "shrink": shrink, "decay": decay}
        matrix = training_matrix(log, split)
        together = (matrix.T @ matrix).toarray().astype(np.float32)
        norm = np.sqrt(np.diag(together))
        similar = together / (norm[:, None] * norm[None, :] + shrink + 1e-9)
        np.fill_diagonal(similar, 0)
        if k < len(similar):
            smallest = np.partition(similar, -k, axis=1)[:, -k][:, None]
            similar = np.where(similar >= smallest, similar, 0)
        self.similar = sp.csr_matrix(similar.T)
        self.decay = decay

    def blocks(self, found: Targets) -> Iterator[Block]:
        """Scores of the whole catalogue for each target."""
        for rows in block_rows(len(found)):
            history = recent(self.log, self.histories, found.event[rows], 10**9, self.decay)
            yield rows, (history @ self.similar.T).toarray().astype(np.float32)


class SequenceNeighbours:
    """score_i = Σ over the k training users nearest to the recent events, of their similarity, if they have i."""

    def __init__(self, log: Interactions, split: Split, *, k: int, last: int, decay: float) -> None:
        self.log = log
        self.histories = Histories(log, split)
        self.k = k
        self.last = last
        self.decay = decay
        self.settings: dict[str, Any] = {"k": k, "last": last, "decay": decay}
        self.matrix = training_matrix(log, split)
        sizes = np.sqrt(np.maximum(np.asarray(self.matrix.sum(1)).ravel(), 1))
        rarity = np.log1p(self.matrix.shape[0] / np.maximum(np.asarray(self.matrix.sum(0)).ravel(), 1))
        self.sized = sp.diags(1 / sizes) @ self.matrix @ sp.diags(rarity)

    def blocks(self, found: Targets) -> Iterator[Block]:
        """Scores of the whole catalogue for each target."""
        for rows in block_rows(len(found)):
            history = recent(self.log, self.histories, found.event[rows], self.last, self.decay)
            similar = (history @ self.sized.T).toarray()
            similar[np.arange(len(similar)), found.user[rows]] = 0  # the user's own training events are in the history
            smallest = np.partition(similar, -self.k, axis=1)[:, -self.k][:, None]
            similar = np.where(similar >= smallest, similar, 0).astype(np.float32)
            yield rows, (sp.csr_matrix(similar) @ self.matrix).toarray().astype(np.float32)


def item_knn(log: Interactions, split: Split) -> Ranker:
    """Item neighbours, tuned."""
    grid = [{"k": k, "shrink": s, "decay": d} for k, s, d in product((50, 200, 10**9), (0, 20, 100), (1.0, 0.98, 0.9))]
    return best_of(ItemNeighbours, grid, log, split)


def sequence_knn(log: Interactions, split: Split) -> Ranker:
    """Sequence neighbours, tuned."""
    grid = [{"k": k, "last": n, "decay": d} for k, n, d in product((50, 100, 200), (10, 30, 100), (1.0, 0.95, 0.8))]
    return best_of(SequenceNeighbours, grid, log, split)
