"""The last layer's MLP on the tokens that are read, and on no others.

Owns: which part of a base that is, and the detour through it. Ignores: who reads what.

What a head reads is a few tokens of a row: one of 128 where a text is judged, every second one where a row has a target per
event. In the last layer the other tokens still serve as keys and values, but nothing looks at what the MLP makes of them; and
the MLP is three quarters of a layer. So there the tokens that are read go through it, and the others keep what attention
gave them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

WORTH = 0.8
"""Above this share of the tokens, taking them out and putting them back costs what the MLP saves."""


def worth(count: int, tokens: int) -> bool:
    """Whether it is worth it to run the MLP on so many of the tokens only."""
    return 0 < count <= WORTH * tokens


@contextmanager
def narrow(mlp: nn.Module, places: Tensor) -> Iterator[None]:
    """A block in which an MLP sees some tokens only; for the others it gives 0.

    Args:
        mlp: (B, T, D) → (B, T, D), each token by itself.
        places: (n,) int64 tokens of the flattened batch, each once, which the MLP sees as (1, n, D); or (B, K), K tokens of
            each row, which it sees as (B, K, D), and where a token may be named twice if no gradient is asked for.
    """
    whole: list[Tensor] = []
    flat = places.reshape(-1)

    def take(module: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor, ...]:
        whole.append(given[0])
        chosen = given[0].flatten(0, 1).index_select(0, flat.to(given[0].device))  # the last layer may be on another device
        return (chosen.view(*(places.shape if places.ndim == 2 else (1, -1)), given[0].shape[-1]),)

    def put(module: nn.Module, given: tuple[Any, ...], found: Tensor) -> Tensor:
        x = whole.pop()
        back = torch.zeros(x.shape[0] * x.shape[1], found.shape[-1], dtype=found.dtype, device=found.device)
        own = found.flatten(0, 1)[: len(flat)]
        return back.index_copy(0, flat.to(found.device), own).view(*x.shape[:2], -1)

    handles = mlp.register_forward_pre_hook(take), mlp.register_forward_hook(put)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
