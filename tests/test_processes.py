"""Two real processes over gloo give what one process gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from builders import LIKE, NEXT, recipe
from fakes import planted_log
from standins import ROOT

pytestmark = pytest.mark.slow  # each launch imports torch twice, beside a launcher of its own

ALONE = [sys.executable, "-m", "genre"]
PAIR = [
    sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file",
    str(ROOT / "recipes" / "accelerate" / "cpu.yaml"), "-m", "genre",
]  # fmt: skip


@pytest.fixture
def place(tmp_path, tiny):
    planted_log(users=40).write(tmp_path / "planted")
    exact = {"epochs": 2, "batch_tokens": 512, "dropout": 0.0, "tracker": "none"}
    wanted = recipe(tiny, LIKE, NEXT, train=exact, encoder={"dropout": 0.0, "use": "fit"}, data={"path": "planted"})
    (tmp_path / "both.yaml").write_text(wanted.dump(), encoding="utf-8")
    return tmp_path


def train(place: Path, command: list[str], out: str, *more: str) -> subprocess.CompletedProcess[str]:
    told = ["train", "both.yaml", "--registry", f"registry-{out}", "--out", out, "--json", f"{out}.json", *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *told], cwd=place, env=environment, capture_output=True, text=True, timeout=240)


def steps(place: Path, out: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (place / out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "loss" in line]


def test_two_processes_take_the_steps_of_one(place):
    for command, out in ((ALONE, "one"), (PAIR, "two")):
        done = train(place, command, out)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("published like") == 1  # by the first process alone
    one, two = steps(place, "one"), steps(place, "two")
    assert len(one) == len(two) > 4
    for alone, pair in zip(one, two, strict=True):  # no row twice, none dropped: the same mean over the same targets
        assert pair["step"] == alone["step"] and pair["loss"] == pytest.approx(alone["loss"], rel=1e-3)
    ours, theirs = (json.loads((place / f"{out}.json").read_text())["metrics"] for out in ("one", "two"))
    for task, figures in ours.items():
        for name, figure in figures.items():
            assert theirs[task][name]["value"] == pytest.approx(figure["value"], abs=0.02)


def test_an_error_ends_both_with_one_line(place):
    done = train(place, PAIR, "two", "--set", "data.path=nowhere")
    assert done.returncode != 0 and "no data set folder: got nowhere" in done.stderr
    assert not (place / "two" / "checkpoints").exists()
