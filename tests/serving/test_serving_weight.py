"""One caller's work beside others': turns, weights, bounds of a call, items that are embedded together."""

import dataclasses
import gc
import io
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from serving_fakes import open_engine, serving, wait_until

from genre.engine import Request
from genre.modules.base.base import Base
from genre.serving import Service, Settings
from genre.serving.deployments import Deployments
from genre.serving.http import bodies, server
from genre.serving.logs import Log
from genre.serving.metrics import Metrics
from genre.serving.problems import Problem
from genre.serving.turns import Turns

REFS = ["like@production", "next_item@production", "rating@production"]


def row(task, user=3, **more):
    return {"adapter": f"{task}@production", "user_id": f"u{user}", "candidates": ["i0", "i7"], **more}


def titles(count, first=0):
    return [{"title": f"a new title {number}"} for number in range(first, first + count)]


@pytest.fixture
def engine(trained):
    with open_engine(trained) as engine:
        yield engine


def test_rows_of_little_work_leave_in_the_order_in_which_they_came():
    turns: Turns[int] = Turns(100)
    for number in range(30):
        turns.push((number // 15, number // 5), number, 3)
    assert [turns.pop()[0] for _ in range(30)] == list(range(30))
    assert len(turns) == 0 and turns.keys == 0


@pytest.mark.parametrize("seed", range(20))
def test_nobody_waits_for_more_of_another_than_the_quanta_and_rows_of_both(seed):
    """Against the sum of what each other line was given while a line waited, for lines that come and go."""
    draw, quantum, largest, turns = random.Random(seed), 50, 120, Turns(50)
    waiting: dict[int, list[tuple[int, int]]] = {}
    given: dict[int, dict[int, int]] = {}
    for number in range(3000):
        caller = draw.randrange(6)
        if draw.random() < 0.5:
            work = draw.choice([1, 5, 60, largest])
            turns.push((caller, draw.randrange(3)), number, work)
            given.setdefault(caller, {})
            waiting.setdefault(caller, []).append((number, work))
        elif len(turns):
            found = turns.pop()
            (served,) = (caller for caller, rows in waiting.items() if found in rows)
            waiting[served].remove(found)
            for other, own in given.items():
                own[served] = own.get(served, 0) + found[1]
                assert other == served or own[served] <= 2 * (quantum + largest)
            given[served] = {}
            if not waiting[served]:
                del given[served], waiting[served]
    assert len(turns) == sum(map(len, waiting.values()))


def test_calls_without_end_do_not_starve_a_large_one():
    turns: Turns[str] = Turns(10)
    turns.push(("one", "large"), "large", 15)
    turns.push(("one", "large"), "large", 15)
    served = []
    for number in range(100):
        turns.push(("one", number), "small", 1)
        served.append(turns.pop()[0])
    assert served.index("large") == 0 and served.count("large") == 2 and served[1:].index("large") < 60


def test_a_call_of_much_work_leaves_in_parts_between_those_of_others():
    turns: Turns[str] = Turns(10)
    for _ in range(6):
        turns.push(("one", "large"), "large", 5)
    turns.push(("one", "small"), "small", 1)
    turns.push(("two", "other"), "other", 1)
    assert [turns.pop()[0] for _ in range(8)] == ["large", "large", "other", "small", "large", "large", "large", "large"]


def test_a_large_row_does_not_hold_up_the_others(engine, monkeypatch):
    """While one caller's row of 2,000 tokens is computed pass by pass, another's rows are answered."""
    order, hidden = [], Base.hidden
    with serving(engine, REFS, batch_tokens=256) as (service, client), ThreadPoolExecutor(2) as pool:
        engine.passes.batch_tokens = 256
        large = {"adapter": "like", "history": [], "candidates": [f"i{number % 30}" for number in range(4000)]}
        begun = []

        def slow(self, *args, **options):
            begun.append(1)
            return hidden(self, *args, **options)

        monkeypatch.setattr(Base, "hidden", slow)
        first = pool.submit(client.post, "/v1/score", json={"requests": [large]})
        first.add_done_callback(lambda _: order.append("large"))
        wait_until(lambda: begun)
        small = client.post("/v1/score", json={"requests": [row("like")]})
        order.append("small")
        assert "results" in small.json()["responses"][0]
        assert len(first.result().json()["responses"][0]["results"]) == 4000
        assert order == ["small", "large"]
        assert service.metrics.registry.get_sample_value("genre_batch_rows_count") == 2


def test_batches_and_passes_are_as_long_as_the_base_computes_in_a_tenth_of_a_second(engine, monkeypatch):
    """On a base of 5,000 tokens a second, as it is said here: rows of many calls go in parts, a long row pass by pass."""
    sizes, passes, score, hidden = [], [], engine.score, Base.hidden
    monkeypatch.setattr(engine.passes.forward, "record", lambda tokens, seconds: None)
    with serving(engine, REFS) as (service, client):
        estimate = service.deployments.find("like").estimate
        weight = estimate.tokens(Request("like", user_id="u3", candidates=["i0", "i7"]), 24)
        engine.passes.forward._tokens, engine.passes.forward._seconds = 6000.0, 1.0
        monkeypatch.setattr(engine, "score", lambda rows, *more, **named: sizes.append(len(rows)) or score(rows, *more, **named))
        answers = client.post("/v1/score", json={"requests": [row("like", user) for user in range(40)]}).json()["responses"]
        assert all("results" in answer for answer in answers) and max(sizes) == 600 // weight and sum(sizes) == 40
        monkeypatch.setattr(
            Base, "hidden", lambda self, x, *a, **k: passes.append(x.shape[:2].numel()) or hidden(self, x, *a, **k)
        )
        whole = {"adapter": "like", "history": [], "candidates": [f"i{number % 30}" for number in range(3000)]}
        (answer,) = client.post("/v1/score", json={"requests": [whole]}).json()["responses"]
        assert len(answer["results"]) == 3000 and len(passes) > 1 and max(passes) <= 600
    (alone,) = score([whole])
    assert np.allclose([one.score for one in alone.results], [one["score"] for one in answer["results"]], atol=1e-5)


def test_a_thousand_new_titles_are_answered_and_embedded_together(engine, monkeypatch):
    passes, texts = [], Base.text_vectors

    def counted(self, token_ids, **options):
        passes.append(len(token_ids))
        return texts(self, token_ids, **options)

    with serving(engine, REFS) as (_, client):
        monkeypatch.setattr(Base, "text_vectors", counted)
        rows = [row("like", candidates=titles(400, 0)), row("rating", candidates=titles(600, 400))]
        answer = client.post("/v1/score", json={"requests": rows})
        assert [len(one["results"]) for one in answer.json()["responses"]] == [400, 600]
        assert sorted(passes) == [400, 600]  # each alone, since each is more than a batch
        passes.clear()
        assert all(found.error is None for found in engine.score(rows)) and passes == [1000]


def test_items_of_a_refused_request_are_not_embedded_and_do_not_spoil_those_of_others(engine):
    good, other = row("like", candidates=["i0", *titles(3)]), row("rating", candidates=titles(3, 2))
    wanted = [engine.score([request])[0] for request in (good, other)]
    bad = row("like", candidates=[*titles(2, 2), {"title": ["a", "b"]}])
    stray = row("like", candidates=[*titles(2, 2), {"title": "x", "no such": 1}])
    answers = engine.score([bad, good, stray, bad, other])
    assert [answer.error is None for answer in answers] == [False, True, False, False, True]
    assert "an inline item cannot be used" in answers[0].error and "unknown column" in answers[2].error
    for want, answer in zip(wanted, (answers[1], answers[4]), strict=True):
        assert [one.item_id for one in answer.results] == [one.item_id for one in want.results]
        assert np.allclose([one.score for one in answer.results], [one.score for one in want.results], atol=1e-5)


def test_a_row_weighs_what_is_computed_for_it(engine):
    deployments = Deployments(engine, Log(io.StringIO()), Metrics(), lambda: None)
    estimate, size = deployments.add("like@production").estimate, engine.data.catalogue.size
    known = Request("like", history=[], candidates=["i0"] * 50)
    new = Request("like", history=[], candidates=[{"title": "x" * 40}] * 50)
    long = Request("like", history=[], candidates=[{"title": "x" * 8000}])
    rare = Request("like", history=[], candidates=[{"title": "\U0001f600" * 20}])
    assert estimate.tokens(rare, 0) - estimate.tokens(Request("like", history=[], candidates=["i0"]), 0) == 81  # 4 bytes each
    diverse = [Request("like", history=[], candidates=["i0"] * 1000, k=1000, diversity=share) for share in (0.5, None)]
    assert estimate.tokens(diverse[0], 0) - estimate.tokens(diverse[1], 0) > 3000
    assert estimate.tokens(new, 0) - estimate.tokens(known, 0) == 50 * 41
    assert estimate.tokens(long, 0) < estimate.tokens(known, 0) + 129
    event = {"item_id": {"title": "x" * 40}, "rating": 4}
    lone = Request("like", history=[event], candidates=["i0"])
    assert estimate.tokens(lone, 1) == estimate.tokens(Request("like", history=[], candidates=["i0"]), 1) + 41
    assert estimate.results(Request("like", history=[], k=5)) == 5
    assert estimate.results(Request("like", history=[], k=10**6)) == size == estimate.results(Request("like", history=[]))
    assert estimate.results(known) == 50 and estimate.results(Request("like", texts=[{"a": "b"}] * 3, k=2)) == 2
    asked = Request("like", history=[], candidates=["i0"], where=["title == 'x'"] * 32)
    wide = dataclasses.replace(estimate, catalogue=2**20)
    assert wide.tokens(asked, 0) - wide.tokens(Request("like", history=[], candidates=["i0"]), 0) == 32 * 16
    ranking = deployments.add("next_item@production").estimate
    assert ranking.tokens(Request("next_item", history=[], k=10), 0) < ranking.instruction + 7
    assert ranking.tokens(Request("next_item", history=[], candidates=["i0"] * 6400), 0) >= 3200


def test_what_is_too_much_is_refused_whole_and_what_one_row_asks_alone_fails_alone(engine):
    with serving(engine, REFS, call_tokens=4000, call_results=1000, row_tokens=3000) as (service, client):
        many = client.post("/v1/score", json={"requests": [row("like", candidates=["i0"] * 500)] * 9})
        assert (many.status_code, many.json()["code"]) == (413, "too_much")
        assert "tokens; expected at most 4,000" in many.json()["error"] and "send fewer rows" in many.json()["error"]
        wide = client.post("/v1/score", json={"requests": [row("next_item", candidates=["i0"] * 600)] * 2})
        assert wide.status_code == 413 and "1,200 results; expected at most 1,000" in wide.json()["error"]
        alone = client.post("/v1/score", json={"requests": [row("like", candidates=titles(300)), row("like")]}).json()
        assert "asks for too much at once" in alone["responses"][0]["error"] and "results" in alone["responses"][1]
        user = {**row("like"), "user": {"age": "x" * 8000, "city": "y" * 800}}
        (told,) = client.post("/v1/score", json={"requests": [user]}).json()["responses"]
        assert "the user's columns are too long" in told["error"]
        assert service.metrics.registry.get_sample_value("genre_refused_calls_total", {"code": "too_much"}) == 2
        assert service.batcher.waiting == 0
    with serving(engine, REFS, call_tokens=300) as (_, client):
        why = {"adapter": "like", "user_id": "u3", "item": "i0"}  # a row for each event of the history
        refused = client.post("/v1/explain", json={"requests": [why]})
        assert (refused.status_code, refused.json()["code"]) == (413, "too_much")
        assert client.post("/v1/explain", json={"requests": [{**why, "method": "gradient"}]}).status_code == 200


def test_who_has_little_waiting_finds_room_in_a_queue_that_another_filled(engine):
    with serving(engine, REFS, queue_rows=8) as (service, client), ThreadPoolExecutor(3) as pool:
        second = httpx.Client(base_url=client.base_url, transport=httpx.HTTPTransport(local_address="127.0.0.2"), timeout=60)
        with service.batcher.paused():
            full = pool.submit(client.post, "/v1/score", json={"requests": [row("like", user) for user in range(8)]})
            wait_until(lambda: service.batcher.waiting == 8)
            assert client.post("/v1/score", json={"requests": [row("like")]}).status_code == 429
            other = pool.submit(second.post, "/v1/score", json={"requests": [row("like")] * 4})
            wait_until(lambda: service.batcher.waiting == 12)
            assert second.post("/v1/score", json={"requests": [row("like")]}).status_code == 429
        assert full.result().status_code == other.result().status_code == 200
        second.close()


def test_a_large_body_and_a_large_answer_are_read_and_written_beside_the_event_loop(engine):
    with serving(engine, REFS) as (_, client):
        wide = row("next_item", candidates=["i0", "i7"] * 1500, id="x" * 8000)
        rows = [{**wide, "id": "x" * 8000}] * 10
        answer = client.post("/v1/recommend", json={"requests": [{**one, "k": 3000} for one in rows]})
        assert answer.status_code == 200 and len(answer.json()["responses"][9]["results"]) == 3000
        assert "title" in answer.json()["responses"][0]["results"][0]


def test_unloading_waits_for_the_rows_under_way_and_stops_nobody(engine, monkeypatch):
    with serving(engine, REFS) as (service, client), ThreadPoolExecutor(1) as pool:
        score = engine.score
        inside, release = [], []

        def held(requests, refs=None, **options):
            if any(request.id == "held" for request in requests):
                inside.append(1)
                wait_until(lambda: release)
            return score(requests, refs, **options)

        monkeypatch.setattr(engine, "score", held)
        large = row("like", candidates=["i0"] * 9000, id="held")
        first = pool.submit(client.post, "/v1/score", json={"requests": [large]})
        wait_until(lambda: inside)
        with ThreadPoolExecutor(1) as operator:
            dropped = operator.submit(service.deployments.drop, "rating@production")
            wait_until(lambda: service.deployments.get("rating@production") is None)
            assert client.post("/v1/score", json={"requests": [row("like")]}).status_code == 200 and not dropped.done()
            release.append(1)
            dropped.result()
        assert len(first.result().json()["responses"][0]["results"]) == 9000


def test_explanations_are_shared_among_callers(engine):
    with serving(engine, REFS) as (service, _):
        gate = threading.Event()
        for _ in range(16):
            service.explain_aside(lambda: gate.wait(30), "one")
        for caller, more in (("one", 0), ("two", 8), ("three", 5)):
            for _ in range(more):
                service.explain_aside(lambda: gate.wait(30), caller)
            with pytest.raises(Problem, match="too many explanations are under way"):
                service.explain_aside(lambda: None, caller)
        gate.set()
        wait_until(lambda: all(future.done() for future in service._explanations))
        service.explain_aside(lambda: None, "one").result()


def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr(bodies, "MOST_VALUES", 50)
    assert bodies.parse(b"[" + b"0," * 40 + b'"' + b"x" * 99 + b'"]')[-1] == "x" * 99
    monkeypatch.setattr(bodies, "from_json", lambda *_, **__: pytest.fail("it was parsed"))
    with pytest.raises(Problem, match="too many values") as caught:
        bodies.parse(b"[" + b"[]," * 30 + b"1]")
    assert (caught.value.status, caught.value.code) == (413, "too_large")


def test_a_process_that_serves_leaves_what_is_there_out_of_collections_and_switches_threads_often(engine, monkeypatch):
    class Looks:
        """In place of the server: what the process is like while it serves."""

        def run(self, sockets):
            seen.append((sys.getswitchinterval(), gc.get_freeze_count()))

    seen: list[tuple[float, int]] = []
    before = sys.getswitchinterval()
    monkeypatch.setattr(server, "make_server", lambda service: Looks())
    with server.bind("127.0.0.1", 0) as listener:
        server.run(Service(engine, Settings.make(port=0), stream=io.StringIO()), listener)
    ((interval, frozen),) = seen
    assert interval == pytest.approx(server.SWITCH_S) and frozen > 10_000
    assert sys.getswitchinterval() == before and gc.get_freeze_count() == 0
