"""Shapes of files: no header, JSON arrays, a row per session, a line of items per user."""

import gzip
import json
import re

import polars as pl
import pytest

from genre.cli import main
from genre.data.importers.log import import_log
from genre.data.importers.texts import import_texts
from genre.data.interactions import Interactions
from genre.errors import DataError, InputError

ROWS = [("1", f"i{n}", 1_700_000_000 + n, 1 + n % 5) for n in range(6)]
NAMES = ["user_id", "item_id", "timestamp", "rating"]
FRAME = pl.DataFrame(ROWS, schema=NAMES, orient="row")
DIGEST = Interactions.from_frame(FRAME).digest


def write(path, text):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def lines(sign, head=None):
    rows = [sign.join(map(str, row)) for row in ROWS]
    return "\n".join(([head] if head else []) + rows) + "\n"


def events_of(log):
    return log.frame.select("user_id", "item_id", "timestamp").rows()


# No header


@pytest.mark.parametrize("sign", [",", "\t", ";", "|", " "])
@pytest.mark.parametrize("name", ["log.csv", "log.txt", "log.dat", "u.data", "log.csv.gz"])
def test_a_file_without_a_header_gets_its_columns(tmp_path, sign, name):
    assert import_log(write(tmp_path / name, lines(sign)), columns=NAMES).digest == DIGEST


def test_the_command_takes_columns_and_their_names_may_be_mapped(tmp_path):
    path = write(tmp_path / "log.tsv", lines("\t"))
    columns = ["--columns", "who, what,when,stars"]
    maps = [part for pair in zip(NAMES, ["who", "what", "when", "stars"], strict=True) for part in ("--map", "=".join(pair))]
    assert main(["data", "import", str(path), *columns, *maps, "--out", str(tmp_path / "out")]) == 0
    assert Interactions.read(tmp_path / "out").digest == DIGEST
    body = ["--text", "body", "--label", "stars", "--columns", "body,stars"]
    write(tmp_path / "texts.csv", "good,5\nbad,1\n")
    assert main(["data", "import", str(tmp_path / "texts.csv"), *body, "--out", str(tmp_path / "texts")]) == 0


def test_a_header_that_is_named_again_is_no_row(tmp_path):
    path = write(tmp_path / "log.csv", lines(",", ",".join(NAMES)))
    assert import_log(path, columns=NAMES).digest == DIGEST
    order_only = write(tmp_path / "pairs.txt", "user_id item_id\n1 a\n1 b\n")
    assert import_log(order_only, columns=["user_id", "item_id"], order="file").user_ids == ["1"]


def test_a_dirty_file_without_a_header(tmp_path):
    path = write(tmp_path / "log.csv", lines(",") + "1,i7,5,3,x\n2,i8,1700000000,4\n")
    log = import_log(path, columns=NAMES, max_bad=0.2)
    assert log.info.skipped == {"lines that are not a row (too many cells)": 1} and len(log) == 7 and log.rows.tolist()[-1] == 7


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            NAMES[:3],
            r"log.csv does not fit --columns: got 3 names for 4 cells; expected a name for each .* \(1,i0,1700000000,1\)",
        ),
        ([*NAMES, "x"], "log.csv does not fit --columns: got 5 names for 4 cells"),
        (["user_id", "", "a", "b"], "--columns is not usable: got user_id,,a,b; expected a name for each column, no two alike"),
        (["user_id", "item_id", "item_id", "b"], "--columns is not usable: got user_id,item_id,item_id,b"),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path, columns, message):
    with pytest.raises((DataError, InputError), match=message):
        import_log(write(tmp_path / "log.csv", lines(",")), columns=columns)


@pytest.mark.parametrize(("kind", "format"), [("jsonl", None), ("json", None), ("parquet", None), ("csv", "movielens")])
def test_columns_are_those_of_a_csv(tmp_path, kind, format):
    path = write(tmp_path / f"log.{kind}", "{}")
    with pytest.raises(InputError, match="--columns names the columns of a CSV"):
        import_log(path, format=format, columns=NAMES)


@pytest.mark.parametrize("text", [lines(","), "a,b,2024-03-01 10:00:00\nc,d,2024-03-02 10:00:00\n", "u1,i1,3.5\nu2,i2,4\n"])
@pytest.mark.parametrize("mapping", [None, {"user_id": "who"}])
def test_a_first_line_of_data_asks_for_columns(tmp_path, text, mapping):
    names = len(text.split("\n")[0].split(","))
    wanted = f"log.csv seems to have no header: got a first line with '.*'; expected .*; name all {names} columns in order: --col"
    with pytest.raises(DataError, match=wanted):
        import_log(write(tmp_path / "log.csv", text), mapping=mapping)
    with pytest.raises(DataError, match=wanted):
        import_texts(write(tmp_path / "log.csv", text), texts=["body"], labels=["stars"])


def test_headers_with_numbers_are_headers(tmp_path):
    path = write(tmp_path / "log.csv", lines(",", "0,1,2,3"))  # as pandas writes a frame without names
    assert import_log(path, mapping=dict(zip(NAMES, "0123", strict=True))).digest == DIGEST
    with pytest.raises(DataError, match="columns 'user_id', 'item_id', 'timestamp' are missing: got 0, 1, 2, 3"):
        import_log(path)
    path = write(tmp_path / "year.csv", lines(",", "user_id,item_id,timestamp,2024"))
    assert import_log(path).frame["2024"].to_list() == FRAME["rating"].to_list()


@pytest.mark.parametrize("sign", ["\\t", "tab"])
def test_a_tab_by_its_name(tmp_path, sign):
    assert import_log(write(tmp_path / "log.csv", lines("\t", "\t".join(NAMES))), separator=sign).digest == DIGEST
    with pytest.raises(
        InputError,
        match="--separator is not usable: got '::'; expected one plain character, or tab, space, comma, semicolon, pipe;",
    ):
        import_log(write(tmp_path / "log.dat", lines("::")), separator="::", columns=NAMES)


# JSON

DICTS = FRAME.to_dicts()
JSON = {
    "lines": "\n".join(json.dumps(row) for row in DICTS),
    "lines with blanks": "\n\n".join(json.dumps(row) for row in DICTS) + "\n\n",
    "array": json.dumps(DICTS),
    "pretty array": json.dumps(DICTS, indent=2),
    "mixed array": json.dumps([{**row, "rating": str(row["rating"])} if n else row for n, row in enumerate(DICTS)]),
    "array of few keys": json.dumps([{"more": 1, **DICTS[0]}, *DICTS[1:]]),
    "columns with an index": json.dumps({name: dict(enumerate(FRAME[name].to_list())) for name in NAMES}),
    "columns of lists": json.dumps(FRAME.to_dict(as_series=False), indent=1),
    "byte order mark": "\ufeff" + json.dumps(DICTS),
}


@pytest.mark.parametrize("form", JSON)
@pytest.mark.parametrize("kind", ["json", "jsonl", "ndjson", "json.gz"])
def test_json_in_any_form(tmp_path, form, kind):
    log = import_log(write(tmp_path / f"log.{kind}", JSON[form]))
    found = Interactions.from_frame(log.frame.drop("more", strict=False))
    assert found.digest == DIGEST and not log.info.skipped


def test_elements_that_are_no_objects_are_bad_rows(tmp_path):
    path = write(tmp_path / "log.json", json.dumps([DICTS[0], 7, *DICTS[1:], ["x"]]))
    log = import_log(path, max_bad=0.3)
    assert log.info.skipped == {"elements that are not a JSON object": 2} and log.rows.tolist() == [0, 2, 3, 4, 5, 6]
    assert 'log.json, element 1 (the first is 0): 7; element 7: ["x"]' in log.info.examples[0]
    with pytest.raises(DataError, match="2 of 8 rows are not usable"):
        import_log(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "log.json is empty: got an array without objects"),
        ('[{"user_id": 1}, {"user', "log.json is not a whole array: got .*; expected one array of JSON objects"),
        ("[1, 2]", "log.json, line 1 is not an object"),
        ('{"user_id": 1', "log.json, line 1 is not JSON"),
        ('"text"', "log.json, line 1 is not an object"),
    ],
)
def test_json_that_is_no_table(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        import_log(write(tmp_path / "log.json", text))


# A row per session

OTTO = {"user_id": "session", "item_id": "aid", "timestamp": "ts", "behaviour": "type"}
SESSIONS = [
    {
        "session": 11,
        "events": [
            {"aid": 5, "ts": 1_661_724_000_278, "type": "clicks"},
            {"aid": 6, "ts": 1_661_724_000_100, "type": "carts"},
        ],
    },
    {"session": 12, "events": []},
    {"session": 13, "events": [{"aid": 5, "ts": 1_661_724_000_278, "type": "orders"}]},
]
EVENTS = [("11", "6", 1_661_724_000), ("11", "5", 1_661_724_000), ("13", "5", 1_661_724_000)]


def write_rows(path, rows):
    if path.suffix == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_sessions_with_a_list_of_events(tmp_path, kind):
    log = import_log(write_rows(tmp_path / f"log.{kind}", SESSIONS), mapping=OTTO, time_unit="ms")
    assert events_of(log) == EVENTS and log.rows.tolist() == [1, 0, 2]
    assert log.times_us.tolist() == [1_661_724_000_100_000, 1_661_724_000_278_000, 1_661_724_000_278_000]
    assert log.frame["behaviour"].to_list() == ["carts", "clicks", "orders"]
    assert log.info.skipped == {"rows without events": 1}
    assert "3 events come from the list 'events' of 2 rows" in log.info.notes


def test_one_pretty_session_and_broken_lines_beside_sessions(tmp_path):
    path = write(tmp_path / "one.json", json.dumps(SESSIONS[0], indent=2))
    assert events_of(import_log(path, mapping=OTTO, time_unit="ms")) == EVENTS[:2]
    path = write(tmp_path / "log.jsonl", "{broken\n" + "\n".join(map(json.dumps, SESSIONS)))
    log = import_log(path, mapping=OTTO, time_unit="ms", max_bad=0.5)
    assert events_of(log) == EVENTS and log.info.skipped["lines that are not a JSON object"] == 1


def test_outer_columns_stay_beside_the_events_and_theirs_win(tmp_path):
    rows = [
        {
            "user_id": "u",
            "country": "de",
            "timestamp": 1,
            "seen": [{"item_id": "a", "timestamp": 7}, {"item_id": "b", "timestamp": 5}],
        }
    ]
    log = import_log(write_rows(tmp_path / "log.jsonl", rows))
    assert events_of(log) == [("u", "b", 5), ("u", "a", 7)] and log.frame["country"].to_list() == ["de"] * 2
    assert log.frame["outer_timestamp"].to_list() == [1, 1]
    assert any("timestamp of the list 'seen' is taken, the outer one is outer_timestamp" in note for note in log.info.notes)


def test_a_row_per_event_with_a_list_of_objects_stays_one(tmp_path):
    rows = [{**row, "images": [{"url": "x"}, {"url": "y"}]} for row in DICTS]
    log = import_log(write_rows(tmp_path / "log.jsonl", rows))
    assert len(log) == 6 and log.info.skipped == {"columns of the log that are not a number or text": 1}


def test_several_lists_of_objects(tmp_path):
    rows = [{"user_id": "u", "tags": [{"name": "x"}], "events": [{"item_id": "a", "timestamp": 7}]}]
    assert events_of(import_log(write_rows(tmp_path / "log.jsonl", rows))) == [("u", "a", 7)]
    rows = [{"user_id": "u", "views": [{"item_id": "a", "timestamp": 7}], "buys": [{"item_id": "a", "timestamp": 8}]}]
    with pytest.raises(DataError, match="several columns are lists of objects: got views, buys; expected one list of events"):
        import_log(write_rows(tmp_path / "log.jsonl", rows))


def test_keys_of_events_are_named_when_none_is_mapped(tmp_path):
    with pytest.raises(DataError, match="are missing: got session, aid, ts, type"):
        import_log(write_rows(tmp_path / "log.jsonl", SESSIONS))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_fields_of_an_object_by_their_path(tmp_path, kind):
    rows = [{"user": {"id": "u", "at": {"town": "Ulm"}}, "item": {"sku": f"i{n}"}, "timestamp": n} for n in range(3)]
    mapping = {"user_id": "user.id", "item_id": "item.sku", "town": "user.at.town"}
    log = import_log(write_rows(tmp_path / f"log.{kind}", rows), mapping=mapping)
    assert events_of(log) == [("u", f"i{n}", n) for n in range(3)] and log.frame["town"].to_list() == ["Ulm"] * 3


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_parallel_lists(tmp_path, kind):
    rows = [
        {"uid": 1, "items": [7, 8, 7], "times": [3, 1, 2], "stars": [5, 4, 3], "vector": [0.5, 0.5]},
        {"uid": 2, "items": [9], "times": [4], "stars": [1], "vector": [0.5, 0.5]},
    ]
    mapping = {"user_id": "uid", "item_id": "items", "timestamp": "times", "rating": "stars"}
    log = import_log(write_rows(tmp_path / f"log.{kind}", rows), mapping=mapping)
    assert events_of(log) == [("1", "8", 1), ("1", "7", 2), ("1", "7", 3), ("2", "9", 4)]
    assert log.frame["rating"].to_list() == [4, 3, 5, 1]
    rows[1]["times"] = [4, 5]
    with pytest.raises(
        DataError, match=r"lists 'items' and 'times' differ in length: got row 1 \(the first is 0\): 1 items, 2 times"
    ):
        import_log(write_rows(tmp_path / f"log.{kind}", rows), mapping=mapping)


def test_lists_of_items_in_a_table_without_times(tmp_path):
    rows = [{"user_id": "u", "item_id": ["c", "a", "c"]}, {"user_id": "v", "item_id": ["a"]}, {"user_id": "w", "item_id": None}]
    log = import_log(write_rows(tmp_path / "log.jsonl", rows), order="file")
    assert log.frame.select("user_id", "item_id").rows() == [("u", "c"), ("u", "a"), ("u", "c"), ("v", "a")]


# A line of items per user


LISTS = (
    "7 c a c\n8 a\n",
    "7: c a c\n8: a\n",
    "7\tc a c\n8\ta\n",
    "7,c,a,c\n8,a\n",
    "7 c,a,c\r\n8 a\r\n",
    "\ufeff7 :  c  a c \n\n8\ta",
    "7 c a\n8 a\n7 c\n",
)


@pytest.mark.parametrize("text", LISTS)
@pytest.mark.parametrize("name", ["log.txt", "log.txt.gz", "log"])
def test_lists_of_items_follow_the_file(tmp_path, text, name):
    log = import_log(write(tmp_path / name, text), format="lists")
    assert log.frame.select("user_id", "item_id").rows() == [("7", "c"), ("7", "a"), ("7", "c"), ("8", "a")]
    assert log.info.order == "file" and not log.info.timed and log.tie_rule == "no times: events in file order"
    again = Interactions.read(log.write(tmp_path / "out"))
    assert again.digest == log.digest and json.loads((tmp_path / "out/dataset.json").read_text())["order"] == "file"


def test_lists_with_items_of_their_own_and_what_is_refused(tmp_path):
    path = write(tmp_path / "log.txt", "7 1 2 3\n8\n9 3 1\n")
    items = write(tmp_path / "items.csv", "item_id,title\n1,One\n2,Two\n3,Three\n")
    assert main(["data", "import", str(path), "--format", "lists", "--items", str(items), "--out", str(tmp_path / "out")]) == 0
    log = Interactions.read(tmp_path / "out")
    assert log.catalogue.titles() == ["One", "Two", "Three"] and log.info.skipped["lines without a user or items"] == 1
    with pytest.raises(InputError, match="a file of lists has no other order: got --order hash"):
        import_log(path, format="lists", order="hash")
    with pytest.raises(DataError, match="log.txt has no list of items: got '7'; expected lines as 'user item item …'"):
        import_log(write(path, "7\n8\n"), format="lists")
    with pytest.raises(DataError, match="has no list of items: got no line"):
        import_log(write(path, ""), format="lists")
    with pytest.raises(DataError, match="none.txt cannot be read: got no such file"):
        import_log(tmp_path / "none.txt", format="lists")


@pytest.mark.parametrize("index", [{}, {"index": [0, 1, 2, 3, 4, 5]}])
def test_json_as_pandas_splits_it(tmp_path, index):
    text = json.dumps({"columns": NAMES, **index, "data": [list(row) for row in ROWS]})
    assert import_log(write(tmp_path / "log.json", text)).digest == DIGEST


def test_lists_of_lists_of_events(tmp_path):
    visits = [
        {"visit": 1, "events": [{"item_id": "b", "timestamp": 6}, {"item_id": "a", "timestamp": 5}]},
        {"visit": 2, "events": [{"item_id": "c", "timestamp": 7}]},
        {"visit": 3, "events": []},
    ]
    log = import_log(write_rows(tmp_path / "log.jsonl", [{"user_id": "u", "visits": visits}]))
    assert events_of(log) == [("u", "a", 5), ("u", "b", 6), ("u", "c", 7)] and log.frame["visit"].to_list() == [1, 1, 2]
    assert log.info.skipped == {"rows without events": 1}


@pytest.mark.parametrize(
    ("items", "times"),
    [
        ('"[8, 7, 8]"', '"[5, 6, 7]"'),
        ("\"['8', '7', '8']\"", '"[5, 6, 7]"'),
        ('"[""8"", ""7"", ""8""]"', '"[5, 6, 7]"'),
        ("[8 7 8]", "[5 6 7]"),
        ('"[8, 7, 8]"', "\"['1970-01-01 00:00:05', '1970-01-01 00:00:06', '1970-01-01 00:00:07']\""),
    ],
)
def test_lists_as_texts_of_a_csv(tmp_path, items, times):
    path = write(tmp_path / "log.csv", f"user_id,item_id,timestamp\nu,{items},{times}\nv,[9],[9]\n")
    assert events_of(import_log(path)) == [("u", "8", 5), ("u", "7", 6), ("u", "8", 7), ("v", "9", 9)]


def test_events_as_a_text_of_a_csv(tmp_path):
    cells = [json.dumps(row["events"]).replace('"', '""') for row in SESSIONS]
    rows = [f'{row["session"]},"{cell}"' for row, cell in zip(SESSIONS, cells, strict=True)]
    log = import_log(write(tmp_path / "log.csv", "\n".join(["session,events", *rows])), mapping=OTTO, time_unit="ms")
    assert events_of(log) == EVENTS


def test_texts_in_brackets_stay_texts(tmp_path):
    rows = "u,[a,5,[x]\nu,b],6,[y]\n"
    log = import_log(write(tmp_path / "log.csv", "user_id,item_id,timestamp,note\n" + rows))
    assert events_of(log) == [("u", "[a", 5), ("u", "b]", 6)] and log.frame["note"].to_list() == ["[x]", "[y]"]


def test_lists_of_a_json_object_by_user(tmp_path):
    path = write(tmp_path / "log.json", json.dumps({"u": ["c", "a", "c"], "v": [7], "w": []}))
    log = import_log(path, format="lists")
    assert log.frame.select("user_id", "item_id").rows() == [("u", "c"), ("u", "a"), ("u", "c"), ("v", "7")]
    for text, got in (('{"u": 7}', "'u': 7"), ("[[1, 2]]", "'all of it': null"), ("{}", "no user"), ('{"u": [[1, 2]]}', "'u'")):
        with pytest.raises(DataError, match=f"log.json has no lists of items: got {re.escape(got)}"):
            import_log(write(path, text), format="lists")
    with pytest.raises(DataError, match="log.json cannot be read: got .*; expected one JSON object of users"):
        import_log(write(path, '{"u": [1'), format="lists")


def test_lists_with_a_header_or_with_numbers_after_a_colon(tmp_path):
    log = import_log(write(tmp_path / "log.txt", "user_id items\nu c a\n"), format="lists")
    assert log.user_ids == ["u"] and "the first line is a header and left out: 'user_id items'" in log.info.notes
    log = import_log(write(tmp_path / "log.txt", "u 1:5 2:4.5\nv 3:1\n"), format="lists")
    assert log.catalogue.item_ids == ["1:5", "2:4.5", "3:1"]
    assert any(note.startswith("items have a number after a colon") for note in log.info.notes)


@pytest.mark.parametrize("cells", [["7 8 7", "9 7"], ["7,8", "9,7"], ["a|b|c", "a|c"]])
def test_lists_in_cells_are_noted(tmp_path, cells):
    pl.DataFrame({"user_id": [1, 2], "item_id": cells}).write_csv(tmp_path / "log.csv")
    (note, _) = import_log(tmp_path / "log.csv", order="file").info.notes
    assert note.startswith(
        f"each user has one row, and item_id there looks like a list, such as '{cells[0]}': it is read as one item"
    )
    pl.DataFrame({"user_id": [1, 1], "item_id": cells}).write_csv(tmp_path / "log.csv")
    assert len(import_log(tmp_path / "log.csv", order="file").info.notes) == 1  # items with such names


@pytest.mark.parametrize(
    "name", ["count", "near", "len", "n", "key", "value", "literal", "index", "proportion", "user", "id", "x"]
)
def test_a_column_may_have_any_name(tmp_path, name):
    """No name is one that the import or `data describe` uses on its way."""
    rows = [(f"u{n % 3}", f"i{n % 7}", 100 + n // 2, n % 9) for n in range(60)] + [("u0", "i0", 100, 0)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", name], orient="row")
    frame.write_csv(tmp_path / "log.csv")
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(7)], name: [*range(7)]})
    items.write_csv(tmp_path / "items.csv")
    log = import_log(tmp_path / "log.csv")
    assert len(log) == 60 and log.info.skipped == {"duplicate events": 1}
    assert log.describe()["feedback"][name]["values"] == {str(n): (7 if n < 6 else 6) for n in range(9)}
    described = import_log(tmp_path / "log.csv", items=tmp_path / "items.csv").catalogue.frame
    assert described[name].to_list() == [*range(7)]


@pytest.mark.parametrize("rows", ["u,1,a,5\n", 'u,1,"a,5\n'])
def test_a_column_that_comes_twice_is_noted(tmp_path, rows):
    (tmp_path / "log.csv").write_text("user_id,timestamp,item_id,item_id\n" + rows + "u,2,b,6\n")
    log = import_log(tmp_path / "log.csv")
    assert log.timestamps.tolist() == [1, 2] and log.catalogue.item_ids[-1] == "b"
    assert any(note.startswith("the header has 'item_id' more than once: the first one is taken") for note in log.info.notes)
