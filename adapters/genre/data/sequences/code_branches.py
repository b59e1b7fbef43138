"""Codes of items as tokens after a history: the branches by which a model learns to generate items, and searches for them.

Owns: where these branches stand in a row, and the tokens of codes. Ignores: which codes items have, scores.

Codes of all levels have one numbering, level after level: with levels of 256 and 64 codes, code 3 of the second is token 259. The
targets of a row with soft tokens, I an item, C a code:

    index      0 1 2   3 4 5   6 7   8       9 10
    content    w w w   I I I   C C   C       C C
    target                     of 3  of 4    of 5
    position   0 1 2   3 4 5   3 4   4       5 6       a branch goes on from the token before its target
    masked     -       -       3 6   4 8     5 9       and sees what that token sees, and itself

A loss that compares items has further branches, one for each item that was drawn for a target.

The last code of an item is read, never written; nor is a code by which nothing is left to choose (`CodeTrie.lengths`).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from genre.data.code_trie import CodeTrie
from genre.data.sequences.drawn import DrawnItems
from genre.data.sequences.layout import Sequence

_OF_TOKENS = ("tokens", "items", "feedback", "positions", "masked_spans")
_OF_CANDIDATES = ("candidates", "candidate_reads", "candidate_events", "candidate_times")


def with_branches(row: Sequence, after: np.ndarray, lengths: np.ndarray, tokens: np.ndarray) -> tuple[Sequence, np.ndarray]:
    """A row with branches of code tokens behind everything else.

    Args:
        row: The row.
        after: (n,) the token of the row that each branch goes on from.
        lengths: (n,) tokens of each branch.
        tokens: (Σ lengths,) the code tokens, branch after branch.

    Returns:
        The row, and the first token of each branch, (n,).
    """
    known, added = len(row), int(lengths.sum())
    starts = known + np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(len(lengths)), lengths)
    step = np.arange(added) - np.repeat(starts - known, lengths)
    reached = np.maximum.accumulate(row.positions)
    positions = reached[after][owner] + 1 + step
    masked = np.stack([after[owner] + 1, starts[owner]], axis=1)
    none = np.full(added, -1, dtype=np.int32)
    earlier = np.full(known, -1, dtype=np.int32) if row.code_tokens is None else row.code_tokens
    longer = replace(
        row,
        tokens=np.concatenate([row.tokens, np.zeros(added, dtype=np.int32)]),
        items=np.concatenate([row.items, none]),
        feedback=np.concatenate([row.feedback, none]),
        positions=np.concatenate([row.positions, positions.astype(np.int32)]),
        masked_spans=np.concatenate([row.masked_spans, masked.astype(np.int32)]),
        code_tokens=np.concatenate([earlier, tokens.astype(np.int32)]),
    )
    return longer, starts


def up_to(row: Sequence, token: int) -> Sequence:
    """The first tokens of a row up to one of them and with it, as a history; heads read the row's events as before."""
    kept = slice(token + 1)
    tokens: dict[str, Any] = {name: getattr(row, name)[kept] for name in _OF_TOKENS}
    none: dict[str, Any] = dict.fromkeys(_OF_CANDIDATES, np.empty(0, dtype=np.int32))
    none |= dict.fromkeys(("code_tokens", "code_starts", "code_lengths")) | {"drawn": {}}
    return replace(row, prefix_length=token + 1, **tokens, **none)


def with_prefixes(row: Sequence, after: int | np.ndarray, tokens: np.ndarray) -> Sequence:
    """A row with prefixes of codes as its candidates: branches that are read at their last token.

    Args:
        row: The row.
        after: The token of the row that the prefixes go on from, one for all or (n,).
        tokens: (n, l) code tokens; with l = 0 that token itself is read.
    """
    count, length = tokens.shape
    last = np.broadcast_to(after, count)
    longer, starts = with_branches(row, last, np.full(count, length), tokens.reshape(-1))
    return replace(
        longer,
        candidates=np.full(count, -1, dtype=np.int32),
        candidate_reads=(starts + length - 1 if length else last).astype(np.int32),
        candidate_events=np.full(count, -1, dtype=np.int64),
        candidate_times=np.full(count, len(row.item_codes), dtype=np.int32),
    )


@dataclass(frozen=True)
class CodeBranches:
    """What adds the targets' codes to training rows.

    Attributes:
        trie: Of the items that may be targets.
    """

    trie: CodeTrie

    def extend(self, row: Sequence) -> Sequence:
        """A row with a branch for each of its targets that is an item of the trie, after what a next-item task reads."""
        wanted = row.targets & (self.trie.node_of(0, row.item_codes) >= 0)
        lengths = np.zeros(len(row.targets), dtype=np.int64)
        lengths[wanted] = np.maximum(self.trie.lengths(row.item_codes[wanted]) - 1, 0)
        longer, starts = with_branches(row, row.next_reads, lengths, self._tokens(row.item_codes, lengths))
        return replace(longer, code_starts=starts.astype(np.int32), code_lengths=lengths.astype(np.int32))

    def compare(self, row: Sequence, task: str, at: np.ndarray, items: np.ndarray) -> Sequence:
        """A row of `extend` with a branch for each of the items that a task compares; alike ones of an event share theirs.

        Args:
            row: The row.
            task: The task's name.
            at: (k,) events of the row, in order.
            items: (k, m) item codes of the trie, -1 for none.
        """
        assert row.code_starts is not None and row.code_lengths is not None
        every = np.full((len(row.item_codes), items.shape[1]), -1, dtype=np.int64)
        every[at] = items
        asked = np.where(every < 0, row.item_codes[:, None], every)  # an event's own item has a branch already
        size = int(asked.max(initial=0)) + 1
        pairs, own = np.unique(np.arange(len(asked))[:, None] * size + asked, return_inverse=True)
        event, item = np.divmod(pairs, size)
        new = item != row.item_codes[event]
        starts, lengths = row.code_starts[event].astype(np.int64), row.code_lengths[event].astype(np.int64)
        lengths[new] = np.maximum(self.trie.lengths(item[new]) - 1, 0)
        longer, starts[new] = with_branches(row, row.next_reads[event[new]], lengths[new], self._tokens(item[new], lengths[new]))
        drawn = DrawnItems(every, starts[own].reshape(every.shape), lengths[own].reshape(every.shape))
        return replace(longer, drawn={**row.drawn, task: drawn})

    def _tokens(self, items: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """(Σ lengths,) the first so many code tokens of each of some items."""
        owners = np.repeat(np.arange(len(lengths)), lengths)
        level = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return self.trie.rows[self.trie.position[items[owners]], level] + self.trie.offsets[level]
