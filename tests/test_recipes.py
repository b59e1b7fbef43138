"""Every recipe is in the README, follows the schema, trains for an epoch on stand-ins, and gives finite figures."""

import math
import re

import pytest

from fakes import make_encoder_base, planted_texts
from genre.recipe import Recipe
from standins import ROOT, deep_base, movies

FILES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    import genre

    folder = tmp_path_factory.mktemp("recipes")
    logs = {False: movies(), True: planted_texts()}
    bases = {False: deep_base(folder / "base"), True: make_encoder_base(folder / "encoder", positions=256)}
    return folder, logs, bases, genre.Registry(folder / "registry")


def test_the_readme_lists_them_all():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(.+?)\]\(recipes/(.+?)\) \|.*`genre train recipes/(.+?)`", readme, flags=re.MULTILINE)
    assert sorted(row[0] for row in rows) == [file.name for file in FILES]
    assert all(len(set(row)) == 1 for row in rows)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recipe_trains(file, world):
    import genre

    folder, logs, bases, registry = world
    recipe = Recipe.read(file, ["train.epochs=1", "train.tracker=none"])
    assert recipe.name == file.stem
    bare = genre.Base.load(str(bases[recipe.reads_texts]), quantization=recipe.base.quantization, depth=recipe.base.depth)
    run = genre.train(recipe, log=logs[recipe.reads_texts], base=bare, registry=registry, folder=folder / recipe.name)
    for task in recipe.tasks:
        figures = run.metrics[task.name]
        assert set(figures) == set(task.metrics)
        assert all(math.isfinite(figure["value"]) for figure in figures.values())
        assert run.baselines[task.name]
    assert registry.publish(run).name == recipe.name
