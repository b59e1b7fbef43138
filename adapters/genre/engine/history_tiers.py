"""Where states of histories lie: memory of the device, pinned memory of the host, files.

Owns: what a tier's bytes are, the way of a buffer in and out of it. Ignores: whose state it is, which one leaves.

    tier = DiskTier(Path("/var/tmp"), 2**30)
    charge = tier.charge(buffer.numel())
    held = tier.keep(buffer, beside=2048)
    buffer = tier.bring(held)
    tier.release(held)
"""

import shutil
import uuid
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from genre.engine.history_arena import Arena, Block
from genre.errors import DiskError, InputError
from genre.files import atomic, check_writable

ENTRY_BYTES = 2304
"""Memory of an entry beside its tensors: its key, its place in the tables, what the allocator adds."""
PREFIX = "genre-history-"
LOCK = ".lock"
BLOCK = 4096


class Tier:
    """A place for buffers, of so many bytes; as it stands here, memory of a device, by that device's own allocator.

    Attributes:
        name: device, host or disk.
        capacity: Bytes.
    """

    name = "device"

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity

    def charge(self, size: int) -> int:
        """Bytes of the tier that a buffer of so many takes."""
        return size + ENTRY_BYTES

    def room(self, size: int, beside: int) -> Tensor | None:
        """Memory to fill, of so many bytes, that `keep` takes as it is; None if there is no place, or no such memory.

        Here and below, `beside` are the bytes that entries, the new one among them, take outside of their buffers.
        """
        return None

    def fits(self, buffer: Tensor, beside: int) -> bool:
        """True if there is a place for a buffer beside what the tier holds."""
        return True

    def keep(self, buffer: Tensor, beside: int) -> Any:
        """Take a buffer in that fits; a `DiskError` if a disk does not take it."""
        return buffer

    def bring(self, held: Any) -> Tensor | None:
        """A buffer as it was kept, on the device; None if it is there no more."""
        return held

    def lower(self, held: Any) -> Tensor:
        """A buffer where it lies, for the tier below."""
        return held

    def release(self, held: Any) -> None:
        """Let a buffer go."""

    def close(self) -> None:
        """Leave nothing behind."""


class MemoryTier(Tier):
    """Memory of the process, for states of a base on the processor."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._arena = Arena(max(1, capacity))

    def room(self, size: int, beside: int) -> Tensor | None:
        """See `Tier`."""
        return self._arena.take(size, self.capacity - beside)

    def fits(self, buffer: Tensor, beside: int) -> bool:
        """See `Tier`."""
        return self._arena.holds(buffer) or self._arena.fits(buffer.numel(), self.capacity - beside)

    def keep(self, buffer: Tensor, beside: int) -> Block:
        """See `Tier`."""
        if not self._arena.holds(buffer):
            room = self.room(buffer.numel(), beside)
            assert room is not None  # it fits
            buffer = room.copy_(buffer)
        return self._arena.keep(buffer)

    def bring(self, held: Block) -> Tensor | None:
        """See `Tier`."""
        return self._arena.view(held)

    def lower(self, held: Block) -> Tensor:
        """See `Tier`."""
        return self._arena.view(held)

    def release(self, held: Block) -> None:
        """See `Tier`."""
        self._arena.release(held)


@dataclass(frozen=True)
class _Pinned:
    buffer: Tensor
    copied: Any


class HostTier(Tier):
    """Pinned memory beside a device with streams, as CUDA has: copies run beside what it computes, in a stream of their own.

    Raises:
        InputError: The device has no streams.
    """

    name = "host"

    def __init__(self, capacity: int, device: torch.device) -> None:
        super().__init__(capacity)
        self.device = device
        self._module = torch.get_device_module(device)
        if not hasattr(self._module, "Stream"):
            todo = "leave the bytes of pinned memory out"
            raise InputError("host memory of the history cache", got=device.type, expected="a CUDA device", todo=todo)
        self._stream = self._module.Stream(device)

    def charge(self, size: int) -> int:
        """See `Tier`. PyTorch rounds pinned blocks up to a power of two."""
        return (1 << max(0, size - 1).bit_length()) + ENTRY_BYTES

    def keep(self, buffer: Tensor, beside: int) -> _Pinned:
        """See `Tier`."""
        pinned = torch.empty(buffer.shape, dtype=buffer.dtype, pin_memory=True)
        self._stream.wait_stream(self._module.current_stream(self.device))  # it may be written yet
        with self._module.stream(self._stream):
            pinned.copy_(buffer, non_blocking=True)
            copied = self._module.Event()
            copied.record(self._stream)
        buffer.record_stream(self._stream)  # or its memory would be given away before it is read
        return _Pinned(pinned, copied)

    def bring(self, held: _Pinned) -> Tensor | None:
        """See `Tier`."""
        self._module.current_stream(self.device).wait_event(held.copied)
        return held.buffer.to(self.device, non_blocking=True)

    def lower(self, held: _Pinned) -> Tensor:
        """See `Tier`."""
        held.copied.synchronize()
        return held.buffer


class DiskTier(Tier):
    """Files in a private folder, which goes with the process; a folder that a killed process left is removed at the next start.

    Args:
        folder: Where the private folder is made; created if it is not there.
        capacity: Bytes of files.
        device: Where buffers are brought to.

    Raises:
        InputError: The folder cannot be written.
    """

    name = "disk"

    def __init__(self, folder: Path, capacity: int, device: torch.device) -> None:
        super().__init__(capacity)
        self.device = device
        check_writable(folder / PREFIX, "the folder of the history cache")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            got = f"{folder}: {error.strerror}"
            raise InputError("the folder of the history cache cannot be made", got=got, expected="a folder") from None
        remove_left(folder)
        self.folder = folder / f"{PREFIX}{uuid.uuid4().hex}"
        lock = FileLock(folder / f".{self.folder.name}{LOCK}")
        lock.acquire()  # before there is a folder, which nobody may take for one that was left
        self.folder.mkdir(mode=0o700)
        self._made = 0
        self._remove = weakref.finalize(self, _remove, self.folder, lock)  # at the end of the process too

    def charge(self, size: int) -> int:
        """See `Tier`."""
        return -(-(size + BLOCK) // BLOCK) * BLOCK

    def keep(self, buffer: Tensor, beside: int) -> Path:
        """See `Tier`."""
        self._made += 1
        path = self.folder / f"{self._made}.safetensors"
        with atomic(path, durable=False) as aside:
            try:
                save_file({"states": buffer.cpu()}, aside)
            except SafetensorError as error:
                raise DiskError(f"{path} cannot be written", got=str(error), todo="free some space") from None
        return path

    def bring(self, held: Path) -> Tensor | None:
        """See `Tier`."""
        try:
            return load_file(held)["states"].to(self.device)
        except (OSError, SafetensorError, KeyError):
            return None

    def release(self, held: Path) -> None:
        """See `Tier`."""
        held.unlink(missing_ok=True)

    def close(self) -> None:
        """See `Tier`."""
        self._remove()


def tiers_of(device: torch.device, capacity: int, host: int, disk: Path | None, disk_bytes: int) -> list[Tier]:
    """The tiers of a device, the fastest first."""
    tiers: list[Tier] = [MemoryTier(capacity + host) if device.type == "cpu" else Tier(capacity)]
    if host and device.type != "cpu":
        tiers.append(HostTier(host, device))
    if disk is not None:
        tiers.append(DiskTier(disk, disk_bytes, device))
    return tiers


def remove_left(folder: Path) -> int:
    """Remove private folders in a folder whose process has ended; return how many."""
    removed = 0
    for path in folder.glob(f".{PREFIX}*{LOCK}"):
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):  # a living process', or another user's
            continue
        _remove(folder / path.name.removeprefix(".").removesuffix(LOCK), lock)
        removed += 1
    return removed


def _remove(folder: Path, lock: FileLock) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
