"""Many adapters on one base in one batch: every row of a batch picks its lane.

Owns: the stacked low-rank weights of all resident adapters, the routing of rows to lanes, the products. Ignores: what an
adapter is for, where it comes from, threads.

    x (R, T, in), row r in lane l(r):    y_r = W x_r + B_l(r) A_l(r) x_r

Lanes live in buckets by rank, so that rank 8 does not pay for rank 64; lane 0 of the engine is the bare base and has no
bucket at all. There is no loop over adapters: one batched product per bucket that a batch uses. Linears that read the same
input (q, k, v; gate, up) share the first product.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from genre.lora import linear_shape

SHARING = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("query", "key", "value"))


@dataclass(frozen=True)
class Place:
    """Where an adapter lives: a bucket's rank (rounded up) and its slot there."""

    rank: int
    slot: int


@dataclass(frozen=True)
class Route:
    """The rows of a batch that use one bucket.

    Attributes:
        rows: (m,) int64 rows of the batch, None if it is every row in order.
        slots: (m,) int64 slot of each.
        used: The same slots as a set.
        only: The slot, if all rows of the batch use one and the same.
    """

    rows: Tensor | None
    slots: Tensor
    used: frozenset[int]
    only: int | None


@dataclass
class Routing:
    """What the layers of one base consult during a forward pass; set before it, cleared after it."""

    routes: dict[int, Route] = field(default_factory=dict)

    def set(self, places: Sequence[Place | None], device: torch.device) -> None:
        """Route a batch: one place per row, None for the bare base."""
        by_rank: dict[int, tuple[list[int], list[int]]] = {}
        for row, place in enumerate(places):
            if place is not None:
                rows, slots = by_rank.setdefault(place.rank, ([], []))
                rows.append(row)
                slots.append(place.slot)
        self.routes = {}
        for rank, (rows, slots) in sorted(by_rank.items()):
            everyone = len(rows) == len(places)
            used = frozenset(slots)
            self.routes[rank] = Route(
                None if everyone else torch.tensor(rows, device=device), torch.tensor(slots, device=device), used,
                slots[0] if everyone and len(used) == 1 else None,
            )  # fmt: skip

    def clear(self) -> None:
        """Every row is the bare base again."""
        self.routes = {}


class Group(nn.Module):
    """The first products of linears that read the same input: their A side by side, G linears.

    Attributes:
        stacks: For each rank, (slots, G · rank, in) float in the base's precision: the narrow side first, since products with
            few rows are several times faster than products with few columns.
    """

    def __init__(self, in_features: int, members: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.members, self.device, self.dtype = in_features, members, device, dtype
        self.stacks: dict[int, Tensor] = {}
        self.used: dict[int, set[int]] = {}
        self.seen: Tensor | None = None
        self.products: dict[int, Tensor] = {}

    def grow(self, rank: int, slots: int) -> None:
        """Make room for a bucket of so many slots, keeping what is there."""
        stack = torch.zeros(slots, self.members * rank, self.in_features, device=self.device, dtype=self.dtype)
        if rank in self.stacks:
            stack[: len(self.stacks[rank])] = self.stacks[rank]
        self.stacks[rank] = stack
        self.used.setdefault(rank, set())

    def first(self, x: Tensor, rank: int, route: Route) -> Tensor:
        """Products of the routed rows, computed once for all members: (m, G · rank, T), or (G · rank, m · T) with one slot."""
        if self.seen is not x:
            self.seen, self.products = x, {}
        if rank not in self.products:
            stack = self.stacks[rank]
            if route.only is not None:
                self.products[rank] = stack[route.only] @ x.reshape(-1, self.in_features).t()
            else:
                rows = x if route.rows is None else x[route.rows]
                self.products[rank] = torch.bmm(stack[route.slots], rows.transpose(1, 2))
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
        stacks: For each rank, (slots, rank, out); the scale is folded in.
    """

    def __init__(self, base: nn.Module, group: Group, member: int, routing: Routing) -> None:
        super().__init__()
        self.base, self.group, self.member, self.routing = base, group, member, routing
        self.out_features = linear_shape(base)[1]
        self.adds_onto = type(base) is nn.Linear and getattr(base, "bias", None) is None and base.weight.dtype == group.dtype
        self.stacks: dict[int, Tensor] = {}

    def grow(self, rank: int, slots: int) -> None:
        """Make room for a bucket of so many slots, keeping what is there."""
        stack = torch.zeros(slots, rank, self.out_features, device=self.group.device, dtype=self.group.dtype)
        if rank in self.stacks:
            stack[: len(self.stacks[rank])] = self.stacks[rank]
        self.stacks[rank] = stack

    def forward(self, x: Tensor) -> Tensor:
        """The base's product, plus each routed row's own update.

        Where one bucket serves every row, the updates are written first and the base's product is added onto them, which
        passes over the output once less.
        """
        routes = [(rank, route) for rank, route in self.routing.routes.items() if route.used & self.group.used.get(rank, set())]
        if len(routes) == 1 and self.adds_onto and routes[0][1].rows is None:
            rank, route = routes[0]
            first, stack = self._first(x, rank, route), self.stacks[rank]
            if route.only is not None:
                y = (first @ stack[route.only]).view(*x.shape[:-1], -1)
            else:
                y = torch.bmm(first, stack[route.slots])
            y.view(-1, self.out_features).addmm_(x.reshape(-1, x.shape[-1]), self.base.weight.t())  # type: ignore[operator]
            return y
        y = self.base(x)
        if y.requires_grad:  # what a quantized product returns may be a view that autograd lets nobody change
            y = y.clone()
        for rank, route in routes:
            first, stack = self._first(x, rank, route), self.stacks[rank]
            if route.only is not None:
                y.view(-1, self.out_features).addmm_(first, stack[route.only])
            elif route.rows is None:
                y.baddbmm_(first, stack[route.slots])
            else:
                y.index_add_(0, route.rows, torch.bmm(first, stack[route.slots]))
        return y

    def _first(self, x: Tensor, rank: int, route: Route) -> Tensor:
        """This linear's part of the first products, (m, T, rank), or (m · T, rank) with one slot."""
        own = slice(self.member * rank, (self.member + 1) * rank)
        return self.group.first(x, rank, route)[..., own, :].transpose(-1, -2)


class Lanes:
    """All lane layers of one base: attach once, then write and clear slots.

    Args:
        model: The base's model (mutated: the named linears are replaced until `detach`).
        names: Linears that adapters may target.
        slots: Adapters per bucket; a bucket exists once an adapter of its rank came.
        dtype: Precision of the stacked weights.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], *, slots: int, dtype: torch.dtype) -> None:
        self.model, self.slots, self.routing = model, slots, Routing()
        self.layers: dict[str, LaneLinear] = {}
        self.groups: list[Group] = []
        for members in group_by_input(names):
            first = model.get_submodule(members[0])
            group = Group(linear_shape(first)[0], len(members), first.weight.device, dtype)  # type: ignore[arg-type]
            self.groups.append(group)
            for place, name in enumerate(members):
                self.layers[name] = LaneLinear(model.get_submodule(name), group, place, self.routing)
        for name, layer in self.layers.items():
            model.set_submodule(name, layer)
        self.free: dict[int, list[int]] = {}

    def detach(self) -> None:
        """Put the bare linears back."""
        for name, layer in self.layers.items():
            self.model.set_submodule(name, layer.base)

    @torch.no_grad()
    def write(self, low: Mapping[str, tuple[Tensor, Tensor, float]]) -> Place | None:
        """Stage an adapter in a free slot; it takes no part in any batch until rows are routed there.

        Returns:
            Its place; None for an adapter without low-rank weights, which runs on the bare base.

        Raises:
            KeyError: The adapter targets a linear that has no lane layer.
        """
        if not low:
            return None
        rank = bucket(max(a.shape[0] for a, _, _ in low.values()))
        if rank not in self.free:
            modules: list[Group | LaneLinear] = [*self.groups, *self.layers.values()]
            for module in modules:
                module.grow(rank, self.slots)
            self.free[rank] = list(range(self.slots))[::-1]
        slot = self.free[rank].pop()
        for name, (a, b, scale) in low.items():
            layer = self.layers[name]
            own = slice(layer.member * rank, layer.member * rank + a.shape[0])
            layer.group.stacks[rank][slot, own] = a.to(layer.group.stacks[rank])
            layer.stacks[rank][slot, : b.shape[1]] = (b.t() * scale).to(layer.stacks[rank])
            layer.group.used[rank].add(slot)
        return Place(rank, slot)

    @torch.no_grad()
    def erase(self, place: Place | None) -> None:
        """Free a slot; no running batch may be routed there any more."""
        if place is None:
            return
        for group in self.groups:
            if place.slot in group.used.get(place.rank, set()):
                group.stacks[place.rank][place.slot].zero_()
                group.used[place.rank].discard(place.slot)
        for layer in self.layers.values():
            layer.stacks[place.rank][place.slot].zero_()
        self.free[place.rank].append(place.slot)

    def route(self, places: Sequence[Place | None], device: torch.device) -> None:
        """Route the rows of the next forward pass."""
        self.routing.set(places, device)

    def clear(self) -> None:
        """After a forward pass: route nothing and hold no activations."""
        self.routing.clear()
        for group in self.groups:
            group.forget()

    def memory_bytes(self) -> int:
        """Bytes of all stacked weights."""
        modules: list[Group | LaneLinear] = [*self.groups, *self.layers.values()]
        stacks = [stack for module in modules for stack in module.stacks.values()]
        return sum(stack.numel() * stack.element_size() for stack in stacks)


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
