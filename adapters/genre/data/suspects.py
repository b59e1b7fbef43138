"""Users that look like fake profiles: copies of one history, and new users who push an item.

Owns: which users, and the thresholds. Ignores: the warnings about them (`genre.data.hazards`).

    [str(group) for group in bursts(log)]
    # ["item i50: 28 of the 30 users who had it on 1998-04-20 began that day, 0.4 expected"]
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

TWINS = 5
"""Users with the same items, and items that they have at least, which look like copies."""
TWIN_SHARE = 0.001
"""Share of the users with so many items that such copies are at least."""

BURST = 5
"""Fewest new users with an item on a day that look like a push, and events that each of them has at least."""
NEW_SHARE = 0.5
"""Share of an item's users of a day who are new, from which the day's old users do not explain them: a new item has both."""
CHANCE = 0.01
"""Probability that any item of a log, on any day, has so many new users by chance."""

_DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Twins:
    """Users with the same items, as often, in any order.

    Attributes:
        users: Their codes, ascending.
        events: Events of each.
    """

    users: np.ndarray
    events: int


@dataclass(frozen=True)
class Burst:
    """An item that many users have on the very day on which they begin.

    Attributes:
        item: Its id.
        users: Codes of these users, ascending.
        day: The day, in days since 1970.
        all_users: Users who had the item that day.
        expected: How many of those who began that day would have it if they took it as often as other users do.
    """

    item: str
    users: np.ndarray
    day: int
    all_users: int
    expected: float

    def __str__(self) -> str:
        day = datetime.fromtimestamp(86_400 * self.day, UTC).date()
        had = f"{len(self.users):,} of the {self.all_users:,} users who had it on {day} began that day"
        return f"item {self.item}: {had}, {self.expected:.1f} expected"


def twins(log: Any) -> list[Twins]:
    """Find groups of `TWINS` users or more with the same items, largest first; users with most of all items do not count.

    Ties put equal histories into different orders, so that order does not count either.
    """
    counts = np.diff(log.user_offsets)
    draw = np.random.default_rng(0).integers(2**63, size=log.catalogue.size, dtype=np.uint64)
    sums = np.add.reduceat(draw[log.item_codes], log.user_offsets[:-1])  # wraps; equal sums of other items: once in 2^64 pairs
    pairs = pl.DataFrame({"user": log.user_codes, "item": log.item_codes})
    different = pairs.group_by("user").agg(pl.col("item").n_unique()).sort("user")["item"].to_numpy()
    kept = (counts >= TWINS) & (different <= len(np.unique(log.item_codes)) / 2)
    users = pl.DataFrame({"user": np.arange(len(counts)), "sum": sums, "count": counts}).filter(pl.Series(kept))
    groups = users.group_by("sum", "count").agg("user").filter(pl.col("user").list.len() >= TWINS)
    total = int(groups["user"].list.len().sum())
    if total == 0 or total < TWIN_SHARE * len(users):
        return []
    groups = groups.sort(pl.col("user").list.len(), pl.col("user").list.min(), descending=[True, False])
    return [Twins(np.sort(np.array(row["user"])), row["count"]) for row in groups.iter_rows(named=True)]


def bursts(log: Any) -> list[Burst]:
    """Find items with more new users on a day than chance gives, the least likely first; none for a log without times.

    A user is new on the day of the first event; those with few events in all do not count. Chance is that they take the item as
    often as users who began on other days do: m users of λ expected have a probability of at most exp(m - λ) (λ/m)^m (Chernoff),
    which has to be below `CHANCE` for all items and days together. Most of the day's users of the item must be new, so that a new
    item is none.
    """
    if not log.info.timed:
        return []
    day = log.times_us // _DAY_US
    began = day[log.user_offsets[:-1]]
    new = (day == began[log.user_codes]) & (np.diff(log.user_offsets) >= BURST)[log.user_codes]
    events = pl.DataFrame({"user": log.user_codes, "item": log.item_codes, "day": day, "new": new})
    owners = events.group_by("item").agg(owners=pl.col("user").n_unique())
    starts = pl.DataFrame({"day": began}).group_by("day").agg(starters=pl.len())
    cells = events.group_by("item", "day").agg(
        new=pl.col("user").filter(pl.col("new")).n_unique(),
        all=pl.col("user").n_unique(),
        users=pl.col("user").filter("new").unique(),
    )
    tried = max(cells.height, 1)
    count, others = pl.col("new"), len(log.user_ids) - pl.col("starters")
    cells = cells.filter(count >= BURST, count >= NEW_SHARE * pl.col("all")).join(owners, on="item").join(starts, on="day")
    cells = cells.with_columns(expected=pl.col("starters") * (pl.col("owners") - count + 1) / (others + 1))
    ratio = count / pl.col("expected")
    cells = cells.with_columns(evidence=count * ratio.log() - count + pl.col("expected"))
    found = cells.filter(ratio > 1, pl.col("evidence") > np.log(tried / CHANCE)).sort(
        "evidence", "item", descending=[True, False]
    )
    return [
        Burst(log.catalogue.item_ids[row["item"]], np.sort(np.array(row["users"])), row["day"], row["all"], row["expected"])
        for row in found.iter_rows(named=True)
    ]


def named_users(log: Any) -> np.ndarray:
    """(U,) bool: the users that the warnings of twins and bursts are about."""
    named = np.zeros(len(log.user_ids), dtype=bool)
    for users in (*(group.users for group in twins(log)), *(group.users for group in bursts(log))):
        named[users] = True
    return named
