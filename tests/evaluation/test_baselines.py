"""Baselines by hand, what they must not see, and EASE against its definition."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from genre.data.interactions import Interactions
from genre.data.splits import SplitConfig, split
from genre.errors import DataError, InputError
from genre.evaluation.baselines import SMOOTHING, chosen_baselines, feedback_baselines, ranking_baselines
from genre.evaluation.ease import DEFAULT_LAMBDA, ease
from genre.evaluation.history import Histories
from genre.evaluation.ranking import rank_in_blocks
from genre.evaluation.targets import targets


def make_log(events, impressions=None):
    """Events (user, item, rating) in order of time."""
    users, items, ratings = zip(*events, strict=True)
    columns = {
        "user_id": [f"u{user}" for user in users],
        "item_id": [f"i{item}" for item in items],
        "timestamp": list(range(len(events))),
        "rating": [float(x) for x in ratings],
    }
    if impressions is not None:
        columns["impression_id"] = [str(name) for name in impressions]
    return Interactions.from_frame(pl.DataFrame(columns))


def scores_of(log, parts, label, binary=True):
    """Scores of all validation and test targets, by baseline and event."""
    result = {}
    for part in (1, 2):
        found = targets(log, parts, part, label)
        for name, scores in feedback_baselines(log, parts, label, found, binary).items():
            result |= {(name, int(event)): score for event, score in zip(found.event, scores, strict=True)}
    return result


def test_feedback_baselines_by_hand():
    log = make_log([(0, 0, 5), (0, 1, 1), (1, 0, 4), (1, 2, 2), (0, 2, 5), (0, 3, 1)])
    parts = split(log, SplitConfig(kind="temporal", valid=0, test=2 / 6))
    like = (log.column("rating") > 3).astype(float)
    found = targets(log, parts, 2, like)
    scores = feedback_baselines(log, parts, like, found, binary=True)
    overall, m = 2 / 4, SMOOTHING
    item = [(0 + m * overall) / (1 + m), overall]  # item 2 once, not liked; item 3 never
    user = [(1 + m * overall) / (2 + m), (2 + m * overall) / (3 + m)]  # the first test event is history of the second
    assert scores["item_mean"] == pytest.approx(item) and scores["running_user_share"] == pytest.approx(user)
    odds = [i / (1 - i) * u / (1 - u) for i, u in zip(item, user, strict=True)]
    assert scores["additive"] == pytest.approx([o / (1 + o) for o in odds]) and "bias_only" not in scores


def test_the_share_in_a_prompt_counts_what_one_row_shows():
    log = make_log([(0, item, stars) for item, stars in enumerate([5, 5, 5, 1, 1, 5, 1])] + [(1, 0, 5)])
    parts = split(log, SplitConfig(kind="temporal", valid=0, test=3 / 8))
    like = (log.column("rating") > 3).astype(float)
    found = targets(log, parts, 2, like)
    assert found.event.tolist() == [5, 6, 7]
    overall, m = 3 / 5, SMOOTHING
    for window, shown in {7: [(3, 5), (4, 6), (0, 0)], 4: [(0, 2), (1, 3), (0, 0)]}.items():  # 4: from half a row before
        scores = feedback_baselines(log, parts, like, found, binary=True, window=window)["prompt_share"]
        assert scores == pytest.approx([(liked + m * overall) / (count + m) for liked, count in shown])
    assert "prompt_share" not in feedback_baselines(log, parts, like, found, binary=True)


def test_the_share_in_a_prompt_holds_no_sibling_and_of_a_transductive_split_training_events():
    log = make_log([(0, 0, 5), (0, 1, 5), (0, 2, 1), (0, 3, 5)], impressions=["a", "b", "b", "b"])
    like = (log.column("rating") > 3).astype(float)
    parts = split(log, SplitConfig(kind="temporal", valid=0, test=0.75))
    scores = feedback_baselines(log, parts, like, targets(log, parts, 2, like), binary=True, window=10)["prompt_share"]
    assert scores == pytest.approx([1.0] * 3)  # one liked event, of a mean of one
    log = make_log([(0, 0, 5), (0, 1, 1), (0, 2, 1), (0, 3, 5), (1, 0, 1)])
    like = (log.column("rating") > 3).astype(float)
    parts = split(log, SplitConfig(kind="given", test_rows="1-2", valid=0))
    scores = feedback_baselines(log, parts, like, targets(log, parts, 2, like), binary=True, window=10)["prompt_share"]
    assert parts.transductive and scores == pytest.approx([(2 + SMOOTHING * 2 / 3) / (2 + SMOOTHING)] * 2)


def test_values_are_added_and_biases_are_damped():
    log = make_log([(0, 0, 5), (1, 0, 5), (0, 1, 1), (1, 1, 1), (0, 2, 3), (1, 2, 3)])
    parts = split(log, SplitConfig(kind="temporal", valid=0, test=2 / 6))
    rating = log.column("rating")
    found = targets(log, parts, 2, rating)
    scores = feedback_baselines(log, parts, rating, found, binary=False)
    assert scores["additive"] == pytest.approx([3, 3])
    # Both users rate alike, so b_u is nothing, and the unknown item is at the mean.
    assert scores["bias_only"] == pytest.approx([3, 3])
    known = feedback_baselines(log, parts, rating, found.take(slice(0, 0)), binary=False)
    assert all(len(each) == 0 for each in known.values())


def test_bias_only_by_hand():
    log = make_log([(0, 0, 4), (1, 0, 2), (0, 1, 5)])
    parts = split(log, SplitConfig(kind="temporal", valid=0, test=1 / 3))
    found = targets(log, parts, 2, log.column("rating"))
    # μ = 3, residuals +1 and -1: b_i = 0 in every round, and user 0 has Σ (y - μ) / (1 + 5) from its one event.
    assert feedback_baselines(log, parts, log.column("rating"), found, False)["bias_only"] == pytest.approx([3 + 1 / 6])


def test_transductive_uses_training_events_only():
    log = make_log([(0, 0, 5), (0, 1, 5), (0, 2, 1), (0, 3, 1), (1, 0, 1)])
    parts = split(log, SplitConfig(kind="given", test_rows="1,2", valid=0))
    like = (log.column("rating") > 3).astype(float)
    scores = feedback_baselines(log, parts, like, targets(log, parts, 2, like), True)
    share = (1 + SMOOTHING / 3) / (2 + SMOOTHING)  # events 0 and 3, the later one too
    assert scores["running_user_share"] == pytest.approx([share, share])


def test_a_sibling_gives_nothing_away():
    events = [(0, 0, 5), (1, 1, 1), (0, 1, 5), (0, 2, 5), (0, 3, 1)]
    log = make_log(events, impressions=["a", "b", "c", "c", "c"])
    parts = split(log, SplitConfig(kind="temporal", valid=0, test=3 / 5))
    like = (log.column("rating") > 3).astype(float)
    found = targets(log, parts, 2, like)
    scores = feedback_baselines(log, parts, like, found, True)["running_user_share"]
    assert scores == pytest.approx([(1 + SMOOTHING / 2) / (1 + SMOOTHING)] * 3)


EVENTS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(1, 5), st.integers(0, 9)), min_size=8, max_size=30)


@settings(deadline=None)
@given(EVENTS, st.booleans(), st.booleans(), st.booleans(), st.data())
def test_only_earlier_labels_count(rows, binary, transductive, shown, data):
    log = make_log([row[:3] for row in rows], [row[3] for row in rows] if shown else None)
    half = len(rows) // 2
    given_rows = {"kind": "given", "test_rows": f"{half}-{len(rows)}"}
    config = given_rows if transductive else {"kind": "temporal", "test": 0.3}
    try:
        parts = split(log, SplitConfig(valid=0.2, **config))
    except DataError:  # impressions that reach over the whole log leave nothing to train on
        reject()
    rating = log.column("rating")
    label = (rating > 3).astype(float) if binary else rating.copy()
    before = scores_of(log, parts, label, binary)
    changed = data.draw(st.sampled_from(np.flatnonzero(parts.part > 0).tolist()))
    label[changed] = 1 - label[changed] if binary else 6 - label[changed]
    after = scores_of(log, parts, label, binary)
    histories = Histories(log, parts)
    for (name, event), score in before.items():
        if changed not in histories.pairs(np.array([event]))[1]:
            assert after[name, event] == pytest.approx(score, abs=1e-12)


def test_no_training_label_is_refused():
    log = make_log([(0, k, 1) for k in range(4)])
    parts = split(log, SplitConfig(kind="temporal", valid=0, test=0.5))
    label = np.array([np.nan, np.nan, 1, 0])
    with pytest.raises(DataError, match="no training event has a label"):
        feedback_baselines(log, parts, label, targets(log, parts, 2, label), True)


def planted(seed=0, users=40, items=12, length=8):
    """Users of two tastes, each for half of the items."""
    random = np.random.default_rng(seed)
    events = []
    for user in range(users):
        taste = random.permutation(np.arange(items // 2) + (user % 2) * items // 2)
        events += [(user, int(item), 4) for item in taste[:length]]
    order = random.permutation(len(events))
    return make_log([events[k] for k in order])


def test_popularity_counts_training_events():
    log = make_log([(0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 2, 1), (0, 2, 1)])
    parts = split(log, SplitConfig(kind="temporal", valid=0, test=0.4))
    blocks = list(ranking_baselines(log, parts, targets(log, parts, 2))["popularity"]())
    assert blocks[0][1].tolist() == [[2, 1, 0], [2, 1, 0]]


@pytest.mark.parametrize("users", [40, 8], ids=["more users than items", "fewer users than items"])
def test_ease_is_the_closed_form(users):
    log = planted(users=users)
    parts = split(log, SplitConfig(kind="last_n"))
    model = ease(log, parts, lambdas=(3.0,), fades=(1.0,))
    x = np.zeros((users, 12))
    train = parts.part == 0
    x[log.user_codes[train], log.item_codes[train]] = 1
    p = np.linalg.inv(x.T @ x + 3 * np.eye(12))
    b = np.where(np.eye(12) > 0, 0, p / -np.diag(p))
    assert model.weights == pytest.approx(b[np.ix_(model.items, model.items)], abs=1e-6) and model.chosen_on == 0
    found = targets(log, parts, 2)
    history = np.zeros((len(found), 12))
    for row, event in enumerate(found.event):
        history[row, log.item_codes[log.user_offsets[found.user[row]] : event]] = 1  # the validation event too
    known = np.isin(np.arange(12), model.items)
    for some in (found, found.take(slice(0, 3))):  # through the item-item weights, and through the eigenvectors
        scores = np.concatenate([block for _, block in model.blocks(some)])
        assert scores[:, known] == pytest.approx((history[: len(some)] @ b)[:, known], abs=1e-5)


def test_ease_finds_the_planted_taste_and_beats_popularity():
    log = planted()
    parts = split(log, SplitConfig(kind="last_n"))
    found = targets(log, parts, 2)
    ranks = {
        name: rank_in_blocks(log, parts, found, blocks()).ranks for name, blocks in ranking_baselines(log, parts, found).items()
    }
    assert ranks["ease"].mean() < 1.2 < ranks["popularity"].mean()


def test_ease_chooses_without_the_test_part():
    log = planted()
    parts = split(log, SplitConfig(kind="last_n"))
    model = ease(log, parts)
    items = log.item_codes.copy()
    items[parts.part == 2] = 0
    other = Interactions(log.frame, log.catalogue, None, log.user_ids, log.user_codes, items, log.info)
    again = ease(other, parts)
    assert again.ridge == model.ridge and np.array_equal(again.weights, model.weights) and model.chosen_on == 40


def test_ease_without_validation_takes_the_default():
    log = planted()
    parts = split(log, SplitConfig(kind="temporal", valid=0, test=0.2))
    assert ease(log, parts).ridge == DEFAULT_LAMBDA


def test_ease_keeps_the_most_popular_items_of_a_large_catalogue(monkeypatch):
    monkeypatch.setattr("genre.evaluation.ease.MAX_ITEMS", 2)
    log = make_log([(0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 2, 1), (2, 2, 1), (2, 0, 1)])
    parts = split(log, SplitConfig(kind="temporal", valid=0, test=1 / 6))
    model = ease(log, parts)
    assert model.items.tolist() == [0, 2] and model.left_out == 1
    lines = []
    list(ranking_baselines(log, parts, targets(log, parts, 2), report=lines.append)["ease"]())
    assert lines == ["ease knows the 2 items with the most training events, to bound its memory; the other 1 score 0"]
    assert next(model.blocks(targets(log, parts, 2)))[1][:, 1].tolist() == [0]


def test_a_choice_of_baselines_is_a_group_or_names():
    assert chosen_baselines("none") == frozenset()
    assert "ease" in chosen_baselines("all") - chosen_baselines("fast")
    assert "self_attentive" not in chosen_baselines("all")
    assert chosen_baselines("fast, self_attentive") == chosen_baselines("fast") | {"self_attentive"}
    for which, got in (("luck,ease", "luck"), ("", "''"), ("ease,", "'ease,'")):
        with pytest.raises(
            InputError, match=f"no such baseline: got {got}; expected none, fast, all or names with commas: item_mean"
        ):
            chosen_baselines(which)
