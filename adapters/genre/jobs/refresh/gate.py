"""The quality gate of a refresh: is the new version worse than the old one, and is a new encoder due?

Owns: the rule, on a paired comparison of both versions on the same targets. Ignores: how scores come about, aliases.

**The rule.** Not worse means: the whole 95 % interval of the paired difference (users resampled, both versions on the same
draws) lies above minus the margin, for the deciding metric of every task. The margin is the tolerance itself for metrics
between 0 and 1 where higher is better (AUC, NDCG); where lower is better (RMSE, log loss) it is that share of the old value.
So a test that is too small keeps the old version, however good the new one looks.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from genre.data.interactions import Interactions
from genre.errors import RecipeError
from genre.evaluation.metrics import metric
from genre.evaluation.metrics.bootstrap import RESAMPLES
from genre.evaluation.targets import Targets
from genre.jobs.compare import paired_difference
from genre.jobs.predictions import resampled_metrics
from genre.tasks import Task
from genre.training.parts import SharedEncoder
from genre.training.prediction import Predicted

Outcome = Literal["not worse", "worse", "cannot be told"]


@dataclass(frozen=True)
class Verdict:
    """One task's comparison.

    Attributes:
        metric: The deciding one: the task's first that can be resampled.
        old, new: Its values.
        difference: new - old.
        interval: Of the difference, 95 %; None where it cannot be computed.
        n, users: Targets, and the users that they belong to.
        margin: The loss, in the metric's own unit, that still counts as not worse.
        outcome: By the rule.
    """

    metric: str
    old: float | None
    new: float | None
    difference: float | None
    interval: tuple[float, float] | None
    n: int
    users: int
    margin: float | None
    outcome: Outcome

    def line(self, task: str) -> str:
        """The comparison in one line."""
        if self.interval is None or self.difference is None:
            return f"{task}.{self.metric}: no value on {self.n:,} targets: {self.outcome}"
        low, high = self.interval
        return (
            f"{task}.{self.metric} {self.new:.4f}, before {self.old:.4f}, difference {self.difference:+.4f} "
            f"[{low:+.4f}, {high:+.4f}] on {self.n:,} targets of {self.users:,} users, margin {self.margin:.4f}: {self.outcome}"
        )


def compare(tasks: dict[str, Task], old: Predicted, new: Predicted, tolerance: float) -> dict[str, Verdict]:
    """Every task's verdict; both predictions are of the same targets."""
    return {name: _verdict(task, *old[name][:2], new[name][1], tolerance) for name, task in tasks.items()}


def overall(verdicts: dict[str, Verdict]) -> Outcome:
    """Not worse only if no task is; worse if one is."""
    outcomes = {verdict.outcome for verdict in verdicts.values()}
    return "worse" if "worse" in outcomes else "cannot be told" if "cannot be told" in outcomes else "not worse"


def _verdict(task: Task, targets: Targets, old: np.ndarray, new: np.ndarray, tolerance: float) -> Verdict:
    name = next(iter(resampled_metrics(task)), None)
    if name is None:
        got, expected = ", ".join(task.metrics), "auc, ndcg@10 …"
        raise RecipeError(f"task {task.name!r} has no metric to decide on", got=got, expected=expected)
    found = paired_difference(name, targets, new, old, resamples=RESAMPLES)
    higher = metric(name).direction == "higher"
    margin = tolerance if higher else None if found.b is None else tolerance * abs(found.b)
    outcome: Outcome = "cannot be told"
    if found.interval is not None and found.difference is not None and margin is not None:
        low = found.interval[0] if higher else -found.interval[1]
        change = found.difference if higher else -found.difference
        outcome = "not worse" if low >= -margin else "worse" if change < -margin else "cannot be told"
    return Verdict(name, found.b, found.a, found.difference, found.interval, found.n, found.users, margin, outcome)


def unknown_shares(shared: SharedEncoder | None, log: Interactions, new: np.ndarray, threshold: float) -> dict[str, Any] | None:
    """Shares of the catalogue and of the new events on items that the encoder does not know.

    Returns:
        `{"events", "items", "threshold", "due"}`; a new encoder is due above the threshold. None without an encoder, or where
        nothing in it is bound to ids.
    """
    if shared is None or not shared.encoder.spec.binds_ids:
        return None
    unknown = np.array([item not in shared.encoder.row_of for item in log.catalogue.item_ids], dtype=bool)
    events, items = float(unknown[log.item_codes[new]].mean()), float(unknown.mean())
    return {"events": events, "items": items, "threshold": threshold, "due": max(events, items) > threshold}
