"""Beam search over the codes of items: which prefixes a model has to read next, and what the items come to.

Owns: scores of prefixes and of items, which prefixes are kept. Ignores: hidden states, how a model reads a prefix, requests.

    search = BeamSearch(trie.allow(items), width=50)
    while (prefixes := search.prefixes()) is not None:      # (n, l) codes; at first one prefix of no codes
        search.advance(logits)                              # (n, codes of level l), for what follows each prefix
    items, scores = search.found()

An item's score is its log-probability, the sum of those of its codes:

    log p(item) = Σ_l log p(c_l | c_1 … c_{l-1}),    p(c | prefix) = exp(z_c) / Σ_{c' that go on in the trie} exp(z_c')

The sum is over the codes by which the prefix goes on to an item of the catalogue, allowed or not. So probabilities of all items
sum to one; no filter changes a score, as it only leaves items out; and a prefix with one code after it costs nothing, neither in
probability nor in a pass. A search without a width, or with one as wide as the catalogue, scores every item exactly.
"""

import numpy as np

from genre.data.code_trie import Allowed


class BeamSearch:
    """The search for the likeliest items after one history.

    Args:
        allowed: What may be answered with; nothing else is ever among the beams.
        width: Prefixes that are kept at each level, the likeliest; None keeps all.

    Attributes:
        depth: Codes of the prefixes at the moment.
        dropped: Log-probability of all allowed prefixes that were not kept.
        finite: False once a logit was not finite, which leaves nothing to rank by.
    """

    def __init__(self, allowed: Allowed, width: int | None = None) -> None:
        self.allowed = allowed
        self.trie = allowed.trie
        self.width = width
        self.depth = 0
        self.dropped = -np.inf
        self.finite = True
        self._nodes = np.zeros(1 if allowed.count else 0, dtype=np.int64)
        self._scores = np.zeros(len(self._nodes))
        self._open = np.zeros(0, dtype=bool)
        self._go_on()

    def prefixes(self) -> np.ndarray | None:
        """(n, depth) int64 codes of the prefixes whose next code has to be scored; None once the search is over."""
        return None if self.depth == self.trie.depth else self.trie.prefixes(self.depth, self._nodes[self._open])

    def advance(self, logits: np.ndarray) -> None:
        """Go one level down.

        Args:
            logits: (n, size) float32 of all codes of the level, for each of `prefixes`.
        """
        parent, node, code = self.trie.children(self.depth, self._nodes)
        row = np.cumsum(self._open) - 1
        score = self._scores[parent]
        chosen = self._open[parent]
        own = logits[row[parent[chosen]], code[chosen]].astype(np.float64)
        self.finite &= bool(np.isfinite(own).all())
        score[chosen] += own - _log_sums(own, self.trie.fan(self.depth, self._nodes[self._open]))[row[parent[chosen]]]
        self._keep(node, score)
        self._go_on()

    def found(self) -> tuple[np.ndarray, np.ndarray]:
        """The items that were found and their scores, the likeliest first; equal scores by the items' numbers."""
        owner, items, shared = self.allowed.under(self._nodes)
        scores = self._scores[owner] - np.log(shared)
        order = np.lexsort((items, -scores))
        return items[order], scores[order]

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """(n,) the probability of each item that was found, with its score from `found`, among all that are allowed.

        Prefixes that were not kept count as allowed with all that lies under them, so that these are never too large.
        """
        total = np.logaddexp(_log_sum(scores), self.dropped)
        return np.asarray(np.exp(scores - total))

    def _keep(self, nodes: np.ndarray, scores: np.ndarray) -> None:
        """Take the likeliest allowed ones of some nodes as the next prefixes, in the order of the trie."""
        alive = self.allowed.alive(self.depth + 1, nodes)
        nodes, scores = nodes[alive], scores[alive]
        if self.width is not None and len(nodes) > self.width:
            order = np.lexsort((nodes, -scores))
            self.dropped = np.logaddexp(self.dropped, _log_sum(scores[order[self.width :]]))
            kept = np.sort(order[: self.width])
            nodes, scores = nodes[kept], scores[kept]
        self._nodes, self._scores = nodes, scores
        self.depth += 1

    def _go_on(self) -> None:
        """Go down while there is nothing to choose, and note which prefixes have a choice."""
        while self.depth < self.trie.depth:
            self._open = self.trie.fan(self.depth, self._nodes) > 1
            if self._open.any():
                return
            _, nodes, _ = self.trie.children(self.depth, self._nodes)
            self._nodes = nodes
            self.depth += 1


def _log_sums(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Log Σ exp of consecutive groups of so many values each, none of them empty."""
    starts = np.cumsum(counts) - counts
    most = np.maximum.reduceat(values, starts)
    return np.asarray(most + np.log(np.add.reduceat(np.exp(values - np.repeat(most, counts)), starts)))


def _log_sum(values: np.ndarray) -> float:
    """Log Σ exp; -inf of none."""
    most = values.max(initial=-np.inf)
    return float(most + np.log(np.exp(values - most).sum())) if np.isfinite(most) else -np.inf
