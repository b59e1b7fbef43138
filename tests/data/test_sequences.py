"""Rows by hand: every token, position, hidden span and read of small layouts; batches by token budget."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genre.data.sequences.batches import collate, plan_batches
from genre.data.sequences.layout import FeedbackVocabulary, Layout
from genre.errors import DataError

STARS = FeedbackVocabulary("rating", (1.0, 3.0, 5.0))


def layout(item="token", **changes):
    fields = {"text": ("title",), "feedback": STARS, "instruction": "ab", "start": (1,)}
    return Layout(tokenize=lambda text: list(text.encode()), item=item, **{**fields, **changes})


def ids(text):
    return list(text.encode())


# --- feedback -------------------------------------------------------------------------------------------------------


def test_numbers_go_to_the_nearest_value_and_missing_to_code_0():
    codes = STARS.encode(np.array([1.0, 1.9, 2.1, 3.0, 5.0, 99.0, -7.0, np.nan]))
    assert codes.tolist() == [1, 1, 2, 2, 3, 3, 1, 0] and codes.dtype == np.int32
    assert STARS.size == 4 and [STARS.word(code) for code in range(4)] == [" ?", " 1", " 3", " 5"]


def test_texts_keep_their_code_and_unknown_ones_are_missing():
    found = FeedbackVocabulary.fit("behaviour", np.array(["view", None, "cart", "view"], dtype=object))
    assert found.values == ("cart", "view")
    assert found.encode(np.array(["view", "cart", None, "sold"], dtype=object)).tolist() == [2, 1, 0, 0]
    assert found.word(2) == " view"


def test_a_column_with_many_numbers_becomes_quantiles():
    values = np.arange(1000, dtype=float)
    found = FeedbackVocabulary.fit("seconds", values, most=5)
    assert found.values == (0.0, 249.75, 499.5, 749.25, 999.0)
    assert np.bincount(found.encode(values)).tolist()[1:] == [125, 250, 250, 250, 125]


def test_one_value_is_enough():
    assert FeedbackVocabulary.fit("click", np.array([1.0, np.nan])).encode(np.array([1.0, np.nan, 0.0])).tolist() == [1, 0, 1]


def test_a_column_without_values_is_refused():
    with pytest.raises(DataError) as error:
        FeedbackVocabulary.fit("rating", np.array([np.nan]))
    assert str(error.value) == ("feedback column 'rating' has no value in the training events: choose another sequence.feedback")


def test_free_text_is_refused():
    with pytest.raises(DataError, match="feedback column 'review' is free text: got 1001 values; expected at most 1000"):
        FeedbackVocabulary.fit("review", np.array([f"text {i}" for i in range(1001)], dtype=object))


# --- rows -----------------------------------------------------------------------------------------------------------


def test_the_picture_in_the_modules_head():
    made = layout()
    row = made.build(
        made.prefix(),
        np.array([7, 8]),
        np.array([1, 2]),
        candidates=np.array([3, 4]),
        events=np.array([10, 11]),
        candidate_events=np.array([20, 21]),
    )
    assert row.tokens.tolist() == [1, *ids("ab"), 0, 0, 0, 0, 0, 0]
    assert row.items.tolist() == [-1, -1, -1, 7, -1, 8, -1, 3, 4]
    assert row.feedback.tolist() == [-1, -1, -1, -1, 1, -1, 2, -1, -1]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 7]
    assert row.item_reads.tolist() == [3, 5] and row.next_reads.tolist() == [2, 4]
    assert row.candidate_reads.tolist() == [7, 8] and row.branches
    assert [tuple(span) for span in row.masked_spans[7:]] == [(7, 7), (7, 8)] and not (
        row.masked_spans[:7, 1] > row.masked_spans[:7, 0]
    ).any()


def test_text_slots_end_in_a_colon_and_words_follow():
    made = layout("text", soft_feedback=False)
    row = made.build(made.prefix(), np.array([0]), np.array([3]), texts=["x", "yy"], candidates=np.array([1]))
    assert row.tokens.tolist() == [1, *ids("ab\nx: 5\nyy:")]
    assert (row.items == -1).all() and (row.feedback == -1).all()
    assert row.item_reads.tolist() == [5] and row.next_reads.tolist() == [2] and row.candidate_reads.tolist() == [11]
    assert chr(row.tokens[row.item_reads[0]]) == chr(row.tokens[row.candidate_reads[0]]) == ":"


def test_both_puts_the_soft_token_after_the_text():
    made = layout("both")
    row = made.build(made.prefix(), np.array([0]), np.array([3]), texts=["x", "yy"], candidates=np.array([1]))
    assert row.tokens.tolist() == [1, *ids("ab\nx"), 0, 0, *ids("\nyy"), 0]
    assert row.items.tolist() == [-1] * 5 + [0, -1, -1, -1, -1, 1] and row.feedback[6] == 3
    assert row.item_reads.tolist() == [5] and row.candidate_reads.tolist() == [10]


def test_a_long_text_is_cut_and_counted():
    made = layout("text", max_item_tokens=4)
    row = made.build(made.prefix(), np.array([0, 1]), np.array([1, 1]), texts=["abcdef", "ab"])
    assert row.cut == 1 and bytes(row.tokens[3:8].astype(np.uint8)) == b"\nabc:"


def test_a_user_without_events_is_the_prefix():
    made = layout()
    row = made.build(made.prefix(), np.array([], np.int32), np.array([], np.int32), candidates=np.array([5]))
    assert len(row) == 4 and row.positions.tolist() == [0, 1, 2, 3] and row.candidate_reads.tolist() == [3]
    assert not row.branches  # a single branch is plain causal attention


def test_siblings_stand_side_by_side():
    made = layout()
    row = made.build(
        made.prefix(), np.arange(5), np.ones(5, np.int32), groups=np.array([-1, 4, 4, 4, -1]), candidates=np.array([9])
    )
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 6, 5, 6, 7, 8, 9]
    first = int(row.item_reads[1])
    hidden = [list(range(start, end)) for start, end in row.masked_spans[row.item_reads]]
    assert hidden == [[], [], [first, first + 1], [first, first + 1, first + 2, first + 3], []]
    feedback_slots = row.item_reads + 1
    assert not (
        row.masked_spans[feedback_slots, 1] > row.masked_spans[feedback_slots, 0]
    ).any()  # feedback slots see everything before
    assert row.next_reads.tolist() == [2, 4, 4, 4, 10]  # what comes next is asked before the whole impression


def test_the_same_impression_twice_apart_is_never_seen():
    """Ties are ordered by hash, so two impressions of one second can interleave; siblings need not be neighbours."""
    made = layout()
    row = made.build(made.prefix(), np.arange(3), np.ones(3, np.int32), groups=np.array([1, 2, 1]))
    sibling_feedback = int(row.item_reads[0]) + 1
    start, end = row.masked_spans[row.item_reads[2]]
    assert start <= sibling_feedback < end


@pytest.mark.parametrize("soft", [True, False])
def test_without_feedback_an_event_is_its_item_alone(soft):
    made = layout(feedback=None, soft_feedback=soft)
    row = made.build(
        made.prefix(), np.array([7, 8]), np.zeros(2, np.int32), candidates=np.array([3, 4]), events=np.array([10, 11])
    )
    assert row.tokens.tolist() == [1, *ids("ab"), 0, 0, 0, 0] and row.items.tolist() == [-1, -1, -1, 7, 8, 3, 4]
    assert (row.feedback == -1).all() and row.feedback_codes.tolist() == [0, 0]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 5]
    assert row.item_reads.tolist() == [3, 4] and row.next_reads.tolist() == [2, 3]  # the last token before each event
    assert row.event_starts.tolist() == [3, 4] and row.prefix_length == 5 and row.candidate_reads.tolist() == [5, 6]


def test_texts_without_feedback_end_in_their_colon():
    made = layout("text", feedback=None, soft_feedback=False)
    row = made.build(made.prefix(), np.array([0, 1]), np.zeros(2, np.int32), texts=["x", "yy"], candidates=np.array([0]))
    assert row.tokens.tolist() == [1, *ids("ab\nx:\nyy:\nx:")]
    assert row.item_reads.tolist() == [5, 9] and row.next_reads.tolist() == [2, 5]


def test_without_feedback_what_follows_an_impression_sees_all_of_it():
    """Nothing stands after an impression's last item, so that item sees its siblings, and targets are asked before them."""
    made = layout(feedback=None)
    row = made.build(
        made.prefix(), np.arange(5), np.zeros(5, np.int32), groups=np.array([-1, 4, 4, 4, -1]), candidates=np.array([9])
    )
    assert row.positions.tolist() == list(range(9)) and not row.branches
    assert row.next_reads.tolist() == [2, 3, 3, 3, 6] and row.history_lengths.tolist() == [0, 1, 1, 1, 4]


def test_user_columns_fill_the_instruction():
    made = layout(instruction="Age {age}, {job}:")
    assert bytes(made.prefix({"age": 30, "job": None})[1:].astype(np.uint8)) == b"Age 30, unknown:"


@pytest.mark.parametrize("instruction", ["Age {age}", "Age {}", "Age {age"])
def test_an_instruction_that_users_cannot_fill_is_refused(instruction):
    with pytest.raises(
        DataError, match="the instruction (needs the user column.*got name|cannot be read.*); change sequence.instruction"
    ):
        layout(instruction=instruction).prefix({"name": 7})


@pytest.mark.parametrize("instruction", ["Age {name.upper}", "Age {name[0]}", "{name:>1000000}", "{name!r}", "{name:{name}}"])
def test_an_instruction_that_reaches_into_values_is_refused(instruction):
    with pytest.raises(DataError, match="the instruction cannot be read"):
        layout(instruction=instruction).prefix({"name": 7})


@pytest.mark.parametrize("feedback", [STARS, None])
def test_a_layout_comes_back_from_its_description(feedback):
    class Tokenizer:
        bos_token_id = 1

        def __call__(self, text, add_special_tokens):
            assert not add_special_tokens
            return {"input_ids": ids(text)}

    made = Layout.make(
        Tokenizer(),
        item="both",
        text=("title", "genre"),
        feedback=feedback,
        instruction="Age {age}",
        max_item_tokens=9,
        max_events=7,
        soft_feedback=True,
    )
    again = Layout.restore(Tokenizer(), json.loads(json.dumps(made.describe())))
    assert again.describe() == made.describe() and again.feedback == feedback and again.start == (1,)
    assert (again.prefix({"age": 3}) == made.prefix({"age": 3})).all()


# --- batches --------------------------------------------------------------------------------------------------------


def test_collate_pads_and_reads_what_is_labelled():
    made = layout()
    rows = [
        made.build(made.prefix(), np.array([7]), np.array([1]), events=np.array([2])),
        made.build(made.prefix(), np.array([5, 6]), np.array([1, 2]), events=np.array([0, 1]), targets=np.array([False, True])),
        made.build(
            made.prefix(),
            np.array([4]),
            np.array([1]),
            targets=np.array([False]),
            candidates=np.array([8, 9]),
            events=np.array([3]),
            candidate_events=np.array([4, 5]),
        ),
    ]
    likes = np.array([1.0, 0.0, 1.0, 1.0, np.nan, 0.0])
    codes = np.array([5, 6, 7, 4, 8, -1])
    batch = collate(rows, {"like": ("item", likes), "next": ("feedback", codes)})
    assert batch.tokens.shape == (3, 7) and batch.used == 5 + 7 + 7
    like, following = batch.reads["like"], batch.reads["next"]
    assert like.events.tolist() == [2, 1, 5] and like.labels.tolist() == [1.0, 0.0, 0.0] and like.labels.dtype == torch.float32
    assert list(zip(like.rows.tolist(), like.token_index.tolist(), strict=True)) == [(0, 3), (1, 5), (2, 6)]
    assert following.events.tolist() == [2, 1, 4] and following.labels.tolist() == [7, 6, 8]
    assert list(zip(following.rows.tolist(), following.token_index.tolist(), strict=True)) == [(0, 2), (1, 4), (2, 4)]
    moved = batch.to("cpu")
    assert torch.equal(moved.mask, batch.mask) and torch.equal(moved.reads["like"].token_index, like.token_index)


def test_plain_rows_need_no_mask():
    made = layout()
    rows = [made.build(made.prefix(), np.arange(n), np.ones(n, np.int32)) for n in (1, 3)]
    batch = collate(rows, {})
    assert batch.mask is None and batch.positions is None


def test_the_mask_says_who_sees_whom():
    made = layout()
    row = made.build(made.prefix(), np.array([7]), np.array([1]), candidates=np.array([1, 2, 3]))
    mask = collate([row], {}).mask[0, 0].numpy()
    trunk = int(row.candidate_reads[0])
    for own in row.candidate_reads:
        assert mask[own].nonzero()[0].tolist() == [*range(trunk), own]
    assert (mask[:trunk, :trunk] == np.tril(np.ones((trunk, trunk), bool))).all() and not mask[:trunk, trunk:].any()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=0, max_size=80),
    budget=st.integers(16, 200),
    pool=st.integers(1, 40),
    shuffled=st.booleans(),
)
def test_batches_hold_every_row_once_within_the_budget(lengths, budget, pool, shuffled):
    sizes = np.array(lengths, dtype=np.int64)
    order = np.random.default_rng(0).permutation(len(sizes)) if shuffled else None
    batches = list(plan_batches(sizes, budget, order, pool=pool))
    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * sizes[batch].max() <= budget
    again = list(plan_batches(sizes, budget, order, pool=pool))
    assert [batch.tolist() for batch in again] == [batch.tolist() for batch in batches]
