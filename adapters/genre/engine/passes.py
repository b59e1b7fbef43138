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
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor

from genre.data.sequences.batches import collate, padded
from genre.data.sequences.layout import Sequence as Row
from genre.engine.planning import Job
from genre.engine.reading import Reader, read
from genre.engine.tiers import Resident
from genre.modules.base.attention import Blocks, plan_blocks
from genre.modules.base.base import Base
from genre.modules.lora.slots import Lanes

MASKED_ROW_TOKENS = 2048
MASKED_SQUARES = 2**24

Key = tuple[int, bytes, bytes, bytes, bytes, bytes]


@dataclass(eq=False)
class Unit:
    """A row that one adapter computes, and who reads it.

    Attributes:
        readers: Jobs and the number of their row.
    """

    resident: Resident
    row: Row
    job: Job
    readers: list[tuple[Job, int]] = field(default_factory=list)


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
                units.setdefault((id(job.resident), key_of(job, row, row.trunk)), unit)
        unit.readers.append((job, number))
    return list(dict.fromkeys(units.values()))


def key_of(job: Job, row: Row, length: int | None = None) -> Key:
    """What decides a row's states on a base, whatever the adapter; of the first `length` tokens if given."""
    end = slice(length)
    soft = bool((row.items[end] >= 0).any() or (row.feedback[end] >= 0).any())
    parts = (row.tokens, row.items, row.feedback, row.positions, row.hide)
    tokens, items, feedback, positions, hide = (part[end].tobytes() for part in parts)
    return id(job.resident.space) if soft else 0, tokens, items, feedback, positions, hide


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
    """Computes jobs on a base with lanes.

    Args:
        base: The base; attention by blocks is installed where it works.
        lanes: Its lane layers.
        forward: Held during a forward pass: the base is one.
        batch_tokens: Padded tokens of one pass.
    """

    def __init__(self, base: Base, lanes: Lanes, forward: Lock, batch_tokens: int) -> None:
        self.base, self.lanes, self.forward, self.batch_tokens = base, lanes, forward, batch_tokens

    @property
    def row_tokens(self) -> int:
        """Tokens of one row with branches at most."""
        return self.batch_tokens if self.base.takes_blocks else min(self.batch_tokens, MASKED_ROW_TOKENS)

    @torch.no_grad()
    def run(self, jobs: Sequence[Job]) -> None:
        """Score all rows of some jobs (fills `Job.scores`)."""
        for inline in {id(job.inline): job.inline for job in jobs}.values():
            inline.catch_up()
        units = units_of(jobs)
        families, rest = families_of(units) if self.base.in_parts and self.base.takes_blocks else ({}, units)
        for batch in self._batches(rest):
            with self.forward:
                hidden = self._whole(batch)
            self._read(batch, hidden)
        for shared, groups in families.items():
            heads = {id(members[0]): members for members in groups}
            for batch in self._batches([members[0] for members in groups]):
                with self.forward:
                    lower = self.base.run(embed(self.base, batch), 0, shared, self._blocks(batch))
                self._upper([(unit, place) for place, one in enumerate(batch) for unit in heads[id(one)]], lower, shared)

    def _upper(self, members: Sequence[tuple[Unit, int]], lower: Tensor, shared: int) -> None:
        """The layers from `shared` on for every unit, from its row of the lower layers' states."""
        place_of = {id(unit): place for unit, place in members}
        for batch in self._batches([unit for unit, _ in members]):
            rows = torch.tensor([place_of[id(unit)] for unit in batch], device=lower.device)
            hidden = lower[rows, : max(len(unit.row) for unit in batch)]
            if shared < self.base.depth:
                with self.forward, self._routed(batch):
                    hidden = self.base.run(hidden, shared, self.base.depth, self._blocks(batch))
            self._read(batch, hidden)

    def _read(self, batch: Sequence[Unit], hidden: Tensor) -> None:
        readers = [Reader(job, number, place) for place, unit in enumerate(batch) for job, number in unit.readers]
        read(readers, hidden.to(self.base.device))

    def _whole(self, batch: Sequence[Unit]) -> Tensor:
        """(B, T, D) states after all layers, each row with its own adapter."""
        embeds, rows = embed(self.base, batch), [unit.row for unit in batch]
        with self._routed(batch):
            if not any(row.branches for row in rows):
                return self.base.hidden(embeds, lengths=torch.tensor([len(row) for row in rows]))
            if self.base.takes_blocks:
                blocks = self._blocks(batch)
                return self.base.hidden(embeds, blocks.positions, blocks=blocks)
            masked = collate(rows, {}).to(self.base.device)
            return self.base.hidden(embeds, masked.positions, masked.mask)

    def _blocks(self, batch: Sequence[Unit]) -> Blocks:
        positions = padded([unit.row.positions for unit in batch], 0)
        return plan_blocks([unit.row.hide for unit in batch], positions).to(self.base.device)

    @contextmanager
    def _routed(self, batch: Sequence[Unit]) -> Iterator[None]:
        self.lanes.route([unit.resident.place for unit in batch])
        try:
            yield
        finally:
            self.lanes.clear()

    def _batches(self, units: Sequence[Unit]) -> Iterator[list[Unit]]:
        """Units whose padded size stays within the budget (a longer one goes alone); rows of one lane are neighbours."""
        batch: list[Unit] = []
        squares = self.batch_tokens**2 if self.base.takes_blocks else MASKED_SQUARES
        for unit in sorted(units, key=lambda unit: len(unit.row)):
            size = (len(batch) + 1) * len(unit.row)
            if batch and (size > self.batch_tokens or size * len(unit.row) > squares):
                yield sorted(batch, key=_lane)
                batch = []
            batch.append(unit)
        if batch:
            yield sorted(batch, key=_lane)


def embed(base: Base, batch: Sequence[Unit]) -> Tensor:
    """(B, T, D) token embeddings with soft tokens in their places, in the base's precision."""
    rows, device = [unit.row for unit in batch], base.device
    embeds = base.embedding(padded([row.tokens for row in rows], 0).to(device))
    items = padded([row.items for row in rows], -1).to(device)
    feedback = padded([row.feedback for row in rows], -1).to(device)
    by_inline: dict[int, list[int]] = {}
    for place, unit in enumerate(batch):
        by_inline.setdefault(id(unit.job.inline), []).append(place)
    for places in by_inline.values():
        job = batch[places[0]].job
        shared = job.inline.space.shared
        if shared is None:
            continue
        mine = torch.zeros(len(batch), 1, dtype=torch.bool, device=device)
        mine[places] = True
        at = (items >= 0) & mine
        embeds[at] = job.inline.vectors(items[at]).to(embeds.dtype)
        at = (feedback >= 0) & mine
        embeds[at] = shared.encoder.feedback_vectors(feedback[at]).to(embeds.dtype)
    return embeds


def _lane(unit: Unit) -> tuple[int, int]:
    place = unit.resident.place
    return (0, 0) if place is None else (place.rank, place.slot)
