"""Merge, refresh and the service on the device, beside the same on the CPU: figures equal within 1e-5, no mix of devices."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from serving_fakes import ADMIN, TOKEN, add_version, copy_of, serving

import genre
import simulated
from builders import LIKE, recipe
from genre.engine import Engine
from genre.engine.versions import read_adapter
from genre.jobs.merge.gate import MergeOptions
from genre.jobs.merge.job import merge_versions
from genre.jobs.merge.methods import merge
from genre.jobs.refresh.job import refresh
from genre.modules.base.base import Base

DEVICES = ("cpu", "sim")
OLD = 12_000  # half of the planted log's time
REFS = ["like@production", "next_item@production", "rating@production"]
ROWS = [
    {"adapter": "like@production", "user_id": "u3", "candidates": ["i0", "i7", {"title": "war 99"}]},
    {"adapter": "next_item@production", "user_id": "u4", "k": 5},
    {"adapter": "rating@production", "candidates": ["i2"], "history": [{"item_id": "i1", "rating": 5}]},
    {"adapter": "like@production", "history": [], "user": {"age": 20}, "candidates": ["i2", "i3"]},
]


def numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a report, with its place in it."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from numbers(each, f"{place}.{key}")
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from numbers(each, f"{place}.{index}")
    elif isinstance(value, int | float):
        yield place, float(value)


def assert_close(there: Any, plain: Any) -> None:
    """The numbers of two reports are equal within 1e-5."""
    found, expected = dict(numbers(there)), dict(numbers(plain))
    assert found and found == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.slow  # imports PEFT
def test_the_draws_of_a_merge_seed_no_device() -> None:
    module = torch.get_device_module("sim")
    updates = [{"a": (torch.ones(2, 3), torch.full((3, 2), float(seed)), 1.0)} for seed in (1, 2)]
    before = torch.get_rng_state(), module.get_rng_state()
    assert merge(updates, (0.5, 0.5), method="dare_ties")
    assert torch.equal(torch.get_rng_state(), before[0]) and torch.equal(module.get_rng_state(), before[1])


@pytest.mark.slow  # three trained adapters, and jobs on a device whose operators go through Python
@pytest.mark.parametrize("options", [MergeOptions("both", floor=0.0), MergeOptions("both", "dare_ties", (0.7, 0.6), floor=0.0)])
def test_a_merge_is_the_cpus(trained, on_device, tmp_path: Path, options: MergeOptions) -> None:
    reports, updates = {}, {}
    for device in DEVICES:
        registry, base = copy_of(trained.registry, tmp_path / device), on_device(device)
        with simulated.watching() as seen:
            reports[device] = merge_versions(registry, ["like", "rating"], options, trained.log, base=base).report
        assert bool(seen.waits) == (device == "sim")
        updates[device] = read_adapter(registry, "both", base).low
        assert base.occupied_by is None and registry.verify() == []
    for name, (a, b, scale) in updates["cpu"].items():
        found = updates["sim"][name]
        assert torch.equal(found[0].cpu(), a) and torch.equal(found[1].cpu(), b) and found[2] == scale
    for part in ("gate", "transfer"):
        assert_close(reports["sim"][part], reports["cpu"][part])


@pytest.fixture(scope="module")
def shop(tiny, log, tmp_path_factory) -> genre.Registry:
    """A registry whose `like` was trained on the first half."""
    folder, base = tmp_path_factory.mktemp("shop"), Base.load(str(tiny), device="cpu", dtype=torch.float32)
    registry = genre.Registry(folder / "registry")
    old = changed(log, log.frame.filter(pl.col("timestamp") < OLD))
    run = genre.train(recipe(tiny, LIKE), log=old, base=base, registry=registry, folder=folder / "run", baselines="none")
    registry.publish(run, alias="production")
    return registry


def changed(log: genre.Interactions, frame: pl.DataFrame) -> genre.Interactions:
    """The log with other events."""
    return genre.Interactions.from_frame(frame.drop("row"), items=log.catalogue.frame, users=log.users, name="planted")


@pytest.mark.slow  # training on a device whose operators go through Python
@pytest.mark.parametrize("decision", ["promoted", "kept"])
def test_a_refresh_and_its_gate_are_the_cpus(shop, log, on_device, tmp_path: Path, decision: str) -> None:
    data = log
    if decision == "kept":  # what is new says the opposite of what was before
        turned = pl.when(pl.col("timestamp") >= OLD).then(6 - pl.col("rating")).otherwise(pl.col("rating"))
        tested = pl.when(pl.col("timestamp") >= 20_000).then(pl.col("rating")).otherwise(turned)
        data = changed(log, log.frame.with_columns(tested.alias("rating")))
    reports = {}
    for device in DEVICES:
        registry, base = copy_of(shop, tmp_path / f"registry-{device}"), on_device(device)
        with simulated.random_of_the_cpu(), simulated.watching() as seen:
            done = refresh(registry, "like@production", data, base=base, folder=tmp_path / device)
        assert bool(seen.waits) == (device == "sim")
        reports[device] = done.report
        moved = registry.resolve("like@production").digest == done.version.digest
        assert moved == (decision == "promoted") and base.occupied_by is None and registry.verify() == []
    for report in reports.values():
        assert report["decision"] == decision, report["compared"]
    for part in ("data", "tasks", "metrics"):
        assert_close(reports["sim"][part], reports["cpu"][part])


def answers(client: Any, path: str) -> list[dict[str, Any]]:
    """The service's answers to `ROWS`, of which none has failed."""
    found = client.post(path, json={"requests": ROWS}).json()["responses"]
    assert not [row for row in found if "error" in row], found
    return found


@pytest.mark.slow  # three trained adapters, two services
def test_the_service_answers_as_on_the_cpu_and_after_a_swap(trained, on_device, tmp_path: Path) -> None:
    shared = copy_of(trained.registry, tmp_path / "shared")
    second = add_version(shared, trained, on_device("cpu"), tmp_path / "second", LIKE, seed=1)
    shared.promote(second, "candidate")
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for device in DEVICES:
        registry = genre.Registry(shutil.copytree(shared.url, tmp_path / device))
        engine = Engine(on_device(device), registry, lanes=4, data=trained.log)
        with engine, serving(engine, REFS, token=TOKEN, follow_s=0) as (_, client), simulated.watching() as seen:
            asked = [answers(client, path) for path in ("/v1/score", "/v1/recommend", "/v1/score")]  # then with kept histories
            swapped = client.post("/v1/admin/promote", json={"ref": "like@candidate"}, headers=ADMIN)
            assert swapped.json()["serving"]["like@production"] == second.digest
            found[device] = asked + [answers(client, path) for path in ("/v1/score", "/v1/recommend")]
        assert bool(seen.waits) == (device == "sim")
        before, after = found[device][0][0], found[device][3][0]
        assert after["digest"] == second.digest != before["digest"]
        assert dict(numbers(after["results"])) != pytest.approx(dict(numbers(before["results"])), rel=1e-3)
    for plain, there in zip(found["cpu"], found["sim"], strict=True):
        for one, other in zip(plain, there, strict=True):
            assert one["digest"] == other["digest"]
            scores = [{str(item["item_id"]): item["score"] for item in row["results"]} for row in (one, other)]
            assert scores[0] and scores[1] == pytest.approx(scores[0], rel=1e-5, abs=1e-5)
