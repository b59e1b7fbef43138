"""Linear item-to-item baselines of next-item tasks, beside EASE: transitions, item neighbours, text neighbours and their sum.

Owns: the weights, the choice of how a history fades, and scores. Ignores metrics' names, and where text vectors come from.

Every model scores a catalogue by Σ_j γ^(events since j) W_j, with its own matrix W and the γ that validation likes best:

    transitions        W_ji: how often i came right after j; γ = 0, popularity breaks ties
    item_neighbours    the cosine of two items' users, the nearest `NEIGHBOURS` of each (Sarwar et al. 2001)
    text_neighbours    the cosine of two items' text vectors
    ease_text          EASE plus text neighbours, both standardized over the catalogue, weight chosen on validation
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from genre.data.interactions import Interactions
from genre.data.splits import TRAIN, Split
from genre.evaluation.ease import FADES, EaseScorer, validation_ndcg, validation_targets
from genre.evaluation.history import Histories
from genre.evaluation.metrics.checks import Floats
from genre.evaluation.ranking import Block, Seen, block_rows, block_size
from genre.evaluation.targets import Targets

NEIGHBOURS = 200
TEXT_WEIGHTS = (0.25, 0.5, 0.7, 1.0, 1.4, 2.0)
"""Of standardized text neighbours beside standardized EASE."""
BLOCK_CELLS = 2**24
"""Cells of a block of item-to-item similarities before its nearest neighbours are kept."""

Score: TypeAlias = Callable[[Any], Floats]
"""Maps a CSR matrix [b, N] of faded histories to scores [b, N]."""


class FadedModel:
    """Scores of an item-to-item model from fading histories.

    Args:
        log: The log.
        split: A split of this log.
        score: The model.
        fade: γ; chosen on validation among `FADES` if None (1 without validation targets).
        seen: How validation targets are ranked.
    """

    def __init__(
        self, log: Interactions, split: Split, score: Score, fade: float | None = None, *, seen: Seen = "masked"
    ) -> None:
        self.score = score
        self.histories = Histories(log, split)
        self.fade = FADES[0] if fade is None else fade
        if fade is None:
            tune(self, "fade", FADES, log, split, seen)

    def blocks(self, found: Targets) -> Iterator[Block]:
        """Yield (rows, float32 [b, N]) scores."""
        for rows in block_rows(len(found), block_size(self.histories.item_count)):
            history = self.histories.item_weights(found.event[rows], self.fade)
            yield rows, np.asarray(self.score(history), dtype=np.float32)


def transitions(log: Interactions, split: Split) -> FadedModel:
    """Return the number of times that an item came right after the last one in training, ties broken by popularity."""
    train = np.flatnonzero(np.asarray(split.part) == TRAIN)
    users, items, size = log.user_codes[train], log.item_codes[train], log.catalogue.size
    follows = users[1:] == users[:-1]
    pairs = items[:-1][follows], items[1:][follows]
    counts = sp.csr_matrix((np.ones(len(pairs[0]), dtype=np.float32), pairs), shape=(size, size))
    popularity = np.bincount(items, minlength=size)
    share = (popularity / (popularity.sum() + 1)).astype(np.float32)
    return FadedModel(log, split, lambda history: (history @ counts).toarray() + share, fade=0.0)


def item_neighbours(log: Interactions, split: Split, *, seen: Seen = "masked") -> FadedModel:
    """Return the item neighbours by the cosine of their users in training."""
    train = np.asarray(split.part) == TRAIN
    shape = len(log.user_ids), log.catalogue.size
    ones = np.ones(np.count_nonzero(train), dtype=np.float32)
    users = sp.csr_matrix((ones, (log.user_codes[train], log.item_codes[train])), shape=shape)
    users.data[:] = 1
    norm = np.sqrt(np.asarray(users.sum(0)).ravel())
    unit = users @ sp.diags(1 / np.maximum(norm, 1))
    weights = nearest(unit.T.tocsr(), unit.tocsr(), NEIGHBOURS)
    return FadedModel(log, split, lambda history: (history @ weights).toarray(), seen=seen)


def text_neighbours(log: Interactions, split: Split, vectors: Floats, *, seen: Seen = "masked") -> FadedModel:
    """Return neighbours by text, from (N, r) vectors of length one (or zero, for an item without text)."""
    return FadedModel(log, split, lambda history: (history @ vectors) @ vectors.T, seen=seen)


def tune(model: Any, name: str, values: Sequence[float], log: Interactions, split: Split, seen: Seen) -> None:
    """Set an attribute of a model to the value that ranks validation targets best (mutates it); leave it without any."""
    if not len(found := validation_targets(log, split)):
        return

    def quality(value: float) -> float:
        setattr(model, name, value)
        return validation_ndcg(log, split, found, model.blocks(found), seen)

    setattr(model, name, max(values, key=quality))


class EaseText:
    """EASE plus text neighbours, the scores of each standardized over the catalogue.

    Args:
        model: EASE.
        texts: Text neighbours of the same log and split.
        weight: Of the text; chosen on validation if None (1 without validation targets).
        seen: How validation targets are ranked.
    """

    def __init__(self, model: EaseScorer, texts: FadedModel, weight: float | None = None, *, seen: Seen = "masked") -> None:
        self.model = model
        self.texts = texts
        self.weight = 1.0 if weight is None else weight
        if weight is None:
            tune(self, "weight", TEXT_WEIGHTS, model.log, model.split, seen)

    def blocks(self, found: Targets) -> Iterator[Block]:
        """Yield (rows, float32 [b, N]) scores."""
        for (rows, together), (_, text) in zip(self.model.blocks(found), self.texts.blocks(found), strict=True):
            yield rows, _standardized(together) + np.float32(self.weight) * _standardized(text)


def nearest(left: Any, right: Any, count: int) -> Any:
    """Return the CSR product of two sparse matrices [N, U] and [U, N] without its diagonal, the largest `count` of each row kept.

    Rows are computed in blocks, so that the whole product is never in memory.
    """
    size = left.shape[0]
    step = max(1, BLOCK_CELLS // max(right.shape[1], 1))
    return sp.vstack([_largest(left[start : start + step] @ right, start, count) for start in range(0, size, step)]).tocsr()


def _largest(block: Any, first: int, count: int) -> Any:
    dense = block.toarray()
    own = np.arange(len(dense))
    dense[own, first + own] = 0
    if count < dense.shape[1]:
        small = np.argpartition(-dense, count, axis=1)[:, count:]
        np.put_along_axis(dense, small, 0, axis=1)
    return sp.csr_matrix(dense)


def _standardized(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = (scores - scores.mean(1, keepdims=True)) / (scores.std(1, keepdims=True) + np.float32(1e-9))
    return found
