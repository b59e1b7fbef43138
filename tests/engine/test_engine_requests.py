"""Requests: what is refused where they are made; rows of a score file with every odd value in every field: one answer each."""

import json
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest

from builders import LIKE, publish_stirred, recipe
from genre.engine import Engine, Request
from genre.errors import RequestError
from genre.jobs.score.local import Scorer
from genre.jobs.score.requests import RequestFile, read_row
from genre.modules.base.base import Base

ODD = json.loads(r"""
[null, 5, -1, 0, true, 1.5, NaN, Infinity, 1000000000000000000000000000000, "x", "", "\u0000", [], [1], ["i0"], [null], [[]],
 [{}], {}, {"a": 1}, {"age": [1]}, {"item_id": "i0"}, {"title": "a"}, {"title": 5}, [{"title": null}], [{"title": ["a"]}],
 [{"title": 5}], [{"item_id": []}], [{"item_id": "i0", "rating": []}], [{"item_id": "i0", "rating": "nan"}],
 [{"item_id": "\u0000inline-0"}], [{"item_id": "i0", "rating": 1e300}], [{"item_id": "i0", "impression_id": []}],
 [{"item": {"title": {"a": 1}}}],
 [{"item_id": "i0", "rating": null, "impression_id": "a"}, {"item_id": "i1", "rating": 5, "impression_id": "b"},
  {"item_id": "i2", "rating": 1, "impression_id": "a"}]]
""")
FIELDS = ("history", "candidates", "k", "task", "user_id", "user", "exclude_seen", "allow", "deny", "id", "adapter")
GOOD = Request("like", history=[], candidates=["i0", "i7"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"history": [], "k": 1, "stray": 1}, "a request has an unknown field: got stray; expected adapter, history, "),
        ({"k": 1}, "a request needs a history or a user_id: give history: [] for a user without events"),
        ({"history": [{"item_id": 7}], "k": 1}, "history[0].item_id cannot be used: got 7; expected a text or an object"),
        ({"history": [{"item": ["i1"]}], "k": 1}, "history[0].item cannot be used: got ['i1']; expected a text or an object"),
        ({"history": [{"rating": 5}], "k": 1}, "an event of the history names no item: got {'rating': 5}; expected item_id, or"),
        ({"history": [{"item_id": "a", "impression_id": []}], "k": 1}, "history[0].impression_id cannot be used: got []"),
        ({"user_id": "u", "candidates": ["a", 5]}, "candidates[1] cannot be used: got 5; expected a text or an object"),
        ({"user_id": "u", "candidates": ["a"] * 100_001}, "candidates has a wrong length: got 100,001; expected at most 100,000"),
        ({"user_id": "u", "k": True}, "k cannot be used: got True; expected a whole number"),
        ({"user_id": "u", "k": 0}, "k cannot be used: got 0; expected at least 1"),
        ({"user_id": "u", "k": 2000, "diversity": 0.5}, "k is too large for diversity: got 2000; expected at most 1,000"),
        ({"user_id": "u", "k": 1, "exclude_seen": 0}, "exclude_seen cannot be used: got 0; expected true or false"),
        ({"user_id": "u", "k": 1, "user": []}, "user cannot be used: got []; expected an object"),
        ({"texts": [{"text_id": None}]}, "the text_id of a text cannot be used"),
        ({"texts": [{"title": True}]}, "texts[0].title cannot be used: got True; expected a text"),
    ],
)
def test_a_request_is_checked_where_it_is_made(fields, message):
    """In Python as in a row, with one message for both."""
    for make in (lambda: Request("like", **fields), lambda: Request.from_json({"adapter": "like", **fields})):
        with pytest.raises(RequestError) as caught:
            make()
        assert str(caught.value).startswith(message)


def test_what_python_has_for_lists_and_objects_is_taken():
    request = Request(
        "like", history=({"item_id": "a"},), candidates=np.array(["a", "b"]), user=MappingProxyType({"age": 3}), id=7
    )
    assert request == Request("like", history=[{"item_id": "a"}], candidates=["a", "b"], user={"age": 3}, id="7")
    with pytest.raises(RequestError, match="adapter cannot be used: got 5; expected a text"):
        replace(request, adapter=5)


@pytest.fixture(scope="module")
def engine(tiny, trained, tmp_path_factory):
    base = Base.load(str(tiny))
    text = recipe(tiny, LIKE, name="odd-text", sequence={"item": "text"}, encoder={"use": "none"})
    publish_stirred(trained.registry, text, trained.log, base, tmp_path_factory.mktemp("odd"), seed=3)
    with Engine(base, trained.registry, lanes=8, data=trained.log) as engine:
        yield engine


@pytest.mark.parametrize("adapter", ["like", "next_item", "odd-text"])
@pytest.mark.parametrize("field", FIELDS)
def test_an_odd_value_is_answered_or_refused_in_its_own_row(engine, adapter, field):
    wanted = [scored.score for scored in engine.score([GOOD])[0].results]
    requests = []
    for value in ODD:
        row = {"adapter": adapter, "history": [{"item_id": "i3", "rating": 4}], "k": 2, field: value}
        if field == "user_id":
            del row["history"]
        try:
            requests += [Request.from_json(row), GOOD]
        except RequestError as error:
            assert "\n" not in str(error)
    answers = engine.score(requests)
    assert len(answers) == len(requests)
    for answer, good in zip(answers[::2], answers[1::2], strict=True):
        assert [scored.score for scored in good.results] == pytest.approx(wanted, abs=1e-5)
        json.dumps(answer.to_json(), allow_nan=False)
    assert engine.occupancy()["requests"] == 0


@pytest.mark.parametrize(
    "row",
    [
        {"id": "\udc80", "adapter": "like", "history": [], "candidates": ["i0"]},
        {"adapter": "like", "history": [], "candidates": ["\udc80"]},
        {"adapter": "like", "history": [], "candidates": [{"title": "\udc80"}]},
        {"adapter": "like", "history": [], "user": {"age": "\udc80"}, "candidates": ["i0"]},
    ],
    ids=["id", "item", "title", "user"],
)
def test_text_that_is_no_unicode_fails_in_its_own_row(engine, tmp_path, row):
    """JSON may hold half a surrogate pair, which no UTF-8 file can."""
    lines = [json.dumps(row), json.dumps({"id": "good", "adapter": "like", "history": [], "candidates": ["i0"]})]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    with RequestFile(tmp_path / "in.jsonl") as file:
        answers = Scorer(engine).answer(map(read_row, file.lines()))
    assert (answers.rows, answers.errors) == (2, 1)
    bad, good = map(json.loads, answers.text.decode("utf-8").splitlines())
    assert "error" in bad and good["id"] == "good" and len(good["results"]) == 1
