"""Histories that were read before: which tokens of a row are known, and what is left of a row for the next time.

Owns: keys, the comparison of a row with what is kept, batches of rows that go on. Ignores: where states lie and who leaves
(`genre.engine.history_store`), layers.

A state is kept under the version that made it (or the bare base), the items as its encoder sees them, and the user; there is one
of each, of the history that was asked last. It holds the marks of its tokens and their keys and values at each layer:

    kept      instruction  e1 e2 … e98               of 198 tokens
    asked     instruction  e1 e2 … e98 e99 | c1 c2   the first 198 tokens have the same marks: four tokens are computed
    asked     instruction  e1 e2'… e98               the marks differ at e2: that is a history of its own, read from there on

Marks are all that a token's states depend on beside the version: its id or item, feedback, position, what it does not see. So an
event that was edited, a user's new column, another instruction or a window that has moved never finds a state that does not fit.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genre.data.sequences.layout import Sequence as Row
from genre.engine.history_store import HistoryStore
from genre.engine.items import Inline
from genre.engine.planning import Job
from genre.modules.base.prefixes import KeysValues, Prefix

LEAST_SHARE = 0.25
"""Share of a history that has to be known: with less it goes with those that are read from the start."""
OPENING = 4
"""Events by which a history without a user's id is found again."""
INLINE = -2

HistoryKey = tuple[str, str, bytes]
"""Version (empty for the bare base), items, user or opening."""


@dataclass(frozen=True)
class Known:
    """What is known of a row.

    Attributes:
        row: The row, all of it.
        states: HistoryKeys and values, of `tokens` tokens or more.
        tokens: Tokens of the row that need no computing.
    """

    row: Row
    states: KeysValues
    tokens: int

    @property
    def prefix(self) -> Prefix:
        """The same, for attention."""
        return Prefix(self.states, self.tokens, self.row.positions[: self.tokens], self.row.masked_spans[self.tokens :])

    def longer(self, more: KeysValues) -> KeysValues:
        """The states of the known tokens and of those after them."""
        return tuple(torch.cat([one[:, : self.tokens], new], dim=1) for one, new in zip(self.states, more, strict=True))


class Histories:
    """What rows find in a store, and leave there.

    Args:
        store: The store.
    """

    def __init__(self, store: HistoryStore) -> None:
        self.store = store

    def find(self, job: Job, row: Row, read: int) -> Known | None:
        """What is known of a row; None if that is too little.

        Args:
            job: Whose row it is.
            row: A row with a history.
            read: The first token whose state is read: it and those after it are computed.
        """
        found = self.store.look(history_key(job, row))
        marks, *states = found or (None,)
        tokens = 0 if marks is None else min(_alike(marks.cpu().numpy(), marks_of(row, job.inline)), read)
        if tokens < LEAST_SHARE * row.prefix_length:
            tokens = 0
        self.store.count(tokens)
        return Known(row, tuple(states), tokens) if tokens > 0 else None

    def keep(self, job: Job, row: Row, states: KeysValues) -> None:
        """Keep the states of a row's history, (key heads, tokens, d) each, in place of those that the user had."""
        marks = torch.from_numpy(marks_of(row, job.inline)).to(states[0].device)
        owner = job.request.user_id or ""
        self.store.put(history_key(job, row), (marks, *states), owner=owner, tokens=row.prefix_length, begun=job.begun)

    def drop(self, digest: str) -> None:
        """Drop the states of a version that nobody can ask for any more."""
        self.store.drop(lambda key: isinstance(key, tuple) and key[0] == digest)


def has_history(row: Row) -> bool:
    """True if a row is of a history with events, which may come back with more of them."""
    return row.spans is None and len(row.item_codes) > 0


def history_key(job: Job, row: Row) -> HistoryKey:
    """The key of a row's history."""
    digest = "" if job.resident.slot is None else job.resident.digest
    if job.request.user_id is not None:
        whose = b"user" + job.request.user_id.encode()
    else:
        events = len(row.item_codes)
        end = int(row.event_starts[OPENING]) if events > OPENING else row.prefix_length
        whose = b"history" + marks_of(row, job.inline)[:end].tobytes()
    return digest, job.resident.space.identity, hashlib.blake2b(whose, digest_size=16).digest()


def marks_of(row: Row, inline: Inline) -> np.ndarray:
    """(P, 6) int32 of each token of a history: id, item, feedback, position, the span that it does not see.

    With inline items among its soft tokens (P, 10): their item is `INLINE`, and four more numbers say which.
    """
    end = slice(row.prefix_length)
    items, size = row.items[end], inline.space.catalogue.size
    columns = [row.tokens[end], items, row.feedback[end], row.positions[end], *row.masked_spans[end].T]
    if (places := np.flatnonzero(items >= size)).size:
        columns[1] = np.where(items >= size, INLINE, items)
        which = np.zeros((len(items), 4), dtype=np.int32)
        for place in places.tolist():
            which[place] = np.frombuffer(inline.digest(int(items[place])), dtype=np.int32)
        columns.extend(which.T)
    return np.stack(columns, axis=1).astype(np.int32, copy=False)


def _alike(one: np.ndarray, other: np.ndarray) -> int:
    """The number of first tokens whose marks are the same."""
    tokens, columns = min(len(one), len(other)), min(one.shape[1], other.shape[1])
    same = (one[:tokens, :columns] == other[:tokens, :columns]).all(1)
    return tokens if same.all() else int(same.argmin())


def by_turns(units: Sequence[Any], keys: Sequence[HistoryKey]) -> list[list[Any]]:
    """Two lists of units, one of which may be empty: the first of each key, whose states the others of that key find then."""
    seen: set[HistoryKey] = set()
    turns: list[list[Any]] = [[], []]
    for unit, key in zip(units, keys, strict=True):
        turns[key in seen].append(unit)
        seen.add(key)
    return turns
