"""The history of a target: the events that a scorer may know of.

Owns: which events of a user precede a target under a split, as pairs and as sums of a label over them. Ignores
scorers, metrics and how a history becomes a prompt.

The history of an event is everything of its user before it in the log's order, of whatever part; for a transductive
split it is the user's training events. Neither holds the event itself nor a sibling (an event of the same impression).

    rows, events = Histories(log, split).pairs(np.array([7]))
    # rows [0, 0], events [5, 6]: event 7 is the third of its user
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from genre.data.interactions import Interactions
from genre.data.splits import TRAIN, Split
from genre.evaluation.metrics.checks import Floats, Integers


class Histories:
    """The histories of a log's events under a split. Immutable.

    Args:
        log: The log.
        split: A split of this log.
    """

    def __init__(self, log: Interactions, split: Split) -> None:
        self.user = log.user_codes.astype(np.int64)
        self.item = log.item_codes
        self.item_count = log.catalogue.size
        self.transductive = split.transductive
        self.train = np.asarray(split.part) == TRAIN
        self.group = _siblings(log)
        self.events = np.flatnonzero(self.train) if self.transductive else np.arange(len(log), dtype=np.int64)
        self.offsets = np.searchsorted(self.user[self.events], np.arange(len(log.user_offsets)))

    def pairs(self, targets: Integers) -> tuple[Integers, Integers]:
        """Return all (target, event of its history): int64 rows of `targets`, ascending, and int64 events in order."""
        first = self.offsets[self.user[targets]]
        last = self.offsets[self.user[targets] + 1] if self.transductive else targets
        lengths = last - first
        rows = np.repeat(np.arange(len(targets)), lengths)
        positions = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(first, lengths)
        events = self.events[positions]
        kept = self.group[events] != self.group[targets][rows]
        return rows[kept], events[kept]

    def item_weights(self, targets: Integers, fade: float = 1.0) -> Any:
        """Return the items of each target's history, a float32 CSR matrix [m, N] of fade^(events since the item's latest)."""
        rows, events = self.pairs(targets)
        columns = self.item[events].astype(np.int64)
        cells, reverse = np.unique((rows * self.item_count + columns)[::-1], return_index=True)  # an item's latest event
        ages = np.bincount(rows, minlength=len(targets)).cumsum()[rows] - 1 - np.arange(len(rows))
        weights = (fade ** ages[::-1][reverse]).astype(np.float32)
        shape = len(targets), self.item_count
        return sp.csr_matrix((weights, (cells // self.item_count, cells % self.item_count)), shape=shape)

    def sums(self, values: Floats, targets: Integers) -> tuple[Floats, Floats]:
        """Return, over each target's history, the sum of the known values and their number.

        Args:
            values: [n] one per event of the log, NaN where unknown.
            targets: [m] events.

        Returns:
            Two float64 [m].
        """
        known = ~np.isnan(values)
        if self.transductive:
            known &= self.train
        terms = np.where(known, values, 0.0), known.astype(np.float64)
        total, count = (self._sum(each)[targets] for each in terms)
        # A sum that cancels to nothing must be nothing, whatever the rounding.
        return np.where(count > 0, total, 0.0), count

    def _sum(self, terms: Floats) -> Floats:
        if self.transductive:
            own: Floats = np.bincount(self.user, weights=terms).astype(np.float64)
            siblings: Floats = np.bincount(self.group, weights=terms).astype(np.float64)
            return own[self.user] - siblings[self.group]
        by_group = np.argsort(self.group, kind="stable")
        siblings = np.empty(len(terms))
        siblings[by_group] = _before(self.group[by_group], terms[by_group])
        return _before(self.user, terms) - siblings


def _before(keys: Integers, terms: Floats) -> Floats:
    """For keys in runs: the sum of the terms of the same run before each position."""
    if not len(terms):
        return np.zeros(0)
    sums = np.cumsum(terms) - terms
    starts = np.concatenate([[True], keys[1:] != keys[:-1]])
    run = np.cumsum(starts) - 1
    return sums - sums[starts][run]


def _siblings(log: Interactions) -> Integers:
    """Return int64[n]: equal for events of one user's impression, else different for each event."""
    alone = np.arange(len(log.user_codes), dtype=np.int64)
    if "impression_id" not in log.frame.columns:
        return alone
    names = log.frame["impression_id"]
    shown = names.rank("dense").fill_null(0).to_numpy().astype(np.int64)
    count = int(shown.max(initial=0)) + 1
    shown = np.where(shown == 0, count + alone, shown)
    keys = log.user_codes.astype(np.int64) * (count + len(alone)) + shown
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)
