"""Rows to batches: padding, masks, where each task reads, and which rows go together.

Owns: batches of tensors and by token budget. Ignores: how a row came about, task names, models.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genre.data.dataset import Slot
from genre.data.sequences.layout import Sequence


@dataclass(frozen=True)
class Reads:
    """Where one task reads a batch, n targets.

    Attributes:
        rows: (n,) int64 row of the batch.
        places: (n,) int64 token of the row.
        seen: (n,) int64 events of the row that the target may see.
        stands: (n,) int64, how many of them come before it in time.
        items: (n,) int64 item code of the target.
        labels: (n,) float32 or int64.
        events: (n,) int64 the caller's numbers.
        spans: (n,) int64, of how many tokens up to `places` the mean is read; None for that token alone.
    """

    rows: Tensor
    places: Tensor
    seen: Tensor
    stands: Tensor
    items: Tensor
    labels: Tensor
    events: Tensor
    spans: Tensor | None = None

    def to(self, device: torch.device) -> "Reads":
        """The same on another device (events stay)."""
        return Reads(
            self.rows.to(device),
            self.places.to(device),
            self.seen.to(device),
            self.stands.to(device),
            self.items.to(device),
            self.labels.to(device),
            self.events,
            None if self.spans is None else self.spans.to(device),
        )

    def of(self, hidden: Tensor) -> Tensor:
        """(n, D) states to read of (B, T, D) hidden states."""
        if self.spans is None:
            return hidden[self.rows, self.places]
        return span_means(hidden[self.rows], self.places, self.spans)


@dataclass(frozen=True)
class Batch:
    """B rows of at most T tokens, right-padded; a lane per row.

    Attributes:
        tokens: (B, T) int64.
        items, feedback: (B, T) int64 codes, -1 where there is none.
        positions: (B, T) int64, or None where every row simply counts up.
        mask: (B, 1, T, T) bool, or None for plain causal attention.
        lanes: (B,) int64.
        history: (B, E) int64 item codes of the events, -1 where a row has fewer.
        given: (B, E) int64 their feedback codes, 0 there.
        reads: What each task reads.
        used: Tokens that are no padding.
        lengths: (B,) int64, the same of each row.
    """

    tokens: Tensor
    items: Tensor
    feedback: Tensor
    positions: Tensor | None
    mask: Tensor | None
    lanes: Tensor
    history: Tensor
    given: Tensor
    reads: dict[str, Reads]
    used: int
    lengths: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same on another device."""
        place = torch.device(device)

        def move(tensor: Tensor | None) -> Any:
            return None if tensor is None else tensor.to(place)

        return Batch(
            move(self.tokens), move(self.items), move(self.feedback), move(self.positions), move(self.mask),
            move(self.lanes), move(self.history), move(self.given),
            {name: reads.to(place) for name, reads in self.reads.items()}, self.used, move(self.lengths),
        )  # fmt: skip


def collate(rows: Rows[Sequence], supervise: Mapping[str, tuple[Slot, np.ndarray]], lanes: Rows[int] | None = None) -> Batch:
    """Pad rows to one batch and gather what each task reads.

    Args:
        rows: At least one sequence.
        supervise: For each task, its slot and its label per event number: (n,) float with NaN where there is none, or
            int (item codes; -1 where there is none).
        lanes: A lane per row, 0 if None.
    """
    longest = max(len(row) for row in rows)
    shape = (len(rows), longest)
    tokens, items, feedback = np.zeros(shape, np.int64), np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
    history = np.full((len(rows), max(len(row.codes) for row in rows)), -1, np.int64)
    given = np.zeros_like(history)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row.tokens
        items[place, : len(row)] = row.items
        feedback[place, : len(row)] = row.feedback
        history[place, : len(row.codes)], given[place, : len(row.codes)] = row.codes, row.given
    positions = mask = None
    if any(row.branches for row in rows):
        positions, mask = _masked(rows, longest)
    reads = {name: _reads(rows, slot, labels) for name, (slot, labels) in supervise.items()}
    return Batch(
        torch.from_numpy(tokens), torch.from_numpy(items), torch.from_numpy(feedback), positions, mask,
        torch.as_tensor(list(lanes) if lanes is not None else [0] * len(rows)), torch.from_numpy(history),
        torch.from_numpy(given),
        reads, sum(len(row) for row in rows), torch.tensor([len(row) for row in rows]),
    )  # fmt: skip


def padded(values: Rows[np.ndarray], filling: int) -> Tensor:
    """(B, T) int64 from B arrays, filled up at the right."""
    found = np.full((len(values), max(map(len, values))), filling, dtype=np.int64)
    for place, own in enumerate(values):
        found[place, : len(own)] = own
    return torch.from_numpy(found)


def span_means(hidden: Tensor, ends: Tensor, spans: Tensor) -> Tensor:
    """The mean state of a span of each row: (n, T, D), the last token (n,) and the number of tokens (n,) → (n, D) float32."""
    step = torch.arange(hidden.shape[1], device=hidden.device)
    inside = (step <= ends[:, None]) & (step > (ends - spans)[:, None])
    return torch.bmm((inside / spans[:, None]).unsqueeze(1), hidden.float()).squeeze(1)


def _masked(rows: Rows[Sequence], longest: int) -> tuple[Tensor, Tensor]:
    positions = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.ones(longest, longest, dtype=torch.bool).tril_().expand(len(rows), 1, longest, longest).clone()
    keys = torch.arange(longest)
    for place, row in enumerate(rows):
        positions[place, : len(row)] = torch.from_numpy(row.positions).long()
        hide = torch.from_numpy(row.hide)
        inside = (keys >= hide[:, :1]) & (keys < hide[:, 1:])
        mask[place, 0, : len(row)] &= ~inside
    return positions, mask


def _reads(rows: Rows[Sequence], slot: Slot, labels: np.ndarray) -> Reads:
    columns: list[np.ndarray] = []  # row, place, span, seen, stand, item and event of each
    spanned = slot == "item" and any(row.spans is not None for row in rows)
    for owner, row in enumerate(rows):
        inside, asked = row.targets & (row.events >= 0), row.candidate_events >= 0
        places = (row.item_reads if slot == "item" else row.next_reads)[inside]
        ends = row.candidate_reads[asked] if slot == "item" else np.full(int(asked.sum()), row.trunk - 1)
        place = np.concatenate([places, ends])
        span = np.ones(len(place)) if row.spans is None else np.concatenate([row.spans[inside], np.ones(len(ends))])
        seen = np.concatenate([row.seen[inside], np.full(len(ends), len(row.codes))])
        stand = np.concatenate([row.seen[inside], row.candidate_stands[asked]])
        event = np.concatenate([row.events[inside], row.candidate_events[asked]])
        item = np.concatenate([row.codes[inside], row.candidates[asked]])
        columns.append(np.stack([np.full(len(place), owner), place, span, seen, stand, item, event]).astype(np.int64))
    owner_of, place_of, span_of, seen_of, stand_of, item_of, event_of = np.concatenate(columns, axis=1)
    label = labels[event_of]
    known = ~np.isnan(label) if label.dtype.kind == "f" else label >= 0
    kind = np.float32 if label.dtype.kind == "f" else np.int64
    owners, reads, spans, before, stands, items, events = (
        torch.from_numpy(column[known]) for column in (owner_of, place_of, span_of, seen_of, stand_of, item_of, event_of)
    )
    truth = torch.from_numpy(label[known].astype(kind))
    return Reads(owners, reads, before, stands, items, truth, events, spans if spanned else None)


def plan_batches(lengths: np.ndarray, budget: int, order: np.ndarray | None = None, *, pool: int = 2048) -> Iterator[np.ndarray]:
    """Groups of rows whose padded size stays within a token budget.

    Args:
        lengths: (n,) tokens of each row.
        budget: Padded tokens of one batch; a single longer row is a batch of its own.
        order: (n,) the order to take rows in (shuffled for training); by length if None.
        pool: Rows that are sorted by length together, so that padding stays small and the order stays random.

    Yields:
        Indices of the rows of one batch.
    """
    rows = np.argsort(lengths, kind="stable") if order is None else np.asarray(order)
    for start in range(0, len(rows), pool if order is not None else max(len(rows), 1)):
        part = rows[start : start + pool] if order is not None else rows
        part = part[np.argsort(lengths[part], kind="stable")]
        batch: list[int] = []
        for row in part:
            if batch and (len(batch) + 1) * lengths[row] > budget:
                yield np.array(batch)
                batch = []
            batch.append(int(row))
        if batch:
            yield np.array(batch)
