"""What a model in training is worth on the validation part.

Owns: its metrics, without intervals. Ignores: what is decided by them.
"""

from genre.data.splits import VALID
from genre.distributed import Processes
from genre.evaluation.targets import evaluate_feedback, evaluate_ranking
from genre.training.assembly import Assembly
from genre.training.prediction import list_facts, predict


def measure(assembly: Assembly, processes: Processes) -> dict[str, float]:
    """Validation metrics by `task.metric`; of tasks without a target there, none. Several processes share the work."""
    recipe, builder, model = assembly.recipe, assembly.builder, assembly.model
    found = predict(
        model, builder, assembly.split, VALID, max_events=recipe.data.max_events, batch_tokens=4 * recipe.train.batch_tokens,
        processes=processes,
    )  # fmt: skip
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
