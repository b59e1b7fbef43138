"""Adapters on labelled texts, on an encoder and on a causal base: trained jointly, published, evaluated, merged, refused."""

import json

import numpy as np
import pytest
import torch
import yaml

import genre
from builders import GOOD, NUMBER, STARS, text_recipe
from fakes import planted_log
from genre.data.splits import SplitConfig
from genre.engine.versions import read_adapter
from genre.errors import BaseModelError, DataError, InputError, InterruptedJobError, RecipeError
from genre.evaluation.targets import evaluate_feedback
from genre.evaluation.text_baselines import text_baselines
from genre.jobs.loading import open_data, restore
from genre.jobs.merge.gate import MergeOptions
from genre.jobs.merge.job import merge_versions
from genre.modules.base.quiet import quiet
from genre.recipe import Recipe
from genre.training import fit
from genre.training.assembly import assemble_texts, training_split
from genre.training.prediction import predict

KINDS = ("bert", "llama")


@pytest.fixture(scope="module")
def registry(text_bases):
    return genre.Registry(text_bases / "registry")


@pytest.fixture(scope="module")
def runs(text_bases, texts, registry):
    """A joint adapter on each kind of base, published."""
    made = {}
    for kind in KINDS:
        wanted = text_recipe(text_bases / kind, GOOD, STARS).model_copy(update={"name": f"joint-{kind}"})
        made[kind] = genre.train(wanted, log=texts, registry=registry, folder=text_bases / f"run-{kind}")
        registry.publish(made[kind])
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_joint_adapter_learns_both_tasks(kind, runs):
    run = runs[kind]
    assert set(run.metrics["good"]) == {"auc", "f1", "log_loss"} and set(run.metrics["stars"]) == {"accuracy", "macro_f1"}
    assert run.metrics["stars"]["accuracy"]["value"] > run.baselines["stars"]["majority"]["accuracy"]["value"] + 0.3
    assert run.metrics["good"]["auc"]["value"] > 0.6
    for task in ("good", "stars"):
        assert set(run.baselines[task]) == {"majority", "tfidf_linear"}
    assert run.baselines["good"]["majority"]["auc"]["value"] == 0.5
    assert run.manifest.sequence["pool"] == {"bert": "mean", "llama": "last"}[kind]
    assert run.manifest.catalogue is None and run.manifest.data.time_span is None
    assert [task["classes"] for task in run.manifest.tasks] == [None, [1.0, 3.0, 5.0]]
    assert "no group on two sides" in run.manifest.protocol["good"]
    stored = Recipe.parse(yaml.safe_load((run.root / "recipe.yaml").read_text()))
    assert stored.tasks[1].classes == (1.0, 3.0, 5.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_version_is_what_was_trained(kind, runs, registry, texts, text_bases):
    found = genre.evaluate(registry, f"joint-{kind}", texts, genre.Base.load(str(text_bases / kind)))
    assert {name: both["adapter"] for name, both in found["tasks"].items()} == runs[kind].metrics
    assert {name: both["baselines"] for name, both in found["tasks"].items()} == runs[kind].baselines


def test_stock_peft_gives_the_same_states(runs, registry, texts, text_bases):
    from peft import PeftModel
    from transformers import AutoModel, AutoTokenizer

    base = genre.Base.load(str(text_bases / "bert"))
    loaded = read_adapter(registry, "joint-bert", base)
    model, builder, _ = restore(loaded, texts, base)
    row = builder.all_rows[5]
    with torch.no_grad():
        own = base.hidden(base.embedding(torch.from_numpy(row.tokens)[None].long()), lengths=torch.tensor([len(row)]))
    model.release()
    with quiet():
        theirs = PeftModel.from_pretrained(AutoModel.from_pretrained(text_bases / "bert"), runs["bert"].files).eval()
    text = texts.join(["title", "review"])[5]
    with torch.no_grad():
        wanted = theirs(**AutoTokenizer.from_pretrained(text_bases / "bert")(text, return_tensors="pt")).last_hidden_state
    assert torch.allclose(own, wanted, atol=1e-5)
    assert json.loads((runs["bert"].files / "adapter_config.json").read_text())["task_type"] == "FEATURE_EXTRACTION"


def test_the_bootstrap_draws_groups(runs, texts):
    from genre.jobs.predictions import read_predictions

    found, about = read_predictions(runs["bert"].root)
    task, targets, scores = found["good"]
    assert about["data"] == texts.digest and about["part"] == "test"
    assert np.array_equal(targets.user, texts.group_codes[targets.event]) and len(set(targets.user.tolist())) < len(targets)
    again = evaluate_feedback(task.metrics, targets, scores)
    assert again["auc"].as_dict() == runs["bert"].metrics["good"]["auc"]


def test_a_resumed_run_is_bit_equal(text_bases, texts, tmp_path):
    wanted = text_recipe(text_bases / "bert", GOOD, train={"epochs": 2, "early_stop": None})
    weights = {}
    for name, stops in (("whole", [None]), ("cut", [5, None])):
        for place, stop in enumerate(stops):
            assembly = assemble_texts(wanted, texts, genre.Base.load(str(text_bases / "bert")))
            if stop is None:
                fit(assembly, tmp_path / name, resume=place > 0)
                weights[name] = {key: value.clone() for key, value in assembly.model.trainable().items()}
            else:
                with pytest.raises(InterruptedJobError):
                    fit(assembly, tmp_path / name, stop_at=stop)
            assembly.model.release()
    assert all(torch.equal(value, weights["cut"][key]) for key, value in weights["whole"].items())


@pytest.mark.parametrize(("kind", "adapter"), [("rslora", "bert"), ("head_only", "llama"), ("full", "bert")])
def test_every_kind_of_adapter_trains_and_leaves_the_base_as_it_was(kind, adapter, text_bases, texts, tmp_path):
    base = genre.Base.load(str(text_bases / adapter))
    before = {name: value.clone() for name, value in base.model.named_parameters()}
    wanted = text_recipe(text_bases / adapter, NUMBER, adapter={"kind": kind}, train={"epochs": 1, "learning_rate": 1e-3})
    run = genre.train(wanted, log=texts, base=base, folder=tmp_path / kind)
    assert set(run.metrics["number"]) == {"rmse", "mae"} and set(run.baselines["number"]) == {"mean", "tfidf_linear"}
    assert (run.files is None) == (kind == "full")
    after = dict(base.model.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(value, after[name]) for name, value in before.items())


def test_text_adapters_merge(text_bases, texts, registry, tmp_path):
    base = genre.Base.load(str(text_bases / "bert"))
    for task in (GOOD, STARS):
        run = genre.train(
            text_recipe(text_bases / "bert", task, train={"epochs": 2}), log=texts, base=base, folder=tmp_path / task["name"]
        )
        registry.publish(run)
    merged = merge_versions(registry, ["good", "stars"], MergeOptions("taste", floor=0.0), texts, base=base)
    found = genre.evaluate(registry, "taste", texts, base)
    assert set(found["tasks"]) == {"good", "stars"} and merged.version.manifest.catalogue is None
    assert found["tasks"]["good"]["adapter"] == merged.report["transfer"]["tasks"]["good"]["merged"]
    assert "catalogue.jsonl" not in merged.version.manifest.files


def test_splits_hold_out_and_limit(texts):
    split = {"kind": "group", "valid": 0.1, "test": 0.1}
    plain = text_recipe("x", GOOD, data={"split": split})
    chosen, usable = training_split(plain, texts)
    held = text_recipe("x", GOOD, data={"split": split, "hold_out": [{**split, "seed": 1}], "limit": 20})
    _, fewer = training_split(held, texts)
    other = texts.split(SplitConfig(**split, seed=1))
    assert fewer.sum() == 20 and usable.sum() == (chosen.part == 0).sum()
    assert not (fewer & (chosen.part != 0)).any() and not (fewer & (other.part != 0)).any()
    assert np.array_equal(fewer, training_split(held, texts)[1])


def test_baselines_are_fitted_on_training_texts_alone(text_bases, texts):
    base = genre.Base.load(str(text_bases / "bert"))
    wanted = text_recipe(text_bases / "bert", GOOD)
    assembly = assemble_texts(wanted, texts, base)
    found = predict(assembly.model, assembly.builder, assembly.split, 2, max_events=1, batch_tokens=4096)
    targets = found["good"][0]
    scores = text_baselines(texts, ["title", "review"], assembly.split, assembly.recipe.tasks[0], targets)
    flipped = texts.frame.with_columns(
        recommended=np.where(assembly.split.part == 2, 1 - texts.frame["recommended"].to_numpy(), texts.frame["recommended"])
    )
    assembly.model.release()
    others = assemble_texts(
        wanted, genre.Texts.from_frame(flipped, texts=["title", "review"], labels=["recommended", "rating"]), base
    )
    again = text_baselines(others.data, ["title", "review"], others.split, others.recipe.tasks[0], targets)
    scores, again = ({name: run() for name, run in scorers.items()} for scorers in (scores, again))
    others.model.release()
    assert all(np.array_equal(scores[name], again[name]) for name in scores)
    assert np.unique(scores["majority"]).size == 1 and scores["tfidf_linear"].std() > 0.1


def test_what_does_not_go_together_is_refused(text_bases, texts, tmp_path):
    log = planted_log(users=12)
    wanted = text_recipe(text_bases / "bert", GOOD)
    with pytest.raises(RecipeError, match="task 'good' of kind text reads labelled texts: got a log; expected labelled texts"):
        genre.train(wanted, log=log, folder=tmp_path / "a")
    like = Recipe.parse(
        {
            "name": "like",
            "data": {"path": "x"},
            "base": {"name": str(text_bases / "bert")},
            "tasks": [{"name": "like", "kind": "feedback", "label": "rating > 3"}],
        }
    )
    with pytest.raises(RecipeError, match="task 'like' of kind feedback reads a log: got labelled texts; expected a log"):
        genre.train(like, log=texts, folder=tmp_path / "b")
    with pytest.raises(
        BaseModelError, match="recipe 'like', whose rows are a user's events with many targets, needs a causal base"
    ):
        genre.train(like, log=log, folder=tmp_path / "c")
    for sections, message in (
        ({"sequence": {"max_tokens": 200}}, "sequence.max_tokens is more than the base has positions for"),
        ({"sequence": {"text": ["review", "recommended"]}}, "sequence.text names the label 'recommended'"),
        ({"tasks": [{**GOOD, "label": "title"}]}, "needs the label column 'title': got rating, recommended"),
        ({"tasks": [{**GOOD, "label": "rating"}]}, "with loss log_loss needs labels 0 and 1"),
        ({"tasks": [{**GOOD, "label": "rating > 9"}]}, "cannot be learnt: all its training labels are the same"),
    ):
        raw = wanted.model_dump(mode="json")
        for name, value in sections.items():
            raw[name] = {**raw[name], **value} if isinstance(value, dict) else value
        with pytest.raises(InputError, match=message):
            genre.train(Recipe.parse(raw), log=texts, folder=tmp_path / "d")
    assert not list(tmp_path.iterdir())


def test_folders_are_opened_by_what_is_wanted(texts, tmp_path):
    texts.write(tmp_path / "texts")
    planted_log(users=3, events=4).write(tmp_path / "log")
    assert isinstance(open_data(str(tmp_path / "texts")), genre.Texts)
    assert isinstance(open_data(str(tmp_path / "log")), genre.Interactions)
    with pytest.raises(DataError, match="holds no labelled texts: got no texts.parquet"):
        open_data(str(tmp_path / "log"), "texts")
    with pytest.raises(DataError, match="holds labelled texts, no log"):
        open_data(str(tmp_path / "texts"), "log")
    with pytest.raises(DataError, match="expected a folder with interactions.parquet or texts.parquet"):
        open_data(str(tmp_path / "none"))


def test_without_its_base_every_text_looks_alike(text_bases, texts):
    wanted = text_recipe(text_bases / "bert", GOOD, adapter={"kind": "no_base"})
    made = assemble_texts(wanted, texts, genre.Base.load(wanted.base.name, depth=wanted.base.depth))
    _, scores, _ = predict(made.model, made.builder, made.split, 2, max_events=100)["good"]
    assert len(scores) > 1 and len(np.unique(scores)) == 1
    made.model.release()
