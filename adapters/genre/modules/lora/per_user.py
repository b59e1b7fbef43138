"""Gradients of low-rank updates user by user: every user of a batch has a copy of A and B, and what a copy gets is that user's.

Owns: the product with gradients for each span of tokens. Ignores: heads, clipping, noise.

    y = base(x) + s x Aᵀ Bᵀ                    forward: the copies are equal, so one product serves all users
    ∂A_u = s (Bᵀ ∂y_uᵀ) x_u,  ∂B_u = s ∂y_uᵀ (x_u Aᵀ)        backward: of the tokens of user u alone

Whatever the rows of users share (the base, an instruction, positions) is frozen, so it passes on gradients and gets none.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from genre.errors import JobError
from genre.modules.lora.layer import LoraLinear, PackedSpans


class PerUserUpdate(torch.autograd.Function):
    """y + s x Aᵀ Bᵀ with a copy of A and B for each user, all copies equal."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, spans: tuple[tuple[int, int, int], ...], scale: float
    ) -> Tensor:
        """Y (…, out), x (…, in) of T tokens, a (U, r, in), b (U, out, r); spans of (user, first token, end) → (…, out)."""
        own_a, own_b = a[0].to(x.dtype), b[0].to(x.dtype)
        ctx.save_for_backward(x, own_a, own_b)
        ctx.spans = spans
        ctx.scale = scale
        ctx.shapes = a.shape, b.shape, a.dtype
        flat = x.reshape(-1, x.shape[-1])
        return torch.addmm(y.reshape(len(flat), -1), (own_a @ flat.t()).t(), own_b.t(), alpha=scale).view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of y, of x, if it needs one, and of every user's A and B."""
        x, a, b = ctx.saved_tensors
        a_shape, b_shape, dtype = ctx.shapes
        gradient, flat = gradients[0].reshape(-1, len(b)), x.reshape(-1, a.shape[1])
        narrow = b.t() @ gradient.t()
        low = a @ flat.t()
        to_a, to_b = flat.new_zeros(a_shape, dtype=dtype), flat.new_zeros(b_shape, dtype=dtype)
        for user, start, stop in ctx.spans:
            to_a[user] = narrow[:, start:stop] @ flat[start:stop]
            to_b[user] = (low[:, start:stop] @ gradient[start:stop]).t()
        to_x = (narrow.t() @ a).mul_(ctx.scale).view_as(x) if ctx.needs_input_grad[1] else None
        return gradients[0], to_x, to_a.mul_(ctx.scale), to_b.mul_(ctx.scale), None, None


class PerUserLora(torch.nn.Module):
    """The low-rank layer of one linear while gradients are taken user by user; stands in for a `LoraLinear`, which it holds.

    Attributes:
        base: The layer whose place it takes, so that `detach` puts that back.
        packed: The users' tokens.
        copies: A (U, r, in) and B (U, out, r), leaves of the graph; set before each pass.
    """

    def __init__(self, layer: LoraLinear, packed: PackedSpans) -> None:
        super().__init__()
        self.base = layer
        self.packed = packed
        self.copies: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The linear's product plus the update's."""
        layer = self.base
        assert self.copies is not None
        tokens = x.shape[:-1].numel()
        spans = self.packed.of(tokens)
        if spans[-1][2] != tokens:
            what = "a linear of the base gets other tokens than those of the batch, so they cannot be told apart by user"
            raise JobError(
                what, got=f"{tokens:,} tokens", expected=f"{spans[-1][2]:,}", todo="adapt other linears (adapter.targets)"
            )
        return PerUserUpdate.apply(layer.base(x), layer.dropout(x), *self.copies, spans, layer.scale)


def per_user_layers(layers: Mapping[str, LoraLinear], packed: PackedSpans) -> dict[str, PerUserLora]:
    """Layers to `attach` in the place of an adapter's own."""
    return {name: PerUserLora(layer, packed) for name, layer in layers.items()}
