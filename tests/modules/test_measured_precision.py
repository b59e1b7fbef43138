"""The faster precision of a machine: measured once, kept under what it depends on, recorded by what computes in it."""

import json
import logging

import pytest
import torch

import genre
from builders import LIKE, QUICK, recipe
from fakes import planted_log
from genre.errors import InputError
from genre.jobs.compare import compare
from genre.jobs.evaluate import evaluate
from genre.jobs.loading import load_base, open_base
from genre.jobs.memory import this_device
from genre.jobs.predictions import from_version
from genre.modules.base import precision
from genre.modules.base.precision import ROWS, Precision, bfloat16_instructions, kept_measurement, measured

NATIVE = bool(bfloat16_instructions())
needs_native = pytest.mark.skipif(not NATIVE, reason="the processor has no instructions for bfloat16, so nothing is measured")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "precision"


def keep(cache, *gains, onednn=1.0):
    """A measurement of this machine as the library writes it, with other figures."""
    file, machine = precision._memo()
    file.parent.mkdir(parents=True, exist_ok=True)
    own = dict(zip(map(str, ROWS), gains, strict=True))
    ways = {"onednn": dict.fromkeys(own, onednn), "bfloat16": own}
    file.write_text(json.dumps({"machine": machine, "gains": {way: ways[way] for way in precision._ways()}}))
    assert file.parent == cache
    return file


def unmeasured(monkeypatch):
    monkeypatch.setattr(precision, "_measure", lambda: pytest.fail("it was measured again"))


@needs_native
def test_a_machine_measures_once_and_says_why(cache, monkeypatch):
    assert kept_measurement() is None
    found = measured("cpu")
    assert tuple(found.gains) == ROWS and all(gain > 0 for gain in found.gains.values())
    assert len(list(cache.glob("*.json"))) == 1
    unmeasured(monkeypatch)
    assert measured("cpu") == found and kept_measurement() == str(found)
    assert "times as fast as float32's on this processor" in found.why


def test_the_device_that_is_named_decides(cache, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("GENRE_DEVICE", "cpu")
    assert measured() == measured("cpu") and this_device() == "cpu"
    monkeypatch.setenv("GENRE_DEVICE", "auto")
    assert this_device() == "cuda"


@needs_native
def test_what_is_not_kept_leaves_no_file(cache):
    measured("cpu", keep=False)
    assert not cache.exists()


@needs_native
@pytest.mark.parametrize(
    ("gains", "name"),
    [((1.2, 3.0, 4.0), "bfloat16"), ((0.5, 0.9, 1.0), "float32"), ((0.6, 2.0, 4.0), "bfloat16"), ((1.05, 1.1, 1.1), "float32")],
)
def test_bfloat16_has_to_gain_something(cache, monkeypatch, gains, name):
    keep(cache, *gains)
    unmeasured(monkeypatch)
    found = measured("cpu")
    assert found.name == name and found.dtype == getattr(torch, name)
    assert f"{min(gains):.2g} to {max(gains):.2g} times" in found.why


@needs_native
def test_bfloat16_has_to_beat_the_faster_library_of_float32(cache):
    keep(cache, 2.0, 2.0, 2.0, onednn=1.7)
    assert measured("cpu").name == "bfloat16"
    keep(cache, 2.0, 2.0, 2.0, onednn=1.9)
    assert measured("cpu").name == "float32"


def test_without_instructions_for_it_nothing_is_measured(cache, monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_instructions", list)
    unmeasured(monkeypatch)
    assert measured("cpu") == Precision("float32", "the processor has no instructions for bfloat16", {})
    assert kept_measurement() == "float32: the processor has no instructions for bfloat16"


@needs_native
@pytest.mark.parametrize(
    "damage", ["", "{}", "[1]", '{"machine": 0, "gains": {}}', "foreign", "nan", "negative", "words", "lacks"]
)
def test_a_damaged_or_foreign_file_is_measured_anew(cache, monkeypatch, caplog, damage):
    file = keep(cache, 1.0, 1.0, 1.0)
    held = json.loads(file.read_text())
    others = {"nan": {"4": float("nan")}, "negative": {"4": -2.0}, "words": {"4": "fast"}}
    if damage in others:
        held["gains"]["bfloat16"] |= others[damage]
    elif damage == "lacks":
        del held["gains"]["bfloat16"]["4"]
    elif damage == "foreign":
        held["machine"]["processor"] = "another"
    file.write_text(json.dumps(held) if damage in (*others, "lacks", "foreign") else damage)
    monkeypatch.setattr(precision, "SECONDS", 0.0)
    with caplog.at_level(logging.WARNING):
        found = measured("cpu")
    assert "is damaged: the precision is measured again" in caplog.text and tuple(found.gains) == ROWS
    unmeasured(monkeypatch)
    assert measured("cpu") == found


@needs_native
def test_another_switch_of_the_kernels_is_another_measurement(cache, monkeypatch):
    keep(cache, 2.0, 2.0, 2.0)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert kept_measurement() is None


@needs_native
def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GENRE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(precision, "SECONDS", 0.0)
    with caplog.at_level(logging.WARNING):
        assert tuple(measured("cpu").gains) == ROWS
    assert "cannot be written" in caplog.text


@needs_native
def test_a_run_settles_on_one_precision_and_records_it(tiny, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    little = planted_log(users=24, items=16, events=12)
    registry = genre.Registry("registry")
    raw = recipe(tiny, LIKE, train=QUICK).model_dump(mode="json")
    asked = genre.Recipe.parse(raw | {"base": raw["base"] | {"precision": "measured"}})
    keep(cache, 2.0, 2.0, 2.0)
    run = genre.train(asked, log=little, registry=registry, baselines="none")
    assert genre.Recipe.read(run.root / "recipe.yaml").base.precision == "bfloat16"
    assert json.loads((run.root / "environment.json").read_text())["faster_precision"].startswith("bfloat16: ")
    assert run.manifest.notes["precision"] == "bfloat16"
    keep(cache, 0.5, 0.5, 0.5)
    assert open_base(asked.base).precision == "float32"
    with pytest.raises(InputError, match=r"base\.precision differs"):
        genre.train(asked, log=little, registry=registry, folder=run.root, resume=True)


def test_a_version_orders_as_before_up_to_a_few_pairs(trained, base):
    """Trained in float32, computed in both: the paired difference of the AUC over users, of a few thousand pairs."""
    half = load_base(trained.registry.resolve("like@production").manifest, base.name, precision="bfloat16")
    found = [from_version(trained.registry, "like@production", trained.log, each, part="test")["like"] for each in (half, base)]
    (auc,) = compare(*found, metrics=["auc"])
    assert half.precision == "bfloat16" and abs(auc.difference) <= 0.003
    assert evaluate(trained.registry, "like@production", trained.log, half, baselines="none")["precision"] == "bfloat16"


def test_a_quantized_base_has_its_own_precision(trained):
    manifest = trained.registry.resolve("like@production").manifest
    with pytest.raises(InputError, match="a quantized base has its own precision: got bfloat16 with int8"):
        load_base(manifest, quantization="int8", precision="bfloat16")
