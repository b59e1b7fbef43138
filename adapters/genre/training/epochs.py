"""What an epoch is made of: its rows, its batches, and the labels that it learns from.

Owns: the draws of an epoch. Ignores: models, steps, checkpoints.

Everything is a function of seed and epoch alone, so that a resumed run sees what the interrupted one would have seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from genre.data.dataset import Slot
from genre.data.sequences.batches import plan_batches
from genre.data.sequences.layout import Sequence
from genre.errors import DataError, InputError
from genre.evaluation.labels import known_labels, thin_negatives
from genre.training.assembly import Assembly
from genre.training.checks import name_rows

Labels = Mapping[str, tuple[Slot, np.ndarray]]


@dataclass(frozen=True)
class Epoch:
    """One pass over the training events.

    Attributes:
        rows: Its rows.
        batches: Numbers of the rows of each step, in order.
        supervise: For each task its slot and labels, some of them left out for this epoch.
    """

    rows: list[Sequence]
    batches: list[np.ndarray]
    supervise: Labels


def plan_epoch(assembly: Assembly, every: Labels, epoch: int) -> Epoch:
    """Lay out an epoch.

    Args:
        assembly: The run; skipped events are noted in it.
        every: For each task its slot and all labels.
        epoch: From 0.

    Raises:
        InputError: No user has enough events.
        DataError: A row is longer than the base can read.
    """
    train, data = assembly.recipe.train, assembly.recipe.data
    draw = np.random.default_rng([train.seed, epoch])
    supervise, targets = _thin(assembly, every, epoch)
    rows, skipped = assembly.builder.training_rows(
        assembly.usable, targets, max_events=data.max_events, min_events=data.min_events, shift=draw.random()
    )
    if skipped:
        assembly.skipped["events of users with fewer than min_events"] = skipped
    if not rows:
        raise InputError("no user has enough training events", expected=f"data.min_events {data.min_events} or more")
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    longest, places = int(lengths.argmax()), getattr(assembly.base.model.config, "max_position_embeddings", None)
    if places is not None and lengths[longest] > places:
        raise DataError(
            "a sequence is longer than the base can read",
            got=f"{lengths[longest]:,} tokens: {name_rows(assembly, [rows[longest]])}",
            expected=f"at most {places:,}",
            todo="lower data.max_events or sequence.max_item_tokens, or take long user columns out of sequence.instruction",
        )  # fmt: skip
    batches = list(plan_batches(lengths, train.batch_tokens, draw.permutation(len(rows))))
    order = draw.permutation(len(batches))
    return Epoch(rows, [batches[i] for i in order], supervise)


def _thin(assembly: Assembly, every: Labels, epoch: int) -> tuple[Labels, np.ndarray | None]:
    """The labels without those that an epoch does not learn from (see `Task.keep_negatives`), and the events that are targets.

    Where every task has left some out, rows are made for what is left alone.
    """
    supervised, tasks = assembly.supervised, assembly.recipe.tasks
    if all(task.keep_negatives is None for task in tasks):
        return every, supervised
    draw = np.random.default_rng([assembly.recipe.train.seed, epoch, 1])
    labels = thin_negatives(tasks, {name: own for name, (_, own) in every.items()}, draw)
    supervise = {name: (slot, labels[name]) for name, (slot, _) in every.items()}
    if any(task.keep_negatives is None for task in tasks):
        return supervise, supervised
    left = assembly.usable & np.any([known_labels(own) for own in labels.values()], axis=0)
    return supervise, left if supervised is None else left & supervised
