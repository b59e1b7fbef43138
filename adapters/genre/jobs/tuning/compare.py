"""Is one model better than another? A paired bootstrap over users, on the very same targets.

Owns: what may be compared, the difference with its interval, what it says in words. Ignores: where predictions come from.

    found = compare(like_a, like_b)
    found[0].verdict()
    # "like:1d4f… is better", or "the test is too small to tell them apart; a difference this large would take about 900 users"

Users are drawn again with replacement, and both metrics are computed on each draw, so what makes a user easy or hard cancels
(`metrics_bootstrap.paired_bootstrap`). The interval holds the middle 95 % of the differences; the probability is the share of
draws in which the first is at least as good. With fewer than `MIN_USERS` users nothing is called better.
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
from genre.jobs.tuning.scored import Scored

RESAMPLES = 2000

Outcome = Literal["better", "worse", "equal", "cannot be told"]


@dataclass(frozen=True)
class Compared:
    """One metric of two models.

    Attributes:
        metric: Its name.
        first, second: Whose they are.
        a, b: The values; None where the targets give none.
        difference: a - b.
        interval: Of the difference, 95 %; None where it cannot be computed.
        at_least: Share of resamples in which `first` is at least as good.
        n, users: Targets, and users that they belong to.
        needed: About how many users would tell a difference as large as this one, if none is told now; None if that is not known.
        outcome: Of the first beside the second.
    """

    metric: str
    first: str
    second: str
    a: float | None
    b: float | None
    difference: float | None
    interval: tuple[float, float] | None
    at_least: float | None
    n: int
    users: int
    needed: int | None
    outcome: Outcome

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"interval": None if self.interval is None else list(self.interval)}

    def verdict(self) -> str:
        """What the test says, in words."""
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
    """Compare two models on the metrics that both tasks have, lists of items apart.

    Args:
        first: One model's predictions.
        second: The other's, of the same targets under the same protocol.
        metrics: Only these.
        resamples: How often users are drawn.
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
    """Check how users are to be drawn, before there is anything to compare.

    Raises:
        InputError: There are too few draws, or the seed is negative.
    """
    if resamples < 100:
        raise InputError("resamples", got=resamples, expected="100 or more")
    if seed < 0:
        raise InputError("seed", got=seed, expected="0 or more")


def pairs(first: Mapping[str, Scored], second: Mapping[str, Scored]) -> list[tuple[Scored, Scored]]:
    """Which tasks of two models are compared: those of one name, or the only one of each.

    Raises:
        RecipeError: They have no task in common.
    """
    names = [name for name in first if name in second]
    if not names and len(first) == len(second) == 1:
        return [(next(iter(first.values())), next(iter(second.values())))]
    if not names:
        raise RecipeError(
            "they have no task in common", got=f"{', '.join(first)} and {', '.join(second)}", expected="one of a name"
        )
    return [(first[name], second[name]) for name in names]


def check_comparable(first: Scored, second: Scored) -> None:
    """Check that two were measured in the same way on the same targets.

    Raises:
        InputError: They were not; the message names the first field that differs and both values.
    """
    for field in dict.fromkeys([*first.under, *second.under]):
        a, b = first.under.get(field), second.under.get(field)
        if a != b:
            raise InputError(
                f"{first.name} and {second.name} cannot be compared: {field} differs", got=f"{_shown(a)} and {_shown(b)}",
                expected="the same for both", todo="train and evaluate them under one protocol",
            )  # fmt: skip
    for field in ("event", "user", "label"):
        a, b = getattr(first.targets, field), getattr(second.targets, field)
        if (a is None) != (b is None) or (a is not None and not np.array_equal(a, b)):
            raise InputError(
                f"{first.name} and {second.name} cannot be compared: the targets' {field}s differ",
                got=f"{len(first.targets):,} and {len(second.targets):,} targets", expected="the same targets",
            )  # fmt: skip
    if not len(first.targets):
        raise InputError(f"{first.name} and {second.name} have no targets to be compared on", got="0", expected="some")


def _metrics(first: Scored, second: Scored, wanted: list[str] | None) -> list[str]:
    shared = [name for name in first.task.metrics if name in second.task.metrics]
    known = [name for name in shared if metric(name).kind not in ("list", "quality")]  # what is kept of a ranking is its ranks
    if not known:
        raise RecipeError(
            "there is no metric to compare by", got=f"{', '.join(first.task.metrics)} and {', '.join(second.task.metrics)}",
            expected="one that both tasks have, and that is no metric of lists",
        )  # fmt: skip
    strange = [name for name in wanted or [] if name not in known]
    if strange:
        raise RecipeError("no such metric to compare by", got=", ".join(strange), expected=", ".join(known))
    return wanted or known


def _compared(name: str, first: Scored, second: Scored, resamples: int, seed: int) -> Compared:
    targets, chosen = first.targets, metric(name)
    scores = first.scores, second.scores
    figure, draws = paired_draws(
        name, targets.user, targets.label, *scores, impressions=targets.impression, resamples=resamples, seed=seed
    )
    a, b = (_value(name, targets, each) for each in scores)
    sign = 1 if chosen.direction == "higher" else -1
    if not math.isfinite(figure.value) or not len(draws) or not math.isfinite(figure.low):
        return Compared(name, first.name, second.name, a, b, None, None, None, figure.n, figure.users, None, "cannot be told")
    outcome: Outcome = "cannot be told"
    if np.array_equal(*scores):
        outcome = "equal"
    elif figure.users >= MIN_USERS and (figure.low > 0 or figure.high < 0):
        outcome = "better" if sign * figure.value > 0 else "worse"
    half = (figure.high - figure.low) / 2
    needed = None
    if outcome == "cannot be told" and figure.users >= MIN_USERS and figure.value:
        needed = max(figure.users + 1, math.ceil(figure.users * (half / figure.value) ** 2))  # an interval shrinks with √users
    return Compared(
        name, first.name, second.name, a, b, figure.value, (figure.low, figure.high), float(np.mean(sign * draws >= 0)),
        figure.n, figure.users, needed, outcome,
    )  # fmt: skip


def _value(name: str, targets: Targets, scores: np.ndarray) -> float | None:
    value = bootstrap(name, targets.user, targets.label, scores, impressions=targets.impression, resamples=0).value
    return value if math.isfinite(value) else None


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, Mapping) else str(value)
