"""The trie of items' codes, against sets of prefixes made one by one."""

import numpy as np
import pytest

from genre.data.code_trie import CodeTrie
from genre.errors import DataError


def drawn(seed: int, items: int = 40, sizes: tuple[int, ...] = (5, 4, 7)) -> tuple[np.ndarray, tuple[int, ...]]:
    """Different code rows in no order."""
    draw = np.random.default_rng(seed)
    every = np.array(np.unravel_index(draw.choice(int(np.prod(sizes)), items, replace=False), sizes)).T
    return every, sizes


@pytest.mark.parametrize("seed", range(5))
def test_children_of_every_prefix_are_those_of_the_items_that_share_it(seed: int) -> None:
    codes, sizes = drawn(seed)
    trie = CodeTrie(codes, sizes)
    for depth in range(len(sizes)):
        nodes = np.arange(trie.nodes(depth))
        parent, child, code = trie.children(depth, nodes)
        assert trie.fan(depth, nodes).tolist() == np.bincount(parent, minlength=len(nodes)).tolist()
        for node, prefix in zip(nodes, trie.prefixes(depth, nodes), strict=True):
            mine = codes[(codes[:, :depth] == prefix).all(1)]
            assert sorted(set(mine[:, depth].tolist())) == code[parent == node].tolist()
        again = trie.prefixes(depth + 1, child)
        assert (again[:, -1] == code).all()
        assert (again[:, :-1] == trie.prefixes(depth, nodes)[parent]).all()


def test_an_item_is_told_by_as_few_codes_as_tell_it_from_all_others() -> None:
    trie = CodeTrie(np.array([[0, 1, 0], [2, 4, 0], [0, 1, 1], [0, 3, 0]]), (3, 5, 2))
    assert trie.lengths(np.array([0, 1, 2, 3])).tolist() == [3, 1, 3, 2]
    assert CodeTrie(np.array([[1, 1]]), (2, 2)).lengths(np.array([0])).tolist() == [0]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_alive_is_what_leads_to_an_allowed_item(seed: int) -> None:
    codes, sizes = drawn(seed)
    trie, chosen = CodeTrie(codes, sizes), np.random.default_rng(seed).choice(40, 6)
    allowed = trie.allow(chosen)
    assert allowed.count == len(set(chosen.tolist()))
    for depth in range(len(sizes) + 1):
        nodes = np.arange(trie.nodes(depth))
        wanted = [bool((codes[chosen, :depth] == prefix).all(1).any()) for prefix in trie.prefixes(depth, nodes)]
        assert allowed.alive(depth, nodes).tolist() == wanted
    _, items, shared = allowed.under(np.arange(trie.nodes(len(sizes))))
    assert sorted(items.tolist()) == sorted(set(chosen.tolist()))
    assert (shared == 1).all()
    assert trie.allow(np.empty(0, dtype=np.int64)).count == 0


def test_further_items_join_and_may_share_a_leaf() -> None:
    codes, sizes = drawn(0)
    trie = CodeTrie(codes, sizes).with_items(codes[:1], np.array([77]))
    leaf = trie.node_of(len(sizes), np.array([0, 77, 41, -1]))
    assert leaf[0] == leaf[1] >= 0
    assert leaf[2:].tolist() == [-1, -1]
    _, items, shared = trie.allow(np.array([77])).under(leaf[:1])
    assert (items.tolist(), shared.tolist()) == ([77], [2])


def test_a_code_outside_of_its_level_is_refused() -> None:
    with pytest.raises(DataError, match="got 1 to 4 at level 1; expected 0 to 3"):
        CodeTrie(np.array([[0, 1], [1, 4]]), (2, 4))
    with pytest.raises(DataError, match="a row of 2 levels"):
        CodeTrie(np.zeros((3, 3), dtype=int), (2, 4))


def test_a_trie_of_no_items_has_nothing_to_choose() -> None:
    trie = CodeTrie(np.empty((0, 2), dtype=int), (2, 4))
    assert (len(trie), trie.nodes(0), trie.allow(None).count) == (0, 0, 0)
