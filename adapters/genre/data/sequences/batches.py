"""Rows to batches: padding, masks, the tokens that each task reads, and groups of rows by token budget.

Owns: tensors of several rows. Ignores: how a row came about, task names, models.

    batch = collate(rows, data.supervise(tasks))
    batch.reads["like"].labels      # (n,), one per target of the rows
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from genre.data.dataset import Slot
from genre.data.sequences.drawn import DrawnItems
from genre.data.sequences.layout import Sequence
from genre.data.sequences.transfer import upload

MAX_READ_SHARE = 0.8
"""Above this share of the tokens, leaving out those that are not read costs what it saves."""


@dataclass(frozen=True)
class Reads:
    """The states of a batch that a head reads, n targets.

    Attributes:
        rows: (n,) int64 row of the batch.
        token_index: (n,) int64 token of the row.
        history_lengths: (n,) int64 events of the row that the target may see.
        time_index: (n,) int64, how many of them come before it in time.
        items: (n,) int64 item code of the target, -1 for the whole catalogue.
        spans: (n,) int64, tokens up to `token_index` whose mean is read; None for that token alone.
        code_starts: (n,) int64, the first token of the branch with the target's codes; None where rows have none.
        code_lengths: (n,) int64, the tokens of that branch.
        host: The same on the CPU, of reads on another device.
    """

    rows: Tensor
    token_index: Tensor
    history_lengths: Tensor
    time_index: Tensor
    items: Tensor
    spans: Tensor | None
    code_starts: Tensor | None = dataclasses.field(default=None, kw_only=True)
    code_lengths: Tensor | None = dataclasses.field(default=None, kw_only=True)
    host: Self | None = dataclasses.field(default=None, repr=False, kw_only=True)

    @property
    def on_host(self) -> Self:
        """The same on the CPU: what is there already is looked at without waiting for the device."""
        return self.host or self

    def to(self, device: torch.device) -> Self:
        """Move to another device."""
        return self._map(lambda value: upload(value, device), None if device.type == "cpu" else self.on_host)

    def part(self, rows: slice) -> Self:
        """Some of the reads, neighbours."""
        return self._map(lambda value: value[rows], None if self.host is None else self.host.part(rows))

    def _map(self, change: Callable[[Tensor], Tensor], host: Self | None) -> Self:
        changed: dict[str, Any] = {name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **changed, host=host)

    def of(self, hidden: Tensor) -> Tensor:
        """(n, D) states to read of (B, T, D) hidden states."""
        if self.spans is None:
            return hidden[self.rows, self.token_index]
        return span_means(hidden[self.rows], self.token_index, self.spans)


@dataclass(frozen=True)
class LabelledReads(Reads):
    """The states of a batch that one task reads, with the targets' labels.

    Attributes:
        labels: (n,) float32 or int64.
        events: (n,) int64 the caller's numbers; they stay on the CPU.
        drawn_items: (n, m) int64, the items that a loss compares for each target, -1 for none; None where it compares none.
        drawn_starts, drawn_lengths: (n, m) int64 first token and tokens of their branches; of the target's own for none.
    """

    labels: Tensor
    events: Tensor
    drawn_items: Tensor | None = None
    drawn_starts: Tensor | None = None
    drawn_lengths: Tensor | None = None

    def drawn(self) -> Self:
        """The n · m reads of what was drawn, target after target, labelled with the items; the target's own item for none."""
        assert self.drawn_items is not None and self.drawn_starts is not None and self.drawn_lengths is not None
        count = self.drawn_items.shape[1]
        host: Any = None if self.host is None else self.host.drawn()
        alone = dataclasses.replace(self, drawn_items=None, drawn_starts=None, drawn_lengths=None)
        return dataclasses.replace(
            alone._map(lambda value: value.repeat_interleave(count, dim=0), host),
            labels=torch.where(self.drawn_items < 0, self.labels[:, None], self.drawn_items).flatten(),
            code_starts=self.drawn_starts.flatten(),
            code_lengths=self.drawn_lengths.flatten(),
        )

    def to(self, device: torch.device) -> Self:
        """Move to another device."""
        return dataclasses.replace(super().to(device), events=self.events)


@dataclass(frozen=True)
class Batch:
    """B rows of at most T tokens, right-padded.

    Attributes:
        tokens: (B, T) int64.
        items, feedback: (B, T) int64 codes, -1 where there is none.
        code_tokens: (B, T) int64 tokens of items' codes, -1 where there is none; None in a batch without them.
        positions: (B, T) int64, or None where every row simply counts up.
        mask: (B, 1, T, T) bool, or None for plain causal attention and for attention by blocks.
        history_items: (B, E) int64 item codes of the events, -1 where a row has fewer.
        history_feedback: (B, E) int64 their feedback codes, 0 there.
        lengths: (B,) int64 tokens of each row that are not padding.
        used: Their sum.
        reads: What each task reads.
        read_tokens: (n,) int64, the tokens of the flattened batch that any task reads, each once; None where a task reads means
            of spans, or where that is most of the tokens.
        host: The same on the CPU, of a batch on another device.
    """

    tokens: Tensor
    items: Tensor
    feedback: Tensor
    positions: Tensor | None
    mask: Tensor | None
    history_items: Tensor
    history_feedback: Tensor
    lengths: Tensor
    used: int
    reads: dict[str, LabelledReads]
    read_tokens: Tensor | None = None
    code_tokens: Tensor | None = None
    host: "Batch | None" = dataclasses.field(default=None, repr=False)

    @property
    def on_host(self) -> "Batch":
        """The same on the CPU: what is there already is looked at without waiting for the device."""
        return self.host or self

    def to(self, device: torch.device | str) -> "Batch":
        """Move to another device."""
        target = torch.device(device)
        moved: dict[str, Any] = {name: upload(value, target) for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved |= {"reads": {name: reads.to(target) for name, reads in self.reads.items()}}
        return dataclasses.replace(self, **moved, host=None if target.type == "cpu" else self.on_host)

    def take(self, rows: Tensor) -> "Batch":
        """Return some rows, (R,) int64 on the CPU and maybe one several times, for heads to read; without mask and reads."""
        there = upload(rows, self.tokens.device)
        taken: dict[str, Any] = {
            name: value[there]
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and name not in ("mask", "read_tokens")
        }
        host = None if self.host is None else self.host.take(rows)
        used = int(taken["lengths"].sum()) if host is None else host.used
        bare: dict[str, Any] = {"mask": None, "used": used, "reads": {}, "read_tokens": None, "host": host}
        return dataclasses.replace(self, **taken | bare)


def collate(rows: Rows[Sequence], supervise: Mapping[str, tuple[Slot, np.ndarray]], *, masked: bool = True) -> Batch:
    """Pad rows to one batch and gather what each task reads.

    Args:
        rows: At least one sequence.
        supervise: For each task, its slot and its label per event number: (n,) float with NaN where there is none, or
            int (item codes; -1 where there is none).
        masked: Make the mask of rows with branches, of B · T² cells; attention by blocks needs none.
    """
    lengths = torch.tensor([len(row) for row in rows])
    positions = mask = None
    if any(row.branches for row in rows):
        positions = padded([row.positions for row in rows], 0)
        mask = _mask(rows, positions.shape[1]) if masked else None
    reads = {
        name: _reads(rows, slot, labels, [row.drawn.get(name) for row in rows]) for name, (slot, labels) in supervise.items()
    }
    tokens = padded([row.tokens for row in rows], 0)
    return Batch(
        tokens=tokens,
        items=padded([row.items for row in rows], -1),
        feedback=padded([row.feedback for row in rows], -1),
        positions=positions,
        mask=mask,
        history_items=padded([row.item_codes for row in rows], -1),
        history_feedback=padded([row.feedback_codes for row in rows], 0),
        lengths=lengths,
        used=int(lengths.sum()),
        reads=reads,
        read_tokens=_read_tokens(list(reads.values()), tokens.shape),
        code_tokens=_code_tokens(rows),
    )


def _code_tokens(rows: Rows[Sequence]) -> Tensor | None:
    if all(row.code_tokens is None for row in rows):
        return None
    return padded([np.full(len(row), -1) if row.code_tokens is None else row.code_tokens for row in rows], -1)


def _read_tokens(reads: Rows[LabelledReads], shape: torch.Size) -> Tensor | None:
    if not reads or any(each.spans is not None for each in reads):
        return None
    tokens = torch.unique(torch.cat([found for each in reads for found in _tokens_of(each, shape[1])]))
    return tokens if 0 < len(tokens) <= MAX_READ_SHARE * shape.numel() else None


def _tokens_of(reads: LabelledReads, width: int) -> Iterator[Tensor]:
    """The tokens of the flattened batch that some reads look at."""
    yield reads.rows * width + reads.token_index
    if reads.code_starts is not None and reads.code_lengths is not None:
        for step in range(int(reads.code_lengths.max()) if len(reads.rows) else 0):
            there = reads.code_lengths > step
            yield (reads.rows * width + reads.code_starts + step)[there]
    if reads.drawn_items is not None:
        yield from _tokens_of(reads.drawn(), width)


def padded(values: Rows[np.ndarray], filling: int) -> Tensor:
    """Return (B, T) int64 from B arrays, filled up at the right."""
    found = np.full((len(values), max(map(len, values))), filling, dtype=np.int64)
    for row, own in enumerate(values):
        found[row, : len(own)] = own
    return torch.from_numpy(found)


def span_means(hidden: Tensor, ends: Tensor, spans: Tensor) -> Tensor:
    """Average the states of a span of each row: (n, T, D), its last token (n,) and its tokens (n,) → (n, D) float32."""
    step = torch.arange(hidden.shape[1], device=hidden.device)
    inside = (step <= ends[:, None]) & (step > (ends - spans)[:, None])
    return torch.bmm((inside / spans[:, None]).unsqueeze(1), hidden.float()).squeeze(1)


def _mask(rows: Rows[Sequence], longest: int) -> Tensor:
    mask = torch.ones(longest, longest, dtype=torch.bool).tril_().expand(len(rows), 1, longest, longest).clone()
    keys = torch.arange(longest)
    for row, own in zip(rows, mask, strict=True):
        spans = torch.from_numpy(row.masked_spans)
        own[0, : len(row)] &= ~((keys >= spans[:, :1]) & (keys < spans[:, 1:]))
    return mask


def _reads(rows: Rows[Sequence], slot: Slot, labels: np.ndarray, drawn: Rows[DrawnItems | None]) -> LabelledReads:
    """What a task reads, with what was drawn for it in each row: in all of them, which have no candidates then, or in none."""
    parts: list[np.ndarray] = []
    compared: list[np.ndarray] = []
    spanned = slot == "item" and any(row.spans is not None for row in rows)
    for number, row in enumerate(rows):
        own, asked = row.targets & (row.events >= 0), row.candidate_events >= 0
        ends = row.candidate_reads[asked] if slot == "item" else np.full(int(asked.sum()), row.prefix_length - 1)
        indices = np.concatenate([(row.item_reads if slot == "item" else row.next_reads)[own], ends])
        lengths = np.concatenate([row.history_lengths[own], np.full(len(ends), len(row.item_codes))])
        times = np.concatenate([row.history_lengths[own], row.candidate_times[asked]])
        items = np.concatenate([row.item_codes[own], row.candidates[asked]])
        spans = np.ones(len(indices)) if row.spans is None else np.concatenate([row.spans[own], np.ones(len(ends))])
        events = np.concatenate([row.events[own], row.candidate_events[asked]])
        codes = _code_branches(row, own, len(ends))
        columns = [np.full(len(indices), number), indices, lengths, times, items, spans, *codes, events]
        parts.append(np.stack(columns).astype(np.int64))
        if (items_of := drawn[number]) is not None:
            compared.append(np.stack([items_of.items[own], items_of.starts[own], items_of.lengths[own]]))
    found = np.concatenate(parts, axis=1)
    label = labels[found[-1]]
    floats = label.dtype.kind == "f"
    labelled = ~np.isnan(label) if floats else label >= 0
    owner, index, history, time, item, span, start, length, event = (torch.from_numpy(column[labelled]) for column in found)
    truth = torch.from_numpy(label[labelled].astype(np.float32 if floats else np.int64))
    coded: dict[str, Any] = {"code_starts": start, "code_lengths": length}
    if slot == "item" or all(row.code_starts is None for row in rows):
        coded = {}
    if compared:
        tables = torch.from_numpy(np.concatenate(compared, axis=1)[:, labelled])
        coded |= dict(zip(("drawn_items", "drawn_starts", "drawn_lengths"), tables, strict=True))
    return LabelledReads(owner, index, history, time, item, span if spanned else None, truth, event, **coded)


def _code_branches(row: Sequence, own: np.ndarray, more: int) -> tuple[np.ndarray, np.ndarray]:
    """First token and tokens of the branches with codes: of some events of a row, and of so many candidates, which have none."""
    if row.code_starts is None or row.code_lengths is None:
        return np.zeros(own.sum() + more), np.zeros(own.sum() + more)
    none = np.zeros(more)
    return np.concatenate([row.code_starts[own], none]), np.concatenate([row.code_lengths[own], none])


def plan_batches(lengths: np.ndarray, budget: int, order: np.ndarray | None = None, *, pool: int = 2048) -> Iterator[np.ndarray]:
    """Group rows so that their padded size stays within a token budget.

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
