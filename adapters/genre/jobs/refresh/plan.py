"""Which events a refresh learns from, and which it is tested on.

Owns: what is new to a version, the parts of it, the replayed sample of what is old. Ignores: models, the registry.

    |- old: up to the last second that the version was trained on -|- new ------------------------------|
    |  a seeded sample of windows is replayed                      |  train 0.6  | valid 0.1 | test 0.3  |

By time, over all users, so the test lies after everything that the old or the new version has seen. A target's history is
everything of its user before it, as always.
"""

from dataclasses import dataclass

import numpy as np

from genre.data.interactions import Interactions
from genre.data.splits import TEST, TRAIN, VALID, Split, SplitConfig, split
from genre.errors import DataError

MIN_TARGETS = 100
MIN_USERS = 20
"""A test of fewer targets, or of fewer users, is too small to decide on."""


@dataclass(frozen=True)
class Plan:
    """The parts of a log for one refresh.

    Attributes:
        since: The last second that the version was trained on; what is later is new.
        chosen: The split: a temporal one whose validation and test parts are new.
        supervised: (n,) bool, what is learnt from: the new events before the validation part, and the replayed ones.
        counts: Events: `new`, and of them `train`, `valid`, `test`; `replayed` old ones.
    """

    since: int
    chosen: Split
    supervised: np.ndarray
    counts: dict[str, int]


def plan(
    log: Interactions, since: int, *, replay: float, valid: float, test: float, block: int, seed: int, min_events: int = 0
) -> Plan | None:
    """Part a log that has new events; None if they are too few to make a training and a test part of.

    Args:
        log: The log.
        since: The last second that the version was trained on.
        replay: Share of old events among those that are learnt from.
        valid: Share of the new events that validates.
        test: Share of the new events, the latest, that tests.
        block: Old events of a user that are replayed together.
        seed: Of the replayed sample.
        min_events: Users with fewer events in the whole log are unused.

    Raises:
        DataError: An impression reaches from old events into the held-out ones.
    """
    new = log.timestamps > since
    count, total = int(new.sum()), len(log)
    held = round(count * (valid + test)), round(count * test)
    if not 0 < held[1] <= held[0] < count:
        return None
    config = SplitConfig(kind="temporal", valid=(held[0] - held[1]) / total, test=held[1] / total, min_events=min_events)
    chosen = split(log, config)
    if (~new & (chosen.part > TRAIN)).any():
        raise DataError(
            "an impression reaches from what the version was trained on into the held-out events",
            todo="wait for more new events",
        )
    usable = chosen.part == TRAIN
    fresh = usable & new
    wanted = round(replay / (1 - replay) * int(fresh.sum()))
    again = _replayed(log, usable & ~new, wanted, block=block, seed=seed)
    counts = {
        "new": count, "train": int(fresh.sum()), "valid": int((chosen.part == VALID).sum()),
        "test": int((chosen.part == TEST).sum()), "replayed": int(again.sum()),
    }  # fmt: skip
    return Plan(since, chosen, fresh | again, counts)


def _replayed(log: Interactions, old: np.ndarray, wanted: int, *, block: int, seed: int) -> np.ndarray:
    """(n,) bool: `wanted` old events in whole blocks of one user's neighbouring events, drawn at random; fewer if there are."""
    events = np.flatnonzero(old)
    user = log.user_codes[events]
    first = np.searchsorted(user, user)
    number = (np.arange(len(events)) - first) // block
    starts = np.flatnonzero(np.diff(user, prepend=-1) | np.diff(number, prepend=-1))
    again = np.zeros(len(log), dtype=bool)
    for piece in np.random.default_rng([seed, 1]).permutation(len(starts)):
        if wanted <= 0:
            break
        stop = starts[piece + 1] if piece + 1 < len(starts) else len(events)
        taken = events[starts[piece] : stop][-wanted:]
        again[taken] = True
        wanted -= len(taken)
    return again
