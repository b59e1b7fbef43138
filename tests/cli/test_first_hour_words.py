"""What a newcomer types in the first hour and what the program answers: one line that says what to do."""

import json
import re
import shutil

import numpy as np
import polars as pl
import pytest

from builders import LIKE, recipe
from genre import cli
from genre.data.catalogue import Catalogue, Titles
from genre.errors import InputError
from genre.registry import Registry


@pytest.fixture
def place(tmp_path, monkeypatch, trained, log):
    monkeypatch.chdir(tmp_path)
    log.write("shop")
    shutil.copytree(trained.registry.url, "registry")
    (tmp_path / "like.yaml").write_text(recipe(trained.base, LIKE, data={"path": "shop"}, train={"epochs": 1}).dump())
    return tmp_path


@pytest.fixture
def said(place, capsys):
    def run(*arguments, code):
        assert cli.main([str(argument) for argument in arguments]) == code
        shown = capsys.readouterr()
        lines = [line.removeprefix("genre: ") for line in shown.err.splitlines() if line.startswith("genre: ")]
        assert len(lines) == (1 if code else 0)
        return shown.out + "".join(lines)

    return run


def test_an_unknown_user_names_nobody_else(said, trained, log):
    line = said("recommend", "like", "--data", "shop", "--base", trained.base, "--user", "nobody", code=2)
    assert "unknown user: got 'nobody'; expected one of the 60 users of the log" in line
    assert not any(f" {user}" in line for user in log.user_ids)


def test_explain_takes_a_title(said, trained, log):
    title = log.catalogue.titles()[3]
    common = ["like", "--data", "shop", "--base", trained.base, "--user", "u1", "--item"]
    by_id = said("explain", *common, log.catalogue.item_ids[3], code=0)
    assert said("explain", *common, title.upper(), code=0) == by_id and title in by_id
    assert "no item has this title: got 'nothing'" in said("explain", *common, "nothing", code=2)


def test_a_ranking_is_shown_by_chances_and_its_logits_stay_in_the_json(said, place, trained, log):
    common = ["next_item", "--data", "shop", "--base", trained.base, "--user", "u1"]
    shown = said("recommend", *common, "-k", len(log.catalogue), "--json", "u1.json", code=0)
    chances = [float(found) for found in re.findall(r"(\d+\.\d+) %", shown)]
    scores = [item["score"] for item in json.loads((place / "u1.json").read_text())["results"]]
    weights = np.exp(np.array(scores) - max(scores))
    assert "chance to be next" in shown and len(chances) == len(scores)
    np.testing.assert_allclose(chances, 100 * weights / weights.sum(), atol=0.06)
    assert "the history multiplies this item's weight among all items by" in said("explain", *common, "--item", "i1", code=0)
    common[0] = "like"
    assert "chance to be next" not in said("recommend", *common, code=0)
    assert "weight" not in said("explain", *common, "--item", "i1", code=0)


def test_promoting_what_is_there_already_moves_nothing(said):
    before = Registry("registry").history("like")
    version = Registry("registry").aliases("like")["production"]
    assert said("registry", "promote", "like@production", code=0).strip() == (
        f"like@production names {version} already; nothing was moved"
    )
    assert Registry("registry").history("like") == before
    assert "misses the floor" in said("registry", "promote", "like@production", "--floor", "auc=2", code=2)
    assert f"like@best: nothing → {version}" in said("registry", "promote", "like", "best", code=0)


def test_a_damaged_alias_names_its_repair(said, place):
    registry = Registry("registry")
    registry.promote("like", "best")
    newest = max((place / "registry/like/aliases").glob("*.json"), key=lambda path: int(path.stem))
    for content in ("{", "{}", newest.read_text().replace("best", "rest")):
        newest.write_text(content)
        line = said("registry", "show", "like", code=2)
        assert f"restore registry/like/aliases/{newest.name} from a copy; if it is the newest of its folder, removing it" in line
    newest.unlink()
    assert "best" not in registry.aliases("like") and said("registry", "show", "like", code=0)


def test_failed_rows_are_counted_and_strict_fails(said, place, trained):
    good = {"adapter": "like", "history": [], "candidates": ["i1"]}
    rows = [good, {**good, "candidates": ["nope"]}, good]
    (place / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["score", "--input", "in.jsonl", "--data", "shop", "--base", trained.base, "--output"]
    assert "3 rows in out.jsonl, 1 of them errors" in said(*common, "out.jsonl", code=0)
    line = said(*common, "again.jsonl", "--strict", code=1)
    assert "1 of 3 rows failed: their lines in the output say why" in line
    assert (place / "again.jsonl").read_text() == (place / "out.jsonl").read_text()
    (place / "in.jsonl").write_text(json.dumps(good) + "\n")
    assert "0 of them errors" in said(*common, "fine.jsonl", "--strict", code=0)


def test_an_empty_registry_is_no_error_of_the_first_run(said, place):
    assert "no adapter 'like': got the registry at empty, which is not there yet; genre train publishes into it" in said(
        "registry", "show", "like", "--registry", "empty", code=2
    )


TITLES = [
    "Matrix, The (1999)",
    "Matrix Reloaded, The (2003)",
    "Escape from L.A. (1996)",
    "L'Atalante (1934)",
    "Bug's Life, A (1998)",
]
TITLES += ["Solaris (1972)", "Solaris (2002)", "Avventura, L' (1960)", "Heat (1995)"]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("The Matrix", "Matrix, The (1999)"),
        ("the matrix (1999)", "Matrix, The (1999)"),
        ("Matrix, The", "Matrix, The (1999)"),
        ("matrix, the (1999)", "Matrix, The (1999)"),
        ("The Matrix Reloaded", "Matrix Reloaded, The (2003)"),
        ("A Bug's Life", "Bug's Life, A (1998)"),
        ("L'avventura", "Avventura, L' (1960)"),
        ("Heat", "Heat (1995)"),
        ("Solaris (2002)", "Solaris (2002)"),
        ("atalante", "L'Atalante (1934)"),
    ],
)
def test_titles_are_found_as_people_say_them(text, title):
    titles = Titles(Catalogue(pl.DataFrame({"item_id": [f"f{n}" for n in range(len(TITLES))], "title": TITLES})))
    assert titles.of(titles.find(text)) == title
    with pytest.raises(InputError, match="several items have this title"):
        titles.find("Solaris")
