"""Quotes inside texts: no row is swallowed, none gets another one's cells."""

import gzip

import numpy as np
import polars as pl
import pytest

from genre.cli import main
from genre.data.importers.log import import_log
from genre.errors import InputError

TITLES = [
    '"Heroes" (Single Version)',
    '"Live at Leeds',
    "Plain",
    '12" Mix',
    'Say "Yes"',
    'End of a quote"',
    '"Whole"',
    '"One" and "Two"',
]


def table_of(titles, sign="\t", repeat=1):
    rows = [sign.join(("u", f"i{n}", str(100 + n), title)) for n, title in enumerate(titles * repeat)]
    return "\n".join([sign.join(("user_id", "item_id", "timestamp", "title")), *rows]) + "\n"


def write(path, text):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize(("name", "sign"), [("a.tsv", "\t"), ("a.csv", ","), ("b.csv", ";"), ("c.csv", "|"), ("a.tsv.gz", "\t")])
@pytest.mark.parametrize("repeat", [1, 40])
def test_with_quote_none_every_row_is_as_the_file_has_it(tmp_path, name, sign, repeat):
    log = import_log(write(tmp_path / name, table_of(TITLES, sign, repeat)), quote="none")
    assert len(log) == 8 * repeat and not log.info.skipped
    assert log.frame.select("item_id", "timestamp").rows() == [(f"i{n}", 100 + n) for n in range(8 * repeat)]
    assert dict(zip(log.catalogue.item_ids, log.catalogue.titles(), strict=True)) == {
        f"i{n}": TITLES[n % 8] for n in range(8 * repeat)
    }


@pytest.mark.parametrize(("name", "sign"), [("a.tsv", "\t"), ("a.csv", ","), ("b.csv", ";"), ("c.csv", "|"), ("a.tsv.gz", "\t")])
@pytest.mark.parametrize("repeat", [1, 40])
def test_without_it_no_row_is_lost_either(tmp_path, name, sign, repeat):
    log = import_log(write(tmp_path / name, table_of(TITLES[:6], sign, repeat)))
    assert log.frame.select("item_id", "timestamp").rows() == [(f"i{n}", 100 + n) for n in range(6 * repeat)]
    assert [
        title for _, title in sorted(zip(map(int, (i[1:] for i in log.catalogue.item_ids)), log.catalogue.titles(), strict=True))
    ] == (TITLES[:6] * repeat)
    assert not log.info.skipped
    assert "quotes that are part of their texts, such as line 2" in log.info.notes[0]


@pytest.mark.parametrize("sign", [",", "\t"])
@pytest.mark.parametrize(
    ("cell", "title"),
    [('"a "b" c"', 'a "b" c'), ('"a ""b"" c"', 'a "b" c'), ('"One" and "Two"', '"One" and "Two"'), ('"plain"', "plain")],
)
def test_quotes_inside_quoted_cells_stay(tmp_path, sign, cell, title):
    log = import_log(write(tmp_path / ("a.csv" if sign == "," else "a.tsv"), table_of([cell, "x", '"y"'], sign)))
    assert log.catalogue.titles() == [title, "x", "y"] and log.timestamps.tolist() == [100, 101, 102]


def test_two_lone_quotes_swallow_no_line_of_a_tsv(tmp_path):
    log = import_log(
        write(tmp_path / "a.tsv", 'user_id\ttitle\titem_id\ttimestamp\nu\t"Live\ta\t1\nu\tB\tb\t2\nu\tC"\tc\t3\nu\tD\td\t4\n')
    )
    assert log.catalogue.titles() == ['"Live', "B", 'C"', "D"] and log.timestamps.tolist() == [1, 2, 3, 4]


SWALLOWED = {
    "title last": 'user_id,item_id,timestamp,title\nu,a,1,"Live at\nu,b,2,B\nu,c,3,Stop"\nu,d,4,D\n',
    "title first": 'title,user_id,item_id,timestamp\n"Live at,u,a,1\nB,u,b,2\nStop",u,c,3\nD,u,d,4\n',
    "title between": 'user_id;item_id;title;timestamp\nu;a;"Live at;1\nu;b;B;2\nu;c;Stop";3\nu;d;D;4\n',
    "dates": 'timestamp,user_id,item_id,title\n20240101,u,a,"Live at\n20240102,u,b,B\n20240103,u,c,Stop"\n20240104,u,d,D\n',
}


@pytest.mark.parametrize("text", SWALLOWED.values(), ids=SWALLOWED.keys())
def test_two_lone_quotes_swallow_no_line_of_a_csv(tmp_path, text):
    log = import_log(write(tmp_path / "a.csv", text))
    assert log.catalogue.titles() == ['"Live at', "B", 'Stop"', "D"] and log.catalogue.item_ids == list("abcd")
    assert np.diff(log.timestamps).tolist() in ([1, 1, 1], [86_400] * 3)
    assert log.info.notes == (
        "1 line has quotes that are part of their texts, such as line 2; --quote none takes all quotes for text",
    )


@pytest.mark.parametrize("cell", ["x\nb, oh, u, y", "x\nb, 2", "x\n1,2,3,4,5", "x\n\ny"])
def test_a_cell_whose_lines_are_no_rows_stays_whole(tmp_path, cell):
    log = import_log(write(tmp_path / "a.csv", f'user_id,item_id,timestamp,title\nu,a,1,"{cell}"\nu,b,2,B\nu,c,3,C\n'))
    assert log.catalogue.titles() == [cell, "B", "C"] and log.timestamps.tolist() == [1, 2, 3]


@pytest.mark.parametrize("option", ["quote", "separator"])
@pytest.mark.parametrize("sign", ["ü", "", "''"])
def test_a_sign_that_is_no_byte_is_refused(tmp_path, option, sign):
    with pytest.raises(InputError, match=f"--{option}.*; expected one plain character"):
        import_log(write(tmp_path / "a.csv", table_of(["A"], ",")), **{option: sign})


def test_a_cell_with_line_ends_is_reported_where_others_have_none(tmp_path):
    path = write(tmp_path / "a.csv", table_of(["A", '"B\nb"', *"CDEFGH"], ","))
    log = import_log(path)
    assert len(log) == 8 and log.catalogue.titles()[1] == "B\nb"
    (note,) = log.info.notes
    assert note.startswith("1 of 8 rows has a cell with line ends: row 1 (the first is 0), title 'B\\nb'")
    many = import_log(write(tmp_path / "b.csv", table_of(['"A\na"', '"B\nb"', "C"], ",")))
    assert many.catalogue.titles()[:2] == ["A\na", "B\nb"] and not many.info.notes


def test_the_option_reaches_items_and_is_checked(tmp_path, capsys):
    log = write(tmp_path / "log.csv", "user_id,item_id,timestamp\nu,a,1\nu,b,2\n")
    items = write(tmp_path / "items.tsv", 'item_id\ttitle\na\t"A\nb\t"B"\n')
    args = ["data", "import", str(log), "--items", str(items), "--quote", "none", "--out", str(tmp_path / "out")]
    assert main(args) == 0
    frame = pl.read_parquet(tmp_path / "out/items.parquet")
    assert frame["title"].to_list() == ['"A', '"B"']
    with pytest.raises(InputError, match="--quote: got 'nothing'; expected one plain character, or none"):
        import_log(log, quote="nothing")
    single = write(tmp_path / "single.csv", "user_id,item_id,timestamp,title\nu,a,1,'x, y'\n")
    assert import_log(single, quote="'").catalogue.titles() == ["x, y"]
