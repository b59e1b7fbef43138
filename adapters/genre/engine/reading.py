"""From hidden states to scores: each task's head at the places that its rows name.

Owns: which states a head reads, what it sees of the history, one product per head and batch. Ignores: how states came about.

Heads need item vectors of a history's and the candidates' items only, so nothing is kept per adapter; a whole catalogue is
scored against the vectors that all adapters of one encoder share.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from genre.data.sequences.layout import Sequence as Row
from genre.engine.items import Inline, scales_of
from genre.engine.planning import Job
from genre.engine.texts import TextJob, judge
from genre.modules.heads.gaussian_process import View
from genre.modules.heads.heads import CatalogueHead, Head

MOST_LOGITS = 2**24


@dataclass(frozen=True)
class Reader:
    """A row of a job, and the row of a batch's hidden states that it is read from."""

    job: Job
    number: int
    place: int

    @property
    def row(self) -> Row:
        """What is read."""
        return self.job.rows[self.number]


def read(readers: Sequence[Reader], hidden: Tensor) -> None:
    """Score the rows of some jobs (fills `Job.scores`).

    Args:
        readers: The rows.
        hidden: (B, T, D) states of a batch.
    """
    by_head: dict[tuple[int, str], list[Reader]] = {}
    for reader in readers:
        by_head.setdefault((id(reader.job.resident), reader.job.task.name), []).append(reader)
    for own in by_head.values():
        rows, places, job = [reader.row for reader in own], [reader.place for reader in own], own[0].job
        scores: Sequence[np.ndarray]
        if isinstance(job, TextJob):
            scores = judge(job.head, rows, hidden, places)
        elif isinstance(job.head, CatalogueHead):
            codes = [reader.job.codes for reader in own]
            scores = rank(job.head, job.inline, rows, codes, hidden, places)
        else:
            flat = score(job.head, job.inline, rows, hidden, places).cpu().numpy()
            scores = np.split(flat, np.cumsum([len(row.candidates) for row in rows])[:-1])
        for reader, part in zip(own, scores, strict=True):
            reader.job.scores[reader.number] = part


def score(
    head: Head, inline: Inline, rows: Sequence[Row], hidden: Tensor, places: Sequence[int], weights: Tensor | None = None
) -> Tensor:
    """Scores of the rows' candidates, one row after the other.

    Args:
        head: A head that gives a score per candidate.
        inline: The call's items.
        rows: R rows with candidates.
        hidden: (B, T, D) states.
        places: The row of `hidden` that each is read from.
        weights: (R, E) as in `View`.

    Returns:
        (n,) float32.
    """
    counts = [len(row.candidates) for row in rows]
    owners = np.repeat(np.arange(len(rows)), counts)
    at = np.concatenate([row.candidate_reads for row in rows])
    state = hidden[_index(np.repeat(places, counts), hidden), _index(at, hidden)]
    view = None
    if inline.space.vectors is not None:
        view = _view(head, inline, rows, owners, np.concatenate([row.candidates for row in rows]), hidden.device, weights)
    found = head.score(head(state, view))
    if found.ndim == 2:  # classes: the expectation over their numbers
        found = found @ torch.arange(found.shape[1], dtype=found.dtype, device=found.device)
    return found.float()


def rank(
    head: CatalogueHead,
    inline: Inline,
    rows: Sequence[Row],
    codes: Sequence[np.ndarray],
    hidden: Tensor,
    places: Sequence[int],
) -> list[np.ndarray]:
    """Logits of each row's codes, float32, from the last state of its history."""
    directions = direct(head, inline, rows, hidden, places)
    vectors, scales = inline.space.vectors, inline.space.scales
    assert vectors is not None and scales is not None
    size, found = len(vectors), []
    at_once = max(MOST_LOGITS // size, 1)
    for start in range(0, len(rows), at_once):
        some = directions[start : start + at_once]
        whole = [len(own) * 4 >= size for own in codes[start : start + at_once]]
        logits = (some @ vectors.t() * scales).cpu().numpy() if any(whole) else None
        for place, own in enumerate(codes[start : start + at_once]):
            if logits is None or not whole[place] or own.max() >= size:
                found.append(logits_of(inline, own, some[place]).cpu().numpy())
            else:
                found.append(logits[place, own])
    return found


def direct(
    head: CatalogueHead,
    inline: Inline,
    rows: Sequence[Row],
    hidden: Tensor,
    places: Sequence[int],
    weights: Tensor | None = None,
) -> Tensor:
    """(R, D): what each row looks for among the items' unit vectors."""
    state = hidden[_index(places, hidden), _index([row.trunk - 1 for row in rows], hidden)]
    owners = np.arange(len(rows))
    return head.direction(head.ask(state, _view(head, inline, rows, owners, np.zeros(0, np.int64), hidden.device, weights)))


def logits_of(inline: Inline, codes: np.ndarray, direction: Tensor) -> Tensor:
    """(n,) float32 logits of some codes for one (D,) direction."""
    vectors = inline.vectors(_index(codes, direction))
    return vectors.float() @ direction * scales_of(vectors)


def _view(
    head: Head,
    inline: Inline,
    rows: Sequence[Row],
    owners: np.ndarray,
    items: np.ndarray,
    device: torch.device,
    weights: Tensor | None,
) -> View:
    """What the head sees: tables of the items that occur, and codes that count in those.

    Args:
        head: The head.
        inline: The call's items.
        rows: R rows.
        owners: (n,) row of each target.
        items: (n,) code of each target, or none at all for a head that scores the catalogue.
        device: Of everything.
        weights: As in `View`.
    """
    longest = max(len(row.codes) for row in rows)
    history, given = np.full((len(rows), longest), -1, np.int64), np.zeros((len(rows), longest), np.int64)
    for place, row in enumerate(rows):
        history[place, : len(row.codes)], given[place, : len(row.codes)] = row.codes, row.given
    there = history >= 0
    needed, local = np.unique(np.concatenate([history[there], items.astype(np.int64), [0]]), return_inverse=True)
    history[there] = local[: there.sum()]
    return View(
        head.tables(inline.vectors(torch.from_numpy(needed).to(device))),
        torch.from_numpy(history).to(device), torch.from_numpy(given).to(device), torch.from_numpy(owners).to(device),
        torch.tensor([len(rows[owner].codes) for owner in owners], device=device),
        torch.from_numpy(local[there.sum() : len(local) - 1].astype(np.int64)).to(device), weights=weights,
    )  # fmt: skip


def _index(values: "np.ndarray | Sequence[int]", like: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.int64)).to(like.device)
