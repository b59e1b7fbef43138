"""The page of runs: the figures of metrics.json, one file without scripts, light and dark; what is no run is refused."""

import json
import shutil

import pytest

from genre import cli
from genre.jobs.report.page import verdict


@pytest.fixture
def runs(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("like", "next_item"):
        shutil.copytree(trained.runs[name].root, f"runs/{name}/1")
    return tmp_path / "runs"


def test_a_page_shows_the_figures_of_its_run(runs, capsys):
    assert cli.main(["report", "runs/like/1"]) == 0
    assert capsys.readouterr().out == "wrote runs/like/1/report.html\n"
    page = (runs / "like/1/report.html").read_text()
    report = json.loads((runs / "like/1/metrics.json").read_text())
    for metric, entry in report["metrics"]["like"].items():
        low, high = entry["interval"]
        assert f"<td>{metric}</td>" in page and f"{entry['value']:.4f} [{low:.4f}, {high:.4f}]" in page
    for name, found in report["baselines"]["like"].items():
        assert name.replace("_", " ") in page and f"{found['auc']['value']:.4f}" in page
    assert page.count("<svg") == 2 and "data:image/svg+xml;base64," in page
    assert f"{report['cost']['tokens']:,}" in page and "learning_rate" in page


def test_a_page_is_one_file_for_both_themes(runs):
    assert cli.main(["report", "runs/like/1", "runs/next_item/1", "--out", "out/page.html"]) == 0
    page = (runs.parent / "out/page.html").read_text()
    assert "<h2>like</h2>" in page and "<h2>next_item</h2>" in page
    assert "<script" not in page and 'src="http' not in page and "<link" not in page
    assert "color-scheme: light dark" in page and "#475569" not in page.split("</style>")[1]  # plots take the theme's colours


def test_a_folder_of_runs_is_all_of_them_and_names_are_escaped(runs):
    shutil.copytree(runs / "like/1", "several/like")
    shutil.copytree(runs / "next_item/1", "several/next_item")
    file = runs.parent / "several/like/environment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"processor": "<script>1</script>"}))
    assert cli.main(["report", "several"]) == 0
    page = (runs.parent / "several/report.html").read_text()
    assert "<h2>next_item</h2>" in page and "&lt;script&gt;" in page and "<script" not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs"], "no finished run is there: got runs; expected a run folder with metrics.json, such as runs/like/1"),
        (["runs/like/1", "runs/next_item/1"], "several runs need a name for their page: got no --out; expected --out FILE"),
        (["runs/like/1", "--out", "page.pdf"], "--out is a page: got page.pdf; expected a name that ends in .html"),
        (["begun"], "no finished run is there: got begun, a run that has not ended"),
        (["damaged"], "damaged/metrics.json cannot be read: got Expecting value"),
    ],
)
def test_what_is_no_run_is_refused_in_a_line(arguments, message, runs, capsys):
    shutil.copytree(runs / "like/1", "begun", ignore=shutil.ignore_patterns("metrics.json"))
    shutil.copytree(runs / "like/1", "damaged")
    (runs.parent / "damaged/metrics.json").write_text("")
    assert cli.main(["report", *arguments]) == 2
    assert message in capsys.readouterr().err


def entry(value, low, high):
    return {"value": value, "interval": [low, high], "n": 10}


@pytest.mark.parametrize(
    ("metric", "baselines", "said"),
    [
        ("auc", {}, "auc is 0.8000 [0.7500, 0.8500]."),
        (
            "auc",
            {"item_mean": entry(0.6, 0.5, 0.7), "additive": entry(0.65, 0.6, 0.7)},
            "auc is 0.8000 [0.7500, 0.8500], better than the best baseline, additive: 0.6500 [0.6000, 0.7000]. "
            "The intervals lie apart.",
        ),
        (
            "rmse",
            {"item_mean": entry(0.78, 0.7, 0.9), "additive": entry(0.9, 0.8, 1.0)},
            "rmse is 0.8000 [0.7500, 0.8500], not better than the best baseline, item mean: 0.7800 [0.7000, 0.9000]. "
            "The intervals overlap: genre compare tests the difference user by user.",
        ),
    ],
)
def test_the_verdict(metric, baselines, said):
    assert verdict(metric, {"adapter": entry(0.8, 0.75, 0.85)} | baselines) == said
