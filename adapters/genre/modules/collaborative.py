"""Item vectors computed from the training events alone: co-occurrence, feedback, popularity.

Owns: the arithmetic. Ignores: models, tasks, files.

    vectors = collaborative_vectors(log, train_mask, dimensions=64)      # (N, 64 + 2)
    factors = pure_svd(log, train_mask, dimensions=64)                   # (N, 64)
    scaled = factor_vectors(log, train_mask, dimensions=64)              # (N, 64), the same on the scale of other features

Blocks of `vectors`, in order: 2/3 of the dimensions from the SVD of the windowed positive pointwise mutual information
(Levy & Goldberg, 2014), 1/3 from the SVD of user × item feedback residuals, then log popularity and the smoothed mean
feedback. A log without numeric feedback gives all dimensions to the first block and a zero mean.
"""

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from genre.data.interactions import Interactions

NEGLIGIBLE = 1e-9
"""Singular values up to this share of the largest one are those of a matrix of a lower rank."""
DENSE = 2**24
"""Entries of a matrix that is decomposed as a whole."""


def collaborative_vectors(
    log: Interactions,
    train_mask: np.ndarray,
    *,
    dimensions: int,
    feedback: np.ndarray | None = None,
    window: int = 20,
    seed: int = 0,
) -> np.ndarray:
    """Vectors of every catalogue item from the training events.

    Args:
        log: The log.
        train_mask: (n,) bool, the training events; no other event is looked at.
        dimensions: Of the two SVD blocks together.
        feedback: (n,) float64 numeric feedback with NaN, or None.
        window: Two events of a user that lie within so many events of each other count as seen together.
        seed: Of the SVD's start vector.

    Returns:
        (N, dimensions + 2) float32, standardized per dimension over the items with events; others are zero.
    """
    events = np.flatnonzero(train_mask)
    count = log.catalogue.size
    users, items = log.user_codes[events], log.item_codes[events]
    popularity = np.bincount(items, minlength=count)
    numeric = feedback is not None and np.isfinite(feedback[events]).any()
    rated = dimensions // 3 if numeric else 0
    blocks = [_svd(_mutual_information(users, items, count, window), dimensions - rated, seed)]
    mean = np.zeros(count)
    if numeric:
        values = np.asarray(feedback)[events]
        mean, residuals = _residuals(users, items, values, len(log.user_offsets) - 1, count)
        blocks.append(_svd(residuals.T.tocsr(), rated, seed))
    table = np.concatenate([*blocks, np.log1p(popularity)[:, None], mean[:, None]], axis=1)
    warm = popularity > 0
    table[warm] = (table[warm] - table[warm].mean(0)) / (table[warm].std(0) + 1e-6)
    table[~warm] = 0
    return table.astype(np.float32)


def pure_svd(log: Interactions, train_mask: np.ndarray, *, dimensions: int, seed: int = 0) -> np.ndarray:
    """PureSVD item factors, whose products estimate which items the same users had, in any order.

    With X ≈ U S Vᵀ the binary user × item matrix of the training events, V S (S² + λ)^-½, λ the median of S²: x F Fᵀ is what the
    linear autoencoder of this rank makes of a user's items x. Sources: Cremonesi, Koren & Turrin (2010), PureSVD; Steck (2020)
    for the ridge.

    Args:
        log: The log.
        train_mask: (n,) bool, the training events; no other event is looked at.
        dimensions: Of the factors; of those that the matrix does not have the values are zero.
        seed: Of the SVD's start vector.

    Returns:
        (N, dimensions) float32; zero for items without such events.
    """
    events = np.flatnonzero(train_mask)
    shape = (len(log.user_offsets) - 1, log.catalogue.size)
    matrix = sp.csr_matrix((np.ones(len(events)), (log.user_codes[events], log.item_codes[events])), shape=shape)
    matrix.data[:] = 1
    rank = min(dimensions, min(shape) - 1)
    out = np.zeros((shape[1], dimensions), dtype=np.float32)
    if rank < 1 or matrix.nnz == 0:
        return out
    _, values, right = _decompose(matrix, rank, seed)
    squares = values**2
    scale = np.sqrt(squares / (squares + np.median(squares) + 1e-12))
    out[:, :rank] = (right * scale[:, None]).T
    return out


def factor_vectors(log: Interactions, train_mask: np.ndarray, *, dimensions: int, seed: int = 0) -> np.ndarray:
    """`pure_svd`'s factors on the scale of other features: a mean square of one over the items with events; others are zero."""
    factors = pure_svd(log, train_mask, dimensions=dimensions, seed=seed)
    there = factors.any(axis=1)
    size = float(np.sqrt(np.square(factors[there]).mean())) if there.any() else 1.0
    return factors / np.float32(size)


def _mutual_information(users: np.ndarray, items: np.ndarray, count: int, window: int) -> sp.csr_matrix:
    together = sp.csr_matrix((count, count))
    for distance in range(1, window + 1):
        same = users[distance:] == users[:-distance]
        left, right = items[:-distance][same], items[distance:][same]
        together = together + sp.csr_matrix((np.full(len(left), 1.0), (left, right)), shape=(count, count))
    together = (together + together.T).tocoo()
    sums = np.asarray(together.sum(1)).ravel()
    ratio = together.data * sums.sum() / (sums[together.row] * sums[together.col])
    positive = np.maximum(np.log(np.maximum(ratio, 1e-12)), 0)
    return sp.csr_matrix((positive, (together.row, together.col)), shape=(count, count))


def _residuals(
    users: np.ndarray, items: np.ndarray, values: np.ndarray, user_count: int, count: int, *, prior: float = 5.0
) -> tuple[np.ndarray, sp.csr_matrix]:
    """Smoothed item means (centred), and feedback minus smoothed item and user means."""
    known = np.isfinite(values)
    users, items, values = users[known], items[known], values[known]
    centred = values - values.mean()
    item_mean = np.bincount(items, centred, count) / (np.bincount(items, minlength=count) + prior)
    rest = centred - item_mean[items]
    user_mean = np.bincount(users, rest, user_count) / (np.bincount(users, minlength=user_count) + prior)
    rest = rest - user_mean[users]
    return item_mean, sp.csr_matrix((rest, (users, items)), shape=(user_count, count))


def _svd(matrix: sp.csr_matrix, dimensions: int, seed: int) -> np.ndarray:
    """Rows scaled by the square root of the singular values, (rows, dimensions), padded with zeros where the rank is lower."""
    rank = min(dimensions, min(matrix.shape) - 1)
    out = np.zeros((matrix.shape[0], dimensions))
    matrix = matrix.copy()
    matrix.data[np.abs(matrix.data) < 1e-9] = 0  # what is left of feedback that is always the same
    matrix.eliminate_zeros()
    if rank < 1 or matrix.nnz == 0:
        return out
    left, values, _ = _decompose(matrix.astype(np.float64), rank, seed)
    signs = np.sign(left[np.abs(left).argmax(0), np.arange(rank)])
    out[:, :rank] = left * signs * np.sqrt(values)
    return out


def _decompose(matrix: sp.csr_matrix, rank: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest singular values, in descending order, between their vectors; values that the matrix does not have are 0.

    ARPACK draws the vectors of those, other ones in every call whatever the start vector is, on which the signs of all others
    depend. Such a matrix is decomposed as a whole, where it is not too large for that.
    """
    left, values, right = svds(matrix, k=rank, v0=np.random.default_rng(seed).normal(size=min(matrix.shape)))
    order = np.argsort(-values)
    left, values, right = left[:, order], values[order], right[order]
    if values[-1] <= NEGLIGIBLE * values[0]:
        if matrix.shape[0] * matrix.shape[1] <= DENSE:
            left, values, right = np.linalg.svd(matrix.toarray(), full_matrices=False)
            left, values, right = left[:, :rank], values[:rank], right[:rank]
        values = np.where(values > NEGLIGIBLE * values[0], values, 0.0)
    return left, values, right
