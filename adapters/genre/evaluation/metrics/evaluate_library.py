"""The metrics as `evaluate.Metric`s.

Owns: a subclass of `evaluate.Metric` around each formula of `METRICS`. `evaluate.load` fetches code when it runs;
these are built here, so they need no network. Ignores formulas and intervals.

    >>> as_evaluate("auc").compute(predictions=[0.9, 0.1, 0.4, 0.4], references=[1, 0, 1, 0])
    {'auc': 0.875}
    >>> as_evaluate("hr@5").compute(predictions=[[0.3, 0.9, 0.1]], references=[0])  # item 0 of 3 is second
    {'hr@5': 1.0}
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from genre.errors import DataError
from genre.evaluation.metrics.by_name import Metric, metric
from genre.evaluation.metrics.impressions import need_impressions
from genre.evaluation.metrics.lists import ListFacts
from genre.evaluation.metrics.ranking import mid_ranks, top_items

if TYPE_CHECKING:
    import evaluate

_PER_CLASS = ("log_loss", "accuracy", "macro_f1")


def as_evaluate(name: str, **options: Any) -> evaluate.Metric:
    """Return a metric as an `evaluate.Metric`, without a download.

    `compute(predictions=, references=)` takes, and returns `{name: value}`:

    - feedback metrics: scores and labels, numbers ([n, C] class scores for log_loss, accuracy and macro_f1 as well);
      `gauc` also `users=`, whose event each is; those over impressions `impressions=`, in which it was shown;
    - ranking metrics: rows of scores over all candidates, and the relevant item's column;
    - list metrics: the same; the top k of each row are the lists, of equal scores the lower column first, and the
      catalogue is as large as a row is long. The relevant items do not matter;
    - quality metrics: the same, with `counts=`, the training events of each candidate, or for diversity `vectors=`, one each.

    Args:
        name: As in a recipe, such as `ndcg@10`.
        options: For `evaluate.Metric`. Predictions are kept in memory unless `keep_in_memory=False` is given.

    Raises:
        RecipeError: There is no such metric.
    """
    import datasets
    import evaluate

    chosen = metric(name)
    number, row = datasets.Value("float64"), datasets.Sequence(datasets.Value("float64"))
    shapes = [row] if chosen.kind != "feedback" else [number, row] if chosen.name in _PER_CLASS else [number]
    forms = [datasets.Features({"predictions": shape, "references": number}) for shape in shapes]

    class Wrapped(evaluate.Metric):
        """A formula of `genre.evaluation.metrics`."""

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=chosen.name,
                citation="",
                inputs_description="predictions: scores; references: labels, or the relevant item's column.",
                features=forms if len(forms) > 1 else forms[0],
            )

        def _compute(self, *, predictions: Any, references: Any, users: Any = None, **known: Any) -> dict[str, float]:
            return {chosen.name: _evaluated(chosen, predictions, references, users, **known)}

    Wrapped.__name__ = Wrapped.__qualname__ = "".join(x.title() for x in chosen.name.replace("@", "_").split("_"))
    return Wrapped(**({"keep_in_memory": True} | options))


def _evaluated(
    chosen: Metric,
    predictions: Any,
    references: Any,
    users: Any,
    *,
    impressions: Any = None,
    counts: Any = None,
    vectors: Any = None,
) -> float:
    if chosen.by_impression:
        need_impressions(chosen.name, impressions)
        return chosen.function(references, predictions, impressions)
    if chosen.by_user:
        if users is None:
            raise DataError(f"{chosen.name} needs to know whose event it is", got="no users", expected="users=[…]")
        return chosen.function(references, predictions, users)
    if chosen.kind == "feedback":
        return chosen.function(references, predictions)
    if not len(predictions):
        return float("nan")
    scores = np.asarray(predictions, dtype=np.float64)
    own = np.asarray(references, dtype=np.int64)
    if chosen.kind == "ranking":
        return chosen.function(mid_ranks(scores, own))
    size = scores.shape[1]
    top = top_items(scores, chosen.k or size, np.arange(size))
    if chosen.kind == "list":
        return chosen.function(top, size)
    needed, values = ("vectors", vectors) if chosen.name.startswith("diversity") else ("counts", counts)
    if values is None or len(values) != size:
        got = "none" if values is None else len(values)
        raise DataError(f"{chosen.name} needs {needed} of the candidates", got=got, expected=f"{needed}=[…], one each of {size}")
    events = np.zeros(size) if counts is None else np.asarray(counts, dtype=np.float64)
    popular = mid_ranks(np.broadcast_to(events, scores.shape), own)
    facts = ListFacts(events, None if vectors is None else np.asarray(vectors, dtype=np.float64), popular)
    return chosen.function(mid_ranks(scores, own) if chosen.of_ranks else top, facts)
