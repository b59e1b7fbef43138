"""Columns of a catalogue by what they hold: text is read, the title first; numbers, codes, addresses and copies are not."""

from datetime import date

import polars as pl
import pytest

from genre.data.item_texts import item_texts

COUNT = 200
NUMBERS = range(COUNT)
WORDS = ["red", "green", "house", "river", "song", "night", "train", "letter"]
TITLES = [f"{WORDS[n % 8]} {WORDS[n // 8 % 8]} of {WORDS[(n // 64 + n) % 8]}" for n in NUMBERS]

COLUMNS = {
    "a description": (
        [f"A {WORDS[n % 8]} {WORDS[n % 7]} is found, nobody knows why." for n in NUMBERS],
        True,
        "words in each",
    ),
    "brands of one word": ([WORDS[n % 5].title() for n in NUMBERS], True, "1.0 words in each, 5 different"),
    "other alphabets": ([["красный дом", "赤い 家", "σπίτι"][n % 3] for n in NUMBERS], True, "3 different"),
    "tags": ([["drama", "war"] if n % 2 else ["comedy"] for n in NUMBERS], True, "1.5 tags in each, 3 different"),
    "mostly without tags": ([["drama"] if n == 0 else [] for n in NUMBERS], False, "filled in 0.5% of the items"),
    "years": ([1950 + n % 60 for n in NUMBERS], True, "years, 1950 to 2009"),
    "prices": ([n * 1.5 for n in NUMBERS], False, "numbers"),
    "counts": ([n * 7 for n in NUMBERS], False, "numbers"),
    "prices as text": ([f"{n},50" for n in NUMBERS], False, "numbers"),
    "vectors": ([[0.5, float(n)] for n in NUMBERS], False, "lists of numbers"),
    "flags": ([n % 2 == 0 for n in NUMBERS], False, "true or false"),
    "days": ([date(2020, 1, 1 + n % 28) for n in NUMBERS], False, "dates"),
    "days as text": ([f"2020-01-{1 + n % 28:02d}" for n in NUMBERS], False, "dates"),
    "English days": ([f"{1 + n % 28:02d}-Jan-1995" for n in NUMBERS], False, "dates"),
    "addresses": ([f"https://shop.example/item/{n}" for n in NUMBERS], False, "web addresses"),
    "pictures": ([f"images/large-{n}.jpg" for n in NUMBERS], False, "web addresses"),
    "article numbers": ([f"SKU-{n:05d}-X" for n in NUMBERS], False, "codes"),
    "hashes": ([f"{n * 7919:032x}" for n in NUMBERS], False, "codes"),
    "one value": (["in stock"] * COUNT, False, "one value"),
    "hardly filled": (["a note"] * 3 + [None] * (COUNT - 3), False, "filled in 1.5% of the items"),
    "blank": (["  "] * COUNT, False, "filled in 0.0% of the items"),
    "the title again": (TITLES, False, "the title again"),
    "signs": ([f"*** --- {'!' * (n % 9 + 1)}" for n in NUMBERS], False, "hardly any letters"),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_a_column_is_judged_by_what_it_holds(case):
    values, reads, why = COLUMNS[case]
    frame = pl.DataFrame({"item_id": [f"i{n}" for n in NUMBERS], "other": values, "title": TITLES})
    (found,) = [each for each in item_texts(frame) if each.name == "other"]
    assert (found.reads, why in found.why) == (reads, True), str(found)
    assert str(found) == f"other: {'read' if reads else 'not read'}, {found.why}"


def test_the_title_is_first_then_short_ones_before_long_ones():
    frame = pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in NUMBERS],
            "plot": COLUMNS["a description"][0],
            "sku": COLUMNS["article numbers"][0],
            "genres": COLUMNS["tags"][0],
            "title": TITLES,
        }
    )
    assert [(each.name, each.reads) for each in item_texts(frame)] == [
        ("title", True),
        ("genres", True),
        ("plot", True),
        ("sku", False),
    ]


def test_years_that_the_title_has_are_not_read_twice():
    years = [1950 + n % 60 for n in NUMBERS]
    titles = [f"{title} ({year})" for title, year in zip(TITLES, years, strict=True)]
    (_, year) = item_texts(pl.DataFrame({"item_id": [str(n) for n in NUMBERS], "title": titles, "year": years}))
    assert (year.reads, year.why) == (False, "years, which the title has")


@pytest.mark.parametrize("title", [["1984", "300", "2001"], ["X", "X", "X"]])
def test_a_title_is_read_whatever_it_holds(title):
    assert item_texts(pl.DataFrame({"item_id": ["a", "b", "c"], "title": title}))[0].reads


def test_a_catalogue_of_ids_has_no_text():
    assert item_texts(pl.DataFrame({"item_id": ["a", "b"]})) == []
    assert (
        item_texts(pl.DataFrame({"item_id": [], "title": []}, schema={"item_id": pl.String, "title": pl.String}))[0].reads
        is False
    )
