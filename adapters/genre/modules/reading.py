"""From hidden states to a head's output: the states that a task reads, and what the head sees of each row's history.

Owns: the one function that reads a batch, in training, evaluation and the engine. Ignores: how hidden states came about, losses.

    output = read(head, hidden, batch, reads, soft)      # (n,), (n, C) or (n, N)

Heads get tables of the items that occur in a batch only. A table of a whole catalogue is made for heads that score all of it, by
who asks for that (`tables`).
"""

import torch
from torch import Tensor

from genre.data.sequences.batches import Batch, Reads
from genre.data.sequences.transfer import upload
from genre.modules.embedding import SoftVectors
from genre.modules.heads.gaussian_process import View
from genre.modules.heads.heads import CatalogueHead, Head
from genre.modules.heads.neighbours import histories_of


def read(
    head: Head,
    hidden: Tensor,
    batch: Batch,
    reads: Reads,
    soft: SoftVectors | None,
    *,
    tables: tuple[Tensor, ...] | None = None,
    events: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """A head's raw output at some reads: (n,), (n, C) or (n, N).

    Args:
        head: The head.
        hidden: (B, T, D) states.
        batch: What the hidden states are of.
        reads: The n reads.
        soft: The item vectors; None where the adapter has none.
        tables: `Head.tables` of all item vectors, for a head that scores the whole catalogue.
        events: (n,) the events that are read, by which a head finds its out-of-fold logits in training.
        weights: (B, E) weight of each event of the history, 1 if None.
    """
    state = reads.of(hidden)
    if soft is None or not head.sees_items:
        output: Tensor = head(state)
        return output if head.terms is None else head.count(output, batch.tokens[reads.rows], batch.lengths[reads.rows], events)
    if tables is None:
        view, _ = view_of(head, batch, reads, soft, weights=weights)
    else:
        history = batch.history_items, batch.history_feedback
        view = View(tables, *history, reads.rows, reads.history_lengths, reads.items, reads.time_index, weights, _rows(reads))
    found: Tensor = head(state, view)
    return found if tables is None else found + neighbour_scores(head, batch, reads, soft, weights=weights)


def neighbour_scores(
    head: Head,
    batch: Batch,
    reads: Reads,
    soft: SoftVectors,
    *,
    codes: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor | float:
    """The scores of a head's item neighbours at some reads: (n, N), or (n, m) for some codes (m,).

    Zero for a head without them, and in training. Other arguments as in `read`.
    """
    if head.training or not isinstance(head, CatalogueHead) or head.neighbours is None:
        return 0.0
    items = batch.history_items
    each = torch.ones_like(items, dtype=torch.float32) if weights is None else weights
    history = histories_of(items, each, reads.rows, reads.history_lengths)
    added: Tensor = head.neighbours(soft.index, *history, codes)
    return added


def view_of(
    head: Head, batch: Batch, reads: Reads, soft: SoftVectors, *others: Tensor, weights: Tensor | None = None
) -> tuple[View, list[Tensor]]:
    """A head's view of a batch, over tables of the items that occur there.

    Args:
        head: The head.
        batch: B rows.
        reads: The n reads.
        soft: The item vectors.
        others: Codes of further items that the tables shall have, on the CPU.
        weights: As in `read`.

    Returns:
        The view, and the other codes as rows of its tables.
    """
    codes, parts = compact(batch.on_host.history_items, reads.on_host.items, *others)
    history_items, items, *rest = (upload(part, reads.rows.device) for part in parts)
    tables = head.tables(soft.items(upload(codes, reads.rows.device)))
    history = history_items, batch.history_feedback
    return View(tables, *history, reads.rows, reads.history_lengths, items, reads.time_index, weights, _rows(reads)), rest


def _rows(reads: Reads) -> Tensor:
    return reads.on_host.rows


def compact(*codes: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The different item codes (m,) among some tensors of codes, and those tensors as indices into them; -1 stays."""
    flat = torch.cat([some.reshape(-1) for some in codes])
    found, index = torch.unique(flat.clamp_min(0), return_inverse=True)
    index = torch.where(flat < 0, flat, index)
    parts = index.split([some.numel() for some in codes])
    return found, [part.view_as(some) for part, some in zip(parts, codes, strict=True)]
