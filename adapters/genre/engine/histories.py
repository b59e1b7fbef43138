"""Histories that were read before: which tokens of a row are known, and what is left of a row for the next time.

Owns: keys, the comparison of a row with what is kept, batches of rows that go on. Ignores: where states lie and who leaves
(`genre.engine.history_store`), layers.

A history is kept under the version that read it, the items as its encoder sees them, and the user; there is one of each, the
one that was asked last. Layers below the lowest one that a version adapts are a history of their own, for all versions that adapt
none of them. It lies in the store as pieces of 32 tokens or more, the last one shorter, each with the marks of its tokens and
their keys and values at each layer:

    kept      instruction  e1 e2 … e98               of 198 tokens, seven pieces
    asked     instruction  e1 e2 … e98 e99 | c1 c2   the first 198 tokens have the same marks: four tokens are computed
    then      instruction  e1 e2 … e98 e99           the last piece is written anew, with two tokens more
    asked     instruction  e1 e2'… e98               the marks differ at e2: that is a history of its own, read from there on

Marks are all that a token's states depend on beside the version and the tokens before it: its id or item, feedback, position,
what it does not see. So an event that was edited, a user's new column, another instruction or a window that has moved never finds
states that do not fit. Each piece has a number of its own and that of the piece before it: one whose predecessor was written anew
since belongs to another history. The last pieces leave the store first, as pieces without those before them are of no use.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
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
"""Version (empty for the bare base) or shared layers, items, user or opening; its pieces' keys have their place beside it."""
PIECE, PIECE_BYTES = 32, 2**16
"""Tokens of a piece at least, and bytes at least: what a store keeps about each piece is small beside that."""


Tensors = tuple[Tensor, ...]
"""Of some tokens: where layers are shared (tokens, D) the input of the lowest one above them; last, their keys and values."""


@dataclass(frozen=True)
class Chain:
    """The pieces that the store has of a row's history, one after the other.

    Attributes:
        key: Of the history.
        piece: Tokens of a piece.
        tokens: The first tokens of the row that they know.
        pieces: Their tensors.
        numbers: Of the pieces.
    """

    key: HistoryKey
    piece: int
    tokens: int = 0
    pieces: list[Tensors] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def part(self, index: int, tokens: int) -> list[Tensor]:
        """The tensors at an index, as many as the first tokens take, the last one cut to them."""
        whole = [piece[index] for piece in self.pieces[: -(-tokens // self.piece)]]
        return [*whole[:-1], whole[-1].narrow(-2, 0, tokens - self.piece * (len(whole) - 1))]


@dataclass(frozen=True)
class Known:
    """What is known of a row.

    Attributes:
        row: The row, all of it.
        chains: That of the layers which are shared, if any; then its version's own, if that has any.
        tokens: Tokens of the row that need no computing there.
        layers: The base's depth, or the layers below the version's own.
    """

    row: Row
    chains: tuple[Chain, ...]
    tokens: int
    layers: int

    @property
    def above(self) -> Tensor:
        """(tokens, D) the input of the version's lowest layer, where those below it are shared."""
        return torch.cat(self.chains[0].part(0, self.tokens))

    @property
    def prefix(self) -> Prefix:
        """The same, for attention."""
        parts = [chain.part(-1, self.tokens) for chain in self.chains]
        states = parts[0] if len(parts) == 1 else [torch.cat(layers) for layers in zip(*parts, strict=True)]
        return Prefix(states, self.tokens, self.row.positions[: self.tokens], self.row.masked_spans[self.tokens :])


class Histories:
    """What rows find in a store, and leave there.

    Args:
        store: The store.
        depth: Layers of the base.
    """

    def __init__(self, store: HistoryStore, depth: int) -> None:
        self.store = store
        self.depth = depth
        self._numbers = itertools.count(1)
        self._piece = 0  # until the first states tell how many bytes a token takes

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
        chains: tuple[Chain, ...] = (self._look(history_key(job, row), marks),)
        if shared:
            lower = self._look(history_key(job, row, shared), marks)
            if min(chains[0].tokens, read) >= least:
                chains = lower, *chains
            else:
                chains, layers = (lower,), shared
        tokens = min(read, *(chain.tokens for chain in chains))
        if tokens < least:
            tokens = 0
        self.store.count(-(-tokens * layers // self.depth))
        return Known(row, chains, tokens, layers) if tokens > 0 else None

    def _look(self, key: HistoryKey, marks: np.ndarray) -> Chain:
        """What is kept of a history, as far as a row with such marks has the same."""
        pieces: list[Tensors] = []
        numbers: list[int] = []
        tokens = 0
        while self._piece and tokens == self._piece * len(pieces) and tokens < len(marks):
            found = self.store.look((*key, len(pieces)))
            if found is None:
                break
            number, before, own = _read_label(found[0])
            alike = _alike(own, marks[tokens:])
            if before != (numbers[-1] if numbers else 0) or not alike:
                break
            pieces.append(found[1])
            numbers.append(number)
            tokens += alike
        self._touch(key, len(pieces))
        return Chain(key, self._piece, tokens, pieces, numbers)

    def _touch(self, key: HistoryKey, pieces: int) -> None:
        """The first piece leaves last: the others are found from there."""
        self.store.touch([(*key, place) for place in reversed(range(pieces))])

    def keep(self, job: Job, row: Row, states: KeysValues, above: Tensor | None, known: Known | None = None) -> None:
        """Keep the states of a row's history in place of those that the user had.

        Args:
            job: Whose row it is.
            row: The row, all of it.
            states: (2 · layers, key heads, tokens, d) at all layers, of the tokens after the known ones.
            above: (tokens, D) the input of the version's lowest layer, if any layer below it is shared.
            known: What was known at all layers.
        """
        if not self._piece:
            self._piece = max(PIECE, -(-PIECE_BYTES // states[:, :, 0].nbytes))
        shared = 0 if above is None else self.shared_layers(job.resident)
        new: list[Tensors] = [(states[2 * shared :],)]
        if above is not None:
            new.insert(0, (above, states[: 2 * shared]))
        if known is not None:
            chains, start = known.chains, known.tokens
        else:
            layers = [shared, 0] if shared else [0]
            chains, start = tuple(Chain(history_key(job, row, below), self._piece) for below in layers), 0
        marks = marks_of(row, job.inline)
        for chain, tensors in zip(chains, new, strict=True):
            self._extend(chain, marks, start, tensors, owner=job.request.user_id or "", begun=job.begun)

    def _extend(self, chain: Chain, marks: np.ndarray, start: int, tensors: Tensors, **more: Any) -> None:
        """Write the pieces of a history that a chain does not have, or not whole; tensors are of the tokens from `start` on."""
        if chain.tokens >= len(marks):
            return
        size = chain.piece
        first = chain.tokens // size
        begin = first * size
        if begin < start:
            old = (tensor.narrow(-2, 0, start - begin) for tensor in chain.pieces[first])
            tensors = tuple(torch.cat(pair, dim=-2) for pair in zip(old, tensors, strict=True))
        else:
            tensors = tuple(tensor.narrow(-2, begin - start, len(marks) - begin) for tensor in tensors)
        before = chain.numbers[first - 1] if first else 0
        pieces: list[tuple[np.ndarray, Tensors]] = []
        for place in range(begin, len(marks), size):
            number, own = next(self._numbers), marks[place : place + size]
            pieces.append((_label(number, before, own), tuple(each.narrow(-2, place - begin, len(own)) for each in tensors)))
            before = number
        for place, (label, states) in reversed(list(enumerate(pieces, first))):
            self.store.put((*chain.key, place), states, tokens=len(label) - 1, label=label, part_of=chain.key, **more)
        self._touch(chain.key, first)

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


def _label(number: int, before: int, marks: np.ndarray) -> np.ndarray:
    """(P + 1, columns) int32 of a piece: its number and that of the one before it, and the marks of its tokens."""
    head = np.zeros((1, marks.shape[1]), dtype=np.int32)
    head[0, :4] = np.array([number, before], dtype=np.int64).view(np.int32)
    return np.concatenate([head, marks])


def _read_label(label: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Number, number of the one before, marks."""
    number, before = label[0, :4].copy().view(np.int64).tolist()
    return number, before, label[1:]


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
