"""The queue: what goes together, what is refused, what is given up, whose fault a failure is."""

import asyncio
import contextlib
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving_fakes import open_engine, serving, wait_until

from genre.engine import Engine, Request
from genre.serving.batching import Batcher, Routed
from genre.serving.canary import fraction
from genre.serving.deployments import TokenEstimate
from genre.serving.logs import Log
from genre.serving.metrics import Metrics
from genre.serving.settings import Settings

REFS = ["like@production", "next_item@production", "rating@production"]
TASKS = ("like", "rating", "next_item")


def value(service, name, **labels):
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


def row(task, user=3):
    return {"adapter": f"{task}@production", "user_id": f"u{user}", "candidates": ["i0", "i7"]}


@pytest.fixture
def engine(trained):
    with open_engine(trained) as engine:
        yield engine


def test_calls_that_wait_together_are_one_batch_across_tasks(engine):
    with serving(engine, REFS) as (service, client), ThreadPoolExecutor(6) as pool:
        with service.batcher.paused():
            calls = [
                pool.submit(client.post, "/v1/score", json={"requests": [row(task, user)]}) for task in TASKS for user in (3, 4)
            ]
            wait_until(lambda: service.batcher.waiting == 6)
        answers = [call.result().json()["responses"][0] for call in calls]
        assert value(service, "genre_batch_rows_count") == 1 and value(service, "genre_batch_rows_sum") == 6
        wanted = engine.score([Request.from_json(row(task, user)) for task in TASKS for user in (3, 4)])
        for answer, want in zip(answers, wanted, strict=True):
            assert [item["score"] for item in answer["results"]] == pytest.approx([item.score for item in want.results], abs=1e-5)


def test_a_batch_ends_at_its_rows(engine):
    with serving(engine, REFS, batch_rows=4) as (service, client):
        answer = client.post("/v1/score", json={"requests": [row("like", user) for user in range(10)]})
        assert all("results" in one for one in answer.json()["responses"])
        assert value(service, "genre_batch_rows_count") == 3 and value(service, "genre_batch_rows_sum") == 10


def test_a_batch_ends_at_its_tokens_and_a_large_row_goes_alone(engine):
    small, large = row("like"), {"adapter": "like", "history": [], "candidates": ["i1"] * 200}
    with serving(engine, REFS, batch_tokens=150) as (service, client):
        answer = client.post("/v1/score", json={"requests": [small, small, large, small]})
        assert [len(one["results"]) for one in answer.json()["responses"]] == [2, 2, 200, 2]
        assert value(service, "genre_batch_rows_count") == 3  # two small, the large, one small
        assert value(service, "genre_batch_tokens_sum") > 200


def test_more_adapters_than_lanes_are_answered_in_one_call(trained):
    with open_engine(trained, lanes=2) as engine, serving(engine, REFS) as (_, client):
        rows = [row(task, user) for user in range(4) for task in TASKS]
        answer = client.post("/v1/score", json={"requests": rows})
        assert all("results" in one for one in answer.json()["responses"])


def test_a_full_queue_refuses_whole_calls_and_says_when_to_come_again(engine):
    with serving(engine, REFS, queue_rows=5) as (service, client), ThreadPoolExecutor(2) as pool:
        with service.batcher.paused():
            first = pool.submit(client.post, "/v1/score", json={"requests": [row("like", user) for user in range(4)]})
            wait_until(lambda: service.batcher.waiting == 4)
            refused = client.post("/v1/score", json={"requests": [row("like"), row("like")]})
            assert refused.status_code == 429 and refused.json()["code"] == "queue_full"
            assert int(refused.headers["Retry-After"]) >= 1 and "4 rows waiting and 2 more" in refused.json()["error"]
            assert service.batcher.waiting == 4
            last = pool.submit(client.post, "/v1/score", json={"requests": [row("like")]})
            wait_until(lambda: service.batcher.waiting == 5)
        assert first.result().status_code == last.result().status_code == 200
        assert value(service, "genre_refused_calls_total", code="queue_full") == 1


def test_a_call_that_waits_too_long_gets_504_and_is_not_scored(engine):
    with serving(engine, REFS, timeout_s=0.2) as (service, client):
        with service.batcher.paused():
            late = client.post("/v1/score", json={"requests": [row("like")]})
            assert late.status_code == 504 and late.json()["code"] == "timeout"
        wait_until(lambda: service.batcher.waiting == 0)
        with service.batcher.paused():
            pass
        assert value(service, "genre_batch_rows_count") == 0


def test_a_client_that_leaves_is_not_scored(engine):
    log = io.StringIO()
    with serving(engine, REFS, stream=log) as (service, client):
        with service.batcher.paused():
            with pytest.raises(Exception, match="timed out"):
                client.post("/v1/score", json={"requests": [row("like")]}, timeout=0.3)
            wait_until(lambda: '"status": 499' in log.getvalue())
        with service.batcher.paused():
            pass
        assert value(service, "genre_batch_rows_count") == 0
        assert client.post("/v1/score", json={"requests": [row("like")]}).status_code == 200


class Breaking(Engine):
    """An engine that breaks on one request."""

    def score(self, requests, refs=None, **options):
        if any(request.id == "break" for request in requests):
            raise RuntimeError("a secret of /srv/genre")
        return super().score(requests, refs, **options)


@pytest.fixture
def breaking(trained, base):
    with Breaking(base, trained.registry, lanes=8, data=trained.log) as engine:
        yield engine


def test_only_the_row_that_breaks_a_batch_fails(breaking):
    log = io.StringIO()
    with serving(breaking, REFS, stream=log) as (service, client):
        answer = client.post("/v1/score", json={"requests": [row("like"), {**row("rating"), "id": "break"}, row("next_item")]})
        assert answer.status_code == 200
        first, bad, last = answer.json()["responses"]
        assert "results" in first and "results" in last
        assert bad["error"].startswith("the row could not be scored: an internal error") and "secret" not in answer.text
        assert value(service, "genre_row_errors_total", adapter="rating", kind="internal") == 1
        assert "RuntimeError" in log.getvalue() and answer.headers["X-Request-ID"] in log.getvalue()


def test_a_call_of_which_every_row_breaks_is_a_500(breaking):
    with serving(breaking, REFS, stream=io.StringIO()) as (_, client):
        answer = client.post("/v1/score", json={"requests": [{**row("like"), "id": "break"}]})
        assert answer.status_code == 500 and "internal error" in answer.json()["responses"][0]["error"]
        assert client.get("/livez").status_code == 200


class Plain:
    """Everything is answered by whom it was meant for."""

    def reroute(self, routed):
        return routed

    def record(self, routed, *, failed):
        raise AssertionError("there is no candidate")


def test_a_stopping_queue_answers_what_waits_and_takes_nothing_more(engine):
    batcher = Batcher(engine, Settings(gather_ms=0), Log(io.StringIO()), Metrics(), Plain())
    deployment = _deployment(engine)

    async def work():
        calls = [batcher.submit([Routed(_request(user), deployment, 10)], request_id="x", timeout_s=60) for user in range(8)]
        stopping = threading.Thread(target=batcher.stop)
        stopping.start()
        await asyncio.gather(*(call.done for call in calls))
        await asyncio.to_thread(stopping.join)
        assert all(call.answers[0].response.error is None for call in calls)
        with pytest.raises(Exception, match="the service is stopping"):
            batcher.submit([Routed(_request(1), deployment, 10)], request_id="x", timeout_s=60)
        assert not batcher.alive

    batcher.start()
    asyncio.run(work())
    with batcher.paused():  # nobody scores, so nobody has to be waited for
        pass


@pytest.mark.parametrize(("apart", "batches"), [(0.05, [5]), (2.0, [1, 1])])
def test_rows_that_keep_coming_go_together(engine, monkeypatch, apart, batches):
    batcher, sizes, score = Batcher(engine, Settings(gather_ms=500), Log(io.StringIO()), Metrics(), Plain()), [], engine.score
    monkeypatch.setattr(engine, "score", lambda rows, refs, **more: sizes.append(len(rows)) or score(rows, refs, **more))
    deployment = _deployment(engine)

    async def work():
        calls = []
        for user in range(sum(batches)):
            calls.append(batcher.submit([Routed(_request(user), deployment, 10)], request_id="x", timeout_s=60))
            await asyncio.sleep(apart)
        await asyncio.gather(*(call.done for call in calls))

    batcher.start()
    asyncio.run(work())
    batcher.stop()
    assert sizes == batches


def test_rows_that_keep_coming_do_not_hold_up_the_first(engine, monkeypatch):
    batcher, sizes, score = Batcher(engine, Settings(gather_ms=50), Log(io.StringIO()), Metrics(), Plain()), [], engine.score
    monkeypatch.setattr(engine, "score", lambda rows, refs, **more: sizes.append(len(rows)) or score(rows, refs, **more))
    deployment = _deployment(engine)

    async def work():
        calls = []
        while not calls or not calls[0].done.done():  # ends only because the first is answered while others still come
            calls.append(batcher.submit([Routed(_request(3), deployment, 10)], request_id="x", timeout_s=60))
            await asyncio.sleep(0.02)
        await asyncio.gather(*(call.done for call in calls))
        return len(calls)

    batcher.start()
    assert asyncio.run(asyncio.wait_for(work(), 60)) == sum(sizes)
    batcher.stop()


def test_nothing_is_scored_in_a_pause_and_its_failure_is_its_callers_only(engine):
    with serving(engine, REFS) as (service, client), ThreadPoolExecutor(1) as pool:
        with pytest.raises(ZeroDivisionError), service.batcher.paused(), service.batcher.paused():
            call = pool.submit(client.post, "/v1/score", json={"requests": [row("like")]})
            wait_until(lambda: service.batcher.waiting == 1)
            1 // 0  # noqa: B018
        assert call.result().status_code == 200


def _request(user):
    return Request("like@production", user_id=f"u{user}", candidates=["i0"])


def _deployment(engine):
    from genre.serving.deployments import Deployments

    return Deployments(engine, Log(io.StringIO()), Metrics(), contextlib.nullcontext).add("like@production")


def test_weights_are_never_below_what_the_engine_makes_of_a_request(engine):
    """Counted by the rows that it really builds."""
    deployment = _deployment(engine)
    loaded, *_ = engine.read_by(_request(3))
    layout = loaded.layout
    assert isinstance(deployment.estimate, TokenEstimate) and deployment.estimate.events == layout.max_events
    for events in (0, 5, 40):
        history = [{"item_id": f"i{n % 30}", "rating": 4} for n in range(events)]
        request = Request("like@production", history=history, user={"age": 33}, candidates=["i1", "i2", "i3"])
        import numpy as np

        kept = min(events, layout.max_events - 1)
        built = layout.build(
            layout.prefix({"age": 33}),
            np.zeros(kept, np.int32),
            np.zeros(kept, np.int32),
            texts=[""] * 30,
            candidates=np.arange(3),
        )
        assert len(built) <= deployment.estimate.tokens(request, events) <= 4 * len(built)
    everything = Request("like@production", history=[], k=1)
    assert deployment.estimate.tokens(everything, 0) >= 30


def test_a_user_keeps_their_side_and_sides_have_their_share():
    users = [Request("like", user_id=f"user {number}") for number in range(2000)]
    places = [fraction("like", request) for request in users]
    assert places == [fraction("like", request) for request in users]
    assert 0.17 < sum(place < 0.2 for place in places) / len(places) < 0.23
    assert fraction("like", users[0]) != fraction("rating", users[0])
    assert fraction("like", Request("like", history=[], id="1")) != fraction("like", Request("like", history=[], id="2"))
    assert fraction("like", Request("like", history=[{"item_id": "1"}])) == fraction(
        "like", Request("x", history=[{"item_id": "1"}])
    )
