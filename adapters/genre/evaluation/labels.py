"""Checks of labels before the first training step.

Owns: labels that are not finite, all alike, or absurdly far from the others.
Ignores: models, losses, what a label means.

    ratings 1 to 5 and one of 1e9, in training, validation or test:
    task 'rating' has a label far from all others: got 1e+09 at row 17 (user u3, item i5); expected between -1107 and 1115; …
"""

from collections.abc import Iterable, Mapping

import numpy as np

from genre.data.dataset import Dataset
from genre.errors import DataError, RecipeError
from genre.evaluation.metrics.by_name import metric
from genre.evaluation.metrics.impressions import need_impressions
from genre.tasks import Task

SPREADS = 1000.0
"""A label further from the training labels' median than so many of their spreads is taken for a mistake.

The spread is the root mean square distance from the median without the most distant thousandth (at least one), so that up
to that many mistakes cannot hide each other. A thousand spreads leave room for heavy tails: of a million log-normal
labels with σ = 1.5, none is refused."""

FEWEST = 10
"""Fewer training labels have no spread to speak of."""


def check_metrics(task: Task, data: Dataset) -> None:
    """Refuse metrics that a task cannot have, before anything is trained.

    Raises:
        RecipeError: A name is unknown, or of another kind of task.
        DataError: It is a mean over impressions, and the log has none.
    """
    ranks = task.kind == "next_item"
    for name in task.metrics:
        chosen = metric(name)
        if ranks == (chosen.kind == "feedback"):
            what = "a next-item task" if ranks else f"a {task.kind} task"
            expected = "such as ndcg@10" if ranks else "such as auc, rmse or accuracy"
            raise RecipeError(f"task {task.name!r}: a metric does not fit {what}", got=name, expected=expected)
        if chosen.by_impression:
            need_impressions(name, data.impressions)


def known_labels(labels: np.ndarray) -> np.ndarray:
    """(n,) bool: events that have a label; a missing one is NaN among floats, -1 among integers."""
    return ~np.isnan(labels) if labels.dtype.kind == "f" else labels >= 0


def check_labels(task: Task, labels: np.ndarray, data: Dataset, usable: np.ndarray) -> None:
    """Refuse labels that cannot train a task.

    Args:
        task: The task.
        labels: (n,) label of every row, as `Dataset.labels_of` gives them.
        data: The log, or the labelled texts.
        usable: (n,) bool, events that train.

    Raises:
        DataError: No training event has a label, all have the same one, one is infinite, or one of any part is absurd; or as
            `check_metrics`.
        RecipeError: As `check_metrics`.
    """
    check_metrics(task, data)
    known = known_labels(labels)
    training = labels[usable & known]
    if not len(training):
        raise DataError(f"task {task.name!r} has no label among the training events", got=task.label, expected="at least one")
    if task.kind == "next_item":
        return
    endless = np.flatnonzero(np.isinf(labels))
    if len(endless):
        raise DataError(
            f"task {task.name!r} has a label that is not finite",
            got=f"{labels[endless[0]]} at {data.name_rows(endless)}",
            expected="finite numbers",
            todo="correct those rows or take them out of the log",
        )
    if training.min() == training.max():
        raise DataError(
            f"task {task.name!r} cannot be learnt: all its training labels are the same",
            got=f"{training[0]:g} in {len(training):,} events",
            expected="at least two different labels",
            todo=f"change the label {task.label!r}, or give data.split more training events",
        )
    if task.loss == "mse":
        check_spread(f"task {task.name!r} has a label", labels, data, usable)


def thin_negatives(tasks: Iterable[Task], labels: Mapping[str, np.ndarray], draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Labels of every task without the negatives that `keep_negatives` leaves out; label 1 always stays.

    Args:
        tasks: The tasks; those without `keep_negatives` keep all of their labels.
        labels: For each task (n,) labels, as `Dataset.labels_of` gives them; left as they are.
        draw: Draws each negative by itself, so that the share holds on average.
    """
    found = dict(labels)
    for task in tasks:
        if task.keep_negatives is not None:
            own = labels[task.name]
            found[task.name] = np.where((own == 0) & (draw.random(len(own)) >= task.keep_negatives), np.nan, own)
    return found


def smoothing(share: float) -> float:
    """Weight of the overall mean, in events, in a smoothed mean of 0/1 labels: five, or as many as hold one rarer label.

    The best such constant is the variance within items over the variance between them. Within, it is p (1 - p); the shares of a
    rare label differ by a part of themselves, so between it is some p², and the ratio grows like 1 / p.
    """
    return max(5.0, 1 / max(min(share, 1 - share), 1e-6))


def check_spread(what: str, values: np.ndarray, data: Dataset, usable: np.ndarray) -> None:
    """Refuse numbers that lie absurdly far from the training events' (see `SPREADS`).

    Args:
        what: How the message begins, such as "task 'rating' has a label".
        values: (n,) float of every event, NaN where there is none.
        data: The log, or the labelled texts.
        usable: (n,) bool, events that train.

    Raises:
        DataError: The message names the rows.
    """
    training = values[usable & ~np.isnan(values)]
    if len(training) < FEWEST:
        return
    middle = float(np.median(training))
    near = np.sort(np.abs(training - middle))[: -max(1, len(training) // 1000)]
    reach = SPREADS * float(np.sqrt(np.mean(near**2)))
    far = np.flatnonzero(np.abs(values - middle) > reach) if reach > 0 else np.empty(0, dtype=np.int64)
    if len(far):
        raise DataError(
            f"{what} far from all others",
            got=f"{values[far[0]]:g} at {data.name_rows(far)}",
            expected=f"between {middle - reach:g} and {middle + reach:g}, {SPREADS:g} spreads around the median",
            todo="correct those rows, take them out of the log, or bound the column (a logarithm, a comparison)",
        )
