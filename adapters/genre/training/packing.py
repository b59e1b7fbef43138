"""Packed batches: those of several runs side by side in one pass of a base, none padded to another's length.

Owns: checking that a base can do that. Ignores: adapters, losses, how it is done (`Base.packed`).
"""

from collections.abc import Iterator
from collections.abc import Sequence as Rows
from contextlib import contextmanager

import torch
from torch import Tensor

from genre.data.sequences.batches import Batch
from genre.errors import BaseModelError
from genre.modules.base.base import Base


@contextmanager
def packing(base: Base) -> Iterator[None]:
    """A block in which the base's attention keeps the batches of a packed one apart (mutates the base).

    Raises:
        BaseModelError: The base's attention cannot be replaced.
    """
    if not base.takes_blocks:
        raise _unfit(base, "its attention cannot be replaced")
    with base.by_blocks():
        yield


def packed_hidden(base: Base, embeds: Rows[Tensor], batches: Rows[Batch]) -> list[Tensor]:
    """Hidden states of several batches, each as `Base.hidden` gives them alone; within `packing`.

    Args:
        base: A causal base.
        embeds: For each batch (B, T, D).
        batches: The batches; their positions, masks and read tokens are used.

    Returns:
        For each batch (B, T, D).
    """
    if len(batches) == 1:
        return [base.hidden(embeds[0], batches[0].positions, batches[0].mask, read=batches[0].read_tokens)]
    read = packed_read_tokens(batches)
    return base.packed(embeds, [each.positions for each in batches], [each.mask for each in batches], read=read)


def read_count(batch: Batch) -> int:
    """The number of tokens of a batch that go through the whole last layer."""
    return batch.tokens.numel() if batch.read_tokens is None else len(batch.read_tokens)


def packed_read_tokens(batches: Rows[Batch]) -> Tensor | None:
    """(n,) the tokens of a packed batch that are read; None if that is all of them."""
    if all(batch.read_tokens is None for batch in batches):
        return None
    found, start = [], 0
    for batch in batches:
        size, own = batch.tokens.numel(), batch.read_tokens
        found.append(start + (torch.arange(size, device=batch.tokens.device) if own is None else own))
        start += size
    return torch.cat(found)


@torch.no_grad()
def check_packing(base: Base) -> None:
    """Compare a packed pass of two short batches with passes of each alone; the base must be bare, and is left so.

    Raises:
        BaseModelError: They differ: something beside the base's attention looks at more than one token.
    """
    draw = torch.Generator().manual_seed(0)
    drawn = [torch.randn(*size, base.hidden_size, generator=draw) * base.embedding_rms for size in ((1, 7), (2, 4))]
    embeds = [each.to(base.device, base.dtype) for each in drawn]
    alone = [base.hidden(each) for each in embeds]
    with packing(base):
        packed = base.packed(embeds, [None, None], [None, None])
    close = 1e-3 if base.quantization == "none" and base.dtype == torch.float32 else 0.1  # activations are rounded
    for one, other in zip(packed, alone, strict=True):
        if not (one - other).float().norm() <= close * other.float().norm():
            raise _unfit(base, "tokens see each other outside its attention")


def _unfit(base: Base, reason: str) -> BaseModelError:
    what = f"base {base.name!r} cannot train several adapters at once"
    return BaseModelError(what, got=reason, todo="train the recipes one after the other")
