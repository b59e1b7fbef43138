"""Histories that were read before: which tokens of a row are known, and what is left of a row for the next time.

Owns: keys, the comparison of a row with what is kept, batches of rows that go on. Ignores: where states lie and who leaves
(`genre.engine.history_store`), layers.

A state is kept under the version that made it, the items as its encoder sees them, and the user; there is one of each, of the
history that was asked last. Layers below the lowest one that a version adapts are a state of their own, for all versions that
adapt none of them. It holds the marks of its tokens and their keys and values at each layer:

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
from torch import Tensor

from genre.data.sequences.layout import Sequence as Row
from genre.engine.adapter_source import Resident
from genre.engine.history_store import HistoryStore
from genre.engine.items import Inline
from genre.engine.planning import Job
from genre.errors import InputError
from genre.modules.base.prefixes import KeysValues, Prefix

LEAST_SHARE = 0.25
"""Share of a history that has to be known: with less it goes with those that are read from the start."""
OPENING = 4
"""Events by which a history without a user's id is found again."""
INLINE = -2

HistoryKey = tuple[str, str, bytes]
"""Version (empty for the bare base) or shared layers, items, user or opening."""


@dataclass(frozen=True)
class Known:
    """What is known of a row.

    Attributes:
        row: The row, all of it.
        states: Keys and values, of `tokens` tokens or more, at the first `layers` layers.
        tokens: Tokens of the row that need no computing there.
        layers: The base's depth, or the layers below the version's own.
        above: (tokens, D) the input of the version's lowest layer; None if that is the first one.
    """

    row: Row
    states: KeysValues
    tokens: int
    layers: int
    above: Tensor | None

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
        depth: Layers of the base.
    """

    def __init__(self, store: HistoryStore, depth: int) -> None:
        self.store = store
        self.depth = depth

    def shared_layers(self, resident: Resident) -> int:
        """Layers whose states are kept for all versions that do not adapt them; 0 if all are kept as the version's own."""
        return resident.first if resident.slot is not None and resident.first < self.depth else 0

    def find(self, job: Job, row: Row, read: int) -> Known | None:
        """What is known of a row; None if that is too little.

        Args:
            job: Whose row it is.
            row: A row with a history.
            read: The first token whose state is read: it and those after it are computed.
        """
        marks, least = marks_of(row, job.inline), LEAST_SHARE * row.prefix_length
        shared, layers = self.shared_layers(job.resident), self.depth
        tokens, states = self._look(history_key(job, row), marks)
        above: Tensor | None = None
        if shared:
            own, kept = tokens, states
            tokens, states = self._look(history_key(job, row, shared), marks)
            above, states = (states[0], states[1:]) if states else (None, [])
            if min(own, read) >= least:
                tokens, states = min(own, tokens), [*states, *kept]
            else:
                layers = shared
        tokens = min(tokens, read)
        if tokens < least:
            tokens = 0
        self.store.count(-(-tokens * layers // self.depth))
        return Known(row, tuple(states), tokens, layers, above) if tokens > 0 else None

    def _look(self, key: HistoryKey, marks: np.ndarray) -> tuple[int, list[Tensor]]:
        """The first tokens that a state knows of a row with such marks, and its tensors; 0 and none without a state."""
        found = self.store.look(key)
        return (0, []) if found is None else (_alike(found[0], marks), list(found[1]))

    def keep(self, job: Job, row: Row, states: KeysValues, above: Tensor | None) -> None:
        """Keep the states of a row's history in place of those that the user had.

        Args:
            job: Whose row it is.
            row: The row.
            states: (key heads, tokens, d) each, at all layers.
            above: (tokens, D) the input of the version's lowest layer, if any layer below it is shared.
        """
        more: Any = {"owner": job.request.user_id or "", "tokens": row.prefix_length, "begun": job.begun}
        more["label"] = marks_of(row, job.inline)
        shared = 0 if above is None else self.shared_layers(job.resident)
        if above is not None:
            self.store.put(history_key(job, row, shared), (above, *states[: 2 * shared]), **more)
        self.store.put(history_key(job, row), states[2 * shared :], **more)

    def drop(self, digest: str) -> None:
        """Drop the states of a version that nobody can ask for any more."""
        self.store.drop(lambda key: isinstance(key, tuple) and key[0] == digest)


def open_store(given: object, device: torch.device) -> HistoryStore | None:
    """The store that an engine is given, or one of so many bytes; None for None.

    Raises:
        InputError: It is neither, the bytes cannot be had, or the store lies on another device.
    """
    if given is None:
        return None
    if isinstance(given, HistoryStore):
        if given.device.type != device.type:
            got, expected = f"a store on {given.device}", f"one on {device}, where the base is"
            raise InputError("history_cache lies on another device", got=got, expected=expected)
        return given
    if not isinstance(given, int) or isinstance(given, bool):
        expected = "bytes as a whole number, a HistoryStore, or None"
        raise InputError("history_cache", got=repr(given)[:80], expected=expected, todo="2 GiB are 2 * 2**30")
    return HistoryStore(given, device=device)


def has_history(row: Row) -> bool:
    """True if a row is of a history with events, which may come back with more of them."""
    return row.spans is None and len(row.item_codes) > 0


def history_key(job: Job, row: Row, shared: int = 0) -> HistoryKey:
    """The key of a row's history, or of so many layers of it that are shared."""
    digest = "" if job.resident.slot is None else job.resident.digest
    if shared:
        digest = f"below layer {shared}"
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
