"""The paired test between two models: what it says, what it refuses, where predictions come from."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from builders import LIKE, RATING, recipe
from genre.cli import main
from genre.errors import DataError, InputError, RecipeError
from genre.evaluation.metrics import bootstrap
from genre.evaluation.metrics.bootstrap import MIN_USERS
from genre.evaluation.targets import Targets
from genre.jobs.compare import compare, pairs
from genre.jobs.predictions import Scored, from_baseline, from_run, from_version, read_predictions
from genre.tasks import Task

AUC = Task(name="like", kind="feedback", label="rating > 3", metrics=("auc", "log_loss"))
RANKED = Task(name="next_item", kind="next_item", metrics=("ndcg@10", "coverage@10"))
UNDER = {"data": "d" * 64, "split": {"kind": "last_n", "n": 1}, "part": "test", "kind": "feedback", "label": "rating > 3"}


def scored(name, scores, *, users=60, each=6, seed=0, task=AUC, **under):
    """Predictions of `each` targets of each user; `scores(label, random)` makes them."""
    random = np.random.default_rng(seed)
    count = users * each
    label = random.integers(0, 2, count).astype(float)
    owner = np.repeat(np.arange(users, dtype=np.int32), each)
    targets = Targets(np.arange(count), owner, np.zeros(count, dtype=np.int32), label)
    return Scored(name, task, targets, scores(label, np.random.default_rng(seed + 1)), UNDER | under)


def guess(share):
    """Probabilities that lean to the label by a share."""
    return lambda label, random: np.clip(0.5 + share * (label - 0.5) + random.normal(0, 0.15, len(label)), 0.01, 0.99)


GOOD, POOR = scored("good", guess(0.3)), scored("poor", guess(0.05))


# --- what it says ----------------------------------------------------------------------------------------------------


def test_the_better_model_is_named_whichever_comes_first():
    for first, second, outcome in ((GOOD, POOR, "better"), (POOR, GOOD, "worse")):
        by_name = {each.metric: each for each in compare(first, second)}
        assert {each.outcome for each in by_name.values()} == {outcome}
        assert all(each.verdict() == "good is better" for each in by_name.values())
        auc, loss = by_name["auc"], by_name["log_loss"]  # higher is better; lower is better
        assert (auc.difference > 0) == (outcome == "better") == (loss.difference < 0)
        assert auc.at_least == loss.at_least == (1.0 if outcome == "better" else 0.0)
        assert auc.difference == pytest.approx(auc.a - auc.b) and auc.interval[0] <= auc.difference <= auc.interval[1]
        assert auc.a == bootstrap("auc", first.targets.user, first.targets.label, first.scores).value
        assert auc.n == 360 and auc.users == 60 and auc.needed is None


def test_a_test_that_is_too_small_says_so_and_how_many_users_it_would_take():
    near = replace(GOOD, name="near", scores=GOOD.scores + np.random.default_rng(5).normal(0, 0.02, len(GOOD.scores)))
    (auc,) = compare(GOOD, near, metrics=["auc"])
    assert auc.outcome == "cannot be told" and auc.interval[0] <= 0 <= auc.interval[1] and 0 < auc.at_least < 1
    assert auc.needed > auc.users
    assert auc.verdict() == (
        f"the test is too small to tell them apart; a difference this large would take about {auc.needed:,} users"
    )


def test_a_handful_of_users_never_tells():
    few = [scored(name, guess(share), users=MIN_USERS - 1) for name, share in (("good", 0.6), ("poor", 0.0))]
    found = compare(*few)
    assert {each.outcome for each in found} == {"cannot be told"} and found[0].interval[0] > 0
    assert found[0].verdict() == f"the test is too small to tell: {MIN_USERS - 1} users, at least {MIN_USERS} are needed"


def test_equal_predictions_are_equal():
    for each in compare(GOOD, replace(GOOD, name="again")):
        assert (each.outcome, each.difference, each.interval, each.at_least) == ("equal", 0.0, (0.0, 0.0), 1.0)
        assert each.verdict() == "they are equal on every target"


def test_targets_of_one_kind_give_no_value():
    alike = [replace(each, targets=replace(each.targets, label=np.ones(360))) for each in (GOOD, POOR)]
    auc = compare(*alike, metrics=["auc"])[0]
    assert auc.interval is None and auc.a is None and auc.outcome == "cannot be told"
    assert auc.verdict() == "these targets give no value" and json.dumps(auc.as_dict(), allow_nan=False)


def test_ranks_are_compared_and_lists_are_left_out():
    def ranks(low):
        return lambda label, random: random.integers(low, low + 9, len(label)).astype(float)

    under = {"kind": "next_item", "label": None, "seen items": "masked"}
    first, second = (scored(name, ranks(low), task=RANKED, **under) for name, low in (("a", 1), ("b", 4)))
    found = compare(*(replace(each, targets=replace(each.targets, label=None)) for each in (first, second)))
    assert [(each.metric, each.outcome) for each in found] == [("ndcg@10", "better")]


def test_seeds_make_draws():
    one, again, other = (compare(GOOD, POOR, seed=seed)[0].interval for seed in (0, 0, 1))
    assert one == again != other


# --- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("data", "e" * 64, "data differs: got d+ and e+"),
        ("split", {"kind": "last_n", "n": 2}, 'split differs: got {"kind": "last_n", "n": 1} and {"kind": "last_n", "n": 2}'),
        ("part", "valid", "part differs: got test and valid"),
        ("label", "rating > 2", "label differs: got rating > 3 and rating > 2"),
    ],
)
def test_other_protocols_are_refused_with_both_values(field, value, shown):
    with pytest.raises(InputError, match="good and poor cannot be compared: " + shown):
        compare(GOOD, replace(POOR, under={**UNDER, field: value}))


def test_other_targets_are_refused():
    with pytest.raises(InputError, match="the targets' events differ: got 360 and 100 targets"):
        compare(GOOD, replace(POOR, targets=POOR.targets.take(slice(100)), scores=POOR.scores[:100]))
    flipped = replace(POOR.targets, label=1 - POOR.targets.label)
    with pytest.raises(InputError, match="the targets' labels differ"):
        compare(GOOD, replace(POOR, targets=flipped))
    none = [replace(each, targets=each.targets.take(slice(0)), scores=each.scores[:0]) for each in (GOOD, POOR)]
    with pytest.raises(InputError, match="cannot be compared: there are no targets"):
        compare(*none)


def test_metrics_and_tasks_that_are_not_there_are_refused():
    with pytest.raises(RecipeError, match="no such metric to compare by: got rmse; expected auc, log_loss"):
        compare(GOOD, POOR, metrics=["rmse"])
    other = replace(POOR, task=AUC.model_copy(update={"metrics": ("gauc",)}))
    with pytest.raises(RecipeError, match="there is no metric to compare by: got auc, log_loss and gauc"):
        compare(GOOD, other)
    with pytest.raises(InputError, match="resamples: got 10; expected 100 or more"):
        compare(GOOD, POOR, resamples=10)
    assert pairs({"a": GOOD}, {"b": POOR}) == [(GOOD, POOR)]
    assert pairs({"a": GOOD, "c": POOR}, {"c": POOR}) == [(POOR, POOR)]
    with pytest.raises(RecipeError, match="they have no task in common: got a, c and b"):
        pairs({"a": GOOD, "c": POOR}, {"b": POOR})


# --- where predictions come from -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["like", "rating", "next_item"])
def test_a_version_and_its_run_predict_the_same(trained, base, task):
    run, version = from_run(trained.runs[task].root), from_version(trained.registry, task, trained.log, base, part="test")
    assert run.keys() == version.keys() == {task}
    assert np.abs(run[task].scores - version[task].scores).max() < 1e-4
    found = compare(version[task], run[task])
    stored = trained.runs[task].metrics[task]
    assert found and all(
        each.b == pytest.approx(stored[each.metric]["value"]) and each.n == stored[each.metric]["n"] for each in found
    )
    assert all(abs(each.difference) < 1e-4 for each in found) and base.occupied_by is None


@pytest.mark.parametrize(
    ("task", "names"), [("like", ["item_mean", "additive"]), ("rating", ["bias_only"]), ("next_item", ["popularity", "ease"])]
)
def test_baselines_are_those_of_the_run(trained, task, names):
    run = from_run(trained.runs[task].root)[task]
    for name in names:
        stored = trained.runs[task].baselines[task][name]
        found = compare(run, from_baseline(name, run, trained.log))
        assert all(each.second == name and each.b == pytest.approx(stored[each.metric]["value"]) for each in found)
    with pytest.raises(InputError, match=f"task '{task}' has no such baseline: got luck; expected {'popularity|item_mean'}"):
        from_baseline("luck", run, trained.log)


def test_validation_has_other_targets(trained, base):
    valid, test = (from_version(trained.registry, "like", trained.log, base, part=part)["like"] for part in ("valid", "test"))
    with pytest.raises(InputError, match="part differs: got valid and test"):
        compare(valid, test)


def test_tasks_of_another_kind_are_refused(trained):
    like, rating = (from_run(trained.runs[name].root)[name] for name in ("like", "rating"))
    with pytest.raises(InputError, match="label differs: got rating > 3 and rating"):
        compare(like, rating)


def test_a_version_of_other_data_is_refused(trained, base):
    from fakes import planted_log

    with pytest.raises(InputError, match="like was trained on other data, which may contain the targets: got data of"):
        from_version(trained.registry, "like", planted_log(seed=1), base, part="test")


def test_a_full_fine_tune_is_compared_by_its_run(tiny, trained, tmp_path):
    import genre

    wanted = recipe(tiny, LIKE, adapter={"kind": "full"}, train={"epochs": 1, "learning_rate": 1e-3})
    genre.train(wanted, log=trained.log, base=genre.Base.load(str(tiny)), folder=tmp_path)
    found = compare(from_run(trained.runs["like"].root)["like"], from_run(tmp_path)["like"])
    assert {each.metric for each in found} == {"auc", "gauc", "log_loss"} and found[0].n == 144


def test_predictions_of_classes_are_kept(tiny, trained, tmp_path):
    import genre

    task = {**RATING, "name": "stars", "head": "categorical", "loss": "cross_entropy"}
    genre.train(recipe(tiny, task, train={"epochs": 1}), log=trained.log, base=genre.Base.load(str(tiny)), folder=tmp_path)
    found, about = read_predictions(tmp_path)
    _, targets, scores = found["stars"]
    assert scores.shape == (len(targets), 6) and about["part"] == "test" and about["data"] == trained.log.digest
    run = from_run(tmp_path)["stars"]
    assert compare(run, run)[0].outcome == "equal"
    with pytest.raises(InputError, match="has no such baseline: got additive; expected none is known"):
        from_baseline("additive", run, trained.log)


def test_damaged_and_missing_predictions_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"the run has no predictions: got .*; expected a run folder with predictions.parquet"):
        read_predictions(tmp_path)
    (tmp_path / "predictions.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"predictions.parquet is damaged: got "):
        read_predictions(tmp_path)


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def common(trained, tmp_path):
    data = tmp_path / "planted"
    trained.log.write(data)
    registry = shutil.copytree(trained.registry.url, tmp_path / "registry")  # a comparison records baselines
    return ["--data", str(data), "--registry", str(registry), "--base", str(trained.base)]


def test_the_command_compares_prints_and_writes_json(trained, common, tmp_path, capsys):
    run, file = str(trained.runs["like"].root), tmp_path / "out" / "compared.json"
    assert main(["compare", "like@production", "--baseline", "additive", *common, "--json", str(file)]) == 0
    out, found = capsys.readouterr().out, json.loads(file.read_text())
    ref = f"like:{trained.registry.resolve('like').version}"
    assert found["first"] == ref and found["second"] == "additive" and found["under"]["like"]["part"] == "test"
    auc = found["tasks"]["like"][0]
    assert auc["metric"] == "auc" and auc["outcome"] == "better" and f"like.auc: {ref} is better" in out
    assert f"{auc['difference']:+.4f} [{auc['interval'][0]:+.4f}, {auc['interval'][1]:+.4f}]" in out
    assert main(["compare", run, run]) == 0
    assert "like.auc: they are equal on every target" in capsys.readouterr().out


def test_a_baseline_that_trains_is_compared_and_recorded_beside_the_others(trained, common, tmp_path, capsys, monkeypatch):
    from genre.registry import Registry
    from genre.training import self_attentive

    monkeypatch.setattr(self_attentive, "MOST_EPOCHS", self_attentive.EPOCHS_A_READING)
    registry = Registry(common[3])
    registry.record_baselines(
        "next_item", {"next_item": {"ease": {"mrr@10": {"value": 0.5, "interval": None, "n": 9}}}}, notes=["so"]
    )
    file = tmp_path / "found.json"
    again = ["compare", "next_item", "--baseline", "self_attentive", *common, "--json", str(file)]
    assert main([*again[:4], "--part", "valid", *again[4:]]) == 0 and "recorded" not in capsys.readouterr().out
    assert main(again) == 0
    version, found = registry.resolve("next_item"), json.loads(file.read_text())["tasks"]["next_item"]
    assert f"recorded beside {version.ref}: self_attentive of next_item" in capsys.readouterr().out
    record = registry.baselines(version)
    figures = record.baselines["next_item"]["self_attentive"]
    assert {name: each.value for name, each in figures.items()} == {each["metric"]: each["b"] for each in found}
    assert record.baselines["next_item"]["ease"]["mrr@10"].value == 0.5 and record.notes == ("so",)
    assert main([*again, "--seed", "1"]) == 0 and "recorded" not in capsys.readouterr().out
    assert main(["compare", "next_item", "--baseline", "ease_text", *common]) == 0


def test_wrong_input_is_one_line(trained, common, capsys):
    run, registry = str(trained.runs["like"].root), common[2:4]
    for arguments, message in (
        (["like", *common], "genre: name what to compare with: got neither; expected a second version, or --baseline NAME"),
        (["like", "rating", "--baseline", "additive", *common], "genre: name what to compare with: got both"),
        (["like", "rating", *registry], "genre: the version like needs the data: got no --data"),
        (["like", "nobody", *common], "genre: no adapter 'nobody'"),
        (["like", "encoder-planted", *common], "genre: encoder-planted is a behaviour encoder"),
        (["like", "--baseline", "luck", *common], "genre: task 'like' has no such baseline: got luck"),
        (["like", "--baseline", "additive", "--part", "train", *common], "genre: no such part: got --part train"),
        (["like", "--baseline", "additive", "--task", "rating", *common], "genre: like has no such task: got rating"),
        (["like", "--baseline", "additive", "--metric", "rmse", *common], "genre: no such metric to compare by: got rmse"),
        (["like", "--baseline", "additive", "--json", "/", *common], "genre: --json is a folder"),
        (["like", "next_item", *common], "genre: like:"),
        ([run, "./nothing"], "genre: the run has no predictions: got nothing"),
        ([run, run, "--part", "valid"], "genre: a run folder has predictions of its test part only"),
        ([run, "--baseline", "additive"], "genre: a baseline needs the data"),
        ([run, run, "--resamples", "3"], "genre: resamples: got 3"),
        ([run, run, "--seed", "-1"], "genre: seed: got -1; expected 0 or more"),
        (["nobody", "nothing", "--seed", "-1"], "genre: seed: got -1; expected 0 or more"),  # before anything is read
    ):
        assert main(["compare", *arguments]) == 2, arguments
        lines = capsys.readouterr().err.splitlines()
        assert lines[-1].startswith(message), lines


def test_versions_of_labelled_texts_are_compared_with_their_runs_and_baselines(tmp_path, capsys):
    import genre
    from fakes import make_encoder_base, planted_texts

    texts, base = planted_texts(), tmp_path / "bert"
    make_encoder_base(base)
    raw = {
        "name": "good",
        "data": {"path": "planted", "split": {"kind": "group", "valid": 0.15, "test": 0.3}},
        "base": {"name": str(base)},
        "sequence": {"text": ["title", "review"], "max_tokens": 64},
        "tasks": [{"name": "good", "kind": "text", "label": "recommended"}],
        "train": {"epochs": 1, "batch_tokens": 4096, "tracker": "none"},
    }
    registry = genre.Registry(tmp_path / "registry")
    run = genre.train(genre.Recipe.parse(raw), log=texts, registry=registry, folder=tmp_path / "run")
    registry.publish(run, alias="candidate")
    texts.write(tmp_path / "texts")
    common = ["--data", str(tmp_path / "texts"), "--registry", registry.url, "--base", str(base)]
    file = tmp_path / "found.json"
    for second in (["--baseline", "tfidf_linear"], [str(tmp_path / "run")]):
        assert main(["compare", "good", *second, *common, "--json", str(file)]) == 0
        (auc, *_) = json.loads(file.read_text())["tasks"]["good"]
        stored = run.baselines["good"]["tfidf_linear"] if second[0] == "--baseline" else run.metrics["good"]
        assert auc["b"] == pytest.approx(stored["auc"]["value"], abs=1e-6)
    assert main(["compare", str(tmp_path / "run"), "--baseline", "majority", *common]) == 2
    assert "does not record which columns it reads: got a run folder" in capsys.readouterr().err
