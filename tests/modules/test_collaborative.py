"""Collaborative vectors of logs that say little."""

from types import SimpleNamespace

import numpy as np
import pytest

from fakes import planted_log
from genre.modules.collaborative import collaborative_vectors, factor_vectors, pure_svd


@pytest.mark.parametrize("value", [1.0, 5.0, 0.1])
def test_feedback_that_is_always_the_same_gives_vectors_without_tastes(value):
    log = planted_log(users=12, items=8, events=6)
    usable, feedback = np.ones(len(log), dtype=bool), np.full(len(log), value)
    made = collaborative_vectors(log, usable, dimensions=6, feedback=feedback)
    without = collaborative_vectors(log, usable, dimensions=4)
    assert np.isfinite(made).all() and np.abs(made[:, :4]).sum() > 0
    assert not made[:, 4:6].any() and np.abs(made[:, -1]).max() < 1e-9  # nothing is left of constant feedback
    assert np.allclose(np.abs(made[:, :4]), np.abs(without[:, :4]), atol=1e-5)


def test_a_log_of_a_lower_rank_gives_the_same_vectors_every_time():
    """Of 18 users the last 12 have what others have, and beyond the rank every call of svds finds other vectors."""
    log = planted_log(users=18, items=24, events=8)
    items = np.concatenate([log.item_codes[log.user_codes == user] for user in [0, 1, 2, 3, 4, 5] * 3])
    twins = SimpleNamespace(
        catalogue=log.catalogue, item_codes=items, user_codes=np.repeat(np.arange(18), 8), user_offsets=np.arange(19) * 8
    )
    usable = np.ones(len(items), dtype=bool)
    for make in (pure_svd, collaborative_vectors):
        made = [make(twins, usable, dimensions=16) for _ in range(4)]
        assert all(np.array_equal(made[0], each) for each in made[1:]), make.__name__
    assert not pure_svd(twins, usable, dimensions=16)[:, 6:].any()


def test_pure_svd_is_the_truncated_decomposition_with_a_ridge():
    log = planted_log(users=20, items=15, events=8)
    usable = np.arange(len(log)) % 5 > 0
    matrix = np.zeros((20, 15))
    matrix[log.user_codes[usable], log.item_codes[usable]] = 1
    _, values, right = np.linalg.svd(matrix)
    squares = values[:6] ** 2
    wanted = right[:6].T @ np.diag(squares / (squares + np.median(squares))) @ right[:6]
    factors = pure_svd(log, usable, dimensions=6)
    assert factors.shape == (15, 6) and np.allclose(factors @ factors.T, wanted, atol=1e-5)
    wide = pure_svd(log, usable, dimensions=40)
    assert wide.shape == (15, 40) and not wide[:, 14:].any() and np.isfinite(wide).all()
    assert not pure_svd(log, np.zeros(len(log), dtype=bool), dimensions=6).any()
    assert np.abs(pure_svd(log, log.user_codes == 0, dimensions=6)).max() < 1  # one user's events: a matrix of rank one
    one = log.item_codes == log.item_codes[0]
    assert not pure_svd(log, ~one, dimensions=6)[log.item_codes[0]].any()


def test_factors_as_a_feature_are_pure_svds_on_the_scale_of_others():
    log = planted_log(users=20, items=15, events=8)
    usable = log.item_codes != log.item_codes[0]  # one item without usable events
    factors, vectors = pure_svd(log, usable, dimensions=6), factor_vectors(log, usable, dimensions=6)
    there = factors.any(axis=1)
    assert not there[log.item_codes[0]] and not vectors[~there].any()
    assert (
        np.square(vectors[there]).mean() == pytest.approx(1)
        and np.linalg.matrix_rank(np.stack([vectors.ravel(), factors.ravel()])) == 1
    )
    assert not factor_vectors(log, np.zeros(len(log), dtype=bool), dimensions=6).any()
