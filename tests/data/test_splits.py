import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from genre.data.interactions import Interactions, SplitConfig, split
from genre.errors import DataError

COLUMNS = ["user_id", "item_id", "timestamp", "rating"]


def make(rows, columns=COLUMNS):
    return Interactions.from_frame(pl.DataFrame(rows, schema=columns, orient="row"))


def parts(log, **config):
    """User -> parts of their events in order, as letters."""
    letters = np.array(["t", "v", "T", "-"])
    found = split(log, SplitConfig(**config)).part
    return {
        user: "".join(letters[found[log.user_offsets[code] : log.user_offsets[code + 1]]])
        for code, user in enumerate(log.user_ids)
    }


def events_of(**sizes):
    """`a=3` gives user a three events, at seconds 0, 10, 20; the next user a second later."""
    return make([(u, f"{u}{k}", 10 * k + place, 3.0) for place, (u, size) in enumerate(sizes.items()) for k in range(size)])


def test_last_n_by_hand():
    log = events_of(a=6, b=3, c=2)
    assert parts(log, kind="last_n") == {"a": "ttttvT", "b": "tvT", "c": "tt"}
    assert parts(log, kind="last_n", n=2) == {"a": "ttvvTT", "b": "ttt", "c": "tt"}
    counts = split(log, SplitConfig(kind="last_n", n=2)).counts
    assert counts == {
        "train": 7,
        "valid": 2,
        "test": 2,
        "unused": 0,
        "users that only train (fewer than 2n + 1 events)": 2,
    }


def test_temporal_by_hand():
    # In time: a0 b0 a1 b1 a2 b2 a3 a4 a5 a6
    log = events_of(a=7, b=3)
    assert parts(log, kind="temporal", valid=0.2, test=0.3) == {"a": "tttvTTT", "b": "ttv"}
    assert parts(log, kind="temporal", valid=0.0, test=0.1) == {"a": "ttttttT", "b": "ttt"}


def test_temporal_cuts_a_second_by_the_hash():
    import hashlib

    rows = [(f"u{n}", f"i{n}", 5, 1.0) for n in range(20)]
    log = make(rows)
    found = split(log, SplitConfig(kind="temporal", valid=0.25, test=0.25)).part
    hashed = sorted(range(20), key=lambda n: hashlib.sha256(f"u{n}\x1fi{n}".encode()).digest())
    wanted = {f"u{n}": (0 if place < 10 else 1 if place < 15 else 2) for place, n in enumerate(hashed)}
    assert dict(zip(log.frame["user_id"], found.tolist(), strict=True)) == wanted


def test_user_ratio_by_hand():
    log = events_of(a=10, b=5, c=4)
    assert parts(log, kind="user_ratio", valid=0.1, test=0.2) == {"a": "tttttttvTT", "b": "ttttT", "c": "tttt"}


def test_given_by_hand():
    log = events_of(a=10, b=10)
    found = split(log, SplitConfig(kind="given", test_rows="2-4,19", valid=0.25))
    assert found.transductive
    assert sorted(log.rows[found.mask("test")].tolist()) == [2, 3, 4, 19]
    assert found.counts == {"train": 12, "valid": 4, "test": 4, "unused": 0}
    again = split(log, SplitConfig(kind="given", test_rows="2-4,19", valid=0.25, seed=0))
    other = split(log, SplitConfig(kind="given", test_rows="2-4,19", valid=0.25, seed=1))
    assert found.digest == again.digest != other.digest
    beyond = split(log, SplitConfig(kind="given", test_rows="18-29"))
    assert beyond.counts["given rows that are not in the log"] == 10


def test_small_users_are_unused_and_counted():
    log = events_of(a=6, b=3)
    assert parts(log, kind="last_n", min_events=4) == {"a": "ttttvT", "b": "---"}
    assert split(log, SplitConfig(kind="last_n", min_events=4)).counts["users with fewer than 4 events"] == 1


def test_impressions_are_not_cut():
    rows = [("u", f"i{n}", n, n % 2, f"page{n // 3}") for n in range(9)]
    log = make(rows, ["user_id", "item_id", "timestamp", "click", "impression_id"])
    found = split(log, SplitConfig(kind="last_n", n=2))
    assert found.part.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    moved = found.counts["events moved to keep impressions whole"]
    assert moved == 3, "the fourth and fifth validate, the seventh tests"


log_rows = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("uvwxyz"), st.integers(0, 9), st.just(1.0)),
    min_size=10,
    max_size=60,
)
causal = st.one_of(
    st.builds(lambda n: SplitConfig(kind="last_n", n=n), st.integers(1, 3)),
    st.builds(lambda v, t: SplitConfig(kind="temporal", valid=v, test=t), st.floats(0, 0.4), st.floats(0.1, 0.5)),
    st.builds(lambda v, t: SplitConfig(kind="user_ratio", valid=v, test=t), st.floats(0, 0.4), st.floats(0.1, 0.5)),
)


@settings(max_examples=150, deadline=None)
@given(log_rows, causal, st.booleans())
def test_no_training_event_is_later_than_a_target(rows, config, shown_together):
    paged = [(*row, f"{row[2] // 3}") for row in rows]
    log = make(paged, [*COLUMNS, "impression_id"]) if shown_together else make(rows)
    try:
        found = split(log, config)
    except DataError:
        assume(False)
    for start, stop in zip(log.user_offsets[:-1], log.user_offsets[1:], strict=True):
        assert (np.diff(found.part[start:stop]) >= 0).all(), "train, then valid, then test, in the log's order"
    assert not found.transductive and found.part.dtype == np.int8 and len(found.part) == len(log)
    if config.kind == "temporal" and not shown_together:
        latest = log.timestamps[found.mask("train")].max()
        assert (log.timestamps[~found.mask("train")] >= latest).all()
    if shown_together:
        where = {}
        for user, page, part in zip(log.frame["user_id"], log.frame["impression_id"], found.part, strict=True):
            assert where.setdefault((user, page), part) == part


@settings(max_examples=60, deadline=None)
@given(log_rows, causal, st.randoms())
def test_shuffled_rows_are_split_alike(rows, config, random):
    numbered = [(*row, place) for place, row in enumerate(rows)]
    first = make(numbered, [*COLUMNS, "row"])
    second = make(random.sample(numbered, len(numbered)), [*COLUMNS, "row"])
    try:
        assert split(first, config).digest == split(second, config).digest
    except DataError:
        assume(False)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "random"}, "Input should be 'last_n', 'temporal', 'user_ratio', 'given' or 'group'"),
        ({"kind": "temporal", "tset": 0.1}, "Extra inputs are not permitted"),
        ({"kind": "temporal", "n": 1}, "n does not apply to temporal"),
        ({"kind": "last_n", "valid": 0.1}, "valid does not apply to last_n"),
        ({"kind": "temporal", "valid": 0.5, "test": 0.5}, "their shares must add up to less than 1"),
        ({"kind": "given"}, "kind 'given' needs test_rows, such as 0-19999"),
        ({"kind": "given", "test_rows": "first half"}, "String should match pattern"),
        ({"kind": "last_n", "n": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_configurations_are_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        SplitConfig(**config)


def test_a_resolved_configuration_reads_back():
    for config in (
        SplitConfig(kind="last_n"),
        SplitConfig(kind="given", test_rows="0-4"),
        SplitConfig(kind="temporal"),
    ):
        assert SplitConfig(**config.model_dump()) == config
        assert SplitConfig(**config.model_dump(exclude_none=True)) == config


def test_a_split_without_targets_is_refused():
    with pytest.raises(DataError, match=r"the split leaves no test events: got 2 events of 1 users; .*another last_n split"):
        split(events_of(a=2), SplitConfig(kind="last_n"))
    with pytest.raises(DataError, match="the split leaves no train events"):
        split(events_of(a=2), SplitConfig(kind="given", test_rows="0-5"))


def test_parts_are_not_writable():
    found = split(events_of(a=5), SplitConfig(kind="last_n"))
    with pytest.raises(ValueError, match="read-only"):
        found.part[0] = 1


# --- folds by user ---------------------------------------------------------------------------------------------------

FOLDS = {"kind": "last_n", "n": 1, "folds": 2, "fold_seed": 3}


def test_a_fold_tests_its_own_users_and_learns_from_the_others_alone():
    log = events_of(a=5, b=5, c=5, d=5, e=2)
    plain = parts(log, kind="last_n", n=1)
    both = [parts(log, **FOLDS, fold=fold) for fold in (1, 2)]
    for user in "abcd":
        assert sorted(found[user] for found in both) == ["----T", "tttv-"], user
    assert plain["e"] == "tt" and sorted(found["e"] for found in both) == ["--", "tt"]  # has no test event
    assert all([found[user] for user in "abcd"].count("----T") == 2 for found in both)  # spread evenly
    chosen = split(log, SplitConfig(**FOLDS, fold=1))
    assert chosen.counts["train"] == int((chosen.part == 0).sum()) and not chosen.transductive
    outside = {log.user_ids[code] for code in np.unique(log.user_codes[chosen.outside])}
    assert outside == {user for user, letters in both[0].items() if "t" not in letters}
    assert np.array_equal(chosen.held_out, (chosen.part > 0) | chosen.outside)
    assert np.array_equal(split(log, SplitConfig(kind="last_n")).held_out, split(log, SplitConfig(kind="last_n")).part > 0)


def test_folds_are_a_function_of_their_seed_and_test_every_test_event_once():
    log = events_of(**{f"u{n}": 4 + n % 5 for n in range(20)})
    plain = split(log, SplitConfig(kind="user_ratio", valid=0.2, test=0.2)).part
    config = {"kind": "user_ratio", "valid": 0.2, "test": 0.2, "folds": 3}
    tests = [split(log, SplitConfig(**config, fold=fold, fold_seed=0)).part == 2 for fold in (1, 2, 3)]
    assert np.array_equal(np.sum(tests, axis=0), plain == 2)
    again = split(log, SplitConfig(**config, fold=1, fold_seed=0)).part == 2
    other = split(log, SplitConfig(**config, fold=1, fold_seed=1)).part == 2
    assert np.array_equal(again, tests[0]) and not np.array_equal(other, tests[0])


def test_wrong_folds_are_refused():
    log = events_of(a=5, b=5, c=2)
    with pytest.raises(DataError) as error:
        split(log, SplitConfig(kind="last_n", folds=3, fold=1, fold_seed=0))
    assert str(error.value) == (
        "there are more folds than users with test events: got 3 folds, 2 such users; expected 2 to 2 folds; "
        "use fewer folds, or a last_n split with more test events"
    )
    for wrong, message in (
        ({"folds": 2}, "folds, fold and fold_seed go together"),
        ({"folds": 2, "fold": 3, "fold_seed": 0}, "there is no fold 3 of 2"),
        ({"folds": 1, "fold": 1, "fold_seed": 0}, "greater than or equal to 2"),
        ({"kind": "given", "n": None, "test_rows": "0-3", "folds": 2, "fold": 1, "fold_seed": 0}, "has no folds by user"),
        ({"kind": "group", "n": None, "folds": 2, "fold": 1, "fold_seed": 0}, "labelled texts have no users"),
    ):
        with pytest.raises(ValidationError, match=message):
            SplitConfig(**{"kind": "last_n", "n": 1} | wrong)


def test_cold_items_train_on_nothing():
    log = events_of(a=12, b=12, c=12)
    plain = split(log, SplitConfig(kind="last_n", n=2)).part
    found = split(log, SplitConfig(kind="last_n", n=2, cold_items=0.25))
    held = (plain == 0) & (found.part == -1)
    cold = set(log.frame["item_id"].to_numpy()[held])
    assert len(cold) == round(24 / 4) == found.counts["cold items"]  # 24 items have a training event
    assert not cold & set(log.frame["item_id"].to_numpy()[found.part == 0])
    assert np.array_equal(found.part[plain > 0], plain[plain > 0])
    other = split(log, SplitConfig(kind="last_n", n=2, cold_items=0.25, cold_seed=1))
    assert not np.array_equal(other.part, found.part) and other.counts["cold items"] == 6


def test_the_draw_of_cold_items_does_not_depend_on_their_order():
    log = events_of(a=12, b=12)
    turned = Interactions.from_frame(log.frame.drop("row"), items=log.catalogue.frame.reverse())
    config = SplitConfig(kind="last_n", cold_items=0.5, cold_seed=3)
    assert np.array_equal(split(log, config).part, split(turned, config).part)


def test_cold_items_by_their_training_events():
    rows = [
        (f"u{user}", item, 10 * place + user, 3.0) for user in range(4) for place, item in enumerate("xyzw"[: user + 1] + "ab")
    ]
    log = make(rows)  # training events: x 4, y 3, z 2, w 1
    found = split(log, SplitConfig(kind="last_n", cold_items=3))
    assert set(log.frame["item_id"].to_numpy()[found.part == 0]) == {"x", "y"}
    assert found.counts["cold items"] == 2 and found.counts["training events of cold items, unused"] == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"cold_items": 0}, "greater than 0"),
        ({"cold_items": 2.5}, "a share below 1"),
        ({"cold_items": 5, "cold_seed": 1}, "a share below 1"),
        ({"cold_seed": 1}, "cold_seed goes with cold_items"),
        ({"kind": "group", "cold_items": 0.1}, "labelled texts have no items"),
    ],
)
def test_bad_cold_items_are_refused(config, message):
    with pytest.raises(ValidationError, match=message):
        SplitConfig(**{"kind": "last_n", **config})


def test_drawn_users_are_nested_and_every_test_event_stays():
    log = events_of(**{f"u{number}": 6 for number in range(9)}, single=2)
    plain = split(log, SplitConfig(kind="last_n", users=10))
    assert np.array_equal(plain.part, split(log, SplitConfig(kind="last_n")).part) and not plain.outside.any()
    before = set()
    for count in (1, 3, 7):
        found = split(log, SplitConfig(kind="last_n", users=count))
        owners = set(log.user_codes[found.part == 0].tolist())
        assert len(owners) == count and before < owners
        away = ~np.isin(log.user_codes, list(owners))
        assert not (found.part[away] == 1).any() and np.array_equal(found.part == 2, plain.part == 2)
        assert (
            np.array_equal(found.outside, away & (plain.part != 2)) and found.counts["users kept out of training"] == 10 - count
        )
        before = owners
    turned = Interactions.from_frame(
        log.frame.drop("row"), users=log.frame.select("user_id").unique(maintain_order=True).reverse()
    )
    config = SplitConfig(kind="last_n", users=3, users_seed=2)
    assert np.array_equal(split(log, config).part, split(turned, config).part)
    assert not np.array_equal(split(log, config).part, split(log, SplitConfig(kind="last_n", users=3)).part)


def test_users_that_cannot_be_drawn_are_refused():
    with pytest.raises(DataError, match="keeps more users than train: got 3 users, 2 have training events; expected 1 to 2"):
        split(events_of(a=6, b=6), SplitConfig(kind="last_n", users=3))
    for wrong, message in (
        ({"users": 0}, "greater than or equal to 1"),
        ({"users_seed": 0}, "users_seed goes with users"),
        ({"kind": "group", "users": 3}, "labelled texts have none"),
        ({"kind": "given", "test_rows": "0", "users": 3}, "its users must train"),
    ):
        with pytest.raises(ValidationError, match=message):
            SplitConfig(**{"kind": "last_n", **wrong})


def test_cold_items_that_leave_nothing_are_refused():
    with pytest.raises(DataError, match="the split leaves no train events"):
        split(events_of(a=6, b=6), SplitConfig(kind="last_n", cold_items=100))
