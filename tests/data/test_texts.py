import hashlib
import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from genre.data.interactions import DatasetInfo, Interactions, SplitConfig, split
from genre.data.texts.dataset import Texts
from genre.errors import DataError, InputError
from genre.tasks import Task

REVIEWS = {
    "text_id": ["a", "b", "c", "d"],
    "group_id": ["7", "7", "8", "9"],
    "title": ["Fits", None, " ", "Bad"],
    "review": ["Good dress", "Lovely  ", "Too small", None],
    "recommended": [1, 1, 0, None],
    "rating": [5.0, 4.0, 2.0, 1.0],
    "age": [30, 40, None, 60],
}


def reviews(**columns):
    frame = pl.DataFrame({**REVIEWS, **columns})
    return Texts.from_frame(frame, texts=["title", "review"], labels=["recommended", "rating"], name="reviews")


def test_columns_and_roles():
    texts = reviews()
    assert repr(texts) == "Texts(reviews: 4 texts in 3 groups)" and len(texts) == 4
    assert texts.frame.columns == ["text_id", "group_id", "title", "review", "recommended", "rating", "age"]
    assert texts.info.roles == {
        "texts": {"title": "text", "review": "text", "recommended": "label", "rating": "label", "age": "feature"}
    }
    assert texts.join(["title", "review"]) == ["Fits; Good dress", "Lovely", "Too small", "Bad"]
    assert texts.join(["title", "age"], ", ") == ["Fits, 30", "40", "", "Bad, 60"] and texts.join([]) == [""] * 4
    np.testing.assert_array_equal(texts.labels["recommended"], [1.0, 1.0, 0.0, np.nan])
    assert texts.column("title").tolist() == ["Fits", None, None, "Bad"]
    assert texts.group_codes.tolist() == [0, 0, 1, 2] and texts.group_codes.dtype == np.int32
    assert texts.text_ids == ["a", "b", "c", "d"]
    with pytest.raises(ValueError, match="read-only"):
        texts.labels["rating"][0] = 0.0
    with pytest.raises(DataError, match=r"the texts have no column 'stars': got title, review, .*; expected a column 'stars'"):
        texts.column("stars")


def test_labels_feed_a_task():
    task = Task(name="good", kind="feedback", label="rating >= 4")
    assert task.labels(reviews().labels).tolist() == [1.0, 1.0, 0.0, 0.0]


def test_the_folder_comes_back_the_same(tmp_path):
    texts = reviews(mood=["sad", "glad", None, "sad"])
    folder = texts.write(tmp_path / "reviews")
    again = Texts.read(folder)
    assert again.digest == texts.digest and again.frame.equals(texts.frame)
    assert again.text_columns == ("title", "review") and again.label_columns == ("recommended", "rating")
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "texts.parquet"]
    assert Texts.is_at(folder) and not Texts.is_at(tmp_path)
    (folder / "dataset.json").unlink()
    guessed = Texts.read(folder)
    assert guessed.text_columns == ("title", "review", "mood") and guessed.label_columns == ("recommended", "rating", "age")
    assert guessed.info.name == "reviews" and guessed.digest != texts.digest


def test_the_digest_is_of_content_and_columns():
    digest = reviews().digest
    assert reviews(age=[30, 40, None, 61]).digest != digest
    frame = pl.DataFrame(REVIEWS)
    other = Texts.from_frame(frame, texts=["review", "title"], labels=["recommended", "rating"])
    assert other.digest != digest
    info = DatasetInfo(name="another", licence="theirs")
    same = Texts.from_frame(frame, texts=["title", "review"], labels=["recommended", "rating"], info=info)
    assert same.digest == digest and same.info.licence == "theirs"


def test_ids_are_made_and_duplicates_left_out():
    frame = pl.DataFrame({"text": ["x", "y", "x", "x"], "label": [1, 0, 1, 0]})
    texts = Texts.from_frame(frame, labels=["label"])
    assert texts.text_ids == ["0", "1", "3"] and texts.frame["group_id"].to_list() == ["0", "1", "3"]
    assert texts.info.skipped == {"duplicate texts": 1} and texts.info.examples == ("duplicate texts: row 2",)
    named = Texts.from_frame(frame.with_columns(text_id=pl.Series(["p", "q", "p", "r"])), labels=["label"])
    assert named.text_ids == ["p", "q", "r"] and named.info.skipped == {"texts given twice": 1}
    grouped = Texts.from_frame(frame.with_columns(group_id=pl.Series([1, 1, 2, 1])), labels=["label"])
    assert grouped.text_ids == ["0", "1", "2", "3"]  # the same words about another thing are another text


def test_bad_rows_are_counted_and_named():
    rows = 100
    frame = pl.DataFrame(
        {
            "body": ["" if n == 3 else f"text {n}" for n in range(rows)],
            "stars": ["lots" if n == 7 else "" if n == 8 else f"{n % 5},5" for n in range(rows)],
            "shop": [None if n == 9 else "s" for n in range(rows)],
        }
    )
    texts = Texts.from_frame(frame, texts=["body"], labels=["stars"], mapping={"group_id": "shop"}, guess_numbers=True)
    assert texts.info.skipped == {"bad group_id": 1, "no text": 1, "bad stars": 1}
    assert texts.info.examples == (
        "bad group_id: row 9 (the first is 0): group_id None",
        "no text: row 3 (the first is 0): text None",
        "bad stars: row 7 (the first is 0): stars 'lots'",
    )
    assert len(texts) == 97 and np.isnan(texts.labels["stars"]).sum() == 1 and np.nanmax(texts.labels["stars"]) == 4.5
    with pytest.raises(DataError) as caught:
        Texts.from_frame(frame, texts=["body"], mapping={"group_id": "shop"}, max_bad=0.01)
    assert str(caught.value) == (
        "2 of 100 rows are not usable: got row 9 (the first is 0): group_id None; expected an id, not empty; "
        "repair them, or allow more than 1% bad rows with --max-bad"
    )


def test_a_label_of_words_stays_words():
    texts = Texts.from_frame(pl.DataFrame({"t": ["a", "b"], "kind": ["good", "bad"]}), texts=["t"], labels=["kind"])
    assert texts.labels["kind"].tolist() == ["good", "bad"]
    assert Task(name="good", kind="feedback", label="kind == 'good'").labels(texts.labels).tolist() == [1.0, 0.0]
    flags = Texts.from_frame(pl.DataFrame({"t": ["a", "b"], "on": [True, None]}))
    assert flags.label_columns == ("on",) and flags.labels["on"][0] == 1.0


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        ({"t": []}, {}, "there are no texts: got 0 rows; expected at least one"),
        ({"n": [1]}, {}, "no column holds texts: got n; expected a text column; name it with --text"),
        ({"t": ["a"]}, {"texts": ["u"]}, "the texts have no text column 'u': got t; expected a column 'u'; name one of"),
        ({"t": ["a"]}, {"labels": ["y"]}, "the texts have no label column 'y': got t; expected a column 'y'"),
        ({"t": ["a"]}, {"texts": ["t"], "labels": ["t"]}, "column 't' is named as a text and as a label: expected one of them"),
        (
            {"t": ["a"], "My Y": [1]},
            {"labels": ["My Y"]},
            "a label's name cannot stand in a recipe: got 'My Y'; expected letters, digits, _; rename it, such as with "
            "--map my_y='My Y'",
        ),
        ({"t": ["a"], "y": [float("nan")]}, {"labels": ["y"]}, "1 of 1 rows are not usable: got row 0 (the first is 0): y nan;"),
        ({"t": ["a"]}, {"mapping": {"group_id": "g"}}, "no column 'g' to take group_id from: got t; expected a column 'g'"),
    ],
)
def test_tables_that_cannot_be_used(frame, options, message):
    schema = {"t": pl.String} if frame == {"t": []} else None
    with pytest.raises(DataError) as caught:
        Texts.from_frame(pl.DataFrame(frame, schema=schema), **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError, match="the input is not a table: got list"):
        Texts.from_frame([1])


def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(DataError, match=r"holds no labelled texts: got no such folder; expected a folder with texts.parquet;"):
        Texts.read(tmp_path / "none")
    folder = reviews().write(tmp_path / "reviews")
    (folder / "texts.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"texts.parquet cannot be read: got .*; expected a Parquet file"):
        Texts.read(folder)
    reviews().write(folder)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset.json is damaged"):
        Texts.read(folder)
    (folder / "dataset.json").write_text(json.dumps({"roles": {"texts": {"gone": "text"}}}))
    with pytest.raises(DataError, match="the texts have no text column 'gone'"):
        Texts.read(folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        reviews().write(tmp_path / "mine")


def many(groups, per_group=3):
    frame = pl.DataFrame(
        {"group_id": [f"g{n // per_group}" for n in range(groups * per_group)], "t": [f"t{n}" for n in range(groups * per_group)]}
    )
    return Texts.from_frame(frame)


def test_a_split_keeps_groups_whole_and_follows_the_formula():
    texts = many(400)
    found = texts.split(SplitConfig(kind="group", valid=0.2, test=0.1, seed=3))
    for group in range(400):
        drawn = int.from_bytes(hashlib.sha256(f"3\x1fg{group}".encode()).digest()[:8], "big") / 2**64
        wanted = 2 if drawn < 0.1 else 1 if drawn < 0.1 + 0.2 else 0
        assert found.part[3 * group : 3 * group + 3].tolist() == [wanted] * 3
    assert found.counts["train"] + found.counts["valid"] + found.counts["test"] == 1200 and found.counts["unused"] == 0
    assert found.counts["groups that test"] * 3 == found.counts["test"] and not found.transductive
    assert 20 < found.counts["groups that test"] < 60 and 50 < found.counts["groups that validate"] < 110
    assert found.mask("test").sum() == found.counts["test"]


@given(st.permutations(range(60)), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_a_groups_part_does_not_depend_on_the_others(order, seed):
    config = SplitConfig(kind="group", valid=0.3, test=0.3, seed=seed)
    whole = many(60, 1)
    here = dict(zip(whole.frame["group_id"], whole.split(config).part.tolist(), strict=True))
    some = Texts.from_frame(whole.frame[list(order)[:40]])
    there = dict(zip(some.frame["group_id"], some.split(config).part.tolist(), strict=True))
    assert there.items() <= here.items()


def test_another_seed_is_another_split_and_defaults_are_written_out():
    texts = many(100)
    default = texts.split(SplitConfig(kind="group"))
    assert (default.config.valid, default.config.test, default.config.seed) == (0.1, 0.1, 0)
    assert texts.split(SplitConfig(kind="group", seed=1)).digest != default.digest
    none = texts.split(SplitConfig(kind="group", valid=0.0))
    assert none.counts["valid"] == 0 and none.counts["groups that validate"] == 0


def test_splits_that_cannot_be_made():
    with pytest.raises(DataError, match="labelled texts cannot be split by last_n: expected kind: group; set data.split to"):
        many(9).split(SplitConfig(kind="last_n"))
    with pytest.raises(DataError, match=r"the split leaves no (train|valid|test) texts: got 3 texts of 1 groups"):
        many(1).split(SplitConfig(kind="group"))
    log = Interactions.from_frame(pl.DataFrame({"user_id": ["a"], "item_id": ["b"], "timestamp": [1]}))
    with pytest.raises(DataError, match="a log cannot be split by group: expected last_n, temporal, user_ratio, given; that"):
        split(log, SplitConfig(kind="group"))
    for wrong in ({"n": 1}, {"test_rows": "1"}, {"min_events": 3}, {"valid": 0.6, "test": 0.5}):
        with pytest.raises(ValidationError):
            SplitConfig(kind="group", **wrong)


def test_select_and_describe():
    texts = reviews()
    some = texts.select(texts.labels["rating"] > 1)
    assert some.text_ids == ["a", "b", "c"] and some.text_columns == texts.text_columns
    for mask, message in (([True], "a mask does not fit the texts"), ([False] * 4, "no text is left")):
        with pytest.raises(DataError, match=message):
            texts.select(np.array(mask))
    facts = texts.describe()
    assert (facts["texts"], facts["groups"]) == (4, 3)
    assert facts["text_columns"] == {"title": 0.5, "review": 0.75} and facts["other_columns"] == {"age": 0.75}
    assert facts["labels"]["recommended"] == {"values": {"0": 1, "1": 2}, "empty": 1}
    assert facts["words_per_text"] == {"min": 1.0, "median": 1.5, "mean": 1.75, "max": 3.0}
    json.dumps(facts)


def test_pandas_frames_are_taken():
    pandas = pytest.importorskip("pandas")
    texts = Texts.from_frame(pandas.DataFrame({"t": ["a", "b"], "y": [1, 0]}))
    assert texts.labels["y"].tolist() == [1.0, 0.0]
