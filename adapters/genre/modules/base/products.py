"""Products of tokens with a weight, y = x Wᵀ, by torch's own choice or, if asked for, by oneDNN.

Owns: which library that is, token counts that repeat, a linear that uses it, its gradients. Ignores: adapters, what the weights
belong to.

Torch multiplies float32 matrices on a CPU with MKL. On an AMD processor with AVX-512 oneDNN, which torch brings along too, is
quicker (`docs/decisions/products-on-a-cpu.md`); the environment variable `GENRE_PRODUCTS=onednn` asks for it. bfloat16 matrices
are its own in any case. It keeps a kernel for every shape, half a megabyte each, so a base whose products it takes lays its
tokens out in counts that repeat (`even`).
"""

import os
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genre.errors import InputError

SETTING = "GENRE_PRODUCTS"
"""Environment variable: `onednn`, or `torch`, which is also the default."""
LEAST = 2**22
"""Multiplications from which oneDNN is worth its preparation, about a millisecond for each new shape."""


def even(tokens: int) -> int:
    """The least count of at least so many tokens that repeats: a multiple of 16, or one of sixteen between powers of two."""
    step = 1 << max(4, tokens.bit_length() - 5)
    return -(-tokens // step) * step


@cache
def library() -> Literal["onednn", "torch"]:
    """What multiplies large float32 matrices on this CPU.

    Raises:
        InputError: The environment asks for something else, or for what this torch does not have.
    """
    wanted = os.environ.get(SETTING) or "torch"
    if wanted not in ("onednn", "torch"):
        raise InputError(f"environment variable {SETTING}", got=wanted, expected="torch or onednn")
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    if wanted == "onednn" and not there:
        raise InputError(f"environment variable {SETTING}", got=wanted, expected="torch: this build has no oneDNN")
    return "onednn" if wanted == "onednn" else "torch"


def to_onednn(x: Tensor, weight: Tensor, tokens: int) -> bool:
    """Whether the product x Wᵀ goes to oneDNN; one of its three sizes is a number of tokens."""
    return (
        x.numel() * len(weight) >= LEAST
        and even(tokens) == tokens
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and library() == "onednn"
    )


def times(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, tokens: int | None = None) -> Tensor:
    """X (…, in), weight (out, in), bias (out,) → (…, out), where no gradient is recorded, as in autograd's functions.

    `tokens` says how many there are where x is not theirs, but (r, in) or (r, tokens).
    """
    if not to_onednn(x, weight, tokens or x.shape[:-1].numel()):
        return F.linear(x, weight, bias)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


class Product(torch.autograd.Function):
    """`times` with its gradients; of x alone where the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """X (…, in), weight (out, in), bias (out,) → (…, out)."""
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return times(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what needs one."""
        x, weight = ctx.saved_tensors
        to_x, to_weight, to_bias = ctx.needs_input_grad
        flat = gradients[0].reshape(-1, len(weight))
        return (
            times(gradients[0], weight.t()) if to_x else None,
            flat.t() @ x.reshape(len(flat), -1) if to_weight else None,
            flat.sum(0) if to_bias else None,
        )


class Linear(nn.Linear):
    """A linear with the weight and the bias of torch's own."""

    def __init__(self, stock: nn.Linear) -> None:
        super().__init__(stock.in_features, stock.out_features, bias=stock.bias is not None, device="meta")
        self.weight, self.bias = stock.weight, stock.bias
        self.train(stock.training)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        if to_onednn(x, self.weight, x.shape[:-1].numel()):
            return Product.apply(x, self.weight, self.bias)
        return super().forward(x)


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a linear whose weight is a matrix of numbers, neither quantized nor another library's."""
    return type(module) in (nn.Linear, Linear)
