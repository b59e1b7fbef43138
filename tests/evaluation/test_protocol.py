"""A protocol has the tie rule, and the targets that a tie touches are told apart from the others."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from genre.data.interactions import Interactions
from genre.data.splits import TEST, SplitConfig, split
from genre.evaluation.protocol import protocol_line, ties_of
from genre.evaluation.targets import targets
from genre.recipe import Recipe

PUBLISHED = Path(__file__).parents[1] / "fixtures/published/registry"


@pytest.mark.parametrize("manifest", sorted(PUBLISHED.glob("*/*/manifest.json")), ids=lambda path: path.parent.parent.name)
def test_the_line_of_a_version_published_earlier_is_the_same_today(manifest):
    stored = json.loads(manifest.read_text(encoding="utf-8"))
    if stored["kind"] != "adapter":
        assert not stored["protocol"]
        return
    recipe = Recipe.read(manifest.with_name("recipe.yaml"))
    log = Interactions.from_frame(pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [1]}))
    assert stored["protocol"] == {task.name: protocol_line(recipe, log, task) for task in recipe.tasks}


def log_of(times, order="hash", **columns):
    """A user per list of times, with different items; in the file in the order of the list."""
    rows = [
        {"user_id": f"u{user}", "item_id": f"i{n}", "timestamp": time, "seq": n}
        for user, own in enumerate(times)
        for n, time in enumerate(own)
    ]
    return Interactions.from_frame(pl.DataFrame(rows).with_columns(**columns), order=order)


def ties(log, **config):
    made = split(log, SplitConfig(**config))
    return ties_of(log, made, targets(log, made, TEST))


TIMES = [[1, 2, 3, 4], [1, 2, 3, 3], [1, 1, 3, 4], [5, 5, 5, 5]]


def test_a_last_event_is_a_tie_if_another_has_its_time():
    found = ties(log_of(TIMES), kind="last_n", n=1)
    assert (found.tied, found.targets, found.others.tolist()) == (2, 4, [True, False, True, False])
    assert found.rule == "equal seconds in hash order"
    assert found.words == "2 of 4 targets are such ties; beside all, the figures on users whose last event is no tie"


def test_other_splits_name_targets_and_not_users():
    found = ties(log_of([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 5]]), kind="last_n", n=2)
    assert found.others.tolist() == [True, True, False, False] and found.name == "targets that are no tie"
    assert ties(log_of(TIMES), kind="temporal", valid=0.1, test=0.25).name == "targets that are no tie"


@pytest.mark.parametrize("order", ["file", "seq"])
def test_a_named_order_leaves_no_tie(order):
    found = ties(log_of(TIMES, order), kind="last_n", n=1)
    assert found.tied == 0 and found.words == "" and found.others.all()


def test_a_column_with_equal_numbers_leaves_ties():
    log = log_of(TIMES, "page", page=pl.col("seq") // 2)
    assert ties(log, kind="last_n", n=1).others.tolist() == [True, False, True, False]
    assert log.tie_rule == "equal seconds in the order of page, then in hash order"


def test_a_log_without_times_has_ties_only_where_its_order_has():
    frame = pl.DataFrame({"user_id": ["u"] * 4 + ["v"] * 4, "item_id": list("abcdabcd"), "position": [0, 1, 2, 3, 0, 1, 2, 2]})
    found = ties(Interactions.from_frame(frame, order="position"), kind="last_n", n=1)
    assert found.others.tolist() == [True, False] and found.rule.startswith("no times: events in the order of position")
    assert ties(Interactions.from_frame(frame, order="file"), kind="last_n", n=1).tied == 0


def test_siblings_of_an_impression_are_no_ties():
    shown = pl.concat_str(pl.lit("p"), pl.col("timestamp"))
    assert ties(log_of(TIMES, impression_id=shown), kind="temporal", valid=0.1, test=0.25).tied == 0
    apart = pl.concat_str(pl.lit("p"), pl.col("timestamp"), pl.col("seq") == 3)
    found = ties(log_of(TIMES[:3], impression_id=apart), kind="last_n", n=1)
    assert found.others.tolist() == [True, False, True] and found.name == "targets that are no tie"


def test_all_targets_may_be_ties():
    found = ties(log_of([[1, 2, 3, 3]] * 3), kind="last_n", n=1)
    assert found.words == "3 of 3 targets are such ties"


def test_a_transductive_split_needs_no_order():
    assert ties(log_of(TIMES), kind="given", test_rows="3,7") is None


def test_ties_agree_with_a_plain_count():
    draw = np.random.default_rng(5)
    log = log_of(draw.integers(0, 6, size=(50, 5)).tolist())
    times = {user: [event["timestamp"] for event in log.history(user)] for user in log.user_ids}
    expected = [own.count(own[-1]) == 1 for own in times.values()]
    assert ties(log, kind="last_n", n=1).others.tolist() == expected and 0 < sum(expected) < 50
