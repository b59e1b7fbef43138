"""Calls of users who come back: from a real log's times, in generated bursts, and of users who come once.

Owns: who comes when, with which history, to which adapter. Ignores: who answers. A call is a list of rows as `genre score` reads
them, and the swaps before it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import genre

CANDIDATES = 10
PAUSE_S = 30
"""Seconds of a real log within which a user's events are one visit: a page of films that are rated together."""
ACTIVE = 8
"""Bursts that go on at once in generated traffic."""
SWAP_EVERY = 10
"""Calls between swaps of an adapter to another version."""

Row = dict[str, Any]


@dataclass
class Call:
    """Rows that come together, and the swaps (name, reference) before them."""

    rows: list[Row]
    swaps: list[tuple[str, str]] = field(default_factory=list)


class Writer:
    """Rows of users with histories of a log's items.

    Args:
        log: The log.
        adapters: Their references; each user has one.
        candidates: Items of a row.
        wander: Share of visits that ask any of the adapters.
    """

    def __init__(
        self, log: genre.Interactions, adapters: Sequence[str], candidates: int = CANDIDATES, wander: float = 0.0
    ) -> None:
        self.wander = wander
        self.items = log.catalogue.item_ids
        self.adapters = adapters
        self.candidates = candidates
        self.draw = np.random.default_rng(0)

    def row(self, user: str, history: list[Row]) -> Row:
        """One row of a user."""
        own = sum(user.encode()) % len(self.adapters)
        if self.draw.random() < self.wander:
            own = int(self.draw.integers(len(self.adapters)))
        some = self.draw.choice(len(self.items), self.candidates, replace=False)
        return {
            "adapter": self.adapters[own],
            "user_id": user,
            "history": history,
            "candidates": [self.items[code] for code in some],
        }

    def history(self, events: int) -> list[Row]:
        """A made-up history."""
        codes = self.draw.integers(len(self.items), size=events)
        ratings = self.draw.integers(1, 6, size=events)
        return [{"item_id": self.items[code], "rating": float(rating)} for code, rating in zip(codes, ratings, strict=True)]


def returning(writer: Writer, users: int, events: int, rounds: int) -> list[Call]:
    """The same users in every call, each with one event more than in the call before; the first has one less than `events`."""
    whole = [writer.history(events + rounds) for _ in range(users)]
    return [
        Call([writer.row(f"user-{number}", own[: events + turn]) for number, own in enumerate(whole)]) for turn in range(rounds)
    ]


def strangers(writer: Writer, calls: int, rows: int, events: int) -> list[Call]:
    """Users who come once."""
    return [
        Call([writer.row(f"once-{call}-{number}", writer.history(events)) for number in range(rows)]) for call in range(calls)
    ]


def sessions(writer: Writer, log: genre.Interactions, visits: int, rows: int, skip: int = 30_000) -> list[Call]:
    """Visits of a log in the order of its times: a user's history up to there, whenever they come after a pause."""
    frame = log.frame.select("user_id", "item_id", "rating", "timestamp").sort("timestamp", maintain_order=True)
    known: dict[str, list[Row]] = {}
    last: dict[str, float] = {}
    found: list[Row] = []
    for place, (user, item, rating, when) in enumerate(frame.iter_rows()):
        history = known.setdefault(str(user), [])
        if place >= skip and history and when - last[str(user)] >= PAUSE_S:
            found.append(writer.row(str(user), list(history)))
            if len(found) == visits:
                break
        history.append({"item_id": str(item), "rating": float(rating)})
        last[str(user)] = when
    return list(_together(found, rows))


def bursts(writer: Writer, visits: int, rows: int, *, users: int, exponent: float = 1.0, length: float = 5.0) -> list[Call]:
    """Users drawn by Zipf's law, each for a burst of visits, some bursts at once, each visit with one event more."""
    weights = 1 / np.arange(1, users + 1) ** exponent
    known = {user: writer.history(int(writer.draw.integers(20, 100))) for user in range(users)}
    going: list[list[int]] = []
    found: list[Row] = []
    while len(found) < visits:
        while len(going) < ACTIVE:
            user = int(writer.draw.choice(users, p=weights / weights.sum()))
            going.append([user, int(writer.draw.geometric(1 / length))])
        burst = going[int(writer.draw.integers(ACTIVE))]
        user = burst[0]
        found.append(writer.row(f"user-{user}", list(known[user])))
        known[user] += writer.history(1)
        burst[1] -= 1
        if burst[1] == 0:
            going.remove(burst)
    return list(_together(found, rows))


def with_swaps(calls: Sequence[Call], name: str, refs: Sequence[str]) -> list[Call]:
    """The same calls, with a swap of one adapter to its next version every so many."""
    for turn, place in enumerate(range(SWAP_EVERY, len(calls), SWAP_EVERY)):
        calls[place].swaps.append((name, refs[(turn + 1) % len(refs)]))
    return list(calls)


def _together(rows: Sequence[Row], size: int) -> Iterator[Call]:
    for start in range(0, len(rows), size):
        yield Call(list(rows[start : start + size]))


def repeated(calls: Sequence[Call]) -> float:
    """The share of rows whose user has come before."""
    seen: set[str] = set()
    again = total = 0
    for call in calls:
        for row in call.rows:
            total += 1
            again += row["user_id"] in seen
            seen.add(row["user_id"])
    return again / total


def tokens_of_users(calls: Sequence[Call]) -> int:
    """Events of all users' last histories together, twice: the tokens of their states, about."""
    last = {(row["user_id"], row["adapter"]): len(row["history"]) for call in calls for row in call.rows}
    return 2 * sum(last.values())
