"""The process that a run trains in: Ctrl-C, torch's random numbers, peak memory.

Owns: these three. Ignores: what is trained.

    interrupts = Interrupts()
    with interrupts.noted():
        for step in run:
            step()
            if interrupts.requested:        # between two steps everything is consistent, and can be saved
                save()
"""

import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor


class Interrupts:
    """A deferred Ctrl-C: the first one in a block is noted, the second one raises at once.

    Only the main thread of a process gets signals; in any other thread nothing is noted.

    Args:
        report: Called with a line for the user at the first one.

    Attributes:
        requested: True once the user wants to stop.
    """

    def __init__(self, report: Callable[[str], None] = lambda line: None) -> None:
        self.requested = False
        self.report = report

    @contextmanager
    def noted(self) -> Iterator[None]:
        """A block in which the first Ctrl-C is only noted."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        with suppress(RuntimeError):  # the signal came while a line was being written
            self.report("stopping after this step; Ctrl-C again stops at once")


class RandomStream:
    """One run's own random numbers while several runs draw in turn: each draws what it would draw alone.

    Args:
        device: Of the base; on CUDA its generator is kept too.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._host: Tensor
        self._device: Tensor | None = None
        self.capture()

    def capture(self) -> None:
        """Take torch's present random state as this run's."""
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
            self.capture()


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
