"""What a history says of an answer: seen items by the task's rule, why a list is empty, the fields of events."""

import numpy as np
import pytest

import genre
from builders import NEXT, publish_stirred, recipe
from genre.engine import Engine, Request

RATED = {"item_id": "i0", "rating": 5}


def values(response):
    assert response.error is None, response.error
    return np.array([scored.score for scored in response.results])


def ids(response):
    assert response.error is None, response.error
    return [scored.item_id for scored in response.results]


@pytest.fixture(scope="module")
def engine(tiny, trained, tmp_path_factory):
    """An engine of the trained adapters, and of one that was evaluated with seen items kept."""
    base, kept = genre.Base.load(str(tiny)), recipe(tiny, {**NEXT, "seen": "kept"}, name="repeats")
    publish_stirred(trained.registry, kept, trained.log, base, tmp_path_factory.mktemp("kept"), encoder="encoder-planted")
    with Engine(base, trained.registry, lanes=8, data=trained.log) as engine:
        yield engine


def test_seen_items_are_what_the_task_was_evaluated_with(engine, log):
    seen = {event["item_id"] for event in log.history("u2")}
    for name, usual in (("repeats", True), ("next_item", False)):
        asked = [Request(name, user_id="u2", k=100, exclude_seen=exclude) for exclude in (None, True, False)]
        plain, masked, kept = (set(ids(answer)) for answer in engine.score(asked))
        assert (seen <= plain) is usual and not seen & masked and seen <= kept


def test_an_empty_list_says_why(engine, log):
    seen = sorted({event["item_id"] for event in log.history("u2")})[:3]
    asked = {
        "each of 3 items is in the history, and exclude_seen: false keeps those": {"allow": seen},
        "the one item is in the history, and exclude_seen: false keeps those": {"allow": seen[:1]},
        "every item is denied": {"candidates": seen, "deny": seen},
        "no candidate is allowed": {"candidates": seen, "allow": ["i29"] if "i29" not in seen else ["i28"]},
        "no item meets title == nothing": {"where": ["title == nothing", "title != other"]},
        "no item is asked for": {"candidates": []},
    }
    answers = engine.score([Request("next_item", user_id="u2", k=5, **fields) for fields in asked.values()])
    for why, answer in zip(asked, answers, strict=True):
        assert answer.error is None and answer.results == () and answer.note == answer.to_json()["note"] == why
    (full,) = engine.score([Request("next_item", user_id="u2", k=5)])
    assert full.note is None and "note" not in full.to_json()


def test_events_may_have_the_columns_of_other_logs_and_no_known_feedback(engine):
    plain, more, unknown = (
        [RATED | extra] for extra in ({}, {"click": 1, "behaviour": "view", "timestamp": 5}, {"rating": None})
    )
    first, second, third = engine.score([Request("like", history=each, candidates=["i1"]) for each in (plain, more, unknown)])
    assert values(first)[0] == pytest.approx(values(second)[0], abs=1e-6) != pytest.approx(values(third)[0], abs=1e-4)


def test_a_data_set_without_the_feedback_that_is_read_is_no_silence(base, trained, log):
    frame = log.frame.drop("rating", "row").with_columns(price=1.0)
    bare = genre.Interactions.from_frame(frame, items=log.catalogue.frame, users=log.users, name="bare")
    with Engine(base, trained.registry, data=bare) as other:
        by_id, priced = other.score(
            [
                Request("like", user_id="u1", candidates=["i1"]),
                Request("like", history=[RATED | {"price": 3.0}], candidates=["i1"]),
            ]
        )
    assert by_id.error == "history[0] has no rating: got item_id, timestamp, price; expected rating, null where it is not known"
    assert len(values(priced)) == 1
