"""What an adapter is to an engine: read, in a lane, or waiting in host memory.

Owns: the values of the tiers and the bounded host tier. Ignores: who decides, threads (the caller holds its lock).

    registry ── read ──► Ready ── put ──► Resident (a lane)
                           ▲                 │ evicted
                           └── host tier ◄───┘   the one used longest ago leaves it
"""

from collections import OrderedDict
from dataclasses import dataclass

from genre.engine.items import ItemSpace
from genre.engine.versions import Loaded
from genre.modules.lora.slot_layers import Place
from genre.modules.lora.slots import Packed


@dataclass(frozen=True)
class Ready:
    """A version with everything that a lane needs: coming back takes a copy, and no file.

    Attributes:
        loaded: Its heads and what its manifest says; without low-rank weights, which are in `packed`.
        packed: The low-rank weights as a slot holds them, on the CPU; None runs on the bare base.
        space: The catalogue as its encoder sees it.
        first: The lowest layer that it adapts; the base's depth for none.
    """

    loaded: Loaded
    packed: Packed | None
    space: ItemSpace
    first: int

    @property
    def digest(self) -> str:
        """Of the version."""
        return self.loaded.digest


@dataclass(eq=False)
class Resident:
    """A version in a lane.

    Attributes:
        loaded, space, first: As in `Ready`.
        place: Its lane; None runs on the bare base.
        users: Requests under way that began with it.
    """

    loaded: Loaded
    space: ItemSpace
    first: int
    place: Place | None
    users: int = 0

    @property
    def digest(self) -> str:
        """Of the version."""
        return self.loaded.digest


class HostTier:
    """At most so many versions that left their lane; the one used longest ago goes first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: OrderedDict[str, Ready] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, digest: object) -> bool:
        return digest in self._held

    def put(self, ready: Ready) -> list[Ready]:
        """Keep a version; those that had to go for it."""
        self._held[ready.digest] = ready
        self._held.move_to_end(ready.digest)
        return [self._held.popitem(last=False)[1] for _ in range(max(len(self._held) - self.most, 0))]

    def take(self, digest: str) -> Ready | None:
        """A version, which is not kept here any longer."""
        return self._held.pop(digest, None)

    def clear(self) -> None:
        """Keep nothing."""
        self._held.clear()

    @property
    def memory_bytes(self) -> int:
        """Bytes of the low-rank weights."""
        return sum(ready.packed.memory_bytes for ready in self._held.values() if ready.packed is not None)
