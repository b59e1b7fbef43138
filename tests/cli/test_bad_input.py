"""Bad input ends in one line that says what, got, expected and what to do; exit code 2, or 1 for a failed job; and no litter."""

import json
import os
import shutil

import pytest
import yaml

from builders import disk_of
from fakes import make_base
from genre import cli

QUICK = ["--set", "train.epochs=1"]
HEADER = "user_id,item_id,timestamp,rating\n"


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
        text = (place / "like.yaml").read_text().replace("depth: 4", "depth: 1")
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


def contains(text, *parts):
    for part in parts:
        assert part in text
    return True


LOGS = {
    "a missing column": ("user_id,item_id\n1,a\n", "column 'timestamp' is missing: got user_id, item_id; expected user_id"),
    "a rating that is not a number": (HEADER + "1,a,1,five\n1,b,2,4\n", "rating 'five'; expected a number"),
    "an empty log": (HEADER, "the log is empty: got 0 events; expected at least one event"),
    "an empty file": ("", "log.csv is empty: got no header; expected a header and rows"),
    "bytes": (b"\xff\xfe\x00abc\n", "columns 'user_id', 'item_id', 'timestamp' are missing"),
}


@pytest.mark.parametrize("case", LOGS)
def test_logs(case, refused, place):
    content, message = LOGS[case]
    (place / "log.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refused("data", "import", "log.csv", "--out", "out")
    assert not (place / "out").exists()


def test_skipped_rows_are_counted(place, capsys):
    (place / "log.csv").write_text(HEADER + "1,a,1,five\n1,b,2,4\n")
    assert cli.main(["data", "import", "log.csv", "--max-bad", "0.5", "--out", "out"]) == 0
    assert contains(capsys.readouterr().out, "skipped: bad rating: 1", "row 0 (the first is 0): rating 'five'")


RECIPES = {
    "a misspelt key": ("train.epoch", 3, "unknown key 'train.epoch'", "did you mean 'epochs'?"),
    "a misspelt section": ("adaptor", {}, "unknown key 'adaptor'", "did you mean 'adapter'?"),
    "a wrong value": ("adapter.rank", "many", "adapter.rank: got 'many'; expected a whole number"),
    "a wrong choice": ("adapter.kind", "lorra", "adapter.kind: got 'lorra'; expected 'lora', 'rslora'"),
    "a negative seed": ("train.seed", -1, "train.seed: got -1"),
    "a rate without end": ("train.learning_rate", float("inf"), "train.learning_rate: got inf"),
    "shares of more than one": ("data.split.test", 0.95, "must add up to less than 1"),
    "another data set": ("data.path", "nope", "no data set folder: got nope; expected a folder with interactions.parquet"),
    "another base": ("base.name", "nope", "no base is called 'nope': expected smollm2-135m"),
    "a base too shallow": ("base.depth", 9, "depth is out of range: got 9; expected 1 to 2 for base 'small'"),
    "another feedback column": ("sequence.feedback", "stars", "sequence.feedback 'stars' is not a column of the log: got rating"),
    "an instruction's column": ("sequence.instruction", "{aeg}", "the user column 'aeg'"),
    "another label": ("tasks.0.label", "stars > 3", "task 'like' needs the feedback column 'stars'"),
}


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
    assert contains(refused(*command, "wrong.yaml"), *messages)
    assert not (place / "runs").exists()


def test_a_check_sees_labels_that_are_all_the_same(refused):
    said = refused("recipe", "check", "like.yaml", "--set", "tasks.0.label=rating > 9")
    assert (
        said
        == "task 'like': label 'rating > 9' does not distinguish the training events: got 0 for every event; change the label"
    )


def test_a_check_sees_text_columns(refused):
    assert "the catalogue has no column 'titel'" in refused("recipe", "check", "like.yaml", "--set", "sequence.text=[titel]")


COMMANDS = {
    "train nope.yaml": "no recipe nope.yaml",
    "train small": "recipe small cannot be read",
    "train like.yaml --set epochs": "an override cannot be read: got epochs; expected a.b=c; for example --set train.epochs=3",
    "train like.yaml --set train.epochs=0": "like.yaml: train.epochs: got 0; expected at least 1",
    "train like.yaml --set train.epochs.x=1": "goes through 'epochs', which holds a plain value: got 3",
    "train like.yaml --alias a/b": "not a usable alias: got 'a/b'",
    "train like.yaml --resume": "there is nothing to resume: got runs/like/1; expected checkpoints/last.pt; train without",
    "train like.yaml --resume --out new": "there is nothing to resume: got new; expected checkpoints/last.pt",
    "train like.yaml --out like.yaml": "--out is a file: got like.yaml; expected a folder, or a new name",
    "train like.yaml --json shop": "--json is a folder: got shop; expected a file to write",
    "train like.yaml --json like.yaml/new/f.json": "like.yaml; expected a folder",
    "train like.yaml --json /proc/new/f.json": "--json cannot be written: got /proc: ",  # takes no files, not even root's
    "train like.yaml --dry-run --json like.yaml/f.json": "--json lies in a file: got ",
    "train like.yaml --registry like.yaml": "a registry is a folder: got the file like.yaml",
    "train like.yaml --registry like.yaml/new": "the registry lies in a file: got ",
    "train like.yaml --registry /proc/new": "the registry cannot be written: got /proc: ",
    "train like.yaml --registry /proc/new --set encoder.use=fit": "expected a folder that takes new files; name another folder",
    "merge like like --as both --data shop --json like.yaml/f.json": "--json lies in a file: got ",
    "tune like.yaml --trials 1 --json like.yaml/f.json": "--json lies in a file: got ",
    "crossval like.yaml --folds 2 --json like.yaml/f.json": "--json lies in a file: got ",
    "bench like.yaml --json like.yaml/f.json": "--json lies in a file: got ",
    "refresh like --data shop --json like.yaml/f.json": "--json lies in a file: got ",
    "evaluate like --data shop --json /proc/f.json": "--json cannot be written: got /proc: ",
    "train like.yaml --set encoder.use=nope": "no adapter 'nope': got the registry at registry; expected encoder-planted, like",
    "evaluate like --data shop --part tset": "no such part: got --part tset; expected valid or test",
    "evaluate nope --data shop": "no adapter 'nope': got the registry at registry; expected encoder-planted, like",
    "evaluate like --data shop --registry new": "no adapter 'like': got the registry at new, which is empty",
    "evaluate like@prod --data shop": "no alias like@prod: got the registry at registry; expected like@candidate, like@latest",
    "evaluate like:000000000000 --data shop": "no version like:000000000000",
    "evaluate Like! --data shop": "not a usable name: got 'Like!'",
    "evaluate encoder-planted --data shop": "encoder-planted is a behaviour encoder: got encoder; expected an adapter",
    "evaluate like --data nope": "no data set folder: got nope",
    "evaluate like --data shop --base nope": "no base is called 'nope'",
    "evaluate like --data shop --base other": "base.fingerprint: got ",
    "recommend like --data shop": "name one user or all: got neither; expected --user ID, --liked TITLE or --all-users",
    "recommend like --data shop --all-users": "--all-users needs a file: got no --output",
    "recommend like --data shop --user u1 -k 0": "-k is too small: got 0; expected 1 or more",
    "recommend like --data shop --user u1 -k x": "invalid value for '-k': expected a valid integer",
    "recommend like --data shop --user nobody": "unknown user: got 'nobody'; expected one of the 60 users of the log",
    "recommend like --data shop --user u1 --task nope": "unknown task: got nope; expected like",
    "recommend like --data shop --all-users --output shop": "--output is a folder: got shop; expected a file to write",
    "recommend like --data shop --all-users --output /proc/f.jsonl": "--output cannot be written: got /proc: ",
    "score --data shop --input nope --output out": "no such input file: got nope; expected JSON lines of requests",
    "score --data shop --input like.yaml --output out": "no row of the input is a request: got like.yaml",
    "score --data shop --input like.yaml --output out --lanes 0": "--lanes is too small: got 0; expected 1 or more",
    "score --data shop --input like.yaml --output out --engine nope": "no such engine: got --engine nope; expected local or ray",
    "recipe new likes --data shop": "unknown kind of task: got likes; expected like, rating, next_item",
    "recipe new like --data shop": "the file exists: got like.yaml; expected a new file; name another with --out",
    "registry promote like production --floor auc=2": "misses the floor in like.auc: got",
    "registry import small --as new --base small --depth 0": "'--depth': expected greater than or equal to 1; see genre registry",
    "registry rollback like": "like@production has nothing to roll back to",
    "data describe nope": "nope is not a data set folder: got no such folder",
    "data prepare nope": "unknown data set: got 'nope'; expected ml-100k or ml-100k-kg or womens-clothing or open-bandit",
    "base prepare nope": "unknown base: got 'nope'; expected smollm2-135m or minilm; choose one of those",
    "trian": "; did you mean 'train'?; see genre --help",
    "recipe nope": "no such command 'nope': expected new, check; see genre recipe --help",
    "train": "missing argument 'RECIPE...'; see genre train --help",
    "train like.yaml --nope": "no such option: --nope; see genre train --help",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, refused):
    assert COMMANDS[command] in refused(*command.split())


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
