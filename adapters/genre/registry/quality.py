"""Quality gates: what a version must reach before an alias names it.

Owns: which way each metric points, floors, and "not worse than the present holder". Ignores: how metrics are computed.

    >>> higher_is_better("ndcg@10"), higher_is_better("log_loss")
    (True, False)
"""

from collections.abc import Iterator, Mapping
from typing import Any

from genre.errors import QualityError
from genre.registry.manifest import Manifest, MetricValue, canonical

_HIGHER = {"auc", "gauc", "accuracy", "balanced_accuracy", "f1", "macro_f1", "micro_f1", "precision", "recall"}
_HIGHER |= {"average_precision", "map", "mrr", "ndcg", "hr", "hit_rate", "coverage", "diversity", "novelty", "serendipity"}
_HIGHER |= {"r2", "pearson", "spearman", "kendall"}
_LOWER = {"log_loss", "loss", "rmse", "mse", "mae", "brier", "ece", "perplexity", "gini", "popularity_bias"}
_TRADED = {"diversity", "novelty"}


def higher_is_better(metric: str) -> bool | None:
    """Return which way a metric points, `@k` aside; None if it is not known."""
    base = metric.lower().partition("@")[0]
    return True if base in _HIGHER else False if base in _LOWER else None


def check_floor(manifest: Manifest, floor: Mapping[str, float]) -> list[str]:
    """Check bounds by `metric` (every task that has it) or `task.metric`; where lower is better, they are ceilings.

    Returns:
        What was compared, in words.

    Raises:
        QualityError: A bound is missed, or names a metric that the version does not have.
    """
    passed: list[str] = []
    for key, bound in floor.items():
        found = [row for row in _rows(manifest) if key in (row[1], f"{row[0]}.{row[1]}")]
        if not found:
            have = ", ".join(f"{task}.{metric}" for task, metric, _ in _rows(manifest))
            raise QualityError(f"no metric {key!r} to hold against the floor", got=have or "no metrics", expected=key)
        for task, metric, value in found:
            sign = _sign(metric)
            limit = f"{'>=' if sign > 0 else '<='} {bound:g}"
            if not sign * value.value >= sign * bound:
                what = f"{manifest.name}:{manifest.version} misses the floor in {task}.{metric}"
                raise QualityError(what, got=value.value, expected=limit)
            passed.append(f"{task}.{metric} {value.value:g} {limit}")
    return passed


def check_not_worse(new: Manifest, holder: Manifest) -> list[str]:
    """Check that no metric of the holder's whose direction is known is worse in the new version.

    Values are compared, not intervals: on the same data by the same protocol the noise is shared. Metrics with an
    unknown direction are listed as not compared, and so are diversity and novelty, which a better ranking may cost.

    Returns:
        What was compared, in words.

    Raises:
        QualityError: A metric is worse or missing, or data or protocol differ, so that the two cannot be compared.
    """
    for field, got, expected in _conditions(new, holder):
        if canonical(got) != canonical(expected):
            raise QualityError(
                f"{new.name}:{new.version} cannot be compared with the holder {holder.version}: {field} differs",
                got=got,
                expected=expected,
                todo="evaluate both on the same data by the same protocol",
            )
    words: list[str] = []
    for task, metric, old in _rows(holder):
        value = new.metrics.get(task, {}).get(metric)
        direction = higher_is_better(metric)
        if direction is None or metric.partition("@")[0] in _TRADED:
            why = "direction unknown" if direction is None else "often the price of better lists"
            words.append(f"{task}.{metric} not compared ({why})")
            continue
        expected = f"{'>=' if direction else '<='} {old.value!r} of {holder.version}"
        if value is None or (value.value < old.value if direction else value.value > old.value):
            got = "no value" if value is None else repr(value.value)
            raise QualityError(f"{new.name}:{new.version} is worse in {task}.{metric}", got=got, expected=expected)
        words.append(f"{task}.{metric} {value.value:g} {expected}")
    if all("not compared" in word for word in words):
        what = f"the present holder {holder.version} has no metrics to compare with"
        raise QualityError(what, todo="evaluate it, or promote without")
    return words


def _conditions(new: Manifest, holder: Manifest) -> Iterator[tuple[str, Any, Any]]:
    yield "data.digest", new.data and new.data.digest, holder.data and holder.data.digest
    yield "data.split", new.data and new.data.split, holder.data and holder.data.split
    for task in holder.metrics:
        yield f"protocol.{task}", new.protocol.get(task), holder.protocol.get(task)


def _rows(manifest: Manifest) -> list[tuple[str, str, MetricValue]]:
    return [(task, metric, value) for task, values in manifest.metrics.items() for metric, value in values.items()]


def _sign(metric: str) -> int:
    direction = higher_is_better(metric)
    if direction is None:
        raise QualityError(f"it is not known whether a higher {metric!r} is better", expected=", ".join(sorted(_HIGHER | _LOWER)))
    return 1 if direction else -1
