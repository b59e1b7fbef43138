"""Values that mean "not known": noted by the import, left out with --missing."""

import polars as pl
import pytest

from genre.cli import main
from genre.data.importers.log import import_log
from genre.data.interactions import Interactions
from genre.errors import InputError


def frame_of(values, column="rating"):
    size = len(values)
    return pl.DataFrame({"user_id": [f"u{n % 5}" for n in range(size)], "item_id": [f"i{n}" for n in range(size)]}).with_columns(
        pl.Series("timestamp", range(size)), pl.Series(column, values)
    )


def write(frame, path):
    {"csv": frame.write_csv, "parquet": frame.write_parquet, "jsonl": frame.write_ndjson}[path.suffix[1:]](path)
    return path


STARS = [1, 2, 3, 4, 5] * 8


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("values", "mark"),
    [
        ([*STARS, -1, -1], "-1"),
        ([*range(11), -1], "-1"),
        ([0.5, 1.5, 2.5, 4.5, -99], "-99"),
        ([5, 6, 7, 8, 9, 10, 0], "0"),
        ([*STARS, *[0] * 60], "0"),
        ([-9.5, -3.0, 0.0, 4.0, 9.5, 99], "99"),
    ],
)
def test_a_lone_value_is_noted_with_the_option_that_helps(tmp_path, ending, values, mark):
    path = write(
        frame_of([float(value) if isinstance(values[0], float) else value for value in values]), tmp_path / f"log.{ending}"
    )
    log = import_log(path)
    (note,) = log.info.notes
    assert note.startswith(f"rating {mark} has {values.count(float(mark))} of {len(values)} values")
    assert note.endswith(f"If it means nothing: --missing rating={mark}") and len(log) == len(values)
    clean = import_log(path, missing=[("rating", mark)])
    assert float(mark) not in clean.column("rating") and len(clean) == len(values) - values.count(float(mark))
    assert clean.info.skipped == {"events without feedback": values.count(float(mark))} and not clean.info.notes


@pytest.mark.parametrize(
    "values",
    [
        STARS,
        [0, 1, 2, 3, 4, 5] * 4,
        [-2, -1, 0, 1, 2] * 4,
        [-1, 1] * 9,
        [-1, 0, 1] * 5,
        [0.5, 1.0, 1.5, 5.0],
        [1, 2, 3, 100],
        [3] * 9,
    ],
)
def test_ranges_without_a_mark_are_not_noted(values):
    assert Interactions.from_frame(frame_of(values)).info.notes == ()


def test_more_marks_than_bad_rows_may_be(tmp_path):
    log = import_log(write(frame_of([-1] * 90 + STARS), tmp_path / "log.csv"), missing=[("rating", "-1")], max_bad=0.0)
    assert len(log) == 40 and log.rows.tolist() and log.rows.min() == 90
    with_title = frame_of([-1, 1, 2, -1, 3]).with_columns(title=pl.Series(["A", "B", "C", "D", "E"]))
    log = import_log(write(with_title, tmp_path / "titles.csv"), missing=[("rating", "-1")])
    assert log.catalogue.titles() == ["B", "C", "E"]


@pytest.mark.parametrize(("value", "wanted"), [("-1", [None, 2.5, 3.0]), ("2.50", [-1.0, None, 3.0]), ("3", [-1.0, 2.5, None])])
def test_other_columns_become_empty(tmp_path, value, wanted):
    path = write(frame_of([-1.0, 2.5, 3.0], "price"), tmp_path / "log.csv")
    assert import_log(path, missing=[("price", value)]).frame.sort("row")["price"].to_list() == wanted


def test_words_several_values_and_items():
    frame = frame_of(["view", "?", "none", "buy"], "behaviour")
    items = pl.DataFrame({"item_id": ["i0", "i3"], "title": ["Unknown", "Thing"]})
    missing = [("behaviour", "?"), ("behaviour", "none"), ("title", "Unknown")]
    log = Interactions.from_frame(frame, items, missing=missing)
    assert log.frame["behaviour"].sort().to_list() == ["buy", "view"]
    assert log.catalogue.titles()[:2] == ["i0", "Thing"]


def test_the_command_and_what_it_refuses(tmp_path, capsys):
    path, out = write(frame_of([*STARS, -1]), tmp_path / "log.csv"), tmp_path / "out"
    assert main(["data", "import", str(path), "--out", str(out)]) == 0
    assert "--missing rating=-1" in capsys.readouterr().out
    assert main(["data", "import", str(path), "--out", str(out), "--missing", "rating=-1"]) == 0
    told = capsys.readouterr().out
    assert "skipped: events without feedback: 1\n" in told
    assert "first: events without feedback: row 40 (the first is 0): rating -1\n" in told
    assert len(Interactions.read(out)) == 40
    assert main(["data", "import", str(path), "--out", str(out), "--missing", "rating"]) == 2
    theirs = write(frame_of([*STARS, -1]).rename({"rating": "stars"}), tmp_path / "theirs.csv")
    assert len(import_log(theirs, mapping={"rating": "stars"}, missing=[("stars", "-1")])) == 40
    with pytest.raises(InputError, match="--missing is about an unknown column: got stars; expected one of user_id, item_id"):
        import_log(path, missing=[("stars", "-1")])
