"""Ids: one rule in every format, and a line about those that look odd."""

import datetime
import json

import pandas as pd
import polars as pl
import pytest

from genre.data.importers.log import import_log
from genre.data.importers.texts import import_texts
from genre.data.interactions import Interactions
from genre.errors import DataError

ITEMS = pl.DataFrame({"item_id": [10, 11, 12], "title": ["Ten", "Eleven", "Twelve"]})


def write(path, columns):
    """A log in the form of its ending, with the cells as they are."""
    frame = pl.DataFrame(columns, strict=False)
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dicts()))
    else:
        frame.write_csv(path, separator="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "cells",
    [
        ["10.0", "11.0", "12.0"],
        [10.0, 11.0, 12.0],
        [" 10", "11 ", " 12\u00a0"],
        ["10", " 11.0 ", "12"],
        [10, 11, 12],
    ],
)
def test_an_id_is_the_same_in_every_format(tmp_path, ending, cells):
    log = write(tmp_path / f"log.{ending}", {"user_id": cells, "item_id": cells, "timestamp": [1, 2, 3]})
    items = write(tmp_path / "items.csv", ITEMS.to_dict(as_series=False))
    users = write(tmp_path / "users.jsonl", {"user_id": [10, 11, 12], "age": [1, 2, 3]})
    found = import_log(log, items=items, users=users)
    assert found.user_ids == ["10", "11", "12"] and found.catalogue.item_ids == ["10", "11", "12"]
    assert found.catalogue.titles() == ["Ten", "Eleven", "Twelve"] and found.users["age"].to_list() == [1, 2, 3]
    assert not found.info.skipped


def test_the_side_table_may_be_the_one_with_points(tmp_path):
    log = write(tmp_path / "log.csv", {"user_id": ["1"] * 3, "item_id": [10, 11, 12], "timestamp": [1, 2, 3]})
    items = write(tmp_path / "items.csv", ITEMS.with_columns(pl.col("item_id").cast(pl.String) + ".0").to_dict(as_series=False))
    found = import_log(log, items=items)
    assert found.catalogue.titles() == ["Ten", "Eleven", "Twelve"]
    assert found.info.notes == ("item_id: 3 ids such as '10.0' are read as '10'",)


def test_one_user_stays_one_and_other_ids_with_points_stay(tmp_path):
    cells = ["17850", "17850.0", " 17850", "1.10", "v2.0", "1.00", "007"]
    log = Interactions.from_frame(pl.DataFrame({"user_id": cells, "item_id": "i", "timestamp": range(7)}))
    assert log.user_ids == ["007", "1.00", "1.10", "17850", "v2.0"]
    frame = pd.DataFrame({"user_id": [1.0, 2.0, None], "item_id": ["a"] * 3, "timestamp": [1, 2, 3]})
    assert Interactions.from_frame(frame, max_bad=0.5).user_ids == ["1", "2"]


def test_a_data_set_folder_keeps_the_ids_that_it_has(tmp_path):
    log = Interactions.from_frame(pl.DataFrame({"user_id": [" a ", "1.0"], "item_id": "i", "timestamp": [1, 2]}), stored=True)
    again = Interactions.read(log.write(tmp_path / "log"))
    assert again.user_ids == [" a ", "1.0"] and again.digest == log.digest


@pytest.mark.parametrize("word", ["NA", "NULL", "\\N", "nan", "None"])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_word_for_nobody_is_kept_and_named(tmp_path, word, ending):
    users = [word] * 3 + [f"u{n}" for n in range(7)]
    path = write(tmp_path / f"log.{ending}", {"user_id": users, "item_id": [f"i{n}" for n in range(10)], "timestamp": range(10)})
    log = import_log(path)
    assert len(log.history(word)) == 3 and not log.info.skipped
    assert log.info.notes == (f"user_id '{word}' has 3 of 10 events (30.0%); kept as an id",)


@pytest.mark.parametrize("blank", ["", "  ", "\u00a0", None])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_a_blank_id_is_a_bad_row(tmp_path, blank, ending, column):
    cells = {"user_id": [f"u{n}" for n in range(30)], "item_id": [f"i{n}" for n in range(30)], "timestamp": list(range(30))}
    cells[column][7] = blank
    log = import_log(write(tmp_path / f"log.{ending}", cells))
    assert log.info.skipped == {f"bad {column}": 1} and log.info.examples[0].startswith(f"bad {column}: row 7 ")
    assert not log.info.notes


@pytest.mark.parametrize(
    ("ours", "theirs", "line"),
    [
        (["007", "008"], [7, 8], "the log has such as '007', the table '7'; they match but for zeros, case and signs"),
        (["7", "8"], ["007", "008"], "the log has such as '7', the table '007'; they match but for zeros, case and signs"),
        (
            ["B00A", "B00B"],
            ["b00a", "b00b"],
            "the log has such as 'B00A', the table 'b00a'; they match but for zeros, case and signs",
        ),
        (["x1", "x2"], ["y1", "y2"], "the log has such as 'x1', the table 'y1'"),
    ],
)
def test_ids_that_match_no_row_of_the_table_are_shown(tmp_path, ours, theirs, line):
    log = write(tmp_path / "log.csv", {"user_id": ours, "item_id": ours, "timestamp": [1, 2]})
    items = write(tmp_path / "items.csv", {"item_id": theirs, "title": ["A", "B"]})
    users = write(tmp_path / "users.csv", {"user_id": theirs, "age": [1, 2]})
    assert import_log(log, items=items, users=users).info.notes == (
        f"0 of 2 different user_id of the log are in its table: {line}",
        f"0 of 2 different item_id of the log are in its table: {line}",
    )


def test_groups_of_texts_follow_the_rule(tmp_path):
    write(tmp_path / "t.csv", {"group_id": ["5", "5.0", " 5"], "body": ["a", "b", "c"], "stars": [1, 2, 3]})
    texts = import_texts(tmp_path / "t.csv", texts=["body"], labels=["stars"])
    assert texts.frame["group_id"].to_list() == ["5"] * 3


@pytest.mark.parametrize(("dtype", "last"), [(pl.Float32, 2**24), (pl.Float64, 2**53)])
@pytest.mark.parametrize("name", ["user_id", "item_id", "impression_id"])
def test_floats_too_short_for_their_ids_are_refused(tmp_path, dtype, last, name):
    columns = {"user_id": [1, 2], "item_id": [1, 2], "impression_id": [1, 2], "timestamp": [1, 2], "behaviour": ["view"] * 2}
    frame = pl.DataFrame(columns | {name: [last - 1, last]}).with_columns(pl.col(name).cast(dtype))
    frame.write_parquet(tmp_path / "log.parquet")
    assert import_log(tmp_path / "log.parquet").frame[name].to_list() == [str(last - 1), str(last)]
    (frame.with_columns(pl.lit(float(2 * last), dtype).alias(name))).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=f"-bit floats cannot hold these ids: got {name} {2 * last}; expected at most {last}"):
        import_log(tmp_path / "log.parquet")


def test_ids_that_a_spreadsheet_shortened_are_noted(tmp_path):
    log = write(tmp_path / "log.csv", {"user_id": ["1.23457E+17", "1e5"], "item_id": ["a", "b"], "timestamp": [1, 2]})
    (note,) = import_log(log).info.notes
    assert note.startswith("user_id: 1 ids such as '1.23457E+17' look like numbers that a spreadsheet shortened")


def test_bytes_that_are_texts_are_read_as_texts(tmp_path):
    cells = [b"a", "\u00e9".encode()]
    frame = pl.DataFrame(
        {"user_id": cells, "item_id": cells, "timestamp": [b"5", b"2024-01-01"], "title": cells, "raw": [b"\xff", b"x"]}
    )
    frame.write_parquet(tmp_path / "log.parquet")
    log = import_log(tmp_path / "log.parquet")
    assert log.user_ids == ["a", "\u00e9"] == log.catalogue.titles() and log.timestamps.tolist() == [5, 1_704_067_200]
    assert log.info.skipped == {"columns of the log that are not a number or text": 1}


ODD = {
    "bytes": [b"\xff", b"\xfe"],
    "dates": [datetime.date(2024, 1, 1)] * 2,
    "durations": [datetime.timedelta(1)] * 2,
    "objects": [{"id": 1}, {"id": 2}],
}


@pytest.mark.parametrize("cells", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("name", ["user_id", "item_id"])
def test_columns_that_are_no_ids_are_bad_rows(tmp_path, cells, name):
    frame = pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "timestamp": [1, 2]} | {name: cells})
    frame.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=f"2 of 2 rows are not usable: got row 0 .*: {name} "):
        import_log(tmp_path / "log.parquet")


def test_times_that_are_durations_are_bad_rows(tmp_path):
    frame = pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "timestamp": ODD["durations"]})
    frame.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match="2 of 2 rows are not usable: got row 0 .*: timestamp datetime.timedelta"):
        import_log(tmp_path / "log.parquet")


@pytest.mark.parametrize("cells", [[[1], [2]], *ODD.values()])
@pytest.mark.parametrize("name", ["rating", "click", "behaviour", "impression_id"])
def test_feedback_of_another_kind_is_refused_and_not_left_out(tmp_path, cells, name):
    pl.DataFrame({"user_id": [1, 2], "item_id": [1, 2], "timestamp": [1, 2], name: cells}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=f"column '{name}' is not usable: got (List|Binary|Date|Duration|Struct)"):
        import_log(tmp_path / "log.parquet")


@pytest.mark.parametrize("scale", [0, 2, 10])
def test_decimals_of_a_database_are_ids_without_their_zeros(tmp_path, scale):
    frame = pl.DataFrame({"user_id": ["1", "20"], "item_id": ["12345678901234567890", "300"], "timestamp": [1, 2]})
    frame.with_columns(pl.col("user_id", "item_id").cast(pl.Decimal(38, scale))).write_parquet(tmp_path / "log.parquet")
    log = import_log(tmp_path / "log.parquet")
    assert log.user_ids == ["1", "20"] and log.catalogue.item_ids == ["12345678901234567890", "300"]
