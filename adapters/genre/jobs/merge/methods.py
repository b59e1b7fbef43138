"""Merges of low-rank updates: linear, TIES and DARE-TIES on the factors (PEFT's functions), SVD on their product.

Owns: the arithmetic of merging updates. Ignores: heads, tasks, files, quality.

    >>> import torch
    >>> one = {"q_proj": (torch.ones(1, 2), torch.ones(3, 1), 2.0)}
    >>> a, b, scale = merge([one, one], [0.5, 0.5], method="svd")["q_proj"]
    >>> torch.allclose(b @ a * scale, torch.full((3, 2), 2.0))
    True

The methods on the factors are PEFT's `add_weighted_adapter`: with v_i = w_i scale_i, A = f(sign(v_i) sqrt|v_i| A_i) and
B = f(sqrt|v_i| B_i), so the product has cross terms between parents: a rough merge, but one at the parents' rank that costs
nothing. SVD is the best update of its rank: of sum_i w_i scale_i B_i A_i it keeps the largest singular values (Eckart and
Young, 1936). TIES: Yadav et al. (2023); DARE: Yu et al. (2023).
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from genre.errors import InputError, ManifestError
from genre.modules.base.quiet import quiet

Method = Literal["linear", "ties", "dare_ties", "svd"]
METHODS: tuple[Method, ...] = get_args(Method)
Update = Mapping[str, tuple[Tensor, Tensor, float]]


def merge(
    updates: Sequence[Update],
    weights: Sequence[float],
    *,
    method: Method,
    rank: int | None = None,
    density: float = 0.5,
    seed: int = 0,
) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Merge several updates into one.

    Args:
        updates: Per parent and adapted linear: A (rank, in), B (out, rank), scale. Not mutated.
        weights: One per parent; a linear that a parent does not adapt counts as zero there.
        method: `linear`, `ties`, `dare_ties` (equal ranks) or `svd` (any ranks).
        rank: svd: the result's; by default the largest of the parents'.
        density: ties and dare_ties: the share of values to keep.
        seed: dare_ties: of the draws, which differ from linear to linear but not with the order of the linears.

    Returns:
        For each linear that any parent adapts: A (R, in), B (out, R), both float32 on the CPU, and the scale 1.

    Raises:
        InputError: An argument is out of range.
        ManifestError: The ranks differ and the method needs equal ones.
    """
    check_arguments(len(updates), weights, method=method, rank=rank, density=density)
    names = list(dict.fromkeys(name for update in updates for name in update))
    if not names:
        return {}
    ranks = sorted({a.shape[0] for update in updates for a, _, _ in update.values()})
    if method == "svd":
        return {name: (*best_of_rank(_parts(updates, weights, name), rank or ranks[-1]), 1.0) for name in names}
    if len(ranks) > 1:
        got, todo = f"ranks {', '.join(map(str, ranks))}", "use --method svd, which merges any ranks"
        raise ManifestError(f"method {method} needs parents of one rank", got=got, expected="equal ranks", todo=todo)
    combine = _on_factors(method, density)
    with torch.random.fork_rng(devices=[]):
        return {name: (*_combined(_parts(updates, weights, name), combine, draw_seed(seed, name)), 1.0) for name in names}


def draw_seed(seed: int, name: str) -> int:
    """The seed of one linear's draws."""
    return zlib.crc32(f"{seed}:{name}".encode())


def check_arguments(count: int, weights: Sequence[float], *, method: str, rank: int | None, density: float) -> None:
    """Check the arguments of `merge` for `count` updates.

    Raises:
        InputError: One is out of range.
    """
    if method not in METHODS:
        raise InputError("no such method", got=method, expected=", ".join(METHODS))
    if count < 2:
        raise InputError("a merge needs at least two adapters", got=count, expected="2 or more")
    if len(weights) != count:
        raise InputError("weights", got=f"{len(weights)} for {count} adapters", expected="one per adapter")
    if not all(map(math.isfinite, weights)) or not any(weights):
        raise InputError("weights", got=", ".join(map(str, weights)), expected="finite numbers that are not all 0")
    if rank is not None and (method != "svd" or not 1 <= rank <= 1024):
        raise InputError("rank", got=f"{rank} with method {method}", expected="1 to 1024, with method svd")
    if not 0 < density <= 1:
        raise InputError("density", got=density, expected="more than 0, at most 1")


def _parts(updates: Sequence[Update], weights: Sequence[float], name: str) -> list[tuple[Tensor, Tensor, float]]:
    """Each parent's A, B and weight times scale for one linear, of those that adapt it."""
    found = []
    for update, weight in zip(updates, weights, strict=True):
        if name in update:
            a, b, scale = update[name]
            found.append((a.detach().float().cpu(), b.detach().float().cpu(), weight * scale))
    return found


def _on_factors(method: str, density: float) -> Callable[[list[Tensor], Tensor], Tensor]:
    with quiet():
        from peft.utils import merge_utils
    if method == "linear":
        return merge_utils.task_arithmetic
    function: Any = merge_utils.ties if method == "ties" else merge_utils.dare_ties

    def combine(tensors: list[Tensor], weights: Tensor) -> Tensor:
        with quiet():  # a density of 1 is worth a warning to PEFT
            return function(tensors, weights, density)

    return combine


def _combined(
    parts: list[tuple[Tensor, Tensor, float]], combine: Callable[[list[Tensor], Tensor], Tensor], seed: int
) -> tuple[Tensor, Tensor]:
    torch.default_generator.manual_seed(seed)  # the CPU's alone: the devices' are not put back
    roots = torch.tensor([math.sqrt(abs(weight)) for _, _, weight in parts])
    signs = torch.tensor([1.0 if weight >= 0 else -1.0 for _, _, weight in parts])
    a = combine([a for a, _, _ in parts], roots * signs)
    return a, combine([b for _, b, _ in parts], roots)


def best_of_rank(parts: list[tuple[Tensor, Tensor, float]], rank: int) -> tuple[Tensor, Tensor]:
    """A and B of the best rank-`rank` form of sum_i w_i B_i A_i; without ever building the (out, in) matrix.

    With [B_1 … B_n] = Q_b R_b and [w_1 A_1; …; w_n A_n]ᵀ = Q_a R_a, the singular values of the sum are those of R_b R_aᵀ.
    """
    left = torch.cat([b.double() for _, b, _ in parts], dim=1)
    right = torch.cat([a.double() * weight for a, _, weight in parts], dim=0)
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    u, values, v = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    kept = min(rank, len(values))
    roots = values[:kept].sqrt()
    a, b = torch.zeros(rank, right.shape[1]), torch.zeros(left.shape[0], rank)  # one rank for all linears, also the small
    a[:kept] = ((q_right @ v[:kept].T) * roots).T
    b[:, :kept] = (q_left @ u[:, :kept]) * roots
    return a, b
