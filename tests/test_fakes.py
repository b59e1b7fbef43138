"""The generated logs hold what they promise."""

import numpy as np
import pytest

from fakes import browsing_log
from genre.data.interactions import SplitConfig, split
from genre.evaluation.metrics.auc import auc


def kinds_by_views(log):
    """Each user's kind as their views tell it: users cluster by the items that they view."""
    looked = np.zeros((len(log.user_ids), log.catalogue.size))
    views = np.isnan(log.column("bought"))
    np.add.at(looked, (log.user_codes[views], log.item_codes[views]), 1.0)
    return looked


def test_views_tell_what_is_bought():
    log = browsing_log(noise=0.0)
    bought = log.column("bought")
    offers = np.flatnonzero(~np.isnan(bought))
    looked = kinds_by_views(log)
    alike = looked @ looked.T  # users who look at the same items are of one kind
    scores = []
    for event in offers:
        user, item = log.user_codes[event], log.item_codes[event]
        scores.append(alike[user] @ looked[:, item])
    assert auc(bought[offers], np.array(scores)) > 0.95
    for alone in (np.bincount(log.item_codes)[log.item_codes[offers]], log.user_codes[offers]):
        assert abs(auc(bought[offers], alone.astype(float)) - 0.5) < 0.1


def test_purchases_stand_in_one_impression_at_the_end_and_carts_tell_nothing():
    log = browsing_log(users=40)
    for code in range(len(log.user_ids)):
        events = log.frame[int(log.user_offsets[code]) : int(log.user_offsets[code + 1])]
        assert events["bought"].is_null().to_list() == [True] * 16 + [False] * 4
        assert events["impression_id"][-4:].n_unique() == 1 and "purchase" not in events["behaviour"][:-4].to_list()
    assert set(log.frame["behaviour"].unique()) == {"view", "cart", "purchase"}
    assert log.frame["timestamp"].max() < 2e9  # milliseconds became seconds


def test_knowing_both_kinds_gives_one_minus_noise():
    log = browsing_log(users=1000, noise=0.2, focus=1.0)
    bought, kinds = log.column("bought"), np.array([int(user[1:]) % 4 for user in log.user_ids])[log.user_codes]
    views, offers = np.isnan(bought), ~np.isnan(bought)
    kind_of = np.zeros(log.catalogue.size, dtype=int)
    kind_of[log.item_codes[views]] = kinds[views]  # with focus 1 a user views items of one kind only
    agrees = kind_of[log.item_codes] == kinds
    assert auc(bought[offers], agrees[offers].astype(float)) == pytest.approx(0.8, abs=0.02)


def test_a_split_by_time_tests_new_users():
    log = browsing_log(users=50)
    part = split(log, SplitConfig(kind="temporal", valid=0.2, test=0.2)).part
    sides = [set(log.user_codes[part == code].tolist()) for code in (0, 1, 2)]
    assert not (sides[0] & sides[2]) and len(sides[2]) == 10
