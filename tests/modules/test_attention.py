"""Attention by blocks and of packed batches, against one dense mask over every row."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genre.modules.base.attention import BLOCK, Blocks, PackedPart, added, attend, block_attention, plan_blocks

HEADS, WIDTH = 4, 8


def row_of(history, branches, *, masked=()):
    """Spans that each token of a row does not see, and its positions: a history, then branches that see it and themselves.

    Args:
        history: Tokens of the history.
        branches: Tokens of each branch.
        masked: (first, end, start, stop): history tokens from `first` to `end` do not see those from `start` to `stop`.
    """
    total = history + sum(branches)
    spans, positions, begin = np.zeros((total, 2), dtype=np.int64), np.arange(total), history
    for first, end, start, stop in masked:
        spans[first:end] = start, stop
    for length in branches:
        spans[begin : begin + length] = history, begin
        positions[begin : begin + length] = history + np.arange(length)
        begin += length
    return spans, positions


def batch_of(rows):
    """Spans, padded positions (B, T), and the dense mask (B, 1, T, T): causal, without masked spans; padding sees itself."""
    longest = max(len(spans) for spans, _ in rows)
    positions = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), 1, longest, longest, dtype=torch.bool)
    for index, (spans, own) in enumerate(rows):
        positions[index, : len(own)] = torch.from_numpy(own)
        for query in range(longest):
            if query >= len(own):
                mask[index, 0, query, query] = True
                continue
            start, stop = spans[query]
            mask[index, 0, query, [key for key in range(query + 1) if not start <= key < stop]] = True
    return [spans for spans, _ in rows], positions, mask


def states(count, length, *, key_heads=HEADS, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    sizes = ((HEADS, 1.0), (key_heads, 1.0), (key_heads, 1.0))
    return [(torch.randn(count, heads, length, WIDTH, generator=draw) * size).to(dtype) for heads, size in sizes]


def dense(query, key, value, mask, **more):
    """Attention over whole rows: (B, T, heads, d)."""
    shared = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(shared, dim=1) for each in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **more).transpose(1, 2)


class Layer(nn.Module):
    """What transformers' functions ask an attention layer for."""

    is_causal = True

    def __init__(self, groups=1):
        super().__init__()
        self.num_key_value_groups = groups


ROWS = {
    "one row": [row_of(7, [3, 2, 4])],
    "several rows, padded": [row_of(7, [3, 2, 4]), row_of(2, [1, 1]), row_of(5, [])],
    "no branches": [row_of(6, []), row_of(9, [])],
    "no history": [row_of(0, [2, 3])],
    "masked history": [row_of(9, [2, 2], masked=[(5, 7, 2, 4), (7, 9, 2, 6)]), row_of(6, [3])],
    "several blocks": [row_of(40, [30] * 9), row_of(150, [20] * 6)],
}


@pytest.mark.parametrize("key_heads", [HEADS, 2, 1], ids=lambda heads: f"{heads} key heads")
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_blocks_equal_a_dense_mask(rows, key_heads):
    masked, positions, mask = batch_of(rows)
    query, key, value = states(*positions.shape, key_heads=key_heads)
    blocks = plan_blocks(masked, positions)
    assert (len(blocks.blocks) > 2) == (max(map(len, masked)) > 2 * BLOCK)
    got, weights = attend(Layer(), query, key, value, None, blocks=blocks)
    assert weights is None
    for index, spans in enumerate(masked):
        wanted = dense(query, key, value, mask)[index, : len(spans)]
        assert torch.allclose(got[index, : len(spans)], wanted, atol=1e-6)


def test_a_branch_sees_the_history_and_itself_only():
    """It is what it would be as the end of a row of its own, and nothing in another branch or in padding changes it."""
    (spans, own), other = row_of(7, [3, 4, 2]), row_of(12, [6])
    masked, positions, _ = batch_of([(spans, own), other])
    query, key, value = states(*positions.shape)
    got, _ = attend(Layer(), query, key, value, None, blocks=plan_blocks(masked, positions))
    for start, stop in ((7, 10), (10, 14), (14, 16)):
        seen = [*range(7), *range(start, stop)]
        alone = (each[:1, :, seen] for each in (query, key, value))
        wanted = F.scaled_dot_product_attention(*alone, is_causal=True).transpose(1, 2)
        assert torch.allclose(got[0, start:stop], wanted[0, 7:], atol=1e-6)
        changed = [each.clone() for each in (key, value)]
        for each in changed:
            each[0, :, [token for token in range(7, 18) if not start <= token < stop]] = 5.0
        again, _ = attend(Layer(), query, *changed, None, blocks=plan_blocks(masked, positions))
        assert torch.equal(again[0, start:stop], got[0, start:stop])


def test_keys_that_no_token_of_a_block_sees_are_left_out():
    spans, own = row_of(10, [BLOCK, BLOCK, 5])
    blocks = plan_blocks([spans], torch.from_numpy(own)[None])
    assert [(block.start, block.stop, block.first, block.again) for block in blocks.blocks] == [
        (0, 10 + BLOCK, 10 + BLOCK, 10 + BLOCK),  # the first branch follows the history as a plain row would
        (10 + BLOCK, 10 + 2 * BLOCK, 10, 10 + BLOCK),
        (10 + 2 * BLOCK, 15 + 2 * BLOCK, 10, 10 + 2 * BLOCK),
    ]
    assert blocks.blocks[0].mask is None and blocks.blocks[1].mask.shape == (1, 1, BLOCK, 10 + BLOCK)
    assert blocks.longest == 10 + BLOCK


@pytest.mark.parametrize("window", [3, 6, 100])
def test_a_sliding_window_counts_positions(window):
    masked, positions, mask = batch_of([row_of(7, [3, 2, 4]), row_of(4, [2])])
    near = (positions[:, :, None] - positions[:, None] < window)[:, None]
    query, key, value = states(*positions.shape)
    got, _ = attend(Layer(), query, key, value, None, blocks=plan_blocks(masked, positions), sliding_window=window)
    wanted = dense(query, key, value, mask & near)
    for index, spans in enumerate(masked):
        assert torch.allclose(got[index, : len(spans)], wanted[index, : len(spans)], atol=1e-6)


def test_the_scale_is_the_layers():
    masked, positions, mask = batch_of([row_of(5, [2, 2])])
    query, key, value = states(*positions.shape)
    got, _ = attend(Layer(), query, key, value, None, blocks=plan_blocks(masked, positions), scaling=0.7)
    assert torch.allclose(got, dense(query, key, value, mask, scale=0.7), atol=1e-6)


def test_bfloat16_stays_within_its_rounding():
    masked, positions, mask = batch_of([row_of(40, [30] * 9)])
    exact = states(*positions.shape)
    rough, _ = attend(Layer(), *(each.bfloat16() for each in exact), None, blocks=plan_blocks(masked, positions))
    wanted = dense(*exact, mask)
    assert rough.dtype == torch.bfloat16 and (rough.float() - wanted).norm() < 0.01 * wanted.norm()


def test_gradients_equal_those_of_a_dense_mask():
    masked, positions, mask = batch_of([row_of(7, [3, 2, 4]), row_of(7, [9])])
    found = []
    for by_blocks in (True, False):
        own = [each.requires_grad_() for each in states(*positions.shape, key_heads=2)]
        if by_blocks:
            out, _ = attend(Layer(), *own, None, blocks=plan_blocks(masked, positions))
        else:
            out = dense(*own, mask)
        out.square().sum().backward()
        found.append([each.grad for each in own])
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*found, strict=True))


# --- packed batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("key_heads", [HEADS, 2])
def test_each_batch_of_a_packed_one_sees_itself_only(key_heads, window):
    """Two rows of 5 tokens, one of 3, and a row with branches, packed into one row; a window counts positions in all of them."""
    _, positions, branched = batch_of([row_of(4, [2, 3])])
    branched = branched & (positions[:, :, None] - positions[:, None] < (window or 100))[:, None]
    _, _, unwindowed = batch_of([row_of(4, [2, 3])])
    shapes, masks, places = [(2, 5), (1, 3), (1, 9)], [None, None, unwindowed], [None, None, positions]
    alone = [states(*shape, key_heads=key_heads, seed=seed) for seed, shape in enumerate(shapes)]
    flat = [torch.cat([each[kind].transpose(0, 1).flatten(1, 2) for each in alone], dim=1)[None] for kind in range(3)]
    parts, start = [], 0
    for shape, mask, place in zip(shapes, masks, places, strict=True):
        stop = start + shape[0] * shape[1]
        parts.append(PackedPart(start, stop, shape, None if mask is None else added(mask, torch.float32), place))
        start = stop
    got, _ = attend(Layer(HEADS // key_heads), *flat, None, packed=tuple(parts), sliding_window=window)
    assert got.shape == (1, start, HEADS, WIDTH)
    for part, mask, own in zip(parts, (None, None, branched), alone, strict=True):
        step = torch.arange(part.shape[1])
        causal = (step[:, None] >= step) & (step[:, None] - step < (window or 100))
        wanted = dense(*own, causal if mask is None else mask)
        assert torch.allclose(got[0, part.start : part.stop], wanted.flatten(0, 1), atol=1e-6)


def test_plans_and_parts_move_with_the_layers_that_accelerate_places():
    masked, positions, _ = batch_of([row_of(5, [2, 2])])
    blocks = plan_blocks(masked, positions)
    there = blocks.to("meta")
    assert blocks.to("cpu") is blocks and there is blocks.to("meta") and isinstance(there, Blocks)
    assert there.blocks[1].mask.is_meta and there.blocks[0].mask is None and there.positions.is_meta
    part = PackedPart(0, 4, (2, 2), torch.zeros(2, 1, 2, 2), torch.zeros(2, 2, dtype=torch.long))
    assert part.to("meta").mask.is_meta and part.to("meta").positions.is_meta and part.to("meta").shape == (2, 2)


# --- on a model ------------------------------------------------------------------------------------------------------


def test_a_model_has_its_own_attention_again_afterwards(base):
    before = {name: str(value) for name, value in base.model.config.to_dict().items()}
    kind, ids = base.model.config._attn_implementation, torch.randint(3, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = base.hidden(base.embedding(ids))
        with block_attention(base.model):
            assert base.model.config._attn_implementation != kind
            assert torch.equal(base.hidden(base.embedding(ids)), wanted)  # without blocks it attends as before
        with pytest.raises(RuntimeError, match="stop"), block_attention(base.model):
            raise RuntimeError("stop")
        assert torch.equal(base.hidden(base.embedding(ids)), wanted)
    assert base.model.config._attn_implementation == kind == "sdpa"
    assert {name: str(value) for name, value in base.model.config.to_dict().items()} == before


@torch.no_grad()
def test_a_base_gives_the_same_states_by_blocks_and_by_a_dense_mask(base):
    masked, positions, mask = batch_of([row_of(7, [3, 2, 4]), row_of(4, [2, 5])])
    embeds = base.embedding(torch.randint(3, 250, tuple(positions.shape), generator=torch.Generator().manual_seed(0)))
    wanted = base.hidden(embeds, positions, mask)
    with block_attention(base.model):
        got = base.hidden(embeds, positions, blocks=plan_blocks(masked, positions))
    for index, spans in enumerate(masked):
        assert torch.allclose(got[index, : len(spans)], wanted[index, : len(spans)], atol=1e-5)
