"""Where a run stands, its random numbers, and what a finished one holds."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genre.training.assembly import Assembly


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

    @property
    def stale(self) -> int:
        """Epochs since the best validated one; 0 where nothing was validated."""
        return 0 if self.best_value is None else self.epoch - 1 - self.best_epoch


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
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))):
        return int(found[1]) * 1024
    import resource  # counts what the process had before it became Python, too

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak_memory(device: torch.device) -> None:
    """Let the peak begin at what is in use now; only Linux can do that for a process, elsewhere nothing changes."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


class Stream:
    """One run's own random numbers while several runs draw in turn: each draws what it would draw alone.

    Args:
        device: Of the base; on CUDA its generator is kept too.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._host: Tensor
        self._device: Tensor | None = None
        self.keep()

    def keep(self) -> None:
        """Remember torch's present random state as this run's."""
        self._host = torch.get_rng_state()
        self._device = torch.cuda.get_rng_state() if self.cuda else None

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """A block that draws from this run's numbers."""
        torch.set_rng_state(self._host)
        if self._device is not None:
            torch.cuda.set_rng_state(self._device)
        try:
            yield
        finally:
            self.keep()
