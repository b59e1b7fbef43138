"""Residual quantization: vectors as sums of one centroid per level.

Owns: the centroids of a level, distances to vectors of which only a part is known, assignment within a capacity. Ignores: items,
what the vectors mean.

A vector that is not known in full has NaN in the dimensions that are missing; distances are over the others.
"""

import numpy as np
import torch
from sklearn.cluster import kmeans_plusplus
from torch import Tensor

SAMPLE = 64
"""Vectors for each centroid that decide the centroids, about, evenly spread over all."""
CELLS = 2**25
"""Distances that are held at a time."""
ROUNDS = 25
"""Rounds of k-means at most."""
BALANCING = 5
"""Rounds of assignment within the capacity and new means."""


def centroids(vectors: Tensor, size: int, seed: int) -> Tensor:
    """The k-means centroids of (n, d) float32 vectors, (k, d): `size` of them, or one per distinct vector where there are fewer.

    Unknown dimensions count as zero.
    """
    sample = vectors[:: max(1, len(vectors) // (SAMPLE * size))].nan_to_num()
    distinct = torch.unique(sample, dim=0)
    if len(distinct) <= size:
        return distinct
    centres = torch.from_numpy(kmeans_plusplus(sample.numpy(), size, random_state=seed % 2**32)[0]).float()
    before = None
    for _ in range(ROUNDS):
        found = assign(sample, centres)
        if before is not None and torch.equal(found, before):
            break
        centres, before = _means(sample, found, centres), found
    return centres


def distances(vectors: Tensor, centres: Tensor) -> Tensor:
    """(n, k) float32 squared distances of (n, d) vectors, over the dimensions that each knows, to (k, d) centres."""
    known = vectors.isfinite()
    values = vectors.nan_to_num()
    if bool(known.all()):
        norms = centres.square().sum(1)
    else:
        norms = known.float() @ centres.square().t()
    return (values.square().sum(1, keepdim=True) - 2 * values @ centres.t() + norms).clamp_min(0)


def assign(vectors: Tensor, centres: Tensor, capacity: int | None = None) -> Tensor:
    """(n,) int64: the centre of each vector, the nearest; with a capacity, of at most so many vectors each.

    Within a capacity vectors propose to the nearest centre that would have them, and a centre keeps its nearest ones: no
    vector and centre would both rather have each other (Gale and Shapley 1962).

    Args:
        vectors: (n, d) float32, NaN where a dimension is not known.
        centres: (k, d) float32.
        capacity: At least n / k.
    """
    step = max(1, CELLS // len(centres))
    if capacity is None:
        return torch.cat([distances(some, centres).argmin(1) for some in vectors.split(step)])
    found = torch.full((len(vectors),), -1)
    held = torch.full((len(vectors),), torch.inf)
    threshold = torch.full((len(centres),), torch.inf)  # a full centre takes only what is nearer than its farthest
    free = torch.arange(len(vectors))
    while len(free):
        for some in free.split(step):
            away = distances(vectors[some], centres)
            held[some], found[some] = torch.where(away < threshold, away, torch.inf).min(1)
        free = _surplus(found, held, threshold, capacity)
    return found


def _surplus(found: Tensor, held: Tensor, threshold: Tensor, capacity: int) -> Tensor:
    """The vectors that full centres send away, (m,) int64; lowers the thresholds of these centres."""
    centre, away = found.numpy(), held.numpy()
    order = np.lexsort((np.arange(len(centre)), away, centre))
    counts = np.bincount(centre, minlength=len(threshold))
    place = np.arange(len(centre)) - np.repeat(np.cumsum(counts) - counts, counts)
    last = order[place == capacity - 1]
    threshold[found[last]] = held[last]
    return torch.from_numpy(order[place >= capacity])


def balance(vectors: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of which each has the same number of vectors, up to one place, (k, d), and the (n,) centre of each vector."""
    capacity = -(-len(vectors) // len(centres))
    for _ in range(BALANCING):
        centres = _means(vectors, assign(vectors, centres, capacity), centres)
    return centres, assign(vectors, centres, capacity)


def _means(vectors: Tensor, found: Tensor, centres: Tensor) -> Tensor:
    """The mean of each centre's vectors, dimension by dimension over those that know it; a centre that nobody knows stays."""
    known = vectors.isfinite().double()
    total = torch.zeros(centres.shape, dtype=torch.float64).index_add_(0, found, vectors.nan_to_num().double())
    count = torch.zeros(centres.shape, dtype=torch.float64).index_add_(0, found, known)
    return torch.where(count > 0, total / count.clamp_min(1), centres.double()).float()
