"""Fake profiles among ordinary users: which are named, and that ordinary logs have none."""

import numpy as np
import polars as pl
import pytest

from fakes import browsing_log, planted_log, tastes_log
from genre.data.hazards import hazards
from genre.data.interactions import Interactions
from genre.data.suspects import BURST, bursts, named_users, twins

DAY = 86_400


def shop(users=300, items=200, events=12, seed=0):
    """Users who begin on any of 60 days and have items of different popularity, over a day or two."""
    draw = np.random.default_rng(seed)
    share = 1 / np.arange(1, items + 1) ** 0.7
    rows = []
    for user in range(users):
        start = 1_600_000_000 + int(draw.integers(60)) * DAY
        for item in draw.choice(items, events, replace=False, p=share / share.sum()):
            rows.append((f"u{user}", f"i{item}", start + int(draw.integers(2 * DAY))))
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def fakes(count, item="i190", *, events=10, days=1, seed=1):
    """Profiles of random items and one that all of them have, begun within some days."""
    draw = np.random.default_rng(seed)
    rows = []
    for user in range(count):
        start = 1_602_000_000 // DAY * DAY + int(draw.integers(days)) * DAY
        own = [item, *(f"i{n}" for n in draw.choice(180, events - 1, replace=False))]
        rows += [(f"fake{user}", each, start + int(draw.integers(DAY))) for each in own]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def log_of(*frames):
    return Interactions.from_frame(pl.concat(frames))


def test_ordinary_logs_name_nobody():
    for log in (log_of(shop()), log_of(shop(seed=5)), planted_log(), browsing_log(), tastes_log()):
        assert bursts(log) == [] and not named_users(log).any()


def test_new_users_who_push_an_item_within_a_day_are_named_and_no_others():
    log = log_of(shop(), fakes(9))
    (found,) = bursts(log)
    assert found.item == "i190" and {log.user_ids[code] for code in found.users} >= {f"fake{n}" for n in range(9)}
    named = [log.user_ids[code] for code in np.flatnonzero(named_users(log))]
    assert sum(name.startswith("u") for name in named) <= 1 and twins(log) == []
    (hazard,) = [each for each in hazards(log) if each.kind == "bursts"]
    assert hazard.value == len(named) and hazard.found.startswith(f"{len(named)} new users push items: item i190: 9 of the ")
    assert "(such as fake0, fake1, fake2)" in hazard.found


@pytest.mark.parametrize("few", [fakes(BURST - 1), fakes(9, events=BURST - 1), fakes(9, days=40)])
def test_few_users_short_profiles_and_a_slow_push_are_not_named(few):
    assert bursts(log_of(shop(), few)) == []


def test_an_item_that_old_users_take_up_too_is_no_burst():
    start, day = 1_602_000_000 // DAY * DAY, shop()
    old = day.filter(pl.col("timestamp") < start - 3 * DAY)["user_id"].unique().sort().head(20)
    taken = pl.DataFrame({"user_id": old, "item_id": "i190", "timestamp": start + np.arange(len(old))})
    assert len(bursts(log_of(day, fakes(9)))) == 1 and len(old) == 20
    assert bursts(log_of(day, taken, fakes(9))) == []


def test_a_log_without_times_has_none():
    log = Interactions.from_frame(pl.concat([shop(), fakes(9)]).drop("timestamp"), order="file")
    assert bursts(log) == []
