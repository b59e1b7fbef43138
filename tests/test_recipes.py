"""Every recipe as it is committed, on a log in its data's exact format and a small base, by the commands that users type."""

import json
import math
import re

import pytest

from fakes import make_encoder_base
from genre.cli import main
from genre.recipe import Recipe
from standins import ROOT, deep_base
from worlds import WORLDS, prepare_world

FILES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An empty folder to run the commands in, and beside it a causal base and an encoder."""
    folder = tmp_path_factory.mktemp("recipes")
    deep_base(folder / "causal", layers=2)
    make_encoder_base(folder / "encoder", positions=256)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def test_each_has_data_to_be_tested_on():
    assert sorted(WORLDS) == [file.stem for file in FILES], "name what writes a recipe's data in tests/worlds.py"


def test_the_readme_lists_them_all():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(.+?)\]\(recipes/(.+?)\) \|.*`genre train recipes/(.+?)` \|", readme, flags=re.MULTILINE)
    assert sorted(row[0] for row in rows) == [file.name for file in FILES]
    assert all(len(set(row)) == 1 for row in rows)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recipe_trains(file, place, capsys):
    """Only what makes it small is overridden: the base, its depth, the steps, and the collaborative vectors' size."""
    recipe = Recipe.read(file)
    assert recipe.name == file.stem
    prepare_world(file)
    base, small = ("encoder", []) if recipe.reads_texts else ("causal", ["--set", "base.depth=2"])
    small += ["--set", f"base.name={base}", "--set", "train.epochs=1", "--set", "train.tracker=none"]
    if not recipe.reads_texts:
        assert main(["recipe", "check", str(file), *small]) == 0
    assert main(["train", str(file), *small, "--json", f"{file.stem}.json"]) == 0
    found = json.loads((place / f"{file.stem}.json").read_text())
    assert found["ref"].startswith(f"{recipe.name}:")
    for task in recipe.tasks:
        assert set(found["metrics"][task.name]) == set(task.metrics)
        assert all(math.isfinite(figure["value"]) for figure in found["metrics"][task.name].values())
        assert found["baselines"][task.name]
