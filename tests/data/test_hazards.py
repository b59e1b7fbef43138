"""What spoils an evaluation is told by `genre data describe`, with its number; an ordinary log has no warning."""

import json

import numpy as np
import polars as pl
import pytest

from fakes import planted_log
from genre.cli import main
from genre.data.hazards import hazards
from genre.data.interactions import Interactions
from genre.data.texts.dataset import Texts

START = 1_600_000_000
RNG = np.random.default_rng(3)


def ordinary(users=40, events=10, items=60, **columns):
    """Users of ten events a minute apart, each with different items of 60."""
    rows = [
        {
            "user_id": f"u{user}",
            "item_id": f"{item}",
            "timestamp": 1_600_000_000 + 60 * n + user,
            "rating": float(1 + (user + n) % 5),
        }
        for user in range(users)
        for n, item in enumerate(RNG.permutation(items)[:events])
    ]
    return pl.DataFrame(rows).with_columns(**columns)


def found(frame, **options):
    return {each.kind: each for each in hazards(Interactions.from_frame(frame, **options))}


def test_an_ordinary_log_has_no_warning():
    assert found(ordinary()) == {}
    assert hazards(planted_log()) == []


def tied(key=None, order="file"):
    """Pairs of events of one second; in the file in the order of an id, or at random."""
    frame = ordinary().with_columns(timestamp=pl.col("timestamp") // 120 * 120)
    if key is not None:
        descending = order == "descending"
        frame = frame.sort("user_id", "timestamp", key, descending=[False, False, descending])
    return frame


def test_ties_are_counted_in_events_and_in_last_events():
    frame = tied()
    pairs = frame.select("user_id", "timestamp").is_duplicated()
    last = frame.with_columns(tie=pairs).group_by("user_id", maintain_order=True).agg(pl.col("tie").last())["tie"]
    (tie,) = found(frame).values()
    shares = f"{pairs.mean():.1%} of events, and the last one of {last.mean():.1%} of users"
    assert tie.kind == "ties" and tie.value == round(pairs.mean(), 6) and 0.2 < last.mean() < 0.9
    assert tie.found == f"{shares}, stand in hash order among others of the same time"
    assert tie.todo.startswith("name what orders them with --order COLUMN (file, if it has the true order)")


def test_a_tie_at_the_end_of_one_user_in_fifty_is_enough():
    frame = ordinary(users=50)
    early, late = (pl.when(pl.Series(np.arange(500) == row)).then(pl.col("timestamp") - 60) for row in (1, 9))
    assert found(frame.with_columns(timestamp=early.otherwise("timestamp"))) == {}
    assert found(frame.with_columns(timestamp=late.otherwise("timestamp")))["ties"].value == 2 / 500


@pytest.mark.parametrize(
    ("key", "order", "line"),
    [
        (pl.col("item_id"), "ascending", "100% of them in ascending order of item_id"),
        (pl.col("item_id"), "descending", "100% of them in descending order of item_id"),
        (pl.col("item_id").cast(pl.Int64), "ascending", "100% of them in ascending order of item_id"),
    ],
)
def test_a_file_that_is_sorted_by_id_is_no_order(key, order, line):
    tie = found(tied(key, order))["ties"]
    assert tie.found.endswith(f"(the file has {line})") and "file" not in tie.todo
    named = found(tied(key, order), order="file")
    assert set(named) == {"sorted_ties"} and named["sorted_ties"].value == 1.0
    assert named["sorted_ties"].found == f"of events with equal times, the order that was named (file) has {line}"


def test_a_file_in_another_order_is_taken_as_it_is():
    assert found(tied(), order="file") == {}
    assert found(ordinary().drop("timestamp"), order="file") == {}


def test_few_neighbours_say_nothing():
    frame = tied(pl.col("item_id")).filter(pl.col("user_id").is_in(["u0", "u1", "u2"]))
    assert "the file has" not in found(frame)["ties"].found


def test_siblings_of_an_impression_are_no_ties():
    frame = tied().with_columns(impression_id=pl.col("timestamp").cast(pl.String))
    assert found(frame) == {}


def test_last_items_that_their_users_had_before():
    frame = ordinary()
    again = pl.DataFrame({"user_id": [f"u{n}" for n in range(4)], "timestamp": [1_700_000_000] * 4, "rating": 3.0})
    first = frame.group_by("user_id").agg(pl.col("item_id").first())
    repeat = found(pl.concat([frame, again.join(first, on="user_id")], how="diagonal"))["repeats"]
    assert repeat.value == 0.1 and repeat.found == "the last item of 10.0% of users is one that they had before"
    assert "repeats" not in found(pl.concat([frame, again[:1].join(first, on="user_id")], how="diagonal"))
    other = again.with_columns(item_id=pl.lit("new"))
    assert found(pl.concat([frame, other], how="diagonal")) == {}


def test_the_same_item_twice_in_one_impression_is_no_repeat():
    shown = pl.DataFrame(
        {"user_id": ["u", "u", "u"], "item_id": ["x", "y", "y"], "timestamp": [1, 2, 2], "rating": [1.0, 2.0, 3.0]}
    )
    assert hazards(Interactions.from_frame(shown))[-1].kind == "repeats"
    assert hazards(Interactions.from_frame(shown.with_columns(impression_id=pl.Series(["a", "b", "b"])))) == []


def test_a_user_with_a_tenth_of_the_log():
    frame = ordinary()
    bot = pl.DataFrame({"user_id": "bot", "item_id": [f"{n % 60}" for n in range(150)], "timestamp": range(10**9, 10**9 + 150)})
    heavy = found(pl.concat([frame, bot.with_columns(rating=1.0 * (pl.col("timestamp") % 2))], how="diagonal"))["heavy_user"]
    assert heavy.value == round(150 / 550, 6)
    assert heavy.found == "user bot has 150 events, 27.3% of all (the median user has 10)"
    assert "heavy_user" not in found(ordinary(users=5))  # each has a fifth


def burst(users, events=6, start=1_650_000_000):
    """Users with the same items in other orders, begun a minute apart."""
    rows = [
        {"user_id": f"fake{user}", "item_id": f"{item}", "timestamp": start + 60 * user + n, "rating": float(1 + item % 5)}
        for user in range(users)
        for n, item in enumerate(RNG.permutation(events))
    ]
    return pl.DataFrame(rows)


def test_a_burst_of_users_with_identical_histories():
    frame = pl.concat([ordinary(), burst(7)])
    twins = found(frame)["twins"]
    named = "7 users share their history with others: the 7 like fake0, fake1, fake2 have the same 6 events"
    assert twins.value == 7 and twins.found == f"{named}, begun within 6 minutes on 2022-04-15"
    for few in (burst(4), burst(7, events=4)):
        assert found(pl.concat([ordinary(), few])) == {}
    other = burst(7).with_columns(pl.when(pl.col("user_id") != "fake0").then("item_id").otherwise(pl.lit("59")))
    assert found(pl.concat([ordinary(), other]))["twins"].value == 6


def test_users_that_all_rate_everything_are_no_copies():
    assert found(ordinary(events=60)) == {}


@pytest.mark.parametrize(
    ("column", "value", "line"),
    [
        ("rating", 5.0, "rating is 5 in all 400 events"),
        ("click", 1, "click is 1 in all 400 events"),
        ("behaviour", "view", "behaviour is view in all 400 events"),
    ],
)
def test_feedback_that_is_constant(column, value, line):
    frame = ordinary().drop("rating").with_columns(pl.lit(value).alias(column))
    (constant,) = found(frame).values()
    assert constant.kind == "constant_feedback" and constant.found == line
    assert constant.todo.endswith("or train with `sequence.feedback: none`")
    assert found(frame.with_columns(bought=pl.lit(0))).keys() == {"constant_feedback"}
    assert not found(ordinary().drop("rating"))


def test_describe_prints_a_line_for_each_and_keeps_them_in_json(tmp_path, capsys):
    folder = Interactions.from_frame(pl.concat([tied(), burst(7)]).with_columns(rating=5.0)).write(tmp_path / "log")
    assert main(["data", "describe", str(folder)]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert main(["data", "describe", str(folder), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["warnings"]
    assert [each["kind"] for each in told] == ["ties", "twins", "constant_feedback"]
    assert said == [f"warning: {each['found']}: {each['why']}; {each['todo']}" for each in told]


def test_labelled_texts_have_warnings_of_their_own(tmp_path, capsys):
    frame = pl.DataFrame(
        {"text": [f"text {n}" for n in range(60)], "group_id": [f"g{n % 20}" for n in range(60)], "stars": [1, 2] * 30}
    )
    texts = Texts.from_frame(frame, texts=["text"], labels=["stars"])
    assert texts.describe()["warnings"] == []
    copied = frame.with_columns(text=pl.when(pl.col("text") == "text 1").then(pl.lit("text 2")).otherwise("text"), stars=3)
    folder = Texts.from_frame(copied, texts=["text"], labels=["stars"]).write(tmp_path / "texts")
    assert main(["data", "describe", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "warning: stars is 3 in all 60 texts: nothing can be learnt" in said
    assert "warning: 2 texts (3.3%) are word for word in several groups: a split may have them on both sides" in said
    same = frame.with_columns(text=pl.when(pl.col("text") == "text 21").then(pl.lit("text 1")).otherwise("text"))
    assert Texts.from_frame(same, texts=["text"], labels=["stars"]).describe()["warnings"] == []  # in one group
