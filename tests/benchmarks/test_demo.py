"""The demo's example: one user, films by three adapters, and a sentence on why their orders differ."""

import sys

import pytest

from genre import Base, Engine
from standins import ROOT, movies


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import demo

    yield demo
    for name in ("demo", "report"):
        sys.modules.pop(name, None)


def test_the_example_has_probabilities_stars_and_the_difference_in_words(demo, trained, monkeypatch):
    films = movies()
    monkeypatch.setattr(demo, "USER", "196")
    with Engine(Base.load(str(trained.base)), trained.registry, data=films) as engine:
        shown = demo.recommend(engine, films)
    assert shown["events"] == 20 and len(shown["recommended"]) == 10
    for row in shown["recommended"]:
        assert 0 < row["probability"] < 1 and 0 < row["like"] < 1 and 1 <= row["rating"] <= 5
    shares = [row["probability"] for row in shown["recommended"]]
    assert shares == sorted(shares, reverse=True) and sum(shares) < 1
    assert "next one that this user rates" in shown["explanation"]
