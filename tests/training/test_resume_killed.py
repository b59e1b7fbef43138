"""kill -9 at any step, then --resume: the weights of the run that nothing interrupted, bit for bit.

The runs are processes of their own, killed for real: while they step, while they write a checkpoint, while they validate.
"""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from builders import LIKE, NEXT, RATING, recipe

TRAIN = {"epochs": 3, "dropout": 0.3, "average": 0.95, "checkpoint_every": 3}
SCRIPT = """
import sys
import torch
from pathlib import Path
import genre
from genre.training.assembly import assemble
from genre.modules.base.base import Base
from genre.training import fit
from genre.training.runtime import RandomStream
from genre.training.simultaneous import Member, fit_together

torch.set_num_threads(1)
place, resume = Path(sys.argv[1]), sys.argv[2] == "resume"
log = genre.Interactions.read(place / "log")
recipes = [genre.Recipe.read(file) for file in sorted(place.glob("*.yaml"))]
base = Base.load(recipes[0].base.name)
if len(recipes) == 1:
    fit(assemble(recipes[0], log, base), place / "run" / "0", resume=resume)
else:
    members = []
    for number, recipe in enumerate(recipes):
        folder, assembly = place / "run" / str(number), assemble(recipe, log, base, bare=True)
        begun = resume and (folder / "checkpoints" / "last.pt").is_file()
        members.append(Member(assembly, folder, RandomStream(base.device), begun))
    fit_together(members)
"""


def start(place, how):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(place), how], env=environment, stderr=subprocess.PIPE)


def finish(process):
    _, said = process.communicate()
    assert process.returncode == 0, said.decode()


def lines(place):
    file = place / "run" / "0" / "log.jsonl"
    return file.read_text().splitlines() if file.exists() else []


def end(place):
    return [torch.load(file, weights_only=True) for file in sorted(place.glob("run/*/checkpoints/last.pt"))]


@pytest.fixture
def prepared(tmp_path, tiny, log):
    def prepare(name, recipes):
        place = tmp_path / name
        log.write(place / "log")
        for number, wanted in enumerate(recipes):
            (place / f"{number}.yaml").write_text(wanted.dump())
        return place

    return prepare


@pytest.mark.slow
@pytest.mark.parametrize(
    "tasks", [[[LIKE, NEXT]], [[LIKE], [RATING], [NEXT]]], ids=["a joint run", "a group of three"]
)  # the second: several runs at once
def test_a_killed_run_ends_as_if_nothing_had_been(prepared, tiny, tasks):
    recipes = [recipe(tiny, *each, train={**TRAIN, "seed": number}) for number, each in enumerate(tasks)]
    through, cut = prepared("through", recipes), prepared("cut", recipes)
    finish(start(through, "train"))
    draw, total = np.random.default_rng(), len(lines(through))
    assert total > 30
    kills, how = 0, "train"
    for wanted in sorted(draw.integers(1, total - 2, size=3).tolist()):
        process = start(cut, how)
        while len(lines(cut)) < wanted and process.poll() is None:
            time.sleep(0.002)
        time.sleep(float(draw.random()) * 0.02)  # anywhere within a step
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        how = "resume" if end(cut) else "train"
    assert kills, "every kill came too late"
    finish(start(cut, how))
    for one, other in zip(end(through), end(cut), strict=True):
        assert one["weights"].keys() == other["weights"].keys()
        assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])
        assert all(torch.equal(one["best"][name], other["best"][name]) for name in one["best"])
        assert torch.equal(one["random"], other["random"])
        counted = ("epoch", "step", "targets", "tokens", "best_value", "best_epoch", "history")
        assert {key: one["state"][key] for key in counted} == {key: other["state"][key] for key in counted}
    steps = [line.split('"seconds"')[0] for line in lines(cut)]
    assert steps == [line.split('"seconds"')[0] for line in lines(through)]  # no step twice, none missing
    assert not list(cut.rglob(".last.pt.*"))


def test_a_run_that_is_killed_before_its_first_checkpoint_interval_can_be_resumed(prepared, tiny):
    wanted = [recipe(tiny, LIKE, train={"epochs": 50, "checkpoint_every": 100_000})]
    place = prepared("early", wanted)
    process = start(place, "train")
    while len(lines(place)) < 2 and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (payload,) = end(place)
    assert payload["state"]["step"] == 0 or payload["state"]["batch"] == 0
