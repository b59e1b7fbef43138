"""Running a model over the rows of a log, or of labelled texts, and reading every target's score.

Owns: the one scoring pass that validation, evaluation and the quality gates share. Ignores: metrics, baselines.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genre.data.dataset import Dataset, Slot
from genre.data.interactions import need_log
from genre.data.sequences.batches import Batch, LabelledReads, collate, plan_batches
from genre.data.sequences.layout import Sequence
from genre.data.sequences.text_rows import Builder
from genre.data.splits import Split
from genre.distributed import Processes
from genre.evaluation.baselines import popularity_ranks
from genre.evaluation.history import Histories
from genre.evaluation.metrics.by_name import metric
from genre.evaluation.metrics.lists import ListFacts
from genre.evaluation.ranking import Ranker, block_rows, block_size
from genre.evaluation.targets import Targets
from genre.modules.recommender import Recommender
from genre.tasks import BEAM, MAX_BEAM, Task
from genre.training.generating import generated_scores

Advance = Callable[[int], None]
BATCH_TOKENS = 16384
"""Default padded tokens of a batch, where nothing is trained beside it: in evaluation, comparison and the quality gates."""
ALONE = Processes()
Predicted = dict[str, tuple[Targets, np.ndarray, np.ndarray | None]]


@torch.no_grad()
def outputs(
    model: Recommender,
    builder: Builder,
    split: Split,
    part: int,
    *,
    max_events: int,
    batch_tokens: int = BATCH_TOKENS,
    advance: Advance | None = None,
    processes: Processes = ALONE,
    beam: int = MAX_BEAM,
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Scores of every target of one part of a split, by one pass over its rows (of several processes, over this one's).

    Tasks that generate items take further passes, for at most `beam` prefixes of each target.

    Yields:
        A task's name, some (n,) events, and their scores: (n,) float64, (n, C), or (n, N) float32 with a bounded n · N.
    """
    training = model.training
    model.eval()
    tables = model.catalogue_tables()
    histories = _histories(model, builder, split)
    try:
        for rows, batch in _batches(
            model, builder, split, part, max_events=max_events, batch_tokens=batch_tokens, processes=processes
        ):
            hidden = model.hidden(batch)
            yield from _read(model, rows, batch, hidden, tables, histories=histories, beam=beam, batch_tokens=batch_tokens)
            if advance is not None:
                advance(len(batch.lengths))
    finally:
        model.train(training)


@torch.no_grad()
def states(
    model: Recommender,
    builder: Builder,
    split: Split,
    part: int,
    *,
    max_events: int,
    batch_tokens: int = BATCH_TOKENS,
    processes: Processes = ALONE,
) -> Iterator[tuple[Batch, Tensor]]:
    """The batches of one part of a split (of several processes, this one's) and their states; the model in evaluation mode."""
    limits: Any = {"max_events": max_events, "batch_tokens": batch_tokens, "processes": processes}
    for _, batch in _batches(model, builder, split, part, **limits):
        yield batch, model.hidden(batch)


def _batches(
    model: Recommender, builder: Builder, split: Split, part: int, *, max_events: int, batch_tokens: int, processes: Processes
) -> Iterator[tuple[list[Sequence], Batch]]:
    """The rows of each batch of `states`, and the batch; at the end the passes that other processes have more of."""
    every = builder.evaluation_rows(split, part, max_events=max_events)
    rows = processes.shard(every)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    supervise = builder.data.supervise(list(model.tasks.values()))
    batches = list(plan_batches(lengths, batch_tokens))
    for chosen in batches:
        own = [rows[i] for i in chosen]
        yield own, collate(own, supervise).to(model.base.device)
    in_step = processes.count > 1 and model.base.sharded
    for _ in range(max(processes.all_gather(len(batches))) - len(batches) if in_step else 0):
        model.hidden(collate(every[:1], supervise).to(model.base.device))


def score_batch(
    model: Recommender, rows: list[Sequence], supervise: Mapping[str, tuple[Slot, np.ndarray]], tables: dict[str, Any]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """One batch of `outputs`; the caller sets evaluation mode, disables gradients and passes the catalogue's tables."""
    batch = collate(rows, supervise).to(model.base.device)
    yield from _read(model, rows, batch, model.hidden(batch), tables)


def _read(
    model: Recommender,
    rows: list[Sequence],
    batch: Batch,
    hidden: Tensor,
    tables: dict[str, Any],
    *,
    histories: Mapping[str, Histories] | None = None,
    beam: int = MAX_BEAM,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for name, reads in batch.reads.items():
        if model.head(name).generates:
            width = min(model.tasks[name].beam or BEAM, beam)
            limits: Any = {"seen": (histories or {}).get(name), "beam": width, "batch_tokens": batch_tokens}
            assert model.soft is not None
            for piece in pieces(reads, len(model.soft.trie)):
                yield name, piece.events.numpy(), generated_scores(model, name, rows, piece, hidden, **limits)
            continue
        for piece in pieces(reads, len(tables[name][0]) if name in tables else None):
            output = model.output(name, hidden, batch, reads=piece, tables=tables.get(name))
            yield name, piece.events.numpy(), model.head(name).score(output).float().cpu().numpy()


def predict(
    model: Recommender,
    builder: Builder,
    split: Split,
    part: int,
    *,
    max_events: int,
    batch_tokens: int = BATCH_TOKENS,
    advance: Advance | None = None,
    processes: Processes = ALONE,
    beam: int = MAX_BEAM,
) -> Predicted:
    """Every task's targets and predictions, in the log's order; several processes share the work, and all get the whole.

    Arguments as of `outputs`.

    Returns:
        For each task its targets, then scores (n,) [or (n, C)], then None; for ranking tasks ranks (n,) and top items (n, 20).
    """
    found: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]] = {name: [] for name in model.tasks}
    rankers: dict[str, Ranker] = {}
    limits: Any = {"max_events": max_events, "batch_tokens": batch_tokens, "advance": advance, "processes": processes}
    for name, events, scores in outputs(model, builder, split, part, beam=beam, **limits):
        if model.tasks[name].kind == "next_item":
            log = need_log(builder.data)
            if name not in rankers:
                rankers[name] = Ranker(log, split, seen=model.tasks[name].seen)
            at, top = rankers[name].rank(events, log.item_codes[events], scores)
            found[name].append((events, at, top))
        else:
            found[name].append((events, scores, None))
    found = {name: [part for own in processes.all_gather(parts) for part in own] for name, parts in found.items()}
    return {name: _in_order(builder.data, model.tasks[name], parts) for name, parts in found.items()}


def _histories(model: Recommender, builder: Builder, split: Split) -> dict[str, Histories]:
    """What tasks that generate items are not to answer with."""
    names = [name for name, task in model.tasks.items() if model.head(name).generates and task.seen == "masked"]
    return dict.fromkeys(names, Histories(need_log(builder.data), split)) if names else {}


def list_facts(model: Recommender, builder: Builder, split: Split, task: Task, targets: Targets) -> ListFacts | None:
    """Training counts and item vectors, for a next-item task's metrics of list quality; None for tasks without such metrics."""
    if not any(metric(name).kind == "quality" for name in task.metrics):
        return None
    counts, popular = popularity_ranks(need_log(builder.data), split, targets, seen=task.seen)
    return ListFacts(counts, None if model.soft is None else model.soft.every().cpu().numpy(), popular)


def pieces(reads: LabelledReads, items: int | None) -> Iterator[LabelledReads]:
    """The reads of a task; over a catalogue of so many items as few at a time as keep its scores bounded."""
    count = len(reads.labels)
    if items is None or count <= block_size(items):
        if count:
            yield reads
        return
    for rows in block_rows(count, block_size(items)):
        yield reads.part(rows)


def _in_order(
    data: Dataset, task: Task, parts: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]
) -> tuple[Targets, np.ndarray, np.ndarray | None]:
    ranking = task.kind == "next_item"
    events = np.concatenate([part[0] for part in parts]) if parts else np.empty(0, dtype=np.int64)
    order = np.argsort(events, kind="stable")
    values = np.concatenate([part[1] for part in parts])[order] if parts else np.empty(0)
    top = np.concatenate([part[2] for part in parts if part[2] is not None])[order] if parts and ranking else None
    events = events[order]
    label = None if ranking else data.labels_of(task)[events].astype(np.float64)
    shown = None if data.impressions is None else data.impressions[events]
    return Targets(events, *data.owners(events), label, impression=shown), values, top
