"""Public logs in their exact formats (MIND, Amazon 2018 and 2023), and a stranger's dirty CSV."""

import gzip
import json

import polars as pl
import pytest

from genre.cli import main
from genre.data.importers.log import import_log
from genre.data.interactions import Interactions
from genre.errors import DataError

NEWS = """\
N1\tsports\tnfl\tFirst title\tFirst abstract\thttps://a\t[]\t[]
N2\tnews\tworld\tSecond "quoted" title\t\thttps://b\t[]\t[]
N3\tnews\tworld\tThird title\tThird abstract\thttps://c\t[]\t[]
N4\tsports\tnfl\tFourth title\t\thttps://d\t[]\t[]
"""
BEHAVIORS = """\
1\tU1\t11/11/2019 9:05:58 AM\tN1 N2\tN3-1 N4-0
2\tU2\t11/12/2019 1:00:00 PM\t\tN1-0 N3-1
3\tU1\t11/12/2019 6:11:30 PM\tN1 N2 N3\tN4-1 N2-0
"""


def events(log: Interactions, user: str) -> list[tuple[object, ...]]:
    code = log.user_code(user)
    frame = log.frame[int(log.user_offsets[code]) : int(log.user_offsets[code + 1])]
    columns = ("item_id", "timestamp", "click", "clicked", "impression_id")
    return frame.select(columns).rows()


@pytest.fixture
def mind(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "behaviors.tsv").write_text(BEHAVIORS, encoding="utf-8")
    (folder / "news.tsv").write_text(NEWS, encoding="utf-8")
    return folder


def test_mind_impressions_and_the_clicks_before_them(mind):
    log = import_log(mind)
    first, second = 1573463158, 1573582290  # 2019-11-11 09:05:58 and 2019-11-12 18:11:30 UTC
    found = events(log, "U1")
    assert found[:2] == [("N1", first - 2, 1, None, "h-U1-0"), ("N2", first - 1, 1, None, "h-U1-1")]
    assert sorted(found[2:4]) == [("N3", first, 1, 1, "1"), ("N4", first, 0, 0, "1")]
    # N3 was clicked in the impression before, so the later list adds nothing
    assert sorted(found[4:]) == [("N2", second, 0, 0, "3"), ("N4", second, 1, 1, "3")]
    assert len(events(log, "U2")) == 2
    assert log.catalogue.frame.filter(pl.col("item_id") == "N2")["title"].to_list() == ['Second "quoted" title']


def test_mind_lines_that_are_no_impression_are_counted_or_refused(mind):
    text = BEHAVIORS + "4\tU3\tyesterday\t\tN1-1\n"
    (mind / "behaviors.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"behaviors.tsv, line 4"):
        import_log(mind)
    assert import_log(mind, max_bad=0.3).info.skipped["lines that are not an impression"] == 1
    (mind / "behaviors.tsv").write_text("1\tU1\t11/11/2019 9:05:58 AM\t\tN1 N2\n", encoding="utf-8")
    with pytest.raises(DataError, match="no impression says what was clicked: got 'N1'"):
        import_log(mind)
    with pytest.raises(DataError, match="is not MIND data"):
        import_log(mind / "nowhere", format="mind")


AMAZON = {
    "2018": (
        [
            {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1388534400, "verified": True, "reviewText": "x"},
            {"reviewerID": "A2", "asin": "B1", "overall": 2.0, "unixReviewTime": 1388534500, "verified": False},
        ],
        [{"asin": "B1", "title": "Socks &amp; more", "brand": "Acme", "category": ["Clothing", "Men"], "price": "$1,009.99"}],
    ),
    "2023": (
        [
            {
                "user_id": "A1",
                "parent_asin": "B1",
                "asin": "B7",
                "rating": 5.0,
                "timestamp": 1388534400728,
                "verified_purchase": True,
            },
            {"user_id": "A2", "asin": "B1", "rating": 2.0, "timestamp": 1388534500000, "verified_purchase": False},
        ],
        [
            {
                "parent_asin": "B1",
                "title": "Socks &amp; more",
                "store": "Acme",
                "categories": ["Clothing", "Men"],
                "price": 1009.99,
            }
        ],
    ),
}


@pytest.mark.parametrize("year", AMAZON)
def test_amazon_reviews_and_products(tmp_path, year):
    for name, rows in zip(("reviews", "meta"), AMAZON[year], strict=True):
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    log = import_log(tmp_path / "reviews.jsonl.gz", format="amazon", items=tmp_path / "meta.jsonl.gz")
    assert log.frame.select("user_id", "item_id", "timestamp", "rating", "verified").rows() == [
        ("A1", "B1", 1388534400, 5.0, 1),
        ("A2", "B1", 1388534500, 2.0, 0),
    ]
    item = log.catalogue.frame.row(0, named=True)
    assert (item["title"], item["brand"], item["price"]) == ("Socks & more", "Acme", 1009.99)
    assert item["categories"] == "Clothing, Men"


def test_amazon_products_of_2014_are_lines_of_python(tmp_path):
    """The metadata beside the reviews that most sequential benchmarks use; some products lack a field."""
    reviews = [{**AMAZON["2018"][0][0], "asin": f"B{n}", "helpful": [3, 4], "reviewTime": "01 30, 2014"} for n in range(3)]
    for row in reviews:
        del row["verified"]
    (tmp_path / "reviews_Beauty_5.json").write_text("".join(json.dumps(row) + "\n" for row in reviews), encoding="utf-8")
    products = [
        {"asin": "B0", "description": 'Lace, "white"', "title": "Kiwi's &quot;Lace&quot;", "price": 5.35, "imUrl": "http://x"}
        | {"related": {"also_viewed": ["B1"]}, "salesRank": {"Beauty": 5}, "brand": "Kiwi"}
        | {"categories": [["Beauty", "Hair Care"], ["Beauty", "Tools"]]},
        {"asin": "B1", "salesRank": {}, "categories": [["Beauty"]], "title": "O'Hara"},
        {"asin": "B2", "categories": [[]]},
    ]
    with gzip.open(tmp_path / "meta_Beauty.json.gz", "wt", encoding="utf-8") as file:
        file.write("".join(repr(row) + "\n" for row in products))
    log = import_log(tmp_path / "reviews_Beauty_5.json", format="amazon", items=tmp_path / "meta_Beauty.json.gz")
    rows = log.catalogue.frame.select("item_id", "title", "brand", "categories", "price").rows()
    assert rows[0] == ("B0", 'Kiwi\'s "Lace"', "Kiwi", "Beauty, Hair Care, Tools", 5.35)
    assert rows[1:] == [("B1", "O'Hara", None, "Beauty", None), ("B2", None, None, None, None)]
    assert len(log) == 3 and log.frame["verified"].null_count() == 3


def test_amazon_refuses_other_fields_and_counts_broken_lines(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_text('{"who": 1}\n', encoding="utf-8")
    with pytest.raises(DataError, match="holds no Amazon reviews: got who"):
        import_log(file, format="amazon")
    rows = [{**AMAZON["2018"][0][0], "unixReviewTime": 1388534400 + n} for n in range(30)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n", encoding="utf-8")
    log = import_log(file, format="amazon")
    assert len(log) == 30 and log.info.skipped["lines that are not a JSON object"] == 1


def dirty(bad: int) -> bytes:
    """A CSV as a spreadsheet writes it: BOM, semicolons, comma decimals, ISO dates, duplicates, some bad rows."""
    lines = ["Kunde;Artikel-Nr.;Sterne;Wann"]
    lines += [f"k{n % 20};a{n % 50};{1 + n % 4},5;2024-03-01T10:{n // 60:02}:{n % 60:02}+01:00" for n in range(200)]
    lines += [lines[1], lines[2]]  # told twice
    lines += [f"k1;a{n};viel;2024-03-02" for n in range(bad)]
    return b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n"


MAP = ["--map", "user_id=Kunde", "--map", "item_id=Artikel-Nr.", "--map", "rating=Sterne", "--map", "timestamp=Wann"]


def test_a_strangers_csv_is_imported_with_its_bad_rows_counted(tmp_path, capsys):
    file = tmp_path / "export.csv"
    file.write_bytes(dirty(6))
    assert main(["data", "import", str(file), *MAP, "--out", str(tmp_path / "shop")]) == 0
    log = Interactions.read(tmp_path / "shop")
    assert len(log) == 200 and set(log.column("rating").tolist()) == {1.5, 2.5, 3.5, 4.5}
    assert log.timestamps.min() == 1709283600  # 09:00 UTC
    assert log.info.skipped["bad rating"] == 6 and log.info.skipped["duplicate events"] == 2
    said = capsys.readouterr().out
    named = "row 202 (the first is 0): rating 'viel'; row 203: 'viel'; row 204: 'viel'; then 205, 206, 207"
    assert "skipped: bad rating: 6" in said and named in said and "duplicate events: row 200; then 201" in said
    assert "columns of interactions: rating ← Sterne (feedback: 1.5 to 4.5)" in said


def test_a_csv_with_too_many_bad_rows_is_refused_with_the_row_named(tmp_path, capsys):
    file = tmp_path / "export.csv"
    file.write_bytes(dirty(60))
    assert main(["data", "import", str(file), *MAP, "--out", str(tmp_path / "shop")]) == 2
    said = capsys.readouterr().err
    assert (
        "60 of 262 rows are not usable" in said
        and "rating 'viel'" in said
        and len([line for line in said.splitlines() if line.startswith("genre: ")]) == 1
    )
    assert not (tmp_path / "shop").exists()


def test_a_strangers_missing_columns_are_named_at_once(tmp_path):
    file = tmp_path / "export.csv"
    file.write_bytes(dirty(0))
    with pytest.raises(DataError) as caught:
        import_log(file, mapping={"rating": "Sterne"})
    assert "columns 'user_id', 'item_id', 'timestamp' are missing: got Kunde, Artikel-Nr., Wann, rating; expected" in str(
        caught.value
    )
    assert str(caught.value).endswith("--map user_id=THEIRS --map item_id=THEIRS --map timestamp=THEIRS")
    (tmp_path / "b.csv").write_text("userId,sku\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="--map user_id=userId --map item_id=sku --map timestamp=THEIRS"):
        import_log(tmp_path / "b.csv")


def test_the_commonest_reason_speaks_for_a_refused_log(tmp_path):
    lines = [f"u{n},i{n},03/0{1 + n % 9}/2024" for n in range(20)]
    (tmp_path / "a.csv").write_text("\n".join(["user_id,item_id,timestamp", ",i,03/01/2024", *lines]) + "\n", encoding="utf-8")
    with pytest.raises(
        DataError,
        match=r"21 of 21 rows are not usable: got row 1 \(the first is 0\): timestamp '03/01/2024', where .* --time-format .*ISO",
    ):
        import_log(tmp_path / "a.csv")


def test_bad_rows_say_nothing_of_items(tmp_path):
    lines = ["u1,a,soon,Wrong title", *[f"u{n},a,{n},Right title" for n in range(30)]]
    (tmp_path / "a.csv").write_text("\n".join(["user_id,item_id,timestamp,title", *lines]) + "\n", encoding="utf-8")
    log = import_log(tmp_path / "a.csv")
    assert log.catalogue.titles() == ["Right title"] and log.info.skipped == {"bad timestamp": 1}
