"""The order of equal times: by hash, by a column, by the file; logs without times."""

import json

import polars as pl
import pytest
from typer.testing import CliRunner

from builders import NEXT, recipe
from fakes import planted_log
from genre.cli.root import app
from genre.data.importers.log import import_log
from genre.data.interactions import Interactions
from genre.data.splits import SplitConfig, split
from genre.errors import DataError
from genre.evaluation.protocol import protocol_line
from genre.modules.base.base import Base
from genre.training.assembly import assemble

ITEMS = [f"i{n}" for n in range(40)]


def frame_of(**columns):
    """40 events of one user in one second, in the file in the order of `ITEMS`."""
    return pl.DataFrame({"user_id": "u", "item_id": ITEMS, "timestamp": 7, **columns})


def items_of(log):
    return log.frame["item_id"].to_list()


def write(frame, path):
    {"csv": frame.write_csv, "parquet": frame.write_parquet, "jsonl": frame.write_ndjson}[path.suffix[1:]](path)
    return path


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "numbers", [range(40), [n / 8 for n in range(40)], [f"{n}" for n in range(40)], [10**15 + n for n in range(40)]]
)
def test_equal_times_follow_a_column(tmp_path, ending, numbers):
    frame = frame_of(position=list(numbers)).reverse()
    log = import_log(write(frame, tmp_path / f"log.{ending}"), order="position")
    assert items_of(log) == ITEMS and log.info.order == "position" and log.info.timed
    assert log.tie_rule == "equal seconds in the order of position, then in hash order"
    again = Interactions.read(log.write(tmp_path / "out"))
    assert items_of(again) == ITEMS and again.digest == log.digest and again.tie_rule == log.tie_rule
    assert json.loads((tmp_path / "out/dataset.json").read_text())["order"] == "position"
    assert items_of(import_log(tmp_path / f"log.{ending}")) != ITEMS


def test_equal_times_follow_a_column_of_dates():
    frame = frame_of(at=pl.Series(range(40)).cast(pl.Datetime("us"))).reverse()
    assert items_of(Interactions.from_frame(frame, order="at")) == ITEMS


def test_equal_times_follow_a_column_of_dates_as_texts(tmp_path):
    frame = frame_of(at=[f"2024-03-01 10:00:{second:02}" for second in range(40)]).reverse()
    assert items_of(import_log(write(frame, tmp_path / "log.csv"), order="at")) == ITEMS


def test_without_times_there_are_no_ties():
    log = Interactions.from_frame(frame_of(seq=list(range(40))).drop("timestamp"), order="seq")
    assert log.describe()["ties"] == 0 and log.describe()["time_span"] is None
    tied = Interactions.from_frame(frame_of(seq=[0] * 40).drop("timestamp"), order="seq")
    assert tied.describe()["ties"] == 1


def test_a_column_orders_only_equal_times_and_may_go_by_their_name():
    frame = frame_of(seq=list(range(40))).with_columns(timestamp=pl.Series([2] * 20 + [1] * 20))
    log = Interactions.from_frame(frame.reverse().rename({"seq": "n"}), mapping={"seq": "n"}, order="n")
    assert items_of(log) == ITEMS[20:] + ITEMS[:20] and log.info.order == "seq"


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_equal_times_follow_the_file(tmp_path, ending):
    log = import_log(write(frame_of(), tmp_path / f"log.{ending}"), order="file")
    assert items_of(log) == ITEMS and log.tie_rule == "equal seconds in file order"
    again = Interactions.read(log.write(tmp_path / "out"))
    assert items_of(again) == ITEMS and again.digest == log.digest
    fine = Interactions.from_frame(frame_of().with_columns(timestamp=7.5), order="file")
    assert fine.tie_rule == "equal times in file order"


def test_hash_stays_the_default_and_can_be_named():
    assert Interactions.from_frame(frame_of(), order="hash").digest == Interactions.from_frame(frame_of()).digest
    assert Interactions.from_frame(frame_of()).tie_rule == "equal seconds in hash order"


def test_duplicates_in_file_order_need_not_be_neighbours():
    frame = pl.DataFrame({"user_id": "u", "item_id": ["x", "y", "x", "x"], "timestamp": [1, 1, 1, 2]})
    log = Interactions.from_frame(frame, order="file")
    assert items_of(log) == ["x", "y", "x"] and log.rows.tolist() == [0, 1, 3]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_log_without_times_follows_the_file(tmp_path, ending):
    users, items = ["b", "a", "b", "a", "b", "b"], ["x", "y", "z", "x", "x", "x"]
    log = import_log(write(pl.DataFrame({"user_id": users, "item_id": items}), tmp_path / f"log.{ending}"), order="file")
    assert items_of(log) == ["y", "x", "x", "z", "x", "x"] and not log.info.skipped  # nothing is a duplicate without a time
    assert log.tie_rule == "no times: events in file order" and not log.info.timed
    again = Interactions.read(log.write(tmp_path / "out"))
    assert again.digest == log.digest and again.tie_rule == log.tie_rule
    facts = again.describe()
    assert facts["time_span"] is None and facts["order"] == log.tie_rule


@pytest.mark.parametrize("position", [[3, 1, 2], ["3", "1", "2"], [0.3, 0.1, 0.2]])
def test_a_log_without_times_follows_a_column(position):
    frame = pl.DataFrame({"user_id": "u", "item_id": ["c", "a", "b"], "position": position})
    log = Interactions.from_frame(frame, order="position")
    assert items_of(log) == ["a", "b", "c"] and log.tie_rule.startswith("no times: events in the order of position")
    found = split(log, SplitConfig(kind="last_n", n=1))
    assert found.part.tolist() == [0, 1, 2]


@pytest.mark.parametrize("order", ["file", "position"])
def test_a_split_by_time_agrees_with_the_order_of_each_user(order):
    frame = pl.DataFrame(
        {
            "user_id": [f"u{n % 3}" for n in range(90)],
            "item_id": [f"i{n % 7}" for n in range(90)],
            "timestamp": 7,
            "position": range(90),
        }
    )
    log = Interactions.from_frame(frame, order=order)
    found = split(log, SplitConfig(kind="temporal", valid=0.1, test=0.1))
    assert sorted(log.rows[found.mask("test")]) == list(range(81, 90))
    assert sorted(log.rows[found.mask("valid")]) == list(range(72, 81))


def test_bad_cells_and_bad_names_of_an_order():
    frame = frame_of(position=[str(n) for n in range(39)] + ["last"])
    log = Interactions.from_frame(frame, order="position")
    assert log.info.skipped == {"bad position": 1} and "position 'last'" in log.info.examples[0]
    for name in ("pos", "timestamp", "user_id"):
        with pytest.raises(DataError, match=f"events cannot be ordered by '{name}': got position; expected file, hash or"):
            Interactions.from_frame(frame, order=name)
    with pytest.raises(
        DataError, match="column 'timestamp' is missing.*; a log without times needs --order file or --order COLUMN"
    ):
        Interactions.from_frame(frame.drop("timestamp"))


def test_import_takes_the_order_and_describe_shows_it(tmp_path):
    path = write(frame_of().drop("timestamp"), tmp_path / "log.csv")
    found = CliRunner().invoke(app, ["data", "import", str(path), "--order", "file", "--out", str(tmp_path / "out")])
    assert found.exit_code == 0 and "note: the log has no times: events of a user follow the file" in found.output
    shown = CliRunner().invoke(app, ["data", "describe", str(tmp_path / "out")])
    assert shown.exit_code == 0 and "no times: events in file order" in shown.output


@pytest.mark.parametrize(("order", "line"), [("file", "equal seconds in file order"), ("hash", "equal seconds in hash order")])
def test_a_protocol_has_the_order(tiny, order, line):
    log = planted_log(users=24, items=24, events=12)
    log = Interactions.from_frame(log.frame, log.catalogue.frame, log.users, order=order)
    made = assemble(recipe(str(tiny), NEXT), log, Base.load(str(tiny)))
    assert line in protocol_line(made.recipe, log, made.recipe.tasks[0])
