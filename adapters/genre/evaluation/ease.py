"""EASE: a linear item-to-item model in closed form.

Owns: the fit, the choice of its ridge and its fading on the validation part, and scores from histories. Ignores metrics' names.

Steck 2019 (Embarrassingly Shallow Autoencoders for Sparse Data, eq. 8): with X the binary user × item matrix of the
training events and P = (XᵀX + λI)⁻¹, B_ij = -P_ij / P_jj off the diagonal and 0 on it; a history's scores are xB, with
x_i = γ^(events since the latest event of i).

One decomposition serves every λ. With XᵀX = V diag(s) Vᵀ, from the smaller of XᵀX and XXᵀ, and S = V diag(s / (s + λ)) Vᵀ,
λP = I - S, so that B_ij = S_ij / (1 - S_jj).

    model = ease(log, split)
    model.ridge, model.fade           # chosen on the validation part
    rank_in_blocks(log, split, found, model.blocks(found))
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from genre.evaluation.ranking import Block, Seen, block_rows, block_size, rank_in_blocks
from genre.evaluation.targets import Targets, targets

LAMBDAS = (20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
DEFAULT_LAMBDA = 500.0
FADES = (1.0, 0.95, 0.9, 0.8, 0.6)
MAX_ITEMS = 10_000
"""A matrix of this size takes 0.8 GB, and a fit holds about four. Rarer items of a larger catalogue score 0, and are counted."""
_SAMPLE = 256
MAX_VALID = 2_000
"""Settings are chosen on at most so many validation targets, evenly spread."""


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
        fade: γ, the weight of an event relative to the next one.
        chosen_on: Validation targets that λ and γ were chosen on; 0 if there was nothing to choose.
        left_out: Items with training events that the model does not know since there are more than `MAX_ITEMS`.
    """

    log: Interactions
    split: Split
    items: Integers
    vectors: Floats
    values: Floats
    ridge: float
    fade: float
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
            history = histories.item_weights(found.event[rows], self.fade)
            scores = np.zeros(history.shape, dtype=np.float32)
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


def ease(
    log: Interactions, split: Split, lambdas: Sequence[float] = LAMBDAS, fades: Sequence[float] = FADES, *, seen: Seen = "masked"
) -> EaseScorer:
    """Fit EASE on the training events, with the ridge and the fading, chosen in turn, that have the best validation NDCG@10.

    The test part is not looked at. Of equal ridges the smaller wins, of equal fadings the slower. Without validation events
    nothing is chosen: 500 (or the only ridge), and no fading (or the only one).
    """
    train = np.asarray(split.part) == TRAIN
    users, codes = log.user_codes[train], log.item_codes[train]
    counts = np.bincount(codes, minlength=log.catalogue.size)
    trained = np.flatnonzero(counts)
    items = np.sort(trained[np.argsort(-counts[trained], kind="stable")][:MAX_ITEMS])
    vectors, values = _decompose(_binary(users, codes, (len(log.user_ids), log.catalogue.size))[:, items])
    found = validation_targets(log, split)
    choice = len(found) > 0 and len(lambdas) * len(fades) > 1
    start = EaseScorer(
        log,
        split,
        items,
        vectors,
        values,
        ridge=lambdas[0] if len(lambdas) == 1 else DEFAULT_LAMBDA,
        fade=fades[0],
        chosen_on=len(found) if choice else 0,
        left_out=len(trained) - len(items),
    )
    if not choice:
        return start

    def best(models: Iterable[EaseScorer]) -> EaseScorer:
        return max(models, key=lambda model: validation_ndcg(log, split, found, model.blocks(found), seen))

    unfaded = best(replace(start, ridge=ridge) for ridge in sorted(lambdas))
    faded = best(replace(unfaded, fade=fade) for fade in sorted(fades, reverse=True))
    return faded if faded.fade == unfaded.fade else best(replace(faded, ridge=ridge) for ridge in sorted(lambdas))


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


def validation_targets(log: Interactions, split: Split) -> Targets:
    """Return the validation targets that settings of baselines are chosen on: all, or `MAX_VALID` evenly spread."""
    found = targets(log, split, VALID)
    return found.take(np.linspace(0, len(found) - 1, min(len(found), MAX_VALID)).astype(np.int64))


def validation_ndcg(log: Interactions, split: Split, found: Targets, blocks: Iterable[Block], seen: Seen = "masked") -> float:
    """Return NDCG@10 of some scores of validation targets."""
    return ndcg(rank_in_blocks(log, split, found, blocks, seen=seen).ranks, 10)


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
