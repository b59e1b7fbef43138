"""Labelled texts as rows: special tokens, truncation, where a state is read, and what one row must not say of another."""

import numpy as np
import polars as pl
import pytest
import torch

from fakes import planted_texts
from genre.data.sequences.batches import collate, span_means
from genre.data.sequences.text_rows import TextLayout, TextRows
from genre.data.splits import SplitConfig
from genre.data.texts.dataset import Texts
from genre.errors import DataError, RecipeError
from genre.modules.base.base import Base
from genre.tasks import Task

GOOD = Task(name="good", kind="text", label="recommended")


def layout(base: Base, **fields) -> TextLayout:
    return TextLayout.make(base, **{"text": ("title", "review"), "instruction": "", "max_tokens": 64, "pool": "auto", **fields})


def words(base: Base, row) -> str:
    return base.tokenizer.decode(row.tokens)


def test_an_encoder_reads_between_its_own_marks_and_a_causal_base_between_begin_and_end(bert, base):
    (row,) = layout(bert).rows(["ab"], [7])
    assert words(bert, row) == "[CLS]ab[SEP]" and row.events.tolist() == [7] and not row.branches
    assert (row.item_reads.tolist(), row.spans.tolist()) == ([3], [4])  # the mean of all four
    (row,) = layout(base).rows(["ab"], [0])
    assert words(base, row) == "<s>ab</s>" and (row.item_reads.tolist(), row.spans.tolist()) == ([3], [1])
    (row,) = layout(bert, pool="first").rows(["ab"], [0])
    assert (row.item_reads.tolist(), row.spans.tolist()) == ([0], [1])


def test_long_texts_lose_their_end_and_are_counted(bert):
    rows = layout(bert, max_tokens=8, instruction="i:").rows(["abcd", "abcde", ""], range(3))
    assert [words(bert, row) for row in rows] == ["[CLS]i:abcd[SEP]", "[CLS]i:abcd[SEP]", "[CLS]i:[SEP]"]
    assert [row.cut for row in rows] == [0, 1, 0]
    builder = TextRows(planted_texts(groups=10), layout(bert, max_tokens=20))
    longest = [len(bert.tokenizer(text)["input_ids"]) for text in builder.data.join(["title", "review"])]
    assert all(len(row) <= 20 for row in builder.all_rows) and builder.cut == sum(length > 20 for length in longest) > 0
    builder.training_rows(np.ones(len(builder.data), dtype=bool))
    assert builder.cut == sum(length > 20 for length in longest)  # counted once, however often rows are asked for


def test_a_mean_is_over_the_rows_own_tokens(bert):
    rows = layout(bert).rows(["short", "a good deal longer"], [0, 1])
    batch = collate(rows, {"good": ("item", np.array([1.0, 0.0]))})
    reads = batch.reads["good"]
    hidden = torch.randn(2, batch.tokens.shape[1], 3, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(reads.of(hidden)[0], hidden[0, : len(rows[0])].mean(0), atol=1e-6)
    assert torch.allclose(reads.of(hidden)[1], hidden[1].mean(0), atol=1e-6)
    middle = span_means(hidden, torch.tensor([4, 6]), torch.tensor([2, 1]))
    assert torch.allclose(middle, torch.stack([hidden[0, 3:5].mean(0), hidden[1, 6]]), atol=1e-6)


@pytest.mark.parametrize("pool", ["mean", "first"])
def test_a_texts_state_does_not_depend_on_its_batch(bert, pool):
    rows = layout(bert, pool=pool).rows(["short", "a good deal longer than that", "mid length"], range(3))
    labels = {"good": ("item", np.array([1.0, 0.0, 1.0]))}

    def states(some):
        batch = collate(some, labels)
        with torch.no_grad():
            return batch.reads["good"].of(bert.hidden(bert.embedding(batch.tokens), lengths=batch.lengths))

    together = states(rows)
    for place, row in enumerate(rows):
        assert torch.allclose(together[place], states([row])[0], atol=1e-6)


def test_a_layout_survives_its_description(bert, base):
    for one in (bert, base):
        made = layout(one, instruction="x", max_tokens=32)
        again = TextLayout.restore(one, made.describe())
        assert again.describe() == made.describe() and (again.start, again.end) == (made.start, made.end)
        assert [row.tokens.tolist() for row in again.rows(["ab"], [0])] == [row.tokens.tolist() for row in made.rows(["ab"], [0])]


def test_layouts_that_cannot_be(bert, base):
    with pytest.raises(
        RecipeError, match="sequence.max_tokens is more than the base has positions for: got 97; expected at most 96"
    ):
        layout(bert, max_tokens=97)
    layout(base, max_tokens=4096)
    with pytest.raises(RecipeError, match="sequence.pool first reads nothing on a causal base"):
        layout(base, pool="first")
    with pytest.raises(RecipeError, match="sequence.instruction leaves no room for a text: got 10 tokens; expected fewer than"):
        layout(bert, instruction="0123456789", max_tokens=12).rows(["a"], [0])


def test_rows_of_a_split_are_its_texts(bert):
    texts = planted_texts(groups=30)
    builder = TextRows(texts, layout(bert))
    split = texts.split(SplitConfig(kind="group", valid=0.2, test=0.2))
    parts = [{int(row.events[0]) for row in builder.evaluation_rows(split, part)} for part in (1, 2)]
    rows, skipped = builder.training_rows(split.part == 0, max_events=1, min_events=1, shift=0.5)
    parts.append({int(row.events[0]) for row in rows})
    assert sum(map(len, parts)) == len(texts) and len(set.union(*parts)) == len(texts) and skipped == 0
    groups = [set(builder.data.owners(np.array(sorted(part)))[0].tolist()) for part in parts]
    assert not groups[0] & groups[1] and not groups[2] & (groups[0] | groups[1])
    wanted = np.zeros(len(texts), dtype=bool)
    wanted[sorted(parts[2])[:3]] = True
    assert len(builder.training_rows(split.part == 0, wanted)[0]) == 3


def test_labels_are_those_of_the_columns(bert):
    texts = planted_texts(groups=10)
    builder = TextRows(texts, layout(bert))
    stars = Task(name="stars", kind="text", label="rating", loss="cross_entropy").with_classes(texts.labels)
    found = builder.data.supervise([GOOD, stars])
    assert found["good"][0] == "item" and np.array_equal(found["good"][1], texts.labels["recommended"])
    codes = {1.0: 0, 3.0: 1, 5.0: 2}
    assert found["stars"][1].tolist() == [-1 if np.isnan(x) else codes[x] for x in texts.labels["rating"]]
    assert found["stars"][1].dtype == np.int64 and -1 in found["stars"][1]


def test_columns_that_cannot_be_read(bert):
    texts = planted_texts(groups=5)
    for columns, message in (
        (("title", "rating"), "sequence.text names the label 'rating': .* expected title, review; a text that holds a label"),
        (("gone",), "the texts have no column 'gone'"),
        ((), "sequence.text names no column with words: got no columns"),
    ):
        with pytest.raises(DataError, match=message):
            TextRows(texts, layout(bert, text=columns)).check_columns()
    empty = Texts.from_frame(pl.DataFrame({"a": ["x", "y"], "b": ["", ""], "y": [0, 1]}), texts=["a", "b"], labels=["y"])
    with pytest.raises(DataError, match="sequence.text names no column with words: got b; expected a, b"):
        TextRows(empty, layout(bert, text=("b",))).check_columns()
