"""Shared parts of the ranking rivals: histories as matrices, and the choice between settings on the validation part."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from genre.data.interactions import Interactions
from genre.data.splits import TRAIN, VALID, Split, SplitConfig
from genre.evaluation.history import Histories
from genre.evaluation.metrics.ranking import ndcg
from genre.evaluation.ranking import Block, rank_in_blocks
from genre.evaluation.targets import Targets, targets

MAX_VALID = 2_000


class Ranker(Protocol):
    """A fitted rival."""

    settings: dict[str, Any]

    def blocks(self, found: Targets) -> Iterator[Block]:
        """Scores of the whole catalogue for each target."""


def protocol(config: SplitConfig) -> str:
    """A split in words."""
    values = config.model_dump(exclude_none=True, exclude_defaults=True)
    return ", ".join([str(values.pop("kind")), *(f"{key} {value}" for key, value in values.items())])


def training_matrix(log: Interactions, split: Split) -> sp.csr_matrix:
    """Users × items, ones at the training events."""
    train = np.asarray(split.part) == TRAIN
    return binary(log.user_codes[train], log.item_codes[train], (len(log.user_ids), log.catalogue.size))


def binary(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> sp.csr_matrix:
    """A float32 matrix of ones at the pairs, repeated or not."""
    matrix = sp.csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def recent(log: Interactions, histories: Histories, events: np.ndarray, last: int, decay: float) -> sp.csr_matrix:
    """Targets × items: the last events of each history, the j-th from the end weighing decay^j."""
    rows, found = histories.pairs(events)
    sizes = np.bincount(rows, minlength=len(events))
    age = np.cumsum(sizes)[rows] - 1 - np.arange(len(rows))
    kept = age < last
    weight = np.float32(decay) ** age[kept]
    shape = (len(events), log.catalogue.size)
    return sp.csr_matrix((weight.astype(np.float32), (rows[kept], log.item_codes[found[kept]])), shape=shape)


def validation_targets(log: Interactions, split: Split) -> Targets:
    """At most `MAX_VALID` validation targets, evenly spread."""
    found = targets(log, split, VALID)
    return found.take(np.linspace(0, len(found) - 1, min(len(found), MAX_VALID)).astype(np.int64))


def quality(ranker: Ranker, log: Interactions, split: Split, found: Targets) -> float:
    """NDCG@10, seen items masked."""
    return ndcg(rank_in_blocks(log, split, found, ranker.blocks(found)).ranks, 10)


def best_of(make: Callable[..., Ranker], grid: Iterable[dict[str, Any]], log: Interactions, split: Split) -> Ranker:
    """The setting with the best validation NDCG@10; the first of equals."""
    found = validation_targets(log, split)
    best, value = None, -1.0
    for settings in grid:
        ranker = make(log, split, **settings)
        reached = quality(ranker, log, split, found)
        if reached > value:
            best, value = ranker, reached
    assert best is not None
    best.settings = {**best.settings, "validation_ndcg@10": round(value, 5)}
    return best
