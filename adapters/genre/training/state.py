"""Where a run stands, and what a finished one holds."""

from dataclasses import dataclass, field
from typing import Any

import torch

from genre.assembly import Assembly


@dataclass
class State:
    """Where a run stands; what a checkpoint holds beside weights and optimizer."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    targets: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_value: float | None = None
    best_epoch: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Fitted:
    """A finished loop: the model holds its best weights.

    Attributes:
        state: Counters and the validation history.
        peak_memory_bytes: Of the process on the CPU, of the device on CUDA.
    """

    assembly: Assembly
    state: State
    peak_memory_bytes: int


def peak_memory_bytes(device: torch.device) -> int:
    """Peak resident memory of the process, or peak allocated memory of a CUDA device, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
