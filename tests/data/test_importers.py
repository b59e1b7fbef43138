import gzip
import json

import polars as pl
import pytest

from genre.data.importers.log import import_log
from genre.data.interactions import Interactions
from genre.errors import DataError, GenreError, InputError

SHOP = {"user_id": "uid", "item_id": "sku", "timestamp": "when", "rating": "stars"}


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def test_a_strangers_csv(tmp_path):
    """Odd names, a byte order mark, semicolons, decimal commas, ISO dates, 3 % bad rows, duplicates, item columns."""
    lines = [f"u{n % 7};{n:04d};2024-03-{n % 28 + 1:02d}T10:00:00Z;{n % 5},5;Thing {n};{n}" for n in range(97)]
    lines += [
        "u1;0500;yesterday;4;Late;1",
        "u1;0501;2024-03-01;lots;Odd;1",
        ";0502;2024-03-01;4;Nobody;1",
        lines[3],
        lines[4],
    ]
    path = write(tmp_path / "shop.csv", "\ufeffuid;sku;when;stars;title;clicks\r\n" + "\r\n".join(lines) + "\r\n")
    log = import_log(path, mapping=SHOP)
    assert len(log) == 97 and log.catalogue.size == 97
    assert log.info.skipped == {"bad user_id": 1, "bad timestamp": 1, "bad rating": 1, "duplicate events": 2}
    assert "bad timestamp: row 97 (the first is 0): timestamp 'yesterday'" in log.info.examples
    assert log.catalogue.item_ids[:2] == ["0000", "0001"] and log.catalogue.titles()[1] == "Thing 1"
    assert set(log.column("rating")) == {0.5, 1.5, 2.5, 3.5, 4.5}
    assert log.frame["clicks"].dtype == pl.Int64
    assert log.timestamps.min() == 1709287200
    assert log.info.name == "shop" and log.info.source == "shop.csv" and log.info.checksum.startswith("sha256:")
    with pytest.raises(DataError, match=r"3 of 102 rows are not usable: got row 99 .*; repair them, or allow more than 1%"):
        import_log(path, mapping=SHOP, max_bad=0.01)
    for share in (float("nan"), -0.1, 2.0):
        with pytest.raises(DataError, match=f"--max-bad: got {share}; expected 0 to 1"):
            import_log(path, mapping=SHOP, max_bad=share)


ROWS = [
    {"user_id": "1", "item_id": "10", "timestamp": 5, "rating": 3.5},
    {"user_id": "2", "item_id": "11", "timestamp": 6, "rating": 4.0},
]


def as_text(separator):
    lines = [separator.join(ROWS[0]), *(separator.join(str(value) for value in row.values()) for row in ROWS)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet", "jsonl", "csv.gz", "jsonl.gz", "inter", "pipe.csv", "mixed.jsonl"])
def test_every_format_gives_the_same_log(tmp_path, kind):
    path = tmp_path / f"log.{kind}"
    json_lines = "\n".join(json.dumps(row) for row in ROWS)
    texts = {
        "csv": as_text(","),
        "tsv": as_text("\t"),
        "pipe.csv": as_text("|"),
        "jsonl": json_lines,
        "mixed.jsonl": json_lines.replace('"1"', "1"),
        "inter": as_text("\t").replace(
            "user_id\titem_id\ttimestamp\trating", "user_id:token\titem_id:token\ttimestamp:float\trating:float"
        ),
    }
    if kind == "parquet":
        pl.DataFrame(ROWS).write_parquet(path)
    elif kind.endswith(".gz"):
        path.write_bytes(gzip.compress(texts[kind.removesuffix(".gz")].encode()))
    else:
        write(path, texts[kind])
    assert import_log(path).digest == Interactions.from_frame(pl.DataFrame(ROWS)).digest


def test_atomic_files_beside_the_log(tmp_path):
    write(tmp_path / "s.inter", "user_id:token\titem_id:token\ttimestamp:float\tlabel:float\n1\t7\t5\t1\n")
    write(tmp_path / "s.item", 'item_id:token\ttitle:token_seq\tvector:float_seq\n7\tThe "Best" Thing\t0.5 1.5\n')
    write(tmp_path / "s.user", "user_id:token\tage:float\tzip:token\n1\t30\t01234\n")
    for path in (tmp_path, tmp_path / "s.inter"):
        log = import_log(path)
        assert log.catalogue.titles() == ['The "Best" Thing'] and log.catalogue.dense("vector").tolist() == [[0.5, 1.5]]
        assert log.users is not None and log.users.rows() == [("1", 30, "01234")]
        assert log.column("label").tolist() == [1.0]


def test_movielens_100k(tmp_path):
    write(tmp_path / "u.data", "196\t242\t3\t881250949\n186\t302\t3\t891717742\n")
    flags = "|".join("1" if place in (3, 5) else "0" for place in range(19))
    write(tmp_path / "u.item", f"242|Misérables, Les (1995)|24-Jan-1997||http://x|{flags}\n", "latin-1")
    write(tmp_path / "u.user", "196|49|M|writer|55105\n186|39|F|executive|T8H1N\n")
    log = import_log(tmp_path)
    assert log.catalogue.frame.row(0) == ("242", "Misérables, Les", 1995, "Animation, Comedy")
    assert log.info.skipped == {"items without a row": 1}
    assert log.users is not None and log.users.row(1) == ("196", 49, "M", "writer", "55105")
    assert log.rows.tolist() == [1, 0]


def test_movielens_1m(tmp_path):
    write(tmp_path / "ratings.dat", "1::1193::5::978300760\n1::661::3::978302109\n")
    movies = "1193::Cuckoo's Nest (1975)::Drama\n661::James and the Giant Peach (1996)::Animation|Children's|Musical\n"
    write(tmp_path / "movies.dat", movies, "latin-1")
    write(tmp_path / "users.dat", "1::F::1::10::48067\n")
    log = import_log(tmp_path / "ratings.dat")
    assert log.catalogue.frame.row(1) == ("661", "James and the Giant Peach", 1996, "Animation, Children's, Musical")
    assert log.users is not None and log.users.columns == ["user_id", "gender", "age", "occupation", "zip_code"]


def test_movielens_latest(tmp_path):
    write(tmp_path / "ratings.csv", "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,3,4.5,964981247\n")
    movies = 'movieId,title,genres\n1,Toy Story (1995),Adventure|Animation\n3,"Dead, and Loving It",(no genres listed)\n'
    write(tmp_path / "movies.csv", movies)
    for path in (tmp_path, tmp_path / "ratings.csv"):
        log = import_log(path)
        assert log.catalogue.frame.rows() == [
            ("1", "Toy Story", 1995, "Adventure, Animation"),
            ("3", "Dead, and Loving It", None, None),
        ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "a.csv is empty: got no header; expected a header and rows"),
        ("a.csv", "user_id,item_id,timestamp\n", "the log is empty: got 0 events; expected at least one event"),
        (
            "a.csv",
            "user_id,item_id,timestamp\n1,2,3\n1,2,3,4\n",
            "1 of 2 rows are not usable: got a.csv, line 3 has too many cells: got 4; expected 3 cells, as in the header",
        ),
        (
            "a.xlsx",
            "x",
            "a.xlsx is of an unknown kind: got .xlsx; expected .csv, .tsv, .parquet, .jsonl, .json (or these "
            "with .gz); save the sheet as CSV",
        ),
        (
            "a.jsonl",
            '{"user_id": 1, "item_id": 2, "timestamp": 3}\n{"user_id"\n',
            "1 of 2 rows are not usable: got a.jsonl, line 2 is not JSON: ",
        ),
        ("a.jsonl", '{"user_id": 1}\n{"user_id"\n', "columns 'item_id', 'timestamp' are missing: got user_id; expected"),
        ("a.jsonl", "[1]\n", "a.jsonl, line 1 is not an object: got [1]; expected one JSON object per line"),
        ("a.jsonl", "\n", "a.jsonl is empty: got no line; expected one JSON object per line"),
        ("a.parquet", "PAR1", "a.parquet cannot be read: got "),
        ("a.csv.gz", "not gzip", "cannot be read: got a file that is not gzipped"),
        (
            "a.inter",
            "user_id\titem_id:token\n1\t2\n",
            "a.inter is not an atomic file: got a column 'user_id'; expected name:type "
            "with a type of token, float, token_seq, float_seq; try --format csv",
        ),
        (
            "u.data",
            "1\t2\t3\n",
            "u.data, line 1 does not fit: got 3 fields; expected 4: user_id, item_id, rating, timestamp",
        ),
    ],
)
def test_unreadable_files_are_refused_by_line(tmp_path, name, text, message):
    with pytest.raises(GenreError) as caught:
        import_log(write(tmp_path / name, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_encodings(tmp_path):
    path = write(tmp_path / "a.csv", "user_id,item_id,timestamp,title\n1,2,3,Amélie\n", "latin-1")
    assert import_log(path, encoding="latin-1").catalogue.titles() == ["Amélie"]
    with pytest.raises(DataError) as caught:
        import_log(path)
    assert str(caught.value) == (
        "a.csv is not in utf-8: got byte 0xe9 in line 2; expected text in utf-8; name its encoding, such as --encoding latin-1"
    )
    with pytest.raises(DataError, match="unknown encoding: got 'klingon'"):
        import_log(path, encoding="klingon")


def test_missing_files_and_unknown_formats(tmp_path):
    with pytest.raises(DataError, match=r"none.csv cannot be read: got no such file"):
        import_log(tmp_path / "none.csv")
    with pytest.raises(
        InputError, match="unknown format: got 'xml'; expected csv, atomic, movielens, mind, amazon, lists, served"
    ):
        import_log(tmp_path / "none.csv", format="xml")
    with pytest.raises(DataError, match=r"no log is found in .*; expected a folder with u.data or"):
        import_log(tmp_path)
    with pytest.raises(InputError, match="unknown time unit: got 'h'; expected s, ms, us, ns"):
        import_log(write(tmp_path / "a.csv", as_text(",")), time_unit="h")


def test_items_and_users_of_their_own(tmp_path):
    log = write(tmp_path / "log.csv", "uid,sku,when\n1,a,5\n")
    items = write(tmp_path / "items.csv", "sku,title,price\na,Thing,2.50\n")
    users = write(tmp_path / "users.jsonl", '{"uid": 1, "town": "Ulm"}\n')
    found = import_log(log, items=items, users=users, mapping={k: SHOP[k] for k in ("user_id", "item_id", "timestamp")})
    assert found.catalogue.frame.row(0) == ("a", "Thing", 2.5)
    assert found.users is not None and found.users.rows() == [("1", "Ulm")]
