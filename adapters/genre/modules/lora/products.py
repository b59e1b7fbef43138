"""The products of low-rank layers, with gradients written out: fewer passes over the tokens than their parts would take.

Owns: autograd functions of frozen weights W and trained A (r, in), B (out, r). Ignores: modules, which linears are adapted.

    FusedLora.apply(x, W, bias, [(0, T, 0, s)], A, B)     x (W + s B A)ᵀ     with the merged weight, made twice and never kept
    AddUpdate.apply(y, x, A, B, s)                        y + s x Aᵀ Bᵀ      for a base whose weight cannot be merged

The rank is the number of rows of every small product, never of columns: there the processor's libraries are up to ten times
slower.
"""

from typing import Any

import torch
from torch import Tensor

FEW_TOKENS = 5
"""Tokens up to which a product x Wᵀ of float32 is faster as (W xᵀ)ᵀ: a user who comes back with an event or two."""


class FusedLora(torch.autograd.Function):
    """One product with the merged weight instead of three with its parts, for each slice of the tokens its own update."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, spans: list[tuple[int, int, int, float]], *pairs: Tensor
    ) -> Tensor:
        """X (…, in) with T tokens; spans of (first token, end, index of A among the pairs or -1, scale) → (…, out)."""
        ctx.save_for_backward(x, weight, *pairs)
        ctx.spans = spans
        flat = x.reshape(-1, x.shape[-1])
        found = x.new_empty(*x.shape[:-1], len(weight))  # autograd lets nobody change a view that is returned, as OLMo does
        y = found.view(len(flat), -1)
        for start, stop, index, scale in spans:
            merged = weight if index < 0 else torch.addmm(weight, pairs[index + 1], pairs[index], alpha=scale)
            if bias is None:
                torch.mm(flat[start:stop], merged.t(), out=y[start:stop])
            else:
                torch.addmm(bias, flat[start:stop], merged.t(), out=y[start:stop])
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, if it needs one, and of each A and B."""
        x, weight, *pairs = ctx.saved_tensors
        flat, gradient = x.reshape(-1, x.shape[-1]), gradients[0].reshape(-1, len(weight)).contiguous()
        to_x = torch.empty_like(flat) if ctx.needs_input_grad[0] else None
        to_pairs: list[Tensor | None] = [None] * len(pairs)
        for start, stop, index, scale in ctx.spans:
            own, merged = gradient[start:stop], weight
            if index >= 0:
                a, b = pairs[index : index + 2]
                to_pairs[index : index + 2] = update_gradients(flat[start:stop], own, b.t() @ own.t(), a, scale)
                merged = torch.addmm(weight, b, a, alpha=scale)
            if to_x is not None:
                torch.mm(own, merged, out=to_x[start:stop])
        return None if to_x is None else to_x.view_as(x), None, None, None, *to_pairs


class AddUpdate(torch.autograd.Function):
    """y + s x Aᵀ Bᵀ in one pass over y."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Y (…, out), x (…, in) → (…, out)."""
        ctx.save_for_backward(x, a, b)
        ctx.scale = scale
        flat = x.reshape(-1, a.shape[1])
        found = y.new_empty(y.shape)
        torch.addmm(y.reshape(len(flat), -1), (a @ flat.t()).t(), b.t(), alpha=scale, out=found.view(len(flat), -1))
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of y, of x, if it needs one, of A and of B."""
        x, a, b = ctx.saved_tensors
        gradient, flat = gradients[0].reshape(-1, len(b)), x.reshape(-1, a.shape[1])
        narrow = b.t() @ gradient.t()
        to_x = (narrow.t() @ a).mul_(ctx.scale).view_as(x) if ctx.needs_input_grad[1] else None
        return gradients[0], to_x, *update_gradients(flat, gradient, narrow, a, ctx.scale), None


def update_gradients(x: Tensor, gradient: Tensor, narrow: Tensor, a: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Gradients of A (r, in) and B (out, r).

    Args:
        x: (T, in) the input.
        gradient: (T, out) that of the output.
        narrow: (r, T), Bᵀ times the gradient.
        a: (r, in).
        scale: Of the update.
    """
    to_a = narrow @ x
    to_b = ((a @ x.t()) @ gradient).t()
    return to_a.mul_(scale), to_b.mul_(scale)


def few_tokens(x: Tensor) -> bool:
    """True if x (…, in) has so few tokens that a product with a frozen weight is faster with the weight on the left."""
    return 1 < x.numel() // x.shape[-1] <= FEW_TOKENS and x.device.type == "cpu" and x.dtype == torch.float32


def multiply_few(x: Tensor, weight: Tensor) -> Tensor:
    """X Wᵀ of few tokens x (…, in) and W (out, in) → (…, out), up to twice as fast as a linear's own product."""
    return torch.mm(weight, x.reshape(-1, x.shape[-1]).t()).t().reshape(*x.shape[:-1], -1)
