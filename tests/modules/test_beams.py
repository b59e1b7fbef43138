"""Beam search and draws on random tries and logits, against all items scored one by one."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from genre.data.code_trie import CodeTrie
from genre.modules.beams import BeamSearch
from genre.modules.trie_draws import TrieDraws

SIZES = (6, 5, 4)
ITEMS = 50


def world(seed: int) -> tuple[np.ndarray, CodeTrie, Callable[[tuple[int, ...]], np.ndarray]]:
    """Different code rows, their trie, and logits of what follows a prefix."""
    draw = np.random.default_rng(seed)
    codes = np.array(np.unravel_index(draw.choice(int(np.prod(SIZES)), ITEMS, replace=False), SIZES)).T
    known: dict[tuple[int, ...], np.ndarray] = {}

    def logits(prefix: tuple[int, ...]) -> np.ndarray:
        if prefix not in known:
            known[prefix] = draw.normal(size=SIZES[len(prefix)], scale=2).astype(np.float32)
        return known[prefix]

    return codes, CodeTrie(codes, SIZES), logits


def run(search: BeamSearch, logits: Callable[[tuple[int, ...]], np.ndarray]) -> list[int]:
    """Bring a search to its end; the number of prefixes of each pass."""
    asked = []
    while (prefixes := search.prefixes()) is not None:
        asked.append(len(prefixes))
        search.advance(np.stack([logits(tuple(prefix)) for prefix in prefixes.tolist()]))
    return asked


def log_probabilities(codes: np.ndarray, logits: Callable[[tuple[int, ...]], np.ndarray]) -> np.ndarray:
    """(N,) of every item by itself, each code among those that follow its prefix."""
    found = np.zeros(len(codes))
    for number, row in enumerate(codes):
        for depth, code in enumerate(row):
            own = np.unique(codes[(codes[:, :depth] == row[:depth]).all(1), depth])
            z = logits(tuple(row[:depth].tolist())).astype(np.float64)
            found[number] += z[code] - np.log(np.exp(z[own]).sum())
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", [None, ITEMS])
def test_a_beam_as_wide_as_the_catalogue_scores_every_item_exactly(seed: int, width: int | None) -> None:
    codes, trie, logits = world(seed)
    search = BeamSearch(trie.allow(None), width)
    run(search, logits)
    items, scores = search.found()
    wanted = log_probabilities(codes, logits)
    assert sorted(items.tolist()) == list(range(ITEMS))
    np.testing.assert_allclose(scores, wanted[items], atol=1e-6)
    assert (np.diff(scores) <= 0).all()
    np.testing.assert_allclose(np.exp(scores).sum(), 1)
    np.testing.assert_allclose(search.probabilities(scores), np.exp(scores))


@pytest.mark.parametrize("seed", range(4))
def test_filters_leave_items_out_and_change_no_score(seed: int) -> None:
    codes, trie, logits = world(seed)
    chosen = np.random.default_rng(seed).choice(ITEMS, 9, replace=False)
    search = BeamSearch(trie.allow(chosen), None)
    run(search, logits)
    items, scores = search.found()
    wanted = log_probabilities(codes, logits)
    assert sorted(items.tolist()) == sorted(chosen.tolist())
    np.testing.assert_allclose(scores, wanted[items], atol=1e-6)
    np.testing.assert_allclose(search.probabilities(scores).sum(), 1)


@pytest.mark.parametrize("seed", range(4))
def test_a_narrow_beam_answers_with_items_alone_whatever_illegal_codes_promise(seed: int) -> None:
    codes, trie, plain = world(seed)
    legal = {tuple(row[: depth + 1]) for row in codes.tolist() for depth in range(len(SIZES))}

    def logits(prefix: tuple[int, ...]) -> np.ndarray:
        z = plain(prefix).copy()
        z[[code for code in range(len(z)) if (*prefix, code) not in legal]] += 50
        return z

    search = BeamSearch(trie.allow(np.arange(0, ITEMS, 2)), 4)
    asked = run(search, logits)
    items, scores = search.found()
    assert max(asked) <= 4
    assert len(items) == 4
    assert set(items.tolist()) <= set(range(0, ITEMS, 2))
    np.testing.assert_allclose(scores, log_probabilities(codes, plain)[items], atol=1e-6)


def test_what_a_beam_drops_counts_as_if_all_of_it_were_allowed() -> None:
    _, trie, logits = world(0)
    search = BeamSearch(trie.allow(None), 3)
    run(search, logits)
    _, scores = search.found()
    np.testing.assert_allclose(search.probabilities(scores), np.exp(scores))
    narrow = BeamSearch(trie.allow(np.arange(10)), 3)
    run(narrow, logits)
    _, scores = narrow.found()
    whole = BeamSearch(trie.allow(np.arange(10)), None)
    run(whole, logits)
    assert narrow.probabilities(scores)[0] <= whole.probabilities(whole.found()[1])[0] + 1e-12
    assert narrow.probabilities(scores)[0] >= np.exp(scores[0])


def test_a_prefix_with_one_way_on_costs_no_pass() -> None:
    trie = CodeTrie(np.array([[0, 1, 0], [2, 4, 0], [0, 1, 1], [3, 3, 0]]), (4, 5, 2))
    search = BeamSearch(trie.allow(None), None)
    prefixes = search.prefixes()
    assert prefixes is not None and prefixes.shape == (1, 0)
    search.advance(np.zeros((1, 4), dtype=np.float32))
    prefixes = search.prefixes()
    assert prefixes is not None and prefixes.tolist() == [[0, 1]]
    search.advance(np.zeros((1, 2), dtype=np.float32))
    items, scores = search.found()
    assert items.tolist() == [1, 3, 0, 2]
    np.testing.assert_allclose(np.exp(scores), [1 / 3, 1 / 3, 1 / 6, 1 / 6])


def test_items_with_the_same_codes_share_their_probability() -> None:
    trie = CodeTrie(np.array([[0, 0], [1, 0]]), (2, 1)).with_items(np.array([[1, 0]]), np.array([2]))
    search = BeamSearch(trie.allow(None), 2)
    search.advance(np.zeros((1, 2), dtype=np.float32))
    items, scores = search.found()
    assert items.tolist() == [0, 1, 2]
    np.testing.assert_allclose(np.exp(scores), [0.5, 0.25, 0.25])


@pytest.mark.parametrize("codes", [np.empty((0, 2), dtype=int), np.array([[0, 1]])])
def test_none_or_one_item_needs_no_pass(codes: np.ndarray) -> None:
    search = BeamSearch(CodeTrie(codes, (2, 2)).allow(None), 5)
    assert search.prefixes() is None
    items, scores = search.found()
    assert items.tolist() == list(range(len(codes)))
    assert scores.tolist() == [0.0] * len(codes)


@pytest.mark.parametrize("seed", range(2))
def test_items_are_drawn_with_the_probabilities_that_a_search_without_a_width_gives(seed: int) -> None:
    codes, trie, logits = world(seed)
    torch.manual_seed(seed)
    histories, count = 3, 4000
    draws = TrieDraws(trie, histories, count)
    while (asked := draws.prefixes()) is not None:
        owners, prefixes = asked
        pairs = list(zip(owners.tolist(), map(tuple, prefixes.tolist()), strict=True))
        assert len(set(pairs)) == len(pairs), "a prefix of a history is asked for once"
        assert sorted(owners) == owners.tolist()
        draws.advance(np.stack([logits(prefix) * (owner != 1) for owner, prefix in pairs]))  # the second history's are even
    found = draws.items()
    assert found.shape == (histories, count)
    even = log_probabilities(codes, lambda prefix: np.zeros(SIZES[len(prefix)], dtype=np.float32))
    for own, wanted in zip(found, (log_probabilities(codes, logits), even, log_probabilities(codes, logits)), strict=True):
        expected = count * np.exp(wanted)
        chi = ((np.bincount(own, minlength=ITEMS) - expected) ** 2 / expected).sum()
        assert chi < 49 + 5 * np.sqrt(2 * 49), "49 degrees of freedom"


def test_draws_of_one_item_of_no_history_and_where_one_way_is_left() -> None:
    alone = CodeTrie(np.array([[1, 0]]), (2, 1), members=np.array([7]))
    assert TrieDraws(alone, 2, 3).prefixes() is None and (TrieDraws(alone, 2, 3).items() == 7).all()
    assert TrieDraws(CodeTrie(np.array([[0, 0], [1, 0]]), (2, 1)), 0, 3).items().shape == (0, 3)
    draws = TrieDraws(CodeTrie(np.array([[0, 0], [1, 0], [1, 1]]), (2, 2)), 1, 50)
    draws.advance(np.zeros((1, 2)))
    owners, prefixes = draws.prefixes()
    assert prefixes.tolist() == [[1]], "nothing is left to choose after code 0"
    draws.advance(np.array([[-30.0, 30.0]]))
    assert set(draws.items()[0].tolist()) == {0, 2}
