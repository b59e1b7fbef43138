"""Pages, recipes, benchmarks and docstrings name only what exists: commands, options, links, recipe keys, files."""

import functools
import importlib
import re
import runpy
import shlex
import sys
import types
from typing import Any, Union, get_args, get_origin

import nbformat
import pytest
import typer
from pydantic import BaseModel

from genre import cli
from genre.recipe import Recipe
from genre.registry.manifest import Manifest
from standins import ROOT

pytestmark = pytest.mark.lint

BENCHMARKS = ROOT / "benchmarks"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMENTED = sorted([*(ROOT / "recipes").rglob("*.yaml"), *BENCHMARKS.glob("*.py"), *(ROOT / "adapters").rglob("*.py")])
SCRIPTS = sorted(path for path in BENCHMARKS.glob("*.py") if '__name__ == "__main__"' in path.read_text(encoding="utf-8"))
ALWAYS = {"--help", "--version"}


def name_of(path) -> str:
    return str(path.relative_to(ROOT))


def joined(path) -> str:
    """A file's text with continued lines in one."""
    return path.read_text(encoding="utf-8").replace("\\\n", " ")


def commands(text: str) -> list[str]:
    """Command lines of `genre` and of benchmarks: after a prompt, in backticks, or indented in a docstring."""
    found = re.findall(r"(?m)^[# ]*\$ (.*)$", text) + re.findall(r"`([^`\n]+)`", text) + re.findall(r"(?m)^ {4}(genre .*)$", text)
    found += re.findall(r"(?m)^ {4}(python benchmarks/.*)$", text)
    lines = [re.split(r"\s#\s| {4,}|\s[|>&]\s", line)[0] for line in found]
    wanted = re.compile(r"(?:^|.* )(?:genre|-m genre) ([a-z].*)|(?:^|.* )python (benchmarks/.*)")
    return [" ".join(filter(None, match.groups())) for line in lines if (match := wanted.match(line))]


def options_of(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if re.fullmatch(r"--[a-z][a-z-]*(=.*)?|-k", word)]


@functools.cache
def whole() -> Any:
    return typer.main.get_command(cli.app)


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the words after its name."""
    found = whole()
    while hasattr(found, "commands") and words and words[0] != "…":
        name, words = words[0].rstrip(".,;:…"), words[1:]
        assert name in found.commands, f"there is no command {name!r} among {sorted(found.commands)}"
        found = found.commands[name]
    return found, words


def split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # an apostrophe of a sentence
        return line.split()


@pytest.mark.parametrize("path", PAGES + COMMENTED, ids=name_of)
def test_commands_exist_with_these_options(path):
    for line in commands(joined(path)):
        if line.startswith("benchmarks/"):
            script, *words = split(line)
            assert (ROOT / script).is_file(), line
            text = (ROOT / script).read_text(encoding="utf-8")
            assert all(f'"{option}"' in text for option in set(options_of(words)) - ALWAYS), line
            continue
        if re.search(r"\|| or ", line.split(" -")[0]):  # several commands in one span
            continue
        command, words = command_of(split(line))
        known = {option for each in command.params for option in [*each.opts, *each.secondary_opts]} | ALWAYS
        assert set(options_of(words)) <= known, line


def anchors(page: str) -> set[str]:
    """Anchors of a page's headings."""
    headings = re.findall(r"(?m)^#+ (.*)$", page)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_resolve(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), target


def test_every_page_is_linked_from_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {path.name for pattern in ("*.md", "*.ipynb") for path in (ROOT / "docs").glob(pattern)} - {"README.md"}
    assert sorted(name for name in pages if f"({name}" not in index) == []


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_named_files_exist(path):
    roots = "tests|benchmarks|recipes|docs|adapters/genre"
    for name in re.findall(rf"(?:{roots})/[\w./-]+\.(?:py|yaml)|(?<=`)(?:{roots})/[\w/]*(?=`)", path.read_text(encoding="utf-8")):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_named_modules_exist(path):
    for name in re.findall(r"`(genre(?:\.\w+)+)[`(]", path.read_text(encoding="utf-8")):
        parts, found = name.split("."), importlib.import_module("genre")
        for number, part in enumerate(parts[1:], 2):
            if not hasattr(found, part):
                importlib.import_module(".".join(parts[:number]))
            found = getattr(found, part)


def keys(model: type[BaseModel], before: str = "") -> set[str]:
    """Dotted paths of a schema's keys, those of nested sections too."""
    found = set()
    for name, field in model.model_fields.items():
        found.add(before + name)
        for kind in models(field.annotation):
            found |= keys(kind, f"{before}{name}.")
    return found


def models(kind: Any) -> list[type[BaseModel]]:
    if get_origin(kind) in (Union, types.UnionType, tuple, list):
        return [each for inner in get_args(kind) for each in models(inner)]
    return [kind] if isinstance(kind, type) and issubclass(kind, BaseModel) else []


@pytest.mark.parametrize("path", PAGES + COMMENTED, ids=name_of)
def test_keys_of_a_recipe_are_in_its_schema(path):
    known = keys(Recipe) | keys(Manifest)
    sections = "|".join(name for name in Recipe.model_fields if any(key.startswith(f"{name}.") for key in known))
    text = path.read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{sections})\.[a-z_.]+[a-z])(?:[:= ][^`]*)?`", text) if path.suffix == ".md" else []
    named += re.findall(rf"--(?:set|search) ((?:{sections})\.[a-z_.]+)=", text)
    assert [key for key in named if key not in known and not key.endswith((".py", ".json", ".gguf"))] == []


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_a_benchmark_shows_its_usage(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code in (0, None) and "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted(set(BENCHMARKS.glob("*.py")) - set(SCRIPTS)), ids=name_of)
def test_a_module_of_the_benchmarks_imports(path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    assert runpy.run_path(str(path), run_name="imported")["__doc__"], "a module begins with its docstring"


def test_the_recipes_page_lists_every_recipe():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(.+?)\]\(\.\./recipes/(.+?)\) \|.*`genre train recipes/(.+?)` \|", page, flags=re.MULTILINE)
    assert sorted(row[0] for row in rows) == sorted(path.name for path in (ROOT / "recipes").glob("*.yaml"))
    assert all(len(set(row)) == 1 for row in rows)


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 170


def test_the_notebook_holds_no_outputs_and_no_path_of_a_machine():
    path = ROOT / "docs" / "quickstart.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) >= 8 and not any(cell.outputs or cell.execution_count for cell in cells)
    text = path.read_text(encoding="utf-8")
    assert not any(folder in text for folder in ("/home/", "/tmp/", "/root/", "/work/"))
