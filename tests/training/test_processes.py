"""Two real processes over gloo give what one process gives."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from builders import LIKE, NEXT, recipe
from fakes import planted_log
from standins import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]  # each launch imports torch twice, beside a launcher of its own

ALONE = [sys.executable, "-m", "genre"]
CONFIGS = ROOT / "recipes" / "accelerate"


def pair(config: str = "cpu", *more: str) -> list[str]:
    told = ["launch", "--config_file", str(CONFIGS / f"{config}.yaml"), *more, "-m", "genre"]
    return [sys.executable, "-m", "accelerate.commands.accelerate_cli", *told]


PAIR = pair()


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
    return subprocess.run([*command, *told], cwd=place, env=environment, capture_output=True, text=True, timeout=600)


def steps(place: Path, out: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (place / out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "loss" in line]


def test_two_processes_take_the_steps_of_one(place):
    for command, out in ((ALONE, "one"), (PAIR, "two")):
        done = train(place, command, out)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("published like") == 1  # by the first process alone
    compare(place, loss=1e-3, metric=0.02)


def compare(place: Path, *, loss: float, metric: float) -> None:
    """Two runs took the same steps: no row twice, none dropped."""
    one, two = steps(place, "one"), steps(place, "two")
    assert len(one) == len(two) > 4
    for alone, both in zip(one, two, strict=True):
        assert both["step"] == alone["step"] and both["loss"] == pytest.approx(alone["loss"], rel=loss)
    ours, theirs = (json.loads((place / f"{out}.json").read_text())["metrics"] for out in ("one", "two"))
    for task, figures in ours.items():
        for name, figure in figures.items():
            assert theirs[task][name]["value"] == pytest.approx(figure["value"], abs=metric), (task, name)


def test_a_base_spread_by_fsdp2_takes_the_steps_of_one_process(place):
    """On the CPU over gloo; seven rows in three pieces give the processes different numbers of passes to make."""
    uneven = ["--set", "train.accumulate=3", "--set", "train.batch_tokens=330", "--set", "train.checkpoint_activations=true"]
    for command, out in ((ALONE, "one"), (pair("fsdp2", "--num_processes", "2"), "two")):
        done = train(place, command, out, *uneven)
        assert done.returncode == 0, done.stderr[-2000:]
    told = re.search(r"FSDP2: a process holds ([\d,]+) of the base's ([\d,]+) numbers", done.stderr)
    assert told and done.stderr.count("FSDP2: a process holds") == 1
    held, whole = (int(number.replace(",", "")) for number in told.groups())
    assert held < 0.8 * whole  # the embedding of this little base is a third of it, and stays whole
    compare(place, loss=1e-3, metric=0.02)
    again = train(place, pair("fsdp2", "--num_processes", "2"), "two", *uneven, "--resume")
    assert again.returncode == 0, again.stderr[-2000:]


def test_an_8_bit_base_under_data_parallel_takes_the_steps_of_one_process(place):
    """bitsandbytes rounds activations in evaluation, by what else is in a batch; so the metrics are within noise only."""
    eight = ["--set", "base.quantization=int8"]
    for command, out in ((ALONE, "one"), (PAIR, "two")):
        done = train(place, command, out, *eight)
        assert done.returncode == 0, done.stderr[-2000:]
    compare(place, loss=1e-2, metric=0.05)


def test_an_error_ends_both_with_one_line(place):
    done = train(place, PAIR, "two", "--set", "data.path=nowhere")
    assert done.returncode != 0 and "no data set folder: got nowhere" in done.stderr
    assert not (place / "two" / "checkpoints").exists()
