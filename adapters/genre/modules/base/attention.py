"""Attention over rows with branches, a block of queries at a time, and over batches that lie in one line.

Owns: which keys a block of queries needs, what of a line is one batch, and the function that transformers' attention layers call.
Ignores: what rows mean, layers, adapters.

A row of h history tokens and C branches of l tokens, T = h + C·l, asks for T² products under one mask over the row; here

    queries                                   keys
    the history                               the history, causal, without a mask
    the branches, 128 tokens at a time        the history, and from the first branch of the block to its end, under a mask

is about h²/2 + C·l·(h + 128 + l), and the masks of a row take C·l·(h + 128 + l) bytes instead of T² floats. The same holds of
any hidden spans (impressions in the history): keys that no token of a block sees are left out.

Everything in a decoder but its attention looks at one token at a time. So batches of different lengths can lie side by side:

    batch 0: 2 rows of 5 tokens, batch 1: 1 row of 3     →  13 tokens in one line through every linear and norm;
                                                            attention on (2, 5) and on (1, 3)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


@dataclass(frozen=True)
class Blocks:
    """All blocks of a batch, in order.

    Attributes:
        positions: (B, T) int64.
        longest: The largest position and one: what a sliding window is compared with.
    """

    blocks: tuple[Block, ...]
    positions: Tensor
    longest: int
    _moved: dict[torch.device, "Blocks"] = field(default_factory=dict, repr=False, compare=False)

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "Blocks":
        """The same on another device, copied there once; accelerate's hooks call this for every layer."""
        place = torch.device(device)
        if place == self.positions.device:
            return self
        if place not in self._moved:
            blocks = tuple(
                Block(b.start, b.stop, b.first, b.again, None if b.mask is None else b.mask.to(place)) for b in self.blocks
            )
            self._moved[place] = Blocks(blocks, self.positions.to(place), self.longest)
        return self._moved[place]


@dataclass(frozen=True)
class Segment:
    """One batch's place in a line of tokens.

    Attributes:
        start, stop: Its tokens.
        shape: (B, T).
        mask: (B, 1, T, T) what is added to attention scores; None for plain causal attention.
    """

    start: int
    stop: int
    shape: tuple[int, int]
    mask: Tensor | None

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "Segment":
        """The same on another device."""
        return Segment(self.start, self.stop, self.shape, None if self.mask is None else self.mask.to(device))


def plan_blocks(hide: Sequence[np.ndarray], positions: Tensor) -> Blocks:
    """Blocks for a batch of rows.

    Args:
        hide: For each row (t, 2) int: token t does not see the tokens from hide[t, 0] up to, not including, hide[t, 1].
        positions: (B, T) int64, padded at the right.
    """
    count, total = positions.shape
    step = np.arange(total)
    spans = np.stack([np.zeros((count, total), np.int64), np.broadcast_to(step, (count, total))], axis=-1)
    there = np.zeros((count, total), dtype=bool)
    for row, own in enumerate(hide):  # padding sees itself only
        spans[row, : len(own)] = own
        there[row, : len(own)] = True
    hidden = ((spans[..., 1] > spans[..., 0]) & there).any(0)
    begin = int(hidden.argmax()) if hidden.any() else total
    blocks = [Block(0, begin, begin, begin, None)] if begin else []
    for start in range(begin, total, BLOCK):
        stop = min(start + BLOCK, total)
        own, known = spans[:, start:stop], there[:, start:stop]
        first, again = int(own[..., 0][known].max()), int(own[..., 1][known].min())
        if first >= again:
            first = again = stop
        keys = np.concatenate([step[:first], step[again:stop]])
        lower, upper = own[..., :1], own[..., 1:]
        see = (keys <= step[start:stop, None]) & ~((keys >= lower) & (keys < upper))
        blocks.append(Block(start, stop, first, again, torch.from_numpy(see[:, None])))
    return Blocks(tuple(blocks), positions, int(positions.max()) + 1)


def install(model: Any) -> str:
    """Set what `block_attention` sets."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return "sdpa"


def restore(model: Any, before: str) -> None:
    """Undo `install`."""
    model.set_attn_implementation(before)


@contextmanager
def block_attention(model: Any) -> Iterator[None]:
    """A block in which a transformers model's attention layers take `blocks=` or `packed=`; without them they are as before.

    The model is one that was loaded with `attn_implementation="sdpa"`, which it has again afterwards.
    """
    before = install(model)
    try:
        yield
    finally:
        restore(model, before)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    blocks: Blocks | None = None,
    segments: tuple[Segment, ...] | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention by blocks or by segments; by the whole row, as transformers does it, where none are given.

    Args:
        module: The attention layer.
        query: (B, heads, T, d).
        key: (B, key heads, T, d).
        value: (B, key heads, T, d).
        attention_mask: Only without blocks and segments.
        blocks: Of the batch.
        segments: Of the line, B = 1.
        scaling: Of the products.
        sliding_window: How far a token looks back, in positions; None for all the way.
        rest: What else transformers says.

    Returns:
        (B, T, heads, d), and no weights.
    """
    if segments is not None:
        return _by_segments(module, query, key, value, segments, sliding_window, scaling=scaling, **rest), None
    if blocks is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, sliding_window=sliding_window, **rest
        )
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = key.repeat_interleave(shared, dim=1), value.repeat_interleave(shared, dim=1)
    window = sliding_window if sliding_window is not None and sliding_window < blocks.longest else None
    parts = []
    for block in blocks.blocks:
        mask = block.mask if window is None else _near(block, blocks.positions, window)
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, block.start : block.stop], _keys(key, block), _keys(value, block), attn_mask=mask,
                is_causal=mask is None, scale=scaling,
            ).transpose(1, 2)
        )  # fmt: skip
    return torch.cat(parts, dim=1), None


def _by_segments(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, segments: tuple[Segment, ...], window: int | None, **rest: Any
) -> Tensor:
    """(1, heads, T, d) each → (1, T, heads, d)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    parts = []
    for each in segments:
        states = (whole[0, :, each.start : each.stop] for whole in (query, key, value))
        rows = [own.unflatten(1, each.shape).transpose(0, 1) for own in states]
        mask = _looking_back(rows[0], each.shape[1], window) if each.mask is None else each.mask
        parts.append(sdpa_attention_forward(module, *rows, mask, **rest)[0].flatten(0, 1))
    return torch.cat(parts)[None]


def _keys(states: Tensor, block: Block) -> Tensor:
    if block.first == block.again:
        return states[:, :, : block.stop]
    return torch.cat([states[:, :, : block.first], states[:, :, block.again : block.stop]], dim=2)


def _looking_back(query: Tensor, tokens: int, window: int | None) -> Tensor | None:
    """What is added to the scores of rows of so many tokens that look back `window` tokens; None if that is all the way."""
    if window is None or tokens <= window:
        return None
    step = torch.arange(tokens, device=query.device)
    return added((step[:, None] >= step) & (step[:, None] - step < window), query.dtype)[None, None]


def added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores for a mask that is True where a query may look."""
    return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)


def _near(block: Block, positions: Tensor, window: int) -> Tensor:
    """A block's mask, less what lies further back than a sliding window reaches."""
    keys = torch.cat([positions[:, : block.first], positions[:, block.again : block.stop]], dim=1)
    near = positions[:, block.start : block.stop, None] - keys[:, None] < window
    mask = block.mask if block.mask is not None else torch.ones_like(near).tril_()[:, None]
    return mask & near[:, None]
