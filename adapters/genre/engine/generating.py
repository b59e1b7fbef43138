"""Answers that are generated: a request's beam search, and the rows that it has the base read.

Owns: which rows go on from a request's history, and what their logits lead to. Ignores: passes, slots, heads.

A search goes level by level, each level a pass with those of all other requests of the call, whatever their adapters:

    pass 1    the history                                       → logits of first codes
    pass 2    the history, a branch for each first code         → logits of second codes
    pass 3    the history, a branch for each pair of codes      → …

With a history cache the passes after the first compute the branches alone. Given items are scored by a search that keeps every
prefix.
"""

from dataclasses import dataclass, field

import numpy as np

from genre.data.sequences.code_branches import with_prefixes
from genre.data.sequences.layout import Sequence as Row
from genre.engine.items import Inline
from genre.modules.beams import BeamSearch


@dataclass(eq=False)
class Generation:
    """The search of one request.

    Attributes:
        inline: The call's items.
        codes: (C,) int32 what may be answered with.
        history: The row of the history alone.
        beam: Prefixes that are kept at each level; None keeps all.
        row_tokens: Tokens of one row at most, unless a history and one prefix are more.
    """

    inline: Inline
    codes: np.ndarray
    history: Row
    beam: int | None
    row_tokens: int
    _search: BeamSearch | None = field(default=None, repr=False)

    @property
    def search(self) -> BeamSearch:
        """The search, once `begin` has started it."""
        assert self._search is not None
        return self._search

    def begin(self) -> list[Row]:
        """Start, once the call's items are embedded; returns the first rows."""
        trie = self.inline.trie_of(self.codes)
        self._search = BeamSearch(trie.allow(self.codes), self.beam)
        return self._rows()

    def advance(self, logits: list[np.ndarray]) -> list[Row]:
        """Take the logits of the rows, (n, size) each, one level further; returns the next rows, none at the end."""
        self.search.advance(np.concatenate(logits))
        return self._rows()

    def results(self) -> tuple[np.ndarray, np.ndarray]:
        """For each of `codes` its log-probability, (C,) float32, and its probability (C,) float64; -inf and 0 if not found."""
        items, found = self.search.found()
        order = np.argsort(items)
        at = np.searchsorted(items[order], self.codes).clip(0, max(len(items) - 1, 0))
        scores, shares = np.full(len(self.codes), -np.inf, dtype=np.float32), np.zeros(len(self.codes))
        if len(items):
            there = items[order][at] == self.codes
            scores[there] = found[order][at[there]]
            shares[there] = self.search.probabilities(found)[order][at[there]]
        return scores, shares

    def _rows(self) -> list[Row]:
        prefixes = self.search.prefixes()
        if prefixes is None:
            return []
        level, end = prefixes.shape[1], self.history.prefix_length
        if level == 0:
            return [self.history]
        tokens = prefixes + self.search.trie.offsets[:level]
        room = max(self.row_tokens - end, end, level) // level
        return [with_prefixes(self.history, end - 1, some) for some in np.split(tokens, range(room, len(tokens), room))]
