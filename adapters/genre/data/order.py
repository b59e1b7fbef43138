"""The one order of events.

Owns: the tie rule. An event's position among a user's events is decided by its time, to the microsecond, then by
sha256(user_id, the byte 0x1f, item_id), then by its row in the source file. Ignores everything else.
A data set may name another order of equal times: a column's, or that of the source file.

Many logs have whole pages of events in one second (76 % of MovieLens-100K's events share theirs), and file or id order
there reveals the item that came later in the catalogue, hence how popular it is. The hash reveals nothing.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

_CHUNK = 1 << 20

HASH, FILE = "hash", "file"
"""Orders of equal times; any other is the name of a column."""


def tie_rule(order: str, *, timed: bool, whole_seconds: bool) -> str:
    """Return the order of equal times in words, for a protocol."""
    how = {HASH: "in hash order", FILE: "in file order"}.get(order, f"in the order of {order}, then in hash order")
    return f"equal {'seconds' if whole_seconds else 'times'} {how}" if timed else f"no times: events {how}"


def tie_keys(user_ids: Sequence[str], item_ids: Sequence[str], users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Return the tie key of each event, uint64[n]: the first 8 bytes of its sha256, big-endian, to order as it does.

    Args:
        user_ids: The ids that `users` points into.
        item_ids: The ids that `items` points into.
        users: User codes, int[n].
        items: Item codes, int[n].
    """
    heads = {int(code): hashlib.sha256(user_ids[code].encode() + b"\x1f") for code in np.unique(users)}
    tails = {int(code): item_ids[code].encode() for code in np.unique(items)}
    parts = []
    for start in range(0, len(users), _CHUNK):
        pairs = zip(users[start : start + _CHUNK].tolist(), items[start : start + _CHUNK].tolist(), strict=True)
        parts.append(np.frombuffer(b"".join(_digest(heads[user], tails[item]) for user, item in pairs), dtype=">u8"))
    return np.concatenate(parts).astype(np.uint64) if parts else np.zeros(0, dtype=np.uint64)


def _digest(head: "hashlib._Hash", tail: bytes) -> bytes:
    state = head.copy()
    state.update(tail)
    return state.digest()[:8]


def order_events(
    user_ids: Sequence[str],
    item_ids: Sequence[str],
    users: np.ndarray,
    items: np.ndarray,
    times: np.ndarray,
    rows: np.ndarray,
    ranks: np.ndarray | None = None,
) -> np.ndarray:
    """Return the indices that bring events into the contract's order, int64[n]; hashes only ties on (user, time, rank).

    Args as of `tie_keys`, users in code order; with microseconds and positions in the source file, int64[n] each;
    `ranks` are numbers that order equal times, or None.
    """
    first = (times,) if ranks is None else (ranks, times)
    last = () if (rows[1:] > rows[:-1]).all() else (rows,)  # sorting is stable: rows in their order need no key
    order = np.lexsort((*last, *first[:-1], *_user_times(users, times)))
    tied = tied_events(users[order], *(key[order] for key in first))
    if tied.size:
        events = order[tied]
        keys = tie_keys(user_ids, item_ids, users[events], items[events])
        inner = np.lexsort((rows[events], keys, *(key[events] for key in first), users[events]))
        order[tied] = events[inner]
    return order


def _user_times(users: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return keys to sort by user, then time, the last first: one number of both where it fits into 63 bits."""
    if not len(users):
        return (users,)
    low, span = int(times.min()), int(times.max()) - int(times.min()) + 1
    if (int(users.max()) + 1) * span >= 2**63:
        return times, users
    return (users.astype(np.int64) * span + (times - low),)


def tied_events(users: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """Return the indices of events that share user and keys (the time) with a neighbour; all arrays sorted by them."""
    if len(users) < 2:
        return np.zeros(0, dtype=np.int64)
    same = np.logical_and.reduce([key[1:] == key[:-1] for key in (users, *keys)])
    return np.flatnonzero(np.concatenate([same, [False]]) | np.concatenate([[False], same]))


def undecided_events(users: np.ndarray, impressions: np.ndarray | None, *keys: np.ndarray) -> np.ndarray:
    """Return the mask of events, bool[n], that share user and keys with another one that is not a sibling of theirs.

    Their place is decided by a hash alone. Siblings (events of one impression) need no order: none is in another's history.

    Args:
        users: User codes, int[n]; all arrays are sorted by these and the keys.
        impressions: The impression of each event, int[n], or None.
        keys: What is known of the order: times, and ranks where there are any.
    """
    tied = np.zeros(len(users), dtype=bool)
    tied[tied_events(users, *keys)] = True
    if impressions is None or not tied.any():
        return tied
    starts = np.concatenate([[True], np.logical_or.reduce([key[1:] != key[:-1] for key in (users, *keys)])])
    first = np.flatnonzero(starts)
    mixed = np.minimum.reduceat(impressions, first) != np.maximum.reduceat(impressions, first)
    return tied & mixed[np.cumsum(starts) - 1]
