"""Requests that are answered by generating items: mixed batches, filters, exactness, inline items, caches, faults."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import genre
from builders import LIKE, NEXT, publish_stirred, recipe, stir
from genre.data.interactions import Interactions
from genre.engine import Engine, Request
from genre.engine.explain import explain
from genre.errors import ManifestError, RequestError
from genre.jobs.publish import encoder_manifest, write_encoder
from genre.registry.manifest import Cost
from genre.training.assembly import assemble

GENERATE = NEXT | {"head": "generate"}
ENCODER = {"codes": {"levels": 2, "size": 4, "places": 30}}
ITEMS = 30


def history(user: int, events: int = 8) -> list[dict]:
    draw = np.random.default_rng(user)
    return [{"item_id": f"i{item}", "rating": float(draw.integers(1, 6))} for item in draw.integers(0, ITEMS, events)]


@pytest.fixture(scope="module")
def registry(tiny, log, tmp_path_factory):
    """An encoder with codes; two adapters that generate, one that does and scores feedback too, and one with a dense head."""
    folder = tmp_path_factory.mktemp("generating")
    registry, base = genre.Registry(folder / "registry"), genre.Base.load(str(tiny))
    first = assemble(recipe(tiny, GENERATE, encoder=ENCODER), log, base)
    stir(first)
    with torch.no_grad():
        first.model.soft.codes.vectors.weight.mul_(3)
    write_encoder(folder / "encoder", first)
    registry.publish(folder / "encoder", encoder_manifest(first, "encoder-planted", cost=Cost()))
    first.model.release()
    for seed, (name, *tasks) in enumerate((("one", GENERATE), ("two", GENERATE), ("joint", GENERATE, LIKE), ("dense", NEXT))):
        encoder = ENCODER if GENERATE in tasks else {}
        wanted = recipe(tiny, *tasks, name=name, encoder=encoder, adapter={"rank": 4 if name == "two" else 8})
        publish_stirred(registry, wanted, log, base, folder / name, seed=seed, encoder="encoder-planted")
    return registry


@pytest.fixture
def engine(base, registry):
    with Engine(base, registry, lanes=4) as engine:
        yield engine


def results(response):
    assert response.error is None, response.error
    return [(each.item_id, each.score) for each in response.results]


def exact(engine, ref, user, **more):
    """Every item's score by teacher forcing, as a dictionary."""
    every = [f"i{item}" for item in range(ITEMS)]
    (response,) = engine.score([Request(ref, history=history(user), candidates=every, task="next_item", **more)])
    assert [each.item_id for each in response.results] == every
    return dict(results(response))


def test_a_beam_as_wide_as_the_catalogue_is_the_exact_score_of_every_item(engine) -> None:
    whole = exact(engine, "one", 1)
    assert sum(np.exp(list(whole.values()))) == pytest.approx(1, abs=1e-4)
    (found,) = engine.score([Request("one", history=history(1), k=ITEMS, beam=ITEMS, exclude_seen=False)])
    wanted = sorted(whole.items(), key=lambda each: -each[1])
    assert [item for item, _ in results(found)] == [item for item, _ in wanted]
    np.testing.assert_allclose([score for _, score in results(found)], [score for _, score in wanted], atol=1e-4)
    np.testing.assert_allclose([each.probability for each in found.results], np.exp([score for _, score in wanted]), atol=1e-4)


def test_a_beam_finds_the_best_items_in_their_order(engine) -> None:
    whole = exact(engine, "one", 1)
    (found,) = engine.score([Request("one", history=history(1), k=3, beam=12, exclude_seen=False)])
    assert [item for item, _ in results(found)] == sorted(whole, key=lambda item: -whole[item])[:3]
    for item, score in results(found):
        assert score == pytest.approx(whole[item], abs=1e-4)


def test_many_adapters_and_tasks_in_one_call_are_answered_as_alone(engine) -> None:
    asked = [
        Request(ref, history=history(user, 3 + user), k=5, task="next_item")
        for user, ref in enumerate(("one", "two", "joint", "dense") * 2)
    ]
    asked += [
        Request("joint", history=history(user), candidates=["i1", "i2"], task=task)
        for user in (1, 2)
        for task in ("like", "next_item")
    ]
    asked += [Request("two", history=[], k=4), Request("one", history=history(2), k=2, beam=1)]
    alone = [engine.score([request])[0] for request in asked]
    for one, other in zip(alone, engine.score(asked), strict=True):
        assert one.digest == other.digest
        assert [item for item, _ in results(one)] == [item for item, _ in results(other)]
        np.testing.assert_allclose([s for _, s in results(one)], [s for _, s in results(other)], atol=1e-4)


def test_levels_of_all_requests_of_a_call_go_in_the_same_passes(engine, monkeypatch) -> None:
    for ref in ("one", "two"):
        engine.load(ref)
    rows = []
    hidden, run = engine.base.hidden, engine.base.run
    monkeypatch.setattr(engine.base, "hidden", lambda x, *a, **k: rows.append(len(x)) or hidden(x, *a, **k))
    monkeypatch.setattr(engine.base, "run", lambda x, *a, **k: rows.append(len(x)) or run(x, *a, **k))
    engine.score([Request(ref, history=history(user), k=5) for user, ref in enumerate(("one", "two", "one", "two"))])
    assert rows == [4, 4, 4]


def test_filters_leave_items_out_and_change_no_score(engine) -> None:
    whole = exact(engine, "one", 1)
    seen = {event["item_id"] for event in history(1)}
    ask = Request("one", history=history(1), k=ITEMS)
    cases = {
        "seen": (ask, set(whole) - seen),
        "kept": (replace(ask, exclude_seen=False), set(whole)),
        "allow": (replace(ask, allow=["i1", "i2", "i9"], exclude_seen=False), {"i1", "i2", "i9"}),
        "deny": (replace(ask, deny=["i1", "i2"]), set(whole) - seen - {"i1", "i2"}),
        "both": (replace(ask, candidates=["i1", "i2", "i9"], allow=["i2", "i9"], k=None), {"i2", "i9"}),
        "where": (replace(ask, where=["item_id == i7"], exclude_seen=False), {"i7"}),
        "k": (replace(ask, candidates=["i4", "i5", "i6"], k=2), {"i4", "i5", "i6"}),
    }
    for (name, (request, left)), response in zip(cases.items(), engine.score([each for each, _ in cases.values()]), strict=True):
        found = results(response)
        assert {item for item, _ in found} <= left, name
        assert len(found) == min(len(left), request.k or ITEMS), name
        for item, score in found:
            assert score == pytest.approx(whole[item], abs=1e-4), name
        if name != "k":
            assert sum(each.probability for each in response.results) == pytest.approx(1), name
    (none,) = engine.score([replace(ask, allow=[])])
    assert (none.results, none.note) == ((), "no item is asked for")


def test_a_diverse_answer_is_chosen_among_the_items_that_the_beam_found(engine) -> None:
    ask = Request("one", history=history(1), k=6, exclude_seen=False)
    plain, none, diverse = engine.score([replace(ask, beam=6, diversity=amount) for amount in (None, 1e-9, 0.9)])
    assert results(none) == results(plain)
    assert [item for item, _ in results(diverse)] != [item for item, _ in results(plain)]
    assert dict(results(diverse)) == dict(results(plain))


def test_an_answer_is_always_an_item_however_narrow_the_beam(engine) -> None:
    """Beams that no trie holds spell codes of no item; at worst none of the answers was one."""
    asked = [
        Request("one", history=history(user), k=1, beam=1, where=[f"item_id == i{user}"], exclude_seen=False)
        for user in range(ITEMS)
    ]
    for user, response in enumerate(engine.score(asked)):
        assert [each.item_id for each in response.results] == [f"i{user}"]
        assert response.results[0].probability == pytest.approx(1)


def test_items_by_their_columns_join_the_trie_of_their_request_alone(engine) -> None:
    new, other = {"title": "a brand new thing"}, {"title": "a brand new thing", "item_id": "x"}
    ask = Request("one", history=history(1), candidates=[new, "i3", "i4"])
    (alone,) = engine.score([ask])
    plain = exact(engine, "one", 1)
    assert alone.results[0].item_id == "a brand new thing"
    together = engine.score([replace(ask, candidates=[other, "i3"]), ask, Request("one", history=history(1), candidates=["i3"])])
    np.testing.assert_allclose([s for _, s in results(together[1])], [s for _, s in results(alone)], atol=1e-4)
    np.testing.assert_allclose(results(together[2])[0][1], plain["i3"], atol=1e-4)
    past = [*history(1), {"item": new, "rating": 5.0}]
    (after,) = engine.score([Request("one", history=past, k=3)])
    assert len(results(after)) == 3


def test_the_history_cache_is_used_for_every_level(base, registry, engine) -> None:
    asked = [Request(ref, history=history(user, 12), k=4) for user, ref in enumerate(("one", "two", "joint"))]
    asked = [replace(request, task="next_item") for request in asked]
    wanted = engine.score(asked)
    engine.close()
    with Engine(base, registry, lanes=4, history_cache=2**24) as cached:
        for _ in range(2):
            for one, other in zip(wanted, cached.score(asked), strict=True):
                assert [item for item, _ in results(one)] == [item for item, _ in results(other)]
                np.testing.assert_allclose([s for _, s in results(one)], [s for _, s in results(other)], atol=1e-4)
        tokens = []
        run = base.run
        base.run = lambda x, *a, **k: tokens.append(x.shape[1]) or run(x, *a, **k)
        try:
            cached.score(asked)
        finally:
            del base.run
        assert max(tokens) < 24, "branches alone, not the history before them"


def test_small_batches_split_a_search_into_rows(base, registry, engine) -> None:
    wanted = exact(engine, "one", 2)
    engine.close()
    with Engine(base, registry, lanes=2, batch_tokens=40) as small:
        found = exact(small, "one", 2)
    np.testing.assert_allclose(list(found.values()), list(wanted.values()), atol=1e-4)


def test_an_explanation_leaves_events_out_and_has_no_gradient(engine) -> None:
    found = explain(engine, Request("one", history=history(1), k=1), "i4")
    assert found.score == pytest.approx(exact(engine, "one", 1)["i4"], abs=1e-4)
    assert len(found.events) == 8
    assert sum(abs(event.share) for event in found.events) == pytest.approx(1)
    with pytest.raises(RequestError, match="leave_one_out"):
        explain(engine, Request("one", history=history(1), k=1), "i4", method="gradient")


def test_what_does_not_fit_is_said(engine, registry, tmp_path) -> None:
    answers = engine.score(
        [
            Request("dense", history=history(1), k=3, beam=5),
            Request("joint", history=history(1), candidates=["i1"], task="like", beam=5),
            Request("one", history=history(1)),
            {"adapter": "one", "history": [], "k": 3, "beam": 0},
        ]
    )
    assert "beam is for tasks that generate items" in answers[0].error
    assert "beam 5 for task 'like' with head binary" in answers[1].error
    assert "needs candidates or k" in answers[2].error
    assert "beam" in answers[3].error


def test_weights_that_are_no_numbers_are_an_error_of_the_request_alone(engine) -> None:
    engine.score([Request("one", history=history(1), k=3)])
    with engine.planned(Request("one", history=history(1), k=3)) as job:
        codes = job.inline.codes
    kept = codes.gain.data.clone()
    codes.gain.data.fill_(float("nan"))
    try:
        bad, good = engine.score([Request("one", history=history(1), k=3), Request("dense", history=history(1), k=3)])
    finally:
        codes.gain.data.copy_(kept)
    assert "not a number" in bad.error
    assert good.error is None


def test_a_version_whose_encoder_has_no_codes_is_refused(base, registry, tiny, log, tmp_path) -> None:
    other = genre.Registry(tmp_path / "registry")
    first = assemble(recipe(tiny, NEXT), log, base)
    write_encoder(tmp_path / "encoder", first)
    other.publish(tmp_path / "encoder", encoder_manifest(first, "encoder-planted", cost=Cost()))
    first.model.release()
    digest = other.resolve("encoder-planted").digest
    version = registry.resolve("one")
    folder = tmp_path / "one"
    folder.mkdir()
    for file in registry.fetch(version).iterdir():
        if file.name != "manifest.json":
            (folder / file.name).write_bytes(file.read_bytes())
    other.publish(folder, version.manifest.model_copy(update={"encoder": digest}))
    with Engine(base, other) as engine, pytest.raises(ManifestError, match="an encoder without codes"):
        engine.load("one")


def test_a_catalogue_whose_new_items_find_no_code_stops_only_those_that_generate(base, registry, log):
    new = pl.DataFrame({"item_id": [f"new{number}" for number in range(600)], "title": ["one title for all"] * 600})
    grown = Interactions.from_frame(log.frame, items=pl.concat([log.catalogue.frame, new], how="diagonal"), name="grown")
    with Engine(base, registry, data=grown) as engine:
        generating, dense = engine.score([Request(ref, history=history(1), k=3) for ref in ("one", "dense")])
        assert "a new item finds no free code" in str(generating.error)
        assert len(results(dense)) == 3
