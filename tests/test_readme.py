"""Every line of the README runs unchanged and in order on small stand-ins; only the sources of data and base are replaced."""

import json
import re
import shlex
import shutil

import pytest

from genre import cli
from genre.data.packaged import sources
from genre.modules.base import packaged, source
from standins import ROOT, deep_base, movies, prepare_from, write_events

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [line[2:].partition("  #")[0] for block in blocks("console") for line in block.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder like a newcomer's clone, as the current directory."""
    folder = tmp_path_factory.mktemp("clone")
    movies().write(folder / "prepared")
    write_events(folder / "events.csv")
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    base = deep_base(folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sources, "prepare_data", prepare_from(folder / "prepared"))
        patch.setattr(packaged, "prepare_base", lambda name, *, on_step=None: base)
        patch.setattr(source, "prepare_base", lambda name: base)
        yield folder


@pytest.fixture(scope="module")
def ran(place):
    """The output of every console line of the README."""
    import contextlib
    import io

    shown = {}
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        if program == "make":
            continue
        assert program == "genre", command
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(arguments)
        assert code == 0, (command, err.getvalue())
        shown[command] = out.getvalue()
    return shown


def test_every_group_of_commands_is_shown():
    words = {command.split()[1] for command in COMMANDS if command.startswith("genre")}
    assert {"data", "base", "recipe", "train", "evaluate", "recommend", "registry"} <= words


def test_console_lines(ran, place):
    assert "published like:" in ran["genre train recipes/like.yaml --set train.epochs=1"]
    assert re.search(r"auc .*0\.\d{4} \[", ran["genre evaluate like@production --data data/ml-100k"])
    recommended = ran["genre recommend next_item --data data/ml-100k --user 196 -k 10"]
    assert recommended.count("Battle") + recommended.count("Wedding") == 10
    (liked,) = (shown for command, shown in ran.items() if "--liked" in command)
    assert liked.count("liked: ") == 3 and "liked: Star Wars: Wedding 50 (50)" in liked and "next_item" in liked
    lines = [json.loads(line) for line in (place / "out" / "next.jsonl").read_text().splitlines()]
    assert len(lines) == 60 and all(len(line["results"]) == 10 for line in lines)
    assert "5 versions, all intact" in ran["genre registry verify"]
    assert "the recipe is fine" in ran["genre recipe check shop.yaml"]


def test_requests_are_scored(ran, place, capsys):
    (place / "requests.jsonl").write_text(blocks("json")[0], encoding="utf-8")
    arguments = ["--data", "data/ml-100k", "--input", "requests.jsonl", "--output", "out/scores.jsonl"]
    assert cli.main(["score", *arguments]) == 0
    assert "2 rows in out/scores.jsonl, 0 of them errors" in capsys.readouterr().out
    first, second = (json.loads(line) for line in (place / "out" / "scores.jsonl").read_text().splitlines())
    assert [item["item_id"] for item in first["results"]] == ["50", "181"]
    assert len(second["results"]) == 10 and "50" not in [item["item_id"] for item in second["results"]]


def test_python_block(ran, place, capsys):
    (block,) = blocks("python")
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("like@production") and second.startswith("next_item")


def test_the_written_recipe_trains_and_is_compared_with_baselines(ran):
    assert "published like:" in ran["genre train shop.yaml"]
    assert "item mean" in ran["genre evaluate like --data data/shop"]
