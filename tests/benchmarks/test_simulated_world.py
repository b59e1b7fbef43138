"""The closed loop of the simulated world, a few rounds of it."""

import sys

import numpy as np
import pytest

from standins import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import simulated_world  # noqa: E402


@pytest.mark.slow  # four trainings and a served log, 20 s
def test_what_is_served_teaches_the_next_version(tmp_path):
    """By the third round the loop shows better lists than the frozen version, of most items."""
    found = simulated_world.loop("log_loss", 0, 3, tmp_path)
    last = found["rounds"][-1]
    assert last["loop"] > last["frozen"] + 0.05 and last["frozen"] > found["chance"], last
    assert found["coverage"] > 0.5 and found["gini"] < 0.9
    assert found["by_user"].shape == (simulated_world.USERS,)


def test_gini():
    even, one = np.arange(simulated_world.ITEMS), np.zeros(simulated_world.ITEMS, dtype=int)
    assert simulated_world.gini(even) == pytest.approx(0.0)
    assert simulated_world.gini(one) == pytest.approx(1 - 1 / simulated_world.ITEMS)
