"""The protocol that logs and labelled texts share: the same questions to both, with answers counted by hand."""

import numpy as np
import polars as pl
import pytest

from fakes import planted_log, planted_texts
from genre.data.dataset import Dataset
from genre.data.interactions import Interactions, need_log
from genre.data.splits import SplitConfig
from genre.data.texts.dataset import Texts
from genre.errors import DataError, InputError
from genre.tasks import Task


def log() -> Interactions:
    rows = [("u1", "a", 30, 5.0), ("u1", "b", 10, 1.0), ("u2", "a", 20, 4.0)]
    return Interactions.from_frame(pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "rating"], orient="row"))


def texts() -> Texts:
    rows = [("t1", "g1", "soft", 5, "x"), ("t2", "g1", "thin", 1, None), ("t3", "g2", "warm", 4, "y")]
    frame = pl.DataFrame(rows, schema=["text_id", "group_id", "review", "rating", "kind"], orient="row")
    return Texts.from_frame(frame, texts=["review"], labels=["rating", "kind"])


@pytest.mark.parametrize(
    ("data", "names", "owners", "items", "span"),
    [
        (log(), "row 1 (user u1, item b), row 0 (user u1, item a) and 1 more", [0, 0, 1], [1, 0, 0], (10, 30)),
        (texts(), "text t1 (group g1), text t2 (group g1) and 1 more", [0, 0, 1], [0, 1, 2], None),
    ],
)
def test_both_kinds_answer_alike(data: Dataset, names, owners, items, span):
    rows = np.arange(3)
    assert data.name_rows(rows, most=2) == names
    assert [found.tolist() for found in data.owners(rows)] == [owners, items]
    assert data.time_span(np.ones(3, dtype=bool)) == span
    assert data.impressions is None and len(data) == len(data.frame) == 3
    assert data.item_count == (2 if data.kind == "log" else 0) == (0 if data.catalogue is None else data.catalogue.size)
    with pytest.raises(DataError, match=f"a mask does not fit the {data.kind}"):
        data.check_mask(np.ones(2, dtype=bool))


def test_labels_are_floats_or_codes():
    like = Task(name="like", kind="feedback", label="rating > 3")
    following = Task(name="following", kind="next_item", label="rating > 3")
    assert log().labels_of(like).tolist() == [0.0, 1.0, 1.0]
    assert log().labels_of(following).tolist() == [-1, 0, 0]
    assert {name: slot for name, (slot, _) in log().supervise([like, following]).items()} == {
        "like": "item",
        "following": "feedback",
    }
    kind = Task(name="kind", kind="text", label="kind", loss="cross_entropy").with_classes(texts().labels)
    assert texts().labels_of(kind).tolist() == [0, -1, 1]


def test_a_limit_keeps_the_newest_events_or_draws_texts():
    assert log().limit(np.arange(3), 2, seed=0).tolist() == [2, 1]  # seconds 20 and 30
    many = planted_texts(groups=10)
    rows = np.arange(len(many))
    drawn = many.limit(rows, 7, seed=1)
    assert len(set(drawn.tolist())) == 7 and drawn.tolist() == many.limit(rows, 7, seed=1).tolist()
    assert drawn.tolist() != many.limit(rows, 7, seed=2).tolist()


def test_a_split_is_of_one_kind_and_a_log_is_asked_for_by_name():
    known = planted_log(users=12)
    assert known.split(SplitConfig(kind="last_n")).counts["test"] == 12
    with pytest.raises(DataError, match="a log cannot be split by group"):
        known.split(SplitConfig(kind="group"))
    with pytest.raises(DataError, match="labelled texts cannot be split by last_n"):
        texts().split(SplitConfig(kind="last_n"))
    assert need_log(known) is known
    with pytest.raises(InputError, match="this needs a log: got labelled texts"):
        need_log(texts())
