"""Memory of a process for blocks of any size, never more than its bound.

Owns: one mapping, which blocks of it are free. Ignores: what is in them, who has to leave for a new one.

    arena = Arena(2**30)
    tensor = arena.take(9 * 2**20)              # (bytes,) uint8; None if no gap is large enough
    block = arena.keep(tensor)                  # two numbers, by which it stays without a tensor
    tensor = arena.view(block)
    arena.release(block)                        # free once nobody has a tensor of it either

An allocator's memory grows beyond what was asked of it where states of every size come and go, by a sixth as measured. One that
gives each block back to the system pays for its pages anew, several times what writing into them takes.
"""

import mmap
import os
import weakref
from bisect import bisect
from collections import deque

import torch
from torch import Tensor

from genre.engine.history_packing import ALIGNED, aligned
from genre.errors import InputError

Block = tuple[int, int]
"""The first byte of a block in its arena, and its bytes."""


class Arena:
    """Blocks of one mapping, the first gap that is large enough; memory is taken from the system when it is first written.

    Args:
        size: Bytes; at least 1.

    Raises:
        InputError: The system has no such memory.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if size > machine:
            got = f"{size:,} bytes"
            raise InputError("the memory of the history cache", got=got, expected=f"at most the machine's {machine:,}")
        try:
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError, ValueError) as error:
            got = f"{size:,} bytes: {error}"
            raise InputError("the memory of the history cache", got=got, expected="memory that is free") from None
        self._first = torch.frombuffer(self._map, dtype=torch.uint8, count=1).data_ptr()
        self._gaps = [(0, size)]  # of (start, end), in order
        self._written = 0
        self._uses: dict[int, int] = {}  # tensors and `keep`s of the block that starts there
        # Tensors end in whatever thread lets go of them, at any point of its code: they wait here for the next `take`.
        self._returned: deque[Block] = deque()

    def take(self, size: int, limit: int | None = None) -> Tensor | None:
        """A block of memory with any content; None if there is no gap of its size. One thread at a time.

        Args:
            size: Its bytes.
            limit: The block ends below so many bytes from the start; None for the arena's end.
        """
        self._settle()
        needed = max(ALIGNED, aligned(size))
        index = self._find(needed, limit)
        if index is None:
            return None
        start, end = self._gaps[index]
        if start + needed == end:
            del self._gaps[index]
        else:
            self._gaps[index] = (start + needed, end)
        self._written = max(self._written, start + needed)
        self._uses[start] = 0
        return self.view((start, size))

    def view(self, block: Block) -> Tensor:
        """(bytes,) uint8 a block that is kept; it is not free before the tensor and those made of it are gone."""
        start, size = block
        self._uses[start] += 1
        view = memoryview(self._map)[start : start + size]
        weakref.finalize(view, self._returned.append, block).atexit = False
        return torch.frombuffer(view, dtype=torch.uint8)  # which holds the view, as every tensor made of it does

    def keep(self, tensor: Tensor) -> Block:
        """Keep the block of a tensor that `take` or `view` gave, until it is released."""
        block = tensor.data_ptr() - self._first, tensor.numel()
        self._uses[block[0]] += 1
        return block

    def release(self, block: Block) -> None:
        """Let a block go that was kept."""
        self._returned.append(block)

    def fits(self, size: int, limit: int | None = None) -> bool:
        """True if `take` would find a block."""
        self._settle()
        return self._find(max(ALIGNED, aligned(size)), limit) is not None

    def holds(self, block: Tensor) -> bool:
        """True if a block is one of these."""
        return self._first <= block.data_ptr() < self._first + self.size

    def _find(self, size: int, limit: int | None) -> int | None:
        last = self.size if limit is None else min(limit, self.size)
        for index, (start, end) in enumerate(self._gaps):
            if start + size > last:
                return None
            if start + size <= end:
                return index
        return None

    def _settle(self) -> None:
        """Make gaps of the blocks that nobody has any more; without a block left the memory goes back to the system."""
        while self._returned:
            start, size = self._returned.popleft()
            self._uses[start] -= 1
            if self._uses[start]:
                continue
            del self._uses[start]
            end = start + max(ALIGNED, aligned(size))
            index = bisect(self._gaps, (start, end))
            if index < len(self._gaps) and self._gaps[index][0] == end:
                end = self._gaps.pop(index)[1]
            if index and self._gaps[index - 1][1] == start:
                index -= 1
                start = self._gaps.pop(index)[0]
            self._gaps.insert(index, (start, end))
        if self._written and self._gaps == [(0, self.size)]:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._written = 0
