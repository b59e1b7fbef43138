"""The products of low-rank layers, with gradients written out: fewer passes over the tokens than their parts would take.

Owns: autograd functions of frozen weights W and trained A (r, in), B (out, r). Ignores: modules, which linears are adapted.

    FusedLora.apply(x, W, bias, A, B, s)     x (W + s B A)ᵀ     with the merged weight, made twice and never kept

The rank is the number of rows of every small product, never of columns: there the processor's libraries are up to ten times
slower.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class FusedLora(torch.autograd.Function):
    """One product with the merged weight instead of three with its parts; the merged weight is never kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """X (…, in) → (…, out)."""
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale = scale
        return F.linear(x, torch.addmm(weight, b, a, alpha=scale), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, if it needs one, of A and of B."""
        x, weight, a, b = ctx.saved_tensors
        gradient = gradients[0].reshape(-1, weight.shape[0])
        flat = x.reshape(-1, weight.shape[1])
        to_x = (gradient @ torch.addmm(weight, b, a, alpha=ctx.scale)).view_as(x) if ctx.needs_input_grad[0] else None
        return to_x, None, None, *to_update(flat, gradient, a, b, ctx.scale), None


def to_update(x: Tensor, gradient: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Gradients of A (r, in) and B (out, r), given x (T, in) and the gradient of the output (T, out).

    The rank is always the number of rows of a product: with it as the number of columns, the processor's libraries are up to
    ten times slower.
    """
    to_a = (b.t() @ gradient.t()) @ x
    to_b = ((a @ x.t()) @ gradient).t()
    return to_a.mul_(scale), to_b.mul_(scale)


class AddUpdate(torch.autograd.Function):
    """y + s x Aᵀ Bᵀ in one pass over y, for a base whose weight cannot be merged or an update with an input of its own."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Y (…, out), x (…, in) → (…, out)."""
        ctx.save_for_backward(x, a, b)
        ctx.scale = scale
        flat = x.reshape(-1, a.shape[1])
        return torch.addmm(y.reshape(len(flat), -1), (a @ flat.t()).t(), b.t(), alpha=scale).view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of y, of x, if it needs one, of A and of B."""
        x, a, b = ctx.saved_tensors
        gradient, flat = gradients[0].reshape(-1, len(b)), x.reshape(-1, a.shape[1])
        back = b.t() @ gradient.t()  # (r, T)
        to_x = (back.t() @ a).mul_(ctx.scale).view_as(x) if ctx.needs_input_grad[1] else None
        to_b = ((a @ flat.t()) @ gradient).t()
        return gradients[0], to_x, (back @ flat).mul_(ctx.scale), to_b.mul_(ctx.scale), None


class FusedLanes(torch.autograd.Function):
    """`FusedLora` on one slice of the tokens after the other, each with its own update, into one output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, spans: list[tuple[int, int, int, float]], *pairs: Tensor
    ) -> Tensor:
        """X (T, in), spans of (first token, end, place of A among the pairs or -1, scale) → (T, out)."""
        ctx.save_for_backward(x, weight, *pairs)
        ctx.spans = spans
        y = x.new_empty(len(x), len(weight))
        for start, stop, place, scale in spans:
            merged = weight if place < 0 else torch.addmm(weight, pairs[place + 1], pairs[place], alpha=scale)
            if bias is None:
                torch.mm(x[start:stop], merged.t(), out=y[start:stop])
            else:
                torch.addmm(bias, x[start:stop], merged.t(), out=y[start:stop])
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, if it needs one, and of each A and B."""
        x, weight, *pairs = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        to_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        to_pairs: list[Tensor | None] = [None] * len(pairs)
        for start, stop, place, scale in ctx.spans:
            own, inputs, merged = gradient[start:stop], x[start:stop], weight
            if place >= 0:
                a, b = pairs[place], pairs[place + 1]
                to_pairs[place], to_pairs[place + 1] = to_update(inputs, own, a, b, scale)
                merged = torch.addmm(weight, b, a, alpha=scale)
            if to_x is not None:
                torch.mm(own, merged, out=to_x[start:stop])
        return to_x, None, None, None, *to_pairs
