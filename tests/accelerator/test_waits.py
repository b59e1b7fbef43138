"""How often the host waits for the device: two times a training step, three times a call of the engine, at most."""

from pathlib import Path

import pytest
import torch

import genre
import simulated
from builders import GOOD, LIKE, NEXT, NUMBER, RATING, STARS, publish_stirred, recipe, text_recipe
from fakes import make_encoder_base
from genre.engine import Engine, Request
from genre.engine.explain import explain
from genre.errors import DivergedError
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.registry import Registry
from genre.training import Loop, fit
from genre.training.assembly import assemble, assemble_any

STEP, CALL = 2, 3
GENERATE, CODES = NEXT | {"head": "generate"}, {"encoder": {"codes": {"levels": 2, "size": 4, "places": 30}}}
DRAWS = {"generated, drawn": 3}
"""Of runs whose steps draw from the policy: a code is drawn on the host before the next can be, on three levels here."""
RUNS = {
    "feedback": ((LIKE,), {}),
    "joint": ((LIKE, NEXT, RATING), {}),
    "accumulated": ((LIKE,), {"train": {"accumulate": 3}}),
    "sampled": ((NEXT,), {"train": {"sampled": {"above": 5, "negatives": 8}}}),
    "full": ((LIKE, RATING), {"adapter": {"kind": "full"}}),
    "text items": ((LIKE,), {"sequence": {"item": "text"}, "encoder": {"use": "none"}}),
    "no base": ((LIKE,), {"adapter": {"kind": "no_base"}}),
    "generated": ((GENERATE,), CODES),
    "generated, preferred": ((GENERATE | {"loss": "softmax_dpo"},), CODES),
    "generated, drawn": ((GENERATE | {"loss": "group_relative"},), CODES),
    "averaged, dropout": ((LIKE,), {"train": {"average": 0.9, "dropout": 0.1}, "adapter": {"dropout": 0.1}}),
}


def steps(assembly, folder, count=3):
    """What each of some steps waits for; the first one also makes what later ones find there."""
    loop, found = Loop(assembly, folder, Reporter.silent()), []
    try:
        batches = loop.plan(0)
        loop.set_training()
        for rows in batches[:count]:
            with simulated.watching() as seen:
                loop.account(0.0, loop.step(rows, 0.0), seconds=0.0)
            found.append(seen)
    finally:
        loop.close()
        assembly.model.release()
    return found


@pytest.mark.parametrize("name", [name if name == "joint" else pytest.param(name, marks=pytest.mark.slow) for name in RUNS])
def test_a_training_step_waits_twice_at_most(on_device, tiny, log, tmp_path: Path, name: str) -> None:
    tasks, sections = RUNS[name]
    for seen in steps(assemble(recipe(tiny, *tasks, **sections), log, on_device()), tmp_path):
        assert len(seen.waits) <= STEP + DRAWS.get(name, 0), seen.lines()
        assert not seen.pageable, seen.pageable


@pytest.mark.slow  # an encoder base of its own
def test_a_step_on_texts_waits_twice_at_most(texts, tmp_path: Path) -> None:
    folder = make_encoder_base(tmp_path / "bert")
    wanted = text_recipe(folder, GOOD, STARS, NUMBER)
    base = Base.load(str(folder), device="sim", dtype=torch.float32)
    for seen in steps(assemble_any(wanted, texts, base), tmp_path / "run"):
        assert len(seen.waits) <= STEP and not seen.pageable, seen.lines()


@pytest.mark.slow  # training on a device whose operators go through Python
def test_a_resumed_run_waits_no_oftener(on_device, tiny, log, tmp_path: Path) -> None:
    """AdamW's step counts stay on the CPU: on the device every one of them would be waited for in every step."""
    base = on_device()
    with pytest.raises(Exception, match="interrupted"):
        fit(assembly := assemble(recipe(tiny, LIKE), log, base), tmp_path, stop_at=2)
    assembly.model.release()
    assembly = assemble(recipe(tiny, LIKE), log, base)
    loop = Loop(assembly, tmp_path, Reporter.silent())
    loop.restore()
    rows = loop.plan(0)[2]
    loop.set_training()
    with simulated.watching() as seen:
        loop.step(rows, 0.0)
    assert len(seen.waits) <= STEP, seen.lines()


def test_losses_are_looked_at_a_step_late_and_the_sequences_are_named(on_device, tiny, log, tmp_path: Path) -> None:
    """The step that follows has begun by then; the weights and the checkpoint are those before the bad one."""
    assembly = assemble(recipe(tiny, LIKE), log, on_device())
    loop = Loop(assembly, tmp_path, Reporter.silent())
    batches = loop.plan(0)
    loop.set_training()
    slot, labels = loop.labels["like"]
    bad = labels.copy()
    bad[batches[1][0].events[batches[1][0].targets][:1]] = float("inf")
    loop.step(batches[0], 0.0)
    before = {name: value.detach().clone() for name, value in loop.parameters.items()}
    loop.labels = {"like": (slot, bad)}
    loop.step(batches[1], 0.0)  # is not looked at yet
    assert not all(torch.equal(value, before[name]) for name, value in loop.parameters.items())
    with pytest.raises(DivergedError, match=r"the loss of task 'like' is not finite: .*1 of \d+ targets: .*user u"):
        loop.step(batches[2], 0.0)
    assert all(torch.equal(value, before[name]) for name, value in loop.parameters.items())


@pytest.mark.slow  # training on a device whose operators go through Python
def test_an_exploding_gradient_names_its_sequences_a_step_late(on_device, tiny, log, tmp_path: Path) -> None:
    assembly = assemble(recipe(tiny, LIKE, train={"checkpoint_every": 1}), log, on_device())
    for layer in assembly.model.layers.values():
        layer.lora_B.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(DivergedError, match=r"a gradient is not finite at step 0: got (nan|inf).*the sequence"):
        fit(assembly, tmp_path)
    assert all(torch.isfinite(value).all() for value in assembly.model.trainable().values())
    assert torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)["state"]["step"] == 0


@pytest.fixture(scope="module")
def published(tiny, log, tmp_path_factory):
    """Adapters of several ranks and kinds on one encoder, trained and stirred on the CPU."""
    folder, base = tmp_path_factory.mktemp("published"), Base.load(str(tiny), device="cpu")
    registry = genre.Registry(folder / "registry")
    wanted = recipe(tiny, NEXT, train={"epochs": 1}, encoder={"taste": 4})
    registry.publish(genre.train(wanted, log=log, base=base, registry=registry, folder=folder / "next", baselines="none"))
    for seed, (task, name, adapter) in enumerate(
        [(LIKE, "like", {}), (RATING, "rating", {"rank": 2}), (LIKE, "other", {"rank": 8})]
    ):
        made = recipe(tiny, task, name=name, adapter=adapter)
        publish_stirred(registry, made, log, base, folder / name, seed=seed, encoder="encoder-planted")
    words = recipe(tiny, LIKE, name="words", sequence={"item": "text"}, encoder={"use": "none"})
    publish_stirred(registry, words, log, base, folder / "words", seed=9)
    return registry


def calls(log):
    """Calls of the engine: one adapter, several in one batch with branches, whole catalogues, items given by columns."""
    items, names = log.catalogue.item_ids, ("like", "rating", "other", "next_item", "words")
    return {
        "one": [Request("like", user_id="u1", candidates=items[:8])],
        "mixed": [Request(name, user_id=f"u{user}", candidates=items[:8]) for user in range(3) for name in names],
        "whole": [Request("next_item", user_id=f"u{user}", k=10) for user in range(3)],
        "given": [Request("like", user_id="u1", candidates=[{"title": "a thing"}, items[0]])],
        "diverse": [Request("next_item", user_id="u1", k=5, diversity=0.5)],
    }


@pytest.mark.parametrize("cache", [None, 2**24])
def test_a_call_of_the_engine_waits_once(on_device, tiny, log, tmp_path: Path, cache: int | None) -> None:
    """Two adapters in one batch with branches; a cache of histories is asked for both without a wait."""
    registry, base = Registry(tmp_path / "registry"), on_device()
    for seed, name in enumerate(("one", "two")):
        words = recipe(tiny, LIKE, name=name, sequence={"item": "text"}, encoder={"use": "none"})
        publish_stirred(registry, words, log, base, tmp_path / name, seed=seed)
    asked = [Request(name, user_id="u1", candidates=log.catalogue.item_ids[:4]) for name in ("one", "two")]
    with Engine(base, registry, data=log, history_cache=cache) as engine:
        engine.score(asked)
        with simulated.watching() as seen:
            answers = engine.score(asked)
        assert cache is None or engine.history_store.counters.hits == 2
    assert all(answer.error is None for answer in answers)
    assert len(seen.waits) == 1 and not seen.pageable, seen.lines()


@pytest.mark.slow  # training on a device whose operators go through Python
def test_a_call_of_the_engine_waits_three_times_at_most_and_scores_as_on_the_cpu(on_device, tiny, log, published) -> None:
    with Engine(Base.load(str(tiny), device="cpu"), published, data=log) as engine:
        expected = {name: engine.score(requests) for name, requests in calls(log).items()}
    with Engine(on_device(), published, data=log) as engine:
        for name, requests in calls(log).items():
            found = engine.score(requests)
            for one, other in zip(found, expected[name], strict=True):
                assert one.error is None
                values = [{each.item_id: each.score for each in response.results} for response in (one, other)]
                assert values[0] == pytest.approx(values[1], rel=1e-5, abs=1e-5), name
            with simulated.watching() as seen:
                engine.score(requests)
            assert len(seen.waits) <= CALL and not seen.pageable, f"{name}: {seen.lines()}"
        explain(engine, Request("like", user_id="u1", k=1), log.catalogue.item_ids[3], method="gradient")
        with simulated.watching() as seen:
            explain(engine, Request("like", user_id="u1", k=1), log.catalogue.item_ids[3], method="gradient")
        assert len(seen.waits) <= CALL, seen.lines()


@pytest.mark.slow  # training on a device whose operators go through Python
def test_bfloat16_keeps_losses_norms_and_softmaxes_in_float32(on_device, tiny, log, tmp_path: Path) -> None:
    """And its losses are near those in float32."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        assembly = assemble(recipe(tiny, LIKE, NEXT), log, on_device(dtype=dtype))
        loop = Loop(assembly, tmp_path / str(dtype), Reporter.silent())
        rows = loop.plan(0)[0]
        with simulated.watching() as seen:
            found[dtype] = loop.step(rows, 0.0).losses
        for name in ("rsqrt", "_softmax", "_safe_softmax", "_log_softmax", "binary_cross_entropy_with_logits", "_foreach_norm"):
            assert set(seen.dtypes.get(name, {})) <= {torch.float32}, name
        assert {"rsqrt", "_log_softmax", "binary_cross_entropy_with_logits"} <= seen.dtypes.keys()
        assert seen.dtypes.keys() & {"_softmax", "_safe_softmax"}
        assembly.model.release()
    for name, (value, _) in found[torch.float32].items():
        assert found[torch.bfloat16][name][0] == pytest.approx(value, rel=0.02)
