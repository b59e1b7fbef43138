"""EASE: a linear item-to-item model in closed form.

Owns: the fit, the choice of its ridge on the validation part, and scores from histories. Ignores metrics' names.

Steck 2019 (Embarrassingly Shallow Autoencoders for Sparse Data, eq. 8): with X the binary user × item matrix of the
training events and P = (XᵀX + λI)⁻¹, B_ij = -P_ij / P_jj off the diagonal and 0 on it; a history's scores are xB.

One decomposition serves every λ. With XᵀX = V diag(s) Vᵀ, from the smaller of XᵀX and XXᵀ, and S = V diag(s / (s + λ)) Vᵀ,
λP = I - S, so that B_ij = S_ij / (1 - S_jj).

    model = ease(log, split)
    model.ridge                       # 50.0, chosen on the validation part of ML-100K's last_n split
    rank_in_blocks(log, split, found, model.blocks(found))
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from genre.data.interactions import Interactions
from genre.data.splits import TRAIN, VALID, Split
from genre.evaluation.history import Histories
from genre.evaluation.metrics.checks import Floats, Integers
from genre.evaluation.metrics.ranking import ndcg
from genre.evaluation.ranking import Block, block_rows, block_size, rank_in_blocks
from genre.evaluation.targets import Targets, targets

LAMBDAS = (20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
DEFAULT_LAMBDA = 500.0
MAX_ITEMS = 10_000
"""A matrix of this size takes 0.8 GB, and a fit holds about four. Rarer items of a larger catalogue score 0, and are counted."""
_SAMPLE = 256
MAX_VALID = 2_000
"""The ridge is chosen on at most so many validation targets, evenly spread."""


@dataclass(frozen=True)
class EaseScorer:
    """A fitted model.

    Attributes:
        log: The log that it was fitted on.
        split: Its split.
        items: int64[A], the codes of the items that the model knows.
        vectors: float64[A, r], V: eigenvectors of XᵀX whose eigenvalue is not 0.
        values: float64[r], s: their eigenvalues.
        ridge: λ.
        chosen_on: Validation targets that λ was chosen on; 0 if there was nothing to choose.
        left_out: Items with training events that the model does not know since there are more than `MAX_ITEMS`.
    """

    log: Interactions
    split: Split
    items: Integers
    vectors: Floats
    values: Floats
    ridge: float
    chosen_on: int
    left_out: int

    @cached_property
    def weights(self) -> npt.NDArray[np.float32]:
        """float32[A, A], B."""
        weights = (self.vectors * self._shrunk) @ self.vectors.T
        weights /= self._rest
        np.fill_diagonal(weights, 0)
        return weights.astype(np.float32)

    def blocks(self, found: Targets) -> Iterator[Block]:
        """Yield (rows, float32 [b, N]) scores from each target's history; an item unknown to the model gets 0.

        Fewer targets than items are scored through V, which is cheaper than building B.
        """
        histories = Histories(self.log, self.split)
        scored = self._through_vectors if len(found) < len(self.items) else self._through_weights
        for rows in block_rows(len(found), block_size(self.log.catalogue.size)):
            pair_rows, events = histories.pairs(found.event[rows])
            shape = (rows.stop - rows.start, self.log.catalogue.size)
            history = _binary(pair_rows, self.log.item_codes[events], shape)
            scores = np.zeros(shape, dtype=np.float32)
            scores[:, self.items] = scored(history[:, self.items])
            yield rows, scores

    @property
    def _shrunk(self) -> Floats:
        return self.values / (self.values + self.ridge)

    @property
    def _rest(self) -> Floats:
        """float64[A], 1 - S_jj = λ P_jj."""
        return 1 - self.vectors**2 @ self._shrunk

    def _through_weights(self, history: Any) -> Floats:
        return history @ self.weights

    def _through_vectors(self, history: Any) -> Floats:
        smoothed = ((history @ self.vectors) * self._shrunk) @ self.vectors.T
        own = history.multiply(1 - self._rest).toarray()  # an item takes no part in its own score
        return (smoothed - own) / self._rest


def ease(log: Interactions, split: Split, lambdas: Sequence[float] = LAMBDAS) -> EaseScorer:
    """Fit EASE on the training events, with the ridge that has the best validation NDCG@10 (seen items masked).

    The test part is not looked at. Of equal ridges the smaller wins; without validation events, or with one ridge,
    nothing is chosen: 500, or the one given.
    """
    train = np.asarray(split.part) == TRAIN
    users, codes = log.user_codes[train], log.item_codes[train]
    counts = np.bincount(codes, minlength=log.catalogue.size)
    seen = np.flatnonzero(counts)
    items = np.sort(seen[np.argsort(-counts[seen], kind="stable")][:MAX_ITEMS])
    vectors, values = _decompose(_binary(users, codes, (len(log.user_ids), log.catalogue.size))[:, items])
    found = targets(log, split, VALID)
    found = found.take(np.linspace(0, len(found) - 1, min(len(found), MAX_VALID)).astype(np.int64))
    choice = len(found) > 0 and len(lambdas) > 1
    chosen_on = len(found) if choice else 0

    def fit(ridge: float) -> EaseScorer:
        return EaseScorer(log, split, items, vectors, values, ridge, chosen_on, len(seen) - len(items))

    if not choice:
        return fit(lambdas[0] if len(lambdas) == 1 else DEFAULT_LAMBDA)
    return fit(max(sorted(lambdas), key=lambda ridge: _quality(fit(ridge), found)))


def fit_seconds(log: Interactions, split: Split) -> float:
    """About the seconds of a fit on this machine, from the time of a small decomposition; those below a second are 0."""
    train = np.asarray(split.part) == TRAIN
    size = min(len(np.unique(log.user_codes[train])), len(np.unique(log.item_codes[train])), MAX_ITEMS)
    if size < 4 * _SAMPLE:
        return 0.0
    sample = np.random.default_rng(0).random((_SAMPLE, _SAMPLE))
    begun = time.perf_counter()
    np.linalg.eigh(sample @ sample.T)
    return (time.perf_counter() - begun) * (size / _SAMPLE) ** 3


def _quality(model: EaseScorer, found: Targets) -> float:
    return ndcg(rank_in_blocks(model.log, model.split, found, model.blocks(found)).ranks, 10)


def _decompose(matrix: Any) -> tuple[Floats, Floats]:
    """Return the eigenvectors [A, r] and eigenvalues [r] of XᵀX that are not 0, for a sparse X [U, A]."""
    wide = matrix.shape[0] < matrix.shape[1]
    gram = (matrix @ matrix.T if wide else matrix.T @ matrix).toarray().astype(np.float64)
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-9 * max(values.max(initial=0.0), 1.0)
    values = values[kept]
    vectors = vectors[:, kept]
    return (matrix.T @ vectors / np.sqrt(values) if wide else vectors), values


def _binary(rows: npt.NDArray[Any], columns: npt.NDArray[Any], shape: tuple[int, int]) -> Any:
    """Return a float32 CSR matrix of ones at the pairs, repeated or not."""
    matrix = sp.csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix
