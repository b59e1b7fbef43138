"""Many adapters on one base in one batch: every row of a batch picks its adapter slot.

Owns: the low-rank weights of all resident adapters, and the slots that they lie in. Ignores: what an adapter is for, where it
comes from, locks.

Slots live in buckets by rank, so that rank 8 does not pay for rank 64; the bare base has none. A slot is one stretch of memory,
the weights of all layers one after the other, so that an adapter comes and goes in one copy; it lies on its layers' devices.

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
from genre.modules.lora.slot_layers import Group, Routing, Slot, SlotLinear

SHARING = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("query", "key", "value"))
"""Linears of one parent that read the same input, by the names that transformers' attention and MLP blocks use."""
FEWEST_SLOTS = 4

LowRank = Mapping[str, tuple[Tensor, Tensor, float]]
"""For each adapted linear: A (rank, in), B (out, rank), scale."""
Stretch = tuple[int, int, int]
"""The number of a bucket's device, and where in a slot a stretch begins and ends."""


@dataclass(frozen=True)
class SlotWeights:
    """An adapter laid out as a slot holds it, ready to be copied there.

    Attributes:
        rank: Its bucket.
        parts: Number of the bucket's device, where in the slot a stretch begins, and the stretch (n,) in the slots' precision,
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

    def __init__(self, rank: int, groups: Iterable[Group], layers: Iterable[SlotLinear], device: torch.device) -> None:
        self.rank = rank
        self.device = device
        self.layers = [layer for layer in layers if layer.group.device == device]
        self.starts: dict[Group, int] = {}
        self.size = 0
        for group in groups:
            if group.device == device:
                self.starts[group] = self.size
                self.size += group.size(rank)

    def grow(self, memory: Tensor | None, slots: int, dtype: torch.dtype) -> Tensor:
        """Add slots, keeping the contents of the present ones; every view is replaced."""
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
        """Free the memory."""
        for group in self.starts:
            group.stacks.pop(self.rank, None)
        for layer in self.layers:
            layer.stacks.pop(self.rank, None)

    def stretches(self, touched: set[Group]) -> list[tuple[int, int]]:
        """The stretches of a slot that hold the weights of some groups, neighbours as one."""
        found: list[tuple[int, int]] = []
        for group, start in self.starts.items():
            if group in touched:
                end = start + group.size(self.rank)
                if found and found[-1][1] == start:
                    found[-1] = found[-1][0], end
                else:
                    found.append((start, end))
        return found


class AdapterSlots:
    """The slots of one base: attach once, then put adapters into slots and take them out.

    Args:
        model: The base's model (mutated: the named linears are replaced until `detach`).
        names: Linears that adapters may target.
        slots: Adapters per bucket at most; a bucket exists while it holds an adapter, and grows as they come.
        dtype: Precision of the low-rank weights.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], *, slots: int, dtype: torch.dtype) -> None:
        self.model = model
        self.capacity = slots
        self.dtype = dtype
        self.routing = Routing()
        self.layers: dict[str, SlotLinear] = {}
        self.groups: list[Group] = []
        for members in group_by_input(names):
            linears = [model.get_submodule(name) for name in members]
            shapes = [linear_shape(linear) for linear in linears]
            group = Group(shapes[0][0], [out for _, out in shapes], device_of(linears[0]), self.routing)
            self.groups.append(group)
            for member, (name, linear) in enumerate(zip(members, linears, strict=True)):
                self.layers[name] = SlotLinear(linear, group, member, self.routing, dtype)
        for name, layer in self.layers.items():
            model.set_submodule(name, layer)
        self._devices = list(dict.fromkeys(group.device for group in self.groups))
        self._buckets: dict[int, list[Bucket]] = {}
        self._memory: dict[int, list[Tensor]] = {}
        self._free: dict[int, list[int]] = {}
        self._taken: dict[Slot, list[Stretch]] = {}
        self._stale: dict[Slot, list[Stretch]] = {}
        self._lock = threading.Lock()

    def detach(self) -> None:
        """Put the bare linears back and free all slots."""
        for name, layer in self.layers.items():
            self.model.set_submodule(name, layer.base)
        for slot in list(self._taken):
            self.erase(slot)

    @torch.no_grad()
    def pack(self, low: LowRank) -> SlotWeights | None:
        """Lay out an adapter as a slot holds it; None for one without low-rank weights, which runs on the bare base.

        Raises:
            KeyError: It targets a linear that has no slots.
            ManifestError: A weight does not fit its linear.
        """
        if not low:
            return None
        rank = bucket(max(a.shape[0] for a, _, _ in low.values()))
        touched = {self.layers[name].group for name in low}
        parts: list[tuple[int, int, Tensor]] = []
        views: dict[Group, tuple[Tensor, list[Tensor]]] = {}
        for number, each in enumerate(self._of(rank)):
            for start, end in each.stretches(touched):
                stretch = torch.zeros(end - start, dtype=self.dtype)
                parts.append((number, start, stretch))
                for group, at in each.starts.items():
                    if start <= at < end:
                        views[group] = group.views(rank, stretch[None, at - start : at - start + group.size(rank)])
        for name, (a, b, scale) in low.items():
            group, member = self.layers[name].group, self.layers[name].member
            _check(name, a, b, group.in_features, group.outs[member])
            first, seconds = views[group]
            first[0, member * rank : member * rank + len(a)] = a
            seconds[member][0, : b.shape[1]] = b.t() * scale
            if not (first.isfinite().all() and seconds[member].isfinite().all()):
                got, dtype = (
                    f"more than {torch.finfo(self.dtype).max:g} at scale {scale:g}",
                    str(self.dtype).removeprefix("torch."),
                )
                raise ManifestError(
                    f"LoRA of {name} has a weight that is not finite in {dtype}", got=got, expected="finite weights"
                )
        return SlotWeights(rank, tuple(parts))

    @torch.no_grad()
    def put(self, packed: SlotWeights | None) -> Slot | None:
        """Copy an adapter into a free slot; it affects no batch until rows are routed there."""
        if packed is None:
            return None
        rank = packed.rank
        stretches = [(number, start, start + len(part)) for number, start, part in packed.parts]
        with self._lock:
            if not self._free.get(rank):
                self._grow(rank)
            slot, memory = Slot(rank, self._free[rank].pop()), self._memory[rank]
            stale = self._stale.pop(slot, [])
            self._taken[slot] = stretches
            for group in self._groups_of(slot):
                group.used[rank].add(slot.index)
        for number, start, end in stale:
            if (number, start, end) not in stretches:
                memory[number][slot.index, start:end].zero_()
        for number, start, part in packed.parts:
            memory[number][slot.index, start : start + len(part)] = part
        return slot

    def write(self, low: LowRank) -> Slot | None:
        """`pack` and `put`."""
        return self.put(self.pack(low))

    def copy(self, slot: Slot | None) -> SlotWeights | None:
        """The weights in a slot, copied to the CPU."""
        if slot is None:
            return None
        memory = self._memory[slot.rank]
        stretches = self._taken[slot]
        parts = [(number, start, memory[number][slot.index, start:end].to("cpu", copy=True)) for number, start, end in stretches]
        return SlotWeights(slot.rank, tuple(parts))

    def erase(self, slot: Slot | None) -> None:
        """Free a slot; no running batch may be routed there any more. The last one of a bucket takes its memory along."""
        if slot is None:
            return
        rank = slot.rank
        with self._lock:
            for group in self._groups_of(slot):
                group.used[rank].discard(slot.index)
            self._stale[slot] = self._taken.pop(slot)
            self._free[rank].append(slot.index)
            if not any(other.rank == rank for other in self._taken):
                for each in self._buckets[rank]:
                    each.drop()
                del self._memory[rank], self._free[rank]
                self._stale = {other: stale for other, stale in self._stale.items() if other.rank != rank}

    def route(self, slots: Sequence[Slot | None]) -> None:
        """Route the rows of the next forward pass; rows of one bucket side by side are the fastest."""
        self.routing.set(slots)

    def clear(self) -> None:
        """Clear routes and held activations after a forward pass."""
        self.routing.clear()
        for group in self.groups:
            group.forget()

    def memory_bytes(self) -> int:
        """Bytes of all slots."""
        with self._lock:
            return sum(each.numel() * each.element_size() for memory in self._memory.values() for each in memory)

    def _of(self, rank: int) -> list[Bucket]:
        if rank not in self._buckets:
            self._buckets[rank] = [Bucket(rank, self.groups, self.layers.values(), device) for device in self._devices]
        return self._buckets[rank]

    def _grow(self, rank: int) -> None:
        memory = self._memory.get(rank)
        now = len(memory[0]) if memory else 0
        slots = slots_for(now + 1, self.capacity)
        assert slots > now, "more adapters than slots"
        buckets = self._of(rank)
        self._memory[rank] = [
            each.grow(memory[number] if memory else None, slots, self.dtype) for number, each in enumerate(buckets)
        ]
        self._free.setdefault(rank, []).extend(range(now, slots)[::-1])

    def _groups_of(self, slot: Slot) -> list[Group]:
        buckets = self._buckets[slot.rank]
        return [
            group for number, start, end in self._taken[slot] for group, at in buckets[number].starts.items() if start <= at < end
        ]


def bucket(rank: int) -> int:
    """The bucket of a rank: the next power of two, at least 2."""
    size = 2
    while size < rank:
        size *= 2
    return size


def slots_for(adapters: int, capacity: int) -> int:
    """The slots of a bucket that holds so many adapters: a power of two, up to the capacity."""
    slots = FEWEST_SLOTS
    while slots < adapters:
        slots *= 2
    return min(slots, capacity)


def group_by_input(names: Sequence[str]) -> list[list[str]]:
    """Put linears that read the same input together."""
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name in names:
        parent, _, last = name.rpartition(".")
        family = next((family for family in SHARING if last in family), (last,))
        groups.setdefault((parent, family), []).append(name)
    return list(groups.values())


def _check(name: str, a: Tensor, b: Tensor, inside: int, outside: int) -> None:
    if a.shape != (b.shape[1], inside) or b.shape[0] != outside:
        got, expected = f"A {tuple(a.shape)}, B {tuple(b.shape)}", f"A (rank, {inside}), B ({outside}, rank)"
        raise ManifestError(f"adapter weights of {name} do not fit the base", got=got, expected=expected)
