"""Many adapters on one base in one batch: every row of a batch picks its lane.

Owns: the low-rank weights of all resident adapters, and the slots that they lie in. Ignores: what an adapter is for, where it
comes from, locks.

Lanes live in buckets by rank, so that rank 8 does not pay for rank 64; lane 0 of the engine is the bare base and has no
bucket at all. A slot is one stretch of memory, the weights of all layers one after the other, so that an adapter comes and goes
in one copy. A lane lies on the device of the layer that it serves.

Threads: rows of other adapters may be computed while a slot is written or freed, or a bucket grows: what lies in the slots in
use never changes, and nothing is routed to the others. One thread at a time may `put` and `copy`; any may `erase` meanwhile.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genre.errors import ManifestError
from genre.modules.base.loading import device_of
from genre.modules.lora.layer import linear_shape
from genre.modules.lora.slot_layers import Group, LaneLinear, Place, Routing

SHARING = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("query", "key", "value"))
FEWEST_SLOTS = 4

Low = Mapping[str, tuple[Tensor, Tensor, float]]


@dataclass(frozen=True)
class Packed:
    """An adapter as a slot holds it, ready to be copied there.

    Attributes:
        rank: Its bucket.
        parts: Number of the bucket's device, where in the slot a stretch begins, and the stretch (n,) in the lanes' precision,
            on the CPU. What no stretch covers is zero.
    """

    rank: int
    parts: tuple[tuple[int, int, Tensor], ...]

    @property
    def memory_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(part.numel() * part.element_size() for _, _, part in self.parts)


class Bucket:
    """The slots of one rank on one device: (slots, size) memory, of which the groups hold views."""

    def __init__(self, rank: int, groups: Iterable[Group], layers: Iterable[LaneLinear], device: torch.device) -> None:
        self.rank, self.groups, self.device = rank, [group for group in groups if group.device == device], device
        self.layers = [layer for layer in layers if layer.group.device == device]
        self.starts: dict[Group, int] = {}
        self.size = 0
        for group in self.groups:
            self.starts[group] = self.size
            self.size += group.size(rank)

    def grow(self, memory: Tensor | None, slots: int, dtype: torch.dtype) -> Tensor:
        """More slots with what lies in the present ones; every view is replaced."""
        larger = torch.zeros(slots, self.size, device=self.device, dtype=dtype)
        if memory is not None:
            larger[: len(memory)] = memory
        seconds: dict[Group, list[Tensor]] = {}
        for group, start in self.starts.items():
            group.stacks[self.rank], seconds[group] = group.views(self.rank, larger[:, start : start + group.size(self.rank)])
            group.used.setdefault(self.rank, set())
        for layer in self.layers:
            layer.stacks[self.rank] = seconds[layer.group][layer.member]
        return larger

    def drop(self) -> None:
        """Let go of the memory."""
        for group in self.groups:
            group.stacks.pop(self.rank, None)
        for layer in self.layers:
            layer.stacks.pop(self.rank, None)

    def stretches(self, touched: set[Group]) -> list[tuple[int, int]]:
        """Where in a slot the weights of some groups lie, neighbours as one."""
        found: list[tuple[int, int]] = []
        for group, start in self.starts.items():
            if group in touched:
                end = start + group.size(self.rank)
                if found and found[-1][1] == start:
                    found[-1] = found[-1][0], end
                else:
                    found.append((start, end))
        return found


class Lanes:
    """All lane layers of one base: attach once, then put adapters into slots and take them out.

    Args:
        model: The base's model (mutated: the named linears are replaced until `detach`).
        names: Linears that adapters may target.
        slots: Adapters per bucket at most; a bucket exists while it holds an adapter, and grows as they come.
        dtype: Precision of the low-rank weights.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], *, slots: int, dtype: torch.dtype) -> None:
        self.model, self.slots, self.dtype, self.routing = model, slots, dtype, Routing()
        self.layers: dict[str, LaneLinear] = {}
        self.groups: list[Group] = []
        for members in group_by_input(names):
            linears = [model.get_submodule(name) for name in members]
            shapes = [linear_shape(linear) for linear in linears]
            group = Group(shapes[0][0], [out for _, out in shapes], device_of(linears[0]))
            self.groups.append(group)
            for place, (name, linear) in enumerate(zip(members, linears, strict=True)):
                self.layers[name] = LaneLinear(linear, group, place, self.routing, dtype)
        for name, layer in self.layers.items():
            model.set_submodule(name, layer)
        self.devices = list(dict.fromkeys(group.device for group in self.groups))
        self._buckets: dict[int, list[Bucket]] = {}
        self._memory: dict[int, list[Tensor]] = {}
        self._free: dict[int, list[int]] = {}
        self._taken: dict[Place, list[tuple[int, int, int]]] = {}
        self._left: dict[Place, list[tuple[int, int, int]]] = {}
        self._books = threading.Lock()

    def detach(self) -> None:
        """Put the bare linears back and let go of all lanes."""
        for name, layer in self.layers.items():
            self.model.set_submodule(name, layer.base)
        for place in list(self._taken):
            self.erase(place)

    @torch.no_grad()
    def pack(self, low: Low) -> Packed | None:
        """Lay out an adapter as a slot holds it; None for one without low-rank weights, which runs on the bare base.

        Raises:
            KeyError: It targets a linear that has no lane layer.
            ManifestError: A weight does not fit its linear.
        """
        if not low:
            return None
        rank = bucket(max(a.shape[0] for a, _, _ in low.values()))
        touched = {self.layers[name].group for name in low}
        parts: list[tuple[int, int, Tensor]] = []
        where: dict[Group, Tensor] = {}
        for number, each in enumerate(self._of(rank)):
            for start, end in each.stretches(touched):
                stretch = torch.zeros(end - start, dtype=self.dtype)
                parts.append((number, start, stretch))
                inside = [(group, at) for group, at in each.starts.items() if start <= at < end]
                where |= {group: stretch[at - start : at - start + group.size(rank)] for group, at in inside}
        views = {group: group.views(rank, flat[None]) for group, flat in where.items()}
        for name, (a, b, scale) in low.items():
            group, member = self.layers[name].group, self.layers[name].member
            _check(name, a, b, group.in_features, group.outs[member])
            first, seconds = views[group]
            first[0, member * rank : member * rank + len(a)] = a
            seconds[member][0, : b.shape[1]] = b.t() * scale
        return Packed(rank, tuple(parts))

    @torch.no_grad()
    def put(self, packed: Packed | None) -> Place | None:
        """Copy an adapter into a free slot; it takes no part in any batch until rows are routed there."""
        if packed is None:
            return None
        rank = packed.rank
        stretches = [(number, start, start + len(part)) for number, start, part in packed.parts]
        with self._books:
            if not self._free.get(rank):
                self._grow(rank)
            place, memory = Place(rank, self._free[rank].pop()), self._memory[rank]
            left = self._left.pop(place, [])
            self._taken[place] = stretches
            for group in self._groups_of(place):
                group.used[rank].add(place.slot)
        for number, start, end in left:
            if (number, start, end) not in stretches:
                memory[number][place.slot, start:end].zero_()
        for number, start, part in packed.parts:
            memory[number][place.slot, start : start + len(part)] = part
        return place

    def write(self, low: Low) -> Place | None:
        """`pack` and `put`."""
        return self.put(self.pack(low))

    def copy(self, place: Place | None) -> Packed | None:
        """What lies in a slot, on the CPU."""
        if place is None:
            return None
        parts = [
            (number, start, self._memory[place.rank][number][place.slot, start:end].to("cpu", copy=True))
            for number, start, end in self._taken[place]
        ]
        return Packed(place.rank, tuple(parts))

    def erase(self, place: Place | None) -> None:
        """Free a slot; no running batch may be routed there any more. The last one of a bucket takes its memory along."""
        if place is None:
            return
        with self._books:
            for group in self._groups_of(place):
                group.used[place.rank].discard(place.slot)
            self._left[place] = self._taken.pop(place)
            self._free[place.rank].append(place.slot)
            if not any(other.rank == place.rank for other in self._taken):
                for each in self._buckets[place.rank]:
                    each.drop()
                del self._memory[place.rank], self._free[place.rank]
                self._left = {other: left for other, left in self._left.items() if other.rank != place.rank}

    def route(self, places: Sequence[Place | None]) -> None:
        """Route the rows of the next forward pass; rows of one bucket side by side are the fastest."""
        self.routing.set(places)

    def clear(self) -> None:
        """After a forward pass: route nothing and hold no activations."""
        self.routing.clear()
        for group in self.groups:
            group.forget()

    def memory_bytes(self) -> int:
        """Bytes of all slots."""
        with self._books:
            return sum(each.numel() * each.element_size() for memory in self._memory.values() for each in memory)

    def _of(self, rank: int) -> list[Bucket]:
        if rank not in self._buckets:
            self._buckets[rank] = [Bucket(rank, self.groups, self.layers.values(), device) for device in self.devices]
        return self._buckets[rank]

    def _grow(self, rank: int) -> None:
        memory = self._memory.get(rank)
        now = len(memory[0]) if memory else 0
        slots = min(max(FEWEST_SLOTS, 2 * now), self.slots)
        assert slots > now, "more adapters than slots"
        buckets = self._of(rank)
        self._memory[rank] = [
            each.grow(memory[number] if memory else None, slots, self.dtype) for number, each in enumerate(buckets)
        ]
        self._free.setdefault(rank, []).extend(range(now, slots)[::-1])

    def _groups_of(self, place: Place) -> list[Group]:
        return [
            group
            for number, start, end in self._taken[place]
            for group, at in self._buckets[place.rank][number].starts.items()
            if start <= at < end
        ]


def bucket(rank: int) -> int:
    """The bucket of a rank: the next power of two, at least 2."""
    size = 2
    while size < rank:
        size *= 2
    return size


def group_by_input(names: Sequence[str]) -> list[list[str]]:
    """Put linears that read the same input together, by the names that transformers' attention and MLP blocks use."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        family = next((family for family in SHARING if last in family), (last,))
        groups.setdefault((parent, family), []).append(name)
    return list(groups.values())


def _check(name: str, a: Tensor, b: Tensor, inside: int, outside: int) -> None:
    if a.shape != (b.shape[1], inside) or b.shape[0] != outside:
        raise ManifestError(
            f"adapter weights of {name} do not fit the base", got=f"A {tuple(a.shape)}, B {tuple(b.shape)}",
            expected=f"A (rank, {inside}), B ({outside}, rank)",
        )  # fmt: skip
