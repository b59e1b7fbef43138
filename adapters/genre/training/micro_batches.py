"""A step's batch in micro-batches: over processes, and one after the other.

Owns: which process takes which rows, the share of the loss of a micro-batch, equal weights at the start. Ignores: the model.

    batch of 7 rows by length, 2 processes, 2 micro-batches each:   rank 0: rows 0 2 | 4 6     rank 1: rows 1 3 | 5

The mean loss of a batch is the sum over its micro-batches of (their share of the targets) x (their mean loss), task by task,
so the sum of their gradients is the batch's own, however the rows are split.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Rows

import numpy as np
import torch

from genre.data.dataset import Slot
from genre.data.sequences.layout import Sequence
from genre.distributed import Processes
from genre.evaluation.labels import known_labels
from genre.modules.recommender import Recommender


def split_rows(rows: Rows[Sequence], processes: Processes, count: int) -> list[Rows[Sequence]]:
    """This process's rows in at most `count` micro-batches; none where a batch has fewer rows than processes.

    Rows come by length, so each process takes every so many-th: all of them have about equally long ones.
    """
    mine = processes.shard(rows)
    size = -(-len(mine) // count)
    return [mine[start : start + size] for start in range(0, len(mine), size or 1)]


def most_micro_batches(rows: Rows[Sequence], processes: Processes, count: int) -> int:
    """The number of micro-batches of the process with the most; fewer rows may be split into more of them."""
    return max(len(split_rows(rows, Processes(rank, processes.count), count)) for rank in range(processes.count))


def count_targets(rows: Iterable[Sequence], labels: Mapping[str, tuple[Slot, np.ndarray]]) -> dict[str, int]:
    """The number of targets of each task in some rows: those that `collate` would read."""
    events = [np.empty(0, dtype=np.int64)]
    for row in rows:
        events += [row.events[row.targets & (row.events >= 0)], row.candidate_events[row.candidate_events >= 0]]
    every = np.concatenate(events)
    return {name: int(known_labels(own[every]).sum()) for name, (_, own) in labels.items()}


def shares(part: Mapping[str, int], whole: Mapping[str, int]) -> dict[str, float]:
    """For each task the share of a batch's targets that a micro-batch has; 0 where the batch has none."""
    return {name: part[name] / whole[name] if whole[name] else 0.0 for name in whole}


def broadcast_weights(processes: Processes, model: Recommender, seed: int) -> None:
    """Give all processes the first one's weights, as the reference too, and each of the others its own random numbers (mutates).

    What is computed before training, such as collaborative vectors, may differ in the last bit on other machines.
    """
    if processes.count == 1:
        return
    for tensor in [*model.trainable().values(), *model.heads.buffers(), *(model.encoder.buffers() if model.encoder else ())]:
        processes.broadcast_(tensor.data)
    model.keep_reference()
    seed_process(processes, seed, 0)


def seed_process(processes: Processes, seed: int, step: int) -> None:
    """Seed the random numbers of every process but the first, which goes on with those that a single process would have."""
    if not processes.is_main:
        torch.manual_seed(int(np.random.SeedSequence([seed, step, processes.rank]).generate_state(1, np.uint64)[0] >> 1))
