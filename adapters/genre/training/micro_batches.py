"""A step's batch in pieces: over processes, and one after the other.

Owns: who takes which rows, how much of the loss a piece has, adding up gradients. Ignores: what the model is.

    batch of 7 rows by length, 2 processes, 2 pieces each:   rank 0: rows 0 2 | 4 6     rank 1: rows 1 3 | 5

The mean loss of a batch is the sum over its pieces of (the piece's share of the targets) x (the piece's mean loss), task by
task, so the sum of the pieces' gradients is the batch's own, however the rows are cut.
"""

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor, nn

from genre.data.dataset import Slot
from genre.data.sequences.layout import Sequence
from genre.distributed import Processes
from genre.evaluation.labels import known_labels
from genre.modules.recommender import Recommender


def cut(rows: Rows[Sequence], processes: Processes, pieces: int) -> list[Rows[Sequence]]:
    """This process's rows of a batch in at most `pieces` parts; none where a batch has fewer rows than processes.

    Rows come by length, so each process takes every so many-th: all of them have about equally long ones.
    """
    mine = processes.shard(rows)
    size = -(-len(mine) // pieces)
    return [mine[start : start + size] for start in range(0, len(mine), size or 1)]


def most_pieces(rows: Rows[Sequence], processes: Processes, pieces: int) -> int:
    """Into how many parts the process with the most cuts its rows; with fewer rows a process may cut them into more parts."""
    return max(len(cut(rows, Processes(rank, processes.count), pieces)) for rank in range(processes.count))


def count_targets(rows: Iterable[Sequence], supervise: Mapping[str, tuple[Slot, np.ndarray]]) -> dict[str, int]:
    """How many targets each task has in some rows: what `collate` would read."""
    events = [np.concatenate([row.events[row.targets & (row.events >= 0)], row.candidate_events[row.candidate_events >= 0]])
              for row in rows]  # fmt: skip
    whole = np.concatenate(events) if events else np.empty(0, dtype=np.int64)
    return {name: int(known_labels(labels[whole]).sum()) for name, (_, labels) in supervise.items()}


def shares(piece: Mapping[str, int], whole: Mapping[str, int]) -> dict[str, float]:
    """For each task the share of a batch's targets that a piece has; 0 where the batch has none."""
    return {name: piece[name] / whole[name] if whole[name] else 0.0 for name in whole}


@torch.no_grad()
def add_up(processes: Processes, parameters: Iterable[nn.Parameter], told: Tensor) -> Tensor:
    """Add up the gradients of all processes, in place, in one exchange; a missing one counts as zero.

    Args:
        processes: The processes.
        parameters: The same in each of them.
        told: (k,) float32 further numbers to add up.

    Returns:
        (k,) their sums, on the CPU.
    """
    if processes.count == 1:
        return told.cpu()
    values = list(parameters)
    flat = torch.cat([*(_gradient(value).reshape(-1).float() for value in values), told.to(values[0].device)])
    *sums, told = processes.all_reduce(flat).split([*(value.numel() for value in values), len(told)])
    for value, total in zip(values, sums, strict=True):
        value.grad = total.view_as(value).to(value.dtype)
    return told.cpu()


def start_alike(processes: Processes, model: Recommender, seed: int) -> None:
    """Give all processes the first one's weights, and each of the others its own random numbers (mutates).

    What is computed before training, such as collaborative vectors, need not be alike to the last bit on other machines.
    """
    if processes.count == 1:
        return
    for tensor in [*model.trainable().values(), *model.heads.buffers(), *(model.encoder.buffers() if model.encoder else ())]:
        processes.broadcast_(tensor.data)
    seed_apart(processes, seed, 0)


def seed_apart(processes: Processes, seed: int, step: int) -> None:
    """Seed the random numbers of every process but the first, which goes on with those that one process would have."""
    if not processes.is_main:
        torch.manual_seed(int(np.random.SeedSequence([seed, step, processes.rank]).generate_state(1, np.uint64)[0] >> 1))


def _gradient(value: nn.Parameter) -> Tensor:
    return torch.zeros_like(value) if value.grad is None else value.grad
