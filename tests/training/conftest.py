"""A folder as a user has it before `genre train`, and a log of lists."""

from pathlib import Path

import pytest

from builders import LIKE, NEXT, RATING, write_recipe
from genre.data.interactions import Interactions
from kinds import clicks_of, log_of_lists


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Interactions, tiny: Path) -> Path:
    """The current folder: a data set `shop`, and a recipe each for next_item, like and rating."""
    monkeypatch.chdir(tmp_path)
    log.write("shop")
    for task in (NEXT, LIKE, RATING):
        write_recipe(tiny, task)
    return tmp_path


@pytest.fixture(scope="module")
def shown() -> Interactions:
    """Users who click items of their own kind, of lists with two of the other."""
    return log_of_lists()


@pytest.fixture(scope="module")
def clicked(shown: Interactions) -> Interactions:
    """The clicks of that log alone, with what was rejected beside each."""
    return clicks_of(shown)
