import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genre.data.interactions import DatasetInfo, Interactions
from genre.data.order import tie_keys
from genre.errors import DataError, DiskError, GenreError, InputError


def make(rows, columns=("user_id", "item_id", "timestamp", "rating"), **options):
    return Interactions.from_frame(pl.DataFrame(rows, schema=list(columns), orient="row"), **options)


SMALL = [("b", "x", 20, 4.0), ("a", "y", 30, 2.0), ("a", "x", 10, 5.0), ("b", "y", 5, 1.0), ("a", "z", 20, 3.0)]


def test_order_is_user_then_time_and_arrays_agree():
    log = make(SMALL)
    assert log.user_ids == ["a", "b"]
    assert log.frame["item_id"].to_list() == ["x", "z", "y", "y", "x"]
    assert log.rows.tolist() == [2, 4, 1, 3, 0]
    assert log.user_offsets.tolist() == [0, 3, 5]
    assert log.user_codes.dtype == np.int32 and log.user_codes.tolist() == [0, 0, 0, 1, 1]
    assert [log.catalogue.item_ids[code] for code in log.item_codes] == log.frame["item_id"].to_list()
    assert log.timestamps.dtype == np.int64 and log.timestamps.tolist() == [10, 20, 30, 5, 20]
    assert log.column("rating").tolist() == [5, 3, 2, 1, 4]
    assert log.history("b") == [
        {"item_id": "y", "timestamp": 5, "rating": 1.0},
        {"item_id": "x", "timestamp": 20, "rating": 4.0},
    ]


def test_ties_follow_the_sha256_of_user_and_item():
    import hashlib

    items = [f"i{n}" for n in range(30)]
    log = make([("u", item, 7, 1.0) for item in items])
    wanted = sorted(items, key=lambda item: hashlib.sha256(b"u\x1f" + item.encode()).digest())
    assert log.frame["item_id"].to_list() == wanted
    keys = tie_keys(["u"], log.catalogue.item_ids, log.user_codes, log.item_codes)
    assert keys.dtype == np.uint64 and (np.diff(keys.astype(object)) > 0).all()


def test_equal_user_item_and_time_follow_the_row():
    log = make([("u", "x", 7, 1.0), ("u", "x", 7, 2.0), ("u", "x", 7, 1.0)])
    assert log.rows.tolist() == [0, 1]
    assert log.info.skipped == {"duplicate events": 1}
    assert log.info.examples == ("duplicate events: row 2",)


events = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("vwxyz"), st.integers(0, 4), st.sampled_from([1.0, 2.0, 5.0])),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(events, st.randoms())
def test_shuffled_rows_give_the_same_order(rows, random):
    """With `row`, nothing changes; without it, only events of equal user, item and time may change places."""
    numbered = [(*row, place) for place, row in enumerate(rows)]
    shuffled = random.sample(numbered, len(numbered))
    columns = ("user_id", "item_id", "timestamp", "rating", "row")
    first, second = make(numbered, columns), make(shuffled, columns)
    assert first.frame.equals(second.frame) and first.digest == second.digest
    blind = make([row[:4] for row in shuffled])
    keys = ["user_id", "item_id", "timestamp"]
    assert blind.frame.select(keys).equals(first.frame.select(keys))
    assert blind.catalogue.item_ids == first.catalogue.item_ids


@settings(max_examples=40, deadline=None)
@given(events)
def test_order_equals_a_plain_sort(rows):
    import hashlib

    unique = list(dict.fromkeys(rows))

    def key(row):
        return row[0], row[2], hashlib.sha256(f"{row[0]}\x1f{row[1]}".encode()).digest(), rows.index(row)

    assert make(rows).frame.drop("row").rows() == sorted(unique, key=key)


def test_pandas_and_lazy_frames_and_float_ids():
    frame = pd.DataFrame({"user_id": [1.0, 2.0], "item_id": [10, 11], "timestamp": [5, 6], "rating": [3, 4]})
    log = Interactions.from_frame(frame)
    assert log.user_ids == ["1", "2"] and log.catalogue.item_ids == ["10", "11"]
    lazy = pl.DataFrame({"user_id": ["1"], "item_id": ["10"], "timestamp": [5]}).lazy()
    assert len(Interactions.from_frame(lazy)) == 1


def test_times_in_every_form_are_seconds():
    texts = ["881250949", "881250949.9", "1997-12-04T15:55:49Z", "1997-12-04 15:55:49"]
    texts.append("1997-12-04T16:55:49+01:00")
    log = make([("u", f"i{n}", text) for n, text in enumerate(texts)], ("user_id", "item_id", "timestamp"))
    assert log.timestamps.tolist() == [881250949] * 5
    day = make([("u", "i", "1997-12-04")], ("user_id", "item_id", "timestamp"))
    assert day.timestamps.tolist() == [881193600]
    milli = make([("u", "i", 881250949123)], ("user_id", "item_id", "timestamp"), time_unit="ms")
    assert milli.timestamps.tolist() == [881250949]


def test_bad_rows_are_counted_and_named():
    rows = [("u", f"i{n}", n, 3.0) for n in range(97)]
    text = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "rating"], orient="row").cast(pl.String)
    bad = pl.DataFrame(
        {
            "user_id": ["u", "", "u"],
            "item_id": ["p", "q", "r"],
            "timestamp": ["5", "6", "soon"],
            "rating": ["good", "1", "2"],
        }
    )
    log = Interactions.from_frame(pl.concat([text, bad]))
    assert len(log) == 97
    assert log.info.skipped == {"bad user_id": 1, "bad timestamp": 1, "bad rating": 1}
    assert log.info.examples == (
        "bad user_id: row 98 (the first is 0): user_id ''",
        "bad timestamp: row 99 (the first is 0): timestamp 'soon'",
        "bad rating: row 97 (the first is 0): rating 'good'",
    )
    assert "p" not in log.catalogue


@pytest.mark.parametrize("rating", ["nan", "inf", "2e6", "-1e7", "", None])
def test_absurd_ratings_are_bad(rating):
    rows = [("u", f"i{n}", n, "3,5") for n in range(40)] + [("u", "bad", 50, rating)]
    log = make(rows)
    assert log.info.skipped == {"bad rating": 1}
    assert set(log.column("rating")) == {3.5}


def test_click_behaviour_and_extra_columns():
    rows = [("u", "a", 1, 1, "view", 2.5, "x"), ("u", "b", 2, 0, "cart", None, None)]
    columns = ("user_id", "item_id", "timestamp", "click", "behaviour", "seconds", "device")
    log = make(rows, columns)
    assert log.frame["click"].dtype == pl.Int8 and log.event_columns == ["click", "behaviour", "seconds", "device"]
    assert log.column("behaviour").tolist() == ["view", "cart"] and log.column("click").tolist() == [1.0, 0.0]
    assert np.isnan(log.column("seconds")[1]) and log.column("device")[1] is None
    assert log.info.roles["interactions"]["click"] == "feedback" and log.info.roles["interactions"]["device"] == "event"
    with pytest.raises(DataError, match=r"1 of 2 rows are not usable: got row 1 \(the first is 0\): click 2; expected 0"):
        make([("u", "a", 1, 1), ("u", "b", 1, 2)], ("user_id", "item_id", "timestamp", "click"))


def test_columns_that_no_event_can_hold_are_counted():
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [1], "tags": [["x", "y"]]})
    log = Interactions.from_frame(frame)
    assert log.info.skipped == {"columns of the log that are not a number or text": 1}
    assert log.event_columns == []


def frame_of(**columns):
    base = {"user_id": ["u", "v"], "item_id": ["a", "b"], "timestamp": [1, 2]}
    return pl.DataFrame({k: v for k, v in (base | columns).items() if v is not None})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Interactions.from_frame(frame_of(user_id=None, userId=["u", "v"])),
            "column 'user_id' is missing: got item_id, timestamp, userId; expected user_id, item_id, timestamp; "
            "name yours with --map user_id=userId",
        ),
        (
            lambda: Interactions.from_frame(frame_of().head(0)),
            "the log is empty: got 0 events; expected at least one event",
        ),
        (
            lambda: Interactions.from_frame(frame_of(rating=["good", "4"])),
            "1 of 2 rows are not usable: got row 0 (the first is 0): rating 'good'; expected a number between -1e6 and "
            "1e6; repair them, or allow more than 5% bad rows with --max-bad",
        ),
        (
            lambda: Interactions.from_frame(frame_of(rating=["good", "bad"]), max_bad=1.0),
            "2 of 2 rows are not usable: got row 0 (the first is 0): rating 'good'; expected a number between -1e6 and "
            "1e6; repair them, or allow more than 100% bad rows with --max-bad",
        ),
        (
            lambda: Interactions.from_frame(frame_of(timestamp=[1700000000000, 1700000000001])),
            "2 of 2 rows are not usable: got row 0 (the first is 0): timestamp 1700000000000, which looks like "
            "milliseconds: --time-unit ms; expected seconds since 1970, or an ISO date; repair them, or allow more "
            "than 5% bad rows with --max-bad",
        ),
        (
            lambda: Interactions.from_frame(frame_of(), mapping={"rating": "stars"}),
            "no column 'stars' to take rating from: got user_id, item_id, timestamp; expected a column 'stars'; map "
            "one of those: rating=THEIRS",
        ),
        (
            lambda: Interactions.from_frame([1, 2]),
            "the log is not a table: got list; expected a polars or a pandas frame",
        ),
        (
            lambda: Interactions.from_frame(frame_of(), items=pl.DataFrame({"id": ["a"]})),
            "column 'item_id' is missing in the items: got id; expected item_id and other columns; name yours with "
            "--map item_id=THEIRS",
        ),
        (
            lambda: Interactions.from_frame(frame_of(row=[3, 3])),
            "column 'row' is not usable: got 1 different of 2; expected the place in the source file: a different "
            "whole number from 0 for every event; give the column another name, such as --map line=row",
        ),
        (
            lambda: Interactions.from_frame(frame_of()).history("w"),
            "unknown user: got 'w'; expected one of the 2 users of the log; give a known user_id, or a history",
        ),
        (
            lambda: Interactions.from_frame(frame_of()).column("rating"),
            "the log has no column 'rating': got no event columns; expected a column 'rating'; choose one of those, or "
            "import the log with --map rating=THEIRS",
        ),
        (
            lambda: Interactions.from_frame(frame_of()).select(np.zeros(2, dtype=bool)),
            "no event is left: got a mask that is false everywhere; expected at least one event",
        ),
    ],
)
def test_wrong_input_ends_in_one_line(call, message):
    with pytest.raises(GenreError) as caught:
        call()
    assert str(caught.value) == message
    assert isinstance(caught.value, DataError) and caught.value.exit_code == 2


def test_mapping_renames_in_all_tables():
    log = Interactions.from_frame(
        pl.DataFrame({"uid": ["u"], "sku": ["a"], "when": [1], "stars": [4], "rating": ["old"]}),
        items=pl.DataFrame({"sku": ["a"], "label": ["Thing"]}),
        users=pl.DataFrame({"uid": ["u"], "age": [30]}),
        mapping={"user_id": "uid", "item_id": "sku", "timestamp": "when", "rating": "stars", "title": "label"},
    )
    assert log.catalogue.titles() == ["Thing"] and log.users is not None and log.users["age"].to_list() == [30]
    assert log.column("rating").tolist() == [4.0]
    assert log.info.skipped == {"columns replaced by the mapping": 1}


def test_one_column_may_serve_twice_and_two_may_swap():
    frame = pl.DataFrame({"user_id": ["u"], "sku": ["a"], "rating": [1], "timestamp": [4]})
    log = Interactions.from_frame(frame, mapping={"item_id": "sku", "title": "sku", "rating": "timestamp", "timestamp": "rating"})
    assert log.catalogue.frame.rows() == [("a", "a")] and log.column("rating").tolist() == [4.0]
    assert log.timestamps.tolist() == [1] and log.info.skipped == {}


def test_feature_columns_of_any_kind(tmp_path):
    items = pl.DataFrame(
        {
            "item_id": [1, 2],
            "new": [True, None],
            "day": pl.Series(["2024-03-01", None]).str.to_date(),
            "tags": [["a", "b"], None],
            "box": [{"w": 1}, {"w": 2}],
        }
    )
    log = Interactions.from_frame(frame_of(item_id=[1, 2]), items)
    assert log.info.skipped == {"columns of the items that are not a number, text or list": 1}
    assert log.catalogue.texts(["new", "day", "tags"]) == ["true; 2024-03-01; a, b", ""]
    assert log.catalogue.dense("new").tolist() == [[1], [0]]
    assert Interactions.read(log.write(tmp_path / "set")).digest == log.digest


def test_dates_of_pandas_with_and_without_a_zone():
    when = pd.to_datetime(["2024-03-01T12:00:00Z"])
    for times in (when, when.tz_convert("Europe/Berlin"), when.tz_localize(None)):
        frame = pd.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": times})
        assert Interactions.from_frame(frame).timestamps.tolist() == [1709294400]


def test_items_and_users_are_completed_and_counted():
    log = make(
        SMALL,
        items=pl.DataFrame({"item_id": ["z", "z", "w", "x", None], "title": ["Z", "again", "W", "X", "no id"]}),
        users=pl.DataFrame({"user_id": ["b", "ghost"], "age": [3, 4]}),
    )
    assert log.catalogue.item_ids == ["z", "w", "x", "y"]
    assert log.catalogue.frame["title"].to_list() == ["Z", "W", "X", None]
    assert log.catalogue.titles() == ["Z", "W", "X", "y"]
    assert log.users is not None and log.users.rows() == [("a", None), ("b", 3)]
    assert log.info.skipped == {
        "items without an id": 1,
        "items given twice": 1,
        "items without a row": 1,
        "users without events": 1,
        "users without a row": 1,
    }


def test_item_columns_of_the_log_become_items():
    rows = [("a", "x", 1, "X", "red"), ("b", "x", 2, "X!", "blue"), ("b", "y", 3, None, "red")]
    columns = ("user_id", "item_id", "timestamp", "title", "colour")
    log = make(rows, columns)
    assert log.catalogue.frame.rows() == [("x", "X"), ("y", None)] and log.event_columns == ["colour"]
    assert log.info.skipped == {"items with several values of title": 1}
    assert make(rows, columns, item_columns=["colour"]).catalogue.frame.columns == ["item_id", "colour"]
    kept = make(rows, columns, items=pl.DataFrame({"item_id": ["x", "y"]}))
    assert kept.event_columns == ["title", "colour"]
    with pytest.raises(DataError, match="the log has no item column 'size'"):
        make(rows, columns, item_columns=["size"])


def test_write_and_read_are_equal(tmp_path):
    log = make(
        SMALL,
        items=pl.DataFrame({"item_id": ["x", "y", "z"], "title": ["X", "Y", None], "vector": [[1.0, 2.0], [0.5, 0.5], None]}),
        users=pl.DataFrame({"user_id": ["a", "b"], "age": [1, 2]}),
        info=DatasetInfo(name="small", licence="mine", source="here"),
    )
    folder = log.write(tmp_path / "deep" / "set", extra={"kg": pl.DataFrame({"item_id": ["x"]})})
    again = Interactions.read(folder)
    assert again.digest == log.digest and again.frame.equals(log.frame) and again.info == log.info
    assert sorted(path.name for path in folder.iterdir()) == [
        "dataset.json",
        "interactions.parquet",
        "items.parquet",
        "kg.parquet",
        "users.parquet",
    ]
    log.write(folder)
    assert not (folder / "kg.parquet").exists(), "an earlier data set is replaced whole"
    assert [path.name for path in folder.parent.iterdir()] == ["set"]


def test_digest_sees_content_only():
    log = make(SMALL)
    assert log.digest != make([*SMALL[:-1], ("a", "z", 20, 3.5)]).digest
    assert log.digest != make(SMALL, items=pl.DataFrame({"item_id": list("xyz"), "title": list("XYZ")})).digest
    assert log.digest == make(SMALL, name="other").digest


def test_foreign_folders_are_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="exists already: got a folder with other files; expected a new folder, or one that"):
        make(SMALL).write(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), pl.exceptions.ComputeError("No space left on device")])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, error):
    def full(self, path, **options):
        path.write_bytes(b"half")
        raise error

    make(SMALL).write(tmp_path / "set")
    before = Interactions.read(tmp_path / "set").digest
    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(DiskError, match="cannot write .*got [nN]o space left on device; .*nothing half-written is left"):
        make(SMALL[:3]).write(tmp_path / "set")
    with pytest.raises(DiskError):
        make(SMALL).write(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert Interactions.read(tmp_path / "set").digest == before


def test_damaged_and_missing_folders(tmp_path):
    with pytest.raises(DataError, match="is not a data set folder: got no such folder"):
        Interactions.read(tmp_path / "none")
    with pytest.raises(DataError, match="is not a data set folder: got no interactions.parquet"):
        Interactions.read(tmp_path)
    folder = make(SMALL).write(tmp_path / "set")
    (folder / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset.json is damaged: got Expecting property name"):
        Interactions.read(folder)
    (folder / "items.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"items.parquet cannot be read"):
        Interactions.read(folder)


def test_select_keeps_the_catalogue_and_counts_users_anew():
    log = make(SMALL, users=pl.DataFrame({"user_id": ["a", "b"], "age": [1, 2]}))
    kept = log.select(log.user_codes == 1)
    assert kept.user_ids == ["b"] and kept.user_codes.tolist() == [0, 0] and kept.user_offsets.tolist() == [0, 2]
    assert kept.catalogue is log.catalogue and kept.users is not None and kept.users["age"].to_list() == [2]
    assert kept.history("b") == log.history("b")
    with pytest.raises(DataError, match=r"a mask does not fit the log: got int64\[2\]; expected bool\[5\]"):
        log.select(np.array([0, 1]))


def test_arrays_are_not_writable():
    log = make(SMALL)
    log.column("rating")[0] = 9.0
    assert log.column("rating")[0] == 5.0, "a column is a copy"
    for array in (log.user_codes, log.item_codes, log.user_offsets, log.timestamps, log.rows):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_describe_with_hand_figures():
    facts = make(SMALL, items=pl.DataFrame({"item_id": ["x", "y", "z", "w"], "title": ["X", "", None, "W"]})).describe()
    assert (facts["events"], facts["users"], facts["items"], facts["items_without_events"]) == (5, 2, 4, 1)
    assert facts["time_span"] == {"first": "1970-01-01T00:00:05Z", "last": "1970-01-01T00:00:30Z", "days": 0.0}
    assert facts["ties"] == 0 and facts["density"] == round(5 / 6, 6)
    assert facts["events_per_user"] == {"min": 2, "median": 2.5, "mean": 2.5, "max": 3}
    assert facts["feedback"] == {"rating": {"values": {"1": 1, "2": 1, "3": 1, "4": 1, "5": 1}, "empty": 0}}
    assert facts["item_columns"] == {"title": 0.5}
    assert make([("u", "a", 1, 1.0), ("u", "b", 1, 1.0), ("u", "c", 2, 1.0)]).describe()["ties"] == round(2 / 3, 6)


BIG = """
import sys
import numpy as np, polars as pl
from genre.data.interactions import Interactions
log = Interactions.read(sys.argv[1])
assert len(log.item_codes) == len(log) > 9_900_000
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak memory from /proc")
def test_ten_million_events_in_two_gib(tmp_path):
    """10 M events, 77 % of them tied, from Parquet to arrays."""
    rng, n = np.random.default_rng(0), 10_000_000
    frame = pl.DataFrame(
        {
            "user_id": rng.integers(0, 200_000, n).astype(str),
            "item_id": (rng.pareto(1.2, n) * 50).astype(np.int64).clip(0, 50_000).astype(str),
            "timestamp": rng.integers(400, 434, n),
            "row": np.arange(n),
            "rating": rng.integers(1, 6, n).astype(float),
        }
    )
    frame.write_parquet(tmp_path / "interactions.parquet")
    command = [sys.executable, "-c", BIG, str(tmp_path)]
    assert float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) < 2
