"""Labels that cannot teach anything are refused before the first step, by row, user and item."""

import numpy as np
import polars as pl
import pytest

import genre
from builders import LIKE, RATING, recipe, with_values
from genre.errors import DataError
from genre.evaluation.labels import FEWEST, check_spread
from genre.tasks import Task
from genre.training.assembly import assemble

RATE = Task(**RATING)


def other(log, name="score", **cells):
    """The same log with one more column: the rating, but for some events."""
    values = log.column("rating")
    for place, value in cells.items():
        values[int(place[1:])] = value
    frame = log.frame.drop("row").with_columns(pl.Series(name, values))
    return genre.Interactions.from_frame(frame, items=log.catalogue.frame, users=log.users, name="other")


def test_events_are_named_by_row_user_and_item(log):
    first = f"row {log.rows[0]} (user {log.user_ids[0]}, item {log.catalogue.item_ids[log.item_codes[0]]})"
    assert log.name_rows([0]) == first
    assert log.name_rows(range(5), most=1) == f"{first} and 4 more"


@pytest.mark.parametrize("place", ["e3", "e23"], ids=["training", "test"])
def test_a_rating_of_a_milliard_is_refused_and_named(base, tiny, log, place):
    poisoned = other(log, **{place: 1e9})
    wanted = recipe(tiny, RATING | {"label": "score"}, sequence={"feedback": "rating"})
    with pytest.raises(DataError) as error:
        assemble(wanted, poisoned, base)
    text = str(error.value)
    assert text.startswith(f"task 'rating' has a label far from all others: got 1e+09 at {log.name_rows([int(place[1:])])}; ")
    assert "expected between -" in text and "correct those rows" in text and base.occupied_by is None


def test_the_largest_rating_that_is_read_is_refused_too(base, tiny, log):
    """Ratings are bounded by a million when they are read, which would ruin a mean squared error as well."""
    with pytest.raises(DataError, match=r"far from all others: got 1e\+06 at row"):
        assemble(recipe(tiny, RATING), with_values(log, rating={7: 1e6}), base)


def test_feedback_that_would_spoil_the_collaborative_vectors_is_refused(base, tiny, log):
    wanted = recipe(tiny, LIKE, sequence={"feedback": "score"})
    with pytest.raises(DataError, match=r"feedback column 'score' has a value far from all others: got 1e\+09 at row"):
        assemble(wanted, other(log, e3=1e9), base)
    assemble(recipe(tiny, LIKE, sequence={"feedback": "score"}, encoder={"collaborative": 0}), other(log, e3=1e9), base)


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_an_infinite_label_is_refused_and_named(base, tiny, log, value):
    wanted = recipe(tiny, RATING | {"label": "score"}, sequence={"feedback": "rating"})
    with pytest.raises(DataError) as error:
        assemble(wanted, other(log, e5=value), base)
    assert str(error.value).startswith(f"task 'rating' has a label that is not finite: got {value} at {log.name_rows([5])}; ")


@pytest.mark.parametrize(
    ("task", "got"),
    [
        (LIKE | {"label": "rating > 9"}, "0 in 1,152 events"),
        (LIKE | {"label": "rating > 0"}, "1 in 1,152 events"),
        (RATING | {"label": "same"}, "3 in 1,152 events"),
        (LIKE | {"label": "same", "head": "categorical", "loss": "cross_entropy"}, "3 in 1,152 events"),
    ],
    ids=["never", "always", "value", "class"],
)
def test_labels_that_are_all_the_same_are_refused(base, tiny, log, task, got):
    frame = log.frame.drop("row").with_columns(pl.lit(3.0).alias("same"))
    alike = genre.Interactions.from_frame(frame, items=log.catalogue.frame, users=log.users, name="alike")
    with pytest.raises(DataError) as error:
        assemble(recipe(tiny, task, sequence={"feedback": "rating"}), alike, base)
    assert str(error.value).startswith(
        f"task {task['name']!r} cannot be learnt: all its training labels are the same: got {got}; expected at least two"
    )


def test_a_column_that_is_missing_is_told_from_a_log_without_feedback(base, tiny, log):
    with pytest.raises(DataError, match="task 'like' needs the feedback column 'stars': got rating; change the task's label"):
        assemble(recipe(tiny, LIKE | {"label": "stars > 3"}), log, base)


def test_a_misspelt_text_column_is_refused_with_a_given_encoder_too(base, tiny, log, trained):
    from genre.engine.versions import read_encoder

    shared = read_encoder(trained.registry, trained.registry.resolve("encoder-planted").digest, base)
    with pytest.raises(DataError, match="the catalogue has no column 'titel': got item_id, title"):
        assemble(recipe(tiny, LIKE, sequence={"text": ["titel"]}), log, base, shared)


# --- what counts as far ----------------------------------------------------------------------------------------------


def refused(values, log):
    labels = np.full(len(log), np.nan)
    labels[: len(values)] = values
    try:
        check_spread("there is a label", labels, log, np.ones(len(log), dtype=bool))
    except DataError:
        return True
    return False


def test_heavy_tails_are_no_mistakes(log):
    draw = np.random.default_rng(0)
    assert not refused(draw.lognormal(sigma=1.5, size=len(log)), log)
    assert not refused(draw.pareto(1.5, size=len(log)), log)
    assert not refused(draw.random(len(log)) < 0.003, log)  # nearly all the same


def test_few_labels_have_no_spread(log):
    values = np.array([1.0] * (FEWEST - 2) + [2.0, 1e9])
    assert refused(values, log) and not refused(values[1:], log)


def test_mistakes_hide_each_other_only_above_a_thousandth(log):
    values = np.tile([1.0, 2.0, 3.0, 4.0, 5.0], 400)[: len(log)]
    values[3] = 1e9
    assert refused(values, log)
    values[9] = 2e9  # two in 1,440
    assert not refused(values, log)
