"""The forward passes of a call: equal rows once, equal rows of several adapters once below the layers that differ.

Owns: which rows share what, batches by token budget, routing, soft tokens. Ignores: requests, heads, who is resident.

    rows of jobs ──► units       (rows of one adapter with the same tokens are one; a history alone is read from a longer row)
    units        ──► families    (units with the same tokens whose adapters leave the layers below L as they are)
    families     ──► layers 0 … L once per family, then layers L … for every unit
    other units  ──► all layers

A base whose layers cannot be run apart (`Base.in_parts`) has no families. Where attention by blocks does not work
(`Base.takes_blocks`), rows with branches are shorter and take a mask over the whole row.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from genre.data.sequences.batches import MAX_READ_SHARE, Batch, collate, padded
from genre.data.sequences.layout import Sequence as Row
from genre.data.sequences.transfer import upload
from genre.engine.adapter_source import Resident
from genre.engine.histories import Histories, Known, by_turns, has_history, history_key
from genre.engine.planning import Job
from genre.engine.scoring import Reader, read_positions, score_readers
from genre.engine.turn import ForwardTurn
from genre.modules.base.attention import Blocks, plan_blocks
from genre.modules.base.base import Base
from genre.modules.base.prefixes import Continued, Recorder, joined_rows
from genre.modules.embedding import embed
from genre.modules.lora.slots import AdapterSlots

MASKED_ROW_TOKENS = 2048
MASKED_SQUARES = 2**24
LEAST_PASS_TOKENS = 512
"""Tokens of a pass that is limited by time: in fewer, rows with branches would repeat their history too often."""

KNOWN_PASSES = 4
"""Tokens of histories that are brought together at once, in passes."""

PASS_COST = 32
"""Tokens whose computing takes as long as what a pass on a processor costs beside its tokens, about: its calls, on any depth."""
PASS_COST_ON_DEVICES = 2048

Key = tuple[int | bytes, ...]


@dataclass(eq=False)
class Unit:
    """A row that one adapter computes, and who reads it.

    Attributes:
        readers: Jobs and the number of their row.
        known: The row's first tokens, which are not in `row` then; None where all are computed.
    """

    resident: Resident
    row: Row
    job: Job
    readers: list[tuple[Job, int]] = field(default_factory=list)
    known: Known | None = None

    @property
    def first_read(self) -> int:
        """The first token of a row with a history whose state is read."""
        reads = [read_positions(job, number) for job, number in self.readers]
        return min(int(own.min(initial=len(self.row))) for own in reads if own is not None)


def units_of(jobs: Sequence[Job]) -> list[Unit]:
    """The rows of all jobs, equal ones of one adapter as one unit; a history alone is read from a row that goes on from it."""
    rows = [(job, number, row) for job in jobs for number, row in enumerate(job.rows)]
    alone = {id(job.resident) for job, _, row in rows if not len(row.candidates)}
    units: dict[tuple[int, Key], Unit] = {}
    for job, number, row in sorted(rows, key=lambda each: not len(each[2].candidates)):  # those with branches first
        key = id(job.resident), key_of(job, row)
        unit = units.get(key)
        if unit is None:
            unit = units[key] = Unit(job.resident, row, job)
            if len(row.candidates) and id(job.resident) in alone:
                units.setdefault((id(job.resident), key_of(job, row, row.prefix_length)), unit)
        unit.readers.append((job, number))
    return list(dict.fromkeys(units.values()))


def key_of(job: Job, row: Row, length: int | None = None) -> Key:
    """A key of everything that decides a row's states on a base and what heads see of its history, whatever the adapter.

    Args:
        job: Whose row it is.
        row: The row.
        length: Compare so many of its tokens; all of them if None.
    """
    end = slice(length)
    soft = bool((row.items[end] >= 0).any() or (row.feedback[end] >= 0).any() or row.code_tokens is not None)
    tokens = row.tokens[end], row.items[end], row.feedback[end], row.positions[end], row.masked_spans[end]
    codes = () if row.code_tokens is None else (row.code_tokens[end],)
    parts = (*tokens, row.item_codes, row.feedback_codes, *codes)
    return id(job.resident.space) if soft else 0, *(part.tobytes() for part in parts)


def families_of(units: Sequence[Unit]) -> tuple[dict[int, list[list[Unit]]], list[Unit]]:
    """Units that share their lower layers, by the number of layers they share, and those that share nothing."""
    by_key: dict[Key, list[Unit]] = {}
    rest = []
    for unit in units:
        if unit.resident.first > 0:
            by_key.setdefault(key_of(unit.job, unit.row), []).append(unit)
        else:
            rest.append(unit)
    families: dict[int, list[list[Unit]]] = {}
    for members in by_key.values():
        if len(members) > 1:
            families.setdefault(min(unit.resident.first for unit in members), []).append(members)
        else:
            rest += members
    return families, rest


class Passes:
    """Computes jobs on a base with adapter slots.

    Args:
        base: The base; attention by blocks is installed where it works.
        slots: Its slot layers.
        forward: Held during a forward pass: the base is one.
        batch_tokens: Padded tokens of one pass.
        histories: What is known of histories that were read before; None reads each from its start.
    """

    def __init__(
        self,
        base: Base,
        slots: AdapterSlots,
        forward: ForwardTurn,
        batch_tokens: int,
        histories: Histories | None = None,
    ) -> None:
        self.base = base
        self.slots = slots
        self.forward = forward
        self.batch_tokens = batch_tokens
        self.histories = histories

    def tokens_in(self, seconds: float | None) -> int:
        """Padded tokens of a pass that takes so many seconds; of any pass for None."""
        if seconds is None:
            return self.batch_tokens
        return self.forward.tokens_in(seconds, least=LEAST_PASS_TOKENS, most=self.batch_tokens)

    def row_tokens(self, pass_tokens: int) -> int:
        """Tokens of one row with branches at most."""
        return pass_tokens if self.base.takes_blocks else min(pass_tokens, MASKED_ROW_TOKENS)

    @torch.no_grad()
    def run(self, jobs: Sequence[Job], pass_tokens: int | None = None) -> None:
        """Score all rows of some jobs (fills `Job.scores`); where they fit into one pass they have one turn together.

        Args:
            jobs: The jobs.
            pass_tokens: Padded tokens of one pass; None for those of the engine.
        """
        pass_tokens = pass_tokens or self.batch_tokens
        for inline in {id(job.inline): job.inline for job in jobs}.values():
            inline.catch_up()
        for job in jobs:
            job.begin()
        waiting = jobs
        while waiting:
            self._turn(waiting, pass_tokens)
            waiting = [job for job in waiting if job.go_on()]

    def _turn(self, jobs: Sequence[Job], pass_tokens: int) -> None:
        """Score the rows that jobs have at the moment."""
        units = units_of(jobs)
        few = sum(len(unit.row) for unit in units) <= pass_tokens < self.batch_tokens
        with self.forward if few else nullcontext():
            if self.histories is None:
                self._run(units, pass_tokens)
            else:
                self._run_known(self.histories, units, pass_tokens)

    def _run_known(self, histories: Histories, units: Sequence[Unit], pass_tokens: int) -> None:
        """Compute what is new of the units whose history is known, and the others from their start."""
        rest = [unit for unit in units if not has_history(unit.row)]
        # The longest history first: those that it goes on from find all of theirs then.
        own = sorted((unit for unit in units if has_history(unit.row)), key=lambda unit: -unit.row.prefix_length)
        for turn in by_turns(own, [history_key(unit.job, unit.row) for unit in own]):
            for some in self._known(histories, turn, rest):
                for layers in {unit.known.layers for unit in some if unit.known}:
                    alike = [unit for unit in some if unit.known and unit.known.layers == layers]
                    for batch in self._batches(alike, pass_tokens):
                        if layers == self.base.depth:
                            self._go_on(histories, batch)
                        else:
                            self._go_up(batch, layers, pass_tokens)
            self._run(rest, pass_tokens)
            rest = []

    def _known(self, histories: Histories, units: Sequence[Unit], rest: list[Unit]) -> Iterator[list[Unit]]:
        """What is left to compute of units whose history is known, a few at a time, as their states lie in memory meanwhile.

        The others go into `rest` (mutated).
        """
        some: list[Unit] = []
        tokens = 0
        for unit in units:
            known = histories.find(unit.job, unit.row, unit.first_read)
            if known is None:
                rest.append(unit)
                continue
            if some and tokens + known.tokens > KNOWN_PASSES * self.batch_tokens:
                yield some
                some, tokens = [], 0
            some.append(Unit(unit.resident, unit.row.after(known.tokens), unit.job, unit.readers, known))
            tokens += known.tokens
        if some:
            yield some

    def _go_on(self, histories: Histories, units: Sequence[Unit]) -> None:
        """Compute what is left of some units, and keep what is new of their histories."""
        batch, blocks, known = self._collate(units), self._blocks(units), [unit.known for unit in units if unit.known]
        lowest = [histories.shared_layers(unit.resident) for unit in units]
        made = Continued([each.prefix for each in known], blocks, self.base.dtype, lowest)
        with self.forward, self._routed(units):
            hidden = self.base.run(self._embed(units, batch), 0, self.base.depth, blocks, prefixes=made)
        self._read(units, batch, hidden)
        for index, (unit, each, first) in enumerate(zip(units, known, lowest, strict=True)):
            new = unit.row.prefix_length
            if new > 0:
                above = made.input_of(first, index, 0, new) if first else None
                histories.keep(unit.job, each.row, made.of(index, 0, new), above, each)

    def _go_up(self, units: Sequence[Unit], shared: int, pass_tokens: int) -> None:
        """Compute what is left of some units in the layers below `shared`, where their history is known, and the others whole."""
        batch, blocks, known = self._collate(units), self._blocks(units), [unit.known for unit in units if unit.known]
        made = Continued([each.prefix for each in known], blocks, self.base.dtype, [shared])
        with self.forward:
            hidden = self.base.run(self._embed(units, batch), 0, shared, blocks, prefixes=made)
        lower = joined_rows([each.above for each in known], hidden)
        whole = [Unit(unit.resident, each.row, unit.job, unit.readers) for unit, each in zip(units, known, strict=True)]
        self._upper([(unit, index) for index, unit in enumerate(whole)], lower, shared, pass_tokens, made.whole())

    def _keep(self, units: Sequence[Unit], made: Recorder | None) -> None:
        """Keep the histories of a batch that was read from its start."""
        if made is not None and self.histories is not None:
            for index, unit in enumerate(units):
                if has_history(unit.row):
                    first, stop = self.histories.shared_layers(unit.resident), unit.row.prefix_length
                    above = made.input_of(first, index, 0, stop) if first else None
                    self.histories.keep(unit.job, unit.row, made.of(index, 0, stop), above)

    def _recorder(self, units: Sequence[Unit]) -> Recorder | None:
        """What keeps the states of a batch; None if nobody will look for them."""
        if self.histories is None or not any(has_history(unit.row) for unit in units):
            return None
        return Recorder([self.histories.shared_layers(unit.resident) for unit in units])

    def _run(self, units: Sequence[Unit], pass_tokens: int) -> None:
        families, rest = families_of(units) if self.base.in_parts and self.base.takes_blocks else ({}, units)
        for some in self._batches(rest, pass_tokens):
            batch = self._collate(some)
            made = self._recorder(some)
            with self.forward:
                begun = perf_counter()
                hidden = self._all_layers(some, batch, made)
            self._read(some, batch, hidden)
            self._record(batch, begun, self.base.depth)
            self._keep(some, made)
        for shared, groups in families.items():
            heads = {id(members[0]): members for members in groups}
            for some in self._batches([members[0] for members in groups], pass_tokens):
                batch = self._collate(some)
                read = self._read_tokens([heads[id(one)] for one in some], batch)
                made = self._recorder([unit for one in some for unit in heads[id(one)]])
                with self.forward:
                    begun = perf_counter()
                    lower = self.base.run(self._embed(some, batch), 0, shared, self._blocks(some), read=read, prefixes=made)
                self._record(batch, begun, shared)
                members = [(unit, index) for index, one in enumerate(some) for unit in heads[id(one)]]
                self._upper(members, lower, shared, pass_tokens, made)

    def _upper(
        self, members: Sequence[tuple[Unit, int]], lower: Tensor, shared: int, pass_tokens: int, below: Recorder | None
    ) -> None:
        """The layers from `shared` on for every unit, from its row of the lower layers' states."""
        index_of = {id(unit): index for unit, index in members}
        for units in self._batches([unit for unit, _ in members], pass_tokens):
            batch = self._collate(units)
            rows = upload(torch.tensor([index_of[id(unit)] for unit in units]), lower.device)
            hidden = lower[rows, : batch.tokens.shape[1]]
            made = None if below is None else below.onto(rows.tolist())
            begun = perf_counter()
            if shared < self.base.depth:
                read = self._read_tokens([[unit] for unit in units], batch)
                with self.forward, self._routed(units):
                    begun = perf_counter()
                    hidden = self.base.run(hidden, shared, self.base.depth, self._blocks(units), read=read, prefixes=made)
            self._read(units, batch, hidden)
            self._record(batch, begun, self.base.depth - shared)
            self._keep(units, made)

    def _record(self, batch: Batch, begun: float, layers: int) -> None:
        """Remember how long so many layers of a batch took; once its states are read, since a GPU computes them meanwhile."""
        self.forward.record(batch.tokens.numel() * layers // self.base.depth, perf_counter() - begun)

    def _read(self, units: Sequence[Unit], batch: Batch, hidden: Tensor) -> None:
        skipped = [unit.known.tokens if unit.known else 0 for unit in units]
        readers = [Reader(job, number, index, skipped[index]) for index, unit in enumerate(units) for job, number in unit.readers]
        score_readers(readers, batch, hidden.to(self.base.device))

    def _collate(self, units: Sequence[Unit]) -> Batch:
        """The units' rows as tensors on the base's device; without a mask where attention goes by blocks."""
        return collate([unit.row for unit in units], {}, masked=not self.base.takes_blocks).to(self.base.device)

    def _embed(self, units: Sequence[Unit], batch: Batch) -> Tensor:
        return embed(self.base, batch, [unit.job.inline.soft for unit in units])

    def _all_layers(self, units: Sequence[Unit], batch: Batch, made: Recorder | None) -> Tensor:
        """(B, T, D) states after all layers, each row with its own adapter."""
        read, embeds = self._read_tokens([[unit] for unit in units], batch), self._embed(units, batch)
        blocks = self._blocks(units) if made is not None or (batch.positions is not None and self.base.takes_blocks) else None
        with self._routed(units):
            if made is not None and blocks is not None:
                return self.base.run(embeds, 0, self.base.depth, blocks, read=read, prefixes=made)
            return self.base.hidden(embeds, batch.positions, batch.mask, lengths=batch.lengths, blocks=blocks, read=read)

    def _read_tokens(self, rows: Sequence[Sequence[Unit]], batch: Batch) -> Tensor | None:
        """(B, K) tokens of the flattened batch that are read of each row, some of them twice; None if that is most of them.

        Args:
            rows: For each row of the batch the units that are read from it.
            batch: The batch.
        """
        tokens = batch.tokens.shape[1]
        reads = []
        for units in rows:
            asked = [read_positions(job, number) for unit in units for job, number in unit.readers]
            known = [own for own in asked if own is not None]
            if len(known) < len(asked):
                return None
            reads.append(np.unique(np.concatenate(known)))
        most = max(map(len, reads))
        if most == 0 or most > MAX_READ_SHARE * tokens:
            return None
        read = np.stack([row * tokens + np.pad(own, (0, most - len(own)), "edge") for row, own in enumerate(reads)])
        return upload(torch.from_numpy(read.astype(np.int64)), self.base.device)

    def _blocks(self, units: Sequence[Unit]) -> Blocks:
        positions = padded([unit.row.positions for unit in units], 0)
        return plan_blocks([unit.row.masked_spans for unit in units], positions).to(self.base.device)

    @contextmanager
    def _routed(self, units: Sequence[Unit]) -> Iterator[None]:
        self.slots.route([unit.resident.slot for unit in units])
        try:
            yield
        finally:
            self.slots.clear()

    def _batches(self, units: Sequence[Unit], pass_tokens: int) -> Iterator[list[Unit]]:
        """Units whose padded size stays within the budget (a longer one goes alone); rows of one slot are neighbours."""
        squares = pass_tokens**2 if self.base.takes_blocks else MASKED_SQUARES
        cost = PASS_COST if self.base.device.type == "cpu" else PASS_COST_ON_DEVICES
        ordered = sorted(units, key=lambda unit: len(unit.row))
        for part in batches_of([len(unit.row) for unit in ordered], pass_tokens, squares, cost):
            yield sorted(ordered[part], key=_slot_order)


def batches_of(lengths: Sequence[int], tokens: int, squares: int, cost: int) -> list[slice]:
    """Cut rows into batches so that padding and passes together cost the least.

    Args:
        lengths: Of the rows, ascending.
        tokens: Padded tokens of a batch; a longer row goes alone.
        squares: Padded tokens times the longest row, of a batch.
        cost: Of a pass beside its padded tokens, in tokens.
    """
    best, starts = np.zeros(len(lengths) + 1), [0]
    for stop, longest in enumerate(lengths, 1):
        most = max(1, min(tokens // longest, squares // longest**2))
        first = max(0, stop - most)
        costs = best[first:stop] + longest * np.arange(stop - first, 0, -1)
        starts.append(first + int(costs.argmin()))
        best[stop] = costs.min() + cost
    parts, stop = [], len(lengths)
    while stop:
        parts.append(slice(starts[stop], stop))
        stop = starts[stop]
    return parts[::-1]


def _slot_order(unit: Unit) -> tuple[int, int]:
    slot = unit.resident.slot
    return (0, 0) if slot is None else (slot.rank, slot.index)
