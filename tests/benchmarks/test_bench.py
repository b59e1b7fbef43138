"""`genre bench`: several variants of one recipe, each a process of its own, compared with the full fine-tune."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from builders import LIKE, RATING, STARS, recipe, text_recipe, with_values
from fakes import planted_log, planted_texts
from genre.cli import main
from genre.data.interactions import Interactions
from genre.data.splits import split
from genre.errors import InputError, InterruptedJobError, JobError, RecipeError
from genre.jobs.compare import Compared, compare
from genre.jobs.predictions import from_run
from genre.jobs.train import train
from genre.jobs.tuning import bench as bench_job
from genre.jobs.tuning.bench import VARIANTS, bench, make_random_base, near, recipe_of
from genre.jobs.tuning.trials import Objective
from genre.modules.base.base import Base
from genre.recipe import BaseConfig, Recipe
from genre.registry import Registry


@pytest.fixture
def wanted(tiny, tmp_path):
    """A recipe about a small planted log in a folder."""
    planted_log(users=30, items=16, events=12).write(tmp_path / "data")
    path = {"path": str(tmp_path / "data")}
    return recipe(tiny, LIKE, data=path, train={"epochs": 1, "batch_tokens": 1024})


@pytest.fixture
def file(wanted, tmp_path):
    place = tmp_path / "like.yaml"
    place.write_text(wanted.dump(), encoding="utf-8")
    return place


def test_the_command_prices_an_adapter(file, tmp_path, capfd):
    out, registry = tmp_path / "bench", tmp_path / "registry"
    told = tmp_path / "told.json"
    arguments = ["bench", str(file), "--way", "full", "--way", "lora_2", "--out", str(out), "--registry", str(registry)]
    assert main([*arguments, "--json", str(told)]) == 0
    shown = capfd.readouterr().out
    found = json.loads(told.read_text())
    assert found == json.loads((out / "bench.json").read_text())
    assert list(found["ways"]) == ["full", "lora_2"] and found["errors"] == {}
    full, low = found["ways"]["full"], found["ways"]["lora_2"]
    assert "minus_full" not in full and full["trained_parameters"] > 5 * low["trained_parameters"]
    assert found["learning_rates"] == {"full": 2, "lora_2": 1} and full["edge"] and not low["edge"]
    reports = {name: json.loads((out / name / "metrics.json").read_text()) for name in ("full-0.3", "full-1")}
    tried = {name: report["validation"][0]["like.auc"] for name, report in reports.items()}
    assert full["run"] == max(tried, key=tried.get) and full["validation"] == max(tried.values())
    assert low["bytes"] == 4 * low["trained_parameters"] and low["peak_memory_bytes"] > 0 and low["seconds"] > 0
    direct = compare(from_run(out / "lora_2-1")["like"], from_run(out / full["run"])["like"])[0]
    assert low["minus_full"]["like"]["difference"] == direct.difference
    assert tuple(low["minus_full"]["like"]["interval"]) == direct.interval
    for text in (
        "cost of each variant",
        "minus full",
        "may be better still: full",
        "lora_2",
        f"{full['trained_parameters']:,}",
        f"{direct.difference:+.4f}",
    ):
        assert text in shown
    names = [path.name for path in registry.iterdir() if path.name.startswith(("encoder", "like"))]
    assert len(names) == 1 and names[0].startswith("encoder")  # nothing but the encoder is published

    first = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.json")}
    assert len(first) == 4  # the encoder's run too
    assert main([*arguments, "--way", "head_only"]) == 0  # goes on: only what is new is trained
    assert {path: path.stat().st_mtime_ns for path in first} == first and (out / "head_only-1" / "metrics.json").exists()
    assert main([*arguments, "--set", "train.epochs=2"]) == 2
    assert "the folder holds runs of another recipe" in capfd.readouterr().err


def test_controls_price_the_base_its_weights_and_the_adapter(file, tmp_path, capfd):
    out, registry = tmp_path / "bench", tmp_path / "registry"
    arguments = ["bench", str(file), "--profile", "controls", "--out", str(out), "--registry", str(registry)]
    assert main(arguments) == 0
    shown = capfd.readouterr().out
    found = json.loads((out / "bench.json").read_text())
    assert list(found["ways"]) == ["lora_8", "head_only", "random_base", "no_base"] and found["errors"] == {}
    runs = {name: from_run(out / f"{name}-1")["like"] for name in found["ways"]}
    for what, (one, other) in bench_job.CONTROLS.items():
        direct = compare(runs[one], runs[other])[0]
        assert found["adds"][what]["like"]["difference"] == direct.difference and what in shown
    assert found["ways"]["no_base"]["trained_parameters"] == found["ways"]["head_only"]["trained_parameters"]
    scores = {name: each.scores for name, each in runs.items()}
    assert not any(np.allclose(scores["lora_8"], scores[name]) for name in ("head_only", "random_base", "no_base"))
    assert len({path.name for path in registry.iterdir() if path.name.startswith("encoder")}) == 1  # one name, a version per base
    with pytest.raises(RecipeError, match="a run for comparison is not published"):
        train(Recipe.read(out / "no_base-1" / "recipe.yaml"), registry=Registry(registry), folder=tmp_path / "again").folder  # noqa: B018


def test_a_random_base_has_the_shape_and_tokenizer_of_its_original(tiny, tmp_path):
    first, again = (
        Base.load(make_random_base(BaseConfig(name=str(tiny), depth=1), tmp_path / name, seed=seed))
        for name, seed in (("a", 0), ("b", 1))
    )
    real = Base.load(str(tiny), depth=1)
    assert (first.depth, first.hidden_size, first.tokenizer_digest) == (1, real.hidden_size, real.tokenizer_digest)
    assert len({first.fingerprint, again.fingerprint, real.fingerprint}) == 3


def test_what_is_wrong_is_told_before_anything_is_trained(file, tmp_path, capfd):
    for more, said in (
        (["--way", "half"], "no such variant: got half"),
        (["--profile", "slow"], "no such profile"),
        (["--out", str(file)], "--out is a file"),
        (["--set", "train.epochs=0"], "epochs"),
        (["--set", "data.path=nowhere"], "nowhere"),
        (["--set", "base.name=nowhere"], "no base is called 'nowhere'"),
        (["--set", "data.split.valid=0"], "valid"),
    ):
        assert main(["bench", str(file), "--registry", str(tmp_path / "r"), *more]) == 2
        assert said in capfd.readouterr().err
    assert not (tmp_path / "r").exists()


def test_a_validation_part_of_one_label_is_told_before_anything_is_trained(file, wanted, tmp_path, capfd):
    log = Interactions.read(wanted.data.path)
    valid = np.flatnonzero(split(log, wanted.data.split).part == 1)
    with_values(log, rating=dict.fromkeys(valid.tolist(), 1.0)).write(tmp_path / "sad")
    out = ["--registry", str(tmp_path / "r"), "--out", str(tmp_path / "out")]
    assert main(["bench", str(file), *out, "--set", f"data.path={tmp_path / 'sad'}"]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("genre: like.auc, which decides between trials, has no value"), lines
    assert not (tmp_path / "r").exists() and not (tmp_path / "out").exists()


def test_recipes_of_the_ways(file):
    for way in VARIANTS:
        assert recipe_of(file, way, 1.0).name == "like"
    rates = [recipe_of(file, "lora_8", factor).train.learning_rate for factor in (0.5, 1.0, 2.0)]
    assert rates[1] == 2 * rates[0] and rates[2] == 2 * rates[1]
    assert recipe_of(file, "lora_8_nf4", 1.0).base.quantization == "nf4"
    assert recipe_of(file, "head_only", 1.0).adapter.kind == "head_only"
    file.write_text(file.read_text(encoding="utf-8").replace("precision: auto", "precision: bfloat16"), encoding="utf-8")
    found = {way: recipe_of(file, way, 1.0).base.precision for way in VARIANTS}
    assert {way for way, precision in found.items() if precision == "auto"} == {"lora_8_int8", "lora_8_nf4"}


# --- runs that are not there -----------------------------------------------------------------------------------------


@pytest.fixture
def processes(monkeypatch):
    """Runs that do what they are told to instead of training."""
    told = {}

    def run(command):
        folder = command[4]  # after the interpreter, -c, the program and the recipe
        place = SimpleNamespace(folder=folder, name=folder.rsplit("/", 1)[-1])
        return told["do"](place)

    monkeypatch.setattr(bench_job, "run_process", run)
    return told


def test_a_way_that_fails_is_listed_and_one_that_is_killed_too(wanted, tmp_path, processes):
    def fail(place):
        if place.name.startswith("lora"):
            (tmp_path / "out" / place.name / "error.txt").write_text("the loss of task 'like' is not finite", encoding="utf-8")
            return 1
        return 0 if place.name == "encoder" else -9

    processes["do"] = fail
    with pytest.raises(JobError) as caught:
        bench(wanted, tmp_path / "out", Registry(tmp_path / "r"), variants=["lora_8", "head_only"])
    assert "lora_8-1: the loss of task 'like' is not finite" in str(caught.value)
    assert "head_only-1: its process ended with exit code -9" in str(caught.value)


def test_a_run_that_was_stopped_after_its_metrics_is_gone_on_with(wanted, tmp_path, processes):
    folder, asked = tmp_path / "run", []
    folder.mkdir()
    (folder / "metrics.json").write_text("{}")
    processes["do"] = lambda place: asked.append(place.name) or 0
    assert bench_job.run(wanted, folder, Registry(tmp_path / "r")) is None and asked == []
    (folder / "error.txt").write_text("interrupted while baselines were evaluated")
    assert bench_job.run(wanted, folder, Registry(tmp_path / "r")) is None and asked == ["run"]
    assert not (folder / "error.txt").exists()


def test_without_an_encoder_nothing_is_compared(wanted, tmp_path, processes):
    processes["do"] = lambda place: 1
    with pytest.raises(JobError, match="the encoder could not be fitted"):
        bench(wanted, tmp_path / "out", Registry(tmp_path / "r"), variants=["head_only"])


def test_labelled_texts_need_no_encoder(tiny, tmp_path, processes):
    asked = []
    processes["do"] = lambda place: asked.append(place.name) or 1
    planted_texts().write(tmp_path / "texts")
    wanted = text_recipe(tiny, STARS, data={"path": str(tmp_path / "texts")})
    with pytest.raises(JobError, match="no variant could be trained"):
        bench(wanted, tmp_path / "out", Registry(tmp_path / "r"), variants=["full", "head_only"])
    assert asked == ["full-0.3", "full-1", "head_only-1"]


def test_an_interrupted_run_says_how_to_go_on(wanted, tmp_path, processes):
    def interrupt(place):
        raise KeyboardInterrupt

    processes["do"] = interrupt
    with pytest.raises(InterruptedJobError, match="the same command resumes"):
        bench(wanted, tmp_path / "out", Registry(tmp_path / "r"), variants=["head_only"])


@pytest.mark.parametrize(("task", "name", "best"), [(LIKE, "like.auc", "lora_8-2"), (RATING, "rating.rmse", "lora_8-0.5")])
def test_the_rate_is_chosen_on_validation(tiny, tmp_path, task, name, best):
    objective = Objective(recipe(tiny, task), planted_log(users=30, items=16, events=12))
    for run, values in {"lora_8-0.5": (0.2, 0.4), "lora_8-1": (0.5, 0.3), "lora_8-2": (0.6, 0.3)}.items():
        (tmp_path / run).mkdir()
        rows = [{"epoch": number, name: value} for number, value in enumerate(values, start=1)]
        (tmp_path / run / "metrics.json").write_text(json.dumps({"validation": rows}))
    assert bench_job._best(objective, tmp_path, ["lora_8-0.5", "lora_8-1", "lora_8-2"]).name == best
    assert bench_job._best(objective, tmp_path, []) is None


def test_a_folder_of_another_recipe_is_refused(wanted, tiny, tmp_path, processes):
    processes["do"] = lambda place: 1
    other = recipe(tiny, RATING, data={"path": wanted.data.path})
    for each, error in ((wanted, JobError), (other, InputError)):
        with pytest.raises(error):
            bench(each, tmp_path / "out", Registry(tmp_path / "r"), variants=["head_only"])


@pytest.mark.parametrize(
    ("metric", "interval", "users", "said"),
    [
        ("auc", (-0.007, 0.001), 100, True),
        ("auc", (-0.009, 0.001), 100, False),
        ("auc", (-0.007, 0.001), 19, False),
        ("rmse", (-0.5, 0.007), 100, True),
        ("rmse", (-0.5, 0.009), 100, False),
        ("auc", None, 100, False),
    ],
)
def test_near_is_at_most_one_percent_worse(metric, interval, users, said):
    found = Compared(0.8, 0.8, 0.0, interval, 0.5, 1000, users, metric, "lora_8", "full", "cannot be told")
    assert near(found) is said
