"""Metrics of a ranking with one relevant item per target, and of the top lists as a whole.

Owns: the rank of a target among scored candidates (the tie rule), hit rate, NDCG and reciprocal rank from ranks, and
coverage and Gini index of top lists. Ignores how candidates are scored or masked.

**Tie rule.** rank = 1 + #better + #equal others / 2, so a scorer that gives N candidates one score ranks each target
at (N + 1) / 2: order in a file or of ids can neither help nor hurt. Ranks may therefore be halves.

    >>> mid_ranks(np.array([[0.3, 0.9, 0.3]], dtype=np.float32), np.array([0]))
    array([2.5])
    >>> round(ndcg([1, 2.5, 11], k=10), 4)  # (1 + 1/log2(3.5) + 0) / 3
    0.5178
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from genre.errors import DataError
from genre.evaluation.metrics.checks import Floats, Integers, Vector, event_weights, finite, ratio


def mid_ranks(scores: npt.NDArray[Any], relevant: npt.NDArray[Any]) -> Floats:
    """Return the rank of each row's relevant item: 1 + #better + #equal others / 2.

    Args:
        scores: [n, N] numbers, larger is better; -inf is allowed.
        relevant: [n] column of the relevant item.

    Raises:
        DataError: A score is NaN; the message names its row.
    """
    refuse_nan(scores)
    own = scores[np.arange(len(scores)), relevant][:, None]
    better = np.count_nonzero(scores > own, axis=1)
    equal = np.count_nonzero(scores == own, axis=1) - 1
    return 1 + better + equal / 2


def refuse_nan(scores: npt.NDArray[Any], first_row: int = 0) -> None:
    """Raise if a row of [n, N] scores holds NaN.

    Raises:
        DataError: The message names the row, counted from `first_row`.
    """
    bad = np.isnan(scores).any(axis=1)
    if bad.any():
        row = int(np.argmax(bad))
        column = int(np.argmax(np.isnan(scores[row])))
        raise DataError(
            f"the score of row {first_row + row} for item {column} is not a number",
            got="nan",
            expected="a number per candidate",
        )


def hr(ranks: Vector, k: int, *, weights: Vector | None = None) -> float:
    """Return the hit rate: Σ w [rank ≤ k] / Σ w. Ties as in `mid_ranks`. NaN for an empty input.

    Raises:
        DataError: A rank is below 1 or not finite.
    """
    return _mean(hits(ranks, k), weights)


def hits(ranks: Vector, k: int) -> Floats:
    """Return [n]: 1 where rank ≤ k, else 0."""
    return (_ranks(ranks) <= k).astype(np.float64)


def ndcg(ranks: Vector, k: int, *, weights: Vector | None = None) -> float:
    """Return the NDCG of one relevant item: Σ w [rank ≤ k] / log2(1 + rank) / Σ w.

    The ideal ranking has gain 1, so nothing is left to divide by. Ties as in `mid_ranks`: a rank of 2.5 gains
    1 / log2(3.5). NaN for an empty input.

    Raises:
        DataError: A rank is below 1 or not finite.
    """
    return _mean(gains(ranks, k), weights)


def gains(ranks: Vector, k: int) -> Floats:
    """Return [n]: 1 / log2(1 + rank) where rank ≤ k, else 0."""
    given = _ranks(ranks)
    return np.where(given <= k, 1 / np.log2(1 + given), 0.0)


def mrr(ranks: Vector, k: int, *, weights: Vector | None = None) -> float:
    """Return the mean reciprocal rank cut at k: Σ w [rank ≤ k] / rank / Σ w. Ties as in `mid_ranks`. NaN when empty.

    Raises:
        DataError: A rank is below 1 or not finite.
    """
    return _mean(reciprocals(ranks, k), weights)


def reciprocals(ranks: Vector, k: int) -> Floats:
    """Return [n]: 1 / rank where rank ≤ k, else 0."""
    given = _ranks(ranks)
    return np.where(given <= k, 1 / given, 0.0)


def coverage(top: npt.ArrayLike, k: int, catalogue_size: int, *, weights: Vector | None = None) -> float:
    """Return the share of the catalogue that is in at least one list: |∪ top-k| / N.

    Args:
        top: [n, K ≥ k] item codes, best first; -1 fills a list that is too short.
        k: How many of each list count.
        catalogue_size: N.
        weights: [n]; a list of weight 0 is not there.

    Ties are the list maker's. NaN without a list or without a catalogue.

    Raises:
        DataError: The lists are shorter than k (and than the catalogue), or a code is not in the catalogue.
    """
    exposure, lists = _exposure(top, k, catalogue_size, weights)
    return float("nan") if lists == 0 or catalogue_size == 0 else float(np.count_nonzero(exposure) / catalogue_size)


def gini(top: npt.ArrayLike, k: int, catalogue_size: int, *, weights: Vector | None = None) -> float:
    """Return how unequally the lists expose the catalogue: 0 all items alike, (N-1)/N one item only.

    G = Σ_i (2i - N - 1) x_i / (N Σ x), x_1 ≤ … ≤ x_N the number (or weight) of lists that hold each item, the items
    in no list among them. Arguments, ties and `Raises` as for `coverage`. NaN if no item is in a list.
    """
    exposure, _ = _exposure(top, k, catalogue_size, weights)
    place = 2 * np.arange(1, catalogue_size + 1) - catalogue_size - 1
    return float(ratio(np.array(place @ np.sort(exposure)), np.array(catalogue_size * exposure.sum())))


def top_items(scores: npt.NDArray[np.floating], k: int, tie_order: Integers) -> npt.NDArray[np.int32]:
    """Return the k best items of each row, best first; equal scores in the order of `tie_order`.

    Args:
        scores: [n, N]; -inf is never listed.
        k: Length of a list; -1 fills the end of a list that has fewer items.
        tie_order: [N] a permutation of the item codes: of equal ones the one named first wins.

    Returns:
        int32 [n, k].
    """
    rows, items = scores.shape
    best = np.full((rows, k), -1, dtype=np.int32)
    length = min(k, items)
    if rows == 0 or length == 0:
        return best
    ordered = scores[:, tie_order]
    threshold = np.partition(ordered, items - length, axis=1)[:, items - length, None]
    above, level = ordered > threshold, ordered == threshold
    missing = length - np.count_nonzero(above, axis=1, keepdims=True)
    chosen = above | (level & (np.cumsum(level, axis=1, dtype=np.int32) <= missing))
    place = np.nonzero(chosen)[1].reshape(rows, length)
    values = np.take_along_axis(ordered, place, axis=1)
    by_score = np.argsort(-values, axis=1, kind="stable")
    codes = tie_order[np.take_along_axis(place, by_score, axis=1)]
    best[:, :length] = np.where(np.take_along_axis(values, by_score, axis=1) == -np.inf, -1, codes)
    return best


def _ranks(ranks: Vector) -> Floats:
    given = finite(ranks, "rank")
    if (given < 1).any():
        row = int(np.argmax(given < 1))
        raise DataError(f"the rank of row {row} is below 1", got=given[row], expected="ranks that start at 1")
    return given


def _mean(terms: Floats, weights: Vector | None) -> float:
    weight = event_weights(weights, len(terms))
    return float(ratio(np.array(weight @ terms), np.array(weight.sum())))


def _exposure(top: npt.ArrayLike, k: int, size: int, weights: Vector | None) -> tuple[Floats, int]:
    """Return [N] the weight of the lists that hold each item, and the number of lists that weigh anything."""
    cut = cut_lists(top, k, size)
    weight = event_weights(weights, len(cut))
    listed = cut >= 0
    each = np.broadcast_to(weight[:, None], cut.shape)
    exposure: Floats = np.bincount(cut[listed], weights=each[listed], minlength=size).astype(np.float64)
    return exposure, int(np.count_nonzero(weight))


def cut_lists(top: npt.ArrayLike, k: int, size: int) -> Integers:
    """Return [n, ≤ k] item codes of lists over a catalogue of `size` items.

    Raises:
        DataError: The lists are shorter than k (and than the catalogue), or a code is not in the catalogue.
    """
    lists = np.asarray(top, dtype=np.int64)
    lists = lists if lists.ndim == 2 else lists.reshape(len(lists), 0 if len(lists) == 0 else 1)
    if len(lists) and lists.shape[1] < min(k, size):
        raise DataError("the top lists are too short", got=lists.shape[1], expected=f"at least {k} items in each")
    cut = lists[:, :k]
    if (cut >= size).any():
        row = int(np.argmax((cut >= size).any(axis=1)))
        raise DataError(f"list {row} holds an unknown item", got=cut[row].max(), expected=f"codes below {size}")
    return cut
