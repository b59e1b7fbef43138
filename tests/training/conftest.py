"""A folder as a user has it before `genre train`."""

from pathlib import Path

import pytest

from builders import LIKE, NEXT, RATING, write_recipe
from genre.data.interactions import Interactions


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Interactions, tiny: Path) -> Path:
    """The current folder: a data set `shop`, and a recipe each for next_item, like and rating."""
    monkeypatch.chdir(tmp_path)
    log.write("shop")
    for task in (NEXT, LIKE, RATING):
        write_recipe(tiny, task)
    return tmp_path
