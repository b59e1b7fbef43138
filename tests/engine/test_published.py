"""A registry that an earlier release published loads, verifies and scores as it did."""

import json
import shutil

import pytest
import yaml

import genre
from standins import ROOT

PUBLISHED = ROOT / "tests" / "fixtures" / "published"
ROWS = [json.loads(line) for line in (PUBLISHED / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
NAMES = sorted(path.name for path in (PUBLISHED / "registry").iterdir())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A copy, so that nothing is written beside the fixture; bases are named relative to it."""
    folder = tmp_path_factory.mktemp("published") / "copy"
    shutil.copytree(PUBLISHED, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def answers(place):
    registry = genre.Registry("registry")
    found = {}
    for name in ("llama", "bert"):
        with genre.Engine(genre.Base.load(name), registry) as engine:
            rows = [row["request"] for row in ROWS if row["base"] == name]
            for row, response in zip(rows, engine.score([genre.Request(**row) for row in rows]), strict=True):
                found[row["id"]] = response
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["request"]["id"])
def test_it_scores_as_it_did(answers, row):
    got, expected = answers[row["request"]["id"]], row["response"]
    assert got.error is None and got.digest == expected["digest"]
    for one, other in zip(got.results, expected["results"], strict=True):
        key = "item_id" if "item_id" in other else "text_id"
        assert getattr(one, key) == other[key]
        assert one.score == pytest.approx(other["score"], abs=1e-6, rel=1e-6)
        assert getattr(one, "classes", None) == (other.get("classes") and pytest.approx(other["classes"], abs=1e-6, rel=1e-6))


def test_it_verifies(place):
    assert genre.Registry("registry").verify() == []


@pytest.mark.parametrize("name", NAMES)
def test_its_stored_recipes_mean_what_they_say(place, name):
    """Read again and written out, a stored recipe holds every key that it had, with the same value."""
    for file in (place / "registry" / name).glob("*/recipe.yaml"):
        stored = yaml.safe_load(file.read_text(encoding="utf-8"))
        resolved = yaml.safe_load(genre.Recipe.read(file).dump())
        assert_within(stored, resolved)


def assert_within(stored, resolved, path=""):
    if isinstance(stored, dict):
        assert isinstance(resolved, dict), path
        for key, value in stored.items():
            assert key in resolved, f"{path}{key}"
            assert_within(value, resolved[key], f"{path}{key}.")
    elif isinstance(stored, list):
        assert len(stored) == len(resolved), path
        for one, other in zip(stored, resolved, strict=True):
            assert_within(one, other, path)
    else:
        assert stored == resolved, path


def test_its_data_sets_are_read(place):
    assert len(genre.Interactions.read("log")) == 24 * 12 and len(genre.Texts.read("texts")) == 120
