"""recipes/shop_joint.yaml on a log whose preference shows in browsing and pays in purchases: two heads against one."""

import json
import types

import pytest

import genre
from builders import recipe
from fakes import browsing_log
from genre.data.splits import TEST, split
from genre.recipe import Recipe
from standins import ROOT

SETTINGS = [
    "base.depth=2",
    "data.split.valid=0.4",
    "train.epochs=8",
    "train.early_stop=8",
    "train.batch_tokens=512",
    "train.learning_rate=5e-3",
    "train.dropout=0.1",
    "train.tracker=none",
    "encoder.collaborative=0",
    "encoder.taste=0",
]
"""A small base learns faster; much validates, so that a difference shows; what goes together is told by no closed form."""


def validated(tiny, folder, *, seed: int, joint: bool) -> tuple[float, int]:
    """The best validation AUC of `buy`, and the steps that it took; of the recipe, or of its first task alone."""
    log = browsing_log(users=160, items=32, views=12, passed="ignore", seed=seed)
    both = Recipe.read(ROOT / "recipes" / "shop_joint.yaml", [*SETTINGS, f"base.name={tiny}", f"train.seed={seed}"])
    wanted = both if joint else both.model_copy(update={"tasks": both.tasks[:1]})
    base, passes = genre.Base.load(str(tiny), depth=2), []
    forward = base.body.forward
    base.body.forward = types.MethodType(lambda _, *given, **named: passes.append(1) or forward(*given, **named), base.body)
    run = genre.train(wanted, log=log, base=base, folder=folder)
    report = json.loads((run.root / "metrics.json").read_text())["validation"]
    assert {key.split(".")[0] for key in report[0]} - {"epoch", "step"} == {task.name for task in wanted.tasks}
    return max(epoch["buy.auc"] for epoch in report), report[-1]["step"], len(passes)


def compare(tiny, folder, seed):
    single, joint = (validated(tiny, folder / str(both), seed=seed, joint=both) for both in (False, True))
    assert joint[1:] == single[1:]  # as many steps, as many passes of the base
    return joint[0], single[0]


def test_browsing_teaches_what_is_bought(tiny, tmp_path):
    joint, single = compare(tiny, tmp_path, seed=0)
    assert joint > single + 0.03, (joint, single)


def test_what_is_bought_next_is_asked_of_purchases_alone(tiny, tmp_path):
    """A next-item task with a label: only events where it holds are targets, and everything before them is their history."""
    log = browsing_log(users=60, items=24, views=8, passed="ignore")
    task = {"name": "next_purchase", "kind": "next_item", "label": "behaviour == 'purchase'", "seen": "kept"}
    wanted = recipe(tiny, task, sequence={"instruction": "", "feedback": "behaviour"}, train={"epochs": 1})
    registry, base = genre.Registry(tmp_path / "registry"), genre.Base.load(str(tiny))
    run = genre.train(wanted, log=log, base=base, registry=registry, folder=tmp_path / "run")
    bought = (split(log, wanted.data.split).part == TEST) & (log.column("behaviour") == "purchase")
    figures = run.metrics["next_purchase"], *run.baselines["next_purchase"].values()
    assert 0 < bought.sum() < (split(log, wanted.data.split).part == TEST).sum()
    assert {figure["n"] for found in figures for figure in found.values()} == {bought.sum()}
    engine = genre.Engine(base, registry, data=log)
    try:
        (answer,) = engine.score([genre.Request(registry.publish(run).ref, user_id="u3", k=3)])
        assert len(answer.results) == 3 and answer.error is None
    finally:
        engine.close()


@pytest.mark.slow  # four more pairs of runs
@pytest.mark.parametrize("seed", range(1, 5))
def test_browsing_teaches_whatever_the_seed(tiny, tmp_path, seed):
    joint, single = compare(tiny, tmp_path, seed)
    assert joint > single + 0.03, (joint, single)
