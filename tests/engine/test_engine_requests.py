"""Rows of a score file with every odd value in every field: one answer each, in order, and no other row is disturbed."""

import json

import pytest

from builders import LIKE, publish_stirred, recipe
from genre.engine import Engine, Request
from genre.errors import RequestError
from genre.jobs.score.local import Scorer
from genre.jobs.score.requests import RequestFile, read_row
from genre.modules.base.base import Base

ODD = [
    None, 5, -1, 0, True, 1.5, float("nan"), float("inf"), 10**30, "x", "", "\x00", [], [1], ["i0"], [None], [[]], [{}], {},
    {"a": 1}, {"age": [1]}, {"item_id": "i0"}, {"title": "a"}, {"title": 5}, [{"title": None}], [{"title": ["a"]}],
    [{"title": 5}], [{"item_id": []}], [{"item_id": "i0", "rating": []}], [{"item_id": "i0", "rating": "nan"}],
    [{"item_id": "\x00inline-0"}],
    [{"item_id": "i0", "rating": 1e300}], [{"item_id": "i0", "impression_id": []}], [{"item": {"title": {"a": 1}}}],
    [{"item_id": "i0", "impression_id": "a"}, {"item_id": "i1", "impression_id": "b"}, {"item_id": "i2", "impression_id": "a"}],
]  # fmt: skip
FIELDS = ("history", "candidates", "k", "task", "user_id", "user", "exclude_seen", "allow", "deny", "id", "adapter")
GOOD = Request("like", history=[], candidates=["i0", "i7"])


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
