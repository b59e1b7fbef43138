"""Conditions on item columns: read, met, refused; and in requests, each row on its own."""

from datetime import date, datetime

import polars as pl
import pytest

from builders import NEXT, publish_stirred, recipe
from genre.data.interactions import Interactions
from genre.engine import Engine, Request
from genre.engine.filters import Condition
from genre.errors import RequestError
from genre.modules.base.base import Base

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "d"],
        "in_stock": [True, False, None, True],
        "price": [9.5, 20.0, None, 3.0],
        "language": ["en", "fr", None, "en"],
        "released": [date(2024, 5, 1), date(2024, 4, 1), date(2024, 6, 1), None],
        "seen at": [datetime(2024, 5, 1, 12), None, datetime(2023, 1, 1), datetime(2024, 5, 2)],
        "iso": ["2024-05-01", "2024-04-30T23:00:00", "", None],
        "seconds": [1714521600, 1711929600, None, 1714521601],  # 2024-05-01, 2024-04-01
        "year": [1990, 1995, None, 1996],
        "vector": [[1.0], [2.0], [3.0], [4.0]],
    }
)


@pytest.mark.parametrize(
    ("condition", "met"),
    [
        ("in_stock == true", "ad"),
        ("in_stock != true", "b"),
        (" price<=9.5 ", "ad"),
        ("price > 3", "ab"),
        ("language == 'en'", "ad"),
        ("language != en", "b"),
        ("released >= 2024-05-01", "ac"),
        ("released within 30 days of 2024-05-01", "ab"),
        ("released within 29.9 days of 2024-05-01", "a"),
        ("released within 1 day of 2024-04-01", "b"),
        ("seen at < 2024-05-01", "c"),
        ("seen at within 1 days of 2024-05-02T00:00:00+00:00", "ad"),
        ("seen at == 2024-05-01T14:00:00+02:00", "a"),
        ("iso < 2024-05-01", "b"),
        ("iso within 2 days of 2024-05-01", "ab"),
        ("seconds within 31 days of 2024-05-01", "ab"),
        ("seconds > 1714521600", "d"),
        ("year >= 1995", "bd"),
    ],
)
def test_which_items_meet_a_condition(condition, met):
    found = Condition.read(condition).met(ITEMS)
    assert found.dtype == bool and "".join(ITEMS["item_id"].filter(pl.Series(found))) == met


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("in_stock", "a condition cannot be read: got 'in_stock'; expected COLUMN, one of"),
        ("in_stock = true", "a condition cannot be read"),
        ("== 3", "a condition cannot be read"),
        ("price > ", "a condition cannot be read"),
        ("__import__('os').system('x')", "a condition cannot be read"),
        ("x" * 400 + " == 1", "a condition cannot be read"),
        (5, "a condition cannot be read: got 5"),
        ("stock == 1", "the items have no column 'stock'.*expected one of item_id, in_stock, price"),
        ("in_stock == 1", "column 'in_stock' does not fit: it holds true or false: got '1'"),
        ("in_stock > true", "column 'in_stock' does not fit.*expected == or !="),
        ("price == cheap", "column 'price' does not fit: it holds numbers: got 'cheap'"),
        ("price > nan", "column 'price' does not fit: it holds numbers"),
        ("language > 2024-01-01", "it holds texts that are not times: got e.g. 'en'"),
        ("released > soon", "column 'released' does not fit: it holds times: got 'soon'"),
        ("year within 3 days of 2024-01-01", "it holds numbers too small for times"),
        ("in_stock within 3 days of 2024-01-01", "column 'in_stock' does not fit"),
        ("vector == 1", "it holds List"),
    ],
)
def test_a_condition_that_does_not_fit_is_refused(condition, message):
    with pytest.raises(RequestError, match=message) as caught:
        Condition.read(condition).met(ITEMS)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def engine(tiny, trained, tmp_path_factory):
    base = Base.load(str(tiny))
    stock = pl.Series("in_stock", [i % 3 == 0 for i in range(trained.log.catalogue.size)])
    items = trained.log.catalogue.frame.with_columns(stock)
    log = Interactions.from_frame(trained.log.frame.drop("row"), items=items, users=trained.log.users, name="stock")
    publish_stirred(
        trained.registry,
        recipe(tiny, NEXT, name="filtered"),
        trained.log,
        base,
        tmp_path_factory.mktemp("f"),
        encoder="encoder-planted",
    )
    with Engine(base, trained.registry, data=log) as engine:
        yield engine


def test_requests_are_answered_with_what_is_in_stock(engine):
    catalogue = engine.data.catalogue
    stock = {item for item, there in zip(catalogue.item_ids, catalogue.column("in_stock"), strict=True) if there}
    ask = {"adapter": "filtered", "history": [{"item_id": "i3", "rating": 5}]}
    rows = [
        ask | {"k": 40},
        ask | {"k": 40, "where": ["in_stock == true"]},
        ask | {"k": 3, "where": ["in_stock == 1"]},
        ask | {"candidates": ["i0", "i1", "i2"], "where": ["in_stock == true"]},
        ask | {"candidates": [{"title": "war 99", "in_stock": True}, {"title": "war 98"}], "where": ["in_stock == true"]},
        ask | {"k": 5, "where": ["in_stock == true", "title == nothing"]},
        ask | {"k": 2, "where": ["in_stock == false"]},
    ]
    every, some, wrong, given, inline, none, out = engine.score([Request.from_json(row) for row in rows])
    kept = [(item.item_id, pytest.approx(item.score)) for item in every.results if item.item_id in stock]
    assert [(item.item_id, item.score) for item in some.results] == kept and 0 < len(kept) < len(every.results)
    assert "column 'in_stock' does not fit" in wrong.error and not wrong.results
    assert {item.item_id for item in given.results} == stock & {"i0", "i1", "i2"}
    assert [item.item_id for item in inline.results] == ["war 99"]
    assert none.error is None and none.results == ()
    assert len(out.results) == 2 and not stock & {item.item_id for item in out.results}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"where": "in_stock == true"}, "where cannot be used: got 'in_stock == true'; expected a list"),
        ({"where": [1]}, "where[0] cannot be used: got 1; expected a text"),
        ({"where": ["a == 1"] * 33}, "where has a wrong length: got 33; expected at most 32"),
        ({"diversity": 2}, "diversity cannot be used: got 2; expected at most 1"),
        ({"diversity": True}, "diversity cannot be used"),
        ({"diversity": float("nan")}, "diversity cannot be used"),
        ({"diversity": 0.5, "k": None, "candidates": ["i0"]}, "diversity needs k"),
    ],
)
def test_a_wrong_choice_is_refused_in_its_own_row(engine, fields, message):
    good = Request("filtered", history=[], k=1)
    asked = {"adapter": "filtered", "history": [], "k": 2, **fields}
    refused, answered = engine.score([asked, good])
    assert message in refused.error and answered.error is None


@pytest.mark.parametrize("denied", [None, ["i0"], ["i3", "i5"]])
def test_seen_items_are_left_out_whatever_else_is(engine, denied):
    """Of a history with an inline item, whose code is no item of the catalogue."""
    seen = ["i1", "i3"]
    history = [{"item_id": item, "rating": 5} for item in seen] + [{"item": {"title": "war 99"}, "rating": 5}]
    (answer,) = engine.score([Request("filtered", history=history, k=100, exclude_seen=True, deny=denied)])
    (every,) = engine.score([Request("filtered", history=history, k=100, exclude_seen=False)])
    left = [(item.item_id, item.score) for item in every.results if item.item_id not in {*seen, *(denied or ())}]
    assert answer.error is None and [(item.item_id, item.score) for item in answer.results] == left
    whole = sum(item.probability for item in answer.results)
    assert whole == pytest.approx(1.0)
