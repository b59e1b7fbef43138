"""Is one model better than another? A paired bootstrap over users, on the same targets.

Owns: which predictions may be compared, the difference with its interval, the verdict in words. Ignores: where predictions come
from.

    found = compare(like_a, like_b)
    found[0].verdict()
    # "like:1d4f… is better", or "the test is too small to tell them apart; a difference this large would take about 900 users"

Users are drawn with replacement, and both metrics are computed on each draw, so what makes a user easy or hard cancels
(`metrics.bootstrap.paired_bootstrap`). The interval holds the middle 95 % of the differences; the probability is the share of
draws in which the first is at least as good. With fewer than `MIN_USERS` users neither is called better.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from genre.errors import InputError, RecipeError
from genre.evaluation.metrics import bootstrap, metric, paired_draws
from genre.evaluation.metrics.bootstrap import MIN_USERS
from genre.evaluation.targets import Targets
from genre.jobs.predictions import Scored, resampled_metrics

RESAMPLES = 2000

Outcome = Literal["better", "worse", "equal", "cannot be told"]


@dataclass(frozen=True)
class Difference:
    """One metric of two predictions of the same targets; None where there is no value.

    Attributes:
        a, b: The two values.
        difference: a - b.
        interval: Of the difference, 95 %.
        at_least: Share of the draws in which `a` is at least as good.
        n, users: Targets, and the users that they belong to.
    """

    a: float | None
    b: float | None
    difference: float | None
    interval: tuple[float, float] | None
    at_least: float | None
    n: int
    users: int


@dataclass(frozen=True)
class Compared(Difference):
    """One metric of two models.

    Attributes:
        metric: Its name.
        first, second: The models' names.
        outcome: Of the first model relative to the second.
        needed: About how many users a difference of this size would take, if it is not significant; None if unknown.
    """

    metric: str
    first: str
    second: str
    outcome: Outcome
    needed: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        about = {"metric": self.metric, "first": self.first, "second": self.second}
        return about | asdict(self) | {"interval": None if self.interval is None else list(self.interval)}

    def verdict(self) -> str:
        """The outcome in words."""
        if self.outcome in ("better", "worse"):
            return f"{self.first if self.outcome == 'better' else self.second} is better"
        if self.outcome == "equal":
            return "they are equal on every target"
        if self.interval is None:
            return "these targets give no value"
        if self.users < MIN_USERS:
            return f"the test is too small to tell: {self.users} users, at least {MIN_USERS} are needed"
        more = f"; a difference this large would take about {self.needed:,} users" if self.needed else ""
        return f"the test is too small to tell them apart{more}"


def compare(
    first: Scored, second: Scored, *, metrics: list[str] | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> list[Compared]:
    """Compare two models on the metrics that both tasks have, except those over all lists.

    Args:
        first: One model's predictions.
        second: The other's, of the same targets under the same protocol.
        metrics: Only these.
        resamples: Number of bootstrap draws.
        seed: Of the draws.

    Raises:
        InputError: Data, split, part, label or targets differ, and the message has both values; or as `check_draws`.
        RecipeError: There is no metric to compare by.
    """
    check_comparable(first, second)
    check_draws(resamples, seed)
    names = _metrics(first, second, metrics)
    return [_compared(name, first, second, resamples, seed) for name in names]


def check_draws(resamples: int, seed: int) -> None:
    """Check the options of a bootstrap.

    Raises:
        InputError: There are too few draws, or the seed is negative.
    """
    if resamples < 100:
        raise InputError("resamples", got=resamples, expected="100 or more")
    if seed < 0:
        raise InputError("seed", got=seed, expected="0 or more")


def pairs(first: Mapping[str, Scored], second: Mapping[str, Scored]) -> list[tuple[Scored, Scored]]:
    """Pair the tasks of two models by name, or the only one of each.

    Raises:
        RecipeError: They have no task in common.
    """
    names = [name for name in first if name in second]
    if not names and len(first) == len(second) == 1:
        return [(next(iter(first.values())), next(iter(second.values())))]
    if not names:
        got, expected = f"{', '.join(first)} and {', '.join(second)}", "a task that both have"
        raise RecipeError("they have no task in common", got=got, expected=expected)
    return [(first[name], second[name]) for name in names]


def check_comparable(first: Scored, second: Scored) -> None:
    """Check that two models were evaluated in the same way on the same targets.

    Raises:
        InputError: They were not; the message names the first field that differs and both values.
    """
    what = f"{first.name} and {second.name} cannot be compared"
    for field in dict.fromkeys([*first.under, *second.under]):
        a, b = first.under.get(field), second.under.get(field)
        if a != b:
            got, todo = f"{_shown(a)} and {_shown(b)}", "train and evaluate them under one protocol"
            raise InputError(f"{what}: {field} differs", got=got, expected="the same for both", todo=todo)
    for field in ("event", "user", "label"):
        a, b = getattr(first.targets, field), getattr(second.targets, field)
        if (a is None) != (b is None) or (a is not None and not np.array_equal(a, b)):
            got = f"{len(first.targets):,} and {len(second.targets):,} targets"
            raise InputError(f"{what}: the targets' {field}s differ", got=got, expected="the same targets")
    if not len(first.targets):
        raise InputError(f"{what}: there are no targets", got="0", expected="1 or more")


def paired_difference(name: str, targets: Targets, a: np.ndarray, b: np.ndarray, *, resamples: int, seed: int = 0) -> Difference:
    """The difference of a metric between two predictions of the same targets, with its bootstrap interval."""
    about: dict[str, Any] = {"impressions": targets.impression}
    found, draws = paired_draws(name, targets.user, targets.label, a, b, resamples=resamples, seed=seed, **about)
    values = [bootstrap(name, targets.user, targets.label, each, resamples=0, **about).value for each in (a, b)]
    first, second, difference = (float(value) if math.isfinite(value) else None for value in (*values, found.value))
    if difference is None or not len(draws) or not math.isfinite(found.low + found.high):
        return Difference(first, second, difference, None, None, found.n, found.users)
    sign = 1 if metric(name).direction == "higher" else -1
    at_least = float(np.mean(sign * draws >= 0))
    return Difference(first, second, difference, (found.low, found.high), at_least, found.n, found.users)


def _metrics(first: Scored, second: Scored, wanted: list[str] | None) -> list[str]:
    known = [name for name in resampled_metrics(first.task) if name in second.task.metrics]
    if not known:
        got = f"{', '.join(first.task.metrics)} and {', '.join(second.task.metrics)}"
        raise RecipeError("there is no metric to compare by", got=got, expected="one that both tasks have, not over all lists")
    strange = [name for name in wanted or [] if name not in known]
    if strange:
        raise RecipeError("no such metric to compare by", got=", ".join(strange), expected=", ".join(known))
    return wanted or known


def _compared(name: str, first: Scored, second: Scored, resamples: int, seed: int) -> Compared:
    found = paired_difference(name, first.targets, first.scores, second.scores, resamples=resamples, seed=seed)
    outcome: Outcome = "cannot be told"
    needed = None
    if found.interval is None:
        found = Difference(found.a, found.b, None, None, None, found.n, found.users)
    elif np.array_equal(first.scores, second.scores):
        outcome = "equal"
    elif found.users >= MIN_USERS:
        low, high = found.interval
        sign = 1 if metric(name).direction == "higher" else -1
        if low > 0 or high < 0:
            outcome = "better" if sign * (found.difference or 0) > 0 else "worse"
        elif found.difference:  # an interval shrinks with √users
            needed = max(found.users + 1, math.ceil(found.users * ((high - low) / 2 / found.difference) ** 2))
    return Compared(**vars(found), metric=name, first=first.name, second=second.name, outcome=outcome, needed=needed)


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else str(value)
