"""Public logs by name: every kind of file has the right events, order, times and feedback, or one line says why not."""

import gzip
import re
import shlex
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from data.public_items import TABLES, write_table
from data.public_logs import BAD, EVENTS, LOGS, VARIANTS, Kind, write_log
from genre.cli import main
from genre.data.importers.log import FORMATS, import_log
from genre.data.importers.public import PUBLIC
from genre.data.interactions import Interactions
from genre.errors import DataError
from standins import ROOT

CASES = [(name, variant) for name in LOGS for variant in VARIANTS if not ("yambda" in name and variant == "crlf")]
GUIDE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\| `(\w+)` \| `genre (data import [^`]+)` \|", GUIDE, flags=re.MULTILINE)

Events = dict[str, list[tuple[object, ...]]]


def found(log: Interactions, feedback: str | None) -> Events:
    """(item, microseconds, feedback) of each user's events, in the log's order."""
    events: Events = {}
    names = ["user_id", "item_id"] + ([feedback] if feedback else [])
    for row, time in zip(log.frame.select(names).rows(), log.times_us.tolist(), strict=True):
        events.setdefault(row[0], []).append((row[1], time, row[2] if feedback else None))
    return events


def test_every_format_is_made_and_more_than_sixty_files():
    assert {LOGS[name]().format for name in LOGS} == set(PUBLIC) and set(PUBLIC) <= set(FORMATS)
    assert len(CASES) > 120


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_the_right_events_in_the_right_order(tmp_path, name, variant):
    kind = LOGS[name]()
    path = write_log(kind, tmp_path, variant)
    if variant == "extra" and not kind.header:
        with pytest.raises(DataError, match=r"is not a log of \w+: got \d cells in the first line; expected \d: \w+, "):
            import_log(path, format=kind.format)
        return
    log = import_log(path, format=kind.format)
    assert log.info.skipped == ({"bad timestamp": 1} if variant == "bad" else {})
    assert found(log, kind.feedback) == kind.wanted(but=BAD if variant == "bad" else None)
    assert ("channel" in log.frame.columns) == (variant == "extra" and name != "amazon")


@pytest.mark.parametrize("name", LOGS)
def test_a_file_of_another_name_is_known_by_its_columns(tmp_path, name):
    kind = replace(LOGS[name](), file="log" + "".join(LOGS[name]().file.rpartition(".")[1:]))
    log = import_log(write_log(kind, tmp_path), format=kind.format)
    assert len(log) == EVENTS
    if name not in ("diginetica", "yambda-sequential"):
        assert found(log, kind.feedback) == kind.wanted()


@pytest.mark.parametrize("name", LOGS)
def test_an_unmistakable_name_needs_no_format(tmp_path, name):
    kind = LOGS[name]()
    path = write_log(kind, tmp_path, "gz")
    if not PUBLIC[kind.format].sure:
        with pytest.raises(DataError):  # never taken for something that it may not be
            import_log(path)
        return
    log = import_log(path)
    assert log.info.format == kind.format and found(log, kind.feedback) == kind.wanted()
    assert "item_id" in log.info.mapping  # theirs, for the report


@pytest.mark.parametrize("name", [name for name in LOGS if not name.startswith("amazon")])
def test_another_file_is_refused_with_its_columns(tmp_path, name):
    kind = LOGS[name]()
    ending = ".jsonl" if kind.style == "python" else "".join(kind.file.rpartition(".")[1:])
    frame = pl.DataFrame({"who": ["a", "b"], "what": ["x", "y"]})
    path = tmp_path / f"strange{ending}"
    if kind.style == "parquet":
        frame.write_parquet(path)
    elif kind.style == "csv":
        frame.write_csv(path, separator=kind.separator)
    else:
        frame.write_ndjson(path)
    with pytest.raises(DataError, match="is not a|differ in length|several columns") as caught:
        import_log(path, format=kind.format)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TABLES)
def test_the_table_beside_a_log(tmp_path, name):
    table = TABLES[name]()
    kind = LOGS[table.log]()
    log = import_log(write_log(kind, tmp_path), format=kind.format, **{table.option: write_table(table, tmp_path)})
    frame, key = (log.catalogue.frame, "item_id") if table.option == "items" else (log.users, "user_id")
    row = frame.filter(pl.col(key) == table.wanted[key]).row(0, named=True)
    assert {column: row[column] for column in table.wanted} == table.wanted
    assert not set(table.gone) & set(frame.columns)
    assert found(log, kind.feedback) == kind.wanted()


def movielens(folder: Path, version: str, variant: str) -> Path:
    """1M has `::` and Latin-1, 32M is CSV with quoted titles; both have the year in the title."""
    cells = [[f"{n % 5 + 1}", f"{n % 7 + 1}", f"{n % 5 + 1}", f"{978300000 + n}"] for n in range(EVENTS)]
    if variant == "bad":
        cells[BAD][3] = "soon"
    between, ending = ("::", "dat") if version == "1m" else (",", "csv")
    movies = [[f"{i + 1}", f"Misérables, Les {i} (1995)", "Drama|Musical"] for i in range(7)]
    if version == "32m":
        cells = [["userId", "movieId", "rating", "timestamp"], *cells]
        movies = [["movieId", "title", "genres"], *([id, f'"{title}"', genres] for id, title, genres in movies)]
    encoding, end = "latin-1" if version == "1m" else "utf-8", "\r\n" if variant == "crlf" else "\n"
    for name, rows in (("ratings", cells[:1] + cells[:0:-1] if variant == "shuffled" else cells), ("movies", movies)):
        (folder / f"{name}.{ending}").write_bytes("".join(between.join(row) + end for row in rows).encode(encoding))
    return folder


@pytest.mark.parametrize("variant", ["plain", "crlf", "bad", "shuffled"])
@pytest.mark.parametrize("version", ["1m", "32m"])
def test_movielens(tmp_path, version, variant):
    log = import_log(movielens(tmp_path, version, variant))
    wanted: Events = {}
    for n in (n for n in range(EVENTS) if not (variant == "bad" and n == BAD)):
        wanted.setdefault(f"{n % 5 + 1}", []).append((f"{n % 7 + 1}", (978300000 + n) * 1_000_000, n % 5 + 1))
    assert found(log, "rating") == wanted and log.catalogue.frame.row(0) == ("1", "Misérables, Les 0", 1995, "Drama, Musical")
    assert log.info.format == "movielens" and log.info.skipped == ({"bad timestamp": 1} if variant == "bad" else {})


def test_games_without_a_title_have_the_name_of_their_app(tmp_path):
    table = TABLES["steam"]()
    log = import_log(write_log(LOGS["steam"](), tmp_path), items=write_table(table, tmp_path))
    titles = dict(log.catalogue.frame.select("item_id", "title").rows())
    assert titles["725282"] == "Lost O'Summoner 2" and titles["725283"] == "Lost O'S 3"
    assert log.info.skipped == {"items without an id": 1, "items without a row": 1}


def test_what_is_not_known_of_a_video_is_empty(tmp_path):
    table = TABLES["kuairec"]()
    log = import_log(write_log(LOGS["kuairec"](), tmp_path), items=write_table(table, tmp_path))
    assert log.catalogue.frame.select("title", "tags").null_count().row(0) == (6, 6)


def test_items_that_the_log_describes(tmp_path):
    lastfm = import_log(write_log(LOGS["lastfm"](), tmp_path)).catalogue.frame
    assert set(lastfm.columns) == {"item_id", "title", "artist", "artist_id"} and lastfm["title"].null_count() == 0
    assert '"Live at Leeds 1' in lastfm["title"].to_list()
    rees46 = import_log(write_log(LOGS["rees46"](), tmp_path), format="rees46").catalogue.frame
    row = rees46.filter(pl.col("item_id") == "44600060").row(0, named=True)
    assert row["category_id"] == 2103807459595387724 and row["category"] == "appliances.environment.water_heater"


def test_the_category_of_a_click_is_the_clicks(tmp_path):
    log = import_log(write_log(LOGS["yoochoose-clicks"](), tmp_path))
    assert set(log.frame["category"].to_list()) == {"0", "S", "12", "2089046289"}


def test_a_lone_quote_in_the_first_line(tmp_path):
    line = 'user_000001\t2009-05-04T23:08:57Z\tf1b1\t"Weird Al\tt{}\tParolibre\n'
    path = tmp_path / "userid-timestamp-artid-artname-traid-traname.tsv"
    path.write_text(line.format(1) + line.format(2), encoding="utf-8")
    log = import_log(path)
    assert len(log) == 2 and log.catalogue.frame["artist"].to_list() == ['"Weird Al'] * 2


def test_dates_without_a_year_are_of_the_year_after_the_latest(tmp_path):
    kind = LOGS["steam-australian"]()
    note = import_log(write_log(kind, tmp_path)).info.notes[-1]
    assert "dates name no year" in note and "read as 2016, the year after the latest named" in note
    leap = "{'user_id': 'a', 'reviews': [{'posted': 'Posted %s', 'item_id': '1', 'recommend': True}]}\n"
    path = tmp_path / "australian_user_reviews.json"
    path.write_text(leap % "February 29." + leap % "December 31, 2015.", encoding="utf-8")
    assert import_log(path).frame["timestamp"].to_list() == [1451520000, 1456704000]
    path.write_text(leap % "February 29." * 2, encoding="utf-8")
    with pytest.raises(DataError, match=r"timestamp 'Posted February 29\.'"):  # nothing says of which year
        import_log(path)


def test_zero_stars_on_goodreads_are_none(tmp_path):
    kind = LOGS["goodreads"]()
    for n in range(0, EVENTS, 8):
        kind.events[n][0]["rating"] = 0
    log = import_log(write_log(kind, tmp_path))
    assert log.info.skipped == {"events without feedback": 5} and log.frame["rating"].min() == 1
    assert len(import_log(write_log(kind, tmp_path), missing=[("rating", "-1")])) == EVENTS  # the user's own word wins
    for n in range(0, EVENTS, 4):
        kind.events[n][0]["is_read"] = False
    read = import_log(write_log(kind, tmp_path), format="goodreads", mapping={"rating": "is_read"})
    assert len(read) == EVENTS and read.frame["rating"].sum() == EVENTS - 10  # 0 of another column is a value


def test_seconds_that_look_like_days_are_seconds(tmp_path):
    """20,230,405 s after an unknown day is no April of 2023."""
    log = import_log(write_log(LOGS["yambda-likes"](), tmp_path), format="yambda")
    assert log.timestamps.max() < 21_000_000 and "does not tell" in log.info.times


def test_a_mapping_of_ones_own_wins(tmp_path):
    path = write_log(LOGS["kuairec"](), tmp_path)
    log = import_log(path, format="kuairec", mapping={"rating": "play_duration", "share": "watch_ratio"})
    assert set(log.column("rating").tolist()) == {13838.0} and log.frame.sort("row")["share"][8] == 1.0
    path = write_log(LOGS["diginetica"](), tmp_path)
    users = import_log(path, format="diginetica", mapping={"user_id": "userId"})
    assert users.user_ids == ["7", "NA"] and any("'NA'" in note for note in users.info.notes)
    path = write_log(LOGS["yelp"](), tmp_path)
    kept = import_log(path, format="yelp", mapping={"review": "text"}, items=write_table(TABLES["yelp"](), tmp_path))
    assert "2 hours" in kept.column("review")[0] and kept.catalogue.frame["title"][0] == "Abby Rappoport, LAC 0"


def test_a_mapping_without_a_format_is_one_of_any_table(tmp_path):
    path = write_log(LOGS["kuairec"](), tmp_path)
    log = import_log(path, mapping={"item_id": "video_id", "rating": "watch_ratio"})
    assert log.info.format == "csv" and {"time", "date"} <= set(log.frame.columns)


def test_options_of_ones_own_win(tmp_path):
    kind = LOGS["retailrocket"]()
    frame = pl.read_csv(write_log(kind, tmp_path)).with_columns(pl.col("timestamp") // 1000)
    frame.write_csv(tmp_path / "events.csv", separator="|")
    log = import_log(tmp_path / "events.csv", format="retailrocket", time_unit="s", order="file", separator="|")
    assert log.timestamps.min() == 1_567_300_000 and log.info.order == "file"


def test_clicks_and_buys_in_one_folder_are_one_log(tmp_path):
    for name in ("yoochoose-clicks", "yoochoose-buys"):
        write_log(LOGS[name](), tmp_path)
    (tmp_path / "dataset-README.txt").write_text("nothing", encoding="utf-8")
    log = import_log(tmp_path)
    assert sorted(log.frame["behaviour"].value_counts().rows()) == [("buy", EVENTS), ("click", EVENTS)]
    assert log.info.notes == ("rows 0 to 39 are those of yoochoose-clicks.dat", "rows 40 to 79 are those of yoochoose-buys.dat")


def test_train_valid_and_test_of_amazon_are_one_log(tmp_path):
    kind = LOGS["amazon-csv"]()
    for part, rows in {"train": kind.events[:30], "valid": kind.events[30:35], "test": kind.events[35:]}.items():
        write_log(replace(kind, events=rows, file=f"Baby_Products.{part}.csv"), tmp_path, "gz")
    log = import_log(tmp_path, format="amazon")
    assert found(log, "rating") == kind.wanted()
    assert [note.split()[-1] for note in log.info.notes] == [
        f"Baby_Products.{part}.csv.gz" for part in ("train", "valid", "test")
    ]


def test_a_flat_copy_of_otto_is_in_seconds(tmp_path):
    """The copy that most notebooks of its competition use: a row per event, whole seconds, kinds as numbers."""
    frame = pl.DataFrame({"session": [0, 0, 1], "aid": [5, 6, 5], "ts": [1659304800, 1659304801, 1659304802], "type": [0, 1, 2]})
    frame.write_parquet(tmp_path / "train.parquet")
    log = import_log(tmp_path / "train.parquet", format="otto")
    assert log.timestamps.tolist() == frame["ts"].to_list() and log.frame["behaviour"].to_list() == ["0", "1", "2"]
    frame.with_columns(pl.col("ts") * 1000).write_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="looks like milliseconds: --time-unit ms"):
        import_log(tmp_path / "train.parquet", format="otto")


def test_files_that_tell_the_same_twice_are_not_one_log(tmp_path):
    for name in ("yambda-listens", "yambda-multi"):
        write_log(LOGS[name](), tmp_path)
    with pytest.raises(DataError, match=r"holds several logs of yambda: got multi_event.parquet, listens.parquet; expected one"):
        import_log(tmp_path, format="yambda")
    for name in ("lastfm", "hm"):
        write_log(LOGS[name](), tmp_path)
    with pytest.raises(DataError, match="holds several logs: got hm, lastfm; expected files of one format"):
        import_log(tmp_path)
    assert len(import_log(tmp_path, format="hm")) == EVENTS
    (tmp_path / LOGS["lastfm"]().file).unlink()
    with pytest.raises(DataError, match="holds no log of lastfm: got no such file"):
        import_log(tmp_path, format="lastfm")


@pytest.mark.parametrize("text", ["{'user': 'a', 'n': open('x')}", "{'user': 'a'", "{u'a': " + "[" * 3000 + "}", "{'a', 'b'}"])
def test_a_line_that_python_did_not_print_is_a_bad_row(tmp_path, text):
    lines = [f"{{u'username': u'u{n % 3}', u'product_id': u'{n}', u'date': u'2017-12-{1 + n % 28:02}'}}" for n in range(40)]
    path = tmp_path / "steam_reviews.json.gz"
    path.write_bytes(gzip.compress("\n".join([*lines[:5], text, *lines[5:]]).encode()))
    log = import_log(path)
    assert len(log) == 40 and log.info.skipped == {"lines that are not a JSON object": 1}
    assert log.frame["row"].max() == 40 and 5 not in log.frame["row"]


def test_lines_of_dicts_are_read_some_at_a_time(tmp_path):
    """Fields that only some of them have, and cells of two types, are those of one table."""
    lines = [{"username": f"u{n % 50}", "product_id": n, "date": "2017-12-01", "text": "long"} for n in range(20_010)]
    lines[-1] |= {"hours": 0.5, "product_id": "x"}
    path = tmp_path / "steam_reviews.json"
    path.write_text("\n".join(map(repr, lines)), encoding="utf-8")
    log = import_log(path).frame.sort("row")
    assert log.height == 20_010 and log["hours"].drop_nulls().to_list() == [0.5]
    assert log["item_id"].to_list() == [str(line["product_id"]) for line in lines]


@pytest.mark.parametrize("ending", [".json", ".json.gz"])
def test_a_broken_line_of_json_is_a_bad_row(tmp_path, ending):
    kind = LOGS["yelp"]()
    lines = write_log(kind, tmp_path).read_text(encoding="utf-8").splitlines()
    lines[BAD] = lines[BAD][:50]
    data = ("\ufeff" + "\r\n".join(lines)).encode()
    path = tmp_path / f"yelp_academic_dataset_review{ending}"
    path.write_bytes(gzip.compress(data) if ending.endswith(".gz") else data)
    log = import_log(path)
    assert found(log, "rating") == kind.wanted(but=BAD) and log.info.skipped == {"lines that are not a JSON object": 1}


def test_every_command_of_the_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert {name for name, _ in COMMANDS} == set(PUBLIC)
    for name, command in COMMANDS:
        for maker in LOGS.values():
            kind: Kind = maker()
            if kind.format == name and kind.file in command:
                write_log(kind, tmp_path, "gz" if f"{kind.file}.gz" in command else "plain")
        for make in TABLES.values():
            if make().file in command:
                write_table(make(), tmp_path)
        assert main(shlex.split(command)) == 0, command
        assert Interactions.read(tmp_path / command.split("--out ")[1]).info.format == name
