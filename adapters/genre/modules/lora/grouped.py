"""Products of rows that are sorted by their adapter slot with every slot's weights where they lie: nothing is gathered.

Owns: which inputs PyTorch's grouped products take, and when they are worth it. Ignores: what the weights are of.

    x (T, in), tokens of slot 0, then of slot 1, …; W (S, in, out); ends (S,)     y[t] = x[t] W[slot of t]

A batched product needs a copy of its slot's weights for every row. On a CPU that is the faster way all the same, and on CUDA
devices older than Hopper a grouped product is a loop over groups that waits for the device.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

ALIGNMENT = 16
"""Bytes that every stride but the last one's, and every address, is a multiple of."""
CAPABILITIES = (9, 10)
"""Major versions of CUDA devices for which PyTorch has a kernel."""
WORTH = 16
"""A gathered copy is not worth avoiding while it has less than this share of the input's bytes."""


def fits(sizes: Iterable[int], dtype: torch.dtype) -> bool:
    """Return whether matrices of these widths can be multiplied in groups."""
    return all(size * dtype.itemsize % ALIGNMENT == 0 for size in sizes)


def worth(x: Tensor, copied: int) -> bool:
    """Return whether a grouped product beats a batched one whose gathered weights take so many bytes."""
    if x.device.type != "cuda" or x.dtype != torch.bfloat16 or x.requires_grad:
        return False
    return torch.cuda.get_device_capability(x.device)[0] in CAPABILITIES and WORTH * copied >= x.nbytes


def multiply(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """(T, in) sorted tokens, (S, in, out) and (S,) int32, where each slot's tokens end → (T, out)."""
    return F.grouped_mm(x, weights, offs=ends)
