"""A small log and a quick recipe, for jobs that train many times."""

from pathlib import Path

import pytest

from builders import LIKE, QUICK, recipe
from fakes import planted_log
from genre.data.interactions import Interactions
from genre.recipe import Recipe


@pytest.fixture(scope="session")
def little() -> Interactions:
    """24 users, 16 items, 12 events each."""
    return planted_log(users=24, items=16, events=12)


@pytest.fixture
def wanted(tiny: Path) -> Recipe:
    """A recipe of one epoch."""
    return recipe(tiny, LIKE, train=QUICK)
