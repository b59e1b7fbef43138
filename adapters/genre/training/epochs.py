"""The plan of an epoch: its batches, and the labels that it learns from.

Owns: the random draws of an epoch. Ignores: models, steps, checkpoints.

Everything is a function of seed and epoch alone, so that a resumed run trains on what the interrupted one would have.
"""

from dataclasses import dataclass

import numpy as np

from genre.data.sequences.batches import plan_batches
from genre.data.sequences.layout import Sequence
from genre.errors import DataError, InputError
from genre.evaluation.labels import known_labels, thin_negatives
from genre.training.assembly import Assembly
from genre.training.checks import name_rows
from genre.training.drawing import Labels, planned_rows


@dataclass(frozen=True)
class Epoch:
    """One pass over the training events.

    Attributes:
        batches: The rows of each step, in order.
        labels: For each task its slot and labels, some of them left out for this epoch.
    """

    batches: list[list[Sequence]]
    labels: Labels


def plan_epoch(assembly: Assembly, all_labels: Labels, epoch: int) -> Epoch:
    """Lay out an epoch.

    Args:
        assembly: The run; skipped events are noted in it.
        all_labels: For each task its slot and all labels.
        epoch: From 0.

    Raises:
        InputError: No user has enough events.
        DataError: A row is longer than the base can read.
        RecipeError: What is drawn for a target does not fit into a step.
    """
    train = assembly.recipe.train
    draw = np.random.default_rng([train.seed, epoch])
    rows, labels = lay_out(assembly, all_labels, draw.random(), np.random.default_rng([train.seed, epoch, 1]))
    rows, lengths = planned_rows(assembly.model, rows, labels, train.batch_tokens)
    batches = list(plan_batches(lengths, train.batch_tokens, draw.permutation(len(rows))))
    return Epoch([[rows[i] for i in batches[index]] for index in draw.permutation(len(batches))], labels)


def lay_out(assembly: Assembly, all_labels: Labels, shift: float, thinning: np.random.Generator) -> tuple[list[Sequence], Labels]:
    """The rows of an epoch, in the log's order of users, and the labels that it learns from.

    Args:
        assembly: The run; skipped events are noted in it.
        all_labels: For each task its slot and all labels.
        shift: Of the cuts between windows, in [0, 1).
        thinning: Draws the negatives that are left out.

    Raises:
        InputError, DataError: As `plan_epoch`.
    """
    data = assembly.recipe.data
    labels, targets = _thin(assembly, all_labels, thinning)
    rows, skipped = assembly.builder.training_rows(
        assembly.train_mask, targets, max_events=data.max_events, min_events=data.min_events, shift=shift
    )
    if skipped:
        assembly.skipped["events of users with fewer than min_events"] = skipped
    if not rows:
        raise InputError("no user has enough training events", expected=f"data.min_events {data.min_events} or more")
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    longest, base = int(lengths.argmax()), assembly.base
    limits = (getattr(base.model.config, "max_position_embeddings", None), base.position_limit)
    limit = min(filter(None, limits), default=None)
    if limit is not None and lengths[longest] > limit:
        got = f"{lengths[longest]:,} tokens: {name_rows(assembly, [rows[longest]])}"
        todo = "lower data.max_events or sequence.max_item_tokens, or take long user columns out of sequence.instruction"
        raise DataError("a sequence is longer than the base can read", got=got, expected=f"at most {limit:,}", todo=todo)
    return rows, labels


def _thin(assembly: Assembly, all_labels: Labels, draw: np.random.Generator) -> tuple[Labels, np.ndarray | None]:
    """Labels without the negatives that an epoch leaves out (see `Task.keep_negatives`), and the mask of its targets.

    Where every task has left some out, rows are made for the remaining targets alone.
    """
    targets, tasks = assembly.target_mask, assembly.recipe.tasks
    if all(task.keep_negatives is None for task in tasks):
        return all_labels, targets
    kept = thin_negatives(tasks, {name: own for name, (_, own) in all_labels.items()}, draw)
    labels = {name: (slot, kept[name]) for name, (slot, _) in all_labels.items()}
    if any(task.keep_negatives is None for task in tasks):
        return labels, targets
    left = assembly.train_mask & np.any([known_labels(own) for own in kept.values()], axis=0)
    return labels, left if targets is None else left & targets
