"""Quality of each target's top list beyond whether the target is in it: diversity, novelty, serendipity.

Owns: the three formulas, and what they need to know of items and targets (`ListFacts`). Ignores how lists are made; how much of
the catalogue all lists cover together is in `genre.evaluation.metrics.ranking` (coverage, Gini).

    >>> facts = ListFacts(counts=np.array([7, 0, 0]), vectors=np.array([[1.0, 0], [0, 1], [1, 0]]), popular=np.array([1.0]))
    >>> diversity([[0, 1, 2]], 3, facts)  # two pairs at a right angle, one of the same direction: (1 + 1 + 0) / 3
    0.6666666666666666
    >>> novelty([[1, 0]], 1, facts)  # item 1 has (0 + 1) / (7 + 3) of the training events: log2 10 bits
    3.3219280948873626
    >>> serendipity([1.0], 3, facts)  # a hit, but of what the three most popular items would have hit as well
    0.0
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from genre.errors import DataError
from genre.evaluation.metrics.checks import Floats, Vector, event_weights, finite, ratio, same_length
from genre.evaluation.metrics.ranking import cut_lists

_BLOCK = 4096


@dataclass(frozen=True)
class ListFacts:
    """Facts about items and targets that list quality is computed from.

    Attributes:
        counts: (N,) training events of each item.
        vectors: (N, D) item vectors, of any length but zero; None if nothing is known of items, and diversity with it.
        popular: (n,) rank of each target's item by `counts` among the same candidates, from 1, by the mid-rank rule.
    """

    counts: npt.NDArray[Any]
    vectors: npt.NDArray[Any] | None
    popular: Floats

    def take(self, rows: npt.NDArray[Any]) -> ListFacts:
        """The facts of some of the targets."""
        return ListFacts(self.counts, self.vectors, self.popular[rows])


def diversity(top: npt.ArrayLike, k: int, facts: ListFacts, *, weights: Vector | None = None) -> float:
    """Return the mean intra-list distance: 1 - cosine over all pairs of a list, averaged over pairs, then over lists.

    ILD(L) = 2 / (m (m - 1)) Σ_{i<j} (1 - v_i·v_j / |v_i||v_j|), of the m items of L's first k. From 0 (all alike) to 2. A list
    of fewer than two items has no pair and does not count; NaN if none does. Source: Ziegler et al. 2005; Zhang and Hurley 2008.

    Args:
        top: [n, K] item codes, best first; -1 fills a list that is too short.
        k: How many of each list count.
        facts: With vectors.
        weights: [n].

    Raises:
        DataError: There are no vectors, or a code is not in the catalogue.
    """
    return _mean(distances(top, k, facts), weights)


def distances(top: npt.ArrayLike, k: int, facts: ListFacts) -> Floats:
    """Return [n]: the intra-list distance of each list, NaN where it has fewer than two items."""
    if facts.vectors is None:
        raise DataError("diversity needs item vectors", got="none", expected="(N, D) vectors")
    lists = cut_lists(top, k, len(facts.vectors))
    long = np.asarray(facts.vectors, dtype=np.float64)
    unit = long / np.maximum(np.linalg.norm(long, axis=1, keepdims=True), 1e-12)
    found = np.full(len(lists), np.nan)
    for start in range(0, len(lists), _BLOCK):
        some = lists[start : start + _BLOCK]
        listed = some >= 0
        total = np.einsum("nkd,nk->nd", unit[np.where(listed, some, 0)], listed.astype(np.float64))
        m = listed.sum(1).astype(np.float64)
        alike = ratio((total**2).sum(1) - m, m * (m - 1))  # |Σ v|² holds each pair twice, and each item once
        found[start : start + _BLOCK] = 1 - alike
    return found


def novelty(top: npt.ArrayLike, k: int, facts: ListFacts, *, weights: Vector | None = None) -> float:
    """Return the mean self-information of the listed items' popularity, in bits, averaged over a list, then over lists.

    I(i) = -log2((n_i + 1) / (Σ n + N)), n_i the training events of item i: the surprise of a random training event being i. An
    item without any is finite by the one that is added to each. Empty lists do not count; NaN if all are. Source: Zhou et al.
    2010; Vargas and Castells 2011. Arguments and `Raises` as for `diversity`.
    """
    return _mean(information(top, k, facts), weights)


def information(top: npt.ArrayLike, k: int, facts: ListFacts) -> Floats:
    """Return [n]: the mean self-information of each list's items in bits, NaN where it is empty."""
    counts = np.asarray(facts.counts, dtype=np.float64)
    lists = cut_lists(top, k, len(counts))
    bits = np.log2(counts.sum() + len(counts)) - np.log2(counts + 1)
    listed = lists >= 0
    return ratio((bits[np.where(listed, lists, 0)] * listed).sum(1), listed.sum(1).astype(np.float64))


def serendipity(ranks: Vector, k: int, facts: ListFacts, *, weights: Vector | None = None) -> float:
    """Return the share of targets that are found although popularity would not have found them.

    Σ w [rank ≤ k] [popular > k] / Σ w: useful, since the user took the item, and unexpected, since a list of the k most popular
    candidates does not hold it. Source: Ge, Delgado-Battenfeld and Jannach 2010 (items that are useful and not in a primitive
    method's list), with one relevant item per target and popularity as the primitive method. At most `hr`. NaN when empty.

    Args:
        ranks: [n] from 1.
        k: Length of both lists.
        facts: With the targets' ranks by popularity.
        weights: [n].
    """
    return _mean(surprises(ranks, k, facts), weights)


def surprises(ranks: Vector, k: int, facts: ListFacts) -> Floats:
    """Return [n]: 1 where rank ≤ k and the rank by popularity is above k, else 0."""
    given = finite(ranks, "rank")
    same_length(ranks=given, popular=facts.popular)
    return ((given <= k) & (facts.popular > k)).astype(np.float64)


def _mean(values: Floats, weights: Vector | None) -> float:
    weight = event_weights(weights, len(values))
    known = ~np.isnan(values)
    return float(ratio(np.array(weight[known] @ values[known]), np.array(weight[known].sum())))
