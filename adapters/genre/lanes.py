"""Many adapters on one base in one batch: every row of a batch picks its lane.

Owns: the low-rank weights of all resident adapters, the routing of rows to lanes, the products. Ignores: what an adapter is
for, where it comes from, locks.

    x (R, T, in), row r in lane l(r):    y_r = W x_r + B_l(r) A_l(r) x_r

Lanes live in buckets by rank, so that rank 8 does not pay for rank 64; lane 0 of the engine is the bare base and has no
bucket at all. There is no loop over adapters: one batched product per bucket that a batch uses. Linears that read the same
input (q, k, v; gate, up) share the first product. A slot is one stretch of memory, the weights of all layers one after the
other, so that an adapter comes and goes in one copy. A lane lies on the device of the layer that it serves.

Threads: rows of other adapters may be computed while a slot is written or freed, or a bucket grows: what lies in the slots in
use never changes, and nothing is routed to the others. One thread at a time may `put` and `copy`; any may `erase` meanwhile.
"""

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from genre.base import device_of
from genre.errors import ManifestError
from genre.lora import linear_shape

SHARING = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("query", "key", "value"))
FEWEST_SLOTS = 4

Low = Mapping[str, tuple[Tensor, Tensor, float]]


@dataclass(frozen=True)
class Place:
    """Where an adapter lives: a bucket's rank (rounded up) and its slot there."""

    rank: int
    slot: int


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


@dataclass(frozen=True)
class Route:
    """The rows of a batch that use one bucket, m of R.

    Attributes:
        rows: Rows of the batch: a slice where they are neighbours, else their numbers.
        slots: The slot of each.
        used: The same slots as a set.
    """

    rows: slice | tuple[int, ...]
    slots: tuple[int, ...]
    used: frozenset[int]
    _on: dict[torch.device, tuple[slice | Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    def on(self, device: torch.device) -> tuple[slice | Tensor, Tensor]:
        """Rows and slots as a device needs them, copied there once per batch."""
        if device not in self._on:
            rows = self.rows if isinstance(self.rows, slice) else torch.tensor(self.rows, device=device)
            self._on[device] = rows, torch.tensor(self.slots, device=device)
        return self._on[device]

    def serves(self, slots: Collection[int]) -> bool:
        """Whether any of some slots is used."""
        return not self.used.isdisjoint(slots)

    def fold(self, x: Tensor) -> Tensor:
        """(m, T, d) routed rows as a product takes them: rows of one slot are one long row, (1, m · T, d)."""
        return x.view(1, -1, x.shape[-1]) if len(self.used) == 1 else x

    def pick(self, stack: Tensor, x: Tensor) -> Tensor:
        """The weights of each folded row of `x`, (m, …) or (1, …).

        One slot is not copied, unless a backward pass will read it: for autograd, memory has changed when any part of it has,
        and others may write another slot meanwhile.
        """
        if len(self.used) == 1:
            own = stack[self.slots[0] : self.slots[0] + 1]
            return own.clone() if x.requires_grad else own
        return stack[self.on(stack.device)[1]]


class Routing:
    """What the layers of one base consult during a forward pass; set before it, cleared after it."""

    def __init__(self) -> None:
        self.routes: dict[int, Route] = {}
        self.count = 0

    def set(self, places: Sequence[Place | None]) -> None:
        """Route a batch: one place per row, None for the bare base."""
        self.count = len(places)
        by_rank: dict[int, tuple[list[int], list[int]]] = {}
        for row, place in enumerate(places):
            if place is not None:
                rows, slots = by_rank.setdefault(place.rank, ([], []))
                rows.append(row)
                slots.append(place.slot)
        self.routes = {}
        for rank, (rows, slots) in sorted(by_rank.items()):
            neighbours = rows[-1] - rows[0] + 1 == len(rows)
            chosen = slice(rows[0], rows[-1] + 1) if neighbours else tuple(rows)
            self.routes[rank] = Route(chosen, tuple(slots), frozenset(slots))

    def clear(self) -> None:
        """Every row is the bare base again."""
        self.routes = {}


class Group:
    """Linears that read the same input, G of them: their A lie side by side, and one product serves them all.

    Attributes:
        outs: Output features of each member.
        stacks: For each rank, A of every slot: (slots, G · rank, in).
        used: For each rank, the slots that adapt any of the members.
    """

    def __init__(self, in_features: int, outs: Sequence[int], device: torch.device) -> None:
        self.in_features, self.outs, self.device = in_features, tuple(outs), device
        self.stacks: dict[int, Tensor] = {}
        self.used: dict[int, set[int]] = {}
        self.seen: Tensor | None = None
        self.products: dict[int, Tensor] = {}

    def size(self, rank: int) -> int:
        """Values of one slot: A of all members, then each B."""
        return rank * (self.in_features * len(self.outs) + sum(self.outs))

    def views(self, rank: int, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(n, size) memory as A (n, G · rank, in) and the members' B (n, rank, out)."""
        start = rank * self.in_features * len(self.outs)
        first = rows[:, :start].view(len(rows), -1, self.in_features)
        second = []
        for out in self.outs:
            second.append(rows[:, start : start + rank * out].view(len(rows), rank, out))
            start += rank * out
        return first, second

    def first(self, x: Tensor, rank: int, route: Route) -> Tensor:
        """(m, G · rank, T) products of the folded rows, computed once for all members.

        A stands on the left: products with few rows are several times faster than products with few columns.
        """
        if self.seen is not x:
            self.seen, self.products = x, {}
        if rank not in self.products:
            rows, _ = route.on(x.device)
            self.products[rank] = torch.bmm(route.pick(self.stacks[rank], x), route.fold(x[rows].contiguous()).transpose(1, 2))
        return self.products[rank]

    def forget(self) -> None:
        """Drop the last input and its products."""
        self.seen, self.products = None, {}


class LaneLinear(nn.Module):
    """A frozen linear with the resident adapters' updates beside it.

    Attributes:
        base: The frozen linear.
        group: The first products that it shares.
        member: Which part of them is its own.
        adds_onto: Whether the base's product is a plain one that can be added onto something.
        stacks: For each rank, B of every slot: (slots, rank, out); the scale is folded in.
    """

    def __init__(self, base: nn.Module, group: Group, member: int, routing: Routing, dtype: torch.dtype) -> None:
        super().__init__()
        self.base, self.group, self.member, self.routing = base, group, member, routing
        plain = type(base) is nn.Linear and getattr(base, "bias", None) is None and base.weight.dtype == dtype
        self.adds_onto = plain and base.weight.device == group.device and not hasattr(base, "_hf_hook")
        self.stacks: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """The base's product, plus each routed row's own update.

        Where one bucket serves every row, the updates are written first and the base's product is added onto them, which
        passes over the output once less.
        """
        routes = [(rank, route) for rank, route in self.routing.routes.items() if route.serves(self.group.used.get(rank, ()))]
        if routes and x.ndim == 2:  # some bases (OPT) lay the rows of a batch end to end
            return self.forward(x.view(self.routing.count, -1, x.shape[-1])).flatten(0, 1)
        if len(routes) == 1 and self.adds_onto and routes[0][1].rows == slice(0, len(x)):
            y = self._update(x, *routes[0])
            y.view(-1, y.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), self.base.weight.t())  # type: ignore[operator]
            return y.view(*x.shape[:-1], -1)
        y = self.base(x)
        if y.requires_grad:  # what a quantized product returns may be a view that autograd lets nobody change
            y = y.clone()
        for rank, route in routes:
            rows, _ = route.on(y.device)
            if isinstance(rows, slice):
                route.fold(y[rows]).baddbmm_(self._first(x, rank, route), route.pick(self.stacks[rank], x))
            else:
                y.index_add_(0, rows, self._update(x, rank, route).view(len(rows), *y.shape[1:]))
        return y

    def _first(self, x: Tensor, rank: int, route: Route) -> Tensor:
        """This linear's part of the first products, (m, T, rank)."""
        own = slice(self.member * rank, (self.member + 1) * rank)
        return self.group.first(x, rank, route)[:, own].transpose(1, 2)

    def _update(self, x: Tensor, rank: int, route: Route) -> Tensor:
        """What is added to the routed rows, folded."""
        return torch.bmm(self._first(x, rank, route), route.pick(self.stacks[rank], x))


class _Bucket:
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
        self._buckets: dict[int, list[_Bucket]] = {}
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

    def _of(self, rank: int) -> list[_Bucket]:
        if rank not in self._buckets:
            self._buckets[rank] = [_Bucket(rank, self.groups, self.layers.values(), device) for device in self.devices]
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
