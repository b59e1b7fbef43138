"""recipes/shop_joint.yaml on a log whose preference shows in browsing and pays in purchases: two heads against one."""

import json
import types

import pytest

import genre
from fakes import browsing_log
from genre.recipe import Recipe
from standins import ROOT

SETTINGS = [
    "base.depth=2", "data.split.valid=0.4", "train.epochs=8", "train.early_stop=8", "train.batch_tokens=512",
    "train.learning_rate=5e-3", "train.dropout=0.1", "train.tracker=none", "encoder.collaborative=0",
]  # fmt: skip
"""A small base learns faster; much validates, so that a difference shows; what was browsed together is not told beforehand."""


def validated(tiny, folder, *, seed: int, joint: bool) -> tuple[float, int]:
    """The best validation AUC of `buy`, and the steps that it took; of the recipe, or of its first task alone."""
    log = browsing_log(users=160, items=32, views=12, passed="ignore", seed=seed)
    recipe = Recipe.read(ROOT / "recipes" / "shop_joint.yaml", [*SETTINGS, f"base.name={tiny}", f"train.seed={seed}"])
    recipe = recipe if joint else recipe.model_copy(update={"tasks": recipe.tasks[:1]})
    base, passes = genre.Base.load(str(tiny), depth=2), []
    forward = base.body.forward
    base.body.forward = types.MethodType(lambda _, *given, **named: passes.append(1) or forward(*given, **named), base.body)
    run = genre.train(recipe, log=log, base=base, folder=folder)
    report = json.loads((run.root / "metrics.json").read_text())["validation"]
    assert {key.split(".")[0] for key in report[0]} - {"epoch", "step"} == {task.name for task in recipe.tasks}
    return max(epoch["buy.auc"] for epoch in report), report[-1]["step"], len(passes)


def compare(tiny, folder, seed):
    single, joint = (validated(tiny, folder / str(both), seed=seed, joint=both) for both in (False, True))
    assert joint[1:] == single[1:]  # as many steps, as many passes of the base
    return joint[0], single[0]


def test_browsing_teaches_what_is_bought(tiny, tmp_path):
    joint, single = compare(tiny, tmp_path, seed=0)
    assert joint > single + 0.03, (joint, single)


@pytest.mark.slow  # six more pairs of runs
@pytest.mark.parametrize("seed", range(1, 7))
def test_browsing_teaches_whatever_the_seed(tiny, tmp_path, seed):
    joint, single = compare(tiny, tmp_path, seed)
    assert joint > single + 0.03, (joint, single)
