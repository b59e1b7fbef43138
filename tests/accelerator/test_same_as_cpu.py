"""Training, evaluation and jobs on the device, beside the same on the CPU: figures equal within 1e-5."""

import json
import os
from pathlib import Path

import pytest
import torch

import genre
import simulated
from builders import LIKE, NEXT, RATING, recipe
from fakes import make_encoder_base
from genre.jobs.loading import open_data
from genre.jobs.train_several import train_together
from genre.modules.base.base import Base
from genre.recipe import Recipe
from genre.training import fit
from genre.training.assembly import assemble
from standins import ROOT, deep_base
from worlds import WORLDS, prepare_world

CLOSE = {"rel": 1e-5, "abs": 1e-5}
DROPOUT = {"train": {"dropout": 0.1}, "adapter": {"dropout": 0.1}}
KINDS = {
    "head only": {"adapter": {"kind": "head_only"}},
    "full": {"adapter": {"kind": "full"}, "train": {"epochs": 1, "learning_rate": 1e-4}},
    "checkpointed": {"train": {"epochs": 1, "checkpoint_activations": True}},
}


def figures(folder: Path) -> dict[str, list[float]]:
    """The losses and the gradients' norms of every step, and the last validation."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = {name: [line[name] for line in lines if name in line] for name in ("loss", "gradient_norm")}
    valid = [line for line in lines if any(name.startswith("valid.") for name in line)][-1]
    return found | {name: [value] for name, value in valid.items() if name.startswith("valid.") and "log_loss" in name}


def both(wanted: Recipe, data, base: str, folder: Path, depth: int | None = None) -> None:
    """Train on the CPU and on the device, and compare."""
    for device in ("cpu", "sim"):
        loaded = Base.load(base, device=device, dtype=torch.float32, depth=depth)
        with simulated.random_of_the_cpu():
            run = genre.train(wanted, log=data, base=loaded, folder=folder / device, baselines="none")
        assert run.metrics
    plain, there = (figures(folder / device) for device in ("cpu", "sim"))
    assert plain.keys() == there.keys()
    for name in plain:
        assert there[name] == pytest.approx(plain[name], **CLOSE), name


@pytest.mark.slow  # as below
def test_a_run_from_its_first_step_to_its_metrics(tiny, log, tmp_path: Path) -> None:
    both(recipe(tiny, LIKE, train={"epochs": 1, "batch_tokens": 2048}), log, str(tiny), tmp_path)


@pytest.mark.slow  # every recipe's data and tasks, twice
@pytest.mark.parametrize("name", sorted(WORLDS))
def test_every_recipe(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = ROOT / "recipes" / f"{name}.yaml"
    prepare_world(file)
    texts = Recipe.read(file).reads == "texts"
    base = make_encoder_base(tmp_path / "base", positions=256) if texts else deep_base(tmp_path / "base", layers=2)
    small = [f"base.name={base}", "train.epochs=1", "train.tracker=none", *([] if texts else ["base.depth=2"])]
    wanted = Recipe.read(file, small)
    both(wanted, open_data(wanted.data.path, wanted.reads), str(base), tmp_path / "runs", None if texts else 2)


@pytest.mark.slow  # as above
@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_adapters(name: str, tiny, log, tmp_path: Path) -> None:
    both(recipe(tiny, LIKE, NEXT, **KINDS[name]), log, str(tiny), tmp_path)


@pytest.mark.slow  # as above
def test_several_at_once(tiny, log, tmp_path: Path, on_device) -> None:
    wanted = [recipe(tiny, task, name=task["name"], train={"epochs": 1}) for task in (NEXT, LIKE, RATING)]
    for device in ("cpu", "sim"):
        base = Base.load(str(tiny), device=device, dtype=torch.float32)
        registry = genre.Registry(tmp_path / f"registry-{device}")
        with simulated.random_of_the_cpu():
            train_together(wanted, log=log, base=base, registry=registry, folder=tmp_path / device, baselines="none")
    for task in ("next_item", "like", "rating"):
        plain, there = (figures(tmp_path / device / task) for device in ("cpu", "sim"))
        for name in ("loss", "gradient_norm"):
            assert there[name] == pytest.approx(plain[name], **CLOSE), (task, name)


@pytest.mark.slow  # three runs
def test_a_resumed_run_is_the_uninterrupted_one(tiny, log, tmp_path: Path, on_device) -> None:
    """With dropout, whose numbers are the device's."""

    def made():
        torch.manual_seed(5)
        return assemble(recipe(tiny, LIKE, NEXT, **DROPOUT), log, on_device())

    def weights(fitted):
        fitted.assembly.model.release()
        return {name: value.detach().cpu() for name, value in fitted.assembly.model.trainable().items()}

    through = weights(fit(made(), tmp_path / "through"))
    for cut in (2, 9):
        with pytest.raises(Exception, match="interrupted"):
            fit(made(), tmp_path / f"cut{cut}", stop_at=cut)
        torch.get_device_module("sim").manual_seed_all(99)
        resumed = weights(fit(made(), tmp_path / f"cut{cut}", resume=True))
        assert all(torch.equal(value, through[name]) for name, value in resumed.items())
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut2" / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)


@pytest.mark.slow  # three runs
def test_bases_on_the_device_and_on_the_cpu_train_in_one_process(tiny, log, tmp_path: Path, on_device) -> None:
    """Accelerate's state is the process's; it has chosen a device once, which is nobody's business."""
    assert "ACCELERATE_TORCH_DEVICE" not in os.environ
    for number, device in enumerate(("sim", "cpu", "sim")):
        assembly = assemble(recipe(tiny, LIKE, train={"epochs": 1, "batch_tokens": 4096}), log, on_device(device))
        fitted = fit(assembly, tmp_path / str(number))
        assert {value.device.type for value in fitted.assembly.model.trainable().values()} == {device}
        assembly.model.release()
