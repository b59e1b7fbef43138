"""Joint training and kinds of adapter: one pass, the weighted sum of losses and gradients, and the whole way to requests."""

import json
import math

import pytest
import torch

import genre
from builders import LIKE, NEXT, RATING, recipe, stir
from genre.data.sequences.batches import collate
from genre.errors import RecipeError
from genre.jobs.evaluate import evaluate
from genre.modules.base.base import Base
from genre.recipe import Recipe
from genre.training.assembly import assemble
from standins import ROOT, deep_base, movies

WEIGHTS = {"like": 2.0, "rating": 0.5, "next_item": 0.25}
THREE = [task | {"weight": WEIGHTS[task["name"]]} for task in (LIKE, RATING, NEXT)]


def batch_of(assembly, tasks):
    rows, _ = assembly.builder.training_rows(assembly.train_mask, None, max_events=16, min_events=2, shift=0.0)
    return collate(rows[:6], assembly.builder.data.supervise(tasks))


def gradients(assembly, tasks):
    """Loss and gradients of some of a joint adapter's tasks, from one pass of the base."""
    model, passes = assembly.model, []
    for value in model.trainable().values():
        value.grad = None
    handle = assembly.base.body.register_forward_hook(lambda *given: passes.append(1))
    loss, parts = model(batch_of(assembly, tasks))
    handle.remove()
    loss.backward()
    assert len(passes) == 1 and set(parts) == {task.name for task in tasks}
    zero = torch.zeros(())
    return loss.item(), parts, {name: zero if v.grad is None else v.grad.clone() for name, v in model.trainable().items()}


@pytest.mark.parametrize("item", ["token", "text", "both"])
def test_the_joint_loss_and_its_gradient_are_the_weighted_sums(base, tiny, log, item):
    """For the low-rank layers and the encoder, which all tasks move, and for each head, which only its own task moves."""
    assembly = assemble(recipe(tiny, *THREE, sequence={"item": item}, encoder={"dropout": 0.0}), log, base)
    try:
        stir(assembly)
        assembly.model.train()
        tasks = list(assembly.recipe.tasks)
        joint, parts, together = gradients(assembly, tasks)
        single = {task.name: gradients(assembly, [task]) for task in tasks}
        assert joint == pytest.approx(sum(loss for loss, _, _ in single.values()), rel=1e-5)
        assert joint == pytest.approx(sum(WEIGHTS[name] * float(value) for name, (value, _) in parts.items()), rel=1e-5)
        for name, wanted in together.items():
            apart = sum(found[name] for _, _, found in single.values())
            assert torch.allclose(wanted, apart, atol=1e-5), name
            movers = [task for task, (_, _, found) in single.items() if found[name].abs().max() > 0]
            assert movers == ([name.split(".")[1]] if name.startswith("heads.") else list(WEIGHTS)) or "encoder" in name, name
    finally:
        assembly.model.release()


@pytest.fixture(scope="module")
def multitask(tmp_path_factory):
    """recipes/multitask.yaml for two epochs on a small stand-in base and data set."""
    folder = tmp_path_factory.mktemp("multitask")
    wanted = Recipe.read(ROOT / "recipes" / "multitask.yaml", ["train.epochs=2", "train.tracker=none", "train.dropout=0.1"])
    log = movies()
    base = Base.load(str(deep_base(folder / "base")), depth=wanted.base.depth)
    registry = genre.Registry(folder / "registry")
    run = genre.train(wanted, log=log, base=base, registry=registry, folder=folder / "run")
    return run, registry, log, base, registry.publish(run)


def test_multitask_validates_every_task_and_stops_by_the_first(multitask):
    run, *_ = multitask
    history = json.loads((run.root / "metrics.json").read_text())["validation"]
    assert len(history) == 2 and {key.split(".")[0] for key in history[0]} == {"epoch", "step", "like", "rating", "next_item"}
    payload = torch.load(run.root / "checkpoints" / "last.pt", weights_only=True)
    assert payload["state"]["best_value"] == max(epoch["like.auc"] for epoch in history)
    lines = [json.loads(line) for line in (run.root / "log.jsonl").read_text().splitlines()]
    assert all({"loss", "loss.like", "loss.rating", "loss.next_item"} <= line.keys() for line in lines if "loss" in line)


def test_multitask_is_evaluated_and_published_as_one(multitask):
    run, registry, log, base, published = multitask
    assert set(run.metrics) == set(run.baselines) == {"like", "rating", "next_item"}
    assert all(math.isfinite(figure["value"]) for figures in run.metrics.values() for figure in figures.values())
    again = evaluate(registry, published.ref, log, base)["tasks"]
    for task, figures in run.metrics.items():
        for name, figure in figures.items():
            assert again[task]["adapter"][name]["value"] == pytest.approx(figure["value"], abs=1e-4), (task, name)


def test_multitask_answers_requests_by_task(multitask):
    _, registry, log, base, published = multitask
    engine = genre.Engine(base, registry, data=log)
    try:
        items = log.catalogue.item_ids[:4]
        asked = {task: genre.Request(published.ref, user_id="196", candidates=items, task=task) for task in ("like", "rating")}
        asked["next_item"] = genre.Request(published.ref, user_id="196", k=3, task="next_item")
        responses = dict(zip(asked, engine.score(asked.values()), strict=True))
        assert not [response.error for response in responses.values() if response.error]
        assert all(0 < result.score < 1 for result in responses["like"].results)
        assert all(0 < result.score < 6 for result in responses["rating"].results)
        assert len(responses["next_item"].results) == 3
        (lost,) = engine.score([genre.Request(published.ref, user_id="196", candidates=items)])
        assert "the adapter has several tasks" in lost.error and "like, rating, next_item" in lost.error
    finally:
        engine.close()


# --- kinds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "rslora", "full", "head_only"])
def test_every_kind_is_trained_evaluated_and_reported_by_the_same_code(tiny, log, tmp_path, kind):
    """Of a full fine-tune there is nothing to publish; of the others, the published version has the run's own figures."""
    base, registry = Base.load(str(tiny)), genre.Registry(tmp_path / "registry")
    wanted = recipe(tiny, LIKE, NEXT, name=kind.replace("_", "-"), adapter={"kind": kind}, train={"learning_rate": 2e-3})
    run = genre.train(wanted, log=log, base=base, registry=registry, folder=tmp_path / "run")
    report = json.loads((run.root / "metrics.json").read_text())
    assert set(report) == {"metrics", "baselines", "untied", "validation", "cost", "skipped", "cut_texts"}
    assert set(report["metrics"]) == set(report["baselines"]) == {"like", "next_item"} and len(report["validation"]) == 2
    body = sum(value.numel() for value in base.model.parameters())
    trained = report["cost"]["lora_params"]
    assert trained == {"full": body, "head_only": 0}.get(kind, trained) and (kind in ("full", "head_only") or 0 < trained < body)
    assert (run.files is None) == (kind == "full") and base.occupied_by is None
    if kind == "full":
        with pytest.raises(RecipeError, match="a run for comparison is not published"):
            registry.publish(run)
        return
    found = evaluate(registry, registry.publish(run).ref, log, base)["tasks"]["like"]["adapter"]["auc"]
    assert found["value"] == pytest.approx(run.metrics["like"]["auc"]["value"], abs=1e-5)
