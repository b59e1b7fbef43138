"""Targets of a log ranked by generating items: a beam search after what each target may see.

Owns: which items a search may answer with, rows and batches of its passes. Ignores: metrics, requests.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from genre.data.sequences.batches import LabelledReads, collate, plan_batches
from genre.data.sequences.code_branches import up_to, with_prefixes
from genre.data.sequences.layout import Sequence as Row
from genre.data.sequences.transfer import upload
from genre.evaluation.history import Histories
from genre.modules.beams import BeamSearch
from genre.modules.generation import level_logits
from genre.modules.heads.heads import GenerateHead
from genre.modules.recommender import Recommender

ROW_TOKENS = 2048
"""Tokens of a row with prefixes, about: its mask has their square."""


def generated_scores(
    model: Recommender,
    name: str,
    rows: Sequence[Row],
    reads: LabelledReads,
    hidden: Tensor,
    *,
    seen: Histories | None,
    beam: int | None,
    batch_tokens: int,
) -> np.ndarray:
    """Scores of the whole catalogue at some targets, (n, N) float32: log-probabilities, -inf for items that no beam reached.

    Args:
        model: In evaluation mode.
        name: A task with a generate head.
        rows: B rows.
        reads: The n targets in them.
        hidden: (B, T, D) states of the rows.
        seen: What was seen, which is not answered with, but for the target itself; None answers with everything.
        beam: Prefixes that are kept at each level; None scores every item.
        batch_tokens: Padded tokens of a pass.
    """
    assert model.soft is not None
    trie, there = model.soft.trie, reads.on_host
    searches = [BeamSearch(trie.allow(items), beam) for items in _allowed(seen, there)]
    ends = zip(there.rows.tolist(), there.token_index.tolist(), strict=True)
    run_searches(model, name, [up_to(rows[row], at) for row, at in ends], searches, reads.of(hidden), batch_tokens)
    scores = np.full((len(searches), len(trie)), -np.inf, dtype=np.float32)
    for own, search in zip(scores, searches, strict=True):
        items, values = search.found()
        own[items] = values
    return scores


def run_searches(
    model: Recommender, name: str, rows: Sequence[Row], searches: Sequence[BeamSearch], states: Tensor, batch_tokens: int
) -> None:
    """Bring searches to their end (mutates them).

    Args:
        model: In evaluation mode.
        name: A task with a generate head.
        rows: n histories.
        searches: A search after each.
        states: (n, D) the state at each history's end.
        batch_tokens: Padded tokens of a pass.
    """
    head = model.head(name)
    assert isinstance(head, GenerateHead) and model.soft is not None and model.soft.codes is not None
    offsets = np.array(model.soft.codes.offsets)
    at_start = [number for number, search in enumerate(searches) if search.depth == 0 and search.prefixes() is not None]
    if at_start:
        chosen = upload(torch.tensor(at_start), states.device)
        first = level_logits(head, states[chosen], model.soft, 0).cpu().numpy()
        for number, own in zip(at_start, first, strict=True):
            searches[number].advance(own[None])
    while True:
        wanted = {number: found for number, search in enumerate(searches) if (found := search.prefixes()) is not None}
        if not wanted:
            return
        parts: list[tuple[int, int, Row]] = []
        for number, prefixes in wanted.items():
            level = prefixes.shape[1]
            room = max((ROW_TOKENS - len(rows[number])) // level, 1)
            for some in np.split(prefixes, range(room, len(prefixes), room)):
                parts.append((number, level, with_prefixes(rows[number], len(rows[number]) - 1, some + offsets[:level])))
        logits_of: dict[int, list[np.ndarray]] = {number: [] for number in wanted}
        for number, own in prefix_logits(model, name, parts, batch_tokens):
            logits_of[number].append(own)
        for number, logits in logits_of.items():
            searches[number].advance(np.concatenate(logits))


def prefix_logits(
    model: Recommender, name: str, parts: Sequence[tuple[int, int, Row]], batch_tokens: int
) -> list[tuple[int, np.ndarray]]:
    """The logits of what follows the prefixes of each row, in the order of the rows.

    Args:
        model: In evaluation mode.
        name: A task with a generate head.
        parts: For each row a number to know it by, the level whose codes follow, and the row, with its prefixes as candidates.
        batch_tokens: Padded tokens of a pass.

    Returns:
        For each row its number and (n, size) float32.
    """
    head = model.head(name)
    assert isinstance(head, GenerateHead) and model.soft is not None
    lengths = np.array([len(row) for *_, row in parts])
    found: list[tuple[int, np.ndarray]] = [(number, np.empty(0)) for number, *_ in parts]
    for chosen in plan_batches(lengths, batch_tokens):
        batch = collate([parts[index][2] for index in chosen], {})
        width = batch.tokens.shape[1]
        reads = [place * width + parts[index][2].candidate_reads for place, index in enumerate(chosen)]
        at = torch.from_numpy(np.concatenate(reads).astype(np.int64))
        batch = dataclasses.replace(batch, read_tokens=at).to(model.base.device)
        states = model.hidden(batch).flatten(0, 1)[batch.read_tokens]
        counts = [len(own) for own in reads]
        for index, own in zip(chosen, states.split(counts), strict=True):
            number, level, _ = parts[index]
            found[index] = number, level_logits(head, own, model.soft, level).cpu().numpy()
    return found


def _allowed(seen: Histories | None, reads: LabelledReads) -> Iterator[np.ndarray | None]:
    """For each target the items that it may be answered with; None for all."""
    if seen is None:
        yield from (None for _ in reads.labels)
        return
    row, event = seen.pairs(reads.events.numpy())
    first = np.searchsorted(row, np.arange(len(reads.labels) + 1))
    for number, own in enumerate(reads.labels.tolist()):
        there = np.ones(seen.item_count, dtype=bool)
        there[seen.item[event[first[number] : first[number + 1]]]] = False
        there[own] = True
        yield np.flatnonzero(there)
