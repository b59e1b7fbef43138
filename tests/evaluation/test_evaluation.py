"""Targets, figures of a task, ranks and top lists, on small logs worked out by hand and by brute force."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genre.data.interactions import Interactions
from genre.data.splits import Split, SplitConfig, split
from genre.errors import DataError, RecipeError
from genre.evaluation.history import Histories
from genre.evaluation.ranking import block_rows, rank_in_blocks, tie_order
from genre.evaluation.targets import Targets, evaluate_feedback, evaluate_ranking, targets

ITEMS = [f"i{k}" for k in range(8)]


def make_log(events, impressions=None):
    """Events (user, item) in order of time; users and items by number."""
    columns = {
        "user_id": [f"u{user}" for user, _ in events],
        "item_id": [ITEMS[item] for _, item in events],
        "timestamp": list(range(len(events))),
        "rating": [float(1 + k % 5) for k in range(len(events))],
    }
    if impressions is not None:
        columns["impression_id"] = [str(name) for name in impressions]
    return Interactions.from_frame(pl.DataFrame(columns), items=pl.DataFrame({"item_id": ITEMS, "title": ITEMS}))


def make_split(part, transductive=False):
    config = SplitConfig(kind="given", test_rows="0") if transductive else SplitConfig(kind="last_n")
    return Split(config, np.array(part, dtype=np.int8), transductive, {})


def brute_history(log, parts, target):
    groups = log.frame["impression_id"].to_list() if "impression_id" in log.frame.columns else None
    found = []
    for event in range(len(log)):
        if event == target or log.user_codes[event] != log.user_codes[target]:
            continue
        sibling = groups is not None and groups[event] == groups[target]
        if not sibling and (parts.part[event] == 0 if parts.transductive else event < target):
            found.append(event)
    return found


LOGS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 7), st.integers(0, 4), st.integers(-1, 2)), min_size=1, max_size=25)


@settings(deadline=None)
@given(LOGS, st.booleans(), st.booleans())
def test_history_is_what_brute_force_finds(rows, transductive, shown):
    log = make_log([(user, item) for user, item, _, _ in rows], [i for _, _, i, _ in rows] if shown else None)
    parts = make_split([rows[k][3] for k in log.rows], transductive)
    histories = Histories(log, parts)
    every = np.arange(len(log))
    pair_rows, events = histories.pairs(every)
    expected = [brute_history(log, parts, target) for target in every]
    assert [events[pair_rows == target].tolist() for target in every] == expected
    label = np.where(log.rows % 3 == 0, np.nan, log.column("rating"))
    sums, counts = histories.sums(label, every)
    known = [[label[event] for event in each if not math.isnan(label[event])] for each in expected]
    assert counts.tolist() == [len(each) for each in known]
    assert sums == pytest.approx([sum(each) for each in known])


@settings(deadline=None)
@given(LOGS, st.booleans(), st.sampled_from(["masked", "kept"]), st.randoms(use_true_random=False))
def test_ranks_and_lists_are_what_brute_force_finds(rows, transductive, seen, random):
    log = make_log([(user, item) for user, item, _, _ in rows])
    parts = make_split([rows[k][3] for k in log.rows], transductive)
    found = targets(log, parts, 2)
    scores = np.array([[random.choice([0, 1, 2, -np.inf]) for _ in ITEMS] for _ in range(len(found))], dtype=np.float32)
    scores = scores.reshape(-1, len(ITEMS))
    kept = scores.copy()
    blocks = [(rows, scores[rows]) for rows in block_rows(len(found), 2)][::-1]
    ranks, top = rank_in_blocks(log, parts, found, blocks, seen=seen)
    assert np.array_equal(kept, scores)
    place = np.argsort(tie_order(log))
    for row in range(len(found)):
        own = found.item[row]
        history = brute_history(log, parts, found.event[row]) if seen == "masked" else []
        hidden = {int(log.item_codes[event]) for event in history} - {own}
        others = [scores[row][code] for code in range(len(ITEMS)) if code not in hidden and code != own]
        better, equal = sum(x > scores[row][own] for x in others), sum(x == scores[row][own] for x in others)
        assert ranks[row] == 1 + better + equal / 2
        listed = [code for code in range(len(ITEMS)) if code not in hidden and scores[row][code] > -np.inf]
        listed.sort(key=lambda code: (-scores[row][code], place[code]))
        assert top[row].tolist() == listed + [-1] * (20 - len(listed))


def test_a_constant_scorer_is_in_the_middle_of_what_is_left():
    log = make_log([(0, 0), (0, 1), (0, 2)])
    parts = make_split([0, 0, 2])
    found = targets(log, parts, 2)
    block = [(slice(0, 1), np.zeros((1, 8), dtype=np.float32))]
    assert rank_in_blocks(log, parts, found, block, seen="masked").ranks.tolist() == [(6 + 1) / 2]
    assert rank_in_blocks(log, parts, found, block, seen="kept").ranks.tolist() == [(8 + 1) / 2]


def test_a_repeated_item_stays_a_candidate():
    log = make_log([(0, 0), (0, 1), (0, 0)])
    parts = make_split([0, 0, 2])
    block = [(np.array([0]), np.arange(8, dtype=np.float32)[None, ::-1])]
    result = rank_in_blocks(log, parts, targets(log, parts, 2), block)
    assert result.ranks.tolist() == [1] and result.top[0].tolist() == [0, 2, 3, 4, 5, 6, 7] + [-1] * 13


def test_bad_blocks_are_refused():
    log, parts = make_log([(0, k) for k in range(5)]), make_split([0, 0, 2, 2, 2])
    found = targets(log, parts, 2)
    scores = np.zeros((3, 8), dtype=np.float32)
    with pytest.raises(DataError, match=r"target 2 is not scored exactly once: got 0 times"):
        rank_in_blocks(log, parts, found, [(slice(0, 2), scores[:2])])
    with pytest.raises(DataError, match=r"target 0 is not scored exactly once: got 2 times"):
        rank_in_blocks(log, parts, found, [(slice(0, 3), scores), (np.array([0]), scores[:1])])
    with pytest.raises(DataError, match=r"wrong shape: got \[3, 7\]; expected \[3, 8\]"):
        rank_in_blocks(log, parts, found, [(slice(0, 3), scores[:, :7])])
    scores[2, 5] = np.nan
    with pytest.raises(DataError, match="the score of row 1 for item 5 is not a number"):
        rank_in_blocks(log, parts, found, [(np.array([0, 2, 1]), scores)])


def test_targets_drop_and_count_events_without_a_label():
    log = make_log([(0, k) for k in range(4)])
    parts = split(log, SplitConfig(kind="user_ratio", valid=0, test=0.5))
    found = targets(log, parts, 2, np.array([1, 0, np.nan, 1]))
    assert (found.event.tolist(), found.item.tolist(), found.label.tolist(), found.dropped) == ([3], [3], [1], 1)
    assert len(targets(log, parts, 2)) == 2 and targets(log, parts, 2).label is None
    assert targets(log, parts, 2).take(np.array([1])).event.tolist() == [3]
    with pytest.raises(DataError, match="got 4 events, 4 parts, 3 labels"):
        targets(log, parts, 2, np.ones(3))


FOUND = Targets(np.arange(4), np.array([0, 0, 1, 1], np.int32), np.array([0, 1, 2, 0], np.int32), np.array([1.0, 0, 1, 0]))


def test_feedback_figures_by_hand():
    figures = evaluate_feedback(["auc", "gauc", "log_loss"], FOUND, [0.9, 0.1, 0.4, 0.6], resamples=50)
    assert list(figures) == ["auc", "gauc", "log_loss"]
    assert figures["auc"].value == 3 / 4 and figures["gauc"].value == (2 * 1 + 2 * 0) / 4
    assert figures["auc"].n == 4 and figures["auc"].users == 2


def test_ranking_figures_by_hand():
    top = np.array([[0, 1], [1, 0], [2, 1], [1, -1]], dtype=np.int32)
    figures = evaluate_ranking(["hr@1", "coverage@2", "gini@1"], FOUND, [1, 1, 1, 3], top, 3)
    assert figures["hr@1"].value == 3 / 4 and figures["coverage@2"].value == 1
    assert figures["gini@1"].value == pytest.approx((-2 * 1 + 0 * 1 + 2 * 2) / (3 * 4))
    assert figures["coverage@2"].as_dict() == {"value": 1.0, "interval": [None, None], "n": 4}


def test_no_target_gives_nan():
    none = FOUND.take(slice(0, 0))
    assert math.isnan(evaluate_feedback(["auc"], none, [])["auc"].value)
    figures = evaluate_ranking(["ndcg@10", "coverage@10"], none, [], np.empty((0, 20), dtype=np.int32), 3)
    assert all(math.isnan(figure.value) and figure.n == 0 for figure in figures.values())


def test_bad_input_is_refused():
    with pytest.raises(DataError, match="the score of row 2 is not a finite number"):
        evaluate_feedback(["auc"], FOUND, [0.1, 0.2, math.nan, 0.3])
    with pytest.raises(DataError, match="got 4 targets, 3 scores"):
        evaluate_feedback(["auc"], FOUND, [0.1, 0.2, 0.3])
    with pytest.raises(RecipeError, match=r"does not fit a feedback task: got ndcg@10; expected feedback"):
        evaluate_feedback(["auc", "ndcg@10"], FOUND, [0.1] * 4)
    with pytest.raises(RecipeError, match=r"does not fit a next-item task: got auc; expected ranking or list"):
        evaluate_ranking(["auc"], FOUND, [1] * 4, None, 3)
    with pytest.raises(DataError, match="coverage@10 needs top lists"):
        evaluate_ranking(["coverage@10"], FOUND, [1] * 4, None, 3)
    with pytest.raises(DataError, match="feedback metrics need labels"):
        evaluate_feedback(["auc"], Targets(FOUND.event, FOUND.user, FOUND.item, None), [0.1] * 4)
