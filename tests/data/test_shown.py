"""Lists that a service showed, joined with the log of its versions: which items are events, once, whatever is read twice."""

import shutil
import sqlite3

import numpy as np
import polars as pl
import pytest

from genre.data.importers.served import gather_lists
from genre.data.interactions import Interactions
from genre.data.shown import LISTS, join_lists, lists_of
from genre.errors import DataError
from genre.serving.served import Impression, Reward, ServedLog

ITEMS = pl.DataFrame({"item_id": ["a", "b", "c", "d"], "title": ["A", "B", "C", "D"]})


def shown(*rows):
    """Lists of three items at a time: (list, user, second, rewards by item)."""
    found = [
        (user, item, second, name, place, 0.5, 0.1, reward, "softmax=1", "like@production", "d" * 64)
        for name, user, second, rewards in rows
        for place, (item, reward) in enumerate(rewards.items(), 1)
    ]
    return pl.DataFrame(found, schema=LISTS, orient="row")


def log_of(**columns):
    frame = pl.DataFrame({"user_id": ["u", "u", "v"], "item_id": ["a", "b", "a"], "timestamp": [1, 2, 3], **columns})
    return Interactions.from_frame(frame, items=ITEMS, users=pl.DataFrame({"user_id": ["u", "v"], "age": [1, 2]}), name="shop")


CLICKS = {"click": [1, 0, 1]}
ONE = ("l1", "u", 10, {"b": 1.0, "c": None, "d": 0.0})


def test_items_that_were_shown_are_clicked_or_not():
    log = join_lists(log_of(**CLICKS), shown(ONE), {"click"})
    events = log.frame.filter(pl.col("impression_id") == "l1").sort("position")
    assert events["item_id"].to_list() == ["b", "c", "d"] and events["click"].to_list() == [1, 0, 0]
    assert (events["propensity"].to_list(), events["reward"].to_list()) == ([0.5] * 3, [1.0, 0.0, 0.0])
    own = log.frame.filter(pl.col("digest").is_null())
    assert own["click"].to_list() == [1, 0, 1] and own["impression_id"].n_unique() == 3  # none is another's sibling
    assert log.users["age"].to_list() == [1, 2] and log.catalogue.titles() == ["A", "B", "C", "D"]


def test_where_nothing_tells_good_from_bad_what_earned_nothing_is_no_event():
    log = join_lists(log_of(), shown(ONE))
    assert len(log) == 4 and lists_of(log)["item_id"].to_list() == ["b"]
    again = join_lists(log, shown(ONE, ("l2", "v", 11, {"c": 2.0, "d": None})))
    assert lists_of(again)["item_id"].to_list() == ["b", "c"]


def test_rewards_are_ratings_or_another_column_if_it_is_named():
    rated = join_lists(log_of(rating=[5.0, 3.0, 1.0]), shown(ONE), {"rating"}, reward="rating")
    assert lists_of(rated)["item_id"].to_list() == ["b", "d"]  # what nobody rated is not rated 0
    assert rated.frame.filter(pl.col("digest").is_not_null()).sort("position")["rating"].to_list() == [1.0, 0.0]
    bought = join_lists(log_of(bought=[0, 1, 1]), shown(ONE), {"bought"}, reward="bought")
    assert bought.frame.filter(pl.col("digest").is_not_null()).sort("position")["bought"].to_list() == [1, 0, 0]
    # a rating that nobody reads does not keep the lists out
    assert "rating" not in join_lists(log_of(rating=[5.0, 3.0, 1.0]), shown(ONE)).frame.columns


@pytest.mark.parametrize("columns", [CLICKS, {}])
def test_a_list_is_in_the_log_once_and_gets_its_later_rewards(columns):
    base, two = log_of(**columns), ("l2", "v", 11, {"a": None, "c": 1.0})
    first = join_lists(base, shown(ONE), set(columns))
    late = ("l1", "u", 10, {"b": 1.0, "c": 3.0, "d": 0.0})
    whole = join_lists(base, shown(late, two), set(columns))
    assert join_lists(first, shown(late, two), set(columns)).digest == whole.digest != first.digest
    assert join_lists(whole, shown(late), set(columns)).digest == whole.digest
    assert join_lists(whole, shown(), set(columns)) is whole
    assert lists_of(whole).filter(item_id="c", impression_id="l1")["reward"].to_list() == [3.0]


def test_users_and_items_that_the_log_does_not_know_are_new_ones(tmp_path):
    log = join_lists(log_of(**CLICKS), shown(("l1", "w", 10, {"e": 1.0, "a": None})), {"click"})
    assert log.user_ids == ["u", "v", "w"] and log.catalogue.item_ids[-1] == "e"
    assert log.users["age"].to_list() == [1, 2, None] and log.info.skipped["items without a row"] == 1
    assert Interactions.read(log.write(tmp_path / "joined")).digest == log.digest


def test_fractions_of_seconds_stay():
    joined = join_lists(log_of(**CLICKS, subsecond_us=[5, 0, 7]), shown(ONE), {"click"})
    assert sorted(joined.times_us)[:3] == [1_000_005, 2_000_000, 3_000_007]


def test_what_rewards_cannot_fill_is_refused():
    with pytest.raises(
        DataError, match="do not fill a column that is read: got rating; expected click or reward; name the column"
    ):
        join_lists(log_of(rating=[5.0, 3.0, 1.0]), shown(ONE), {"rating"})
    with pytest.raises(DataError, match="rewards are numbers: got --reward behaviour"):
        join_lists(log_of(behaviour=["view"] * 3), shown(ONE), {"behaviour"}, reward="behaviour")
    with pytest.raises(DataError, match="gain"):
        join_lists(log_of(), shown(ONE), reward="gain")
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [1], "turn": [3]})
    with pytest.raises(DataError, match="equal times a column orders: got order turn"):
        join_lists(Interactions.from_frame(frame, order="turn"), shown(ONE))


def served(path, *impressions):
    log = ServedLog(path)
    for name, rewards in impressions:
        items = list(rewards)
        log.show([Impression(name, "like", "d" * 64, "u", "softmax=1", items, [0.0] * len(items), [0.5] * len(items))])
        log.reward([Reward(name, item, value) for item, value in rewards.items() if value is not None]).result(10)
    return log


def test_several_files_are_one_log_also_while_a_service_writes(tmp_path):
    """A copy from before a reward came, the log itself, still open, and an older one: every item of a list counts once."""
    folder = tmp_path / "logs"
    folder.mkdir()
    log = served(folder / "served.sqlite", ("l1", {"a": 1.0, "b": None}))
    try:
        with sqlite3.connect(folder / "served.sqlite") as source, sqlite3.connect(tmp_path / "copy.sqlite") as copy:
            source.backup(copy)
        source.close(), copy.close()
        log.reward([Reward("l1", "b", 2.0)]).result(10)
        served(folder / "older", ("l0", {"c": 1.0})).close()
        rows = gather_lists([tmp_path / "copy.sqlite", folder, folder / "served.sqlite"])
        assert dict(zip(rows["item_id"], rows["reward"], strict=True)) == {"a": 1.0, "b": 2.0, "c": 1.0}
        assert np.all(np.diff(rows["timestamp"]) >= 0)
    finally:
        log.close()


def test_what_is_no_served_log_is_refused(tmp_path):
    served(tmp_path / "served.sqlite", ("l1", {"a": 1.0})).close()
    shutil.copy(tmp_path / "served.sqlite", tmp_path / "later.sqlite")
    with sqlite3.connect(tmp_path / "later.sqlite") as connection:
        connection.execute("PRAGMA user_version=2")
    connection.close()
    with pytest.raises(DataError, match="later.sqlite is no served log of this version: got 2; expected 1; read it with"):
        gather_lists([tmp_path / "later.sqlite"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no served log: got no file"):
        gather_lists([tmp_path / "empty"])
    (tmp_path / "nothing").touch()
    for name, got in (("none", "no such file"), ("nothing", "no such table: shown")):
        with pytest.raises(DataError, match=f"{name} is no served log: got {got}; expected the file of"):
            gather_lists([tmp_path / name])
