"""Maximal marginal relevance: a list of good items that are not all alike.

Owns: the arithmetic. Ignores: requests, where scores and vectors come from.

    indices = diversify(scores, vectors, k=10, amount=0.3)      # of (C,) scores and (C, D) vectors
"""

import numpy as np

POOL = 1000
"""Candidates that are looked at, the best so many; k is at most that."""


def diversify(scores: np.ndarray, vectors: np.ndarray, k: int, amount: float) -> np.ndarray:
    """Choose k items one after the other, each the best by what it is worth and by how unlike those chosen before it is.

        next = argmax_i (1 - λ) r_i - λ max_{j chosen} cos(v_i, v_j),    r_i = (s_i - min s) / (max s - min s)

    over the pool, so that relevance r is in [0, 1] whatever the scores are (all 0 where they are equal); before anything is
    chosen the maximum is 0. Of equal values the one with the higher score wins, then the earlier. λ = 0 gives the order of the
    scores; with λ = 1 only the first item is chosen by its score. Source: Carbonell and Goldstein 1998.

    Args:
        scores: (C,) of the pool, best first.
        vectors: (C, D) item vectors; only their directions count.
        k: How many are chosen; at most C are.
        amount: λ, from 0 to 1.

    Returns:
        (min(k, C),) indices into the pool, in the order of choice. O(k C D).
    """
    count = len(scores)
    low, high = (float(scores.min()), float(scores.max())) if count else (0.0, 0.0)
    relevance = (scores.astype(np.float64) - low) / (high - low) if high > low else np.zeros(count)
    long = vectors.astype(np.float32)
    unit = long / np.maximum(np.linalg.norm(long, axis=1, keepdims=True), 1e-12)
    nearest, left = np.full(count, -np.inf), np.ones(count, dtype=bool)
    chosen: list[int] = []
    for _ in range(min(k, count)):
        value = (1 - amount) * relevance - amount * np.where(np.isinf(nearest), 0.0, nearest)
        best = int(np.argmax(np.where(left, value, -np.inf)))
        chosen.append(best)
        left[best] = False
        nearest = np.maximum(nearest, unit @ unit[best])
    return np.array(chosen, dtype=np.int64)
