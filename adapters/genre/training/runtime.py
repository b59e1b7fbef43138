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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from genre.data.sequences.transfer import DIRECT


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
        devices: Those that the base is on; their generators are kept beside the CPU's.
    """

    def __init__(self, *devices: torch.device) -> None:
        self.devices = devices
        self._host: Tensor
        self._there: dict[str, Tensor]
        self.capture()

    def capture(self) -> None:
        """Take torch's present random state as this run's."""
        self._host = torch.get_rng_state()
        self._there = random_states(self.devices)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """A block that draws from this run's numbers."""
        torch.set_rng_state(self._host)
        set_random_states(self._there)
        try:
            yield
        finally:
            self.capture()


def random_states(devices: Iterable[torch.device]) -> dict[str, Tensor]:
    """The states of the generators of accelerators, by device, on the CPU."""
    return {str(each): torch.get_device_module(each).get_rng_state(each) for each in devices if each.type not in DIRECT}


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Set what `random_states` gave."""
    for name, state in states.items():
        torch.get_device_module(name).set_rng_state(state.cpu(), torch.device(name))


@contextmanager
def same_random_states(devices: Iterable[torch.device]) -> Iterator[None]:
    """A block after which the generators of the CPU and of some devices are as they were."""
    host, there = torch.get_rng_state(), random_states(devices)
    try:
        yield
    finally:
        torch.set_rng_state(host)
        set_random_states(there)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak resident memory of the process, or peak allocated memory of an accelerator, in bytes."""
    if device.type not in DIRECT:
        return int(torch.get_device_module(device).max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))):
        return int(found[1]) * 1024
    import resource  # counts what the process had before it became Python, too

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak_memory(device: torch.device) -> None:
    """Let the peak begin at what is in use now; only Linux can do that for a process, elsewhere nothing changes."""
    if device.type not in DIRECT:
        torch.get_device_module(device).reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
