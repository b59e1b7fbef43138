"""Two threads at the engine's narrow places, held there on purpose, so that every run meets the same order."""

import threading

import numpy as np
import pytest

from builders import LIKE, publish_stirred, recipe
from genre.engine import Engine, Request
from genre.modules.base.base import Base

NEW = {"title": "war 99"}
PLAIN = Request("like", user_id="u3", candidates=["i0", "i7", "i12"])
INLINE = Request("like", user_id="u4", candidates=[NEW, "i7"])


def scores(answer):
    assert answer.error is None, answer.error
    return np.array([scored.score for scored in answer.results])


@pytest.fixture
def engine(base, trained):
    with Engine(base, trained.registry, lanes=4, data=trained.log) as engine:
        yield engine


def test_a_text_is_embedded_by_the_bare_base_while_another_batch_is_routed(engine, monkeypatch):
    """One thread stands inside a forward pass with its rows routed; another brings a new item meanwhile."""
    wanted = [scores(engine.score([request])[0]) for request in (PLAIN, INLINE)]
    inside, embedded, answers = threading.Event(), threading.Event(), {}
    hidden, texts = type(engine.base).hidden, type(engine.base).text_vectors

    def slow(self, *args, **options):
        if threading.current_thread().name == "routed" and not inside.is_set():
            inside.set()
            embedded.wait(0.3)  # time enough for the other, unless it waits for this pass to end
        return hidden(self, *args, **options)

    def told(self, *args, **options):
        try:
            return texts(self, *args, **options)
        finally:
            embedded.set()

    def work(name, request):
        answers[name] = engine.score([request])[0]

    monkeypatch.setattr(type(engine.base), "hidden", slow)
    monkeypatch.setattr(type(engine.base), "text_vectors", told)
    routed = threading.Thread(target=work, name="routed", args=("plain", PLAIN))
    other = threading.Thread(target=work, name="other", args=("inline", INLINE))
    routed.start()
    assert inside.wait(5)
    other.start()
    routed.join()
    other.join()
    assert np.abs(scores(answers["plain"]) - wanted[0]).max() < 1e-5
    assert np.abs(scores(answers["inline"]) - wanted[1]).max() < 1e-5


@pytest.mark.parametrize("how", ["load", "swap"])
def test_a_version_that_is_being_loaded_is_not_dropped_as_unused(engine, monkeypatch, how):
    """Another thread cleans up between staging, when the version has neither name nor user, and naming."""
    engine.load("like")
    stage, others = engine.cache._stage, []

    def stage_while_another_unloads(*args, **options):
        try:
            return stage(*args, **options)
        finally:
            others.append(threading.Thread(target=engine.unload, args=("like",)))
            others[-1].start()
            others[-1].join(0.2)  # time enough, unless it waits for the loading to end

    monkeypatch.setattr(engine.cache, "_stage", stage_while_another_unloads)
    digest = engine.load("rating") if how == "load" else engine.swap("rating")
    (answer,) = engine.score([Request("rating", user_id="u3", candidates=["i0"])])
    others[0].join()
    assert len(others) == 1 and len(scores(answer)) == 1
    assert engine.resident() == {"rating": digest}


def test_requests_of_more_adapters_than_lanes_are_all_answered(base, trained):
    """One call, three adapters, two lanes."""
    requests = [Request(task, user_id="u3", candidates=["i0", "i7"]) for task in ("like", "rating", "next_item", "like")]
    with Engine(base, trained.registry, lanes=4, data=trained.log) as engine:
        wanted = [scores(answer) for answer in engine.score(requests)]
    with Engine(base, trained.registry, lanes=2, data=trained.log) as engine:
        for answer, want in zip(engine.score(requests), wanted, strict=True):
            assert np.abs(scores(answer) - want).max() < 1e-5


def test_a_swapped_name_stays_pinned(base, trained, tiny, tmp_path):
    """Whoever pinned a name wants what it means now to stay, and the lane of what it meant before back."""
    spare = Base.load(str(tiny))
    for number in (1, 2):
        wanted = recipe(tiny, LIKE, name="kept", adapter={"rank": 2})
        publish_stirred(
            trained.registry, wanted, trained.log, spare, tmp_path / str(number), seed=number, encoder="encoder-planted"
        )
    one, two = trained.registry.versions("kept")[-2:]
    with Engine(base, trained.registry, lanes=2, data=trained.log) as engine:
        engine.load(f"kept:{one}", pin=True)
        engine.swap(f"kept:{one}", f"kept:{two}")
        for task in ("like", "rating", "next_item"):
            engine.load(task)
        assert f"kept:{one}" in engine.resident()


def test_no_request_is_lost_when_everyone_loads_swaps_and_brings_items(base, trained):
    """Six threads, three lanes, every kind of request at once; each score equals that of a quiet engine."""
    requests = [
        Request(task, user_id=f"u{user}", candidates=candidates)
        for user in range(4)
        for task, candidates in (("like", ["i0", "i7"]), ("rating", ["i3"]), ("next_item", ["i1", "i2"]))
    ]
    with Engine(base, trained.registry, lanes=3, data=trained.log) as engine:
        wanted = [scores(engine.score([request])[0]) for request in requests]
        failures = []

        def work(seed):
            draw = np.random.default_rng(seed)
            try:
                for _ in range(10):
                    chosen = draw.choice(len(requests), 3)
                    for place, answer in zip(chosen, engine.score([requests[i] for i in chosen]), strict=True):
                        assert np.abs(scores(answer) - wanted[place]).max() < 1e-4
                    engine.swap(str(draw.choice(["like", "rating", "next_item"])))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert engine.occupancy()["requests"] == 0
