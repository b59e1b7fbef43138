"""What the commands print and write when all is well; bad input is in test_bad_input.py, the README's lines in test_readme.py."""

import json
import os
import signal
import subprocess
import sys

import polars as pl
import pytest

from builders import LIKE, NEXT, write_recipe
from genre import cli
from genre.cli.output import show_metrics
from genre.data.interactions import Interactions
from genre.recipe import Recipe
from genre.registry import Registry


@pytest.fixture
def place(tmp_path, monkeypatch, log):
    monkeypatch.chdir(tmp_path)
    log.write("shop")
    return tmp_path


def run(capsys, *arguments):
    """Standard output of a command that ends well."""
    code = cli.main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out


def test_help_imports_nothing_heavy():
    code = "import sys, genre.cli; print({'torch', 'polars', 'numpy', 'transformers', 'rich.table'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


SCREENS = [
    "",
    "train",
    "evaluate",
    "recommend",
    "score",
    "explain",
    "merge",
    "refresh",
    "data import",
    "recipe new",
    "registry promote",
]


@pytest.mark.parametrize("command", SCREENS)
def test_every_screen_of_help_fits_eighty_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    shown = run(capsys, *command.split(), "--help")
    assert "Usage: genre" in shown and max(map(len, shown.splitlines())) <= 80


FAST = ["popularity", "transitions", "item_neighbours", "text_neighbours"]
ALL = ["popularity", "transitions", "item_neighbours", "ease", "text_neighbours", "ease_text"]


@pytest.mark.parametrize(
    ("which", "known"),
    [("none", []), ("fast", FAST), ("all", ALL), ("ease, popularity,self_attentive", ["popularity", "ease", "self_attentive"])],
)
def test_baselines_that_are_wanted(which, known, place, tiny, capsys, monkeypatch):
    monkeypatch.setattr("genre.training.self_attentive.MOST_EPOCHS", 1)
    file = write_recipe(tiny, NEXT, encoder={"learned": 8, "collaborative": 0})
    shown = run(capsys, "train", file, "--baselines", which, "--json", "run.json", "--out", "out")
    assert list(json.loads((place / "run.json").read_text())["baselines"]["next_item"]) == known
    assert list(json.loads((place / "out" / "metrics.json").read_text())["baselines"]["next_item"]) == known
    record = Registry("registry").baselines("next_item")
    assert sorted(record.baselines["next_item"] if record else []) == sorted(known)
    words = " ".join(shown.replace("┃", " ").split())
    assert all(name.split("_")[0] in words for name in known) and ("weaker baselines" in shown) == (len(known) > 4)
    assert cli.main(["train", file, "--baselines", "some"]) == 2


def test_a_version_is_published_before_its_baselines_are_computed(place, tiny, capsys, monkeypatch):
    """A Ctrl-C among the baselines loses them alone; --resume adds them to the same version."""
    import genre.evaluation.baselines as baselines

    file, real = write_recipe(tiny, LIKE), baselines.item_mean
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(baselines, "item_mean", lambda *given: os.kill(os.getpid(), signal.SIGINT) or real(*given))
    assert cli.main(["train", file, "--alias", "production"]) == 1
    signal.signal(signal.SIGINT, before)
    shown = capsys.readouterr()
    assert "published like:" in shown.out and "the run in runs/like/1 is whole" in shown.err.splitlines()[-1]
    version = Registry("registry").resolve("like@production")
    assert Registry("registry").baselines(version) is None and version.manifest.metrics["like"]
    monkeypatch.setattr(baselines, "item_mean", real)
    run(capsys, "train", file, "--resume", "--alias", "production")
    assert Registry("registry").versions("like") == [version.version]
    assert "additive" in Registry("registry").baselines(version).baselines["like"]


def test_train_evaluate_recommend(place, tiny, capsys):
    file = write_recipe(tiny, LIKE)
    shown = run(capsys, "train", file, "--json", "out/run.json", "--alias", "production")
    result = json.loads((place / "out" / "run.json").read_text())
    assert f"published {result['ref']} as production and latest; run folder runs/like/1" in shown
    assert "running user share" in shown and max(map(len, shown.splitlines())) <= 110
    assert result["metrics"]["like"]["auc"]["n"] == 144 and result["cost"]["lora_params"] > 0
    shown = run(capsys, "evaluate", "like@production", "--data", "shop", "--base", tiny, "--json", "eval.json")
    assert "protocol of like: temporal" in shown and "prequential" in shown
    assert "reliability of like: eval.reliability.like.svg" in shown and (place / "eval.reliability.like.svg").exists()
    again = json.loads((place / "eval.json").read_text())["tasks"]["like"]["adapter"]["auc"]["value"]
    assert again == pytest.approx(result["metrics"]["like"]["auc"]["value"], abs=1e-6)
    arguments = ["like", "--data", "shop", "--base", tiny, "--user", "u1", "-k", "3", "--json", "u1.json"]
    shown = run(capsys, "recommend", *arguments)
    best = json.loads((place / "u1.json").read_text())["results"]
    assert len(best) == 3 and all(item["item_id"] in shown for item in best) and result["ref"].split(":")[1] in shown
    run(capsys, "train", file)
    assert (place / "runs" / "like" / "2" / "metrics.json").exists()
    assert "latest" in run(capsys, "registry", "list", "like") and "production" in run(capsys, "registry", "list")


def test_a_finished_run_resumes_to_the_same_figures(place, tiny, capsys):
    file = write_recipe(tiny, LIKE)
    first = run(capsys, "train", file, "--out", "one")
    second = run(capsys, "train", file, "--out", "one", "--resume", "--registry", "other")
    assert first.splitlines()[:7] == second.splitlines()[:7]


def test_a_run_goes_on_with_its_own_recipe_only(place, tiny, capsys):
    file = write_recipe(tiny, LIKE)
    run(capsys, "train", file, "--out", "one")
    held = (place / "one" / "recipe.yaml").read_text()
    for override, said in (
        ("adapter.kind=rslora", 'the checkpoint in one is of another run: adapter.kind differs: got "rslora"; expected "lora"'),
        ("data.split.test=0.5", "data.split.test differs: got 0.5"),
        ("train.seed=7", "train.seed differs: got 7; expected 0"),
    ):
        assert cli.main(["train", str(file), "--out", "one", "--resume", "--set", override]) == 2
        assert said in capsys.readouterr().err and (place / "one" / "recipe.yaml").read_text() == held
    run(capsys, "train", file, "--out", "one", "--resume", "--set", "train.epochs=2")
    assert cli.main(["train", str(file), "--out", "one"]) == 2
    assert "--out holds a run: got one; expected a new folder; --resume continues it" in capsys.readouterr().err


def test_a_full_fine_tune_is_compared_and_not_published(place, tiny, capsys):
    file = write_recipe(tiny, LIKE, adapter={"kind": "full"})
    assert "a full fine-tune is for comparison and is not published; run folder runs/like/1" in run(capsys, "train", file)
    assert "like" not in [line.split()[1] for line in run(capsys, "registry", "list").splitlines() if line.startswith("│")]


def test_a_joint_adapter_asks_for_a_task(place, tiny, capsys):
    file = write_recipe(tiny, NEXT, LIKE, name="joint")
    shown = run(capsys, "train", file)
    assert "task like" in shown and "task next_item" in shown and "ndcg@10" in shown
    arguments = ["joint", "--data", "shop", "--base", str(tiny), "--user", "u1"]
    assert cli.main(["recommend", *arguments]) == 2
    assert "the adapter has several tasks: got no task; expected next_item, like" in capsys.readouterr().err
    assert "i" in run(capsys, "recommend", *arguments, "--task", "next_item")


def test_a_user_who_has_seen_everything(place, tiny, capsys):
    seen = {"user_id": [*"aabbcc"], "item_id": ["x", "y"] * 3, "timestamp": range(6), "rating": [1, 5] * 3}
    Interactions.from_frame(pl.DataFrame(seen), name="little").write("little")
    split = {"kind": "temporal", "valid": 0.0, "test": 0.2}
    sections = {"data": {"path": "little", "split": split, "min_events": 1}, "sequence": {"instruction": "", "text": []}}
    file = write_recipe(tiny, LIKE, **sections, encoder={"text": False, "collaborative": 0})
    run(capsys, "train", file)
    shown = run(capsys, "recommend", "like", "--data", "little", "--base", tiny, "--user", "a")
    assert "there is nothing left to recommend: each of 2 items is in the history, and exclude_seen: false keeps those" in shown
    shown = run(capsys, "recommend", "like", "--data", "little", "--base", tiny, "--user", "a", "--seen", "kept")
    assert "nothing left" not in shown and "x" in shown and "y" in shown


def test_an_empty_registry_says_so(place, capsys):
    assert run(capsys, "registry", "list") == (
        "the registry at registry/, which is not there yet: genre train publishes into it\n"
    )


def figures(*values):
    return {f"m{i}": {"value": value, "interval": (value - 0.1, value + 0.1), "n": 12345} for i, value in enumerate(values)}


def test_the_table_of_figures(capsys):
    baselines = {"item_mean": figures(0.25), "bias_only": {}}
    show_metrics(
        {"like": {"adapter": figures(0.5, 0.75) | {"m2": {"value": 1, "interval": None, "n": 7}}, "baselines": baselines}}
    )
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    assert rows == [
        ["m0", "12,345", "0.5000 [0.400, 0.600]", "0.2500", "–"],
        ["m1", "12,345", "0.7500 [0.650, 0.850]", "–", "–"],
        ["m2", "7", "1.0000", "–", "–"],
    ]
    assert "item mean" in shown and shown.startswith("task like")


def shop(path, feedback):
    """A data set with some feedback columns, and items without a title."""
    size = len(next(iter(feedback.values()), range(4)))
    events = {"user_id": [f"u{i % 4}" for i in range(size)], "item_id": [f"i{i % 5}" for i in range(size)]}
    Interactions.from_frame(pl.DataFrame(events | {"timestamp": range(size)} | feedback), name="shop").write(path)


LABELS = {
    "stars": ({"rating": [1.0, 2, 3, 3, 4, 4, 5, 5]}, "rating > 3"),
    "few likes": ({"rating": [1.0, 1, 1, 1, 1, 1, 1, 5]}, "rating > 1"),
    "halves": ({"rating": [0.5, 1.5, 1.5, 2.5]}, "rating > 0.5"),
    "clicks": ({"click": [0, 1, 0, 0]}, "click > 0"),
    "behaviour": ({"behaviour": ["view", "view", "view", "cart", "it's"]}, "behaviour == 'view'"),
    "rating first": ({"behaviour": ["view", "cart"], "rating": [1.0, 5.0]}, "rating > 1"),
}


@pytest.mark.parametrize("case", LABELS)
def test_a_new_recipe_cuts_likes_near_to_halves(case, tmp_path, monkeypatch, capsys):
    feedback, label = LABELS[case]
    monkeypatch.chdir(tmp_path)
    shop("my, shop: #1", feedback)
    run(capsys, "recipe", "new", "like", "--data", "my, shop: #1", "--out", "new/like.yaml")
    written = Recipe.read("new/like.yaml")
    assert written.tasks[0].label == label and written.data.path == "my, shop: #1"
    assert written.sequence.feedback == label.split()[0] and written.encoder.text is False


@pytest.mark.parametrize(
    ("task", "feedback", "message"),
    [
        ("like", {"rating": [3.0, 3.0]}, "column 'rating' does not distinguish likes: got one value in every event"),
        ("rating", {"behaviour": ["view", "cart"]}, "the log has no feedback column of numbers: got behaviour"),
        ("like", {}, "the log has no feedback column: got none; import it with --map rating=THEIRS, or take the task next_item"),
    ],
)
def test_a_log_that_a_new_recipe_cannot_use(task, feedback, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shop("shop", feedback)
    assert cli.main(["recipe", "new", task, "--data", "shop"]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / f"{task}.yaml").exists()


WITHOUT_FEEDBACK = {
    "none there": ("next_item", [], {}, "none"),
    "a column of another kind": ("next_item", [], {"dwell": [1.5, 2.5]}, "none"),
    "that column by its name": ("next_item", ["--feedback", "dwell"], {"dwell": [1.5, 2.5]}, "dwell"),
    "the usual one": ("next_item", [], {"dwell": [1.5, 2.5], "click": [0, 1]}, "click"),
    "left out": ("next_item", ["--feedback", "none"], {"rating": [1.0, 5.0]}, "none"),
    "left out, and asked for": ("like", ["--feedback", "none"], {"rating": [1.0, 5.0]}, "none"),
}


@pytest.mark.parametrize("case", WITHOUT_FEEDBACK)
def test_a_new_recipe_needs_no_feedback(case, tmp_path, monkeypatch, capsys):
    task, options, feedback, column = WITHOUT_FEEDBACK[case]
    monkeypatch.chdir(tmp_path)
    shop("shop", feedback)
    run(capsys, "recipe", "new", task, "--data", "shop", *options)
    written = Recipe.read(f"{task}.yaml")
    usual = "Items and feedback of one user, in order:"
    assert written.sequence.feedback == column
    assert written.sequence.instruction == ("Items of one user, in order:" if column == "none" else usual)
    assert written.tasks[0].label == ("rating > 1" if task == "like" else None)


def test_a_new_recipe_reads_what_is_text_and_says_why(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    items = pl.DataFrame(
        {
            "item_id": ["a", "b"],
            "title": ["Red River", "Night Train"],
            "genres": [["western"], ["crime", "drama"]],
            "link": ["https://a.example/1", "https://a.example/2"],
            "year": [1948, 1959],
        }
    )
    frame = pl.DataFrame({"user_id": ["1", "1", "2"], "item_id": ["a", "b", "a"], "timestamp": [1, 2, 3]})
    Interactions.from_frame(frame, items=items, name="films").write("films")
    shown = run(capsys, "recipe", "new", "next_item", "--data", "films")
    assert Recipe.read("next_item.yaml").sequence.text == ("title", "year", "genres")
    assert "item column genres: read, 1.5 tags in each, 3 different" in shown
    assert "item column link: not read, web addresses" in shown
    text = (tmp_path / "next_item.yaml").read_text()
    assert "# by what they hold: title (2.0 words in each), year (years), genres (1.5 tags in each)" in text
    shown = run(capsys, "recipe", "new", "next_item", "--data", "films", "--text", "title", "--out", "title.yaml")
    assert Recipe.read("title.yaml").sequence.text == ("title",) and "item column" not in shown


@pytest.mark.parametrize("task", ["like", "rating", "next_item"])
def test_a_new_recipe_has_a_line_and_a_comment_for_each_key(task, place, tiny, capsys):
    (place / "a: base #1").symlink_to(tiny)
    run(capsys, "recipe", "new", task, "--data", "shop", "--name", "it-is", "--base", "a: base #1")
    lines = (place / "it-is.yaml").read_text().splitlines()
    assert lines[0].startswith("# ") and all("  # " in line and len(line) < 140 for line in lines[1:])
    written = Recipe.read("it-is.yaml")
    assert (written.name, written.base.name, written.tasks[0].name) == ("it-is", "a: base #1", task)


@pytest.mark.parametrize("task", ["like", "rating", "next_item"])
def test_a_new_recipe_trains(task, place, tiny, capsys):
    run(capsys, "recipe", "new", task, "--data", "shop", "--base", tiny)
    quick = ["--set", "base.depth=2", "--set", "train.epochs=1", "--set", "train.tracker=none"]
    shown = run(capsys, "recipe", "check", f"{task}.yaml", *quick[:2])
    assert "the recipe is fine" in shown and "1,440 events" in shown
    assert f"published {task}:" in run(capsys, "train", f"{task}.yaml", *quick)
