"""Attention over rows with branches, a block of queries at a time, and over packed batches.

Owns: which keys a block of queries needs, which tokens of a packed batch belong together, and the function that transformers'
attention layers call. Ignores: what rows mean, layers, adapters.

A row of h history tokens and C branches of l tokens, T = h + C·l, asks for T² products under one mask over the row; here

    queries                                   keys
    the history                               the history, causal, without a mask
    the branches, 128 tokens at a time        the history, and from the first branch of the block to its end, under a mask

is about h²/2 + C·l·(h + 128 + l), and the masks of a row take C·l·(h + 128 + l) bytes instead of T² floats. The same holds of
any masked spans (impressions in the history): keys that no token of a block sees are left out.

Everything in a decoder but its attention looks at one token at a time. So batches of different lengths can be packed:

    batch 0: 2 rows of 5 tokens, batch 1: 1 row of 3     →  13 tokens in one row through every linear and norm;
                                                            attention on (2, 5) and on (1, 3)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genre.data.sequences.transfer import upload

BLOCK = 128
NAME = "genre_blocks"


@dataclass(frozen=True)
class Block:
    """Queries from `start` up to, not including, `stop`; they look at keys below `first` and at keys from `again` up to `stop`.

    Attributes:
        mask: (B, 1, stop - start, keys) bool, True where a query may look; None for plain causal attention (start is 0).
    """

    start: int
    stop: int
    first: int
    again: int
    mask: Tensor | None

    def to(self, device: torch.device) -> "Block":
        """The same on another device."""
        mask = None if self.mask is None else upload(self.mask, device)
        return Block(self.start, self.stop, self.first, self.again, mask)

    def keys(self, states: Tensor) -> Tensor:
        """The keys, or values, that the block needs, (B, heads, keys, d) of (B, heads, T, d)."""
        if self.first == self.again:
            return states[:, :, : self.stop]
        return torch.cat([states[:, :, : self.first], states[:, :, self.again : self.stop]], dim=2)

    def near(self, positions: Tensor, window: int) -> Tensor:
        """The mask restricted to a sliding window; positions (B, T)."""
        keys = torch.cat([positions[:, : self.first], positions[:, self.again : self.stop]], dim=1)
        close = near(positions[:, self.start : self.stop], keys, window)
        return close & (self.mask if self.mask is not None else torch.ones_like(close).tril_())


@dataclass(frozen=True)
class Blocks:
    """All blocks of a batch, in order.

    Attributes:
        positions: (B, T) int64.
        longest: The largest position plus one, which a sliding window is compared with.
    """

    blocks: tuple[Block, ...]
    positions: Tensor
    longest: int
    _moved: dict[torch.device, "Blocks"] = field(default_factory=dict, repr=False, compare=False)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "Blocks":
        """The same on another device, copied there once; accelerate's hooks call this for every layer."""
        there = torch.device(device)
        if there == self.positions.device:
            return self
        if there not in self._moved:
            blocks = tuple(block.to(there) for block in self.blocks)
            self._moved[there] = Blocks(blocks, upload(self.positions, there), self.longest)
        return self._moved[there]


@dataclass(frozen=True)
class PackedPart:
    """The tokens of one batch in a packed batch.

    Attributes:
        start, stop: Its first token, and the one after its last.
        shape: (B, T).
        mask: (B, 1, T, T) what is added to attention scores; None for plain causal attention.
        positions: (B, T) int64, or None for 0, 1, 2, …
    """

    start: int
    stop: int
    shape: tuple[int, int]
    mask: Tensor | None
    positions: Tensor | None = None

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "PackedPart":
        """The same on another device."""
        moved = (None if each is None else each.to(device) for each in (self.mask, self.positions))
        return PackedPart(self.start, self.stop, self.shape, *moved)

    def within(self, window: int | None, query: Tensor) -> Tensor | None:
        """The mask restricted to a sliding window, on the device and in the precision of queries; None for plain attention."""
        tokens = self.shape[1]
        if window is None or tokens <= window:
            return self.mask
        step = torch.arange(tokens, device=query.device)[None]
        close = near(step, step, window) if self.positions is None else near(self.positions, self.positions, window)
        if self.mask is None:
            return added(close & (step[:, :, None] >= step[:, None]), query.dtype)
        return self.mask.masked_fill(~close, torch.finfo(query.dtype).min)


class Prefixes(Protocol):
    """What becomes of the keys and values of a pass (`genre.modules.base.prefixes`)."""

    def enter(self, layer: int, hidden: Tensor) -> None:
        """Called before a layer with its input, (B, T, D)."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor | None:
        """The next layer's attention, (B, T, heads, d); None leaves it as it is. Arguments as of `attend` here."""


def plan_blocks(masked: Sequence[np.ndarray], positions: Tensor) -> Blocks:
    """Plan the blocks of a batch of rows.

    Args:
        masked: For each row (t, 2) int: token t does not see the tokens from masked[t, 0] up to, not including, masked[t, 1].
        positions: (B, T) int64, padded at the right.
    """
    count, total = positions.shape
    step = np.arange(total)
    spans = np.stack([np.zeros((count, total), np.int64), np.broadcast_to(step, (count, total))], axis=-1)
    inside = np.zeros((count, total), dtype=bool)
    for row, own in enumerate(masked):  # padding sees itself only
        spans[row, : len(own)] = own
        inside[row, : len(own)] = True
    masks_any = ((spans[..., 1] > spans[..., 0]) & inside).any(0)
    begin = int(masks_any.argmax()) if masks_any.any() else total
    blocks = [Block(0, begin, begin, begin, None)] if begin else []
    for start in range(begin, total, BLOCK):
        stop = min(start + BLOCK, total)
        own, known = spans[:, start:stop], inside[:, start:stop]
        first, again = int(own[..., 0][known].max()), int(own[..., 1][known].min())
        if first >= again:
            first = again = stop
        keys = np.concatenate([step[:first], step[again:stop]])
        lower, upper = own[..., :1], own[..., 1:]
        see = (keys <= step[start:stop, None]) & ~((keys >= lower) & (keys < upper))
        blocks.append(Block(start, stop, first, again, torch.from_numpy(see[:, None])))
    return Blocks(tuple(blocks), positions, int(positions.max()) + 1)


def attend_by_blocks(model: Any) -> None:
    """Let a transformers model's attention layers take `blocks=` or `packed=` (mutates it); without them they are as before.

    The model is one that was loaded with `attn_implementation="sdpa"`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


@contextmanager
def block_attention(model: Any) -> Iterator[None]:
    """A block in which `attend_by_blocks` holds."""
    attend_by_blocks(model)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    blocks: Blocks | None = None,
    packed: tuple[PackedPart, ...] | None = None,
    prefixes: Prefixes | None = None,
    plain: bool = False,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention by blocks or of a packed batch; by the whole row, as transformers does it, where none are given.

    Args:
        module: The attention layer.
        query: (B, heads, T, d).
        key: (B, key heads, T, d).
        value: (B, key heads, T, d).
        attention_mask: Only without blocks and packed batches, and where attention is not plain.
        blocks: Of the batch.
        packed: The parts of a packed batch, B = 1.
        prefixes: Keeps keys and values, or attends to those that were kept before.
        plain: Causal attention, whatever the mask.
        scaling: Of the products.
        sliding_window: How far a token looks back, in positions; None for all the way.
        rest: transformers' further arguments.

    Returns:
        (B, T, heads, d), and no weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packed is not None:
        found = []
        for part in packed:
            flat = (states[0, :, part.start : part.stop] for states in (query, key, value))
            rows = [states.unflatten(1, part.shape).transpose(0, 1) for states in flat]
            mask = part.within(sliding_window, query)
            found.append(sdpa_attention_forward(module, *rows, mask, scaling=scaling, **rest)[0].flatten(0, 1))
        return torch.cat(found)[None], None
    if plain:
        attention_mask = PackedPart(0, 0, (query.shape[0], query.shape[2]), None).within(sliding_window, query)
    if blocks is None:
        rest |= {"scaling": scaling, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **rest)
    if prefixes is not None:
        continued = prefixes.attend(query, key, value, scaling, sliding_window)
        if continued is not None:
            return continued, None
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    window = sliding_window if sliding_window is not None and sliding_window < blocks.longest else None
    parts = []
    for block in blocks.blocks:
        mask = block.mask if window is None else block.near(blocks.positions, window)
        own, keys, values = query[:, :, block.start : block.stop], block.keys(key), block.keys(value)
        states = F.scaled_dot_product_attention(own, keys, values, attn_mask=mask, is_causal=mask is None, scale=scaling)
        parts.append(states.transpose(1, 2))
    return torch.cat(parts, dim=1), None


def near(queries: Tensor, keys: Tensor, window: int) -> Tensor:
    """The mask of a sliding window, (B, 1, Q, K) bool, from the positions of queries (B, Q) and keys (B, K)."""
    return (queries[:, :, None] - keys[:, None] < window)[:, None]


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive form of a mask that is True where a query may look."""
    return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)


def masks_of(config: Any, mask: Tensor, positions: Tensor | None, dtype: torch.dtype) -> Any:
    """A mask (B, 1, T, T) as a model adds it to attention scores; for one with layers of both kinds a mask for each kind.

    transformers takes a mask of four dimensions as it is, so a sliding window that rows are longer than must be in it.
    """
    whole, window = added(mask, dtype), getattr(config, "sliding_window", None)
    if window is None or mask.shape[-1] <= window:
        return whole
    if positions is None:
        positions = torch.arange(mask.shape[-1], device=mask.device)[None]
    slid = added(mask & near(positions, positions, window), dtype)
    kinds = set(getattr(config, "layer_types", None) or ("sliding_attention",))
    if len(kinds) > 1:
        return {"full_attention": whole, "sliding_attention": slid}
    return slid if kinds == {"sliding_attention"} else whole
