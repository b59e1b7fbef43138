"""What bfloat16 costs on ML-100K, paired by user: a version computed in both precisions, and one trained in each."""

from pathlib import Path

import pytest

import genre
from genre.jobs.compare import compare
from genre.jobs.loading import load_base, open_base, open_log
from genre.jobs.predictions import from_run, from_version

RECIPES = Path(__file__).parents[2] / "recipes"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]  # two trainings and four passes over all histories of ML-100K


def test_neither_serving_nor_training_in_bfloat16_loses_a_thousandth_of_auc(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log, registry, runs = open_log("ml-100k"), genre.Registry("registry"), {}
    for precision in ("float32", "bfloat16"):
        changes = [f"base.precision={precision}", "data.limit=6000", "train.epochs=1", "train.tracker=none", f"name={precision}"]
        recipe = genre.Recipe.read(RECIPES / "like.yaml", changes)
        runs[precision] = genre.train(recipe, log=log, base=open_base(recipe.base), registry=registry, baselines="none")
    registry.publish(runs["float32"], alias="production")
    (trained,) = compare(*(from_run(runs[each].root)["like"] for each in ("bfloat16", "float32")), metrics=["auc"])
    manifest, served = runs["float32"].manifest, []
    for precision in ("bfloat16", "float32"):
        base = load_base(manifest, precision=precision)
        served.append(from_version(registry, "float32@production", log, base, part="test")["like"])
    (computed,) = compare(*served, metrics=["auc"])
    print(trained, computed)
    assert abs(computed.difference) <= 0.001 and trained.difference >= -0.001
