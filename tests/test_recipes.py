"""Every recipe as it is committed, on a log in its data's exact format and a small base, by the commands that users type."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from builders import stir
from fakes import make_encoder_base
from genre.cli import main
from genre.data.interactions import Interactions
from genre.data.sequences.batches import collate
from genre.modules.base.base import Base
from genre.recipe import Recipe
from genre.training.assembly import assemble
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


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_recipe_trains(file, place, capsys):
    """Only what makes it small is overridden: the base, its depth, the steps."""
    recipe = Recipe.read(file)
    assert recipe.name == file.stem
    prepare_world(file)
    base, small = ("encoder", []) if recipe.reads == "texts" else ("causal", ["--set", "base.depth=2"])
    small += ["--set", f"base.name={base}", "--set", "train.epochs=1", "--set", "train.tracker=none"]
    assert main(["recipe", "check", str(file), *small]) == 0
    assert "one training row: " in capsys.readouterr().out
    assert main(["train", str(file), *small, "--json", f"{file.stem}.json"]) == 0
    found = json.loads((place / f"{file.stem}.json").read_text())
    assert found["ref"].startswith(f"{recipe.name}:")
    for task in recipe.tasks:
        assert set(found["metrics"][task.name]) == set(task.metrics)
        assert all(math.isfinite(figure["value"]) for figure in found["metrics"][task.name].values())
        assert found["baselines"][task.name]


def test_news_of_one_impression_never_see_each_other(place):
    """All clicks but one's own are turned, in the rows that train: nothing of its impression changes, what comes later does."""
    recipe = Recipe.read(ROOT / "recipes" / "news.yaml", ["base.name=causal", "base.depth=2", "train.dropout=0"])
    prepare_world(ROOT / "recipes" / "news.yaml")
    log = Interactions.read("data/mind")
    assembly = assemble(recipe, log, Base.load("causal", depth=2))
    try:
        stir(assembly)
        (row,) = assembly.builder.training_rows(log.user_codes == 0, None, max_events=200, min_events=1)[0]
        shown = log.impressions[row.events]
        news = assembly.model.eval()
        tasks = assembly.builder.data.supervise(list(recipe.tasks))
        for impression in (shown[8], shown[-1]):
            assert (shown == impression).sum() == 5
            given = np.where(shown == impression, 3 - row.feedback[row.feedback >= 0], row.feedback[row.feedback >= 0])
            turned = dataclasses.replace(row, feedback=row.feedback.copy(), feedback_codes=given)
            turned.feedback[row.feedback >= 0] = given
            scores = [scores_of(news, collate([each], tasks)) for each in (row, turned)]
            changed = {log.impressions[event] for event, score in scores[0].items() if score != scores[1][event]}
            after = set(shown[np.flatnonzero(shown == impression)[-1] + 1 :].tolist())
            assert changed == after and impression not in changed
    finally:
        assembly.model.release()


def scores_of(model, batch):
    """The score of every target, by its event."""
    with torch.no_grad():
        output = model.output("news", model.hidden(batch), batch)
        return dict(zip(batch.reads["news"].events.tolist(), model.heads["news"].score(output).tolist(), strict=True))
