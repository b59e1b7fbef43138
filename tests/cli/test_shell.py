"""The program in a shell: what completes, in bash too; `--quiet` and `--verbose` of every command; environment variables."""

import importlib.util
import os
import pty
import select
import shutil
import subprocess
import sys
import time

import pytest

from genre import cli
from genre.cli.shell import loading
from genre.cli.shell.completion import join_words, kept_on_line
from genre.progress import Reporter, Verbosity, reporting
from genre.registry import Registry


@pytest.fixture
def place(tmp_path, monkeypatch, trained, log):
    monkeypatch.chdir(tmp_path)
    log.write("data/shop")
    shutil.copytree(trained.registry.url, "registry")
    return tmp_path


def offered(capsys, monkeypatch, *words):
    """What bash puts in place of the end of the last word."""
    monkeypatch.setenv("_GENRE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(["genre", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    with pytest.raises(SystemExit):
        cli.main([])
    monkeypatch.delenv("_GENRE_COMPLETE")
    return capsys.readouterr().out.split()


def test_references_names_and_tasks_complete(place, capsys, monkeypatch):
    version = Registry("registry").versions("like")[-1]
    assert {"like", "like@latest"} <= set(offered(capsys, monkeypatch, "explain", "li"))
    assert "rating" not in " ".join(offered(capsys, monkeypatch, "explain", "li"))
    assert version in offered(capsys, monkeypatch, "registry", "show", "like", ":")
    assert "rating" in offered(capsys, monkeypatch, "registry", "verify", "rat")
    assert "like@latest" not in offered(capsys, monkeypatch, "registry", "list", "li")
    assert offered(capsys, monkeypatch, "explain", "like", "--task", "l") == ["like"]


def test_data_sets_complete(place, capsys, monkeypatch):
    assert "data/shop" in offered(capsys, monkeypatch, "evaluate", "like", "--data", "da")
    assert "ml-100k" in offered(capsys, monkeypatch, "evaluate", "like", "--data", "ml")


def test_another_registry_completes_and_a_remote_one_is_not_asked(place, capsys, monkeypatch):
    os.rename("registry", "other")
    assert "like" not in " ".join(offered(capsys, monkeypatch, "explain", "l"))
    assert "like" in offered(capsys, monkeypatch, "explain", "--registry", "other", "l")
    monkeypatch.setenv("GENRE_REGISTRY", "other")
    assert "like" in offered(capsys, monkeypatch, "explain", "l")
    assert "like" not in " ".join(offered(capsys, monkeypatch, "explain", "--registry", "s3://nowhere", "l"))


@pytest.mark.parametrize(
    ("words", "joined", "kept"),
    [
        ("genre explain like @ pro", "genre explain like@pro", "like"),
        ("genre explain like @", "genre explain like@", "like"),
        ("genre explain like : a3", "genre explain like:a3", "like:"),
        ("genre explain like : a3 --task l", "genre explain like:a3 --task l", ""),
        ("genre x --registry = s3 : //b", "genre x --registry=s3://b", "s3:"),
    ],
)
def test_what_bash_splits_is_joined(words, joined, kept):
    found = join_words(words.split(), len(words.split()) - 1)
    assert found == joined.split()
    assert kept_on_line(found[-1]) == kept


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(("typed", "whole"), [("like@la", "like@latest"), ("like:", "like:{version}"), ("rati", "rating")])
def test_bash_completes_a_reference(typed, whole, place, monkeypatch):
    whole = whole.format(version=Registry("registry").versions("like")[-1])
    program = place / "bin" / "genre"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m genre "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    # `--show-completion` looks for a shell among the parents of the process, and under CI there may be none.
    asked = {**os.environ, "_GENRE_COMPLETE": "source_bash"}
    script = subprocess.run(["genre"], env=asked, capture_output=True, text=True, check=True)
    (place / "rc").write_text(f"PS1='$ '\n{script.stdout}")  # a long prompt makes a terminal without a name scroll its line
    child, terminal = pty.fork()
    if child == 0:
        os.execvp("bash", ["bash", "--rcfile", "rc", "-i"])
    try:
        os.write(terminal, b"echo rea''dy\r")
        _until(terminal, "ready")
        os.write(terminal, f"genre explain {typed}\t".encode())
        assert f"genre explain {whole}" in _until(terminal, whole)
    finally:
        os.write(terminal, b"\x15exit\r")
        os.close(terminal)
        os.waitpid(child, 0)


def _until(terminal, text):
    """What a terminal shows until a text appears, at most for 30 seconds."""
    shown, end = "", time.monotonic() + 30
    while text not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace").replace("\a", "")
    return shown


def test_every_command_takes_quiet_and_verbose():
    def parameters(app):
        for command in app.registered_commands:
            yield command.callback
        for group in app.registered_groups:
            yield from parameters(group.typer_instance)

    for callback in parameters(cli.app):
        assert {"quiet", "verbose"} <= callback.__signature__.parameters.keys(), callback


def test_quiet_leaves_results_and_errors(place, tiny, capsys):
    asked = ["evaluate", "like", "--data", "data/shop", "--base", str(tiny)]
    assert cli.main(asked) == 0
    usual = capsys.readouterr()
    assert cli.main([*asked, "--quiet"]) == 0
    quiet = capsys.readouterr()
    assert (quiet.out, quiet.err) == (usual.out, "")
    assert cli.main(["registry", "show", "nobody", "-q"]) == 2
    assert capsys.readouterr().err.startswith("genre: no adapter 'nobody'")


def test_quiet_import(place, capsys):
    (place / "log.csv").write_text("user_id,item_id,timestamp\n1,a,1\n1,b,2\n2,a,3\n")
    assert cli.main(["data", "import", "log.csv", "--out", "new", "-q"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "ready: new" in shown.out


def test_verbose_shows_the_traceback_before_the_line_of_an_error(place, capsys):
    assert cli.main(["registry", "show", "nobody", "-v"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-1].startswith("genre: no adapter 'nobody'")
    assert cli.main(["registry", "show", "nobody", "-v", "-q"]) == 2
    assert capsys.readouterr().err == "genre: --quiet and --verbose exclude each other: got both; expected one of the two\n"


def test_verbose_reports_every_phase_with_the_time_of_day(capsys):
    with reporting(Verbosity.VERBOSE), Reporter.for_terminal().phase("short work", at_once=False):
        pass
    assert capsys.readouterr().err.split(maxsplit=1)[1] == "short work\n"
    with Reporter.for_terminal().phase("short work", at_once=False):
        pass
    assert capsys.readouterr().err == ""


def test_the_import_of_pytorch_is_a_line_once(tmp_path, monkeypatch, capsys):
    (tmp_path / "imported_slowly").mkdir()
    (tmp_path / "imported_slowly" / "__init__.py").write_text("import imported_slowly.part")
    (tmp_path / "imported_slowly" / "part.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(loading, "SLOW", "imported_slowly")
    finders = list(sys.meta_path)
    for level, said in ((Verbosity.QUIET, ""), (Verbosity.NORMAL, "loading PyTorch\n"), (Verbosity.NORMAL, "")):
        with reporting(level), loading.announced_import():
            assert importlib.util.find_spec("imported_slowly") is not None  # as libraries do that may use it
            assert capsys.readouterr().err == ""
            if level is Verbosity.NORMAL:
                importlib.import_module("imported_slowly")
        assert capsys.readouterr().err == said and sys.meta_path == finders
    for name in ("imported_slowly", "imported_slowly.part"):
        sys.modules.pop(name)


def test_environment_variables_are_defaults(place, monkeypatch, capsys):
    os.rename("registry", "elsewhere")
    monkeypatch.setenv("GENRE_REGISTRY", "elsewhere")
    monkeypatch.setenv("GENRE_DATA", "data/shop")
    assert cli.main(["registry", "list"]) == 0
    assert "like" in capsys.readouterr().out
    assert cli.main(["recipe", "new", "next_item", "--out", "next.yaml"]) == 0
    assert "path: data/shop" in (place / "next.yaml").read_text()
    assert cli.main(["registry", "list", "--registry", "none"]) == 0  # an option goes before its variable
    assert "which is not there yet" in capsys.readouterr().out


def test_completion_loads_nothing_heavy(place):
    code = "import sys, genre.cli.root; print({'torch', 'polars', 'numpy', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
