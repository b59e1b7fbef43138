"""The bytes of the tensors that live at one time, on any device, `meta` among them, where a tensor has a size and no memory.

Owns: counting. Ignores: what is computed.

    with LiveTensors() as live:
        model(batch).backward()
    live.peak            # bytes, of tensors made in the block
"""

import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

from torch import Tensor

from genre.unpromised import observing


class LiveTensors:
    """A block that counts the bytes of what is made in it; memory that several tensors share counts once.

    What an operator takes and gives back within itself is not seen.

    Attributes:
        now: Bytes of what lives.
        peak: Their most so far.
        made: Bytes of all that was made so far, whether it lives or not.
    """

    def __init__(self) -> None:
        self.now = 0
        self.peak = 0
        self.made = 0
        self._known: dict[int, Any] = {}
        self._block = ExitStack()

    def __enter__(self) -> Self:
        self._block.enter_context(observing(self._see))
        return self

    def __exit__(self, *_: object) -> None:
        self._block.close()

    def forget(self, tensors: Any) -> None:
        """Leave out what was there before."""
        for tensor in _tensors(tensors):
            self._known.setdefault(id(tensor.untyped_storage()), tensor)

    def _see(self, found: Any) -> None:
        for tensor in _tensors(found):
            storage = tensor.untyped_storage()
            key, size = id(storage), storage.nbytes()
            if key not in self._known:
                self._known[key] = weakref.ref(storage, partial(self._end, key, size))
                self.now += size
                self.made += size
        self.peak = max(self.peak, self.now)

    def _end(self, key: int, size: int, _: object) -> None:
        if self._known.pop(key, None) is not None:
            self.now -= size


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, list | tuple):
        for each in found:
            yield from _tensors(each)
