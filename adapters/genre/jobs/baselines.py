"""The baselines of a task, whatever its kind, as functions that are run where their figures are wanted.

Owns: which baselines a task has. Ignores: metrics, and how a baseline works.

    scorers = baseline_scorers(task, data, text, split, targets)
    ranks, top = scorers["ease"]()
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from genre.data.dataset import Dataset
from genre.data.interactions import Interactions, need_log
from genre.data.sequences.windows import WindowRule
from genre.data.splits import Split
from genre.data.texts.dataset import Texts
from genre.evaluation.baselines import Blocks, feedback_baselines, ranking_baselines
from genre.evaluation.ranking import rank_in_blocks
from genre.evaluation.targets import Targets
from genre.evaluation.text_baselines import text_baselines
from genre.tasks import Task
from genre.training.self_attentive import self_attentive

Scores = tuple[np.ndarray, np.ndarray | None]
"""Scores or ranks, one per target; and top lists of next-item tasks."""


def baseline_scorers(
    task: Task,
    data: Dataset,
    text: Sequence[str],
    split: Split,
    targets: Targets,
    *,
    window: int | None = None,
    rule: WindowRule = "sliding",
    item_texts: Callable[[], np.ndarray] | None = None,
    report: Callable[[str], None] = lambda line: None,
    progress: Callable[[str], None] = lambda state: None,
) -> dict[str, Callable[[], Scores]]:
    """Functions, by name, that run a task's baselines on some targets.

    Args:
        task: The task.
        data: The data.
        text: The text columns that the adapter reads.
        split: A split of the data.
        targets: The targets.
        window: Events of a user that the adapter reads at once; None if unknown.
        rule: Its rule for longer histories.
        item_texts: Gives (N, r) text vectors of length one, for next-item tasks; without them no baseline reads text.
        report: Called with what a baseline leaves out, once it runs.
        progress: Called with a line about each epoch of a baseline that trains.
    """
    if isinstance(data, Texts):
        scorers = text_baselines(data, text, split, task, targets)
        return {name: partial(_run_without_lists, run) for name, run in scorers.items()}
    log = need_log(data)
    if task.kind == "next_item":
        blocks = ranking_baselines(log, split, targets, seen=task.seen, texts=item_texts, report=report)
        blocks["self_attentive"] = lambda: self_attentive(log, split, seen=task.seen, progress=progress).blocks(targets)
        return {name: partial(_ranked, log, split, targets, make, task) for name, make in blocks.items()}
    if task.loss == "cross_entropy":
        return {}
    reads: Any = {"window": window, "rule": rule}
    scores = feedback_baselines(log, split, log.labels_of(task), targets, binary=task.is_binary, **reads)
    return {name: partial(_without_lists, value) for name, value in scores.items()}


def _without_lists(scores: np.ndarray) -> Scores:
    return scores, None


def _run_without_lists(run: Callable[[], np.ndarray]) -> Scores:
    return run(), None


def _ranked(log: Interactions, split: Split, targets: Targets, make: Blocks, task: Task) -> Scores:
    found = rank_in_blocks(log, split, targets, make(), seen=task.seen)
    return found.ranks, found.top
