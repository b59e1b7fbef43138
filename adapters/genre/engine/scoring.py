"""From hidden states to the scores of jobs: one product per head and batch.

Owns: where the rows of requests are read, whole catalogues scored against the vectors that all adapters of one encoder share.
Ignores: how states came about, how a head reads a batch (`genre.modules.reading`).

Heads need item vectors of a history's and the candidates' items only, so no table of the catalogue is kept, or built, per
adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genre.data.sequences.batches import Batch, Reads
from genre.data.sequences.layout import Sequence as Row
from genre.data.sequences.transfer import Readback, upload
from genre.engine.items import Inline, scales_of
from genre.engine.planning import Job
from genre.engine.texts import TextJob
from genre.modules.generation import level_logits
from genre.modules.heads.heads import CatalogueHead, GenerateHead, Head
from genre.modules.reading import neighbour_scores, read, view_of

MAX_LOGITS = 2**24


@dataclass(frozen=True)
class Reader:
    """A row of a job, and the row of a batch that it is read from.

    Attributes:
        skipped: Its first tokens that the batch does not have, as they were known.
    """

    job: Job
    number: int
    index: int
    skipped: int = 0

    @property
    def row(self) -> Row:
        """The row of the job, as far as the batch has it."""
        row = self.job.rows[self.number]
        return row.after(self.skipped) if self.skipped else row


def read_positions(job: Job, number: int) -> np.ndarray | None:
    """The token positions that a job's row is read at; None where means of spans are read."""
    row = job.rows[number]
    if isinstance(job.head, GenerateHead):
        return _ends(row)
    if isinstance(job.head, CatalogueHead):
        return np.array([row.prefix_length - 1])
    return _positions(row)[0] if row.spans is None else None


def score_readers(readers: Sequence[Reader], batch: Batch, hidden: Tensor) -> None:
    """Score the rows of some jobs (fills `Job.scores`).

    Args:
        readers: The rows.
        batch: B rows.
        hidden: (B, T, D) their states.
    """
    by_head: dict[tuple[int | str, ...], list[Reader]] = {}
    for reader in readers:
        by_head.setdefault(_reading_of(reader.job), []).append(reader)
    found: list[tuple[list[Reader], Sequence[Tensor | np.ndarray]]] = []
    for own in by_head.values():
        rows, job, index = [reader.row for reader in own], own[0].job, [reader.index for reader in own]
        if isinstance(job.head, GenerateHead):
            found.append((own, code_logits(job, rows, index, hidden)))
            continue
        part, states = batch, hidden
        if index != list(range(len(hidden))):
            at = torch.tensor(index)
            part, states = batch.take(at), hidden[upload(at, hidden.device)]
        scores: Sequence[Tensor | np.ndarray]
        if job.user_vectors is not None:
            scores = job.user_vectors(job.inline, rows, part, states)
        elif isinstance(job.head, CatalogueHead):
            codes = [reader.job.codes for reader in own]
            scores = logits = catalogue_logits(job.inline, codes, directions(job.head, job.inline, rows, part, states))
            if job.head.neighbours is not None:
                more = (
                    neighbours_of(job.head, job.inline, part, row, len(one.item_codes), wanted)
                    for row, (one, wanted) in enumerate(zip(rows, codes, strict=True))
                )
                scores = [own_logits + added for own_logits, added in zip(logits, more, strict=True)]
        else:
            flat = score(job.head, job.inline, rows, part, states, classes=isinstance(job, TextJob))
            scores = flat.split([len(positions) for positions, _ in map(_positions, rows)])
        found.append((own, scores))
    readers = [reader for own, _ in found for reader in own]
    for reader, values in zip(readers, on_host([values for _, scores in found for values in scores]), strict=True):
        reader.job.scores[reader.number] = values


def _reading_of(job: Job) -> tuple[int | str, ...]:
    """What has to be equal of jobs that are read together; codes are every adapter's that has their encoder."""
    if isinstance(job.head, GenerateHead):
        assert job.generation is not None
        return id(job.resident.space.shared), "codes", job.generation.search.depth
    return id(job.resident), job.task.name, id(job.user_vectors)


def code_logits(job: Job, rows: Sequence[Row], index: Sequence[int], hidden: Tensor) -> Sequence[Tensor]:
    """The logits of what follows each prefix of some rows, or their history: (n, size) float32 of each row.

    Args:
        job: One of the jobs.
        rows: Rows of it and of others at the same level.
        index: Their rows of the batch.
        hidden: (B, T, D) states.
    """
    assert job.generation is not None and job.inline.soft is not None
    ends, width = [_ends(row) for row in rows], hidden.shape[1]
    flat = np.concatenate([at * width + own for at, own in zip(index, ends, strict=True)])
    states = hidden.flatten(0, 1)[upload(torch.from_numpy(flat.astype(np.int64)), hidden.device)]
    logits = level_logits(job.head, states, job.inline.soft, job.generation.search.depth)
    return logits.split([len(own) for own in ends])


def _ends(row: Row) -> np.ndarray:
    """The last token of each prefix of codes, or of the history where a row has none."""
    return row.candidate_reads if len(row.candidates) else np.array([row.prefix_length - 1])


def on_host(values: Sequence[Tensor | np.ndarray]) -> list[np.ndarray]:
    """Some arrays on the CPU, those of a device read in one copy, as float32."""
    there = [value for value in values if isinstance(value, Tensor) and value.device.type != "cpu"]
    flat = Readback(torch.cat([value.reshape(-1).float() for value in there])).read() if there else torch.empty(0)
    parts = iter(flat.split([value.numel() for value in there]))
    found = []
    for value in values:
        if isinstance(value, Tensor):
            value = (value if value.device.type == "cpu" else next(parts).view(value.shape)).numpy()
        found.append(value)
    return found


def score(
    head: Head,
    inline: Inline,
    rows: Sequence[Row],
    batch: Batch,
    hidden: Tensor,
    *,
    classes: bool = False,
    weights: Tensor | None = None,
) -> Tensor:
    """Scores of the rows' candidates, or of each text, one row after the other.

    Args:
        head: A head that gives a score per candidate.
        inline: The call's items.
        rows: B rows.
        batch: The same as tensors, or rows with the same histories.
        hidden: (B, T, D) states.
        classes: Give the probability of each class, instead of the expected class.
        weights: (B, E) as in `View`.

    Returns:
        (n,) float32, or (n, C).
    """
    positions, items = zip(*map(_positions, rows), strict=True)
    spans = [row.spans for row in rows if row.spans is not None]
    reads = _reads(rows, positions, items, spans).to(hidden.device)
    found = head.score(read(head, hidden, batch, reads, inline.soft, weights=weights)).float()
    if found.ndim == 2 and not classes:
        found = found @ torch.arange(found.shape[1], dtype=found.dtype, device=found.device)
    return found


def directions(
    head: CatalogueHead, inline: Inline, rows: Sequence[Row], batch: Batch, hidden: Tensor, weights: Tensor | None = None
) -> Tensor:
    """(B, D) query of each row against the items' unit vectors, from its history's last state; arguments as in `score`."""
    return head.direction(queries(head, inline, rows, batch, hidden, weights)[0])


def queries(
    head: CatalogueHead, inline: Inline, rows: Sequence[Row], batch: Batch, hidden: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Reads]:
    """(B, d + k) query of each row against the head's keys, and the reads that it is of; arguments as in `score`."""
    ends, catalogue = [np.array([row.prefix_length - 1]) for row in rows], [np.array([-1])] * len(rows)
    reads = _reads(rows, ends, catalogue).to(hidden.device)
    assert inline.soft is not None
    view, _ = view_of(head, batch, reads, inline.soft, weights=weights)
    return head.ask(reads.of(hidden), view), reads


def catalogue_logits(inline: Inline, codes: Sequence[np.ndarray], found: Tensor) -> list[Tensor]:
    """Logits of each row's codes, float32, by its direction among (B, D)."""
    vectors, scales = inline.space.vectors, inline.space.scales
    assert vectors is not None and scales is not None
    size = len(vectors)
    at_once = max(MAX_LOGITS // size, 1)
    logits: list[Tensor] = []
    for start in range(0, len(codes), at_once):
        some, asked = found[start : start + at_once], codes[start : start + at_once]
        most = [len(own) * 4 >= size and own.max() < size for own in asked]
        whole = some @ vectors.t() * scales if any(most) else None
        for index, own in enumerate(asked):
            if whole is not None and most[index]:
                logits.append(whole[index, upload(torch.from_numpy(own.astype(np.int64)), whole.device)])
            else:
                logits.append(logits_of(inline, own, some[index]))
    return logits


def logits_of(inline: Inline, codes: np.ndarray, direction: Tensor) -> Tensor:
    """(n,) float32 logits of some codes for one (D,) direction."""
    vectors = inline.items(upload(torch.from_numpy(codes.astype(np.int64)), direction.device))
    return vectors.float() @ direction * scales_of(vectors)


def neighbours_of(
    head: CatalogueHead, inline: Inline, batch: Batch, row: int, length: int, codes: np.ndarray, weights: Tensor | None = None
) -> Tensor:
    """(n,) float32: what the head's item neighbours add to the logits of some codes, from a row's history of so many events."""
    number, device = torch.tensor([row]), batch.tokens.device
    reads = Reads(number, number, torch.full_like(number, length), torch.full_like(number, length), number, None).to(device)
    wanted = upload(torch.from_numpy(codes.astype(np.int64)), device)
    found = neighbour_scores(head, batch, reads, inline, codes=wanted, weights=weights)
    assert isinstance(found, Tensor)
    return found[0]


def _positions(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """The token positions that a row is read at, and the item codes there: its candidates, or its one text."""
    return (row.candidate_reads, row.candidates) if row.spans is None else (row.item_reads, row.item_codes)


def _reads(
    rows: Sequence[Row], positions: Sequence[np.ndarray], items: Sequence[np.ndarray], spans: Sequence[np.ndarray] = ()
) -> Reads:
    owners = np.repeat(np.arange(len(rows)), [len(own) for own in positions])
    length = np.array([len(row.item_codes) for row in rows])[owners]
    columns = owners, np.concatenate(positions), length, np.concatenate(items)
    row, position, before, item = (torch.from_numpy(column.astype(np.int64)) for column in columns)
    width = torch.from_numpy(np.concatenate(spans).astype(np.int64)) if spans else None
    return Reads(row, position, before, before, item, width)
