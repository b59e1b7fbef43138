"""Products of tokens with a weight, y = x Wᵀ, by torch's own choice or, if asked for, by oneDNN.

Owns: which library that is, a linear that uses it, its gradients. Ignores: adapters, what the weights belong to.

Torch multiplies float32 matrices on a CPU with MKL. On an AMD processor with AVX-512 oneDNN, which torch brings along too, is
quicker, but it keeps a kernel for every shape, and with them memory that grows by a GB and more in a run whose batches differ in
length (`docs/decisions/products-on-a-cpu.md`). So it has to be asked for, by the environment variable `GENRE_PRODUCTS=onednn`.
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


def to_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether the product x Wᵀ goes to oneDNN."""
    return (
        x.numel() * len(weight) >= LEAST
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and library() == "onednn"
    )


def times(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """X (…, in), weight (out, in), bias (out,) → (…, out), where no gradient is recorded, as in autograd's functions."""
    if not to_onednn(x, weight):
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
        return Product.apply(x, self.weight, self.bias) if to_onednn(x, self.weight) else super().forward(x)


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a linear whose weight is a matrix of numbers, neither quantized nor another library's."""
    return type(module) in (nn.Linear, Linear)
