"""Independent draws of items from a policy over their codes: which prefixes a model has to read next, and what is drawn.

Owns: draws down a trie. Ignores: hidden states, how a model reads a prefix, formulas.

    draws = TrieDraws(trie, histories=3, count=16)
    while (asked := draws.prefixes()) is not None:      # the history of each prefix (k,), and its codes (k, l)
        draws.advance(logits)                           # (k, codes of level l), for what follows each prefix
    draws.items()                                       # (3, 16)

An item is drawn with its probability as `genre.modules.beams` defines it, since every code is drawn with its own. Draws that
are at one prefix ask for it once.
"""

import numpy as np
import torch

from genre.data.code_trie import CodeTrie


class TrieDraws:
    """Draws of items after some histories, by torch's random numbers on the CPU.

    Args:
        trie: The items, no two of which share all codes.
        histories: n.
        count: Draws for each, independent and with replacement.

    Attributes:
        depth: Codes that are drawn at the moment.
    """

    def __init__(self, trie: CodeTrie, histories: int, count: int) -> None:
        self.trie = trie
        self.depth = 0
        self._nodes = np.zeros((histories, count), dtype=np.int64)
        self._go_on()

    def prefixes(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(k,) histories, ascending, and (k, depth) codes of the prefixes whose next code is to be drawn; None once all are."""
        if self.depth == self.trie.depth:
            return None
        return self._owners[self._open], self.trie.prefixes(self.depth, self._at[self._open])

    def advance(self, logits: np.ndarray) -> None:
        """Draw the next code.

        Args:
            logits: (k, size) float32 of all codes of the level, for each of `prefixes`.
        """
        parent, node, code = self.trie.children(self.depth, self._at)
        row, chosen = np.cumsum(self._open) - 1, self._open[parent]
        values = np.zeros(len(parent))
        values[chosen] = logits[row[parent[chosen]], code[chosen]]
        fan = self.trie.fan(self.depth, self._at)
        first = np.cumsum(fan) - fan
        weights = np.exp(values - np.repeat(np.maximum.reduceat(values, first), fan))
        upper = np.cumsum(weights)
        low = (upper[first] - weights[first])[self._own]
        high = upper[first + fan - 1][self._own]
        drawn = torch.rand(self._own.shape, dtype=torch.float64).numpy()
        child = np.searchsorted(upper, low + drawn * (high - low), side="right")
        self._nodes = node[np.clip(child, first[self._own], (first + fan - 1)[self._own])]
        self.depth += 1
        self._go_on()

    def items(self) -> np.ndarray:
        """(n, count) int64 item numbers, once all codes are drawn."""
        return self.trie.items[self.trie.spans(self.trie.depth, self._nodes)[0]]

    def _go_on(self) -> None:
        """Go down while there is nothing to choose, and note at which prefixes there is."""
        while self.depth < self.trie.depth:
            width = self.trie.nodes(self.depth)
            key = np.arange(len(self._nodes))[:, None] * width + self._nodes
            pairs, own = np.unique(key, return_inverse=True)
            self._owners, self._at = np.divmod(pairs, width)
            self._own = own.reshape(key.shape)
            self._open = self.trie.fan(self.depth, self._at) > 1
            if self._open.any():
                return
            _, nodes, _ = self.trie.children(self.depth, self._at)
            self._nodes = nodes[self._own]
            self.depth += 1
