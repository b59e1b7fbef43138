"""What losses that learn a policy from propensities read off a log.

Owns: rewards and propensities of events, the mean reward of items, the labels of training. Ignores: formulas, models.
"""

from collections.abc import Sequence

import numpy as np
import torch

from genre.data.dataset import Dataset, Slot
from genre.data.interactions import Interactions, need_log
from genre.errors import DataError
from genre.evaluation.off_policy import item_rewards
from genre.modules.losses import LoggedRewards
from genre.tasks import Task
from genre.training.preferences import pairs_of


def training_labels(data: Dataset, tasks: Sequence[Task]) -> dict[str, tuple[Slot, np.ndarray]]:
    """For each task its slot and the labels that training learns from, as `Dataset.supervise` returns them.

    A task that learns a policy learns from every event with a reward and a propensity, whatever its targets; one that learns
    from what was rejected, from its targets for which something was.
    """
    found = data.supervise(tasks)
    for task in tasks:
        if task.logged is not None:
            log = need_log(data)
            reward, propensity = columns_of(task, log)
            known = ~np.isnan(reward) & ~np.isnan(propensity)
            found[task.name] = found[task.name][0], np.where(known, log.item_codes.astype(np.int64), -1)
        elif task.preference is not None and (pairs := pairs_of(task, need_log(data))) is not None:
            found[task.name] = found[task.name][0], np.where(pairs.count > 0, found[task.name][1], -1)
    return found


def logged_rewards(task: Task, log: Interactions, train_mask: np.ndarray) -> LoggedRewards:
    """Rewards and propensities of a log's events; each item's mean reward, shrunk, over the training events.

    Raises:
        DataError: A column is missing or has values that it cannot have, or no training event has both.
    """
    assert task.logged is not None
    reward, propensity = columns_of(task, log)
    chosen = train_mask & ~np.isnan(reward) & ~np.isnan(propensity)
    if not chosen.any():
        got = f"{task.logged.reward} and {task.logged.propensity} in none of {int(train_mask.sum()):,} training events"
        raise DataError(f"task {task.name!r} has nothing to learn from", got=got, expected="events with both")
    model = item_rewards(log.item_codes[chosen], reward[chosen], log.catalogue.size)
    arrays = (
        torch.from_numpy(np.nan_to_num(each, nan=filling).astype(np.float32)) for each, filling in ((reward, 0), (propensity, 1))
    )
    rewards, propensities = arrays
    return LoggedRewards(task.loss, rewards, propensities, task.logged.clip, torch.from_numpy(model.astype(np.float32)))


def columns_of(task: Task, log: Interactions) -> tuple[np.ndarray, np.ndarray]:
    """(events,) rewards and propensities, NaN where there are none.

    Raises:
        DataError: A column is missing, or has values that it cannot have.
    """
    assert task.logged is not None
    found = []
    for name, what, least, most in (
        (task.logged.reward, "reward", -np.inf, np.inf),
        (task.logged.propensity, "propensity", 0.0, 1.0),
    ):
        values = log.column(name)
        if values.dtype == object:
            raise DataError(f"the {what} of task {task.name!r} is text", got=name, expected="a column of numbers")
        wrong = np.flatnonzero(
            ~np.isnan(values) & ((values < least) | (values > most) | ((values <= 0) & (what == "propensity")))
        )
        if len(wrong):
            where = f"{name} {values[wrong[0]]:g} in {log.name_row(int(wrong[0]))}"
            raise DataError(f"a {what} of task {task.name!r} is none", got=where, expected="above 0, at most 1")
        found.append(values)
    return found[0], found[1]
