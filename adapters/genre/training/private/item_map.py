"""The item map of a private run: a linear map from a user's history to the next item, which a next-item head starts at.

Owns: the map's noisy gradient steps, exact norms of users' parts of them. Ignores: accounting, heads.

    z_i = Σ_g h_g M_g · t_i,    h_g = Σ_j w_gj t_j,  w_gj ∝ γ_g^(events since j),    t: items' public vectors, of length one
    a step, of all n users:   V ← μ V + (Σ_u clip(G_u) + N(0, (σ C)²)) / n,    G_u = mean over u's targets of hᵀ (E[t] - t_target)
                              M ← M - η V

M starts at multiples of the identity, which is neighbours by text, and is the same for all items: what many users have in common
moves it far, and the noise is spread over D² numbers rather than over pairs of items. |G_u|² is Σ_pq (h_p·h_q)(e_p·e_q), so that
no user's gradient is ever made. Constants were chosen on validation events of Amazon Beauty (docs/decisions/privacy-budget.md).
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from genre.errors import JobError
from genre.modules.heads.gaussian_process import to_unit
from genre.modules.heads.heads import CatalogueHead
from genre.training.assembly import Assembly
from genre.training.parts import text_map
from genre.training.private.noise import Noise

STEPS = 10
"""Steps, each of all users."""
CLIP = 0.3
"""C, where no part can have a norm above √(2 · memories)."""
LATEST = 4
"""Targets of a user: the latest of the training part."""
FARTHEST = 0.18
"""Steps times η / (1 - μ), over D²: with vectors of length one a number of the map has a curvature of about 1 / D²."""
BLUR = 0.45
"""Standard deviation that the noise of all steps may give a number of the map; with few users η is smaller for it."""
BESIDE_NGRAMS = 0.2, 0.6
"""Both of these beside neighbours by n-grams, which say what text alone knows, so that the map may move farther from it."""
MOMENTUM = 0.5
"""μ."""
NEGATIVES = 1024
"""Items that the softmax sees besides the target; a smaller catalogue as a whole."""
USERS = 1024
"""Users that are computed together."""


@dataclass(frozen=True)
class Targets:
    """The targets of some users, and what the map reads.

    Attributes:
        weights: (u · LATEST · G, N) sparse: the weight of every item of each target's history, by memory.
        items: (u, LATEST) int64 the item that came next, -1 where a user has fewer.
    """

    weights: sp.csr_array
    items: Tensor

    def histories(self, vectors: Tensor) -> Tensor:
        """(u, LATEST, G · D) h of each target, from (N, D) item vectors."""
        found = torch.from_numpy(self.weights @ vectors.cpu().numpy()).to(vectors.device)
        return found.view(*self.items.shape, -1)


@torch.no_grad()
def fit_map(assembly: Assembly, noise: Noise, sigma: float) -> Tensor:
    """(G · D, D) float32: the map of next-item heads, public from here on.

    Args:
        assembly: The run.
        noise: Adds the noise of every step.
        sigma: Noise multiplier of each of `STEPS` steps of all users.

    Raises:
        JobError: A user's part is longer than was accounted for.
    """
    soft, config = assembly.model.soft, assembly.recipe.train.privacy
    assert soft is not None and config is not None
    farthest, blur = BESIDE_NGRAMS if config.ngrams else (FARTHEST, BLUR)
    vectors = F.normalize(to_unit(soft.every()), dim=-1)
    found, users = text_map(vectors.shape[1]).to(vectors), len(assembly.log.user_ids)
    velocity, targets = torch.zeros_like(found), targets_of(assembly)
    rate = min(farthest * vectors.shape[1] ** 2 / STEPS, blur * users / (sigma * CLIP * math.sqrt(STEPS)))
    for _ in range(STEPS):
        drawn = negatives(len(vectors), noise).to(vectors.device)
        total = torch.zeros_like(found)
        for some in targets:
            total += clipped_sum(some, found, vectors, drawn)
        velocity = MOMENTUM * velocity + noise.release(total, clip=CLIP, sigma=sigma)[0] / users
        found = found - (1 - MOMENTUM) * rate * velocity
    return found


def negatives(count: int, noise: Noise) -> Tensor:
    """(m,) int64 different items, evenly drawn."""
    if count <= NEGATIVES:
        return torch.arange(count)
    return torch.from_numpy(np.random.default_rng(noise.seed()).choice(count, NEGATIVES, replace=False))


def clipped_sum(some: Targets, found: Tensor, vectors: Tensor, drawn: Tensor) -> Tensor:
    """(G · D, D) the sum of some users' clipped gradients.

    Args:
        some: Their targets.
        found: (G · D, D) the map.
        vectors: (N, D) of length one.
        drawn: (m,) the items that stand for the catalogue.

    Raises:
        JobError: A clipped part is too long.
    """
    items, histories = some.items.to(vectors.device), some.histories(vectors)
    there, wanted = items >= 0, vectors[items.clamp_min(0)]
    query = histories @ found
    others = query @ vectors[drawn].t() + math.log(len(vectors) / len(drawn))
    others = others.masked_fill(items.unsqueeze(-1) == drawn, -torch.inf)  # the target counts once
    share = torch.softmax(torch.cat([(query * wanted).sum(-1, keepdim=True), others], -1), -1)
    errors = (share[..., :1] - 1) * wanted + share[..., 1:] @ vectors[drawn]
    errors *= (there / there.sum(1, keepdim=True).clamp_min(1)).unsqueeze(-1)
    factor = (CLIP / norms(histories, errors).clamp_min(1e-30)).clamp_max(1.0)
    errors *= factor.view(-1, 1, 1)
    if not (largest := float(norms(histories, errors).max())) <= CLIP * (1 + 1e-4):
        what = "the item map is not as private as accounted for: a clipped norm"
        raise JobError(what, got=f"{largest:g}", expected=f"at most {CLIP:g}", todo="report this")
    return histories.flatten(0, 1).t() @ errors.flatten(0, 1)


def norms(histories: Tensor, errors: Tensor) -> Tensor:
    """(u,) the norms of Σ_p h_pᵀ e_p, from (u, p, G · D) and (u, p, D)."""
    left, right = histories.double(), errors.double()
    return ((left @ left.transpose(1, 2)) * (right @ right.transpose(1, 2))).sum((1, 2)).clamp_min(0).sqrt()


def targets_of(assembly: Assembly) -> list[Targets]:
    """The users' latest targets in the training part and the histories before them, `USERS` users at a time.

    A history is made of the user's own training events, `data.max_events` at most.
    """
    log, most = assembly.log, assembly.recipe.data.max_events
    events = np.flatnonzero(assembly.train_mask)
    events = events[np.argsort(log.user_codes[events], kind="stable")]
    codes = log.item_codes[events]
    starts = np.searchsorted(log.user_codes[events], np.arange(len(log.user_ids) + 1))
    chosen = np.flatnonzero(np.diff(starts) > 1)
    return [
        _targets(codes, starts, chosen[first : first + USERS], log.catalogue.size, most) for first in range(0, len(chosen), USERS)
    ]


def _targets(codes: np.ndarray, starts: np.ndarray, users: np.ndarray, count: int, most: int) -> Targets:
    fades, items = CatalogueHead.decays, np.full((len(users), LATEST), -1)
    rows, columns, values = [], [], []
    for user, (start, stop) in enumerate(zip(starts[users].tolist(), starts[users + 1].tolist(), strict=True)):
        for place, target in enumerate(range(max(start + 1, stop - LATEST), stop)):
            items[user, place] = codes[target]
            before = codes[max(start, target - most) : target]
            for memory, fade in enumerate(fades):
                weights = fade ** np.arange(len(before) - 1, -1, -1, dtype=np.float32)
                rows.append(np.full(len(before), (user * LATEST + place) * len(fades) + memory))
                columns.append(before)
                values.append(weights / weights.sum())
    shape = len(users) * LATEST * len(fades), count
    weights = sp.csr_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape, dtype=np.float32)
    return Targets(weights, torch.from_numpy(items))
