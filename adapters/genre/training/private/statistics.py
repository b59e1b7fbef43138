"""Noisy statistics of the training events, which heads start at: how often items occur, and their mean labels.

Owns: each user's bounded part of them, their release, what heads make of it. Ignores: steps, accounting.

    user u with events in items c_u (N,):  adds  c_u / max(1, |c_u|)  and, for a feedback task,  Σ_e z_e onehot(item_e) / |c_u|
    z_e = (label - middle) / half the range, cut to [-1, 1]

Every such vector has norm at most one, so k of them have √k together, which is the clip of one Gaussian mechanism over all.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genre.data.interactions import Interactions
from genre.evaluation.labels import known_labels
from genre.modules.heads.gaussian_process import GaussianProcess
from genre.modules.heads.heads import BinaryHead, CatalogueHead, FeedbackHead, ScalarHead
from genre.privacy import PrivacyConfig, public_range
from genre.training.assembly import Assembly
from genre.training.private.noise import Noise

ITEM_VARIANCE = 0.1
"""Assumed variance of items' mean labels, where labels reach from -1 to 1: public knowledge, not fitted."""


@dataclass(frozen=True)
class Part:
    """One vector over the catalogue that every user adds to.

    Attributes:
        task: Whose targets count.
        what: `counts` or `labels`.
    """

    task: str
    what: str


def parts_of(assembly: Assembly) -> list[Part]:
    """The vectors that a run's heads can start at; empty where no head reads items."""
    found = []
    for name, head in assembly.model.heads.items():
        if isinstance(head, CatalogueHead):
            found.append(Part(name, "counts"))
        elif isinstance(head, FeedbackHead) and head.affinity is not None:
            found += [Part(name, "counts"), Part(name, "labels")]
    return found


def total_of(assembly: Assembly, parts: list[Part]) -> Tensor:
    """(k, N) float32: the sum of all users' bounded vectors; private."""
    log, config = assembly.log, assembly.recipe.train.privacy
    assert config is not None
    rows = []
    for part in parts:
        task = assembly.model.tasks[part.task]
        labels = log.labels_of(task)
        there = np.flatnonzero(assembly.train_mask & known_labels(labels))
        values = np.ones(len(there))
        if part.what == "labels":
            low, high = public_range(task, config)
            values = np.clip((labels[there] - (low + high) / 2) / ((high - low) / 2), -1, 1)
        rows.append(bounded_sum(log, there, values))
    return torch.from_numpy(np.stack(rows)).float()


def bounded_sum(log: Interactions, events: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(N,) the sum over users of Σ_e value_e onehot(item_e), scaled by one over the norm of the user's counts, at least 1.

    Args:
        log: The log.
        events: (n,) rows of the log.
        values: (n,) each in [-1, 1], so that a user's vector is no longer than the counts.
    """
    pairs, index, counts = np.unique(
        log.user_codes[events].astype(np.int64) * log.catalogue.size + log.item_codes[events],
        return_inverse=True,
        return_counts=True,
    )
    users, items = pairs // log.catalogue.size, pairs % log.catalogue.size
    norm = np.sqrt(np.bincount(users, counts.astype(np.float64) ** 2, minlength=len(log.user_ids)))
    own = np.bincount(index, values, minlength=len(pairs)) / np.maximum(norm[users], 1.0)
    return np.bincount(items, own, minlength=log.catalogue.size)


def release(assembly: Assembly, parts: list[Part], noise: Noise, sigma: float) -> Tensor:
    """(k, N) float32: the noisy vectors, which are public from here on."""
    return noise.release(total_of(assembly, parts), clip=math.sqrt(len(parts)), sigma=sigma)[0]


@torch.no_grad()
def start_heads(assembly: Assembly, parts: list[Part], found: Tensor, sigma: float) -> None:
    """Start heads at released statistics (mutates them).

    Args:
        assembly: The run.
        parts: The vectors' meanings.
        found: (k, N), from `release`.
        sigma: Its noise multiplier.
    """
    soft, config = assembly.model.soft, assembly.recipe.train.privacy
    assert soft is not None and config is not None
    deviation = sigma * math.sqrt(len(parts))
    vectors = soft.every()
    values = dict(zip(parts, found.to(vectors.device), strict=True))
    for name, head in assembly.model.heads.items():
        counts = values.get(Part(name, "counts"))
        if counts is None:
            continue
        known = counts.clamp_min(0)
        if isinstance(head, CatalogueHead):
            share = known + max(deviation, 0.5)
            head.start_at(vectors, (share / share.sum()).log())
        elif isinstance(head, FeedbackHead) and isinstance(head.affinity, GaussianProcess):
            sums = values[Part(name, "labels")]
            mean = float((sums.sum() / counts.sum().clamp_min(1.0)).clamp(-0.9, 0.9))
            noisy = deviation**2 / ITEM_VARIANCE
            item = (sums - mean * known) * known / (known.square() + known + noisy)
            _start(head, assembly.model.tasks[name], config, mean, item, known.square() / (known + noisy), vectors)


def _start(
    head: FeedbackHead, task: object, config: PrivacyConfig, mean: float, item: Tensor, weight: Tensor, vectors: Tensor
) -> None:
    """Start a feedback head at a mean and items' means, both between -1 and 1."""
    affinity = head.affinity
    assert affinity is not None
    low, high = public_range(task, config)
    half = (high - low) / 2
    if isinstance(head, BinaryHead):
        share = (1 + mean) / 2
        head.linear.bias.fill_(math.log(share / (1 - share)))
        unit = 2 * share * (1 - share)  # a logit moves by 1 / (p (1 - p)) per unit of p, which is half a unit of z
    else:
        assert isinstance(head, ScalarHead)
        moments = head.get_buffer("moments")
        moments[0] = low + half + half * mean
        unit = float(moments[1]) / half
    affinity.start_at(vectors, item / unit, weight, affinity.worth.clone())
