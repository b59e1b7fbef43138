"""Two devices: a base on the second one, one spread over both, one base on each."""

import pytest
import torch

import genre
import simulated
from builders import LIKE, NEXT, publish_stirred, recipe
from genre.engine import Engine, Request
from genre.errors import BaseModelError, InputError
from genre.modules.base.base import Base
from genre.modules.base.devices import choose_device
from genre.progress import Reporter
from genre.training import Loop, fit
from genre.training.assembly import assemble

SPREAD = {
    "model.embed_tokens": "sim:0",
    "model.rotary_emb": "sim:0",
    "model.layers.0": "sim:0",
    "model.layers.1": "sim:1",
    "model.norm": "sim:1",
    "lm_head": "sim:0",
}
PLACES = {"second": {"device": "sim:1"}, "both": {"device_map": SPREAD}}
DROPOUT = {"train": {"epochs": 1, "dropout": 0.1}, "adapter": {"dropout": 0.1}}


@pytest.fixture(autouse=True)
def two():
    with simulated.devices(2):
        yield


@pytest.fixture
def load(tiny):
    return lambda **place: Base.load(str(tiny), dtype=torch.float32, **place)


def weights(fitted):
    found = {name: value.detach().cpu().clone() for name, value in fitted.assembly.model.trainable().items()}
    fitted.assembly.model.release()
    return found


@pytest.mark.parametrize("place", [pytest.param("second", marks=pytest.mark.slow), "both"])
def test_a_step_gives_what_it_gives_on_the_cpu(load, tiny, log, tmp_path, place) -> None:
    """Accelerate would choose the first device: the base, its adapter and its heads stay where they are."""
    found = []
    for options in ({"device": "cpu"}, PLACES[place]):
        torch.manual_seed(0)
        with simulated.random_of_the_cpu():
            assembly = assemble(recipe(tiny, LIKE, NEXT), log, load(**options))
            loop = Loop(assembly, tmp_path / str(len(found)), Reporter.silent())
            losses = loop.step(loop.plan(0)[0], 0.0).losses
        found.append((losses, {str(value.device) for value in loop.parameters.values()}))
        assembly.model.release()
    for name, (value, _) in found[0][0].items():
        assert found[1][0][name][0] == pytest.approx(value, rel=1e-5)
    assert found[1][1] == ({"sim:1"} if place == "second" else {"sim:0", "sim:1"})


@pytest.mark.slow  # three runs on a device whose operators go through Python
@pytest.mark.parametrize("place", PLACES)
def test_a_resumed_run_draws_what_an_uninterrupted_one_does(load, tiny, log, tmp_path, place) -> None:
    """Dropout draws on the devices: their generators are in the checkpoint."""

    def made():
        torch.manual_seed(5)
        return assemble(recipe(tiny, LIKE, **DROPOUT), log, load(**PLACES[place]))

    through = weights(fit(made(), tmp_path / "through"))
    with pytest.raises(Exception, match="interrupted"):
        fit(made(), tmp_path / "cut", stop_at=3)
    torch.get_device_module("sim").manual_seed_all(99)
    resumed = weights(fit(made(), tmp_path / "cut", resume=True))
    assert all(torch.equal(value, through[name]) for name, value in resumed.items())


@pytest.mark.slow  # five bases, four engines
def test_an_engine_on_either_and_one_on_each(load, tiny, log, tmp_path) -> None:
    plain = load(device="cpu")
    registry = genre.Registry(tmp_path / "registry")
    words = {"sequence": {"item": "text"}, "encoder": {"use": "none"}}
    for seed, name in enumerate(("one", "two")):
        publish_stirred(registry, recipe(tiny, LIKE, name=name, **words), log, plain, tmp_path / name, seed=seed)
    asked = [
        Request(name, user_id=f"u{user}", candidates=log.catalogue.item_ids[:5]) for user in (1, 2) for name in ("one", "two")
    ]

    def scores(engine, requests):
        return [each.score for response in engine.score(requests) for each in response.results]

    with Engine(plain, registry, data=log) as engine:
        expected = scores(engine, asked)
    for options in PLACES.values():
        with Engine(load(**options), registry, data=log) as engine:
            assert scores(engine, asked) == pytest.approx(expected, rel=1e-5)
    with Engine(load(device="sim:0"), registry, data=log) as first, Engine(load(device="sim:1"), registry, data=log) as second:
        by_device = [
            score for request, engine in zip(asked, (first, second) * 2, strict=True) for score in scores(engine, [request])
        ]
    assert by_device == pytest.approx(expected, rel=1e-5)


def test_tied_embeddings_on_two_devices_are_refused(load) -> None:
    with pytest.raises(BaseModelError, match="ties its embeddings, which the device map parts: got sim:0 and sim:1; name one"):
        load(device_map=SPREAD | {"lm_head": "sim:1"})


def test_devices_are_checked_and_default_to_none_of_these() -> None:
    assert choose_device("sim:1") == "sim:1" and choose_device(None) == "cpu"
    with pytest.raises(InputError, match="no such device: got sim:2; expected cpu, sim:0, sim:1, auto"):
        choose_device("sim:2")
