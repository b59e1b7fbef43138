"""Bad input ends in one line that says what, got, expected and what to do; exit code 2, or 1 for a failed job; and no litter."""

import json
import os
import re
import shutil

import pytest
import yaml
from wrong_inputs import COMMANDS, FILES, HEADER, IMPORTS, RECIPES, RENAMED

from builders import disk_of
from fakes import make_base
from genre import cli

QUICK = ["--set", "train.epochs=1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, log):
    """A data set, two bases, a recipe, and a registry with `like` and its encoder; tests work on copies."""
    place = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        log.write("shop")
        make_base(place / "small")
        make_base(place / "other", seed=3)
        assert cli.main(["recipe", "new", "like", "--data", "shop", "--base", "small"]) == 0
        text = re.sub(r"depth: \d", "depth: 1", (place / "like.yaml").read_text())
        (place / "like.yaml").write_text(text.replace("  batch_tokens", "  tracker: none\n  batch_tokens"))
        assert cli.main(["train", "like.yaml", *QUICK]) == 0
        shutil.rmtree(place / "runs")
    return place


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    for path in made.iterdir():
        if path.name in ("shop", "small", "other"):
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(made / "registry", tmp_path / "registry")
    shutil.copy(made / "like.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(place, capsys):
    """Run a command that has to fail; returns its one line of error."""

    def run(*arguments, code=2, leaves=()):
        before = files(place)
        assert cli.main([str(argument) for argument in arguments]) == code
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("genre: ")]
        assert len(said) == 1
        assert [path for path in files(place) if path not in before] == list(leaves)
        return said[0].removeprefix("genre: ")

    return run


def files(place):
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


@pytest.fixture
def wrong_files(place):
    for name, content in FILES.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (place / "log.csv").write_text(HEADER + "".join(f"u{i % 7},i{i},{i},4\n" for i in range(50)))


FOREIGN = re.compile(
    r"Errno|Traceback|<[a-z ]*string>|Input should|Field required|NoneType|Expecting value|char \d|pydantic|polars"
)


def plain(line):
    """A line without the words of a library."""
    assert not FOREIGN.search(line), line
    return line


def contains(text, *parts):
    for part in parts:
        assert part in text
    return True


@pytest.mark.parametrize("words", IMPORTS)
def test_imports(words, refused, wrong_files, place):
    assert IMPORTS[words] in plain(refused("data", "import", *words.split(), "--out", "out"))
    assert not (place / "out").exists()


def test_skipped_rows_are_counted(place, capsys):
    (place / "log.csv").write_text(HEADER + "1,a,1,five\n1,b,2,4\n")
    assert cli.main(["data", "import", "log.csv", "--max-bad", "0.5", "--out", "out"]) == 0
    assert contains(capsys.readouterr().out, "skipped: bad rating: 1", "row 0 (the first is 0): rating 'five'")


@pytest.mark.parametrize("command", [("train",), ("recipe", "check")], ids=" ".join)
@pytest.mark.parametrize("case", RECIPES)
def test_recipes(case, command, refused, place):
    path, value, *messages = RECIPES[case]
    raw = yaml.safe_load((place / "like.yaml").read_text())
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    section = raw
    for part in parents:
        section = section[part]
    section[last] = value
    (place / "wrong.yaml").write_text(yaml.safe_dump(raw))
    assert contains(plain(refused(*command, "wrong.yaml")), *messages)
    assert not (place / "runs").exists()


@pytest.mark.parametrize("key", RENAMED)
def test_a_misspelt_key_is_named_before_the_one_that_is_missing(key, refused, place):
    raw = yaml.safe_load((place / "like.yaml").read_text())
    value = raw.pop(key)
    (place / "wrong.yaml").write_text(yaml.safe_dump({**raw, RENAMED[key]: value}))
    assert contains(plain(refused("recipe", "check", "wrong.yaml")), f"unknown key '{RENAMED[key]}'", f"did you mean '{key}'?")
    (place / "wrong.yaml").write_text(yaml.safe_dump(raw))
    assert f"the key '{key}' is missing" in plain(refused("recipe", "check", "wrong.yaml"))


def test_forty_wrong_inputs_and_more_are_in_the_table():
    assert len(COMMANDS) + len(IMPORTS) + len(RECIPES) >= 40


def test_a_check_sees_labels_that_are_all_the_same(refused):
    said = refused("recipe", "check", "like.yaml", "--set", "tasks.0.label=rating > 9")
    assert (
        said
        == "task 'like': label 'rating > 9' does not distinguish the training events: got 0 for every event; change the label"
    )


def test_a_check_sees_text_columns(refused):
    assert "the catalogue has no column 'titel'" in refused("recipe", "check", "like.yaml", "--set", "sequence.text=[titel]")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, refused, wrong_files, place):
    folders = {path for path in place.rglob("*") if path.is_dir()}
    assert COMMANDS[command] in plain(refused(*command.split()))
    assert {path for path in place.rglob("*") if path.is_dir()} - folders <= {place / "new"}


def test_a_refused_recipe_of_several_leaves_no_run_folder(refused, place):
    other = (place / "like.yaml").read_text().replace("name: like", "name: other", 1)
    (place / "other.yaml").write_text(other)
    for encoder in ("auto", "fit"):  # trained at once, and one alone first
        overrides = ["--set", "data.min_events=999", "--set", f"encoder.use={encoder}"]
        assert "no user has enough training events" in refused("train", "like.yaml", "other.yaml", *overrides)
        assert not (place / "runs").exists()


def test_a_pipe_is_not_replaced_by_a_file(refused, place):
    os.mkfifo(place / "pipe")
    assert "--json is not a file: got pipe; expected a file to write" in refused("train", "like.yaml", "--json", "pipe")
    assert (place / "pipe").is_fifo()


def test_no_command_shows_the_help(capsys):
    assert cli.main([]) == 2
    shown = capsys.readouterr()
    assert "Usage: genre" in shown.out + shown.err and "genre: " not in shown.err
    assert cli.main(["--version"]) == 0


def test_a_base_that_moved_is_named(refused, place, capsys):
    (place / "small").rename(place / "moved")
    said = refused("evaluate", "like", "--data", "shop")
    assert contains(said, "no base is called 'small'", "name its folder with --base")
    assert cli.main(["evaluate", "like", "--data", "shop", "--base", "moved"]) == 0


GOOD = {"id": "good", "adapter": "like", "user_id": "u1", "candidates": ["i1", "i2"]}
ROWS = [
    ("not json", None, "is not JSON"),
    ([1], None, "a request is not a JSON object: got [1]"),
    ({"id": "a"}, "a", "a request has no adapter"),
    ({**GOOD, "id": "b", "kk": 1}, "b", "a request has an unknown field: got kk"),
    ({**GOOD, "id": "c", "adapter": "nope"}, "c", "no adapter 'nope'"),
    ({**GOOD, "id": "d", "adapter": "encoder-planted"}, "d", "is a behaviour encoder"),
    ({**GOOD, "id": "e", "user_id": "nobody"}, "e", "unknown user: got 'nobody'"),
    ({**GOOD, "id": "f", "user_id": ["u1"]}, "f", "user_id cannot be used: got ['u1']; expected a text"),
    ({**GOOD, "id": "g", "candidates": ["i99"]}, "g", "unknown item: got i99"),
    ({**GOOD, "id": "h", "candidates": "i1"}, "h", "candidates cannot be used: got 'i1'; expected a list"),
    ({**GOOD, "id": "i", "candidates": [{"titel": "x"}]}, "i", "an item has an unknown column: got titel"),
    ({**GOOD, "id": "j", "candidates": [{"title": ["x"]}]}, "j", "an inline item cannot be used"),
    ({**GOOD, "id": "k", "candidates": None}, "k", "a request needs candidates or k"),
    ({**GOOD, "id": "l", "k": "3"}, "l", "k cannot be used: got '3'; expected a whole number"),
    ({**GOOD, "id": "m", "task": "nope"}, "m", "unknown task: got nope; expected like"),
    ({**GOOD, "id": "n", "history": ["i1"]}, "n", "history[0] cannot be used: got 'i1'; expected an object"),
    ({**GOOD, "id": "o", "history": [{"item_id": "i1", "rating": "five"}]}, "o", "rating in the history is not a number"),
    ({**GOOD, "id": "p", "history": [{"item_id": "i1", "impression_id": [1]}]}, "p", "impression_id cannot be used"),
    ({**GOOD, "id": "q", "user": [1]}, "q", "user cannot be used: got [1]"),
    ({**GOOD, "id": "r", "candidates": None, "k": 1, "deny": [{}]}, "r", "deny[0] cannot be used: got {}; expected a text"),
]


def write_rows(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def test_each_bad_row_fails_alone(place, capsys):
    rows = [row for row, _, _ in ROWS]
    write_rows(place / "in.jsonl", [rows[4], *rows, GOOD])
    assert cli.main(["score", "--data", "shop", "--input", "in.jsonl", "--output", "out.jsonl"]) == 0
    assert f"{len(rows) + 2} rows in out.jsonl, {len(rows) + 1} of them errors" in capsys.readouterr().out
    found = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]
    for (_, name, message), answer in zip(ROWS, found[1:-1], strict=True):
        assert answer["id"] == name and message in answer["error"], answer
    assert [item["item_id"] for item in found[-1]["results"]] == ["i1", "i2"]


def test_no_adapter_at_all(refused, place):
    write_rows(place / "in.jsonl", [{**GOOD, "adapter": "nope"}])
    assert "no adapter 'nope'" in refused("score", "--data", "shop", "--input", "in.jsonl", "--output", "out.jsonl")


def test_a_run_that_diverges_publishes_nothing(place, capsys):
    before = files(place / "registry")
    arguments = ["train", "like.yaml", *QUICK, "--set", "train.learning_rate=1e30", "--set", "train.clip=1e30"]
    assert cli.main(arguments) == 1
    assert contains(capsys.readouterr().err.splitlines()[-1], "genre: ", "is not finite", "lower train.learning_rate")
    assert files(place / "registry") == before


FULL = {
    "data import log.csv --out out": (300, "cannot write", ()),
    "recipe new rating --data shop": (100, "rating.yaml cannot be written: got File too large; free some space", ()),
    "train like.yaml": (500, "recipe.yaml cannot be written", ()),
    "evaluate like --data shop --json figures.json": (100, "figures.json cannot be written", ()),
    "recommend like --data shop --all-users --output out.jsonl": (2000, "out.jsonl cannot be written", ()),
    "score --data shop --input in.jsonl --output out.jsonl": (50, "out.jsonl cannot be written", ()),
}


@pytest.mark.parametrize("command", FULL)
def test_a_full_disk(command, refused, place):
    size, message, leaves = FULL[command]
    write_rows(place / "in.jsonl", [GOOD])
    (place / "log.csv").write_text(HEADER + "".join(f"u{i % 7},i{i},{i},4\n" for i in range(50)))
    with disk_of(size):
        assert message in refused(*command.split(), code=1, leaves=leaves)


@pytest.mark.parametrize("size", [3000, 20_000])
def test_a_disk_that_fills_in_training(size, refused, place):
    before = files(place / "registry")
    run = [f"runs/like/1/{name}" for name in ("environment.json", "recipe.yaml")]
    with disk_of(size):
        assert "last.pt cannot be written" in refused("train", "like.yaml", *QUICK, code=1, leaves=run)
    assert files(place / "registry") == before


def test_a_disk_that_fills_while_the_version_is_written(refused, place, monkeypatch):
    from genre.jobs import train as run

    def half(folder, assembly):
        (folder / "heads.safetensors").write_bytes(b"half")
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(run, "write_adapter", half)
    made = ("checkpoints/last.pt", "environment.json", "log.jsonl", "predictions.parquet", "recipe.yaml", "reliability.like.svg")
    left = [f"runs/like/1/{name}" for name in made]
    said = refused("train", "like.yaml", *QUICK, code=1, leaves=left)
    assert contains(said, "cannot write", "no space left on device", "nothing half-written is left")
