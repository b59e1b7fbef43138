"""Cold items: those of which a split lets nothing be learnt, so that what is new can be evaluated.

Owns: which items are held out of training, which are cold by their number of training events. Ignores models and metrics.

A cold item's training events become unused: still part of the histories that a target sees (an item can be new and already have
been seen by this user), but nothing is learnt from them. Its validation and test events stay targets.

    SplitConfig(kind="last_n", n=5, cold_items=0.2)     # a fifth of the items
    SplitConfig(kind="last_n", n=5, cold_items=5)       # the items with one to four training events
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from genre.data.interactions import Interactions

TRAIN, UNUSED = 0, -1


def hold_out_items(log: "Interactions", part: np.ndarray, rule: float, seed: int, counts: dict[str, int]) -> np.ndarray:
    """Return the parts with the cold items' training events unused.

    Args:
        log: The log.
        part: (n,) int8 parts beside `log.frame`; not changed.
        rule: Below 1 the share of the items with training events that is held out: those with the smallest
            sha256(seed, the byte 0x1f, item_id), which does not depend on the items' order. From 1 up, a whole number n: the
            items with fewer than n training events.
        seed: Of a share.
        counts: What was set aside; mutated.
    """
    events = training_events(log, part)
    if rule < 1:
        there = np.flatnonzero(events)
        ids = log.catalogue.item_ids
        keys = [hashlib.sha256(f"{seed}\x1f{ids[code]}".encode()).digest() for code in there.tolist()]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        chosen = there[order[: round(len(there) * rule)]]
    else:
        chosen = np.flatnonzero((events > 0) & (events < rule))
    cold = np.zeros(log.catalogue.size, dtype=bool)
    cold[chosen] = True
    held = cold[log.item_codes] & (part == TRAIN)
    counts["cold items"], counts["training events of cold items, unused"] = len(chosen), int(held.sum())
    return np.where(held, UNUSED, part).astype(np.int8)


def training_events(log: "Interactions", part: np.ndarray) -> np.ndarray:
    """Return (N,) int64: how many training events each item has."""
    return np.bincount(log.item_codes[part == TRAIN], minlength=log.catalogue.size)
