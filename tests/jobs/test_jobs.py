"""Jobs: run folders, encoders that fit and those that leak, evaluation of what was published."""

import dataclasses
import json

import polars as pl
import pytest
import torch

import genre
from builders import GOOD, LIKE, NEXT, recipe, text_recipe
from fakes import planted_texts
from genre.data.splits import SplitConfig, split
from genre.errors import InputError, ManifestError, RecipeError
from genre.jobs.encoders import check_leak
from genre.jobs.evaluate import draw_reliability, evaluate, warn_few_users
from genre.jobs.train_several import train_together
from genre.progress import Reporter
from genre.training.assembly import assemble_texts

LAST = {"split": {"kind": "last_n", "n": 4}}  # reaches further back than the temporal split
TEMPORAL = {"kind": "temporal", "valid": 0.1, "test": 0.1}
QUICK = {"epochs": 1}


@pytest.fixture(scope="module")
def repeats(tiny, log, tmp_path_factory):
    """A registry with `next_item`, where items of the history are kept, of users who come back to three items of theirs."""
    rows = [(f"u{user}", f"i{(3 * user + step % 3) % 30}", 1000 * step + user) for user in range(40) for step in range(8)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    users = log.users.filter(pl.col("user_id").is_in(frame["user_id"].unique().implode()))
    habits = genre.Interactions.from_frame(frame, items=log.catalogue.frame, users=users, name="habits")
    folder = tmp_path_factory.mktemp("repeats")
    registry, task = genre.Registry(folder / "registry"), {**NEXT, "seen": "kept", "metrics": ["hr@5", "ndcg@5"]}
    wanted = recipe(tiny, task, data={"split": {"kind": "last_n", "n": 1}}, train={"epochs": 6})
    base = genre.Base.load(str(tiny))
    registry.publish(genre.train(wanted, log=habits, base=base, registry=registry, folder=folder / "run"))
    return registry, habits


def test_repeats_are_served_as_they_are_evaluated(repeats, base):
    registry, habits = repeats
    found = evaluate(registry, "next_item", habits, base)
    hits = found["tasks"]["next_item"]["adapter"]["hr@5"]["value"]
    assert hits > 0.5 and "seen items kept" in found["protocol"]["next_item"]
    requests, wanted = [], []
    for user in habits.user_ids:
        *history, last = habits.history(user)
        person = habits.users.row(habits.user_code(user), named=True)
        requests.append(genre.Request("next_item", history=history, user=person, k=5))
        wanted.append(last["item_id"])
    with genre.Engine(base, registry) as engine:
        answers = engine.score(requests)
    top = [[item.item_id for item in answer.results] for answer in answers]
    assert sum(item in own for item, own in zip(wanted, top, strict=True)) / len(wanted) == pytest.approx(hits)
    with genre.Engine(base, registry) as engine:
        masked = engine.score([dataclasses.replace(request, exclude_seen=True) for request in requests])
    assert not any(item in {one.item_id for one in answer.results} for item, answer in zip(wanted, masked, strict=True))


def test_seen_items_of_an_evaluation_can_be_named(repeats, trained, base):
    registry, habits = repeats
    kept, masked = (evaluate(registry, "next_item", habits, base, seen=seen) for seen in ("kept", "masked"))
    assert kept["tasks"] == evaluate(registry, "next_item", habits, base)["tasks"] != masked["tasks"]
    assert "seen items masked" in masked["protocol"]["next_item"] and "seen items kept" in kept["protocol"]["next_item"]
    with pytest.raises(InputError, match="--seen is for next-item tasks: got like with like; leave it out"):
        evaluate(trained.registry, "like", trained.log, base, seen="kept")


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(Reporter, "line", lambda self, text: lines.append(text))
    return lines


def test_a_run_folder_says_what_was_run(trained):
    run = trained.runs["like"]
    assert {"recipe.yaml", "environment.json", "log.jsonl", "metrics.json", "checkpoints", "version"} <= {
        path.name for path in run.root.iterdir()
    }
    assert genre.Recipe.read(run.root / "recipe.yaml").name == "like"
    told = json.loads((run.root / "environment.json").read_text())
    name, instructions, *_ = told["processor"].split(", ")
    assert name and instructions == torch.backends.cpu.get_cpu_capability()
    report = json.loads((run.root / "metrics.json").read_text())
    assert report["metrics"] == run.metrics and len(report["validation"]) == 2 and report["cost"]["tokens"] > 0
    assert set(report["baselines"]["like"]) == set(run.baselines["like"]) and len(run.baselines["like"]) >= 2


def test_the_first_run_publishes_the_encoder_and_the_next_ones_use_it(trained):
    assert trained.runs["next_item"].encoder is not None and trained.runs["like"].encoder is None
    digests = {run.manifest.encoder for run in trained.runs.values()}
    assert digests == {trained.registry.resolve("encoder-planted").digest}
    assert trained.registry.versions("encoder-planted") == [digests.pop()[:12]]


@pytest.mark.parametrize("task", ["like", "rating", "next_item"])
def test_evaluation_of_a_version_gives_its_runs_own_figures(trained, base, task):
    found = evaluate(trained.registry, f"{task}@production", trained.log, base)
    run = trained.runs[task]
    assert found["digest"] == trained.registry.resolve(task).digest and found["part"] == "test"
    own, others = found["tasks"][task]["adapter"], found["tasks"][task]["baselines"]
    assert own.keys() == run.metrics[task].keys() and others.keys() == run.baselines[task].keys()
    for name, figure in own.items():
        assert figure["value"] == pytest.approx(run.metrics[task][name]["value"], abs=1e-5)
        assert figure["n"] == run.metrics[task][name]["n"]
    assert others == run.baselines[task]
    assert base.occupied_by is None


def test_a_log_loss_task_has_a_reliability_plot(trained, base, tmp_path):
    """The bins hold every target once, agree with the task's own predictions, and are drawn; other tasks have none."""
    found = evaluate(trained.registry, "like", trained.log, base)
    bins = found["tasks"]["like"]["reliability"]
    assert sum(each["n"] for each in bins) == found["tasks"]["like"]["adapter"]["auc"]["n"]
    predicted = pl.read_parquet(trained.runs["like"].root / "predictions.parquet")
    assert sum(each["n"] * each["share"] for each in bins) == pytest.approx(predicted["label"].sum())
    assert sum(each["n"] * each["score"] for each in bins) == pytest.approx(predicted["score"].sum(), rel=1e-4)
    drawn = draw_reliability(found, tmp_path / "report.json")
    assert drawn == {"like": tmp_path / "report.reliability.like.svg"} and "<svg" in drawn["like"].read_text()
    assert "<svg" in (trained.runs["like"].root / "reliability.like.svg").read_text()
    assert "reliability" not in evaluate(trained.registry, "rating", trained.log, base)["tasks"]["rating"]


def test_validation_is_another_part(trained, base):
    parts = [evaluate(trained.registry, "like", trained.log, base, part=part)["tasks"]["like"] for part in ("valid", "test")]
    assert parts[0]["adapter"] != parts[1]["adapter"]


FEW = "few users on the test part (like 2): an interval over fewer than 20 is not reliable"


def test_a_test_part_of_a_few_users_is_told_before_training_and_by_evaluation(trained, tiny, base, log, tmp_path):
    lines, registry = [], genre.Registry(tmp_path / "registry")
    two = {"split": {"kind": "temporal", "valid": 0.1, "test": 2 / len(log)}}
    wanted, say = recipe(tiny, LIKE, data=two, train=QUICK), Reporter(lines.append)
    registry.publish(genre.train(wanted, log=log, base=base, registry=registry, folder=tmp_path / "run", reporter=say))
    assert lines.count(FEW) == 1 and lines.index(FEW) < next(i for i, line in enumerate(lines) if line.startswith("epoch 1"))
    lines.clear()
    evaluate(registry, "like", log, base, reporter=say)
    assert lines.count(FEW) == 1
    train_together([wanted], log=log, base=base, registry=registry, folder=tmp_path / "several", reporter=say)
    assert lines.count(f"like: {FEW}") == 1
    lines.clear()
    evaluate(trained.registry, "like", trained.log, base, reporter=say)
    assert not [line for line in lines if "few users" in line]


def test_a_test_part_of_a_few_groups_of_texts_is_told(tiny, base):
    lines, few = [], planted_texts(groups=24)
    wanted = text_recipe(tiny, GOOD)
    assembly = assemble_texts(wanted, few, base)
    assembly.model.release()
    warn_few_users(wanted.tasks, few, assembly.split, "test", Reporter(lines.append))
    groups = len(set(few.group_codes[assembly.split.part == 2].tolist()))
    assert groups > 1
    assert lines == [f"few groups on the test part (good {groups}): an interval over fewer than 20 is not reliable"]


# --- leaks -----------------------------------------------------------------------------------------------------------


def encoder(trained):
    return trained.registry.resolve("encoder-planted").manifest


def test_an_encoder_of_the_same_split_is_taken(trained, tiny, log):
    fitted, wanted = encoder(trained), recipe(tiny, LIKE)
    check_leak(fitted, wanted, log)
    learnt = split(log, SplitConfig.model_validate(fitted.data.split["split"])).mask("train")
    assert learnt.any() and not (learnt & split(log, wanted.data.split).held_out).any()


def test_an_encoder_that_was_fitted_on_evaluated_events_is_refused(trained, tiny, log):
    with pytest.raises(ManifestError) as error:
        check_leak(encoder(trained), recipe(tiny, LIKE, data=LAST), log)
    text = str(error.value)
    assert text.startswith("the encoder was fitted on events that this recipe is evaluated on: got ")
    assert "events; expected none" in text and "data.hold_out" in text and "encoder.use: fit" in text


def test_an_encoder_of_another_log_is_taken_only_if_it_ends_before(trained, tiny, log):
    import polars as pl

    later = log.frame.with_columns(pl.col("timestamp") + 1_000_000).drop("row")
    overlapping = log.frame.with_columns(pl.col("timestamp") + 1).drop("row")
    for frame, fits in ((later, True), (overlapping, False)):
        other = genre.Interactions.from_frame(frame, items=log.catalogue.frame, users=log.users, name="planted")
        if fits:
            check_leak(encoder(trained), recipe(tiny, LIKE), other)
        else:
            with pytest.raises(ManifestError, match="fitted on another log that overlaps in time"):
                check_leak(encoder(trained), recipe(tiny, LIKE, data=LAST), other)


def untimed(log, name="planted"):
    """The log without times, in its own order."""
    frame = log.frame.drop("timestamp", "row").with_columns(step=pl.col("user_id").cum_count().over("user_id"))
    return genre.Interactions.from_frame(frame, items=log.catalogue.frame, users=log.users, name=name, order="step")


def test_an_encoder_of_another_log_is_not_taken_where_there_are_no_times(trained, tiny, log):
    """All events of such a log stand at second 0, which is not later than anything."""
    bare = untimed(log)
    manifest = trained.registry.resolve("encoder-planted").manifest
    assert bare.time_span(bare.column("rating") > 0) is None
    for encoder in (manifest, manifest.model_copy(update={"data": manifest.data.model_copy(update={"time_span": (0, 0)})})):
        with pytest.raises(ManifestError, match="fitted on another log, and this one has no times .* use encoder.use: fit"):
            check_leak(encoder, recipe(tiny, NEXT, data={"split": {"kind": "last_n", "n": 1}}), bare)
    same = manifest.model_copy(update={"data": manifest.data.model_copy(update={"digest": bare.digest, "time_span": None})})
    last = {"split": {"kind": "last_n", "n": 1}}
    held = same.model_copy(update={"data": same.data.model_copy(update={"split": {"split": last["split"]}})})
    check_leak(held, recipe(tiny, NEXT, data=last), bare)


def test_auto_fits_a_new_encoder_where_the_published_one_would_leak(tiny, base, log, tmp_path, said):
    registry = genre.Registry(tmp_path / "registry")
    first = genre.train(recipe(tiny, NEXT, train=QUICK), log=log, base=base, registry=registry, folder=tmp_path / "1")
    leaky = recipe(tiny, LIKE, data=LAST, train=QUICK)
    second = genre.train(leaky, log=log, base=base, registry=registry, folder=tmp_path / "2")
    assert second.encoder is not None and second.manifest.encoder != first.manifest.encoder
    assert any(line.startswith("fitting a new encoder: the encoder was fitted on events") for line in said)
    named = recipe(tiny, LIKE, data=LAST, train=QUICK, encoder={"use": first.encoder})
    with pytest.raises(ManifestError, match="fitted on events that this recipe is evaluated on"):
        genre.train(named, log=log, base=base, registry=registry, folder=tmp_path / "3")
    assert base.occupied_by is None and not (tmp_path / "3" / "checkpoints").exists()


def test_an_encoder_that_holds_another_split_out_serves_both(tiny, base, log, tmp_path, said):
    registry = genre.Registry(tmp_path / "registry")
    wide = recipe(tiny, NEXT, data={"split": TEMPORAL, "hold_out": [LAST["split"]]}, train=QUICK)
    first = genre.train(wide, log=log, base=base, registry=registry, folder=tmp_path / "1")
    second = genre.train(recipe(tiny, LIKE, data=LAST, train=QUICK), log=log, base=base, registry=registry, folder=tmp_path / "2")
    assert second.encoder is None and second.manifest.encoder == first.manifest.encoder
    assert any(line.startswith("using the encoder encoder-planted") for line in said)


# --- refusals --------------------------------------------------------------------------------------------------------


def test_an_encoder_that_could_not_be_published_is_not_fitted(tiny, base, log, tmp_path):
    registry = genre.Registry(tmp_path / "registry")
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "encoder-planted").write_text("no folder")
    with pytest.raises(InputError, match="the registry lies in a file: got .*/encoder-planted"):
        genre.train(recipe(tiny, LIKE, train=QUICK), log=log, base=base, registry=registry, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists() and base.occupied_by is None


def test_a_base_that_is_not_the_recipes_is_refused(tiny, base, log, tmp_path):
    wanted = recipe(tiny, LIKE)
    wanted = wanted.model_copy(update={"base": wanted.base.model_copy(update={"depth": 1})})
    with pytest.raises(RecipeError, match="differs from the recipe in base.depth: got 2; expected 1"):
        genre.train(wanted, log=log, base=base, folder=tmp_path)


def test_an_encoder_by_name_needs_a_registry(tiny, base, log, tmp_path):
    wanted = recipe(tiny, LIKE, encoder={"use": "encoder-planted"})
    with pytest.raises(RecipeError, match="encoder.use names a version, which needs a registry"):
        genre.train(wanted, log=log, base=base, folder=tmp_path)
