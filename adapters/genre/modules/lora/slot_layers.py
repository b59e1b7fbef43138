"""A linear with the updates of many resident adapters beside it; rows of one batch pick theirs.

Owns: the routing of rows to adapter slots, and the products. Ignores: who fills the slots, what an adapter is for, locks.

    x (R, T, in), row r in slot l(r):    y_r = W x_r + B_l(r) A_l(r) x_r

There is no loop over adapters: one product per bucket of ranks that a batch uses, batched over rows or, where
`genre.modules.lora.grouped` says so, over slots. Linears that read the same input (q, k, v; gate, up) share the first product.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from genre.data.sequences.transfer import upload
from genre.modules.lora import grouped
from genre.modules.lora.products import few_tokens, multiply_few


@dataclass(frozen=True)
class Slot:
    """An adapter slot: the rank of its bucket (the adapter's, rounded up) and its index there."""

    rank: int
    index: int


@dataclass(frozen=True)
class Route:
    """The rows of a batch that use one bucket, m of R.

    Attributes:
        rows: Rows of the batch: a slice where they are neighbours, else their numbers.
        indices: The slot of each, by its index.
        used: The same indices as a set.
    """

    rows: slice | tuple[int, ...]
    indices: tuple[int, ...]
    used: frozenset[int]
    _on: dict[torch.device, tuple[slice | Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)
    _ends: dict[tuple[torch.device, int, int], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def grouped(self) -> bool:
        """True if rows of one slot stand together, slots in order, and there are several."""
        return len(self.used) > 1 and all(one <= other for one, other in pairwise(self.indices))

    def ends(self, device: torch.device, tokens: int, slots: int) -> Tensor:
        """(slots,) int32, where each slot's tokens end among all routed ones, so many in each row."""
        key = (device, tokens, slots)
        if key not in self._ends:
            counts = torch.bincount(torch.tensor(self.indices), minlength=slots)
            self._ends[key] = upload((tokens * counts.cumsum(0)).to(torch.int32), device)
        return self._ends[key]

    def on(self, device: torch.device) -> tuple[slice | Tensor, Tensor]:
        """Rows and slot indices as a device needs them, copied there once per batch."""
        if device not in self._on:
            rows = self.rows if isinstance(self.rows, slice) else upload(torch.tensor(self.rows), device)
            self._on[device] = rows, upload(torch.tensor(self.indices), device)
        return self._on[device]

    def serves(self, indices: Collection[int]) -> bool:
        """Return whether any of some slots is used."""
        return not self.used.isdisjoint(indices)

    def fold(self, x: Tensor) -> Tensor:
        """(m, T, d) routed rows as a product takes them: rows of one slot are one long row, (1, m · T, d)."""
        return x.view(1, -1, x.shape[-1]) if len(self.used) == 1 else x

    def pick(self, stack: Tensor, x: Tensor) -> Tensor:
        """The weights of each folded row of `x`, (m, …) or (1, …).

        One slot is not copied, unless a backward pass will read it: for autograd, memory has changed when any part of it has,
        and others may write another slot meanwhile.
        """
        if len(self.used) == 1:
            own = stack[self.indices[0] : self.indices[0] + 1]
            return own.clone() if x.requires_grad else own
        return stack[self.on(stack.device)[1]]


class Routing:
    """The routes that the layers of one base consult during a forward pass; set before it, cleared after it.

    Attributes:
        grouped: Multiply in groups wherever that can be done, or never; None chooses by device and size.
    """

    def __init__(self) -> None:
        self.routes: dict[int, Route] = {}
        self.count = 0
        self.grouped: bool | None = None

    def set(self, slots: Sequence[Slot | None]) -> None:
        """Route a batch: one slot per row, None for the bare base."""
        self.count = len(slots)
        by_rank: dict[int, tuple[list[int], list[int]]] = {}
        for row, slot in enumerate(slots):
            if slot is not None:
                rows, indices = by_rank.setdefault(slot.rank, ([], []))
                rows.append(row)
                indices.append(slot.index)
        self.routes = {}
        for rank, (rows, indices) in sorted(by_rank.items()):
            neighbours = rows[-1] - rows[0] + 1 == len(rows)
            chosen = slice(rows[0], rows[-1] + 1) if neighbours else tuple(rows)
            self.routes[rank] = Route(chosen, tuple(indices), frozenset(indices))

    def clear(self) -> None:
        """Route every row to the bare base."""
        self.routes = {}


class Group:
    """Linears that read the same input, G of them: their A lie side by side, and one product serves them all.

    Attributes:
        outs: Output features of each member.
        stacks: For each rank, A of every slot: (slots, G · rank, in).
        used: For each rank, the slots that adapt any of the members.
    """

    def __init__(self, in_features: int, outs: Sequence[int], device: torch.device, routing: Routing) -> None:
        self.routing = routing
        self.in_features = in_features
        self.outs = tuple(outs)
        self.device = device
        self.stacks: dict[int, Tensor] = {}
        self.used: dict[int, set[int]] = {}
        self._input: Tensor | None = None
        self._products: dict[int, Tensor] = {}
        self._waiting = 0

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

    def by_slots(self, x: Tensor, rank: int, route: Route) -> bool:
        """Return whether the products of a route go over slots, in groups of rows, instead of over rows."""
        if self.routing.grouped is False or not route.grouped:
            return False
        if not grouped.fits((rank, self.in_features, *self.outs), x.dtype):
            return False
        copied = len(route.indices) * rank * self.in_features * len(self.outs) * x.element_size()
        return self.routing.grouped or grouped.worth(x, copied)

    def first(self, x: Tensor, rank: int, route: Route) -> Tensor:
        """(m, T, G · rank) products of the folded rows, computed once for all members.

        In a batched product A stands on the left: products with few rows are several times faster than with few columns.
        """
        if self._input is not x:
            self.forget()
            self._input, self._waiting = x, len(self.outs)
        if rank not in self._products:
            rows, _ = route.on(x.device)
            own, stack = x[rows].contiguous(), self.stacks[rank]
            if self.by_slots(x, rank, route):
                ends = route.ends(x.device, own.shape[1], len(stack))
                self._products[rank] = grouped.multiply(own.flatten(0, 1), stack.transpose(1, 2), ends).view(*own.shape[:2], -1)
            else:
                products = torch.bmm(route.pick(stack, x), route.fold(own).transpose(1, 2))
                self._products[rank] = products.transpose(1, 2)
        return self._products[rank]

    def leave(self) -> None:
        """Note that a member has used the last input; after the last member nothing of it is held."""
        self._waiting -= 1
        if self._waiting <= 0:
            self.forget()

    def forget(self) -> None:
        """Drop the last input and its products."""
        self._input = None
        self._products = {}


class SlotLinear(nn.Module):
    """A frozen linear with the resident adapters' updates beside it.

    Attributes:
        base: The frozen linear.
        group: The first products that it shares.
        member: Its part of them.
        adds_onto: Whether the base's product is a plain one that can be added onto something.
        stacks: For each rank, B of every slot: (slots, rank, out); the scale is folded in.
    """

    def __init__(self, base: nn.Module, group: Group, member: int, routing: Routing, dtype: torch.dtype) -> None:
        super().__init__()
        self.base = base
        self.group = group
        self.member = member
        self.routing = routing
        plain = type(base) is nn.Linear and getattr(base, "bias", None) is None and base.weight.dtype == dtype
        self.adds_onto = plain and base.weight.device == group.device
        self.stacks: dict[int, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """The base's product, plus each routed row's own update.

        Where one bucket serves every row, the updates are written first and the base's product is added onto them, which
        passes over the output once less.
        """
        routes = [(rank, route) for rank, route in self.routing.routes.items() if route.serves(self.group.used.get(rank, ()))]
        if routes and x.ndim == 2:  # some bases (OPT) lay the rows of a batch end to end
            found = self.forward(x.view(self.routing.count, -1, x.shape[-1])).flatten(0, 1)
            self.group.forget()  # each view is an input of its own
            return found
        found = self._routed(x, routes)
        if routes:
            self.group.leave()
        return found

    def _routed(self, x: Tensor, routes: list[tuple[int, Route]]) -> Tensor:
        """The base's product plus the updates of some routes."""
        weight: Any = self.base.weight if self.adds_onto else None
        if weight is not None and few_tokens(x):
            y = multiply_few(x, weight)
        elif len(routes) == 1 and weight is not None and routes[0][1].rows == slice(0, len(x)):
            y = self._update(x, *routes[0])
            y.view(-1, y.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), weight.t())
            return y.view(*x.shape[:-1], -1)
        else:
            y = self.base(x)
        if y.requires_grad:  # what a quantized product returns may be a view that autograd lets nobody change
            y = y.clone()
        for rank, route in routes:
            rows, _ = route.on(y.device)
            if isinstance(rows, slice) and not self.group.by_slots(x, rank, route):
                route.fold(y[rows]).baddbmm_(self._first(x, rank, route), route.pick(self.stacks[rank], x))
            elif isinstance(rows, slice):
                y[rows].add_(self._update(x, rank, route))
            else:
                y.index_add_(0, rows, self._update(x, rank, route).view(len(rows), *y.shape[1:]))
        return y

    def _first(self, x: Tensor, rank: int, route: Route) -> Tensor:
        """This linear's part of the first products, (m, T, rank)."""
        own = slice(self.member * rank, (self.member + 1) * rank)
        return self.group.first(x, rank, route)[..., own]

    def _update(self, x: Tensor, rank: int, route: Route) -> Tensor:
        """The update of the routed rows, folded."""
        first, stack = self._first(x, rank, route), self.stacks[rank]
        if self.group.by_slots(x, rank, route):
            ends = route.ends(x.device, first.shape[1], len(stack))
            return grouped.multiply(first.flatten(0, 1), stack, ends).view(*first.shape[:2], -1)
        return torch.bmm(first, route.pick(stack, x))
