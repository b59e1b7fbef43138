"""The loss of a model on each user's events: what attacks on privacy look at.

Owns: the loss of every target, its mean for each user. Ignores: which users trained the model, what follows from a loss.

    losses = mean_losses(model, log, layout, task, chosen, max_events=100)      # (U,) NaN for users without a chosen event
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genre.data.interactions import Interactions
from genre.data.sequences.batches import collate, plan_batches
from genre.data.sequences.layout import Layout
from genre.data.sequences.rows import RowBuilder
from genre.modules.recommender import Recommender
from genre.tasks import OFF_POLICY, RELATIVE, Task
from genre.training.assembly import Assembly
from genre.training.prediction import BATCH_TOKENS, pieces


def attacked_events(log: Interactions, train: np.ndarray) -> np.ndarray:
    """(n,) bool: the events that an attack looks at, a user's training events, or all of them for users who have none."""
    return train | ~trained_users(log, train, least=1)[log.user_codes]


def trained_users(log: Interactions, train: np.ndarray, *, least: int) -> np.ndarray:
    """(U,) bool: users with at least so many events in a mask, (n,) bool."""
    return np.bincount(log.user_codes[train], minlength=len(log.user_ids)) >= least


def trained_on(assembly: Assembly, log: Interactions) -> np.ndarray:
    """(U,) bool: the users of a log who gave an assembly training rows."""
    own = assembly.log
    there = trained_users(own, assembly.train_mask, least=assembly.recipe.data.min_events)
    names = {user for user, trained in zip(own.user_ids, there.tolist(), strict=True) if trained}
    return np.array([user in names for user in log.user_ids])


def layout_of(assembly: Assembly) -> Layout:
    """The layout of a run over a log."""
    assert isinstance(assembly.builder, RowBuilder), "an audit reads logs"
    return assembly.builder.layout


@torch.no_grad()
def mean_losses(
    model: Recommender, log: Interactions, layout: Layout, task: Task, chosen: np.ndarray, *, max_events: int
) -> np.ndarray:
    """Each user's mean loss on some of their events, laid out as training lays them out.

    Args:
        model: On its base; left in evaluation mode.
        log: The log, of the catalogue that the model's item vectors are of.
        layout: How the model reads it.
        task: Gives the loss and the labels.
        chosen: (n,) bool, the events; what has no label is left out.
        max_events: Events of one row.

    Returns:
        (U,) float64, NaN for users without such an event.
    """
    model.eval()
    rows, _ = RowBuilder(log, layout).training_rows(chosen, max_events=max_events, min_events=1)
    supervise, tables = log.supervise([task]), model.catalogue_tables().get(task.name)
    items = None if tables is None else len(tables[0])
    total, count = (np.zeros(len(log.user_ids)) for _ in range(2))
    for batch_rows in plan_batches(np.array([len(row) for row in rows]), BATCH_TOKENS):
        batch = collate([rows[i] for i in batch_rows], supervise).to(model.base.device)
        hidden = model.hidden(batch)
        for reads in pieces(batch.reads[task.name], items):
            output = model.output(task.name, hidden, batch, reads=reads, tables=tables)
            found = target_losses(task, output, reads.labels).double().cpu().numpy()
            owners = log.user_codes[reads.events.numpy()]
            np.add.at(total, owners, found)
            np.add.at(count, owners, 1)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, total / count, np.nan)


def target_losses(task: Task, output: Tensor, labels: Tensor) -> Tensor:
    """(n,) the loss of each target, by the task's own formula: see `genre.modules.losses`."""
    if task.loss in ("cross_entropy", *OFF_POLICY, *RELATIVE):  # of a policy, how unlikely it makes what was shown
        return F.cross_entropy(output.float(), labels, reduction="none")
    if task.loss == "mse":
        return (output.float() - labels.float()).square()
    return F.binary_cross_entropy_with_logits(output.float(), labels.float(), reduction="none")
