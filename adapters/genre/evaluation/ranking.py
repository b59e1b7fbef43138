"""Ranks and top lists from scores over the whole catalogue, block by block.

Owns: masking what the user has seen, the rank of each target among all that is left, the top 20. Ignores who scores.

Ties: ranks are mid-ranks (`genre.evaluation.metrics.ranking`); in a top list equal scores come in the order of
sha256(item_id), which is independent of the item and the same in every catalogue.

    blocks = ((rows, scorer(rows)) for rows in block_rows(len(found), block_size(N)))    # scores: float32 [b, N]
    ranks, top = rank_in_blocks(log, split, found, blocks, seen="masked")
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from genre.data.interactions import Interactions
from genre.data.splits import Split
from genre.errors import DataError
from genre.evaluation.history import Histories
from genre.evaluation.metrics.checks import Floats, Integers
from genre.evaluation.metrics.ranking import mid_ranks, refuse_nan, top_items
from genre.evaluation.targets import Targets

BLOCK = 256
CELLS = 2**24
"""Scores of one block, 64 MiB of float32: of a million items, 16 targets are ranked at a time."""
TOP = 20

Block: TypeAlias = tuple[slice | npt.NDArray[Any], npt.NDArray[np.float32]]
"""Some targets (a slice, or indices), and their scores, float32 [b, N]."""
Seen: TypeAlias = Literal["masked", "kept"]


class Ranking(NamedTuple):
    """`ranks`: float64[n] from 1; `top`: int32[n, 20] item codes, best first, -1 where fewer are left."""

    ranks: Floats
    top: npt.NDArray[np.int32]


def block_size(items: int) -> int:
    """Return how many targets make a block over a catalogue of so many items."""
    return max(1, min(BLOCK, CELLS // max(items, 1)))


def block_rows(count: int, size: int = BLOCK) -> Iterator[slice]:
    """Yield slices that cut `count` targets into blocks."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def rank_in_blocks(
    log: Interactions, split: Split, targets: Targets, blocks: Iterable[Block], *, seen: Seen = "masked"
) -> Ranking:
    """Rank every target's item among the catalogue.

    With `masked`, every item of the target's history (see `Histories`) takes no part, neither in ranks nor in lists,
    but for the target's own item, which stays even if the history holds it. With `kept`, all items take part.

    Args:
        log: The log.
        split: A split of this log.
        targets: What is ranked.
        blocks: Together every target exactly once, in any order. Scores are not changed; -inf takes an item out of the
            lists.
        seen: `masked` or `kept`.

    Raises:
        DataError: A score is NaN (the message names the target's row), a block has another shape, or a target is not
            scored exactly once.
    """
    ranker = Ranker(log, split, seen=seen)
    ranks, top = np.full(len(targets), np.nan), np.full((len(targets), TOP), -1, dtype=np.int32)
    scored = np.zeros(len(targets), dtype=np.int64)
    for chosen, given in blocks:
        rows = np.arange(len(targets))[chosen]
        _check_block(rows, given, log.catalogue.size)
        ranks[rows], top[rows] = ranker.rank(targets.event[rows], targets.item[rows], given)
        np.add.at(scored, rows, 1)
    _check_all(scored)
    return Ranking(ranks, top)


class Ranker:
    """Ranks blocks of targets of one log under one split; what takes long is made once.

    Args:
        log: The log.
        split: A split of this log.
        seen: `masked` or `kept`, as in `rank_in_blocks`.
    """

    def __init__(self, log: Interactions, split: Split, *, seen: Seen = "masked") -> None:
        self.log = log
        self.histories = Histories(log, split) if seen == "masked" else None
        self.ties = tie_order(log)

    def rank(self, events: Integers, own: npt.NDArray[np.int32], given: npt.NDArray[np.float32]) -> Ranking:
        """Rank a block.

        Args:
            events: [b] events of the log.
            own: [b] their items.
            given: [b, N] scores, not changed.

        Raises:
            DataError: A score is NaN.
        """
        scores, ranks = self._ranks(events, own, given)
        return Ranking(ranks, top_items(scores, TOP, self.ties))

    def ranks(self, events: Integers, own: npt.NDArray[np.int32], given: npt.NDArray[np.float32]) -> Floats:
        """The ranks of a block alone, without top lists; see `rank`."""
        return self._ranks(events, own, given)[1]

    def _ranks(
        self, events: Integers, own: npt.NDArray[np.int32], given: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.float32], Floats]:
        scores, masked = _masked(self.log, self.histories, events, own, given)
        # masked items equal a target whose own score is -inf, and are not candidates then either
        equals = np.where(scores[np.arange(len(scores)), own] == -np.inf, masked, 0)
        return scores, mid_ranks(scores, own) - equals / 2


def tie_order(log: Interactions) -> Integers:
    """Return the item codes in the order of sha256(item_id): of equal scores the earlier is listed first."""
    keys = [hashlib.sha256(item.encode()).digest() for item in log.catalogue.item_ids]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def _masked(
    log: Interactions, histories: Histories | None, events: Integers, own: npt.NDArray[np.int32], given: Any
) -> tuple[npt.NDArray[np.float32], Integers]:
    """Return a copy of the scores with -inf at seen items, and the number of those per row."""
    scores = np.array(given, dtype=np.float32)
    if histories is None:
        return scores, np.zeros(len(scores), dtype=np.int64)
    pair_rows, pair_events = histories.pairs(events)
    items = log.item_codes[pair_events]
    other = items != own[pair_rows]
    hidden = np.zeros(scores.shape, dtype=bool)
    hidden[pair_rows[other], items[other]] = True
    scores[hidden] = -np.inf
    return scores, np.count_nonzero(hidden, axis=1)


def _check_block(rows: Integers, scores: npt.NDArray[Any], size: int) -> None:
    if scores.shape != (len(rows), size):
        expected = f"{[len(rows), size]}, a score per target and item of the catalogue"
        raise DataError("a block of scores has the wrong shape", got=list(scores.shape), expected=expected)
    bad = np.isnan(scores).any(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        refuse_nan(scores[row : row + 1], first_row=int(rows[row]))


def _check_all(scored: Integers) -> None:
    wrong = scored != 1
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"target {row} is not scored exactly once", got=f"{scored[row]} times", expected="once")
