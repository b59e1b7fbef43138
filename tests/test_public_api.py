"""`import genre` and `genre --help` load no model library; every public name can be looked up; every command has a line."""

import subprocess
import sys

import pytest

import genre

HEAVY = ("torch", "transformers", "polars", "pydantic", "peft", "accelerate", "numpy", "scipy", "safetensors")


def loaded(code: str) -> list[str]:
    """The heavy libraries that some code loads in a fresh interpreter."""
    text = f"import sys\n{code}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("module", ["genre", "genre.cli"])
def test_importing_loads_no_model_library(module):
    assert loaded(f"import {module}") == []


def test_the_recipe_and_the_registry_need_no_torch():
    assert not {"torch", "transformers"} & set(
        loaded("import genre.recipe, genre.registry, genre.data.interactions, genre.evaluation.targets")
    )


def test_every_public_name_can_be_looked_up():
    for name in genre.__all__:
        assert getattr(genre, name) is not None
    assert genre.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="module 'genre' has no attribute 'nothing'"):
        _ = genre.nothing


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", "from genre.cli import main; main()", *words], capture_output=True, text=True, check=False
    )


def commands(text: str) -> set[str]:
    """First words of the rows in the boxes that help draws."""
    rows = [line.strip("│ ").split() for line in text.splitlines() if line.startswith("│")]
    return {row[0] for row in rows if row and not row[0].startswith("-")}


EVERY = {"data", "base", "recipe", "registry", "train", "evaluate", "recommend", "score"}


def test_help_lists_every_command():
    done = run("--help")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert commands(done.stdout) >= EVERY


@pytest.mark.parametrize(
    ("group", "wanted"),
    [
        ("data", {"prepare", "describe", "import"}),
        ("base", {"prepare", "list"}),
        ("recipe", {"new", "check"}),
        ("registry", {"list", "show", "diff", "verify", "promote", "rollback", "history", "export", "import", "gc"}),
    ],
)
def test_help_of_a_group_lists_its_commands(group, wanted):
    done = run(group, "--help")
    assert done.returncode == 0 and commands(done.stdout) >= wanted, done.stdout
