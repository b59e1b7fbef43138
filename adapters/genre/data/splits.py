"""The parts of a log: training, validation and test events.

Owns: the kinds of split, cold items, drawn users, folds by user. Ignores models, metrics and prompts.

    split(log, SplitConfig(kind="temporal", valid=0.1, test=0.1)).part
    # int8[n] beside log.frame: 0 train, 1 valid, 2 test, -1 unused

A target's input is everything of its user *before* it in the log's order, and never its own feedback, nor a sibling's
(an event of the same impression). Only `given` says otherwise, and its split is marked `transductive`.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from genre.data.catalogue import Catalogue
from genre.data.order import tie_keys
from genre.data.split_config import SplitConfig as SplitConfig
from genre.errors import DataError

TRAIN, VALID, TEST, UNUSED = 0, 1, 2, -1
PARTS = {"train": TRAIN, "valid": VALID, "test": TEST, "unused": UNUSED}


class Events(Protocol):
    """The arrays of a log of n events that a split reads; see `Interactions`."""

    catalogue: Catalogue
    user_ids: list[str]
    user_codes: np.ndarray
    item_codes: np.ndarray
    user_offsets: np.ndarray

    @property
    def times_us(self) -> np.ndarray:
        """Microseconds, int64[n]."""

    @property
    def rows(self) -> np.ndarray:
        """Positions in the source file, int64[n]."""

    @property
    def ranks(self) -> np.ndarray | None:
        """Numbers that order equal times before their hashes do, (n,)."""

    @property
    def impressions(self) -> np.ndarray | None:
        """int64[n], equal for events of one impression."""


@dataclass(frozen=True)
class Split:
    """A log's events in parts.

    Attributes:
        config: The configuration.
        part: int8[n] beside `log.frame`: 0 train, 1 valid, 2 test, -1 unused.
        transductive: True if a target's history is the user's *training* events whatever their time (`given`); else it
            is everything of the user before the target.
        counts: Events per part; and events set aside, by reason.
        outside: bool[n], events of users who are kept out of training as a whole, and training events of items that are; None
            without folds, cold items and drawn users.
    """

    config: SplitConfig
    part: np.ndarray
    transductive: bool
    counts: dict[str, int]
    outside: np.ndarray | None = None

    def mask(self, name: str) -> np.ndarray:
        """Return the mask of a part (`train`, `valid`, `test` or `unused`), bool[n]."""
        return self.part == PARTS[name]

    @property
    def held_out(self) -> np.ndarray:
        """bool[n]: events that no model evaluated on this split may have learnt from."""
        return self.part > TRAIN if self.outside is None else (self.part > TRAIN) | self.outside

    @cached_property
    def digest(self) -> str:
        """sha256 of the configuration and the parts."""
        return hashlib.sha256(self.config.model_dump_json().encode() + self.part.tobytes()).hexdigest()


def split(log: Events, config: SplitConfig) -> Split:
    """Split a log.

    With impressions, one that would be cut goes whole to the later part, and so does what its user did between its
    events: siblings are never on two sides. A part may then hold a few events more than asked for (counted).

    Raises:
        DataError: If there is nothing to train on or nothing to test, or a given row is not in the log.
    """
    kinds = {"last_n": last_n, "temporal": temporal, "user_ratio": user_ratio, "given": given}
    if config.kind not in kinds:
        todo = "that kind is for labelled texts"
        raise DataError(f"a log cannot be split by {config.kind}", expected=", ".join(kinds), todo=todo)
    counts: dict[str, int] = {}
    part = kinds[config.kind](log, config, counts)
    if config.kind != "given" and log.impressions is not None:
        part = _keep_impressions(log, part, counts)
    part = _drop_small_users(log, part, config.min_events, counts)
    outside = None
    if config.cold_items is not None:
        whole, part = part, hold_out_items(log, part, config.cold_items, config.cold_seed or 0, counts)
        outside = part != whole
    if config.folds is not None:
        away = (user_folds(log, part, config) == config.fold)[log.user_codes]
        part = np.where(away, np.where(part == TEST, TEST, UNUSED), np.where(part == TEST, UNUSED, part)).astype(np.int8)
        outside = away if outside is None else away | outside
    if config.users is not None:
        drawn = keep_users(log, part, config.users, config.users_seed or 0, counts)
        outside = part != drawn if outside is None else (part != drawn) | outside
        part = drawn
    counts = {name: int((part == code).sum()) for name, code in PARTS.items()} | counts
    for name in ("train", "test"):
        if not counts[name]:
            got = f"{len(log.user_codes):,} events of {len(log.user_ids):,} users"
            todo = f"choose another {config.kind} split"
            raise DataError(f"the split leaves no {name} events", got=got, expected="at least one", todo=todo)
    part.setflags(write=False)
    return Split(config, part, config.kind == "given", counts, outside)


def last_n(log: Events, config: SplitConfig, counts: dict[str, int]) -> np.ndarray:
    """Each user's last n events test, the n before them validate, the rest trains.

    Unit: events of one user. Users with fewer than 2n + 1 events only train, and are counted. Leakage: users end at
    different times, so another user's training event may be later than a test event; a user's own never is.
    """
    assert config.n is not None
    sizes = np.diff(log.user_offsets)
    from_end = log.user_offsets[1:][log.user_codes] - np.arange(len(log.user_codes))
    enough = (sizes >= 2 * config.n + 1)[log.user_codes]
    _count(counts, "users that only train (fewer than 2n + 1 events)", int((sizes < 2 * config.n + 1).sum()))
    part = np.full(len(log.user_codes), TRAIN, dtype=np.int8)
    part[enough & (from_end <= 2 * config.n)] = VALID
    part[enough & (from_end <= config.n)] = TEST
    return part


def temporal(log: Events, config: SplitConfig, counts: dict[str, int]) -> np.ndarray:
    """The last share of all events tests, the share before it validates, the rest trains; by time, over all users.

    Unit: events in the order (time, rank if the log has any, tie hash, row). With n events, the first
    n - round(n * (valid + test)) train and the last round(n * test) test. Leakage: none; every training event is before
    every test event. Scored prequentially: each target sees all before it of its user, test events too.
    """
    n = len(log.user_codes)
    stops = n - round(n * (config.valid + config.test)), n - round(n * config.test)  # type: ignore[operator]
    order = _global_order(log, stops)
    part = np.full(n, TRAIN, dtype=np.int8)
    part[order[stops[0] :]] = VALID
    part[order[stops[1] :]] = TEST
    return part


def _global_order(log: Events, stops: tuple[int, int]) -> np.ndarray:
    """Order events by (time, rank, tie hash, row), exact at the stops: only the times that they cut are hashed."""
    order = np.argsort(log.times_us, kind="stable")
    times = log.times_us[order]
    for time in {int(times[stop]) for stop in stops if 0 < stop < len(times)}:
        start, end = np.searchsorted(times, [time, time + 1])
        tied = order[start:end]
        users, items = log.user_codes[tied], log.item_codes[tied]
        keys = tie_keys(log.user_ids, log.catalogue.item_ids, users, items)
        first = () if log.ranks is None else (log.ranks[tied],)
        order[start:end] = tied[np.lexsort((log.rows[tied], keys, *first))]
    return order


def user_ratio(log: Events, config: SplitConfig, counts: dict[str, int]) -> np.ndarray:
    """Each user's last share of events tests, the share before it validates, the rest trains.

    Unit: events of one user, in order. Of m events floor(m * test) test and floor(m * valid) validate, so a user with
    few events only trains, and is counted. Leakage: across users as in `last_n`; a user's own events never leak.
    """
    assert config.test is not None and config.valid is not None
    sizes = np.diff(log.user_offsets)
    tests = np.floor(sizes * config.test + 1e-9).astype(np.int64)
    valids = np.floor(sizes * config.valid + 1e-9).astype(np.int64)
    _count(counts, "users that only train (too few events)", int((tests + valids == 0).sum()))
    from_end = log.user_offsets[1:][log.user_codes] - np.arange(len(log.user_codes))
    part = np.full(len(log.user_codes), TRAIN, dtype=np.int8)
    part[from_end <= (tests + valids)[log.user_codes]] = VALID
    part[from_end <= tests[log.user_codes]] = TEST
    return part


def given(log: Events, config: SplitConfig, counts: dict[str, int]) -> np.ndarray:
    """The given rows of the source file test; a seeded random share of the others validates; the rest trains.

    Unit: `row`. Leakage: transductive, and marked so (`Split.transductive`): a target's history is its user's training
    events, later ones too, as in published results on ML-100K's u1 split. Not comparable with the other kinds.

    Raises:
        DataError: If none of the rows is in the log.
    """
    assert config.test_rows is not None and config.valid is not None and config.seed is not None
    part = np.full(len(log.user_codes), TRAIN, dtype=np.int8)
    wanted = 0
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", config.test_rows):
        stop = int(last or first)
        part[(log.rows >= int(first)) & (log.rows <= stop)] = TEST
        wanted += stop - int(first) + 1
    _count(counts, "given rows that are not in the log", max(0, wanted - int((part == TEST).sum())))
    train = np.flatnonzero(part == TRAIN)
    train = train[np.argsort(log.rows[train])]
    chosen = np.random.default_rng(config.seed).permutation(train.size)[: round(train.size * config.valid)]
    part[train[chosen]] = VALID
    return part


def hold_out_items(log: Events, part: np.ndarray, rule: float, seed: int, counts: dict[str, int]) -> np.ndarray:
    """Return the parts with the training events of cold items unused.

    They stay in the histories that a target sees (an item can be new and already have been seen by this user), but nothing is
    learnt from them. Validation and test events of cold items stay targets.

    Args:
        log: The log.
        part: (n,) int8; not changed.
        rule: Below 1 the share of the items with training events that is held out: those with the smallest
            sha256(seed, the byte 0x1f, item_id), which does not depend on the items' order. From 1 up, a whole number n: the
            items with fewer than n training events.
        seed: Of a share.
        counts: Events set aside; mutated.
    """
    events = training_events(log, part)
    if rule < 1:
        warm = np.flatnonzero(events)
        order = _hash_order([log.catalogue.item_ids[code] for code in warm.tolist()], seed)
        chosen = warm[order[: round(len(warm) * rule)]]
    else:
        chosen = np.flatnonzero((events > 0) & (events < rule))
    held = np.isin(log.item_codes, chosen) & (part == TRAIN)
    counts["cold items"] = len(chosen)
    counts["training events of cold items, unused"] = int(held.sum())
    return np.where(held, UNUSED, part).astype(np.int8)


def keep_users(log: Events, part: np.ndarray, count: int, seed: int, counts: dict[str, int]) -> np.ndarray:
    """Return the parts with the training and validation events of all but some users unused; test events stay targets.

    Args:
        log: The log.
        part: (n,) int8; not changed.
        count: How many of the users with training events are kept: those with the smallest sha256(seed, the byte 0x1f, user_id).
            So a smaller number keeps some of the users that a larger one does.
        seed: Of the draw.
        counts: Events set aside; mutated.

    Raises:
        DataError: There are fewer such users.
    """
    trained = np.flatnonzero(np.bincount(log.user_codes[part == TRAIN], minlength=len(log.user_ids)))
    if len(trained) < count:
        got = f"{count:,} users, {len(trained):,} have training events"
        raise DataError("the split keeps more users than train", got=got, expected=f"1 to {len(trained):,}")
    kept = np.isin(log.user_codes, trained[_hash_order([log.user_ids[code] for code in trained.tolist()], seed)[:count]])
    away = ~kept & ((part == TRAIN) | (part == VALID))
    counts["users kept out of training"] = len(trained) - count
    counts["training and validation events of those, unused"] = int(away.sum())
    return np.where(away, UNUSED, part).astype(np.int8)


def _hash_order(ids: list[str], seed: int) -> list[int]:
    """Return the places of some ids in the order of sha256(seed, the byte 0x1f, id), which no order of theirs decides."""
    keys = [hashlib.sha256(f"{seed}\x1f{each}".encode()).digest() for each in ids]
    return sorted(range(len(keys)), key=keys.__getitem__)


def training_events(log: Events, part: np.ndarray) -> np.ndarray:
    """Return (N,) int64: the number of training events of each item."""
    return np.bincount(log.item_codes[part == TRAIN], minlength=log.catalogue.size)


def user_folds(log: Events, part: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Draw the fold of every user, int64[U] from 1 to `config.folds`; users with test events are spread evenly.

    Leakage: across users as the kind of split has it; nothing of a fold's own users is learnt from.

    Raises:
        DataError: There are fewer users with test events than folds.
    """
    assert config.folds is not None and config.fold_seed is not None
    count = len(log.user_offsets) - 1
    tested = np.bincount(log.user_codes[part == TEST], minlength=count) > 0
    if tested.sum() < config.folds:
        most = int(tested.sum())
        todo = f"use fewer folds, or a {config.kind} split with more test events"
        got = f"{config.folds} folds, {most} such users"
        raise DataError("there are more folds than users with test events", got=got, expected=f"2 to {most} folds", todo=todo)
    drawn = np.random.default_rng(config.fold_seed).permutation(count)
    drawn = drawn[np.argsort(~tested[drawn], kind="stable")]
    folds = np.empty(count, dtype=np.int64)
    folds[drawn] = np.arange(count) % config.folds + 1
    return folds


def _keep_impressions(log: Events, part: np.ndarray, counts: dict[str, int]) -> np.ndarray:
    """Raise cut impressions to their latest part, and the user's later events with them, until nothing changes."""
    groups = log.impressions
    assert groups is not None
    users = log.user_codes.astype(np.int64) * len(PARTS)
    raised = part.astype(np.int64)
    while True:
        top = np.zeros(int(groups.max()) + 1, dtype=np.int64)
        np.maximum.at(top, groups, raised)
        higher = np.maximum.accumulate(top[groups] + users) - users
        if np.array_equal(higher, raised):
            break
        raised = higher
    _count(counts, "events moved to keep impressions whole", int((raised != part).sum()))
    return raised.astype(np.int8)


def _drop_small_users(log: Events, part: np.ndarray, min_events: int, counts: dict[str, int]) -> np.ndarray:
    small = np.diff(log.user_offsets) < min_events
    _count(counts, f"users with fewer than {min_events} events", int(small.sum()))
    return np.where(small[log.user_codes], UNUSED, part).astype(np.int8)


def _count(counts: dict[str, int], reason: str, count: int) -> None:
    if count:
        counts[reason] = count
