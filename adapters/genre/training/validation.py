"""Metrics of a model in training on the validation part, and the one that decides.

Owns: these, without intervals. Ignores: what happens with the best weights.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from genre.data.splits import VALID
from genre.distributed import Processes
from genre.evaluation.metrics import Metric, metric
from genre.evaluation.targets import evaluate_feedback, evaluate_ranking
from genre.tasks import Task
from genre.training.assembly import Assembly
from genre.training.prediction import list_facts, predict

VALIDATION_BEAM = 20
"""Prefixes at each level of a beam search in training: enough for what metrics look at, at a fraction of the time."""


def validation_metrics(assembly: Assembly, processes: Processes) -> dict[str, float]:
    """Validation metrics by `task.metric`; none of a task without a target there. Several processes share the work."""
    recipe, builder, model = assembly.recipe, assembly.builder, assembly.model
    most, tokens = recipe.data.max_events, 4 * recipe.train.batch_tokens
    limits: Any = {"max_events": most, "batch_tokens": tokens, "processes": processes, "beam": VALIDATION_BEAM}
    found = predict(model, builder, assembly.split, VALID, **limits)
    values: dict[str, float] = {}
    for task in recipe.tasks:
        targets, scores, top = found[task.name]
        if not len(targets.event):
            continue
        if task.kind == "next_item":
            facts = list_facts(model, builder, assembly.split, task, targets)
            figures = evaluate_ranking(task.metrics, targets, scores, top, builder.data.item_count, facts=facts, resamples=0)
        else:
            figures = evaluate_feedback(task.metrics, targets, scores, resamples=0)
        values |= {f"{task.name}.{name}": figure.value for name, figure in figures.items()}
    return processes.broadcast(values)  # alike to the last bit, since all decide by them


def ranking_metric(task: Task) -> Metric:
    """The first of a task's metrics that is of ranks alone, NDCG@10 if there is none: closed-form terms are weighed by it."""
    return next((found for each in task.metrics if (found := metric(each)).kind == "ranking"), metric("ndcg@10"))


def deciding_metric(tasks: Sequence[Task], values: Mapping[str, float]) -> tuple[str, Metric] | None:
    """The first metric that has a value, of all tasks' first metrics and then of the others; None if none has."""
    ordered = [(task, task.metrics[0]) for task in tasks] + [(task, each) for task in tasks for each in task.metrics[1:]]
    names = ((f"{task.name}.{each}", metric(each)) for task, each in ordered)
    return next(((name, found) for name, found in names if not math.isnan(values.get(name, math.nan))), None)
