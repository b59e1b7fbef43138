"""Search: the space, the study that is cut and goes on, what ends a trial, what may not be searched. Optuna is the real one."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import genre
from builders import GOOD, LIKE, NEXT, QUICK, RATING, recipe, text_recipe, with_values
from fakes import planted_log, planted_texts
from genre.cli import main
from genre.data.splits import SplitConfig, split
from genre.data.texts.dataset import Texts
from genre.errors import InputError, InterruptedJobError, JobError, RecipeError
from genre.jobs.tuning import Search, read_space, tune
from genre.jobs.tuning.space import kinds
from genre.jobs.tuning.study import open_study
from genre.jobs.tuning.trials import Objective
from genre.progress import Reporter
from genre.training import fit
from genre.training.assembly import assemble

RATES = "train.learning_rate=1e-3,5e-3"
RANKS = "adapter.rank=1,2,4"


@pytest.fixture
def search(little, base, wanted, tmp_path):
    """Search a space, by default in a folder of the test's own."""

    def search(*texts, of=None, how=None, folder="study", **options):
        chosen = of or wanted
        how = how or Search()
        space = read_space(chosen, texts, grid=how.sampler == "grid")
        options = {"trials": 3, "log": little, "base": base} | options
        return tune(chosen, space, how, tmp_path / folder, **options)

    yield search
    assert base.occupied_by is None


def results(found):
    """What a study found, without what it cost."""
    return [{key: row[key] for key in ("trial", "state", "value", "parameters", "by_epoch")} for row in found["trials"]]


# --- the space -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "described", "points"),
    [
        ("train.learning_rate=log:1e-4:3e-3", "log:0.0001:0.003", None),
        ("adapter.rank=2,4,8", "[2, 4, 8]", [2, 4, 8]),
        ("train.epochs=1:4", "1:4", [1, 2, 3, 4]),
        ("train.epochs=log:1:4", "log:1:4", None),
        ("adapter.rank=2:8:3", "2:8:3", [2, 5, 8]),
        ("train.dropout=0:0.3:0.1", "0.0:0.3:0.1", [0.0, 0.1, 0.2, 0.3]),
        ("train.warmup=0.0:0.1", "0.0:0.1", None),
        ("adapter.kind=lora,head_only", '["lora", "head_only"]', ["lora", "head_only"]),
        ("adapter.targets=[all-linear, [q_proj, v_proj]]", '["all-linear", ["q_proj", "v_proj"]]', None),
        ("encoder.fuse=true,false", "[true, false]", [True, False]),
        ("train.early_stop=null,1", "[null, 1]", [None, 1]),
        ("tasks.0.weight=1,2", "[1.0, 2.0]", [1.0, 2.0]),
    ],
)
def test_ranges_and_choices(wanted, text, described, points):
    space = read_space(wanted, [text])
    key = text.partition("=")[0]
    assert space.describe() == {key: described}
    if points is None and not described.startswith("["):
        with pytest.raises(RecipeError, match="a grid needs a few values of"):
            space.grid(0)
    elif points is not None:
        assert sorted(map(str, (point[key] for point in space.grid(0)))) == sorted(map(str, points))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.learnin_rate=1:2", "names an unknown key: got train.learnin_rate; .*; did you mean 'train.learning_rate'"),
        ("rank=1:2", "did you mean 'adapter.rank'?"),
        ("adapter=1,2", "'adapter' is a section, not a key: got adapter; expected one of adapter.kind, adapter.rank"),
        ("tasks.1.weight=1,2", "did you mean 'tasks.0.weight'?"),
        ("adapter.rank", "a search cannot be read: got adapter.rank; expected KEY="),
        ("adapter.rank=", "a search cannot be read"),
        ("train.learning_rate=2:1", "search of train.learning_rate is empty: got 2:1; expected LOW below HIGH"),
        ("train.learning_rate=1:1", "is empty"),
        ("train.learning_rate=a:b", "search of train.learning_rate: got a; expected numbers"),
        ("train.learning_rate=nan:1", "got nan; expected numbers"),
        ("train.learning_rate=1e-3,inf", "got inf; expected numbers"),
        ("train.learning_rate=log:0:1", "expected LOW above 0, and no step"),
        ("train.learning_rate=log:1:2:0.5", "expected LOW above 0, and no step"),
        ("train.dropout=0:0.5:0.3", "expected a range that is a whole number of steps"),
        ("train.dropout=0:0.5:0.9", "got step 0.9; expected above 0 and at most 0.5"),
        ("train.dropout=0:2", "search of train.dropout: got 2.0; expected less than 1"),
        ("adapter.rank=0,4", "search of adapter.rank: got 0; expected at least 1"),
        ("adapter.rank=1.5,2", "got 1.5; expected integers"),
        ("adapter.rank=4", "at least two values; fix one with --set adapter.rank=VALUE"),
        ("adapter.rank=4,4", "names a value twice"),
        ("adapter.kind=lora,lora2", "search of adapter.kind: got lora2; expected 'lora', 'rslora'"),
        ("adapter.kind=[lora", "expected a YAML list"),
        ("data.split.valid=0.1,0.2", "data.split.valid cannot be searched"),
        ("data.path=a,b", "data.path cannot be searched"),
        ("tasks.0.label=rating > 3,rating > 2", "tasks.0.label cannot be searched"),
        ("tasks.0.metrics=[[auc], [gauc]]", "tasks.0.metrics cannot be searched"),
    ],
)
def test_what_cannot_be_searched_is_refused(wanted, text, message):
    with pytest.raises(RecipeError, match=message) as error:
        read_space(wanted, [text])
    assert error.value.exit_code == 2 and "\n" not in str(error.value)


def test_values_that_only_fail_together_are_left_to_their_trials(wanted):
    """Without an encoder items must be text: neither value is wrong by itself."""
    space = read_space(wanted, ["encoder.use=none,fit", "sequence.item=text,token"])
    assert space.recipe(wanted, {"encoder.use": "none", "sequence.item": "text"}).encoder.use == "none"
    with pytest.raises(RecipeError, match="needs sequence.item text"):
        space.recipe(wanted, {"encoder.use": "none", "sequence.item": "token"})


def test_a_space_file_and_what_is_said_beside_it(wanted, tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text(
        "train.learning_rate: {low: 1e-4, high: 3e-3, log: true}\nadapter.rank: [2, 4]\n"
        'train.dropout: {low: 0, high: 0.4, step: 0.2}\ntrain.epochs: "1:3"\n'
    )
    space = read_space(wanted, ["adapter.rank=8,16"], file)
    assert space.describe() == {
        "train.learning_rate": "log:0.0001:0.003",
        "adapter.rank": "[8, 16]",
        "train.dropout": "0.0:0.4:0.2",
        "train.epochs": "1:3",
    }
    for text, message in (
        ("train.epochs: 2:30", "got 150; expected .* in quotes.*; YAML reads 2:30 without quotes as 150"),
        ("train.epochs: {low: 1, high: 2, stride: 1}", "search of train.epochs: got stride; expected low, high"),
        ("train.epochs: {low: 1}", "got low; expected low, high"),
        ("- a", "does not map keys: got a list"),
        ("{}", "got an empty mapping"),
        ("a: [", "is not YAML"),
    ):
        file.write_text(text)
        with pytest.raises(RecipeError, match=message):
            read_space(wanted, [], file)


@pytest.mark.parametrize("kind", ["lora", "rslora", "head_only", "full"])
@pytest.mark.parametrize("grid", [False, True])
def test_there_is_a_space_for_every_kind_of_adapter(tiny, kind, grid):
    space = read_space(recipe(tiny, LIKE, adapter={"kind": kind}), grid=grid)
    assert ("adapter.rank" in space.describe()) == (kind in ("lora", "rslora")) and "train.learning_rate" in space.describe()
    assert not grid or len(space.grid(0)) == 9


def test_every_key_of_a_recipe_is_found(tiny):
    known = kinds(recipe(tiny, LIKE, NEXT))
    assert {"name", "data.max_events", "data.split.valid", "tasks.1.weight", "adapter.targets", "train.seed"} <= known.keys()
    assert known["adapter.rank"].whole and not known["train.learning_rate"].whole and known["train.early_stop"].nothing
    assert not known["encoder.text"].number and not known["adapter.layers"].number


def test_a_stepped_value_is_the_one_that_was_written(wanted):
    space = read_space(wanted, ["train.dropout=0:0.9:0.05"])
    assert space.recipe(wanted, {"train.dropout": 0.05 * 7}).train.dropout == 0.35  # not 0.35000000000000003


# --- the study -------------------------------------------------------------------------------------------------------


def test_a_study_leaves_its_trials_its_best_recipe_and_pictures(search, little, base, wanted, tmp_path):
    lines = []
    found = search(RATES, RANKS, trials=4, reporter=Reporter(lines.append))
    folder = tmp_path / "study"
    rows = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    assert rows == found["trials"] and [row["trial"] for row in rows] == [1, 2, 3, 4]
    complete = [row for row in rows if row["state"] == "complete"]
    assert found["best"] == max(complete, key=lambda row: row["value"]) and found["objective"] == "like.auc"
    assert found["counts"]["complete"] == len(complete)
    assert {path.name for path in folder.iterdir()} >= {"study.journal", "best.yaml", "trials.jsonl", "plots", "environment.json"}
    assert not list(folder.rglob("*.pt"))
    for file in found["plots"]:
        assert Path(file).read_bytes().startswith(b"\x89PNG")
    said = [line for line in lines if line.startswith("trial ")]
    assert len(said) == 4 and said[0].startswith("trial 1/4: like.auc ") and "; best " in said[-1]

    best = genre.Recipe.read(folder / "best.yaml")
    assert best.train.learning_rate == found["best"]["parameters"]["train.learning_rate"]
    assert best.adapter.rank == found["best"]["parameters"]["adapter.rank"]
    assembly = assemble(best, little, base)
    try:
        state = fit(assembly, tmp_path / "again").state
    finally:
        assembly.model.release()
    assert state.best_value == found["best"]["value"]


def test_the_test_part_is_never_looked_at(search, little):
    """Other ratings in it change nothing."""
    late = np.flatnonzero(split(little, SplitConfig(kind="temporal")).part == 2)
    other = with_values(little, rating={int(event): 6.0 - little.column("rating")[event] for event in late})
    assert len(late) > 20 and other.digest != little.digest
    assert results(search(RATES)) == results(search(RATES, log=other, folder="other"))


def test_a_seed_makes_a_study(search):
    space = ["train.learning_rate=log:1e-4:1e-2", RANKS]
    first, again = (search(*space, folder=name, how=Search(sampler="tpe", seed=3)) for name in ("a", "b"))
    other = search(*space, folder="c", how=Search(sampler="tpe", seed=4))
    points = [[row["parameters"] for row in found["trials"]] for found in (first, again, other)]
    assert results(first) == results(again) and points[0] != points[2]
    assert len({str(point) for point in points[0]}) == 3


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_a_study_that_is_cut_goes_on_as_if_it_had_not_been(search, tiny, sampler):
    """Cut in the second epoch of the second trial, then between trials; the values by epoch are equal too."""
    of = recipe(tiny, LIKE, train={"epochs": 2, "batch_tokens": 512, "dropout": 0.2})
    how, space = Search(sampler=sampler, seed=1), (RATES, RANKS)
    through = search(*space, of=of, how=how, folder="through", trials=5)
    seen = []

    def cut(line):
        seen.append(line)
        if sum("epoch 2: validation" in each for each in seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedJobError, match="interrupted after 1 trials: got Ctrl-C; the same command resumes in"):
        search(*space, of=of, how=how, trials=5, reporter=Reporter(cut))
    part = search(*space, of=of, how=how, trials=3)
    assert [row["trial"] for row in part["trials"]] == [1, 2, 3]
    assert results(search(*space, of=of, how=how, trials=5)) == results(through)


def test_a_grid_visits_each_point_once_whatever_happens(search):
    how = Search(sampler="grid")
    assert len(search(RATES, RANKS, how=how, trials=2)["trials"]) == 2
    assert len(search(RATES, RANKS, how=how, trials=4)["trials"]) == 4
    found = search(RATES, RANKS, how=how, trials=None)
    points = [tuple(row["parameters"].values()) for row in found["trials"]]
    assert len(points) == 6 and set(points) == {(rate, rank) for rate in (1e-3, 5e-3) for rank in (1, 2, 4)}
    assert results(search(RATES, RANKS, how=how, trials=50)) == results(found)


def test_a_point_that_is_drawn_again_is_not_trained_again(search, tmp_path):
    found = search(RATES, trials=6, how=Search(sampler="random"))
    by_point = {}
    for row in found["trials"]:
        first = by_point.setdefault(str(row["parameters"]), row)
        assert first is row or (row["same_as"] == first["trial"] and row["value"] == first["value"])
    assert len(by_point) == 2 and len(list((tmp_path / "study" / "trials").iterdir())) == 2


def test_a_trial_that_diverges_fails_with_its_reason_and_the_study_goes_on(search):
    found = search("train.learning_rate=5e-3,1e30", how=Search(sampler="grid"), trials=None)
    states = {row["parameters"]["train.learning_rate"]: row for row in found["trials"]}
    assert states[1e30]["state"] == "failed" and "finite" in states[1e30]["reason"]
    assert found["best"] == states[5e-3] and found["counts"] == {"complete": 1, "pruned": 0, "failed": 1}


def test_values_that_do_not_go_together_fail_their_trial(search):
    found = search("encoder.use=none,fit", "sequence.item=text,token", how=Search(sampler="grid"), trials=None)
    reasons = [row["reason"] for row in found["trials"] if row["state"] == "failed"]
    assert len(reasons) == 1 and "needs sequence.item text" in reasons[0]


def test_a_study_in_which_everything_fails_is_a_failed_job(search):
    with pytest.raises(JobError, match="none of 2 trials gave a value: got .*finite") as error:
        search("train.learning_rate=1e29,1e30", how=Search(sampler="grid"), trials=None)
    assert error.value.exit_code == 1


def test_the_median_ends_a_bad_trial_after_its_first_epoch(search, tiny, wanted):
    of = recipe(tiny, LIKE, train={"epochs": 2, "batch_tokens": 512})
    rates = "train.learning_rate=4e-3,5e-3,6e-3,7e-3,8e-3,1e-9"
    space = read_space(wanted, [rates])
    seed = next(seed for seed in range(100) if space.grid(seed)[-1]["train.learning_rate"] == 1e-9)
    found = search(rates, of=of, how=Search(sampler="grid", seed=seed), trials=None)
    last = found["trials"][-1]
    assert last["state"] == "pruned" and last["value"] is None and list(last["by_epoch"]) == ["1"]
    kept = search(rates, of=of, how=Search(sampler="grid", seed=seed, pruner="none"), trials=None, folder="kept")
    assert kept["counts"]["pruned"] == 0 and len(kept["trials"][-1]["by_epoch"]) == 2


def test_lower_is_better_where_it_is(search, tiny):
    found = search(RATES, of=recipe(tiny, RATING, train=QUICK), how=Search(sampler="grid"), trials=None)
    assert found["objective"] == "rating.rmse"
    assert found["best"]["value"] == min(row["value"] for row in found["trials"] if row["value"] is not None)


def test_no_trial_begins_after_the_time_is_up(search):
    found = search(RATES, timeout_s=1e-9)
    assert found["trials"] == [] and found["best"] is None and found["best_recipe"] is None


def test_a_published_encoder_is_shared_by_all_trials_and_nothing_is_published(trained, tiny, base, tmp_path):
    from genre.engine.versions import read_encoder

    registry, names = trained.registry, list(trained.registry.names())
    of = recipe(tiny, LIKE, train=QUICK)
    versions = {name: registry.versions(name) for name in names}
    lines = []
    found = tune(
        of,
        read_space(of, [RATES]),
        Search(),
        tmp_path,
        trials=2,
        log=trained.log,
        base=base,
        registry=registry,
        reporter=Reporter(lines.append),
    )
    assert found["best"] and sum(line.startswith("using the encoder encoder-planted") for line in lines) == 1
    assert {name: registry.versions(name) for name in registry.names()} == versions
    assert read_encoder(registry, registry.resolve("encoder-planted").digest, base)
    with pytest.raises(RecipeError, match="encoder.learned changes nothing here: .*; add --set encoder.use=fit"):
        tune(
            of,
            read_space(of, ["encoder.learned=4,8"]),
            Search(),
            tmp_path / "2",
            trials=1,
            log=trained.log,
            base=base,
            registry=registry,
        )


def test_trials_of_another_depth_load_their_base(search, base):
    found = search("base.depth=1,2", how=Search(sampler="grid"), trials=None)
    assert found["counts"]["complete"] == 2 and found["trials"][0]["value"] != found["trials"][1]["value"]


# --- what a study refuses to go on with ------------------------------------------------------------------------------


def test_a_study_of_something_else_is_refused_with_both_values(search, tiny, little):
    search(RATES, trials=1)
    changed = recipe(tiny, LIKE, train=QUICK, adapter={"rank": 3})
    other = planted_log(users=24, items=16, events=12, seed=1)
    for texts, options, message in (
        ([RATES], {"of": changed}, "the study is of another run: recipe.adapter.rank differs: got 3; expected 8; name another"),
        ([RATES, RANKS], {}, r'space.adapter.rank differs: got "\[1, 2, 4\]"; expected nothing'),
        ([RATES], {"log": other}, f'data differs: got "{other.digest}"; expected "{little.digest}"'),
        ([RATES], {"how": Search(seed=1)}, "search.seed differs: got 1; expected 0"),
    ):
        with pytest.raises(InputError, match=message):
            search(*texts, **options)
    assert len(search(RATES, trials=2)["trials"]) == 2


def test_a_journal_that_a_kill_cut_is_mended_and_a_stranger_is_refused(search, tmp_path):
    first = search(RATES, trials=2)
    journal = tmp_path / "study" / "study.journal"
    with journal.open("ab") as file:
        file.write(b'{"op_code":6,"worker_id":"')
    assert results(search(RATES, trials=2)) == results(first)
    assert len(search(RATES, trials=3)["trials"]) == 3
    for text in (b"no journal\n", b"[1]\n", b'{"op_code": 0}\n'):
        journal.write_bytes(text)
        with pytest.raises(InputError, match=r"study.journal is not a study: got .*; expected an Optuna journal"):
            search(RATES)


def test_a_folder_that_is_not_the_studys_is_left_alone(search, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    (tmp_path / "file").write_text("")
    for folder, message in (("full", "holds other files: got no study.journal"), ("file", "the folder to work in is a file")):
        with pytest.raises(InputError, match=message):
            search(RATES, folder=folder)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_two_processes_never_work_on_one_study(search, tmp_path):
    from genre.jobs.folders import working_folder

    with (
        working_folder(tmp_path / "study", "study.journal"),
        pytest.raises(InputError, match="another process works in .*study: wait for it, or name another folder"),
    ):
        search(RATES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials: got 0; expected 1 or more"),
        ({"trials": None}, "the number of trials is missing.*expected --trials N; only --sampler grid ends by itself"),
        ({"timeout_s": 0.0}, "timeout: got 0.0; expected seconds, more than 0"),
        ({"timeout_s": float("nan")}, "timeout: got nan"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(search, tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        search(RATES, **options)
    assert not (tmp_path / "study").exists()


def test_unknown_samplers_pruners_and_seeds_are_refused():
    for options, message in (
        ({"sampler": "bayes"}, "no such sampler: got bayes; expected tpe, random, grid"),
        ({"pruner": "hyperband"}, "no such pruner: got hyperband; expected median, none"),
        ({"seed": -1}, "seed: got -1; expected 0 or more"),
    ):
        with pytest.raises(InputError, match=message):
            Search(**options)


def test_without_validation_there_is_nothing_to_search_by(search, tiny):
    of = recipe(tiny, LIKE, data={"split": {"kind": "temporal", "valid": 0.0, "test": 0.2}})
    with pytest.raises(InputError, match="the validation part has no target of task 'like'"):
        search(RATES, of=of)


def test_a_validation_part_of_one_label_is_refused_where_the_metric_needs_both(search, little, tiny, tmp_path):
    """All likes on the validation part: an AUC has no value there, a log loss has one."""
    part = split(little, SplitConfig(kind="temporal")).part
    valid = np.flatnonzero(part == 1)
    liked = with_values(little, rating={int(event): 5.0 for event in valid})
    message = f"like.auc, .* has no value on the validation part: got label 1 in all of {len(valid)} targets; expected targets of"
    with pytest.raises(InputError, match=message):
        search(RATES, log=liked, trials=1)
    assert not (tmp_path / "study").exists()
    for name in ("log_loss", "ece", "accuracy", "f1", "rmse"):
        assert Objective(recipe(tiny, LIKE | {"metrics": [name]}), liked).name == f"like.{name}"
    with pytest.raises(RecipeError, match="task 'like': a metric does not fit a feedback task: got ndcg@10"):
        Objective(recipe(tiny, LIKE | {"metrics": ["ndcg@10"]}), liked)
    of_each = {int(event): 1.0 + 4.0 * (little.user_codes[event] % 2) for event in valid}
    with pytest.raises(InputError, match="like.gauc, .*: got one label only in each user or impression; expected targets"):
        Objective(recipe(tiny, LIKE | {"metrics": ["gauc"]}), with_values(little, rating=of_each))


def test_texts_of_one_label_are_refused_too(tiny):
    texts = planted_texts(noise=0.0)
    part = texts.split(text_recipe(tiny, GOOD).data.split).part
    good = pl.when(pl.Series(part == 1)).then(1.0).otherwise(pl.col("recommended"))
    frame = texts.frame.with_columns(good.alias("recommended"))
    with pytest.raises(InputError, match="good.auc, .* has no value on the validation part: got label 1 in all of"):
        Objective(text_recipe(tiny, GOOD), Texts.from_frame(frame))


def test_a_trial_without_a_value_fails(search, little, tiny):
    """Likes are rare, and none is on the validation part or predicted there: an F1 has no value then."""
    training = np.flatnonzero(split(little, SplitConfig(kind="temporal")).part == 0)
    ratings = dict.fromkeys(range(len(little)), 1.0) | dict.fromkeys(training[::10].tolist(), 5.0)
    with pytest.raises(JobError, match="none of 1 trials gave a value: got like.f1 has no value on the validation part"):
        search(RATES, of=recipe(tiny, LIKE | {"metrics": ["f1"]}, train=QUICK), log=with_values(little, rating=ratings), trials=1)


def test_an_open_trial_that_was_told_to_end_ends(wanted, tmp_path):
    """Cut between the pruner's word and the study's: the trial is not trained on."""
    space, how = read_space(wanted, ["train.dropout=0:0.9"]), Search(seed=0)
    with open_study(tmp_path / "j", {}, space, how, maximize=True) as study:
        for value in (0.7, 0.8, 0.9, 0.7, 0.8):
            trial = study.next()
            assert not study.should_prune(trial, {1: value})
            study.end(trial, "complete", value)
        bad = study.next()
        point = bad.params
        assert study.should_prune(bad, {1: 0.1})
    with open_study(tmp_path / "j", {}, space, how, maximize=True) as study:
        again = study.next()
        assert again.params == point and study.should_prune(again, {})
        study.end(again, "pruned")
        rows = study.rows()
        assert len(rows) == 6 and rows[-1]["by_epoch"] == {"1": 0.1} and study.next() and study.best()["value"] == 0.9


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(little, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    little.write("data")
    raw = wanted.model_copy(update={"data": wanted.data.model_copy(update={"path": "data"})})
    (tmp_path / "like.yaml").write_text(raw.dump())
    return tmp_path


def test_the_command_searches_prints_and_goes_on(files, capsys):
    command = ["tune", "like.yaml", "--search", RATES, "--sampler", "grid", "--json", "out/found.json"]
    assert main([*command, "--trials", "1"]) == 0
    capsys.readouterr()
    assert main(command) == 0
    out, err = capsys.readouterr()
    found = json.loads((files / "out" / "found.json").read_text())
    assert found["study"] == "runs/like/tune" and found["counts"]["complete"] == 2
    assert "2 trials: 2 complete; runs/like/tune" in out and "next: genre train runs/like/tune/best.yaml" in out
    assert "resuming a study of 1 trials, up to 2" in err and "trial 2/2: like.auc" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["like.yaml"], "genre: the number of trials is missing"),
        (["like.yaml", "--trials", "0"], "genre: trials: got 0; expected 1 or more"),
        (["like.yaml", "--trials", "many"], "genre: invalid value for '--trials'"),
        (["nope.yaml", "--trials", "1"], "genre: no recipe nope.yaml"),
        (["like.yaml", "--trials", "1", "--search", "train.epoch=1,2"], "genre: the search space names an unknown key"),
        (["like.yaml", "--trials", "1", "--search", "train.epochs=3:1"], "genre: search of train.epochs is empty"),
        (["like.yaml", "--trials", "1", "--space", "nope.yaml"], "genre: no such search space"),
        (["like.yaml", "--trials", "1", "--study", "."], "genre: . holds other files"),
        (["like.yaml", "--trials", "1", "--sampler", "x"], "genre: no such sampler: got x"),
        (["like.yaml", "--trials", "1", "--timeout", "-1"], "genre: timeout: got -1.0"),
        (["like.yaml", "--trials", "1", "--json", "."], "genre: --json is a folder"),
        (["like.yaml", "--trials", "1", "--set", "tran.epochs=1"], "genre: like.yaml: unknown key 'tran'"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(files, capsys, arguments, message):
    before = sorted(path.name for path in files.iterdir())
    assert main(["tune", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(message), lines
    assert sorted(path.name for path in files.iterdir()) == before


@pytest.mark.slow
def test_a_killed_study_goes_on_bit_for_bit(files, capsys):
    """kill -9 twice, at whatever moment it hits."""
    options = ["--search", "train.learning_rate=log:1e-4:1e-2", "--search", RANKS, "--trials", "4", "--set", "train.epochs=3"]
    assert main(["tune", "like.yaml", *options, "--study", "through", "--json", "through.json"]) == 0
    start = "import sys; from genre.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", start, "tune", "like.yaml", *options, "--study", "cut", "--json", "cut.json"]
    for marker in ("trials/001/log.jsonl", "trials/002/log.jsonl"):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (files / "cut" / marker).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main(["tune", "like.yaml", *options, "--study", "cut", "--json", "cut.json"]) == 0
    through, cut = (json.loads((files / f"{name}.json").read_text()) for name in ("through", "cut"))
    assert results(through) == results(cut) and through["best"]["value"] == cut["best"]["value"]


def test_labelled_texts_are_searched_too(tmp_path_factory, tmp_path):
    from fakes import make_base, planted_texts

    raw = {
        "name": "good",
        "data": {"path": "planted", "split": {"kind": "group", "valid": 0.15, "test": 0.2}},
        "base": {"name": str(make_base(tmp_path_factory.mktemp("texts") / "llama"))},
        "sequence": {"text": ["title", "review"], "max_tokens": 64},
        "tasks": [{"name": "good", "kind": "text", "label": "recommended"}],
        "train": {"epochs": 1, "batch_tokens": 4096, "tracker": "none"},
    }
    of, texts = genre.Recipe.parse(raw), planted_texts()
    found = tune(of, read_space(of, [RATES]), Search(sampler="grid"), tmp_path / "study", trials=None, log=texts)
    assert found["objective"] == "good.auc" and found["counts"]["complete"] == 2
    with pytest.raises(RecipeError, match="reads labelled texts: got a log"):
        tune(of, read_space(of, [RATES]), Search(), tmp_path / "2", trials=1, log=planted_log())
