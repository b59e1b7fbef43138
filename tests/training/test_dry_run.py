"""`genre train --dry-run`: it counts what the run counts, measures a real step, and leaves nothing."""

import json
import os

import pytest

import genre
from builders import LIKE, NEXT, RATING, recipe, write_recipe
from genre import cli
from genre.jobs.dry_run import dry_run, timed


def said(capsys, *words, code=0):
    assert cli.main([str(word) for word in words]) == code
    return capsys.readouterr()


def files(place):
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


def trained_numbers(run):
    """What the first checkpoint of a real run holds."""
    import torch

    payload = torch.load(run / "checkpoints" / "last.pt", weights_only=True)
    return sum(value.numel() for value in payload["weights"].values())


@pytest.mark.parametrize("adapter", [{}, {"kind": "rslora", "rank": 4}, {"kind": "head_only"}, {"kind": "full"}])
def test_it_leaves_nothing_and_counts_what_the_run_counts(place, tiny, capsys, adapter):
    file = write_recipe(tiny, LIKE, adapter=adapter, train={"epochs": 1, "tracker": "tensorboard"})
    before = files(place)
    shown = said(capsys, "train", file, "--dry-run").out
    assert files(place) == before
    said(capsys, "train", file, "--dry-run", "--json", "dry.json")
    assert files(place) == sorted([*before, "dry.json"])
    found = json.loads((place / "dry.json").read_text())
    own = found["recipes"]["like"]
    run = json.loads(said_json(capsys, place, file))
    cost, log = run["cost"], [json.loads(line) for line in (place / "runs/like/1/log.jsonl").read_text().splitlines()]
    assert own["parameters"]["trained"] == trained_numbers(place / "runs/like/1") > 0
    assert own["parameters"]["lora"] + own["parameters"]["full"] == cost["lora_params"]
    assert own["epoch"]["tokens"] == cost["tokens"] and own["epoch"]["steps"] == len([line for line in log if "loss" in line])
    assert own["run"] == "runs/like/1" and "runs/like/1/ (checkpoints of" in shown
    names = ["encoder-planted"] if adapter.get("kind") == "full" else ["encoder-planted", "like"]
    assert found["registry"]["names"] == names and shown.endswith("a dry run: nothing was kept\n")


def said_json(capsys, place, file):
    said(capsys, "train", file, "--json", "run.json")
    return (place / "run.json").read_text()


def test_the_estimate_is_made_of_what_was_measured(place, tiny, capsys):
    shown = said(capsys, "train", write_recipe(tiny, LIKE, train={"epochs": 3}), "--dry-run", "--json", "dry.json").out
    found = json.loads((place / "dry.json").read_text())
    own, (cost,) = found["recipes"]["like"], found["costs"]
    pace = cost["step"]["seconds"] / cost["step"]["padded_tokens"]
    assert cost["recipes"] == ["like"] and pace > 0
    assert cost["training_seconds"] == pytest.approx(pace * own["epoch"]["padded_tokens"] * 3)
    assert cost["evaluation_seconds"] > 0 and own["epoch"]["padded_tokens"] >= own["epoch"]["tokens"] > 0
    memory = cost["memory_bytes"]
    assert memory["optimizer"] == 2 * memory["trained"] == 8 * own["parameters"]["trained"]
    assert memory["base"] == 4 * own["parameters"]["base"] and memory["step"] >= 0
    assert memory["peak"] == memory["base"] + memory["trained"] + memory["kept"] + max(
        memory["step"], memory["optimizer"] + memory["evaluation"]
    )
    assert memory["process"] > memory["base"] + memory["trained"] + memory["optimizer"]
    assert cost["measured"] == ["memory_bytes.step", "memory_bytes.process", "step.seconds"]
    assert cost["estimated"] == ["memory_bytes.evaluation", "memory_bytes.peak", "training_seconds", "evaluation_seconds"]
    assert shown.count("; predicted\n") == 4
    assert shown.count("; computed\n") == 2 and shown.count("; measured\n") == 2


def test_an_evaluation_batch_takes_what_its_tokens_and_its_catalogue_take(tiny, log, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def predicted(task, tokens):
        wanted = recipe(tiny, task, encoder={"use": "fit"}, train={"epochs": 1, "batch_tokens": tokens})
        return dry_run([wanted], log=log, base=base).costs[0].memory.evaluation

    config = base.model.config
    token = 4 * (4 * config.hidden_size + 3 * max(config.intermediate_size, config.hidden_size))
    few, many = predicted(LIKE, 128), predicted(LIKE, 256)
    assert few % token == many % token == 0 and 1.5 < many / few < 2.5 and many <= 4 * 256 * token
    assert 0 < predicted(NEXT, 128) - 4 * log.catalogue.size <= 4 * 128 * token + 4 * log.catalogue.size * 256


def test_averaged_weights_are_one_copy_more(place, tiny, capsys):
    found = {}
    for average in (0.0, 0.9):
        said(capsys, "train", write_recipe(tiny, LIKE, train={"average": average}), "--dry-run", "--json", "dry.json")
        (cost,) = json.loads((place / "dry.json").read_text())["costs"]
        found[average] = cost["memory_bytes"]
    assert found[0.9]["kept"] == 2 * found[0.9]["trained"] == 2 * found[0.0]["kept"]


resets_peak = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux resets a process's peak")


@resets_peak
def test_growth_is_the_peak_of_what_a_step_allocates():
    import torch

    def growth(numbers):
        return timed(torch.device("cpu"), lambda: torch.ones(numbers).sum())[1]

    assert 190e6 < growth(50_000_000) < 220e6 and growth(2_000) < 10e6 and 90e6 < growth(25_000_000) < 110e6


def test_several_recipes_share_the_encoder_that_the_first_one_would_fit(place, capsys):
    recipes = ["next_item.yaml", "like.yaml", "rating.yaml"]
    before = files(place)
    shown = said(capsys, "train", *recipes, "--dry-run")
    assert files(place) == before
    assert "like, rating at once" in shown.out and shown.out.count("that of next_item") == 2
    said(capsys, "train", *recipes, "--dry-run", "--json", "dry.json", "--out", "many")
    found = json.loads((place / "dry.json").read_text())
    assert [cost["recipes"] for cost in found["costs"]] == [["next_item"], ["like", "rating"]]
    assert found["registry"]["names"] == ["encoder-planted", "next_item", "like", "rating"]
    said(capsys, "train", *recipes, "--out", "many")
    for name, own in found["recipes"].items():
        assert own["run"] == f"many/{name}"
        assert own["parameters"]["trained"] == trained_numbers(place / "many" / name)
    memory = found["costs"][1]["memory_bytes"]
    pair = [found["recipes"][name]["parameters"]["trained"] for name in ("like", "rating")]
    assert memory["trained"] == 4 * sum(pair) and memory["base"] == 4 * found["recipes"]["like"]["parameters"]["base"]


def test_an_encoder_without_feedback_is_none_for_ratings(place, tiny, capsys):
    write_recipe(tiny, NEXT, sequence={"feedback": "none"})
    shown = said(capsys, "train", "next_item.yaml", "like.yaml", "--dry-run")
    assert "like cannot share the encoder of next_item: sequence.feedback: got rating; expected none, which" in shown.err
    write_recipe(tiny, NEXT)
    write_recipe(tiny, LIKE, sequence={"feedback": "none"})
    assert "that of next_item" in said(capsys, "train", "next_item.yaml", "like.yaml", "--dry-run").out


def test_it_uses_the_registrys_encoder_and_leaves_the_base_bare(trained, tiny, log, base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for tasks in ([LIKE], [LIKE, RATING]):
        wanted = [recipe(tiny, task) for task in tasks]
        found = dry_run(wanted, log=log, base=base, registry=trained.registry)
        digest = trained.registry.resolve("encoder-planted").digest
        assert all(each.encoder == digest[:12] and each.parameters.encoder == 0 for each in found.recipes)
        assert base.occupied_by is None and list(tmp_path.iterdir()) == []


def test_labelled_texts(tiny, tmp_path, monkeypatch):
    from fakes import planted_texts

    monkeypatch.chdir(tmp_path)
    wanted = genre.Recipe.parse(
        {
            "name": "words",
            "data": {"path": "x", "split": {"kind": "group", "valid": 0.1, "test": 0.1}},
            "base": {"name": str(tiny)},
            "sequence": {"text": ["title", "review"], "max_tokens": 64},
            "tasks": [{"name": "recommended", "kind": "text", "label": "recommended"}],
            "train": {"epochs": 1, "batch_tokens": 512, "tracker": "none"},
        }
    )
    found = dry_run([wanted], log=planted_texts())
    assert found.recipes[0].events == 320 and found.recipes[0].parameters.lora > 0 and list(tmp_path.iterdir()) == []


def test_the_memory_is_planned_for_the_device_that_is_named(place, tiny, capsys):
    file = write_recipe(tiny, LIKE, train={"epochs": 1})
    shown = said(capsys, "train", file, "--dry-run", "--plan", "cuda", "--json", "both.json").out
    said(capsys, "train", file, "--plan", "cuda", "--json", "plan.json")
    both, plan = (json.loads((place / name).read_text()) for name in ("both.json", "plan.json"))
    assert both["recipes"]["like"]["memory_bytes"] == plan["memory_bytes"]["like"] | {"device": "cuda"}
    assert both["dry_run"] and both["costs"][0]["step"]["seconds"] > 0
    assert " on cuda; predicted\n" in shown and "; measured\n" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["like.yaml", "--resume"], "--dry-run and --resume exclude each other"),
        (["like.yaml", "--set", "data.path=nowhere"], "no data set folder: got nowhere"),
        (["like.yaml", "--set", "encoder.use=other"], "no adapter 'other'"),
        (["like.yaml", "like.yaml"], "two recipes have the same name"),
        (["like.yaml", "rating.yaml", "--set", "adapter.kind=full"], "cannot train beside others: adapter.kind"),
    ],
)
def test_what_the_run_would_refuse_is_refused(place, capsys, words, message):
    before = files(place)
    error = said(capsys, "train", "--dry-run", *words, code=2).err
    assert message in error and error.count("\n") == 1 and files(place) == before
