"""Layouts as a stranger's manifest records them: read only where every field is of its kind and size."""

import pytest

from genre.data.sequences import layout
from genre.data.sequences.described import LogLayout, TextsLayout, check_described
from genre.errors import DataError, ManifestError

LOG = {
    "item": "token",
    "instruction": "Events of one of {age}:",
    "max_item_tokens": 24,
    "max_events": 100,
    "soft_feedback": True,
    "text": ["title"],
    "feedback": "rating",
    "values": [1.0, 2.0],
}
TEXTS = {"instruction": "", "text": ["title", "review"], "max_tokens": 256, "pool": "mean"}


def test_what_is_recorded_is_read():
    check_described(LOG, LogLayout)
    check_described({**LOG, "feedback": None, "values": [], "more": 1}, LogLayout)
    check_described({**LOG, "feedback": "behaviour", "values": ["cart", "view"]}, LogLayout)
    check_described({**TEXTS, "terms": 5}, TextsLayout)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("item", "code"),
        ("item", ["token"]),
        ("instruction", 5),
        ("instruction", "x" * 100_000),
        ("max_item_tokens", "24"),
        ("max_events", 0),
        ("max_events", 10**15),
        ("max_events", 1.5),
        ("soft_feedback", "x"),
        ("text", "title"),
        ("text", [5]),
        ("feedback", 5),
        ("values", "12345"),
        ("values", [{}]),
        ("values", [float("inf")]),
        ("values", [0.5] * 20_000),
    ],
)
def test_a_field_of_another_kind_or_size_is_refused_by_its_name(field, value):
    with pytest.raises(ManifestError, match=f"sequence.{field} cannot be read: got "):
        check_described({**LOG, field: value}, LogLayout)


@pytest.mark.parametrize("field", sorted(LOG))
def test_a_missing_field_is_named(field):
    with pytest.raises(ManifestError, match=f"sequence.{field} cannot be read"):
        check_described({name: value for name, value in LOG.items() if name != field}, LogLayout)


@pytest.mark.parametrize("change", [{"max_tokens": 10**12}, {"max_tokens": None}, {"pool": []}, {"pool": "auto"}])
def test_a_layout_of_texts_is_checked_too(change):
    with pytest.raises(ManifestError, match=f"sequence.{next(iter(change))}"):
        check_described({**TEXTS, **change}, TextsLayout)


@pytest.mark.parametrize("instruction", ["{age:>100000000}", "{age.__class__}", "{age!r}", "{}", "{"])
def test_an_instruction_is_no_format_string(instruction):
    with pytest.raises(DataError, match="the instruction cannot be read"):
        check_described({**LOG, "instruction": instruction}, LogLayout)


def test_tokens_of_long_texts_are_not_remembered_and_those_of_others_up_to_a_number(monkeypatch):
    memo: dict[str, int] = {}
    layout._keep(memo, "x" * layout.LONGEST_KEPT, 1)
    layout._keep(memo, "y" * (layout.LONGEST_KEPT + 1), 2)
    assert list(memo.values()) == [1]
    monkeypatch.setattr(layout, "MOST_KEPT", 3)
    for number in range(20):
        layout._keep(memo, str(number), number)
        assert len(memo) <= 4 and memo[str(number)] == number
