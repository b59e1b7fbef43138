"""Whether a refreshed version is worse than the one it came from, and whether a new encoder is due.

Owns: the paired comparison on the same targets and its rule. Ignores: how scores came about, aliases.

**The rule.** Not worse means: the whole 95 % interval of the paired difference (users drawn again, both versions on the same
draws) lies above minus the margin, for the deciding metric of every task. The margin is the tolerance itself for metrics
between 0 and 1 that should be high (AUC, NDCG); where lower is better (RMSE, log loss) it is that share of the old value.
So a test that is too small to tell keeps the old version, however good the new one looks.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from genre.data.interactions import Interactions
from genre.errors import RecipeError
from genre.evaluation.metrics import bootstrap, metric, paired_bootstrap
from genre.evaluation.targets import Targets
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
        n: Targets.
        users: Users that they belong to.
        margin: How much worse, in the metric's own unit, still counts as not worse.
        outcome: What the rule says.
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

    def words(self, task: str) -> str:
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
    name = next((each for each in task.metrics if metric(each).kind not in ("list", "quality")), None)
    if name is None:
        raise RecipeError(
            f"task {task.name!r} has no metric to decide on", got=", ".join(task.metrics), expected="auc, ndcg@10 …"
        )
    about: dict[str, Any] = {"impressions": targets.impression}
    found = paired_bootstrap(name, targets.user, targets.label, new, old, **about)
    before, after = (bootstrap(name, targets.user, targets.label, each, resamples=0, **about).value for each in (old, new))
    sign = 1 if metric(name).direction == "higher" else -1
    margin = tolerance if sign > 0 else tolerance * abs(before)
    low = found.low if sign > 0 else -found.high
    outcome: Outcome = "not worse" if low >= -margin else "worse" if sign * found.value < -margin else "cannot be told"
    known = bool(np.isfinite([found.value, found.low, found.high]).all())
    return Verdict(
        name, _number(before), _number(after), _number(found.value), (found.low, found.high) if known else None,
        found.n, found.users, _number(margin), outcome if known else "cannot be told",
    )  # fmt: skip


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def unknown_shares(shared: SharedEncoder | None, log: Interactions, new: np.ndarray, threshold: float) -> dict[str, Any] | None:
    """How much of the catalogue and of the new events is on items without id-bound vectors, and whether an encoder is due.

    Returns:
        `{"events", "items", "threshold", "due"}` as shares; None where there is no encoder, or nothing in it is bound to ids.
    """
    if shared is None or not shared.encoder.spec.binds_ids:
        return None
    strange = np.array([item not in shared.encoder.row_of for item in log.catalogue.item_ids], dtype=bool)
    events, items = float(strange[log.item_codes[new]].mean()), float(strange.mean())
    return {"events": events, "items": items, "threshold": threshold, "due": max(events, items) > threshold}
