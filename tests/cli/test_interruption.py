"""Ctrl-C in every command: exit code 1, one line that says what is left and how to go on, nothing half-written.

The signal is a real one, sent to the process itself by an audit hook at a chosen event: before a module is imported, before a
result is renamed into place, when a file is opened.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import typer

from builders import LIKE, recipe
from genre import cli
from genre.cli.shell.interruption import LEFT
from genre.registry import Registry
from genre.registry.trust.keys import Signer

moment: list[Callable[[str, tuple[Any, ...]], bool]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if moment and moment[0](event, arguments):
        moment.clear()
        os.kill(os.getpid(), signal.SIGINT)


sys.addaudithook(_hook)  # cannot be removed; without a moment it does nothing


@pytest.fixture
def place(tmp_path, monkeypatch, trained, log):
    monkeypatch.chdir(tmp_path)
    log.write("shop")
    shutil.copytree(trained.registry.url, "registry")
    (tmp_path / "like.yaml").write_text(recipe(trained.base, LIKE, data={"path": "shop"}, train={"epochs": 1}).dump())
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,rating\n1,a,1,5\n1,b,2,4\n2,a,3,1\n")
    (tmp_path / "in.jsonl").write_text('{"adapter": "like", "history": [], "candidates": ["i1"]}\n')
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    yield tmp_path
    moment.clear()
    signal.signal(signal.SIGINT, before)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name not in (".lock", ".locked"))


def renames(part):
    return lambda event, arguments: event == "os.rename" and part in str(arguments[1])


def opens(part):
    return lambda event, arguments: event == "open" and part in str(arguments[0])


def links(part):
    return lambda event, arguments: event == "os.link" and part in str(arguments[1])


def starts_a_process(event, arguments):
    return event == "subprocess.Popen"


EVAL = ["--data", "shop", "--base", "{base}"]
CASES: dict[str, tuple[list[str], Callable[[str, tuple[Any, ...]], bool]]] = {
    "data import": (["log.csv", "--out", "new"], renames("/new")),
    "data describe": (["shop"], opens("dataset.json")),
    "data forget": (["u1", "--data", "shop"], opens("dataset.json")),
    "data prepare": (["ml-100k"], starts_a_process),
    "base list": ([], lambda event, arguments: event == "import" and arguments[0] == "genre.modules.base.packaged"),
    "base prepare": (["smollm2-135m"], starts_a_process),
    "recipe new": (["like", "--data", "shop", "--out", "new.yaml"], renames("new.yaml")),
    "recipe check": (["like.yaml"], opens("dataset.json")),
    "registry list": ([], lambda event, arguments: event == "os.scandir" and "registry" in str(arguments[0])),
    "registry show": (["like"], opens("manifest.json")),
    "registry diff": (["like", "rating"], opens("manifest.json")),
    "registry verify": ([], opens("manifest.json")),
    "registry promote": (["like", "best"], links("aliases")),
    "registry rollback": (["like@production"], opens("aliases")),
    "registry history": (["like"], opens("aliases")),
    "registry export": (["next_item", "--out", "new", "--base", "{base}"], renames("/new")),
    "registry import": (["peft", "--as", "new", "--base", "{base}"], renames("registry/new")),
    "registry check-server": (["http://127.0.0.1:1", "--folder", "served"], opens("canaries.json")),
    "registry keygen": (["new.key"], opens("new.key.pub")),
    "registry sign": (["like", "--key", "release.key"], renames("signatures")),
    "registry checkpoint": (["--out", "new.json"], renames("new.json")),
    "registry gc": ([], opens("manifest.json")),
    "registry delete": (["like"], opens("manifest.json")),
    "train": (["like.yaml"], renames("version")),
    "federated": (["like.yaml", "--client", "shop", "--set", "encoder.collaborative=0"], opens("dataset.json")),
    "evaluate": (["like", *EVAL], opens("adapter_model")),
    "recommend": (["like", *EVAL, "--user", "u1"], opens("adapter_model")),
    "score": (["--input", "in.jsonl", "--output", "out.jsonl", *EVAL], opens("heads.json")),
    "merge": (["like", "rating", "--as", "new", *EVAL], renames("registry/new")),
    "tune": (["like.yaml", "--trials", "1", "--study", "study", "--sampler", "random"], renames("environment.json")),
    "crossval": (["like.yaml", "--folds", "2"], opens("dataset.json")),
    "compare": (["like", "rating", *EVAL], opens("manifest.json")),
    "bench": (["bench.yaml"], opens("bench.yaml")),
    "refresh": (["like", *EVAL], opens("dataset.json")),
    "explain": (["like", *EVAL, "--user", "u1", "--item", "i1"], opens("manifest.json")),
    "doctor": ([], opens("manifest.json")),
    "report": (["{run}"], renames("report.html")),
    "audit": (["next_item", *EVAL, "--text-only"], opens("adapter_model")),
    "serve": (["--adapters", "like", "--base", "{base}", "--port", "0"], opens("adapter_model")),
}
KEPT = {
    "train": r"runs|shop/users\.key$",
    "federated": r"runs",
    "tune": r"study|runs",
    "crossval": r"runs",
    "score": r"out\.jsonl",
    "refresh": r"runs|shop/users\.key$",
    "registry sign": r"registry/like/signatures$",  # an empty folder
}
"""What a command that can go on leaves; the others leave nothing."""


def commands() -> set[str]:
    """The words of every command of the program."""
    found = {str(each.name or each.callback.__name__) for each in cli.app.registered_commands}
    for group in cli.app.registered_groups:
        inside = group.typer_instance.registered_commands
        found |= {f"{group.name} {each.name or each.callback.__name__.rstrip('_')}" for each in inside}
    return found


def test_every_command_has_its_words_and_its_case():
    assert isinstance(cli.app, typer.Typer)
    assert commands() == set(LEFT) == set(CASES)


@pytest.mark.parametrize("command", CASES)
def test_in_the_midst_of_a_command(command, place, trained, capfd, monkeypatch):
    arguments, when = CASES[command]
    (place / "bench.yaml").write_text("{}")
    if command == "registry import":
        Registry("registry").export("next_item", "peft", base=trained.base)
    if command == "registry check-server":
        (place / "served").mkdir()
        (place / "served" / "canaries.json").write_text("{}")
    if command == "registry sign":
        Signer.generate(place / "release.key")
    monkeypatch.delitem(sys.modules, "genre.modules.base.packaged", raising=False)  # whose import is the moment of base list
    run = str(trained.runs["like"].root)
    before = files(place)
    moment.append(when)
    code = cli.main([*command.split(), *(word.replace("{base}", str(trained.base)).replace("{run}", run) for word in arguments)])
    shown = capfd.readouterr()
    assert not moment, f"the command ended before: {shown.err}"
    lines = [line for line in shown.err.splitlines() if line.startswith("genre: ")]
    assert (code, len(lines)) == (1, 1), shown.err
    assert "interrupted" in lines[0] and "Traceback" not in shown.err
    assert len(lines[0]) < 200 and re.search(r"same command|history NAME", lines[0])
    left = [path for path in files(place) if path not in before]
    assert [path for path in left if not re.match(KEPT.get(command, "$^"), path)] == []
    assert not [path for path in left if ".tmp" in path or ".old" in path]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


MOMENTS = {
    "the base is read": opens("config.json"),
    "the run folder appears": renames("recipe.yaml"),
    "the first checkpoint is written": renames("last.pt"),
    "a line of the log is written": opens("log.jsonl"),
    "the predictions appear": renames("predictions.parquet"),
    "the version is copied": opens(".tmp-"),
    "the alias moves": links("aliases"),
}


@pytest.mark.parametrize("moment_of", MOMENTS)
def test_training_is_stopped_and_goes_on_from_any_moment(moment_of, place, capfd):
    """Exit code 1 and one line; the registry is whole; what the line says, or starting over, ends in a version."""
    moment.append(MOMENTS[moment_of])
    assert cli.main(["train", "like.yaml", "--out", "run"]) == 1
    line = [line for line in capfd.readouterr().err.splitlines() if line.startswith("genre: ")]
    assert not moment and len(line) == 1 and "interrupted" in line[0]
    assert Registry("registry").verify() == []
    resumable = (place / "run" / "checkpoints" / "last.pt").is_file()
    assert cli.main(["train", "like.yaml", "--out", "run", *(["--resume"] if resumable else [])]) == 0
    assert "published like:" in capfd.readouterr().out and Registry("registry").verify() == []


def reads(part):
    return lambda event, arguments: event == "open" and str(arguments[0]).endswith(part) and arguments[1] == "r"


@pytest.mark.parametrize(
    "moment_of", [opens(".part.lock"), reads(".part"), renames(".part.json")], ids=["lock", "part", "settings"]
)
@pytest.mark.parametrize("command", ["score --input in.jsonl --seen masked", "recommend like --all-users"])
def test_an_output_that_is_stopped_as_it_begins_is_no_obstacle(command, moment_of, place, capfd, trained):
    arguments = [*command.split(), "--output", "out.jsonl", "--data", "shop", "--base", str(trained.base)]
    before = files(place)
    moment.append(moment_of)
    assert cli.main(arguments) == 1
    assert not moment and "interrupted" in capfd.readouterr().err
    assert files(place) == before
    (place / "out.jsonl.part").touch()  # the signal may come just after the file is made
    assert cli.main(arguments) == 0, capfd.readouterr().err
    assert (place / "out.jsonl").exists() and not (place / "out.jsonl.part").exists()


def test_going_on_after_an_interrupted_evaluation_of_a_trained_run(place, capfd):
    moment.append(renames("version"))
    assert cli.main(["train", "like.yaml"]) == 1
    assert "--resume goes on from runs/like/1" in capfd.readouterr().err
    assert cli.main(["train", "like.yaml", "--resume"]) == 0
    assert "published like:" in capfd.readouterr().out


@pytest.mark.parametrize("module", ["genre.cli.root", "genre.errors", "typer", "torch", "numpy._core._multiarray_umath"])
@pytest.mark.parametrize("command", ["evaluate like --data shop"])
def test_during_the_imports(command, module, place):
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from genre.cli import main
sent = []
def hook(event, arguments):
    if event == "import" and arguments[0] == {module!r} and not sent:
        sent.append(1)
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
code = main(sys.argv[1:])
assert sent
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert done.stderr == "genre: interrupted: the registry is unchanged; the same command starts over\n"


def test_a_signal_that_a_library_swallows_still_ends_in_exit_code_1(place, capfd, monkeypatch):
    def swallow(event, arguments):
        return event == "os.scandir" and "registry" in str(arguments[0])

    import genre.registry.stores.local as store

    scan = store._scan

    def deaf(folder):
        try:
            return scan(folder)
        except KeyboardInterrupt:
            return scan(folder)

    monkeypatch.setattr(store, "_scan", deaf)
    moment.append(swallow)
    assert cli.main(["registry", "list"]) == 1
    assert capfd.readouterr().err == "genre: interrupted: the work was done already\n"


def test_a_signal_that_falls_into_an_exec_ends_in_exit_code_1(place):
    """Python would end the process by the signal once more, though it was caught: dataclasses are made by exec."""
    code = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from genre import cli
from genre.cli import root
root.run = lambda arguments: exec("import os, signal; os.kill(os.getpid(), signal.SIGINT); [None for _ in range(9)]")
sys.exit(cli.main(["registry", "list"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "genre: interrupted: nothing was changed; the same command starts over\n")


def test_a_signal_that_falls_into_a_finalizer_is_not_lost(place, capfd, monkeypatch):
    """Python ends errors of finalizers with a traceback and goes on: the signal comes again."""
    import genre.registry.stores.local as store

    class Finalized:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0)  # the handler runs here

    scan = store._scan

    def slow(folder):
        Finalized()
        time.sleep(20)
        return scan(folder)

    monkeypatch.setattr(store, "_scan", slow)
    begun, hook = time.perf_counter(), sys.unraisablehook
    assert cli.main(["registry", "list"]) == 1
    assert time.perf_counter() - begun < 10 and sys.unraisablehook is hook
    assert capfd.readouterr().err == "genre: interrupted: nothing was changed; the same command starts over\n"


def test_a_signal_that_is_ignored_stays_ignored(place, capfd):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    moment.append(lambda event, arguments: event == "os.scandir" and "registry" in str(arguments[0]))
    assert cli.main(["registry", "list"]) == 0
    assert not moment and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
