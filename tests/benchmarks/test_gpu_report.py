"""`make gpu` on a CPU, with a tiny model: every part runs, and a part that fails or is stopped leaves the others alone."""

import json
import subprocess
import sys

import pytest

from standins import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu.py"


def run(*words, code=0):
    done = subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.slow  # seven processes that import torch, PEFT and transformers each
@pytest.mark.timeout(2400)
def test_every_part_runs_on_a_cpu(tmp_path):
    run("--device", "cpu", "--out", tmp_path)
    report, text = json.loads((tmp_path / "report.json").read_text()), (tmp_path / "report.md").read_text()
    assert {name: part["state"] for name, part in report["parts"].items()} == dict.fromkeys(report["parts"], "done")
    assert len(report["parts"]) == 7 and "skipped" in report["parts"]["tests"]["result"]["summary"]
    for kind in ("plain", "int8", "nf4"):
        training, serving = (report["parts"][f"{what} {kind}"]["result"] for what in ("training", "serving"))
        assert training["adapter"]["tokens_per_second"] > 0 and ("full" in training) == (kind == "plain")
        differ = serving["products"]["relative_difference_to_peft"]
        assert max(differ.values()) < (1e-4 if kind == "plain" else 0.05) and serving["service"]["failed"] == []
        for each in (training["adapter"], serving["service"]):
            assert 0.5 < each["planned_bytes"] / each["used_bytes"] < 2  # of a model of kilobytes
    assert "| plain, full |" in text and "## " not in text


@pytest.mark.slow  # two processes that import torch, PEFT and transformers
def test_a_part_that_fails_says_why(tmp_path):
    (tmp_path / "base").mkdir()
    run("--device", "cpu", "--out", tmp_path, "--base", tmp_path / "base", "--only", "training nf4")
    part = json.loads((tmp_path / "report.json").read_text())["parts"]["training nf4"]
    assert part["state"] == "failed" and "cannot be read" in part["error"][-1]
    assert "## training nf4 failed" in (tmp_path / "report.md").read_text()
