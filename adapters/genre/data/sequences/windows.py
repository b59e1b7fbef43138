"""Windows: the events of a user that go together into one row, for training and for evaluation.

Owns: windows over a user's history under a split. Ignores: tokens, tasks, models.

    training      |e1 … e100|e101 … e180|         each event is supervised once, in one window
    targets       |e41 … e140|                    some events are supervised, with the ones before them
    evaluation    |e1 … e100|                     windows overlap by half, so that every target
                       |e51 … e150|               sees at least half a window before it
    transductive  |training events of the user| target | target …      every target is a branch

Where a history is longer than a window, a rule says where the window of what comes next begins:

    sliding       as late as it can: the window moves by one event with each event, and no state of before can be used
    blocks        at a multiple of half a window: the events up to there leave all at once, and in between each call goes on from
                  the states of the call before (`genre.engine.histories`)

Under `blocks` windows in training begin where they do in the engine, and those of evaluation are the engine's own.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from genre.data.interactions import Interactions
from genre.data.splits import TRAIN, Split


@dataclass(frozen=True)
class Window:
    """Events of one user in one row.

    Attributes:
        user: User code.
        events: (E,) int64 rows of the log, in order.
        targets: (E,) bool, the ones that are supervised or scored.
        branches: (C,) int64 rows of the log that are scored as branches after the others.
    """

    user: int
    events: np.ndarray
    targets: np.ndarray
    branches: np.ndarray


_NONE = np.empty(0, dtype=np.int64)

WindowRule = Literal["sliding", "blocks"]


def first_in_window(count: int, max_events: int, rule: WindowRule) -> int:
    """The first of `count` events that is read with the one after them, `max_events` in all."""
    late = max(0, count - (max_events - 1))
    return late if rule == "sliding" else _block(max_events) * -(-late // _block(max_events))


def _block(max_events: int) -> int:
    return max(max_events // 2, 1)


def training_windows(
    log: Interactions,
    train: np.ndarray,
    *,
    max_events: int,
    min_events: int,
    shift: float = 0.0,
    rule: WindowRule = "sliding",
) -> tuple[list[Window], int]:
    """Cut each user's training events into windows; every event is supervised exactly once.

    Args:
        log: The log.
        train: (n,) bool, the train mask.
        max_events: Events of one window.
        min_events: Users with fewer give no window.
        shift: In [0, 1): the first cut, as a share of a window; vary it by epoch so that cuts do not stay.
        rule: Under `blocks` cuts are multiples of half a window.

    Returns:
        The windows, and how many events were left out because their user has fewer than `min_events`.
    """
    windows, skipped = [], 0
    for user, events in _by_user(log):
        events = events[train[events]]
        if len(events) < min_events:
            skipped += len(events)
            continue
        step = max_events if rule == "sliding" else max(2 * (max_events // 2), 1)
        moved = int(shift * step) if rule == "sliding" else int(2 * shift) * _block(max_events)
        first = len(events) if len(events) <= max_events else (moved or step)
        for cut in np.split(events, range(first, len(events), step)):
            windows.append(Window(user, cut, np.ones(len(cut), dtype=bool), _NONE))
    return windows, skipped


def chosen_windows(
    log: Interactions,
    train: np.ndarray,
    target: np.ndarray,
    *,
    max_events: int,
    min_events: int,
    rule: WindowRule = "sliding",
) -> tuple[list[Window], int]:
    """Return windows in which every target is supervised exactly once, with at least half a window of what came before it.

    Arguments and result as of `training_windows`; `target`, (n,) bool, is the target mask: training events that are supervised.
    """
    windows, skipped = [], 0
    for user, events in _by_user(log):
        events = events[train[events]]
        wanted = np.flatnonzero(target[events])
        if len(events) < min_events:
            skipped += len(wanted)
            continue
        windows += _covering(user, events, wanted, max_events, rule)
    return windows, skipped


def _by_user(log: Interactions) -> Iterator[tuple[int, np.ndarray]]:
    """Each user and the rows of their events, int64, in order."""
    for user, (start, end) in enumerate(itertools.pairwise(log.user_offsets.tolist())):
        yield user, np.arange(start, end)


def evaluation_windows(
    log: Interactions, split: Split, part: int, *, max_events: int, rule: WindowRule = "sliding"
) -> list[Window]:
    """Return windows in which every event of `part` is a target exactly once, with all it may see before it."""
    if split.transductive:
        return _transductive(log, split, part, max_events=max_events, rule=rule)
    windows = []
    for user, events in _by_user(log):
        windows += _covering(user, events, np.flatnonzero(split.part[events] == part), max_events, rule)
    return windows


def _covering(user: int, events: np.ndarray, wanted: np.ndarray, max_events: int, rule: WindowRule) -> list[Window]:
    """Windows over a user's events, overlapping by half, so that each wanted event is a target of one."""
    windows, stride = [], _block(max_events)
    while len(wanted):
        if rule == "blocks":
            first = first_in_window(int(wanted[0]), max_events, rule)
        else:
            first = 0 if wanted[-1] < max_events else max(0, int(wanted[0]) - (max_events - stride))
        indices = np.arange(first, min(first + max_events, int(wanted[-1]) + 1))
        windows.append(Window(user, events[indices], np.isin(indices, wanted), _NONE))
        wanted = wanted[wanted > indices[-1]]
    return windows


def _transductive(log: Interactions, split: Split, part: int, *, max_events: int, rule: WindowRule) -> list[Window]:
    windows = []
    for user, events in _by_user(log):
        history = events[split.part[events] == TRAIN]
        history = history[first_in_window(len(history), max_events + 1, rule) :]
        wanted = events[split.part[events] == part]
        for piece in np.split(wanted, range(max_events, len(wanted), max_events)):
            if len(piece):
                windows.append(Window(user, history, np.zeros(len(history), dtype=bool), piece))
    return windows
