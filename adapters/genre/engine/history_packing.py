"""States of a history as one buffer: tensors laid out one after the other, in the type that they are stored in.

Owns: the layout, the storage types, their loss. Ignores: what the tensors mean, where the buffer lies.

    layout = lay_out((keys, values), "int8")    # bytes: a quarter of float32's, and a scale of 4 for each vector of the last axis
    pack((keys, values), layout, buffer)        # (layout.size,) uint8
    keys, values = unpack(buffer, layout)       # the shapes and types that were packed, on the device of the buffer

One buffer for an entry, since thirty layers are sixty tensors: one allocation, one copy between memories, one file.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

Storage = Literal["auto", "float32", "bfloat16", "int8"]
STORAGES: tuple[str, ...] = get_args(Storage)
ALIGNED = 64
"""Bytes: each part begins at a multiple, as processors load vectors."""
LARGEST = 127


@dataclass(frozen=True)
class Part:
    """One tensor of a buffer.

    Attributes:
        dtype, shape: Of the tensor.
        stored: The type of its values in the buffer.
        start: The first byte of its values.
        scales: The first byte of its scales, float32 and one for each vector of the last axis; None without.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    stored: torch.dtype
    start: int
    scales: int | None = None


@dataclass(frozen=True)
class Layout:
    """The parts of a buffer, and its bytes."""

    parts: tuple[Part, ...]
    size: int


def lay_out(tensors: Sequence[Tensor], storage: Storage) -> Layout:
    """Lay tensors out.

    Args:
        tensors: Any shapes; tensors that are not floating-point are stored as they are.
        storage: `auto` keeps types; `float32` and `bfloat16` round to them where they are smaller; `int8` rounds each vector
            of the last axis to 255 steps of its largest value.
    """
    return _lay_out(tuple((each.dtype, tuple(each.shape)) for each in tensors), storage)


def pack(tensors: Sequence[Tensor], layout: Layout, buffer: Tensor) -> None:
    """Write tensors into a buffer.

    Args:
        tensors: Those that were laid out.
        layout: Their layout.
        buffer: (bytes,) uint8 on their device, of the layout's size.
    """
    for tensor, part in zip(tensors, layout.parts, strict=True):
        values = _view(buffer, part.start, part.stored, part.shape)
        if part.scales is None:
            values.copy_(tensor.detach())
            continue
        exact = tensor.detach().float()
        scales = _view(buffer, part.scales, torch.float32, (*part.shape[:-1], 1))
        # A vector of zeros has any scale; one that is not finite keeps a scale that is not, and stays so.
        scales.copy_(exact.abs().amax(-1, keepdim=True).div_(LARGEST).clamp_min_(torch.finfo(torch.float32).tiny))
        values.copy_(exact.div(scales).round_())


def unpack(buffer: Tensor, layout: Layout) -> tuple[Tensor, ...]:
    """Return the tensors that were packed; views of the buffer where nothing was converted, so nobody may write into them."""
    return tuple(_read(buffer, part) for part in layout.parts)


def _read(buffer: Tensor, part: Part) -> Tensor:
    values = _view(buffer, part.start, part.stored, part.shape)
    if part.scales is None:
        return values.to(part.dtype)
    return (values * _view(buffer, part.scales, torch.float32, (*part.shape[:-1], 1))).to(part.dtype)


def _view(buffer: Tensor, start: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return buffer[start : start + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)


@lru_cache(maxsize=1024)
def _lay_out(tensors: tuple[tuple[torch.dtype, tuple[int, ...]], ...], storage: Storage) -> Layout:
    """Lay tensors of these types and shapes out."""
    parts, end = [], 0
    for dtype, shape in tensors:
        stored = _stored(dtype, shape, storage)
        start, end = end, aligned(end + math.prod(shape) * stored.itemsize)
        scales = None
        if stored is torch.int8 and dtype is not torch.int8:
            scales, end = end, aligned(end + math.prod(shape[:-1]) * torch.float32.itemsize)
        parts.append(Part(dtype, shape, stored, start, scales))
    return Layout(tuple(parts), end)


def _stored(dtype: torch.dtype, shape: tuple[int, ...], storage: Storage) -> torch.dtype:
    """The type that a tensor is stored in: never a larger one than its own."""
    if storage == "auto" or not dtype.is_floating_point:
        return dtype
    if storage == "int8":
        # Scales of short vectors would take more than the values save.
        return torch.int8 if shape and shape[-1] >= 8 and math.prod(shape) > 0 else dtype
    wanted = torch.float32 if storage == "float32" else torch.bfloat16
    return wanted if wanted.itemsize < dtype.itemsize else dtype


def aligned(size: int) -> int:
    """The next multiple of `ALIGNED`."""
    return -(-size // ALIGNED) * ALIGNED
