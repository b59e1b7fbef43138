"""Collaborative vectors of logs that say little."""

import numpy as np
import pytest

from fakes import planted_log
from genre.collaborative import collaborative_vectors


@pytest.mark.parametrize("value", [1.0, 5.0, 0.1])
def test_feedback_that_is_always_the_same_gives_vectors_without_tastes(value):
    log = planted_log(users=12, items=8, events=6)
    usable, feedback = np.ones(len(log), dtype=bool), np.full(len(log), value)
    made = collaborative_vectors(log, usable, dimensions=6, feedback=feedback)
    without = collaborative_vectors(log, usable, dimensions=4)
    assert np.isfinite(made).all() and np.abs(made[:, :4]).sum() > 0
    assert not made[:, 4:6].any() and np.abs(made[:, -1]).max() < 1e-9  # nothing is left of constant feedback
    assert np.allclose(np.abs(made[:, :4]), np.abs(without[:, :4]), atol=1e-5)
