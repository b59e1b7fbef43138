"""Running a model over windows of a log and reading every target's score.

Owns: the one scoring pass that validation, evaluation and the quality gates share. Ignores: metrics, baselines.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch

from genre.evaluation import Targets
from genre.evaluation_ranking import rank_in_blocks
from genre.interactions import Interactions
from genre.interactions_splits import Split
from genre.model import Recommender
from genre.rows import RowBuilder
from genre.sequences import collate, plan_batches
from genre.windows import evaluation_windows

Advance = Callable[[int], None]
Predicted = dict[str, tuple[Targets, np.ndarray, np.ndarray | None]]


@torch.no_grad()
def outputs(
    model: Recommender,
    builder: RowBuilder,
    split: Split,
    part: int,
    *,
    max_events: int,
    batch_tokens: int,
    advance: Advance | None = None,
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Scores of every target of one part of a split, by one pass over the users' sequences.

    Yields:
        A task's name, the (n,) events of a batch, and their scores: (n,) float64, (n, C) or (n, N) float32.
    """
    rows = [builder.row(window) for window in evaluation_windows(builder.log, split, part, max_events=max_events)]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    supervise = builder.supervise(list(model.tasks.values()))
    training = model.training
    model.eval()
    try:
        for chosen in plan_batches(lengths, batch_tokens):
            batch = collate([rows[i] for i in chosen], supervise).to(model.base.device)
            hidden = model.hidden(batch)
            for name, reads in batch.reads.items():
                if len(reads.labels):
                    score = model.heads[name].score(model.output(name, hidden, batch))  # type: ignore[operator]
                    yield name, reads.events.numpy(), score.float().cpu().numpy()
            if advance is not None:
                advance(len(chosen))
    finally:
        model.train(training)


def predict(
    model: Recommender,
    builder: RowBuilder,
    split: Split,
    part: int,
    *,
    max_events: int,
    batch_tokens: int,
    advance: Advance | None = None,
) -> Predicted:
    """Every task's targets and predictions, in the log's order.

    Returns:
        For each task its targets, then scores (n,) [or (n, C)], then None; for ranking tasks ranks (n,) and top items (n, 20).
    """
    log = builder.log
    found: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]] = {name: [] for name in model.tasks}
    for name, events, scores in outputs(
        model, builder, split, part, max_events=max_events, batch_tokens=batch_tokens, advance=advance
    ):
        if model.tasks[name].kind == "next_item":
            ranks, top = _rank(log, split, events, scores, seen=model.tasks[name].seen)
            found[name].append((events, ranks, top))
        else:
            found[name].append((events, scores, None))
    labels = {name: label for name, (_, label) in builder.supervise(list(model.tasks.values())).items()}
    return {
        name: _in_order(log, labels[name], parts, ranking=model.tasks[name].kind == "next_item") for name, parts in found.items()
    }


def _rank(
    log: Interactions, split: Split, events: np.ndarray, scores: np.ndarray, *, seen: Literal["masked", "kept"]
) -> tuple[np.ndarray, np.ndarray]:
    some = Targets(events, log.user_codes[events], log.item_codes[events], None)
    return rank_in_blocks(log, split, some, [(np.arange(len(events)), scores)], seen=seen)


def _in_order(
    log: Interactions,
    labels: np.ndarray,
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]],
    *,
    ranking: bool,
) -> tuple[Targets, np.ndarray, np.ndarray | None]:
    events = np.concatenate([part[0] for part in parts]) if parts else np.empty(0, dtype=np.int64)
    order = np.argsort(events, kind="stable")
    values = np.concatenate([part[1] for part in parts])[order] if parts else np.empty(0)
    top = np.concatenate([part[2] for part in parts if part[2] is not None])[order] if parts and ranking else None
    events = events[order]
    label = None if ranking else labels[events].astype(np.float64)
    return Targets(events, log.user_codes[events], log.item_codes[events], label), values, top
