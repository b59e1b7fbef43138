"""An import tells what it understood, before it writes: columns, times, order, ids that look alike, what was left out."""

import json
from datetime import date, datetime

import numpy as np
import polars as pl
import pytest

import worlds
from genre.cli import main
from genre.data.importers.log import import_log
from genre.data.interactions import Interactions
from genre.data.reading import alike_notes, time_reading, time_step, unit_hint
from genre.data.understood import lines, understood
from genre.errors import DataError

SECONDS = "seconds since 1970, in UTC"
ZONED, UTC = "dates with a zone, turned into UTC", "dates without a zone, taken for UTC"


@pytest.mark.parametrize(
    ("cells", "unit", "reading"),
    [
        ([881250949, 881250950], "s", SECONDS),
        ([881250949.5], "s", SECONDS),
        (["881250949", "8.8e8"], "s", SECONDS),
        (["1588687728923"], "ms", "milliseconds since 1970, in UTC"),
        ([1_588_687_728_923_000_000], "ns", "nanoseconds since 1970, in UTC"),
        (["2019-11-01 00:00:00 UTC"], "s", ZONED),
        (["2014-04-07T10:51:09.277Z"], "s", ZONED),
        (["2024-03-01T10:00:00+01:00", "2024-03-01T10:00:00 +01"], "s", ZONED),
        (["Fri Aug 25 13:55:02 -0700 2017"], "s", ZONED),
        (["2024-03-01 10:00", "2014-12-06"], "s", UTC),
        (["12-01-2017"], "s", UTC),
        (
            ["2024-03-01T10:00:00Z", "2024-03-01 10:00"],
            "s",
            "dates, 1 of 2 with a zone, turned into UTC, the others taken for UTC",
        ),
        ([20150930, 20151001], "s", "days as numbers without a zone, taken for UTC"),
        (["20150930", "NULL"], "s", "days as numbers without a zone, taken for UTC"),
        ([date(2024, 3, 1)], "s", UTC),
        ([datetime(2024, 3, 1, 10)], "s", UTC),
    ],
)
def test_the_kind_of_times(cells, unit, reading):
    assert time_reading(pl.Series("timestamp", cells), unit) == reading


def test_a_zone_of_the_column():
    times = pl.Series([datetime(2024, 3, 1, 10)]).dt.replace_time_zone("Asia/Tokyo")
    assert time_reading(times, "s") == "dates in Asia/Tokyo, turned into UTC"


@pytest.mark.parametrize(
    ("times", "step"),
    [
        ([0, 86_400_000_000], "day"),
        ([3_600_000_000, 86_400_000_000], "hour"),
        ([60_000_000, 3_600_000_000], "minute"),
        ([61_000_000], "second"),
        ([61_400_000], "millisecond"),
        ([61_000_001], "microsecond"),
    ],
)
def test_the_step_of_times(times, step):
    assert time_step(np.array(times)) == step


@pytest.mark.parametrize(
    ("seconds", "reading", "hint"),
    [
        ([1_588_687], "milliseconds since 1970, in UTC", "all before 1980: as seconds they would end in 2020, --time-unit s"),
        ([1_588], "microseconds since 1970, in UTC", "all before 1980: as seconds they would end in 2020, --time-unit s"),
        (
            [1_588_687],
            "microseconds since 1970, in UTC",
            "all before 1980: as milliseconds they would end in 2020, --time-unit ms",
        ),
        ([1_588_687_728], "seconds since 1970, in UTC", ""),
        ([7], "seconds since 1970, in UTC", ""),
        ([7], UTC, ""),
        ([7], "milliseconds since 1970, in UTC", ""),
    ],
)
def test_a_doubt_about_the_unit(seconds, reading, hint):
    assert unit_hint(np.array(seconds), reading) == hint


def notes(ids, others=()):
    events = pl.Series("user_id", ids, dtype=pl.String)
    return alike_notes(events, events.unique(), pl.Series(others, dtype=pl.String))


@pytest.mark.parametrize(
    ("ids", "shown"),
    [
        (["ABC", "ABC", "abc", "x"], "2 ids differ by case alone, such as 'ABC' and 'abc' (2 and 1 events)"),
        (["Öl", "öl", "öl"], "2 ids differ by case alone, such as 'öl' and 'Öl' (2 and 1 events)"),
        (["007", "7", "08"], "2 ids differ by leading zeros alone, such as '007' and '7' (1 and 1 events)"),
        (
            ["u01", "u1", "u1", "u001"],
            "3 ids differ by leading zeros alone, such as 'u1' and 'u001' and 'u01' (2 and 1 and 1 events)",
        ),
        (
            ["u\u200b1", "u1"],
            "2 ids differ by blanks and signs that do not show alone, such as 'u1' and 'u\\u200b1' (1 and 1 events)",
        ),
        (["a b", "a  b"], "2 ids differ by blanks and signs that do not show alone, such as 'a  b' and 'a b' (1 and 1 events)"),
        (
            ["e\u0301", "\u00e9"],
            "2 ids differ by blanks and signs that do not show alone, such as 'e\\u0301' and 'é' (1 and 1 events)",
        ),
        (
            ["\uff11\uff12", "12"],
            "2 ids differ by blanks and signs that do not show alone, such as '12' and '１２' (1 and 1 events)",
        ),
    ],
)
def test_ids_that_look_alike(ids, shown):
    assert notes(ids) == [f"user_id: {shown}; kept apart: if they are one, write them alike"]


@pytest.mark.parametrize("ids", [["1", "10", "100"], ["a", "b", "0"], ["0", "00a", "b"], ["1.05", "1.5"], ["x-1", "x1", "x_1"]])
def test_ids_that_only_resemble_each_other(ids):
    assert notes(ids) == []


def test_three_pairs_are_shown_the_most_events_first():
    (line,) = notes(["A", "a", "B", "b", "b", "C", "c", "D", "d", "d", "d"])
    assert line.startswith("user_id: 8 ids differ by case alone, such as 'd' and 'D' (3 and 1 events); 'b' and 'B'")
    assert line.count(" events)") == 3


def test_an_id_of_a_table_that_no_event_has():
    assert notes(["7", "8"], ["007", "8"])[0].startswith(
        "user_id: 2 ids differ by leading zeros alone, such as '7' and '007' (1 and 0"
    )


@pytest.fixture
def shop(tmp_path):
    """Twelve good events, four bad ones, two users that look alike; items with text, a number and a vector."""
    events = [
        {"who": "ABC" if n % 2 else "abc", "sku": f"i{n % 4}", "at": 1_588_687_000_500 + 1000 * (n // 2)} for n in range(12)
    ]
    events = [each | {"stars": str(1 + n % 5), "bought": n % 2, "page": None if n else "home"} for n, each in enumerate(events)]
    events += [
        events[0] | {"at": 1_588_687_100_000 + n, "stars": word} for n, word in enumerate(["good", "bad", "ugly", "so so"])
    ]
    items = [{"sku": f"i{n}", "title": f"Item {n}", "price": 1.5 * n, "image": [0.1, 0.2]} for n in range(4)]
    pl.DataFrame(events).write_ndjson(tmp_path / "events.jsonl")
    pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    maps = ["user_id=who", "item_id=sku", "timestamp=at", "rating=stars"]
    options = ["--time-unit", "ms", "--max-bad", "0.5", *(word for pair in maps for word in ("--map", pair))]
    return ["data", "import", str(tmp_path / "events.jsonl"), "--items", str(tmp_path / "items.parquet"), *options]


UNDERSTOOD = [
    "read as csv: user_id ← who, item_id ← sku, timestamp ← at",
    "times: milliseconds since 1970, in UTC; whole milliseconds",
    "span: 2020-05-05T13:56:40Z to 2020-05-05T13:56:45Z (0.0 days)",
    "order: equal times in hash order; 0.0% of events are such ties",
    "columns of interactions: rating ← stars (feedback: 1 to 5), bought (label or context: 0 to 1), "
    "page (label or context: home, 91.7% empty)",
    "columns of items: title (text), price (number), image (vector: 2 numbers)",
    "columns of users: none",
    "skipped: bad rating: 4",
    "first: bad rating: row 12 (the first is 0): rating 'good'; row 13: 'bad'; row 14: 'ugly'; then 15",
    "note: user_id: 2 ids differ by case alone, such as 'ABC' and 'abc' (6 and 6 events); "
    "kept apart: if they are one, write them alike",
]


def test_the_report_comes_before_the_data_set(shop, tmp_path, capsys):
    out, result = tmp_path / "shop", tmp_path / "understood.json"
    assert main([*shop, "--out", str(out), "--json", str(result)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["Interactions(events: 12 events, 2 users, 4 items)", *UNDERSTOOD, f"ready: {out}"]
    found = json.loads(result.read_text(encoding="utf-8"))
    assert found["columns"]["interactions"]["rating"] == {"from": "stars", "role": "feedback", "values": "1 to 5"}
    assert found["time"]["step"] == "millisecond" and found["skipped"] == {"bad rating": 4} and found["out"] == str(out)
    again = understood(Interactions.read(out))
    assert lines(again) == said[:-1] and again | {"out": str(out)} == found


def test_a_dry_run_writes_nothing(shop, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    for out in ([], ["--out", str(tmp_path / "shop")]):
        assert main([*shop, "--dry-run", *out]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[1:] == [*UNDERSTOOD, "dry run: nothing is written"] and sorted(tmp_path.iterdir()) == before


def test_what_cannot_be_written_is_refused_before_the_log_is_read(shop, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    for options, message in (
        ([], "no folder is named: got no --out; expected --out DIR, or --dry-run"),
        (["--out", str(tmp_path / "other")], "exists already"),
        (["--dry-run", "--out", str(tmp_path / "other")], "exists already"),
        (["--out", str(tmp_path / "new"), "--json", str(tmp_path)], "--json is a folder"),
    ):
        assert main([*shop, *options]) == 2
        told = capsys.readouterr()
        assert message in told.err and not told.out and "reading" not in told.err


def test_labelled_texts_are_told_too(tmp_path, capsys):
    pl.DataFrame({"body": ["good thing", "bad thing"], "stars": [5, 1], "shop": ["a", "b"]}).write_csv(tmp_path / "t.csv")
    columns = ["--text", "review", "--label", "stars", "--map", "review=body", "--map", "group_id=shop"]
    assert main(["data", "import", str(tmp_path / "t.csv"), *columns, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "read as csv: group_id ← shop\n" in said and "columns of texts: review ← body (text), stars (label: 1 to 5)" in said
    assert said.endswith("dry run: nothing is written\n") and "times:" not in said and not (tmp_path / "t").exists()


def test_ties_count_only_what_no_order_decides(tmp_path):
    frame = pl.DataFrame({"user_id": "u", "item_id": ["a", "b", "c", "d"], "timestamp": [1, 1, 1, 2], "n": [1, 2, 2, 3]})
    frame.write_csv(tmp_path / "log.csv")
    shares = {
        order: understood(import_log(tmp_path / "log.csv", order=order))["order"]["ties"] for order in ("hash", "n", "file")
    }
    assert shares == {"hash": 0.75, "n": 0.5, "file": 0.0}
    shown = frame.drop("n").with_columns(impression_id=pl.Series(["p", "p", "p", "q"]))
    assert not Interactions.from_frame(shown).undecided.any()
    mixed = frame.drop("n").with_columns(impression_id=pl.Series(["p", "p", "q", "q"]))
    assert Interactions.from_frame(mixed).undecided.tolist() == [True, True, True, False]


def test_a_data_set_without_a_record_of_its_import_is_understood_too():
    log = Interactions.from_frame(pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [86400]}))
    stored = Interactions.from_frame(log.frame, stored=True)
    assert "times: whole days" in lines(understood(stored)) and stored.info.times == ""
    assert "times: seconds since 1970, in UTC; whole days" in lines(understood(log))


def test_a_reader_of_its_own_tells_the_times_of_the_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    worlds.mind()
    worlds.amazon()
    news = understood(import_log("MINDsmall", format="mind"))
    assert news["time"]["read_as"] == UTC and news["time"]["step"] == "second"
    reviews = understood(import_log("All_Beauty.jsonl.gz", format="amazon"))
    assert reviews["time"]["read_as"] == "milliseconds since 1970, in UTC"
    assert reviews["keys"] == {"user_id": "user_id", "item_id": "parent_asin", "timestamp": "timestamp"}


EVENTS = [{"user_id": "u", "item_id": f"i{n}", "timestamp": 10**9 + n} for n in range(20)]


def test_three_broken_lines_are_shown_with_the_reason_of_each(tmp_path):
    lines = [json.dumps(event) for event in EVENTS]
    lines[2:2] = ['{"user_id": "u"', "7", '"text"', "[1]"]
    (tmp_path / "log.jsonl").write_text("\n".join(lines), encoding="utf-8")
    log = import_log(tmp_path / "log.jsonl", max_bad=0.5)
    (shown,) = (line for line in log.info.examples if line.startswith("lines that are not a JSON object"))
    assert [f"line {n}" in shown for n in (3, 4, 5)] == [True] * 3 and shown.endswith("; then 6")
    assert len(log) == 20 and log.info.skipped == {"lines that are not a JSON object": 4}
    with pytest.raises(DataError, match="4 of 24 rows are not usable: got log.jsonl, line 3") as refused:
        import_log(tmp_path / "log.jsonl")
    assert "line 4" not in str(refused.value)


def test_three_elements_that_are_no_rows_are_shown(tmp_path):
    (tmp_path / "log.json").write_text(json.dumps([*EVENTS, 7, "x", None, [1]]), encoding="utf-8")
    log = import_log(tmp_path / "log.json", max_bad=0.5)
    (shown,) = log.info.examples
    assert shown.endswith('log.json, element 20 (the first is 0): 7; element 21: "x"; element 22: null; then 23')
