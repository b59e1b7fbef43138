"""Merging: the arithmetic against the dense sum and against PEFT, the gate, what cannot be merged, serving what was merged."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import genre
from builders import LIKE, NEXT, RATING, publish_stirred, recipe
from genre.cli import main
from genre.engine import Engine, Request
from genre.engine.versions import by_split, read_adapter
from genre.errors import InputError, ManifestError, QualityError
from genre.jobs.evaluate import evaluate
from genre.jobs.loading import lora_layers, restore
from genre.jobs.merge.gate import MergeOptions
from genre.jobs.merge.job import merge_versions
from genre.jobs.merge.methods import METHODS, draw_seed, merge
from genre.modules.base.quiet import quiet
from genre.modules.lora.layer import peft_config, to_peft
from genre.registry import Registry

CLOSE = 1e-5
LAST = {"split": {"kind": "last_n", "n": 2}}
SHAPES = {"model.layers.0.q_proj": (12, 10), "model.layers.1.k_proj": (6, 10), "model.layers.1.up_proj": (20, 10)}


@pytest.fixture(scope="module")
def trained(trained, tmp_path_factory):
    """A copy of the registry, so that what is published here stays here."""
    folder = tmp_path_factory.mktemp("merging") / "registry"
    return replace(trained, registry=Registry(shutil.copytree(trained.registry.url, folder)))


def update(seed, rank=4, scale=2.0, names=tuple(SHAPES)):
    draw = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(rank, SHAPES[name][1], generator=draw), torch.randn(SHAPES[name][0], rank, generator=draw), scale)
        for name in names
    }


def dense(low, name):
    if name not in low:
        return torch.zeros(SHAPES[name], dtype=torch.float64)
    a, b, scale = low[name]
    return scale * b.double() @ a.double()


# --- the arithmetic --------------------------------------------------------------------------------------------------


def test_svd_of_an_adapter_with_itself_is_the_adapter():
    one = update(0)
    merged = merge([one, one], [0.5, 0.5], method="svd")
    for name in SHAPES:
        assert merged[name][0].shape[0] == 4 and merged[name][2] == 1.0
        assert (dense(merged, name) - dense(one, name)).abs().max() < CLOSE


def test_svd_at_full_rank_is_the_dense_sum_of_other_ranks_scales_and_targets():
    names = tuple(SHAPES)
    parents = [update(0, rank=2), update(1, rank=5, scale=0.5, names=names[1:]), update(2, rank=3, names=names[:1])]
    weights = [0.7, -0.4, 1.3]
    merged = merge(parents, weights, method="svd", rank=10)
    assert merged.keys() == SHAPES.keys()
    for name in SHAPES:
        wanted = sum(weight * dense(parent, name) for weight, parent in zip(weights, parents, strict=True))
        assert merged[name][0].shape[0] == 10
        assert (dense(merged, name) - wanted).abs().max() < CLOSE


def test_svd_cut_to_a_rank_is_the_best_of_that_rank():
    parents = [update(0), update(1)]
    merged = merge(parents, [0.5, 0.5], method="svd", rank=3)
    for name in SHAPES:
        wanted = sum(0.5 * dense(parent, name) for parent in parents)
        left = torch.linalg.svdvals(wanted)[3:].square().sum().sqrt()
        assert abs(torch.linalg.matrix_norm(dense(merged, name) - wanted) - left) < 1e-4
    assert merge([update(0, rank=2), update(1, rank=5)], [1, 1], method="svd")["model.layers.0.q_proj"][0].shape[0] == 5


def peft_merge(folders, base, weights, method, monkeypatch):
    """What PEFT's own `add_weighted_adapter` makes of the same files, with the draws of each linear seeded as ours."""
    with quiet():
        from peft import PeftModel
        from peft.tuners.lora import model as peft_lora

        names = [f"p{number}" for number in range(len(folders))]
        model = PeftModel.from_pretrained(base.model, str(folders[0]), adapter_name=names[0])
        for name, folder in zip(names[1:], folders[1:], strict=True):
            model.load_adapter(str(folder), adapter_name=name)
        linears = [name.removeprefix("base_model.model.") for name, module in model.named_modules() if hasattr(module, "lora_A")]
        original, calls = peft_lora.dare_ties, iter(range(10_000))

        def seeded(tensors, *rest):
            call = next(calls)
            if call % 2 == 0:
                torch.manual_seed(draw_seed(3, linears[call // 2]))
            return original(tensors, *rest)

        monkeypatch.setattr(peft_lora, "dare_ties", seeded)
        model.add_weighted_adapter(names, list(weights), "merged", combination_type=method, density=0.5)
        found = {}
        for name in linears:
            layer = model.get_submodule(f"base_model.model.{name}")
            found[name] = layer.scaling["merged"], layer.lora_A["merged"].weight.data, layer.lora_B["merged"].weight.data
        return found


@pytest.mark.parametrize("weights", [(0.5, 0.5), (1.0, -0.25)])
@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties"])
def test_merges_on_the_factors_are_pefts(base, trained, tmp_path, monkeypatch, method, weights):
    lows = [read_adapter(trained.registry, name, base).low for name in ("like", "rating")]
    folders = [tmp_path / "like", tmp_path / "rating"]
    for folder, low, alpha in zip(folders, lows, (16, 4), strict=True):  # other scales in the two files
        folder.mkdir()
        layers = lora_layers(base, low)
        config = peft_config(layers, base="tiny", rank=8, alpha=alpha)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(to_peft(layers), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    lows[1] = {name: (a, b, 0.5) for name, (a, b, _) in lows[1].items()}
    ours = merge(lows, weights, method=method, density=0.5, seed=3)
    theirs = peft_merge(folders, base, weights, method, monkeypatch)
    assert ours.keys() == theirs.keys() and len(ours) == 14
    for name, (scale, a, b) in theirs.items():
        assert scale == ours[name][2] == 1.0
        assert torch.equal(ours[name][0], a) and torch.equal(ours[name][1], b), name


def test_dare_is_seeded_and_leaves_the_callers_generator_alone():
    parents = [update(0), update(1)]
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    one, two = (merge(parents, [0.5, 0.5], method="dare_ties", seed=1) for _ in range(2))
    assert torch.equal(torch.rand(3), wanted)
    other = merge([dict(reversed(parent.items())) for parent in parents], [0.5, 0.5], method="dare_ties", seed=1)
    third = merge(parents, [0.5, 0.5], method="dare_ties", seed=2)
    for name in SHAPES:
        assert torch.equal(one[name][0], two[name][0]) and torch.equal(one[name][1], other[name][1])
        assert not torch.equal(one[name][0], third[name][0])


def test_a_linear_of_one_parent_only_and_adapters_without_any():
    name, *others = SHAPES
    merged = merge([update(0, names=(name,)), update(1, names=tuple(others))], [0.25, 1.0], method="linear")
    assert (dense(merged, name) - 0.25 * dense(update(0, names=(name,)), name)).abs().max() < CLOSE
    assert merge([{}, {}], [0.5, 0.5], method="ties") == {}
    assert merge([{}, update(0)], [0.5, 1.0], method="svd").keys() == SHAPES.keys()
    full = merge([update(0), update(1)], [0.5, 0.5], method="ties", density=1.0)  # without PEFT's warning
    assert full.keys() == SHAPES.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "mean"}, "no such method: got mean; expected linear, ties, dare_ties, svd"),
        ({"weights": [1.0]}, "weights: got 1 for 2 adapters; expected one per adapter"),
        ({"weights": [0.0, 0.0]}, "weights: got 0.0, 0.0; expected finite numbers that are not all 0"),
        ({"weights": [1.0, float("nan")]}, "weights: got 1.0, nan"),
        ({"rank": 0}, "rank: got 0 with method svd; expected 1 to 1024"),
        ({"rank": 4, "method": "ties"}, "rank: got 4 with method ties"),
        ({"density": 0.0}, "density: got 0.0; expected more than 0, at most 1"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    arguments = {"weights": [0.5, 0.5], "method": "svd", **change}
    with pytest.raises(InputError, match=message):
        merge([update(0), update(1)], arguments.pop("weights"), **arguments)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "svd"])
def test_unequal_ranks_are_refused_with_a_way_out(method):
    with pytest.raises(ManifestError) as error:
        merge([update(0, rank=2), update(1, rank=4)], [0.5, 0.5], method=method)
    assert str(error.value) == (
        f"method {method} needs parents of one rank: got ranks 2, 4; expected equal ranks; "
        "use --method svd, which merges any ranks"
    )


# --- the job ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def merged(trained):
    """All three trained adapters in one, at the rank that loses nothing of their sum; the floor lets everything pass."""
    options = MergeOptions("taste", rank=24, floor=0.0, weights=(1.0, 0.5, 0.25))
    base = genre.Base.load(str(trained.base))
    found = merge_versions(trained.registry, ["like@production", "rating", "next_item"], options, trained.log, base=base)
    assert base.occupied_by is None
    return found


def test_a_merged_version_says_what_it_is(merged, trained):
    manifest = trained.registry.resolve("taste@candidate").manifest
    parents = [trained.registry.resolve(name) for name in ("like", "rating", "next_item")]
    assert manifest.digest == merged.version.digest and manifest.kind == "merged"
    assert manifest.parents == tuple(parent.digest for parent in parents)
    assert [task["name"] for task in manifest.tasks] == ["like", "rating", "next_item"]
    assert manifest.protocol.keys() == {"like", "rating", "next_item"}
    assert manifest.encoder == parents[0].manifest.encoder and manifest.data.digest == trained.log.digest
    assert manifest.notes["merge"]["weights"] == [1.0, 0.5, 0.25] and manifest.notes["merge"]["rank"] == 24
    assert set(manifest.notes["splits"]) == {"like", "rating", "next_item"}
    assert not trained.registry.verify("taste")
    assert {found.digest for _, _, found in trained.registry.lineage("taste") if found} >= set(manifest.parents)


def test_the_report_holds_the_transfer_matrix(merged, base, trained):
    """Own updates on own tasks are the figures that training published; the merged row is the manifest's."""
    transfer, refs = merged.report["transfer"], merged.report["parents"]
    assert transfer["metric"] == {"like": "auc", "rating": "rmse", "next_item": "ndcg@10"} and transfer["part"] == "test"
    for task, ref in zip(transfer["metric"], refs, strict=True):
        row = transfer["tasks"][task]
        assert list(row) == [*refs, "merged"]
        assert len({row[source][transfer["metric"][task]]["value"] for source in row}) > 1
        for metric, figure in trained.runs[task].metrics[task].items():
            assert row[ref][metric]["value"] == pytest.approx(figure["value"], abs=1e-6)
            assert row["merged"][metric]["n"] == figure["n"]
        assert {metric: value.value for metric, value in merged.version.manifest.metrics[task].items()} == {
            metric: figure["value"] for metric, figure in row["merged"].items()
        }
    json.dumps(merged.report, allow_nan=False)
    found = evaluate(trained.registry, "taste", trained.log, base)
    for task, figures in found["tasks"].items():
        for metric, figure in figures["adapter"].items():
            assert figure["value"] == pytest.approx(transfer["tasks"][task]["merged"][metric]["value"], abs=1e-6)


def test_the_engine_serves_all_tasks_of_a_merged_version(merged, base, trained):
    """Its update is the dense sum of the parents', under each parent's own head."""
    requests = [
        Request("taste", user_id=user, candidates=("i0", "i5", "i29"), task=task)
        for user in ("u0", "u9")
        for task in ("like", "rating", "next_item")
    ]
    with Engine(base, trained.registry, data=trained.log) as engine:
        answers = engine.score([*requests, Request("like", user_id="u0", candidates=("i0", "i5", "i29"))])
    assert [answer.error for answer in answers] == [None] * 7
    assert {answer.digest for answer in answers[:-1]} == {merged.version.digest}
    scores = [np.array([scored.score for scored in answer.results]) for answer in answers]
    assert np.abs(scores[0] - scores[-1]).max() > 1e-4  # not the parent
    parents = [read_adapter(trained.registry, name, base) for name in ("like", "rating", "next_item")]
    weights = (1.0, 0.5, 0.25)
    loaded = read_adapter(trained.registry, "taste", base)
    for name, (a, b, scale) in loaded.low.items():
        wanted = sum(w * p.low[name][2] * p.low[name][1] @ p.low[name][0] for w, p in zip(weights, parents, strict=True))
        assert (scale * b @ a - wanted).abs().max() < CLOSE
    for parent in parents:
        for task, head in parent.heads.items():
            mine = loaded.heads[task].state_dict()
            assert all(torch.equal(mine[key], value) for key, value in head.state_dict().items())


def test_an_adapter_merged_with_itself_passes_every_gate(base, trained):
    options = MergeOptions("twice", floor=0.9999)
    found = merge_versions(trained.registry, ["like", "like"], options, trained.log, base=base)
    row = found.report["gate"]["tasks"]["like"]
    assert row["passed"] and row["ratio"] == pytest.approx(1, abs=1e-5)
    assert found.version.manifest.parents == (trained.registry.resolve("like").digest,)
    first, second = (read_adapter(trained.registry, name, base).low for name in ("like", "twice"))
    for name, (a, b, scale) in first.items():
        assert (scale * b @ a - second[name][2] * second[name][1] @ second[name][0]).abs().max() < CLOSE


@pytest.mark.parametrize("task", ["like", "rating"])
def test_the_gate_refuses_and_publishes_nothing(base, trained, task):
    """A floor of 3 asks for a threefold AUC, or a third of the RMSE."""
    with pytest.raises(QualityError, match=rf"poor is not published: below 3 of a parent on validation: got {task}\.") as error:
        merge_versions(trained.registry, [task, task], MergeOptions("poor", floor=3.0), trained.log, base=base)
    assert error.value.exit_code == 2 and ("at least" if task == "like" else "at most") in str(error.value)
    assert "poor" not in trained.registry.names() and base.occupied_by is None


def test_weights_are_searched_on_validation(base, trained):
    options = MergeOptions("searched", weights="search", floor=0.0)
    found = merge_versions(trained.registry, ["like", "rating"], options, trained.log, base=base)
    rows = found.report["search"]
    assert all(any(row["weights"]) for row in rows) and 6 < len(rows) <= 20
    best = max(rows, key=lambda row: (row["worst"], row["mean"]))
    assert best["weights"] == found.report["weights"]
    ratios = [row["ratio"] for row in found.report["gate"]["tasks"].values()]
    assert min(ratios) == best["worst"] >= rows[0]["worst"]


def test_parents_of_other_splits_are_each_measured_under_their_own(base, tiny, trained, tmp_path):
    wanted = recipe(tiny, {**RATING, "name": "late"}, name="late", data=LAST)
    publish_stirred(trained.registry, wanted, trained.log, base, tmp_path / "late", encoder="encoder-planted", seed=4)
    found = merge_versions(trained.registry, ["like", "late"], MergeOptions("both", floor=0.0), trained.log, base=base)
    splits = found.version.manifest.notes["splits"]
    assert (splits["like"]["kind"], splits["late"]["kind"]) == ("temporal", "last_n")
    tasks = found.report["transfer"]["tasks"]
    assert tasks["late"]["merged"]["rmse"]["n"] == 2 * 60 and tasks["like"]["merged"]["auc"]["n"] == 144
    evaluated = evaluate(trained.registry, "both", trained.log, base)["tasks"]
    assert list(evaluated) == ["like", "late"] and all(evaluated[task]["baselines"] for task in evaluated)
    for task, metric in (("like", "auc"), ("late", "rmse")):
        assert evaluated[task]["adapter"][metric]["value"] == pytest.approx(tasks[task]["merged"][metric]["value"], abs=1e-6)
    again = merge_versions(trained.registry, ["both", "next_item"], MergeOptions("three", floor=0.0), trained.log, base=base)
    assert again.version.manifest.notes["splits"] == {**splits, "next_item": splits["like"]}
    assert len(by_split(read_adapter(trained.registry, "three", base))) == 2


def test_text_adapters_and_head_only_ones_are_merged(base, tiny, trained, tmp_path):
    registry = Registry(tmp_path / "registry")
    for number, (task, kind) in enumerate(((LIKE, "lora"), (RATING, "head_only"))):
        wanted = recipe(tiny, task, sequence={"item": "text"}, encoder={"use": "none"}, adapter={"kind": kind})
        publish_stirred(registry, wanted, trained.log, base, tmp_path / str(number), seed=number)
    found = merge_versions(
        registry, ["like", "rating"], MergeOptions("text", "linear", (1.0, 1.0), floor=0.0), trained.log, base=base
    )
    assert found.report["gate"]["tasks"]["like"]["ratio"] == pytest.approx(1, abs=1e-5)
    with Engine(base, registry) as engine:  # by the catalogue in the version
        answers = engine.score([Request("text", history=[], candidates=["i0"], task=task) for task in ("like", "rating")])
    assert [answer.error for answer in answers] == [None, None]


# --- what cannot be merged -------------------------------------------------------------------------------------------


def test_adapters_of_other_encoders_and_layouts_are_refused(base, tiny, trained, tmp_path):
    registry = trained.registry
    genre.train(
        recipe(tiny, NEXT, name="other", encoder={"use": "fit", "learned": 4}, train={"epochs": 1}),
        log=genre.Interactions.from_frame(
            trained.log.frame.drop("row"), items=trained.log.catalogue.frame, users=trained.log.users, name="second"
        ),
        base=base,
        registry=registry,
        folder=tmp_path / "other",
    )
    wanted = recipe(tiny, RATING, name="strange")
    strange = publish_stirred(registry, wanted, trained.log, base, tmp_path / "strange", encoder="encoder-second")
    like, mine = (registry.resolve(name) for name in ("like", "strange"))
    with pytest.raises(ManifestError) as error:
        merge_versions(registry, ["like", "strange"], MergeOptions("no"), trained.log, base=base)
    assert str(error.value) == (
        f'{strange.ref} cannot be merged with {like.ref}: encoder differs: got "{mine.manifest.encoder}"; '
        f'expected "{like.manifest.encoder}"; '
        f"train strange again with --set encoder.use={registry.find(like.manifest.encoder).ref}, and merge that"
    )
    wanted = recipe(tiny, RATING, name="windowed", data={"max_events": 12})
    publish_stirred(registry, wanted, trained.log, base, tmp_path / "windowed", encoder="encoder-planted")
    with pytest.raises(ManifestError, match="sequence.max_events differs: got 12; expected 16"):
        merge_versions(registry, ["like", "windowed"], MergeOptions("no"), trained.log, base=base)
    assert "no" not in registry.names()


def test_shared_tasks_encoders_and_single_parents_are_refused(base, tiny, trained, tmp_path):
    registry = trained.registry
    wanted = recipe(tiny, LIKE, name="rival")
    publish_stirred(registry, wanted, trained.log, base, tmp_path / "rival", encoder="encoder-planted", seed=9)
    with pytest.raises(
        ManifestError, match="two parents have a task 'like': got like:.* and rival:.*; expected each task from one"
    ):
        merge_versions(registry, ["like", "rival"], MergeOptions("no"), trained.log, base=base)
    with pytest.raises(ManifestError, match="has no tasks to merge: got a version of kind encoder"):
        merge_versions(registry, ["like", "encoder-planted"], MergeOptions("no"), trained.log, base=base)
    with pytest.raises(InputError, match="a merge needs at least two adapters: got 1"):
        merge_versions(registry, ["like"], MergeOptions("no"), trained.log, base=base)
    with pytest.raises(InputError, match="floor: got -1.0"):
        merge_versions(registry, ["like", "rating"], MergeOptions("no", floor=-1.0), trained.log, base=base)
    with pytest.raises(InputError, match="name"):
        merge_versions(registry, ["like", "rating"], MergeOptions("No!"), trained.log, base=base)


def test_a_registry_that_could_not_take_the_result_is_refused_first(base, trained):
    stray = Path(trained.registry.url) / "taken"
    stray.write_text("no folder")
    try:
        with pytest.raises(InputError, match="the registry lies in a file: got .*/taken"):
            merge_versions(trained.registry, ["like", "rating"], MergeOptions("taken", floor=5.0), trained.log, base=base)
    finally:
        stray.unlink()


def test_a_split_without_validation_cannot_be_gated(base, tiny, trained, tmp_path):
    wanted = recipe(tiny, LIKE, name="unheld", data={"split": {"kind": "temporal", "valid": 0.0, "test": 0.2}})
    publish_stirred(trained.registry, wanted, trained.log, base, tmp_path / "unheld", encoder="encoder-planted")
    with pytest.raises(InputError, match="task 'like' has no auc on the validation part, which the gate needs"):
        merge_versions(trained.registry, ["unheld", "rating"], MergeOptions("no"), trained.log, base=base)
    assert base.occupied_by is None


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_merges_prints_and_writes_json(trained, tmp_path, capsys):
    data, file = tmp_path / "planted", tmp_path / "out" / "merge.json"
    trained.log.write(data)
    common = ["--data", str(data), "--registry", trained.registry.url, "--base", str(trained.base)]
    merging = ["merge", "like", "rating", "--as", "by-hand", "--method", "ties", "--weights", "1,0.5", "--density", "0.8"]
    assert main([*merging, *common, "--floor", "0", "--json", str(file)]) == 0
    printed, report = capsys.readouterr().out, json.loads(file.read_text())
    assert report["method"] == "ties" and report["weights"] == [1.0, 0.5] and report["ref"] in printed
    assert "like auc" in printed and "rating rmse" in printed and "merged" in printed and "validation like.auc" in printed
    for wrong, message in (
        (["--floor", "5"], "genre: by-hand is not published: below 5 of a parent on validation: got like.auc"),
        (["--weights", "a,b"], "genre: --weights cannot be read: got a,b; expected numbers such as 0.5,0.5, or search"),
        (["--weights", "1,2,3"], "genre: weights: got 3 for 2 adapters"),
        (["--method", "mean"], "genre: no such method: got --method mean; expected linear, ties, dare_ties, svd"),
    ):
        assert main([*merging, *common, *wrong]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith(message), lines


def test_restoring_a_merged_version_needs_no_parent(merged, base, trained):
    loaded = read_adapter(trained.registry, "taste", base)
    model, _, _ = restore(by_split(loaded)[0], trained.log, base)
    assert set(model.tasks) == {"like", "rating", "next_item"} and len(model.layers) == 14
    model.release()
