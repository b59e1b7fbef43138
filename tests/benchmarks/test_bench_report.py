"""The benchmarks' page and summaries: missed aims and indistinguishable methods are marked, under their command."""

import json
import sys

import pytest

from standins import ROOT


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bench_report

    yield bench_report
    for name in ("bench_report", "bench_tables", "readme"):
        sys.modules.pop(name, None)


def figure(value, low, high):
    return {"value": value, "interval": [low, high]}


@pytest.fixture
def out(tmp_path):
    methods = {
        "adapter": {"metrics": {"rmse": figure(0.92, 0.90, 0.94)}},
        "bias_only": {"metrics": {"rmse": figure(0.95, 0.93, 0.97)}, "adapter_better_by": {"rmse": figure(0.03, 0.02, 0.04)}},
        "trees": {"metrics": {"rmse": figure(0.925, 0.91, 0.95)}, "adapter_better_by": {"rmse": figure(0.005, -0.002, 0.01)}},
    }
    task = {"protocol": "u1", "n": 20_000, "users": 459, "methods": methods}
    (tmp_path / "baselines.json").write_text(json.dumps({"part": "test", "seeds": [0, 1], "tasks": {"rating": task}}))
    (tmp_path / "inference.json").write_text(
        json.dumps(
            {
                "ratios": {"tasks_4_shared": 2.0, "lanes_16_vs_peft_mixed": 1.3},
                "counts": {"failed": 0},
                "environment": {"processor": "Name, AVX2"},
            }
        )
    )
    note = {
        "command": "python benchmarks/peers.py",
        "commit": "c",
        "profile": "full",
        "exit_code": 1,
        "seconds": 3,
        "error": ["no"],
    }
    (tmp_path / "peers.run.json").write_text(json.dumps(note))
    (tmp_path / "other.json").write_text("{}")
    return tmp_path


def test_the_summary_shows_losses_first_and_what_is_not_distinguishable(report, out):
    page = report.write_report(out).read_text()
    short, whole = (out / "summary.md").read_text(), (out / "tables.md").read_text()
    lines = short.splitlines()
    missed = "| 16 adapters in one batch against PEFT's `adapter_names`, layers alone, tokens/s | 1.3 | at least 1.6 (missed) |"
    met = "| 4 tasks on one history, shared layers against a pass each | 2 | at least 1.8 |"
    assert lines.index(missed) < lines.index(met)
    ours = "| **0.9200 [0.9000, 0.9400]** | trees 0.9250 [0.9100, 0.9500]"
    ours += " | +0.0050 [-0.0020, +0.0100], not distinguishable"
    assert f"{ours} | 20,000 |" in lines and "bias only" not in short
    assert "Command: `python benchmarks/baselines.py`" in lines
    assert "Command: `python benchmarks/inference.py` (on Name, AVX2)" in lines
    assert "| bias only | 0.9500 [0.9300, 0.9700] | +0.0300 [+0.0200, +0.0400] |" in whole.splitlines()
    assert "seeds 0, 1" in whole and "u1; test part, 20,000 targets of 459 users" in whole
    assert "1.3 (missed)" in page and "not distinguishable" in page and "<svg" in page and "other" not in report.load(out)
    assert report.load(out)["peers"]["exit_code"] == 1


def test_nothing_measured_is_an_empty_page(report, tmp_path):
    assert "Commands" in report.write_report(tmp_path).read_text()
    assert not (tmp_path / "summary.md").read_text().strip()


def test_a_benchmark_that_ran_again_takes_its_own_tables_place(report, out, monkeypatch, tmp_path):
    import readme

    page = tmp_path / "benchmarks.md"
    begin, end = readme.PLACES[".md"].begin, readme.PLACES[".md"].end
    page.write_text(f"before\n{begin}{readme.mark('inference')}\nstale\n\n{readme.mark('serving')}\nkept\n\n{end}\nafter\n")
    report.write_report(out)
    monkeypatch.setitem(readme.PLACES, ".md", readme.Place(page, begin, end))
    monkeypatch.setattr(sys, "argv", ["readme.py", str(out / "summary.md")])
    readme.main()
    text = page.read_text()
    assert "stale" not in text and "kept" in text and text.startswith("before\n") and text.endswith("after\n")
    assert list(readme.parts(text)) == ["inference", "serving", "baselines: rating beside strong baselines"]
    assert "1.3 | at least 1.6 (missed)" in readme.parts(text)["inference"]
    readme.main()
    assert page.read_text() == text


def test_a_benchmark_that_runs_by_itself_is_held_against_its_aims(report):
    (row,) = report.rows({"training": {"figures": {"ratios": {"adapter_vs_full_throughput": 1.2}}}})
    assert (row["aim"], row["met"]) == (1.25, False)
