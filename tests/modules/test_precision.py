"""A base in bfloat16: the recipe asks for it, what trains on it is float32, and the version serves on any base."""

import pytest
import torch

import genre
from builders import LIKE, NEXT, recipe, weights
from genre.errors import JobError, RecipeError
from genre.jobs.dry_run import dry_run
from genre.jobs.evaluate import evaluate
from genre.jobs.loading import open_base
from genre.training import fit
from genre.training.assembly import assemble
from genre.training.averaging import Average


def halved(tiny, *tasks, quantization="none", **sections):
    """A recipe whose base is in bfloat16."""
    raw = recipe(tiny, *tasks, **sections).model_dump(mode="json")
    return genre.Recipe.parse(raw | {"base": raw["base"] | {"precision": "bfloat16", "quantization": quantization}})


@pytest.fixture(scope="module")
def half(tiny):
    return open_base(halved(tiny, LIKE).base)


def test_the_recipe_says_it_and_a_dry_run_repeats_it(tiny, log, half):
    assert half.dtype == torch.bfloat16 and open_base(recipe(tiny, LIKE).base).dtype == torch.float32
    assert all(value.dtype == torch.bfloat16 for value in half.model.parameters())
    assert dry_run([halved(tiny, LIKE)], log=log).base[-1] == "bfloat16"
    with pytest.raises(RecipeError, match=r"base\.precision bfloat16 goes with base\.quantization none"):
        halved(tiny, LIKE, quantization="int8")


def test_an_adapter_learns_as_in_float32_and_serves_in_it(tiny, base, log, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registry, found = genre.Registry("registry"), {}
    for name, made in (("exact", recipe), ("rough", halved)):
        run = genre.train(made(tiny, LIKE, name=name), log=log, registry=registry)
        registry.publish(run, alias="production")
        found[name] = run.metrics["like"]["auc"]["value"]
    assert found["exact"] > 0.7 and found["rough"] == pytest.approx(found["exact"], abs=0.03)
    served = evaluate(registry, "rough@production", log, base)["tasks"]["like"]["adapter"]["auc"]["value"]
    assert base.dtype == torch.float32 and served == pytest.approx(found["rough"], abs=0.01)


def test_an_engine_answers_on_it_as_on_a_float32_base(trained, half, base):
    """Rows of several adapters in one batch."""
    some = list(trained.log.catalogue.item_ids[:4])
    asked = [
        genre.Request(name, user_id=user, candidates=some[:count])
        for user in ("u1", "u2", "u3")
        for name in ("like@production", "rating@production", "next_item@production")
        for count in (1, 4)
    ]
    found = []
    for each in (base, half):
        with genre.Engine(each, trained.registry, data=trained.log) as engine:
            answers = engine.score(asked)
            assert [answer.adapter for answer in answers] == [request.adapter for request in asked]
            found.append({(i, item.item_id): item.score for i, answer in enumerate(answers) for item in answer.results})
    assert found[0].keys() == found[1].keys() and len(found[0]) == 2.5 * len(asked)
    assert all(abs(found[0][key] - found[1][key]) < 0.05 for key in found[0])


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_run_that_was_cut_ends_bit_for_bit_as_if_it_had_not_been(tiny, log, half, tmp_path, kind):
    wanted = halved(tiny, LIKE, NEXT, adapter={"kind": kind}, train={"checkpoint_every": 3, "dropout": 0.2})
    kept = []
    for folder, cuts in (("through", [None]), ("cut", [4, None])):
        for cut in cuts:
            made = assemble(wanted, log, half)
            try:
                fit(made, tmp_path / folder, stop_at=cut, resume=cut is None and len(cuts) > 1)
                kept.append(weights(made))
            except JobError:
                assert cut
            finally:
                made.model.release()
    assert len(kept) == 2 and all(torch.equal(value, kept[1][name]) for name, value in kept[0].items())
    rounded = {name for name, value in kept[0].items() if value.dtype != torch.float32}
    assert all(name.startswith("base.") for name in rounded) and bool(rounded) == (kind == "full")


def test_a_base_of_another_precision_is_refused(tiny, base, log):
    with pytest.raises(RecipeError, match=r"differs from the recipe in base\.precision: got torch\.float32; expected torch\.bf"):
        genre.train(halved(tiny, LIKE), log=log, base=base)


def test_an_average_of_rounded_weights_moves():
    """A hundredth of a bfloat16 step at a time, which bfloat16 itself could not hold."""
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    average = Average({"w": weight}, 0.995)
    for step in range(1, 2001):
        average.update(step)
        if step == 1000:
            weight.data.add_(torch.finfo(torch.bfloat16).eps)
    assert average.values["w"].dtype == torch.float32 and (average.values["w"] - weight.float()).abs().max() < 1e-4
    with average.applied():
        assert weight.dtype == torch.bfloat16
