"""Fake profiles: users who are put into a log to push items.

Owns: what they have, when they come. Ignores: what a model makes of them.

    random      items at random, with the feedback of any event of the log
    average     items at random, each with the feedback of an event of its own; in a log without feedback, items as often as
                users have them
    bandwagon   half of the items the most popular ones with the best feedback, the others as for random

Every profile has all targets, with the best feedback of the log, in any place of its order. All other columns come from the
event, or the user, that a fake is copied from.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from genre.data.interactions import Interactions
from genre.data.schema import FEEDBACK, SUBSECOND
from genre.tasks import Task

MOST_EVENTS = 50
"""Events of a profile at most, the targets left out."""
BEST = 0.95
"""Quantile of a task's label from which an event is among the best."""
PREFIX = "fake-profile-"
"""Begins the id of every injected user."""

_DAY = 86_400
_STEP = 60
"""Seconds between two events of a profile."""

Arrival = Literal["burst", "spread"]
"""Profiles begin within a day, or at any time of the span."""


@dataclass(frozen=True)
class Injection:
    """What is put into a log.

    Attributes:
        attack: The kind of profile.
        users: Number of profiles.
        fillers: Events of each beside the targets.
        targets: Codes of the items that are pushed.
        span: First and last second in which profiles may have events; None for a log without times.
        seed: Draws everything.
    """

    attack: str
    users: int
    fillers: int
    targets: tuple[int, ...]
    span: tuple[int, int] | None
    seed: int

    def into(self, log: Interactions, task: Task, arrival: Arrival) -> Interactions:
        """Return the log with the profiles in it; the items and their codes are the same."""
        draw = np.random.default_rng((self.seed, 4))
        items, sources = self._profiles(log, task, draw)
        length = self.fillers + len(self.targets)
        owners = np.repeat(np.arange(self.users), length)
        names = np.array([f"{PREFIX}{number}" for number in range(self.users)])
        frame = log.frame[sources].with_columns(
            user_id=pl.Series(names[owners]),
            item_id=pl.Series([log.catalogue.item_ids[code] for code in items]),
            timestamp=pl.Series(self._times(draw, length, arrival)),
            row=int(log.rows.max()) + 1 + pl.int_range(len(owners), dtype=pl.Int64),
        )
        real = log.frame
        if SUBSECOND in frame.columns:
            frame = frame.with_columns(pl.lit(0, dtype=frame[SUBSECOND].dtype).alias(SUBSECOND))
        if "impression_id" in frame.columns:
            alone = PREFIX + pl.int_range(len(owners)).cast(pl.String)
            frame = frame.with_columns(impression_id=alone)
            real = real.with_columns(pl.col("impression_id").cast(pl.String))
        users = None
        if log.users is not None:
            copied = log.users[draw.integers(len(log.users), size=self.users)].with_columns(user_id=pl.Series(names))
            users = pl.concat([log.users, copied])
        return Interactions.from_frame(pl.concat([real, frame]), log.catalogue.frame, users, info=log.info, stored=True)

    def _profiles(self, log: Interactions, task: Task, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(users · events) items of all profiles, one after the other, and the event that each is copied from."""
        counts = np.bincount(log.item_codes, minlength=log.catalogue.size)
        by_item, first = np.argsort(log.item_codes, kind="stable"), np.cumsum(counts) - counts
        free = counts.copy()
        free[list(self.targets)] = 0
        best, rated = best_events(log, task), any(name in log.frame.columns for name in FEEDBACK)
        popular = np.argsort(-free, kind="stable")[: self.fillers // 2 if self.attack == "bandwagon" else 0]
        popular = popular[free[popular] > 0]
        pool = free.astype(np.float64) if self.attack == "average" and not rated else (free > 0).astype(np.float64)
        pool[popular] = 0
        wanted = self.fillers - len(popular)
        again = int((pool > 0).sum()) < wanted  # a small catalogue: items come again
        items, sources = [], []
        for _ in range(self.users):
            others = draw.choice(len(pool), size=wanted, replace=again, p=pool / pool.sum())
            if self.attack == "average":
                copied = by_item[first[others] + draw.integers(counts[others])]
            else:
                copied = draw.integers(len(log), size=wanted)
            liked = draw.choice(best, size=len(popular) + len(self.targets))
            order = draw.permutation(self.fillers + len(self.targets))
            items.append(np.concatenate([others, popular, self.targets]).astype(np.int64)[order])
            sources.append(np.concatenate([copied, liked])[order])
        return np.concatenate(items), np.concatenate(sources)

    def _times(self, draw: np.random.Generator, length: int, arrival: Arrival) -> np.ndarray:
        if self.span is None:
            return np.zeros(self.users * length, dtype=np.int64)
        first, last = self.span
        end = max(first, last - _STEP * length)
        begin = max(first, end - _DAY // 2) if arrival == "burst" else first
        starts = draw.integers(begin, end + 1, size=self.users)
        return (starts[:, None] + _STEP * np.arange(length)).reshape(-1).clip(first, last)


def best_events(log: Interactions, task: Task) -> np.ndarray:
    """Return the events that an attacker would copy: those with the highest labels of a feedback task, else ratings or clicks."""
    values = None
    if task.kind == "feedback":
        values = log.labels_of(task).astype(np.float64)
    elif numeric := [name for name in ("rating", "click") if name in log.frame.columns]:
        values = log.column(numeric[0])
    if values is None or np.isnan(values).all():
        return np.arange(len(log))
    return np.flatnonzero(values >= np.nanquantile(values, BEST))


def injected(log: Interactions) -> np.ndarray:
    """(U,) bool: the users of a log who are fakes."""
    return np.array([user.startswith(PREFIX) for user in log.user_ids])
