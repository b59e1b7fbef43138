"""The last layer's MLP on the tokens that are read, and on no others.

A head reads few tokens of a row: one where a whole catalogue is scored, every second one where a row has a target per event. In
the last layer the others still serve as keys and values, but nothing looks at what the MLP, three quarters of a layer, makes of
them. docs/decisions/tokens-that-are-read.md has what it is worth.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def skip_unread(mlp: nn.Module, read: Tensor) -> Iterator[None]:
    """A block in which an MLP computes some tokens only, and gives 0 for the others.

    Args:
        mlp: (B, T, D) → (B, T, D), each token by itself.
        read: (n,) int64 tokens of the flattened batch, each once, which the MLP gets as (1, n, D); or (B, K), K tokens of each
            row, which it gets as (B, K, D), and where a token may occur twice if no gradient is asked for.
    """
    whole: list[Tensor] = []
    flat = read.reshape(-1)

    def take(module: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor, ...]:
        whole.append(given[0])
        chosen = given[0].flatten(0, 1).index_select(0, flat.to(given[0].device))  # the last layer may be on another device
        return (chosen.view(*(read.shape if read.ndim == 2 else (1, -1)), given[0].shape[-1]),)

    def put_back(module: nn.Module, given: tuple[Any, ...], found: Tensor) -> Tensor:
        batch, tokens = whole.pop().shape[:2]
        states = torch.zeros(batch * tokens, found.shape[-1], dtype=found.dtype, device=found.device)
        return states.index_copy(0, flat.to(found.device), found.flatten(0, 1)).view(batch, tokens, -1)

    handles = mlp.register_forward_pre_hook(take), mlp.register_forward_hook(put_back)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
