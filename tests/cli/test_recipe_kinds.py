"""What `genre recipe new next_item` writes for a log's kind, and why."""

import polars as pl
import pytest

from genre.cli.recipe.new import Wanted, for_events
from genre.data.interactions import Interactions
from genre.recipe import Recipe


def log_of(events, *, repeats=False, titles=True):
    """Eight users with so many events each, whose last item is one that they had if `repeats`."""
    rows = [(f"u{user}", f"i{(user + step) % 40}", 60 * step + user) for user in range(8) for step in range(events)]
    if repeats:
        rows = [(user, f"i{int(user[1:]) % 40}" if at // 60 == events - 1 else item, at) for user, item, at in rows]
    items = pl.DataFrame(
        {"item_id": [f"i{i}" for i in range(40)], "title": [f"a steel bolt of kind {i} with a nut" for i in range(40)]}
    )
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return Interactions.from_frame(frame, items=items if titles else items.select("item_id"), name="log")


@pytest.mark.parametrize(
    ("log", "encoder"),
    [
        (log_of(6), {"whiten": True, "taste": 0, "neighbours": 100}),
        (log_of(6, titles=False), {"whiten": False, "taste": 0, "neighbours": 100}),
        (log_of(30), {"factors": 64}),
    ],
    ids=["few events and text", "few events", "many events"],
)
def test_the_kind_of_a_log_decides_what_is_known_of_co_occurrence(log, encoder):
    draft = for_events(Wanted("data", task="next_item"), log)
    assert {key: value for key, value in draft.sections["encoder"].items() if key not in ("use", "text")} == encoder
    assert Recipe.parse(draft.sections).encoder.neighbours == encoder.get("neighbours", 0)
    why = draft.reasons["encoder.neighbours" if "neighbours" in encoder else "encoder.factors"]
    assert f"the median user has {6 if 'neighbours' in encoder else 30} events" in why


@pytest.mark.parametrize(("repeats", "seen"), [(False, "masked"), (True, "kept")])
def test_items_that_come_back_stay_in_the_ranking(repeats, seen):
    draft = for_events(Wanted("data", task="next_item"), log_of(6, repeats=repeats))
    assert draft.sections["tasks"][0]["seen"] == seen
    assert f"{100 if repeats else 0}% of users' last items" in draft.reasons["tasks.seen"]
