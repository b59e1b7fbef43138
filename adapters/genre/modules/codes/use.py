"""Codes in figures: collisions, use of each level, and prefixes that near items share.

Owns: the counts. Ignores: where codes and vectors come from, display.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genre.modules.codes.fitting import perplexity

NEAREST = 10
"""Neighbours of an item that are looked at."""
SAMPLE = 2000
"""Items, evenly spread, whose neighbours are looked for."""


def levels(codes: np.ndarray, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """The use of each level by items with codes (N, levels): its size, codes in use, perplexity, items of the commonest code."""
    found = []
    for own, size in zip(codes.T, sizes, strict=True):
        counts = np.bincount(own, minlength=size)
        used = {"used": int((counts > 0).sum()), "perplexity": round(perplexity(counts), 2), "largest": int(counts.max())}
        found.append({"size": size, **used})
    return found


def collisions(codes: np.ndarray) -> dict[str, Any]:
    """How many items share all codes but the last with another one, by codes (N, levels), and the most that share a path."""
    _, counts = np.unique(codes[:, :-1], axis=0, return_counts=True)
    shared = int(counts[counts > 1].sum())
    return {"paths": len(counts), "items": shared, "share": round(shared / len(codes), 6), "most": int(counts.max())}


def shared_prefixes(codes: np.ndarray, vectors: Tensor) -> list[dict[str, float]]:
    """For each length of prefix the share of pairs that have it in common: of items and their nearest ones, and of any two.

    Args:
        codes: (N, levels), at least two items.
        vectors: (N, d) float32; near is what has the largest cosine.
    """
    count = len(codes)
    some = torch.arange(0, count, max(1, count // SAMPLE))
    unit = F.normalize(vectors.cpu().float(), dim=1)
    near = min(NEAREST, count - 1)
    found = []
    for part in some.split(256):
        likeness = unit[part] @ unit.t()
        likeness[torch.arange(len(part)), part] = -torch.inf
        found.append(likeness.topk(near, dim=1).indices)
    nearest = torch.cat(found).numpy()
    rows = []
    for length in range(1, codes.shape[1]):
        _, prefix, counts = np.unique(codes[:, :length], axis=0, return_inverse=True, return_counts=True)
        same = prefix[some.numpy()][:, None] == prefix[nearest]
        chance = float((counts * (counts - 1)).sum() / (count * (count - 1)))
        rows.append({"length": length, "near": round(float(same.mean()), 6), "any": round(chance, 6)})
    return rows
