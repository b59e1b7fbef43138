"""Numbers as people write them: decimal points and commas, thousands, signs of nothing."""

import polars as pl
import pytest

from genre.data.importers.log import import_log
from genre.data.importers.texts import import_texts
from genre.data.interactions import Interactions
from genre.data.numbers import numbers


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["1,234", "15,780", "987"], [1234, 15780, 987]),
        (["1,234,567", "-2,000", "+3,000.5"], [1234567, -2000, 3000.5]),
        (["12,500.75", "3.5", "1,000"], [12500.75, 3.5, 1000]),
        (["1.234.567", "1.234,5", "12.000"], [1234567, 1234.5, 12000]),
        (["1'234", "1\u00a0234.5", "1’234’567", "1\u202f234"], [1234, 1234.5, 1234567, 1234]),
        (["3,5", "4", "1,234"], [3.5, 4, 1.234]),
        (["0,123", "1,234", "10,500"], [0.123, 1.234, 10.5]),
        (["3,25", "4,5", "2"], [3.25, 4.5, 2]),
        (["1234,567", "1,234"], [1234.567, 1.234]),
        (["0.123", "1.234", ".5"], [0.123, 1.234, 0.5]),
        (["1.234", "2.500"], [1.234, 2.5]),
        (["3,5", "4.5", "1,234", "1.234"], [3.5, 4.5, None, None]),  # two kinds of decimals: these may be either
        (["1,23,4", "12,34,567", "1,2345,678", "1,,2", ","], [None] * 5),
        (["", " 7 ", None, "seven", "1e3"], [None, 7, None, None, 1000]),
    ],
)
def test_one_reader_of_numbers(texts, wanted):
    assert numbers(pl.Series(texts, dtype=pl.String)).to_list() == wanted


def frame_of(cells, column):
    return pl.DataFrame(
        {"user_id": "u", "item_id": [f"i{n}" for n in range(len(cells))], "timestamp": range(len(cells)), column: cells}
    )


@pytest.mark.parametrize("column", ["rating", "count"])
def test_thousands_in_feedback_and_in_other_columns_of_a_csv(tmp_path, column):
    frame_of(["1,234", "15,780", "12"], column).write_csv(tmp_path / "log.csv")
    log = import_log(tmp_path / "log.csv")
    assert log.column(column).tolist() == [1234, 15780, 12]
    assert log.info.notes == (f"{column}: '1,234' is read as 1234, the comma as a thousands separator",)


def test_thousands_in_items_and_in_labels(tmp_path):
    frame_of([1, 2], "rating").write_csv(tmp_path / "log.csv")
    pl.DataFrame({"item_id": ["i0", "i1"], "votes": ["1,234", "7"]}).write_csv(tmp_path / "items.csv")
    assert import_log(tmp_path / "log.csv", items=tmp_path / "items.csv").catalogue.column("votes").to_list() == [1234, 7]
    pl.DataFrame({"body": ["good", "bad"], "votes": ["15,780", "12"]}).write_csv(tmp_path / "texts.csv")
    texts = import_texts(tmp_path / "texts.csv", texts=["body"], labels=["votes"])
    assert texts.frame["votes"].to_list() == [15780, 12]
    assert texts.info.notes == ("votes: '15,780' is read as 15780, the comma as a thousands separator",)


def test_a_rating_that_may_be_two_numbers_is_a_bad_row():
    log = Interactions.from_frame(frame_of(["3,5"] * 20 + ["4.5"] * 20 + ["1,234"], "rating"))
    assert log.info.skipped == {"bad rating": 1} and "rating '1,234'" in log.info.examples[0]


@pytest.mark.parametrize("nothing", ["—", "-", "n/a", "N.A.", "#DIV/0!", "unknown", "NaN", "NULL", "?", "\\N"])
def test_a_column_of_numbers_with_a_sign_of_nothing_is_numbers(tmp_path, nothing):
    frame_of(["2.5"] * 9 + [nothing], "price").write_csv(tmp_path / "log.csv")
    log = import_log(tmp_path / "log.csv")
    assert log.frame["price"].to_list() == [2.5] * 9 + [None]
    assert log.info.notes == (f"price: 1 of 10 cells are not numbers, such as '{nothing}': empty now",)


@pytest.mark.parametrize(
    ("first", "wanted"), [("2103807459595387724", 2103807459595387724), ("9223372036854775807", 2**63 - 1), ("-7", -7)]
)
def test_whole_numbers_keep_all_of_their_digits(tmp_path, first, wanted):
    frame_of([first, "12"], "category_id").write_csv(tmp_path / "log.csv")
    assert import_log(tmp_path / "log.csv").frame.sort("row")["category_id"].to_list() == [wanted, 12]


def test_numbers_of_more_digits_than_64_bits_hold_are_ids(tmp_path):
    frame_of(["9223372036854775808", "12"], "category_id").write_csv(tmp_path / "log.csv")
    log = import_log(tmp_path / "log.csv")
    assert log.frame.sort("row")["category_id"].to_list() == ["9223372036854775808", "12"]
    assert log.info.notes == ("category_id stays text: numbers of so many digits as '9223372036854775808' are ids",)


def test_the_price_of_an_item_too(tmp_path):
    frame_of([1, 2, 3], "rating").write_csv(tmp_path / "log.csv")
    pl.DataFrame({"item_id": ["i0", "i1", "i2"], "price": ["9", "—", "12"]}).write_csv(tmp_path / "items.csv")
    log = import_log(tmp_path / "log.csv", items=tmp_path / "items.csv")
    assert log.catalogue.column("price").to_list() == [9, None, 12]
    assert log.info.notes == ("price: 1 of 3 cells are not numbers, such as '—': empty now",)


@pytest.mark.parametrize(
    ("cells", "notes"),
    [
        (["38"] * 39 + ["XL"], ("size stays text: 1 of 40 cells are not numbers, such as 'XL'",)),
        (["38"] * 8 + ["XL"] * 2, ("size stays text: 2 of 10 cells are not numbers, such as 'XL'",)),
        (["38"] * 20 + ["XL"] * 20, ()),
        (["01067", "10115"], ()),
        (["+49123", "+49124"], ()),
        (["1,2", "3,4,5"], ()),
        (["-", "-", "5"], ()),
    ],
)
def test_columns_that_stay_texts(tmp_path, cells, notes):
    frame_of(cells, "size").write_csv(tmp_path / "log.csv")
    log = import_log(tmp_path / "log.csv")
    assert log.frame["size"].to_list() == cells and log.info.notes == notes


FLAGS = {"true/false": ("true", "false"), "True/False": ("True", "False"), "TRUE/FALSE": ("TRUE", "FALSE"), "0/1": ("1", "0")}
YES_OR_NO = {"yes/no": ("yes", "no"), "Y/N": ("Y", "N"), "t/f": ("t", "f")}


@pytest.mark.parametrize("words", [*FLAGS, *YES_OR_NO])
@pytest.mark.parametrize("kind", ["csv", "tsv", "inter", "jsonl"])
def test_clicks_as_words_are_those_of_a_parquet_file(tmp_path, words, kind):
    yes, no = (FLAGS | YES_OR_NO)[words]
    frame_of([True, False, True], "click").write_parquet(tmp_path / "log.parquet")
    frame = frame_of([yes, no, f" {yes}"], "click")
    path = tmp_path / f"log.{kind}"
    if kind == "jsonl":
        frame.write_ndjson(path)
    elif kind == "inter":
        frame.rename(lambda name: f"{name}:token").write_csv(path, separator="\t")
    else:
        frame.write_csv(path, separator="," if kind == "csv" else "\t")
    assert import_log(path).digest == import_log(tmp_path / "log.parquet").digest


@pytest.mark.parametrize("words", FLAGS)
def test_labels_and_features_as_words_are_those_of_a_parquet_file(tmp_path, words):
    values, (yes, no) = [True, False, None, True], FLAGS[words]
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(4)], "new": values})
    frame_of(values, "bought").write_parquet(tmp_path / "log.parquet")
    items.write_parquet(tmp_path / "items.parquet")
    texts = pl.when("x").then(pl.lit(yes)).when(~pl.col("x")).then(pl.lit(no))
    as_words = pl.DataFrame({"x": values}).select(texts.alias("x"))["x"]
    frame_of(as_words, "bought").write_csv(tmp_path / "log.csv")
    items.with_columns(as_words.alias("new")).write_csv(tmp_path / "items.csv")
    log = import_log(tmp_path / "log.csv", items=tmp_path / "items.csv")
    wanted = import_log(tmp_path / "log.parquet", items=tmp_path / "items.parquet")
    assert log.frame["bought"].to_list() == wanted.frame["bought"].to_list() == [1, 0, None, 1]
    assert [int(v) for v in log.catalogue.column("new").drop_nulls()] == [1, 0, 1]
    assert log.column("bought").tolist()[0] == 1


def test_words_that_are_no_booleans_stay_texts_or_are_bad_rows(tmp_path):
    frame_of(["yes", "no", "yes"], "member").write_csv(tmp_path / "log.csv")
    assert import_log(tmp_path / "log.csv").frame["member"].to_list() == ["yes", "no", "yes"]
    frame_of(["true"] * 39 + ["often"], "bought").write_csv(tmp_path / "log.csv")
    log = import_log(tmp_path / "log.csv")
    assert log.frame["bought"].to_list() == ["true"] * 39 + ["often"]
    assert log.info.notes == ("bought stays text: 1 of 40 cells are neither true nor false, such as 'often'",)
    frame_of(["true"] * 39 + ["often"], "click").write_csv(tmp_path / "log.csv")
    log = import_log(tmp_path / "log.csv")
    assert log.info.skipped == {"bad click": 1} and "click 'often'" in log.info.examples[0]
    assert Interactions.from_frame(frame_of(["TRUE", "false", "4"], "rating")).frame["rating"].to_list() == [1, 0, 4]
    assert Interactions.from_frame(frame_of([True, False], "rating")).frame["rating"].to_list() == [1, 0]


def test_a_title_of_true_is_a_title(tmp_path):
    frame_of(["true", "True"], "title").write_csv(tmp_path / "log.csv")
    assert import_log(tmp_path / "log.csv").catalogue.titles() == ["true", "True"]
