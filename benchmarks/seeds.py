"""The mean of a metric over several runs, such as seeds, with its user-bootstrap interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from genre.evaluation.metrics.bootstrap import RESAMPLES, user_draws
from genre.evaluation.metrics.by_name import metric


def drawn(name: str, user: np.ndarray, label: np.ndarray | None, runs: Sequence[np.ndarray]) -> np.ndarray:
    """Return float64 [1 + RESAMPLES]: the metric's mean over the runs, then that of each draw of the users.

    Draws depend on the number of users only, so that those of two methods on the same targets are paired.

    Args:
        name: A feedback or ranking metric.
        user: [n] user of each event.
        label: [n]; None for a ranking metric.
        runs: The scores of each run, [n]; the ranks for a ranking metric.
    """
    prepare: Any = metric(name).prepare
    if prepare is None:
        raise ValueError(f"{name} has no user bootstrap")
    _, codes = np.unique(user, return_inverse=True)
    users = int(codes.max()) + 1
    scorers = [prepare(label, scores, codes, users) for scores in runs]
    point = np.mean([scorer(np.ones((1, users)))[0] for scorer in scorers])
    draws = [np.mean([scorer(draw) for scorer in scorers], 0) for draw in user_draws(users, RESAMPLES, 0, block=50)]
    return np.concatenate([[point], *draws])


def interval(values: np.ndarray) -> dict[str, Any]:
    """A figure and its 95 % interval, of what `drawn` gave or a difference or ratio of two."""
    known = values[1:][~np.isnan(values[1:])]
    return {"value": float(values[0]), "interval": [float(value) for value in np.quantile(known, [0.025, 0.975])]}
