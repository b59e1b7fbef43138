"""The trie of items' codes: which codes may follow which, and what is left of it under a request's filters.

Owns: sorted code rows and the offsets of their prefixes; which nodes hold an item that is allowed. Ignores: where codes come
from, scores.

    codes          depth 1    depth 2         depth 3
    item 0: 0 1 0  0 ─────── 0 1 ──────┬──── 0 1 0   (item 0)
    item 1: 2 4 0                      └──── 0 1 1   (item 2)
    item 2: 0 1 1  2 ─────── 2 4 ─────────── 2 4 0   (item 1)

A node is a run of neighbours in the sorted rows, so a depth is two arrays: the first row of each node, and its first child.
What a request may be answered with is the number of allowed rows before each row: a node is dead if its run holds none.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from genre.errors import DataError


class CodeTrie:
    """Items by the prefixes of their codes.

    Args:
        codes: (N, L) whole numbers, each item's code at each level. Items with equal rows share a leaf.
        sizes: Codes of each level, L of them.
        members: (N,) numbers of the items; 0 to N - 1 if None.

    Attributes:
        sizes: As given.
        items: (N,) int64 numbers of the items, sorted by their codes.
        rows: (N, L) the codes, sorted.

    Raises:
        DataError: A code is outside of its level.
    """

    def __init__(self, codes: np.ndarray, sizes: Sequence[int], members: np.ndarray | None = None) -> None:
        self.sizes = tuple(int(size) for size in sizes)
        if codes.ndim != 2 or codes.shape[1] != len(self.sizes):
            raise DataError("codes of items", got=list(codes.shape), expected=f"a row of {len(self.sizes)} levels for each item")
        if len(codes) and ((codes < 0).any() or (codes >= np.array(self.sizes)).any()):
            level = int(((codes < 0) | (codes >= np.array(self.sizes))).any(0).argmax())
            got = f"{codes[:, level].min()} to {codes[:, level].max()} at level {level}"
            raise DataError("codes of items", got=got, expected=f"0 to {self.sizes[level] - 1}")
        numbers = np.arange(len(codes)) if members is None else np.asarray(members)
        order = np.lexsort((numbers, *codes.T[::-1]))
        self.items = numbers[order].astype(np.int64)
        self.rows = codes[order].astype(np.int32 if max(self.sizes, default=1) >= 2**15 else np.int16)
        self._first, self._child = self._levels()

    def _levels(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For each depth the first row of each node and of what follows the last, and the same in nodes of the next depth."""
        count = len(self.rows)
        first = [np.array([0, count] if count else [0], dtype=np.int32)]
        new = np.zeros(count, dtype=bool)
        new[:1] = True
        for level in range(len(self.sizes)):
            new[1:] |= self.rows[1:, level] != self.rows[:-1, level]
            first.append(np.append(np.flatnonzero(new), count).astype(np.int32))
        child = [np.searchsorted(lower, upper).astype(np.int32) for upper, lower in zip(first[:-1], first[1:], strict=True)]
        return first, child

    def __len__(self) -> int:
        """The number of items."""
        return len(self.items)

    @property
    def depth(self) -> int:
        """L, the number of levels."""
        return len(self.sizes)

    @cached_property
    def offsets(self) -> np.ndarray:
        """(L,) int64: the token of each level's code 0, where the codes of all levels stand one after the other."""
        return np.cumsum((0, *self.sizes[:-1]))

    @property
    def memory_bytes(self) -> int:
        """What its arrays take."""
        return sum(each.nbytes for each in (self.items, self.rows, *self._first, *self._child))

    @cached_property
    def position(self) -> np.ndarray:
        """(largest number + 1,) int64: where each item stands in `items`, -1 for numbers that are none of its items."""
        found = np.full(int(self.items.max(initial=-1)) + 1, -1, dtype=np.int64)
        found[self.items] = np.arange(len(self.items))
        return found

    def nodes(self, depth: int) -> int:
        """The number of nodes at a depth; depth 0 is the root."""
        return len(self._first[depth]) - 1

    def spans(self, depth: int, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first row of some nodes, and the one after their last, (n,) each."""
        return self._first[depth][nodes], self._first[depth][nodes + 1]

    def fan(self, depth: int, nodes: np.ndarray) -> np.ndarray:
        """(n,) the number of children of some nodes at a depth below L."""
        child = self._child[depth]
        return np.asarray(child[nodes + 1] - child[nodes])

    def children(self, depth: int, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All children of some nodes, node after node.

        Returns:
            For each child the index among `nodes` of its parent, its own number at depth + 1, and its code.
        """
        count, start = self.fan(depth, nodes), self._child[depth][nodes]
        parent = np.repeat(np.arange(len(nodes)), count)
        own = np.arange(len(parent)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(start, count)
        return parent, own, self.rows[self._first[depth + 1][own], depth].astype(np.int64)

    def legal(self, depth: int, nodes: np.ndarray) -> np.ndarray:
        """(n, size) bool: the codes of a depth's level that some nodes go on by."""
        parent, _, codes = self.children(depth, nodes)
        found = np.zeros((len(nodes), self.sizes[depth]), dtype=bool)
        found[parent, codes] = True
        return found

    def prefixes(self, depth: int, nodes: np.ndarray) -> np.ndarray:
        """(n, depth) int64: the codes that lead to some nodes."""
        return self.rows[self._first[depth][nodes], :depth].astype(np.int64)

    def node_of(self, depth: int, items: np.ndarray) -> np.ndarray:
        """(n,) the node at a depth that each of some items lies under; -1 for what is no item of the trie."""
        known = (items >= 0) & (items < len(self.position))
        at = np.where(known, self.position[np.where(known, items, 0)], -1) if len(self.position) else np.full(len(items), -1)
        return np.where(at >= 0, np.searchsorted(self._first[depth], at, side="right") - 1, -1)

    def lengths(self, items: np.ndarray) -> np.ndarray:
        """(n,) codes of some of its items after which nothing is left to choose: 0 in a trie of one item, L at the most."""
        found = np.zeros(len(items), dtype=np.int64)
        for depth in range(self.depth):
            found = np.where(self.fan(depth, self.node_of(depth, items)) > 1, depth + 1, found)
        return found

    @cached_property
    def branch_length(self) -> float:
        """Mean tokens of an item's branch: of its codes after which nothing is left to choose, but for the last."""
        return float(np.maximum(self.lengths(self.items) - 1, 0).mean()) if len(self) else 0.0

    def with_items(self, codes: np.ndarray, members: np.ndarray) -> "CodeTrie":
        """The trie of these items and some more, (m, L) and (m,)."""
        rows = np.concatenate([self.rows.astype(np.int64), codes])
        return CodeTrie(rows, self.sizes, np.concatenate([self.items, members]))

    def allow(self, items: np.ndarray | None) -> "Allowed":
        """What is left of it where only some of its items may be answered with; all of them for None."""
        return Allowed(self, items)


class Allowed:
    """The rows of a trie that may be answered with.

    Args:
        trie: The trie.
        items: (C,) numbers of items, any of them once or more; None allows all.
    """

    def __init__(self, trie: CodeTrie, items: np.ndarray | None) -> None:
        self.trie = trie
        self._before: np.ndarray | None = None
        if items is not None:
            there = np.zeros(len(trie), dtype=bool)
            there[trie.position[items]] = True
            if not there.all():
                self._before = np.concatenate([[0], np.cumsum(there)])

    @property
    def count(self) -> int:
        """The number of items that are allowed."""
        return len(self.trie) if self._before is None else int(self._before[-1])

    def alive(self, depth: int, nodes: np.ndarray) -> np.ndarray:
        """(n,) bool: the nodes that an allowed item lies under."""
        if self._before is None:
            return np.ones(len(nodes), dtype=bool)
        start, stop = self.trie.spans(depth, nodes)
        return np.asarray(self._before[stop] > self._before[start])

    def under(self, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The allowed items of some leaves, leaf after leaf.

        Returns:
            For each item the index among `nodes` of its leaf, its number, and how many items share that leaf, allowed or not.
        """
        start, stop = self.trie.spans(self.trie.depth, nodes)
        count = stop - start
        owner = np.repeat(np.arange(len(nodes)), count)
        at = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(start, count)
        if self._before is not None:
            kept = self._before[at + 1] > self._before[at]
            owner, at = owner[kept], at[kept]
        return owner, self.trie.items[at], count[owner]
