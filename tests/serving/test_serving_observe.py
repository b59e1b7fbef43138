"""What is told: metrics, logs without users' data, live figures, readiness."""

import io
import json

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving_fakes import open_engine, serving

SECRET = {
    "adapter": "like@production",
    "history": [{"item_id": "i11", "rating": 5}, {"item": {"title": "a secret film"}, "rating": 1}],
    "user": {"age": 4711},
    "candidates": ["i13"],
    "id": "row-1",
}
MOUNTED = {"adapter": "rating@production", "user_id": "u42", "candidates": ["i13"]}


@pytest.fixture
def engine(trained):
    with open_engine(trained) as engine:
        yield engine


def lines(log):
    return [json.loads(line) for line in log.getvalue().splitlines()]


def test_a_call_is_one_line_with_its_id_and_digests_and_nothing_of_the_user(engine):
    log = io.StringIO()
    with serving(engine, ["like@production", "rating@production"], stream=log) as (service, client):
        body = {
            "requests": [SECRET, MOUNTED, {"adapter": "like@production", "history": [{"item_id": "i29x", "rating": 1}], "k": 1}]
        }
        client.post("/v1/score", json=body, headers={"X-Request-ID": "call-7"})
        client.get("/v1/history", params={"user_id": "u42"})
        client.get("/livez")
        served = engine.resident()
    (call,) = [line for line in lines(log) if line.get("request_id") == "call-7"]
    assert call["event"] == "call" and call["route"] == "/v1/score" and call["status"] == 200
    assert call["rows"] == 3 and call["errors"] == 1 and call["digests"] == sorted(served.values()) and call["ms"] > 0
    for word in ("secret", "i11", "i13", "4711", "u42", "i29x", "row-1"):
        assert word not in log.getvalue()
    assert not [line for line in lines(log) if line.get("route") == "/livez"]


def test_rows_are_logged_only_when_asked(engine):
    log = io.StringIO()
    with serving(engine, ["like@production"], stream=log, log_rows=True) as (_, client):
        client.post("/v1/score", json={"requests": [SECRET]})
    assert [line["requests"] for line in lines(log) if line["event"] == "call"] == [[SECRET]]


def test_no_value_writes_a_line_of_its_own(engine):
    log = io.StringIO()
    with serving(engine, ["like@production"], stream=log, log_rows=True) as (_, client):
        evil = 'x"}\n{"event": "forged", "level": "error"}\r\n\u2028\x1b[31m'
        client.post("/v1/score", json={"requests": [{**SECRET, "id": evil}, {**SECRET, "adapter": evil}]})
        client.request("GET", "/nope", headers={"X-Request-ID": "a"})
        client.request("FORGED", "/v1/score")
    assert all(line["event"] != "forged" for line in lines(log))
    assert "\x1b" not in log.getvalue() and "\u2028" not in log.getvalue()


def test_metrics_are_what_prometheus_reads(engine):
    with serving(engine, ["like@production", "rating@production"], stream=io.StringIO()) as (_, client):
        for _ in range(3):
            client.post("/v1/score", json={"requests": [SECRET, MOUNTED, {"adapter": "nothing"}]})
        client.post("/v1/score", content=b"[")
        page = client.get("/metrics")
        version = engine.resident()["like@production"][:12]
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.text)
        for sample in family.samples
    }

    def value(name, **labels):
        return samples[name, tuple(sorted(labels.items()))]

    assert value("genre_row_seconds_count", adapter="like", task="like", version=version) == 3
    assert value("genre_row_errors_total", adapter="", kind="request") == 3
    assert value("genre_call_seconds_count", route="/v1/score", status="200") == 3
    assert value("genre_call_seconds_count", route="/v1/score", status="415") == 1
    assert value("genre_refused_calls_total", code="not_json") == 1
    assert value("genre_batch_rows_sum") == 6 and value("genre_queue_rows") == 0
    assert value("genre_lanes", state="used") == 2 and value("genre_lanes", state="total") == 8
    assert ("process_resident_memory_bytes", ()) in samples


def test_swaps_and_evictions_are_counted(trained):
    with open_engine(trained, lanes=2) as engine, serving(engine, ["like", "rating", "next_item"]) as (_, client):
        page = client.get("/metrics").text
        assert 'genre_lanes{state="used"} 2.0' in page and "genre_evictions_total 1.0" in page
        client.post("/v1/score", json={"requests": [{**SECRET, "adapter": "like"}]})  # comes back for another one
        assert "genre_evictions_total 2.0" in client.get("/metrics").text


def test_services_in_one_process_count_apart(engine):
    with serving(engine, ["like@production"]) as (one, client), serving(engine, ["like@production"]) as (two, _):
        client.post("/v1/score", json={"requests": [SECRET]})
        assert sum(one.metrics.counts().values()) == 1 and sum(two.metrics.counts().values()) == 0


def test_series_of_versions_that_are_gone_are_dropped(engine):
    with serving(engine, ["like@production"]) as (service, client):
        client.post("/v1/score", json={"requests": [SECRET]})
        kept = {served.version.version for served in service.deployments.all()}
        service.metrics.row("like", "like", "0123456789ab", 0.1)
        service.metrics.forget(kept)
        assert ("like", "0123456789ab") in service.metrics.counts()  # it has just answered
        service.metrics._answered["like", "like", "0123456789ab"] -= 3600
        service.metrics.forget(kept)
        assert set(service.metrics.counts()) == {("like", *kept)}


def test_live_figures_are_those_of_the_last_minute(engine):
    with serving(engine, ["like@production"]) as (service, client):
        client.post("/v1/score", json={"requests": [SECRET] * 5})
        service.metrics.live.begun -= 10  # ten seconds ago
        found = client.get("/v1/stats").json()
        assert found["window_s"] == 60 and len(found["per_second"]) == 60 and sum(found["per_second"]) == 5
        assert found["rows_per_s"] == pytest.approx(0.5, abs=0.1) and found["requests_per_s"] == pytest.approx(0.1, abs=0.02)
        assert found["latency_ms"]["p50"] <= found["latency_ms"]["p99"]
        assert found["queue_rows"] == 0 and found["queue_limit"] == 2048 and found["lanes"] == {"used": 1, "total": 8}
    with serving(engine, ["like@production"]) as (_, client):
        assert client.get("/v1/stats").json()["latency_ms"] == {"p50": None, "p90": None, "p99": None}


def test_a_draining_service_is_alive_not_ready_and_closes_its_connections(engine):
    with serving(engine, ["like@production"]) as (service, client):
        assert client.get("/readyz").json() == {"ok": True, "reasons": []}
        service.draining = True
        answer = client.get("/readyz")
        assert answer.status_code == 503 and answer.json() == {"ok": False, "reasons": ["the service is stopping"]}
        assert answer.headers["connection"] == "close"
        assert client.get("/livez").status_code == 200
        assert client.post("/v1/score", json={"requests": [SECRET]}).status_code == 200
    assert not service.batcher.alive
