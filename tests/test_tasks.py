"""Tasks: defaults, every check's text, and labels read off the log."""

import numpy as np
import pytest
from pydantic import ValidationError

from genre.errors import DataError, RecipeError
from genre.tasks import Task, parse_label

COLUMNS = {
    "rating": np.array([5.0, 3.0, np.nan, 1.0]),
    "click": np.array([1.0, 0.0, 1.0, np.nan]),
    "behaviour": np.array(["view", "cart", None, "purchase"], dtype=object),
}


def task(**fields) -> Task:
    return Task(**{"name": "like", "kind": "feedback", "label": "rating > 3", **fields})


def labels(label, **fields):
    found = task(label=label, **fields).labels(COLUMNS)
    assert found.dtype == np.float64
    return [None if np.isnan(value) else value for value in found]


def test_a_feedback_task_is_binary_unless_it_says_otherwise():
    made = task()
    assert (made.head, made.loss, made.metrics, made.weight) == ("binary", "log_loss", ("auc", "gauc", "log_loss"), 1.0)
    assert made.column == "rating" and made.is_binary
    assert task(head="scalar", loss="mse", label="rating").metrics == ("rmse", "mae")
    assert task(head="categorical", loss="cross_entropy", label="rating").metrics == ("accuracy", "macro_f1")


def test_a_next_item_task_ranks_the_catalogue():
    made = Task(name="next_item", kind="next_item")
    assert (made.head, made.loss, made.seen, made.column) == ("catalogue", "cross_entropy", "masked", None)
    assert made.metrics[0] == "ndcg@10" and {"hr@5", "mrr@20", "coverage@10", "gini@10"} <= set(made.metrics)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("rating > 3", [1.0, 0.0, None, 0.0]),
        ("rating>=3", [1.0, 1.0, None, 0.0]),
        ("rating < 3", [0.0, 0.0, None, 1.0]),
        ("rating <= 3", [0.0, 1.0, None, 1.0]),
        ("rating == 1", [0.0, 0.0, None, 1.0]),
        ("  rating != 1e0 ", [1.0, 1.0, None, 0.0]),
        ("click", [1.0, 0.0, 1.0, None]),
        ("behaviour == 'purchase'", [0.0, 0.0, None, 1.0]),
        ('behaviour != "view"', [0.0, 1.0, None, 1.0]),
        ("behaviour == cart", [0.0, 1.0, None, 0.0]),
    ],
)
def test_labels_of_an_expression(label, expected):
    assert labels(label) == expected


def test_labels_of_a_value():
    assert labels("rating", head="scalar", loss="mse") == [5.0, 3.0, None, 1.0]


@pytest.mark.parametrize("text", ["", "3 < rating", "rating >", "rating ~ 3", "rating > 3; import os", "__import__('os')", "a b"])
def test_a_label_is_never_code(text):
    try:
        column, op, literal = parse_label(text)
    except RecipeError as error:
        assert str(error) == (
            f"a label cannot be read: got {text!r}; expected a column, or a column, one of > >= < <= == != and a number or "
            "'text'; write for example: label: rating > 3"
        )
    else:
        assert (column, op, literal) == ("rating", ">", "3; import os")  # a text to compare with, nothing more


WRONG_TASKS = [
    ({"kind": "next_item", "head": "binary"}, "kind 'next_item' does not go with head 'binary': next_item needs catalogue"),
    ({"head": "catalogue"}, "kind 'feedback' does not go with head 'catalogue': next_item needs catalogue"),
    ({"label": None}, "a feedback task needs a label, for example: label: rating > 3"),
    ({"label": "> 3"}, "a label cannot be read: got '> 3'"),
    ({"kind": "next_item", "head": "catalogue", "loss": "cross_entropy", "label": "> 3"}, "a label cannot be read: got '> 3'"),
    ({"loss": "mse"}, "head 'binary' takes loss log_loss, not 'mse'"),
    ({"head": "scalar"}, "head 'scalar' takes loss mse, not 'log_loss'"),
    ({"head": "categorical"}, "head 'categorical' takes loss cross_entropy, not 'log_loss'"),
    ({"head": "verbalizer"}, "head 'verbalizer' needs at least two label words, for example: words: [' No', ' Yes']"),
    ({"head": "verbalizer", "words": (" Yes",)}, "head 'verbalizer' needs at least two label words"),
    ({"metrics": ()}, "a task needs at least one metric"),
    ({"name": "Like it"}, "String should match pattern"),
    ({"weight": 0}, "Input should be greater than 0"),
    ({"seen": "maybe"}, "Input should be 'masked' or 'kept'"),
    ({"heads": "binary"}, "Extra inputs are not permitted"),
]


@pytest.mark.parametrize(("fields", "message"), WRONG_TASKS, ids=lambda value: str(value)[:30])
def test_every_check_says_what_is_wrong(fields, message):
    with pytest.raises((ValidationError, RecipeError)) as error:
        task(**fields)
    assert message in str(error.value)


WRONG_LABELS = [
    (
        "stars > 3",
        {},
        "task 'like' needs the feedback column 'stars': got behaviour, click, rating; change the task's label, or "
        "import the log with --map stars=THEIR_COLUMN",
    ),
    (
        "rating == 'good'",
        {},
        "label \"rating == 'good'\" compares 'rating' with a value of another type: got numbers; expected values like 'good'",
    ),
    (
        "behaviour > 3",
        {},
        "label 'behaviour > 3' compares 'behaviour' with a value of another type: got text; expected values like 3.0",
    ),
    ("behaviour", {}, "label 'behaviour' is text: got behaviour; expected a comparison, like behaviour == 'purchase'"),
    (
        "rating",
        {},
        "task 'like' with loss log_loss needs labels 0 and 1: got rating from 1 to 5; compare it, for example: label: rating > 3",
    ),
]


@pytest.mark.parametrize(("label", "fields", "message"), WRONG_LABELS, ids=[case[0] for case in WRONG_LABELS])
def test_a_label_that_does_not_fit_the_log_says_so(label, fields, message):
    with pytest.raises(DataError) as error:
        task(label=label, **fields).labels(COLUMNS)
    assert str(error.value) == message


def test_next_item_has_no_label_of_its_own():
    with pytest.raises(RecipeError, match="task 'next_item' has no label of its own: got next_item; expected a feedback task"):
        Task(name="next_item", kind="next_item").labels(COLUMNS)


@pytest.mark.parametrize("values", [[3.5, 1.0], [-1.0, 1.0], [np.inf, 1.0]])
def test_classes_are_whole_numbers_from_0(values):
    classes = task(label="rating", head="categorical", loss="cross_entropy")
    with pytest.raises(DataError, match=f"classes as whole numbers from 0: got {values[0]:g} in rating; number the classes"):
        classes.labels({"rating": np.array(values)})


REVIEWS = {
    "recommended": np.array([1.0, 0.0, np.nan]),
    "rating": np.array([5.0, np.nan, 2.0]),
    "mood": np.array(["good", None, "bad"], dtype=object),
    "one": np.array([1.0, 1.0, 1.0]),
}


def text_task(**fields) -> Task:
    return Task(**{"name": "recommended", "kind": "text", "label": "recommended", **fields})


def test_a_text_task_is_binary_and_pooled_unless_it_says_otherwise():
    made = text_task()
    assert (made.head, made.loss, made.metrics) == ("pooled", "log_loss", ("auc", "f1", "log_loss"))
    assert text_task(loss="cross_entropy").metrics == ("accuracy", "macro_f1") and text_task(loss="mse").metrics == (
        "rmse",
        "mae",
    )
    assert np.array_equal(made.labels(REVIEWS), [1, 0, np.nan], equal_nan=True)
    with pytest.raises(DataError, match="needs the label column 'gone': got mood, one, rating, recommended; change the task's"):
        text_task(label="gone").labels(REVIEWS)


def test_classes_are_the_columns_values_unless_they_are_given():
    stars = text_task(label="rating", loss="cross_entropy").with_classes(REVIEWS)
    assert stars.classes == (2.0, 5.0) and stars.with_classes({}) is stars
    assert np.array_equal(stars.labels(REVIEWS), [1, np.nan, 0], equal_nan=True)
    given = text_task(label="rating", loss="cross_entropy", classes=[1, 2, 5])
    assert np.array_equal(given.with_classes(REVIEWS).labels(REVIEWS), [2, np.nan, 1], equal_nan=True)
    words = text_task(label="mood", loss="cross_entropy").with_classes(REVIEWS)
    assert words.classes == ("bad", "good") and np.array_equal(words.labels(REVIEWS), [1, np.nan, 0], equal_nan=True)
    assert Task.model_validate(words.model_dump(mode="json")) == words
    assert text_task().with_classes(REVIEWS).classes is None


def test_classes_that_cannot_be():
    with pytest.raises(DataError, match="task 'recommended' knows no class 5: got a value of rating; expected 1.0, 2.0; add it"):
        text_task(label="rating", loss="cross_entropy", classes=[1, 2]).labels(REVIEWS)
    with pytest.raises(DataError, match="knows no class 'good'"):
        text_task(label="mood", loss="cross_entropy", classes=["bad", "fine"]).labels(REVIEWS)
    with pytest.raises(DataError, match="the label of task 'recommended' has no classes: got 1 different values of one"):
        text_task(label="one", loss="cross_entropy").with_classes(REVIEWS)
    with pytest.raises(DataError, match="needs the label column 'gone'"):
        text_task(label="gone", loss="cross_entropy").with_classes(REVIEWS).labels(REVIEWS)
    for fields, message in (
        ({"head": "binary"}, "head 'binary': next_item needs catalogue or generate, and text needs pooled"),
        ({"kind": "feedback", "head": "pooled"}, "kind 'feedback' does not go with head 'pooled'"),
        ({"label": None}, "a text task needs a label"),
        ({"classes": [0, 1]}, "classes are for loss cross_entropy"),
        ({"loss": "cross_entropy", "label": "rating > 3", "classes": [0, 1]}, "a label that is a bare column"),
        ({"loss": "cross_entropy", "classes": [1, 1]}, "two classes are the same"),
        ({"loss": "cross_entropy", "classes": [1]}, "at least 2 items"),
    ):
        with pytest.raises(ValidationError, match=message):
            text_task(**fields)
