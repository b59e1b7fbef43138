"""Linears whose products oneDNN computes, on processors where it is faster in float32 than MKL, torch's own choice.

Owns: such a linear, and the block in which a model has them. Ignores: adapters, training, what is measured (`precision`).

MKL leaves half of an AMD processor's vector width unused; oneDNN does not, but it builds a kernel, of more than half a megabyte,
in milliseconds, for each number of rows. So rows go in pieces whose numbers repeat; there
are no more than thirteen kernels for a linear:

    613 rows  ->  512 + 64 + 40, of which the last has 37 rows and zeros below
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genre.modules.base.precision import LEAST_GAIN, onednn_gain
from genre.modules.lora.products import few_tokens, multiply_few
from genre.unpromised import execution_device, onednn_linear

MOST, FEWEST = 2048, 8
"""Rows of the largest and of the smallest piece."""
SHORTEST, STEP = 64, 8
"""Rows up to which the last piece is filled up to a multiple of `STEP`, rather than split."""
SMALLEST = 2**16
"""Values of a weight below which nothing is gained."""


class SplitLinear(nn.Linear):
    """A frozen linear with the weights of another; torch's own product where a gradient is asked for."""

    def __init__(self, stock: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features = stock.in_features
        self.out_features = stock.out_features
        self.weight = stock.weight
        self.bias = stock.bias

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) → (…, out)."""
        rows = x.shape[:-1].numel()
        if rows == 1 or (torch.is_grad_enabled() and x.requires_grad):
            return F.linear(x, self.weight, self.bias)
        weight, bias = self.weight.detach(), getattr(self, "bias", None)
        if bias is None and few_tokens(x):
            return multiply_few(x, weight)
        found = [onednn_linear(piece, weight, bias) for piece in pieces(x.reshape(rows, -1))]
        whole = found[0] if len(found) == 1 else torch.cat(found)
        return whole[:rows].view(*x.shape[:-1], -1)


def pieces(x: Tensor) -> list[Tensor]:
    """(n, d) cut into parts of 2^k rows, at most `MOST`; the last one, of at most `SHORTEST`, is filled up with zeros."""
    found, at, left = [], 0, len(x)
    size = MOST
    while left > SHORTEST:
        while size > left:
            size //= 2
        found.append(x[at : at + size])
        at, left = at + size, left - size
    if left:
        size = FEWEST if left <= FEWEST else -(-left // STEP) * STEP
        found.append(x[at:] if size == left else F.pad(x[at:], (0, 0, 0, size - left)))
    return found


@contextmanager
def split_linears(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """A block in which some linears of a model are such ones, where they are faster on this machine (mutates the model).

    Those of another type, precision or device, small ones, and those whose weights accelerate moves stay as they are.
    """
    stock = {name: module for name in names if _can_split(module := model.get_submodule(name))}
    if stock and onednn_gain() < LEAST_GAIN:
        stock = {}
    for name, module in stock.items():
        model.set_submodule(name, SplitLinear(module))
    try:
        yield
    finally:
        for name, module in stock.items():
            model.set_submodule(name, module)


def _can_split(module: nn.Module) -> TypeGuard[nn.Linear]:
    if type(module) is not nn.Linear or execution_device(module) is not None:
        return False
    weight = module.weight
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.numel() >= SMALLEST
