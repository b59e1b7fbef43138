"""What rows of a call share: lower layers across adapters, whole passes across tasks; and the CPU tier behind the slots."""

import gc
import weakref

import numpy as np
import pytest

import genre
from builders import LIKE, NEXT, RATING, publish_stirred, recipe
from genre.engine import Engine, Request
from genre.engine.explain import explain
from genre.engine.passes import batches_of
from genre.errors import NotFoundError

TOP = {"layers": [1]}


@pytest.fixture
def registry(trained, tmp_path):
    return genre.Registry(tmp_path / "registry")


@pytest.fixture
def publish(registry, trained, tiny, base, tmp_path):
    encoder = trained.registry.resolve("encoder-planted")
    registry.publish(trained.registry.fetch(encoder), encoder.manifest)

    def publish(name, *tasks, seed=0, **adapter):
        wanted = recipe(tiny, *tasks, name=name, adapter=adapter)
        return publish_stirred(registry, wanted, trained.log, base, tmp_path / name, seed=seed, encoder="encoder-planted")

    return publish


def scores(responses):
    assert not [response.error for response in responses if response.error]
    return [np.array([scored.score for scored in response.results]) for response in responses]


@pytest.fixture
def runs(base, monkeypatch):
    """(first layer, last layer, rows) of every part of the base that is run."""
    seen, run, hidden = [], base.run, base.hidden
    monkeypatch.setattr(base, "run", lambda x, a, b, *rest, **more: seen.append((a, b, len(x))) or run(x, a, b, *rest, **more))
    monkeypatch.setattr(base, "hidden", lambda x, *rest, **more: seen.append((0, 2, len(x))) or hidden(x, *rest, **more))
    return seen


def ask(log, *refs, user="u1", task=None):
    return [Request(ref, history=log.history(user), candidates=["i1", "i2", "i3"], task=task) for ref in refs]


def test_tasks_on_one_history_share_the_layers_below_the_lowest_adapted_one(base, registry, publish, trained, runs):
    refs = [publish(f"top{n}", LIKE, seed=n, **TOP).ref for n in range(3)]
    refs.append(publish("deep", LIKE, seed=9).ref)
    with Engine(base, registry, lanes=8) as engine:
        apart = [engine.score([request])[0] for request in ask(trained.log, *refs)]
        runs.clear()
        together = engine.score(ask(trained.log, *refs))
    for one, other in zip(scores(apart), scores(together), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert sorted(runs) == [(0, 1, 1), (0, 2, 1), (1, 2, 3)]  # the lower layer once for three; the deep one by itself


def test_other_histories_and_other_candidates_share_nothing(base, registry, publish, trained, runs):
    refs = [publish(f"top{n}", LIKE, seed=n, **TOP).ref for n in range(2)]
    with Engine(base, registry, lanes=8) as engine:
        engine.score([*ask(trained.log, refs[0], user="u1"), *ask(trained.log, refs[1], user="u2")])
    assert [part for part in runs if part[:2] != (0, 2)] == []


def test_two_tasks_of_one_adapter_are_one_pass(base, registry, publish, trained, runs):
    ref = publish("joint", LIKE, RATING).ref
    with Engine(base, registry, lanes=2) as engine:
        one, two = (engine.score(ask(trained.log, ref, task=task))[0] for task in ("like", "rating"))
        runs.clear()
        both = engine.score([*ask(trained.log, ref, task="like"), *ask(trained.log, ref, task="rating")])
    assert runs == [(0, 2, 1)]
    for alone, shared in zip(scores([one, two]), scores(both), strict=True):
        np.testing.assert_allclose(alone, shared, atol=1e-4)


def test_what_leaves_its_lane_waits_in_host_memory_and_the_rest_is_let_go(base, registry, publish, trained, monkeypatch):
    refs = [publish(f"a{n}", LIKE, seed=n).ref for n in range(5)]
    with Engine(base, registry, lanes=1, host=2) as engine:
        before = {ref: scores(engine.score(ask(trained.log, ref)))[0] for ref in refs}
        assert (engine.occupancy()["lanes"], engine.occupancy()["host"]) == (1, 2)
        read, source = [], engine.cache.source
        plain = source.read
        monkeypatch.setattr(source, "read", lambda version: read.append(version.ref) or plain(version))
        for ref in (refs[3], refs[2]):  # both wait in host memory: nothing is read
            np.testing.assert_allclose(scores(engine.score(ask(trained.log, ref)))[0], before[ref], atol=1e-6)
        assert read == []
        np.testing.assert_allclose(scores(engine.score(ask(trained.log, refs[0])))[0], before[refs[0]], atol=1e-6)
        assert read == [refs[0]]
        lanes = engine.occupancy()["lanes_bytes"]
        held = weakref.ref(next(iter(engine.cache._resident.values())))
        for ref in refs * 3:
            engine.load(ref)
        gc.collect()
        assert held() is None and engine.occupancy()["lanes_bytes"] == lanes and engine.occupancy()["host"] == 2


def test_an_evicted_version_is_freed_without_the_garbage_collector(base, registry, publish, trained):
    """A service that swaps versions for weeks cannot wait for a full collection of everything that it holds."""
    refs = [publish(f"freed{n}", LIKE, NEXT, seed=n).ref for n in range(3)]
    held = []
    with Engine(base, registry, lanes=1, host=1) as engine:
        source = engine.cache.source
        plain = source.read

        def read(version):
            ready = plain(version)
            parts = [ready, ready.loaded, ready.space, ready.loaded.shared, ready.loaded.layout]
            heads = ready.loaded.heads.values()
            held.extend(weakref.ref(each) for each in (*parts, *heads, *(p for head in heads for p in head.parameters())))
            return ready

        source.read = read
        gc.collect()
        gc.disable()
        try:
            for ref in refs:
                assert not any(
                    answer.error for task in ("like", "next_item") for answer in engine.score(ask(trained.log, ref, task=task))
                )
                explain(engine, Request(ref, history=trained.log.history("u1"), task="like"), "i3", method="gradient")
                assert engine.score([Request(ref, history=[], candidates=["no such item"], task="like")])[0].error
                with pytest.raises(NotFoundError):
                    engine.swap(ref, "no-such-version")
            for ref in refs:
                engine.swap("freed", ref)
                engine.unload(ref)
            engine.unload("freed")
            assert len(held) > 50 and not [each() for each in held if each() is not None]
        finally:
            gc.enable()


def test_rows_are_cut_into_batches_where_padding_costs_more_than_a_pass():
    assert batches_of([10, 11, 12], 100, 10**6, 32) == [slice(0, 3)]
    assert batches_of([10, 10, 10, 90], 400, 10**6, 32) == [slice(0, 3), slice(3, 4)]
    assert batches_of([10, 10, 10, 90], 400, 10**6, 1000) == [slice(0, 4)]
    assert batches_of([10] * 6, 20, 10**6, 1000) == [slice(0, 2), slice(2, 4), slice(4, 6)]
    assert batches_of([5, 30], 20, 10**6, 1000) == [slice(0, 1), slice(1, 2)]  # a longer one goes alone
    assert batches_of([10] * 4, 100, 200, 1) == [slice(0, 2), slice(2, 4)]
    assert batches_of([], 100, 100, 1) == []
