"""Windows: every training event once whatever the shift; every target once with enough before it."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genre.data.interactions import Interactions
from genre.data.sequences.windows import evaluation_windows, first_in_window, training_windows
from genre.data.splits import TEST, VALID, SplitConfig, split


def log_of(*counts: int) -> Interactions:
    """One user per count, each with so many events, one second apart, all at the same times."""
    rows = [(f"u{user:02}", f"i{step}", 1.0, step) for user, count in enumerate(counts) for step in range(count)]
    return Interactions.from_frame(pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row"))


@settings(max_examples=80, deadline=None)
@given(
    counts=st.lists(st.integers(1, 25), min_size=1, max_size=5),
    most=st.integers(2, 9),
    least=st.integers(1, 4),
    shift=st.floats(0, 0.999),
    holes=st.integers(0, 10),
)
def test_every_training_event_is_supervised_once_for_any_shift(counts, most, least, shift, holes):
    log = log_of(*counts)
    usable = np.random.default_rng(holes).random(len(log)) >= holes / 20
    windows, skipped = training_windows(log, usable, max_events=most, min_events=least, shift=shift)
    events = np.concatenate([window.events for window in windows]) if windows else np.empty(0, int)
    per_user = np.bincount(log.user_codes[usable], minlength=len(counts))
    enough = usable & (per_user[log.user_codes] >= least)
    assert sorted(events.tolist()) == np.flatnonzero(enough).tolist()
    assert skipped == int(usable.sum()) - len(events)
    for window in windows:
        assert 1 <= len(window.events) <= most and window.targets.all() and not len(window.branches)
        assert (np.diff(window.events) > 0).all() and set(log.user_codes[window.events]) == {window.user}


@pytest.mark.parametrize(("shift", "sizes"), [(0.0, [4, 4, 2]), (0.25, [1, 4, 4, 1]), (0.5, [2, 4, 4])])
def test_the_shift_moves_the_cuts(shift, sizes):
    windows, _ = training_windows(log_of(10), np.ones(10, bool), max_events=4, min_events=1, shift=shift)
    assert [len(window.events) for window in windows] == sizes


def test_a_user_that_fits_in_one_window_is_never_cut():
    windows, _ = training_windows(log_of(4), np.ones(4, bool), max_events=4, min_events=1, shift=0.6)
    assert [window.events.tolist() for window in windows] == [[0, 1, 2, 3]]


@pytest.mark.parametrize("part", [VALID, TEST])
@pytest.mark.parametrize("most", [2, 3, 8, 100])
@pytest.mark.parametrize(
    "config",
    [
        SplitConfig(kind="last_n", n=3),
        SplitConfig(kind="temporal", valid=0.2, test=0.4),
        SplitConfig(kind="user_ratio", valid=0.3, test=0.5),
    ],
    ids=lambda config: config.kind,
)
def test_every_target_is_scored_once_with_enough_before_it(config, most, part):
    log = log_of(40, 23, 7, 12)
    chosen = split(log, config)
    targets = []
    for window in evaluation_windows(log, chosen, part, max_events=most):
        first = log.user_offsets[window.user]
        assert len(window.events) <= most and (np.diff(window.events) == 1).all()
        assert first <= window.events[0] and window.events[-1] < log.user_offsets[window.user + 1]
        for target in window.events[window.targets]:
            earlier = int((window.events < target).sum())
            assert earlier >= min(most // 2, target - first)
            targets.append(int(target))
    assert sorted(targets) == np.flatnonzero(chosen.part == part).tolist()


def test_transductive_histories_hold_training_events_only():
    log = log_of(20, 9)
    chosen = split(log, SplitConfig(kind="given", test_rows="3-6,20-21", valid=0.2))
    assert chosen.transductive
    for part in (VALID, TEST):
        windows = evaluation_windows(log, chosen, part, max_events=4)
        for window in windows:
            assert (chosen.part[window.events] == 0).all() and not window.targets.any()
            own = np.flatnonzero((log.user_codes == window.user) & (chosen.part == 0))
            assert window.events.tolist() == own[-4:].tolist()  # the latest of them, whether before or after the target
            assert len(window.branches) <= 4 and set(log.user_codes[window.branches]) == {window.user}
        branches = np.concatenate([window.branches for window in windows])
        assert sorted(branches.tolist()) == np.flatnonzero(chosen.part == part).tolist()


@given(count=st.integers(0, 60), most=st.integers(2, 9))
def test_a_window_in_blocks_keeps_at_least_half_and_moves_by_half(count, most):
    first, late = first_in_window(count, most, "blocks"), first_in_window(count, most, "sliding")
    assert first % (most // 2) == 0 and late <= first < late + most // 2
    assert first_in_window(count + 1, most, "blocks") - first in (0, most // 2)
    assert count - late == min(count, most - 1)


@pytest.mark.parametrize("most", [2, 5, 8, 100])
def test_under_blocks_evaluation_is_what_the_engine_reads_and_training_begins_there(most):
    log = log_of(40, 23, 7)
    chosen = split(log, SplitConfig(kind="user_ratio", valid=0.3, test=0.5))
    targets = []
    for window in evaluation_windows(log, chosen, TEST, max_events=most, rule="blocks"):
        start = log.user_offsets[window.user]
        for target in window.events[window.targets] - start:
            assert window.events[0] - start == first_in_window(int(target), most, "blocks")
            targets.append(int(target + start))
    assert sorted(targets) == np.flatnonzero(chosen.part == TEST).tolist()
    for shift in (0.0, 0.3, 0.7):
        windows, _ = training_windows(log, np.ones(len(log), bool), max_events=most, min_events=1, shift=shift, rule="blocks")
        begins = [window.events[0] - log.user_offsets[window.user] for window in windows]
        assert sorted(np.concatenate([window.events for window in windows])) == list(range(len(log)))
        assert all(begin % (most // 2) == 0 for begin in begins) and all(len(window.events) <= most for window in windows)
