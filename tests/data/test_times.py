"""Times of a log: to the microsecond, in every form that files have them."""

import json
import re
from functools import partial

import numpy as np
import pandas as pd
import polars as pl
import pytest

from genre.data.importers.log import import_log
from genre.data.interactions import Interactions
from genre.data.schema import DatasetInfo
from genre.data.splits import SplitConfig, split
from genre.data.times import times_us
from genre.data.understood import understood
from genre.errors import DataError, InputError

START = 1_709_287_200  # 2024-03-01T10:00:00Z
PAIRS = 60


def pairs(fractions=(100, 500)):
    """A view and, 400 ms later, a purchase, for each of 60 items, in the file in the wrong order; times in milliseconds."""
    rows = [
        (f"i{n}", word, (START + n) * 1000 + at)
        for n in range(PAIRS)
        for word, at in zip(("view", "buy"), fractions, strict=True)
    ]
    return pl.DataFrame(rows[::-1], schema=["item_id", "behaviour", "ms"], orient="row").with_columns(user_id=pl.lit("u"))


def iso(zone: str) -> pl.Expr:
    return pl.from_epoch("ms", time_unit="ms").dt.strftime("%Y-%m-%dT%H:%M:%S%.3f") + zone


FORMS = {
    "ms": (pl.col("ms"), "ms"),
    "us": (pl.col("ms") * 1000, "us"),
    "ns": (pl.col("ms") * 1_000_000, "ns"),
    "float seconds": (pl.col("ms") / 1000, "s"),
    "float ms": (pl.col("ms").cast(pl.Float64), "ms"),
    "decimal": ((pl.col("ms") / 1000).cast(pl.Decimal(20, 3)), "s"),
    "text seconds": ((pl.col("ms") // 1000).cast(pl.String) + "." + (pl.col("ms") % 1000).cast(pl.String).str.zfill(3), "s"),
    "iso": (iso("Z"), "s"),
    "iso with a zone": (iso("+00:00"), "s"),
    "iso with a space and a comma": (iso("").str.replace("T", " ").str.replace(".", ",", literal=True), "s"),
    "datetime ms": (pl.from_epoch("ms", time_unit="ms"), "s"),
    "datetime ns": (pl.from_epoch("ms", time_unit="ms").cast(pl.Datetime("ns")), "s"),
    "datetime in a zone": (
        pl.from_epoch("ms", time_unit="ms").dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo"),
        "s",
    ),
}


@pytest.mark.parametrize(
    ("form", "kind"),
    [(form, kind) for form in FORMS for kind in ("csv", "jsonl", "parquet")][:-3] + [("datetime in a zone", "parquet")],
)
def test_order_goes_by_the_time_as_the_file_has_it(tmp_path, form, kind):
    expr, unit = FORMS[form]
    table = pairs().with_columns(expr.alias("timestamp")).drop("ms")
    path = tmp_path / f"log.{kind}"
    if kind == "parquet":
        table.write_parquet(path)
    elif kind == "csv":
        table.write_csv(path)
    else:
        texts = table if table["timestamp"].dtype.is_numeric() else table.cast({"timestamp": pl.String})
        path.write_text("".join(json.dumps(row, default=str) + "\n" for row in texts.to_dicts()))
    log = import_log(path, time_unit=unit)
    assert log.frame["item_id"].to_list() == [f"i{n}" for n in range(PAIRS) for _ in range(2)]
    assert log.frame["behaviour"].to_list() == ["view", "buy"] * PAIRS
    assert log.times_us[:3].tolist() == [START * 10**6 + 100_000, START * 10**6 + 500_000, START * 10**6 + 1_100_000]
    assert log.timestamps[:3].tolist() == [START, START, START + 1]
    assert log.describe()["ties"] == 0.0 and not log.info.skipped


def test_two_clicks_in_one_second_are_two_events_and_one_written_twice_is_a_duplicate():
    rows = [("u", "x", 1_000_100), ("u", "x", 1_000_900), ("u", "x", 1_000_900), ("u", "x", 1_000_901)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    log = Interactions.from_frame(frame, time_unit="ms")
    assert log.times_us.tolist() == [1_000_100_000, 1_000_900_000, 1_000_901_000]
    assert log.info.skipped == {"duplicate events": 1}
    assert Interactions.from_frame(frame, time_unit="us").info.skipped == {"duplicate events": 1}


def test_a_data_set_folder_keeps_the_fractions_and_its_digest(tmp_path):
    log = Interactions.from_frame(pairs().rename({"ms": "timestamp"}), time_unit="ms")
    again = Interactions.read(log.write(tmp_path / "log"))
    assert again.frame.equals(log.frame) and again.digest == log.digest
    assert again.event_columns == ["behaviour"] and set(again.history("u")[0]) == {"item_id", "timestamp", "behaviour"}
    some = again.select(again.timestamps < START + 3)
    assert Interactions.read(some.write(tmp_path / "some")).digest == some.digest


def test_whole_seconds_give_the_frame_and_the_digest_that_they_always_gave():
    rows = [("b", "x", 20, 4.0), ("a", "y", 30, 2.0), ("a", "x", 10, 5.0)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "rating"], orient="row")
    log = Interactions.from_frame(frame, info=DatasetInfo())
    assert log.frame.columns == ["user_id", "item_id", "timestamp", "row", "rating"]
    assert log.digest == "7443548bc084d965cd155ebd88b4d3787676cb009757089d80bc498fe08efd72"
    assert Interactions.from_frame(frame.with_columns(pl.col("timestamp") * 1000), time_unit="ms").digest == log.digest


def test_a_split_by_time_cuts_between_two_events_of_one_second():
    rows = [(f"u{n}", "i", START + n * 0.001) for n in range(100)]
    log = Interactions.from_frame(pl.DataFrame(rows[::-1], schema=["user_id", "item_id", "timestamp"], orient="row"))
    found = split(log, SplitConfig(kind="temporal", valid=0.1, test=0.1))
    assert log.times_us[found.mask("train")].max() < log.times_us[found.mask("valid")].min()
    assert log.times_us[found.mask("valid")].max() < log.times_us[found.mask("test")].min()
    assert found.mask("test").sum() == 10
    assert set(log.limit(np.arange(100), 3, 0).tolist()) == {log.user_code(user) for user in ("u97", "u98", "u99")}


def test_the_reserved_column_is_checked():
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [5], "subsecond_us": [1_000_000]})
    with pytest.raises(DataError, match="column 'subsecond_us' is not usable"):
        Interactions.from_frame(frame)


@pytest.mark.parametrize(
    ("times", "unit", "step"),
    [
        (pl.Series([START + 10 * n for n in range(9)], dtype=pl.Float32), "s", "128"),
        (pl.Series([START * 1000 + 10_000 * n for n in range(9)], dtype=pl.Float32), "ms", "131,072"),
        (pl.Series([20_000_000 + 10 * n for n in range(9)], dtype=pl.Float32), "s", "2"),
        (pl.Series([60_000 + n for n in range(9)], dtype=pl.Float64).cast(pl.Float16), "s", "32"),
    ],
)
def test_floats_too_short_for_their_times_are_refused_with_their_step(tmp_path, times, unit, step):
    frame = pl.DataFrame({"user_id": ["u"] * 9, "item_id": [f"i{n}" for n in range(9)], "timestamp": times})
    with pytest.raises(DataError, match=f"cannot hold these times: got steps of {step} {unit} at .*; expected .*; export"):
        Interactions.from_frame(frame, time_unit=unit)
    if times.dtype == pl.Float32:
        frame.write_parquet(tmp_path / "log.parquet")
        with pytest.raises(DataError, match="cannot hold these times"):
            import_log(tmp_path / "log.parquet", time_unit=unit)
        with pytest.raises(DataError, match="cannot hold these times"):
            Interactions.from_frame(pd.DataFrame(frame.to_dict(as_series=False)).astype({"timestamp": "float32"}), time_unit=unit)


def test_short_floats_that_hold_their_times_are_read():
    times = pl.Series([0.5 * n for n in range(9)], dtype=pl.Float32)
    frame = pl.DataFrame({"user_id": ["u"] * 9, "item_id": [f"i{n}" for n in range(9)], "timestamp": times})
    assert Interactions.from_frame(frame).times_us.tolist() == [500_000 * n for n in range(9)]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "inter", "parquet"])
def test_times_that_went_through_a_short_float_are_reported(tmp_path, kind):
    times = pl.Series([START + 77 * n for n in range(50)], dtype=pl.Float32).cast(pl.Float64).cast(pl.Int64)
    frame = pl.DataFrame({"user_id": ["u"] * 50, "item_id": [f"i{n}" for n in range(50)], "timestamp": times})
    path = tmp_path / f"log.{kind}"
    if kind == "parquet":
        frame.write_parquet(path)
    elif kind == "jsonl":
        frame.write_ndjson(path)
    elif kind == "csv":
        frame.write_csv(path)
    else:
        typed = frame.rename({"user_id": "user_id:token", "item_id": "item_id:token", "timestamp": "timestamp:float"})
        typed.write_csv(path, separator="\t")
    (note,) = import_log(path).info.notes
    assert note.startswith("all times are multiples of 128 s, as a 32-bit float leaves them")


def test_days_and_hours_are_no_short_floats():
    for step in (86_400, 3_600, 60, 128 * 7 + 1):
        frame = pl.DataFrame({"user_id": ["u"] * 50, "item_id": [f"i{n}" for n in range(50)]})
        times = pl.Series("timestamp", [START // 86_400 * 86_400 + step * n for n in range(50)])
        assert Interactions.from_frame(frame.with_columns(times)).info.notes == ()


DAYS = [20150915 + n % 2 for n in range(30)]  # 2015-09-15 and 16
DAY_US = 1_442_275_200 * 10**6  # 2015-09-15


@pytest.mark.parametrize("odd", ["NULL", 99991231, 20151301, 20150230, 0, 7])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "float.parquet", "tsv"])
def test_days_as_numbers_are_days_and_the_odd_cell_is_the_bad_row(tmp_path, kind, odd):
    if odd == "NULL" and "parquet" in kind:
        odd = None
    cells = [*DAYS, odd]
    path = tmp_path / f"log.{kind}"
    if "parquet" in kind:
        dtype = pl.Float64 if kind == "float.parquet" else pl.Int32
        frame = pl.DataFrame({"user_id": "u", "item_id": [f"i{n}" for n in range(31)]})
        frame.with_columns(pl.Series("timestamp", cells, dtype=dtype)).write_parquet(path)
    elif kind == "jsonl":
        rows = [{"user_id": "u", "item_id": f"i{n}", "timestamp": cell} for n, cell in enumerate(cells)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        sign = "\t" if kind == "tsv" else ","
        rows = [sign.join(("u", f"i{n}", str(cell))) for n, cell in enumerate(cells)]
        path.write_text("\n".join([sign.join(("user_id", "item_id", "timestamp")), *rows]) + "\n")
    log = import_log(path)
    assert log.times_us.tolist() == [DAY_US] * 15 + [DAY_US + 86_400 * 10**6] * 15
    assert log.info.skipped == {"bad timestamp": 1} and log.info.examples[0].startswith("bad timestamp: row 30 ")


@pytest.mark.parametrize(
    ("cells", "second"),
    [
        ([20150915, 20150916], 1_442_275_200),
        ([20150915123000, 20150916123000], 1_442_320_200),
        (["20150915123000", "20150916"], 1_442_320_200),
        (["20150915.0", "2015-09-16"], 1_442_275_200),
        ([2015091512, 2015091600], 1_442_318_400),
        (["201509151230", "201509160000"], 1_442_320_200),
        ([201509151230.0, 201509160000.0], 1_442_320_200),
    ],
)
@pytest.mark.parametrize("unit", ["s", "ms"])
def test_siblings_of_days_as_numbers(cells, second, unit):
    frame = pl.DataFrame({"user_id": ["u"] * 2, "item_id": ["a", "b"], "timestamp": cells})
    assert Interactions.from_frame(frame, time_unit=unit).timestamps.min() == second


def test_seconds_of_2033_are_no_hours():
    seconds = [2015093012 + 3600 * hour for hour in range(40)]
    frame = pl.DataFrame({"user_id": ["u"] * 40, "item_id": [f"i{hour}" for hour in range(40)], "timestamp": seconds})
    assert Interactions.from_frame(frame).timestamps.tolist() == seconds


def test_numbers_that_are_no_days_stay_seconds(tmp_path):
    frame = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "timestamp": [20150930, 30_000_000, 40_000_000]})
    assert Interactions.from_frame(frame).timestamps.tolist() == [20150930, 30_000_000, 40_000_000]
    august = Interactions.from_frame(frame.with_columns(timestamp=pl.Series([20150915, 20150916, 20150917]) - 0), stored=True)
    assert august.timestamps.tolist() == [20150915, 20150916, 20150917]  # a data set folder holds seconds
    assert Interactions.read(august.write(tmp_path / "log")).digest == august.digest


NOON = 1_503_662_400  # 2017-08-25T12:00:00Z
DAY = NOON - 43_200

WRITTEN = {
    "2017-08-25 12:00:00": NOON,
    "2017-08-25 12:00:00 UTC": NOON,
    "2017-08-25 12:00:00.25 UTC": NOON + 0.25,
    "2017-08-25 12:00:00 GMT": NOON,
    "2017-08-25 12": NOON,
    "2017-08-25T12": NOON,
    "2017-08-25T12:00": NOON,
    "2017-08-25T12:00Z": NOON,
    "2017-08-25T12:00:00Z": NOON,
    "2017-08-25T12:00:00z": NOON,
    "2017-08-25T14:00:00+0200": NOON,
    "2017-08-25T14:00:00+02:00": NOON,
    "2017-08-25T14:00:00+02": NOON,
    "2017-08-25 14:00+02:00": NOON,
    "2017-08-25 04:30:00.5 -0730": NOON + 0.5,
    "2017-08-25 14:00:00 GMT+0200": NOON,
    "20170825T120000Z": NOON,
    "20170825 120000": NOON,
    "2017-8-25 12:0:0": NOON,
    "2017-08-25 12:00 PM": NOON,
    "2017-08-25 12:00:00 pm": NOON,
    "2017/8/25": DAY,
    "2017/08/25": DAY,
    "2017/08/25 12:00:00": NOON,
    "2017/8/25 12:00": NOON,
    "2017.08.25": DAY,
    "2017.8.25 12:00:00": NOON,
    "Fri Aug 25 05:00:00 -0700 2017": NOON,
    "Fri Aug 25 12:00:00 2017": NOON,
    "Fri Aug 25 12:00:00 UTC 2017": NOON,
    "Fri Aug 25 2017 05:00:00 GMT-0700 (Pacific Daylight Time)": NOON,
    "Fri, 25 Aug 2017 12:00:00 +0000": NOON,
    "Fri, 25 Aug 2017 14:00:00 +0200": NOON,
    "Fri, 25 Aug 2017 12:00:00 GMT": NOON,
    "Friday, August 25, 2017 at 12:00 PM": NOON,
    "25 Aug 2017 12:00:00 +0000": NOON,
    "25/Aug/2017:05:00:00 -0700": NOON,
    "25-Aug-2017": DAY,
    "25 August 2017": DAY,
    "2017-Aug-25": DAY,
    "Aug 25, 2017": DAY,
    "August 25th, 2017": DAY,
} | {f"2017-08-25 12:00:00.{'123456789'[:n]}": NOON + int("123456"[:n]) / 10 ** min(n, 6) for n in range(1, 10)}


@pytest.mark.parametrize(("text", "seconds"), WRITTEN.items())
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_times_as_they_are_written(tmp_path, text, seconds, kind):
    frame = pl.DataFrame({"user_id": "u", "item_id": ["a", "b"], "timestamp": [text, "2020-01-01"]})
    path = tmp_path / f"log.{kind}"
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[kind](path)
    log = import_log(path)
    assert log.times_us.tolist() == [round(seconds * 10**6), 1_577_836_800 * 10**6] and not log.info.skipped


def test_one_column_may_have_them_all_and_the_odd_cells_are_the_bad_rows():
    texts = [*WRITTEN] * 40
    wanted = [round(seconds * 10**6) for seconds in WRITTEN.values()] * 40
    bad = ["03/01/2024", "25/12/2024", "01.03.2024", "25-Aug-17", "2017-13-01", "2017-02-30", "2017-08", "12:00:00"]
    bad += ["Fri Aug 25 12:00:00 PDT 2017", "2017-08-25 12:00:00 +02:75", "2017-08-25 25:00:00", "gestern", "25. August"]
    for cells in (texts + bad, bad * 400 + texts):
        found = times_us(pl.Series(cells))
        assert found.drop_nulls().to_list() == wanted and found.null_count() == len(cells) - len(texts)


FORMS_OF_DAYS = {
    "%d/%m/%Y": ["03/01/2024", "4/1/2024", " 25/12/2024 "],
    "%m/%d/%Y": ["01/03/2024", "1/4/2024", "12/25/2024"],
    "%d.%m.%y": ["03.01.24", "04.01.24", "25.12.24"],
    "%d%m%Y": [3012024, 4012024, 25122024],
    "%d/%m/%Y %H:%M:%S.%f": ["03/01/2024 00:00:00.00", "04/01/2024 00:00:00.000000", "25/12/2024 00:00:00.0"],
    "%d/%m/%Y %H:%M:%S%z": ["03/01/2024 02:00:00+02:00", "04/01/2024 00:00:00+0000", "24/12/2024 23:00:00-0100"],
}


@pytest.mark.parametrize("form", FORMS_OF_DAYS)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "inter"])
def test_a_form_that_is_named_decides_what_the_day_is(tmp_path, form, kind):
    cells = [f"{cell:08}" if isinstance(cell, int) else cell for cell in FORMS_OF_DAYS[form]] * 10
    frame = pl.DataFrame({"user_id": "u", "item_id": [f"i{n}" for n in range(31)], "timestamp": [*cells, "2024-03-01"]})
    path = tmp_path / f"log.{kind}"
    {
        "csv": frame.write_csv,
        "jsonl": frame.write_ndjson,
        "parquet": frame.write_parquet,
        "inter": partial(frame.rename(lambda name: f"{name}:token").write_csv, separator="\t"),
    }[kind](path)
    log = import_log(path, time_format=form)
    assert sorted(set(log.timestamps.tolist())) == [1_704_240_000, 1_704_326_400, 1_735_084_800]
    assert log.info.skipped == {"bad timestamp": 1} and "row 30 " in log.info.examples[0]
    assert log.info.times.startswith(f"dates as {form}, ")
    with pytest.raises(DataError, match=f"'2024-03-01'; expected a time as {re.escape(form)}; repair"):
        import_log(path, time_format=form, max_bad=0.0)


@pytest.mark.parametrize("form", ["%d/%m/%Y %H:%M:%S.%f", "%d/%m/%Y %H:%M:%S%.f"])
def test_fractions_of_a_named_form_are_fractions(form, recwarn):
    found = times_us(pl.Series(["03/01/2024 00:00:00.5", "03/01/2024 00:00:00.000007"]), form)
    assert found.to_list() == [1_704_240_000_500_000, 1_704_240_000_000_007] and not recwarn.list


@pytest.mark.parametrize(
    ("odd", "note"),
    [
        ("9999-12-31 23:59:59", "1 of 21 times are after 2100, up to the year 9999: such marks are no times"),
        ("2999-01-01", "1 of 21 times are after 2100, up to the year 2999: such marks are no times"),
        ("1970-01-01", "1 of 21 times are 0, 1970-01-01; if that means nothing: --missing timestamp=VALUE"),
        ("2031-01-01", None),
    ],
)
def test_times_that_stand_for_none_are_noted(odd, note):
    times = [f"2024-03-{day:02}" for day in range(1, 21)] + [odd]
    frame = pl.DataFrame({"user_id": "u", "item_id": [f"i{n}" for n in range(21)], "timestamp": times})
    assert Interactions.from_frame(frame).info.notes == (() if note is None else (note,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_format": "%d/%m/%Y %S,%f"}, "--time-format is not usable: got '%d/%m/%Y %S,%f'; expected a day"),
        ({"time_format": "dd/mm/yyyy"}, "--time-format is not usable: got 'dd/mm/yyyy'; expected a form such as %d/%m/%Y"),
        ({"time_format": "%H:%M"}, "--time-format is not usable: got '%H:%M'; expected a day and perhaps a time, such as"),
        ({"time_format": "%d/%m/%Y %H"}, "--time-format is not usable: got '%d/%m/%Y %H'; expected a day"),
        ({"time_format": "%d/%m/%Q"}, "--time-format is not usable: got '%d/%m/%Q'; expected a day"),
        ({"time_format": "%Y", "time_unit": "ms"}, "--time-format is for texts: got --time-unit ms too"),
        ({"time_format": "%Y", "format": "lists"}, "--time-format is not usable: got --format lists"),
    ],
)
def test_forms_that_are_refused(tmp_path, options, message):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu,i,03/01/2024\n")
    with pytest.raises(InputError, match=message):
        import_log(tmp_path / "log.csv", **options)


@pytest.mark.parametrize("cell", ["03/01/2024", "3.1.24", "25-12-2024 10:00"])
def test_an_ambiguous_day_names_the_option(tmp_path, cell):
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\nu,i,{cell}\n")
    with pytest.raises(DataError, match=f"timestamp '{cell}', where the day or the month may come first: --time-format %d/%m/%Y"):
        import_log(tmp_path / "log.csv")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_milliseconds_name_the_option_in_every_format(tmp_path, kind):
    frame = pl.DataFrame({"user_id": "u", "item_id": "i", "timestamp": [START * 1000]})
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[kind](tmp_path / f"log.{kind}")
    with pytest.raises(DataError, match="which looks like milliseconds: --time-unit ms"):
        import_log(tmp_path / f"log.{kind}")


@pytest.mark.parametrize(
    ("numbers", "kind"),
    [([2014, 2015, 1999], "years"), ([201405, 199912], "months"), ([41640.5, 45000], "days of a spreadsheet")],
)
def test_numbers_that_are_coarser_times_are_doubted(numbers, kind):
    frame = pl.DataFrame({"user_id": "u", "item_id": [f"i{n}" for n in range(len(numbers))], "timestamp": numbers})
    doubt = understood(Interactions.from_frame(frame))["time"]["doubt"]
    assert doubt == f"the numbers look like {kind}, and are read as seconds: write dates, such as 2024-03-01"
    small = frame.with_columns(timestamp=pl.Series(range(len(numbers))))
    assert understood(Interactions.from_frame(small))["time"]["doubt"] == ""
