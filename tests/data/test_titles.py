"""The one item that a person means, or a clear line about why there is none."""

import polars as pl
import pytest

from genre.data.catalogue import Catalogue, Titles
from genre.errors import InputError

TITLES = Titles(
    Catalogue(
        pl.DataFrame(
            {
                "item_id": ["1", "2", "3", "4", "5"],
                "title": ["Toy Story", "Toy Story 2", "Chasing Amy", "Chasing Amy", None],
            }
        )
    )
)


@pytest.mark.parametrize(("text", "item"), [("Toy Story", "1"), (" toy STORY ", "1"), ("story 2", "2"), ("5", "5"), ("3", "3")])
def test_one_item_is_found(text, item):
    assert TITLES.find(text) == item


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "chasing amy",
            r"several items have this title: got 'chasing amy': Chasing Amy \(3\), Chasing Amy \(4\); expected one item",
        ),
        ("toy", r"several items have this title: got 'toy': Toy Story \(1\), Toy Story 2 \(2\)"),
        ("Aladdin", "no item has this title: got 'Aladdin'"),
        ("  ", "no item has this title"),
        (".*", "no item has this title"),
    ],
)
def test_none_or_several_are_told(text, message):
    with pytest.raises(InputError, match=message) as caught:
        TITLES.find(text)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_many_are_cut():
    many = Titles(Catalogue(pl.DataFrame({"item_id": [f"i{n}" for n in range(9)], "title": [f"film {n}" for n in range(9)]})))
    with pytest.raises(InputError, match=r"film 4 \(i4\), …; expected"):
        many.find("film")
