"""`make gpu` on a CPU, with a tiny model: every part runs, and a part that fails or is stopped leaves the others alone."""

import json
import os
import subprocess
import sys

import pytest
import torch

from standins import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402

SCRIPT = ROOT / "benchmarks" / "gpu.py"


def run(*words, code=0, **variables):
    command = [sys.executable, SCRIPT, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | variables)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.mark.slow  # nine processes, of which eight import torch, PEFT and transformers
@pytest.mark.timeout(2400)
def test_every_part_runs_on_a_cpu(tmp_path):
    run("--device", "cpu", "--out", tmp_path)
    report, text = json.loads((tmp_path / "report.json").read_text()), (tmp_path / "report.md").read_text()
    assert {name: part["state"] for name, part in report["parts"].items()} == dict.fromkeys(gpu.LIMITS, "done")
    assert "skipped" in report["parts"]["tests"]["result"]["summary"]
    for kind in ("plain", "int8", "nf4"):
        training, serving = (report["parts"][f"{what} {kind}"]["result"] for what in ("training", "serving"))
        assert training["adapter"]["tokens_per_second"] > 0 and ("full" in training) == (kind == "plain")
        differ = [
            each["relative_difference_to_peft"] for name, each in serving["products"].items() if name in ("chosen", "gathered")
        ]
        assert max(differ) < (1e-4 if kind == "plain" else 0.05) and serving["service"]["failed"] == []
        for each in (training["adapter"], serving["service"]):
            assert 0.75 < each["planned_bytes"] / each["used_bytes"] < 1.25  # of a model of kilobytes
    assert "| plain, full |" in text and "## " not in text and "not measured" not in text


@pytest.mark.slow  # three processes that import torch, PEFT and transformers
@pytest.mark.timeout(600)
def test_a_part_that_fails_says_why_in_a_line(tmp_path):
    (tmp_path / "base").mkdir()
    run("--device", "cpu", "--out", tmp_path, "--base", tmp_path / "base", "--only", "training nf4", "serving plain", code=1)
    parts = json.loads((tmp_path / "report.json").read_text())["parts"]
    assert list(parts) == ["training nf4", "serving plain"]
    for part in parts.values():
        assert part["state"].startswith("failed: ") and "cannot be read" in part["state"] and "error" not in part
    assert "| training nf4 | failed: " in (tmp_path / "report.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_refused_in_a_line(tmp_path):
    said = run("--out", tmp_path / "gpu", code=1).stderr
    assert said.startswith(f"no CUDA device: got torch {torch.__version__}, built ") and said.count("\n") == 1
    assert not (tmp_path / "gpu").exists()


def test_parts_that_the_time_does_not_reach_are_left_out_and_what_was_found_stays(tmp_path, monkeypatch):
    """A part that is stopped keeps its figures; with too little time left none begins."""
    fast = tmp_path / "gpu_parts.py"
    fast.write_text('import json, sys, time\nopen(sys.argv[-1], "w").write(json.dumps({"adapter": 1}))\ntime.sleep(60)\n')
    monkeypatch.setattr(gpu, "HERE", tmp_path)
    monkeypatch.setattr(gpu, "LEAST", 1)
    stopped = gpu.run_part("training plain", 2.0, tmp_path, "cpu", tmp_path)
    late = gpu.run_part("serving plain", 0.5, tmp_path, "cpu", tmp_path)
    assert stopped["state"] == "stopped after 2 s" and stopped["result"] == {"adapter": 1}
    assert late == {"state": "left out: the time was up", "seconds": 0.0}


def test_the_report_has_a_line_for_what_could_not_be_measured():
    part = {"state": "done", "seconds": 1.0}
    training = {"adapter": {"tokens_per_second": 10.0, "loss": 1.0, "used_bytes": 2**20, "planned_bytes": 2**21}}
    training |= {"full": {"planned_bytes": 2**30, "why_not": "out of memory"}}
    products = {"peft": {"seconds": 0.4}, "chosen": {"seconds": 0.1, "relative_difference_to_peft": 1e-6}}
    serving = {"products": products | {"in groups": {"why_not": "no such product"}}}
    parts = {"training plain": part | {"result": training}, "serving plain": part | {"result": serving}}
    parts |= {"tests": {"state": "failed: 1 failed", "seconds": 3.0, "error": ["E  wrong"], "result": {"summary": "1 failed"}}}
    text = gpu.markdown({"device": {"name": "GPU", "torch": "2"}, "parts": parts})
    assert "| plain, adapter | 10 | – | 1.0 | 2.0 | 2.00 |" in text and "| plain, full | not measured: out of memory | " in text
    assert (
        "| plain, chosen | 0.1000 | 4.00 | 1.0e-06 |" in text and "| plain, in groups | not measured: no such product |" in text
    )
    assert "## tests failed" in text and "| service |" not in text
