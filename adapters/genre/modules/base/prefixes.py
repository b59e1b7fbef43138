"""Keys and values of a row's first tokens: recorded in one pass, looked at by the row's further tokens in a later one.

Owns: what is recorded of a pass, attention of further tokens. Ignores: whose row it is, where keys and values lie meanwhile.

In causal attention a token's keys and values depend on the tokens before it alone. So a row of P + t tokens whose first P were
read before takes a pass over t tokens, at each layer

    queries   the t tokens, in blocks as `plan_blocks` makes them of those tokens
    keys      the P of before, padded to the longest of the batch; then the block's own

with `Base.run(…, prefixes=Recorder())` the first time and `Base.run(…, prefixes=Continued(…))` later. The queries of heads that
share keys lie one after the other, so that keys are not repeated.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genre.data.sequences.transfer import upload
from genre.modules.base.attention import Blocks, added, near
from genre.modules.base.base import Base

KeysValues = Tensor
"""(2 · layers, key heads, tokens, d) of a row at some layers in order: of the first layer its keys, its values, …"""
FILLED_BYTES = 2**22
"""Keys and values that are brought together at once, of as many layers as that: a call for each layer would take longer than what
it copies, and more would leave the processor's caches before they are used."""


def takes_prefixes(base: Base) -> bool:
    """True if a row can go on from keys and values of its first tokens.

    Not in an encoder, where a token's states depend on all other tokens. Nor where layers lie on several devices, or cannot be
    run by `Base.run`.
    """
    if not (base.in_parts and base.takes_blocks) or base.offloaded:
        return False
    return len({weight.device for weight in base.model.parameters()}) == 1


class Recorder:
    """Keeps the keys and values of a batch at every layer of a pass, as the layers made them.

    Args:
        at: Layers whose input is kept as well, for passes that begin there.
    """

    def __init__(self, at: Collection[int] = ()) -> None:
        self._at = frozenset(at) - {0}
        self._made: list[tuple[Tensor, Sequence[int] | None]] = []
        self._inputs: dict[int, Tensor] = {}

    def enter(self, layer: int, hidden: Tensor) -> None:
        """Keep a layer's input, (B, T, D), if it is wanted."""
        if layer in self._at:
            self._inputs[layer] = hidden

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor | None:
        """Keep those of the next layer, (B, key heads, T, d); None, as attention is as ever."""
        self._made += (key, None), (value, None)
        return None

    def onto(self, rows: Sequence[int]) -> "Recorder":
        """A recorder of the layers above, whose batch has these of the rows; it has the layers below as well."""
        above = Recorder(self._at)
        above._made = [(each, rows) for each, _ in self._made]
        return above

    def of(self, row: int, start: int, stop: int) -> KeysValues:
        """A copy of those of a row's tokens from `start` up to, not including, `stop`."""
        return torch.stack([each[row if rows is None else rows[row], :, start:stop] for each, rows in self._made])

    def input_of(self, layer: int, row: int, start: int, stop: int) -> Tensor:
        """(tokens, D) view of a layer's input for a row's tokens."""
        return self._inputs[layer][row, start:stop]


@dataclass(frozen=True)
class Prefix:
    """The first tokens of one row.

    Attributes:
        states: Their keys and values at the layers of the pass, in pieces along the tokens.
        tokens: P, the tokens of all pieces.
        positions: (P,) int32.
        masked_spans: (t, 2) int32, of each further token: it does not see the tokens of the row from the first up to the second.
    """

    states: Sequence[KeysValues]
    tokens: int
    positions: np.ndarray
    masked_spans: np.ndarray


class Continued(Recorder):
    """Attention of a batch's further tokens to prefixes of its rows; their own keys and values are kept as well.

    Args:
        prefixes: B prefixes.
        blocks: Of the further tokens, their masked spans counted from the first of them.
        dtype: Of the base.
        at: As in `Recorder`.
    """

    def __init__(self, prefixes: Sequence[Prefix], blocks: Blocks, dtype: torch.dtype, at: Collection[int] = ()) -> None:
        super().__init__(at)
        self._prefixes = prefixes
        self._blocks = blocks.blocks
        self._longest = max(prefix.tokens for prefix in prefixes)
        self._positions = blocks.positions
        self._masks = [added(mask, dtype) for mask in self._visible(blocks.positions.shape[1])]
        self._reach = blocks.longest
        self._folded: dict[int, list[Tensor]] = {}
        self._room: Tensor | None = None
        self._layer = 0

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor:
        """The next layer's attention.

        Args:
            query: (B, heads, t, d).
            key: (B, key heads, t, d).
            value: (B, key heads, t, d).
            scaling: Of the products.
            window: How far a token looks back, in positions; None for all the way.

        Returns:
            (B, t, heads, d).
        """
        super().attend(query, key, value, scaling, window)
        keys, values = self._fill(key)
        shared = query.shape[1] // key.shape[1]
        parts = []
        for number, block in enumerate(self._blocks):
            end = self._longest + block.first + block.stop - block.again
            for room, own in ((keys, key), (values, value)):
                room[:, :, self._longest : self._longest + block.first] = own[:, :, : block.first]
                room[:, :, self._longest + block.first : end] = own[:, :, block.again : block.stop]
            mask = self._mask(number, shared, window)
            asked = query[:, :, block.start : block.stop].unflatten(1, (-1, shared)).flatten(2, 3)
            found = F.scaled_dot_product_attention(asked, keys[:, :, :end], values[:, :, :end], attn_mask=mask, scale=scaling)
            parts.append(found.unflatten(2, (shared, -1)).flatten(1, 2).transpose(1, 2))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def whole(self) -> Recorder:
        """A recorder of these layers with each row's prefix before its further tokens."""
        joined = Recorder(self._at)
        for number, (made, _) in enumerate(self._made):
            pairs = zip(self._prefixes, made, strict=True)
            rows = [torch.cat([*(piece[number] for piece in prefix.states), own], dim=1) for prefix, own in pairs]
            joined._made.append((_stacked(rows, dim=1), None))
        return joined

    def _fill(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Memory for the next layer's keys and values, of the prefixes and of a block, that holds those of the prefixes."""
        if self._room is None:
            most = self._longest + max(block.first + block.stop - block.again for block in self._blocks)
            shape = (*like.shape[:2], most, like.shape[3])
            layers = max(1, FILLED_BYTES // (2 * math.prod(shape) * like.element_size()))
            # No mask hides what is not a number.
            self._room = like.new_zeros(2 * min(layers, len(self._prefixes[0].states[0]) // 2), *shape)
        first, at_once = 2 * self._layer, len(self._room)
        self._layer += 1
        if first % at_once == 0:
            for row, prefix in enumerate(self._prefixes):
                pieces = [piece[first : first + at_once] for piece in prefix.states]
                torch.cat(pieces, dim=2, out=self._room[: len(pieces[0]), row, :, : prefix.tokens])
        return self._room[first % at_once], self._room[first % at_once + 1]

    def _mask(self, number: int, shared: int, window: int | None) -> Tensor:
        """(B, 1, shared · queries, keys) what is added to a block's products."""
        if window is not None and window < self._reach:
            block = self._blocks[number]
            own = self._positions[:, : block.first], self._positions[:, block.again : block.stop]
            keys = torch.cat([self._known_positions, *own], dim=1)
            within = added(near(self._positions[:, block.start : block.stop], keys, window), self._masks[number].dtype)
            return (self._masks[number] + within).repeat(1, 1, shared, 1)
        if shared not in self._folded:
            self._folded[shared] = [mask.repeat(1, 1, shared, 1) for mask in self._masks]
        return self._folded[shared][number]

    @cached_property
    def _known_positions(self) -> Tensor:
        """(B, P) int64."""
        known = np.zeros((len(self._prefixes), self._longest), dtype=np.int64)
        for own, prefix in zip(known, self._prefixes, strict=True):
            own[: prefix.tokens] = prefix.positions
        return upload(torch.from_numpy(known), self._positions.device)

    def _visible(self, total: int) -> list[Tensor]:
        """For each block (B, 1, queries, keys) bool: what the queries see of prefixes and block."""
        known = np.arange(self._longest)
        prefixes = np.zeros((len(self._prefixes), total, self._longest), dtype=bool)
        for own, prefix in zip(prefixes, self._prefixes, strict=True):
            spans = prefix.masked_spans[:, :, None]
            own[:] = known < prefix.tokens
            own[: len(spans)] &= (known < spans[:, 0]) | (known >= spans[:, 1])
        found = []
        for block in self._blocks:
            before = upload(torch.from_numpy(prefixes[:, None, block.start : block.stop]), self._positions.device)
            mask = block.mask
            if mask is None:
                mask = torch.ones(block.stop, block.stop, dtype=torch.bool, device=before.device).tril_()
            found.append(torch.cat([before, mask.expand(len(before), 1, -1, -1)], dim=-1))
        return found


def joined_rows(known: Sequence[Tensor], more: Tensor) -> Tensor:
    """(B, T, D): for each row (P, D) before its (t, D), zeros where a row has fewer."""
    return _stacked([torch.cat([one, own]) for one, own in zip(known, more, strict=True)], dim=0)


def _stacked(rows: Sequence[Tensor], dim: int) -> Tensor:
    """Rows of different lengths along a dimension as one tensor, zeros at the end."""
    most = max(row.shape[dim] for row in rows)
    found = rows[0].new_zeros(len(rows), *rows[0].shape[:dim], most, *rows[0].shape[dim + 1 :])
    for own, row in zip(found, rows, strict=True):
        own.narrow(dim, 0, row.shape[dim]).copy_(row)
    return found
