"""The history cache of a service: its options, its series, and users who are forgotten."""

import time

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from serving_fakes import open_engine, serving

import genre
from genre.cli.options import parse_size
from genre.cli.serve import _history_cache
from genre.engine.history_store import HistoryStore
from genre.errors import InputError

REFS = ["like@production", "next_item@production"]


def series(client):
    """The values of the cache's series."""
    return {
        sample.name.removeprefix("genre_history_cache_") + (f" {sample.labels['tier']}" if sample.labels else ""): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
        if sample.name.startswith("genre_history_cache")
    }


@pytest.fixture
def store(tmp_path):
    store = HistoryStore(2**20, disk=tmp_path / "states", disk_bytes=2**20)
    yield store
    store.close()


@pytest.fixture
def cached(trained, store):
    """A service with a history cache, and a client of it."""
    with open_engine(trained, history_cache=store) as engine, serving(engine, REFS) as (_, client):
        yield client


def test_a_user_is_forgotten_in_memory_and_on_disk(cached, store, tmp_path):
    for number in range(3):
        store.put(number, (torch.ones(100_000),), owner="u 3/1", tokens=7)
        store.put(("other", number), (torch.ones(8),), owner="u4", tokens=7)
    assert len(list((tmp_path / "states").rglob("*.safetensors"))) == 1
    for expected in (3, 0):
        answer = cached.request("DELETE", "/v1/history-cache", params={"user_id": "u 3/1"})
        assert answer.status_code == 200 and answer.json() == {"user_id": "u 3/1", "dropped": expected}
    assert list((tmp_path / "states").rglob("*.safetensors")) == [] and len(store) == 3
    store.put(0, (torch.ones(8),), owner="u 3/1", tokens=7, begun=time.monotonic())  # of a row that has waited meanwhile
    assert 0 not in store
    assert cached.request("DELETE", "/v1/history-cache").status_code == 422


def test_a_user_who_comes_back_is_found_until_forgotten_and_answered_as_ever(trained, cached, store, asked):
    user = trained.log.user_ids[3]
    rows = [
        {"adapter": "like@production", "user_id": user, "candidates": trained.log.catalogue.item_ids[:4]},
        {"adapter": "next_item@production", "user_id": user, "k": 5},
    ]

    def scores(client):
        answers = client.post("/v1/score", json={"requests": rows}).json()["responses"]
        return [{item["item_id"]: item["score"] for item in answer["results"]} for answer in answers]

    wanted = scores(asked.client)
    for hits in (0, 2):
        for got, alone in zip(scores(cached), wanted, strict=True):
            assert got == pytest.approx(alone, abs=1e-5)
        assert series(cached)["hits_total"] == hits
    assert cached.request("DELETE", "/v1/history-cache", params={"user_id": user}).json()["dropped"] == 2
    assert scores(cached)[0] == pytest.approx(wanted[0], abs=1e-5)
    found = series(cached)
    assert (found["hits_total"], found["misses_total"], found["states"]) == (2, 4, 0)  # and it is not kept again


def test_the_series_are_the_counters_of_the_store(cached, store):
    store.put("key", (torch.ones(1000),), owner="u3", tokens=7)
    assert store.get("key") is not None and store.get("no key") is None
    found = series(cached)
    assert found["bytes device"] == store.counters.device_bytes > 4000 and found["bytes disk"] == found["bytes host"] == 0
    wanted = {"hits": 1, "misses": 1, "tokens_spared": 7, "evictions": 0, "disk_failures": 0}
    assert {name: found[f"{name}_total"] for name in wanted} == wanted and found["states"] == 1
    assert cached.get("/v1/stats").json()["history_cache"] == {
        "hits": 1,
        "misses": 1,
        "states": 1,
        "bytes": store.counters.device_bytes,
    }


def test_without_a_cache_nobody_is_in_it(asked):
    answer = asked.client.request("DELETE", "/v1/history-cache", params={"user_id": "u3"})
    assert answer.status_code == 200 and answer.json() == {"user_id": "u3", "dropped": 0}
    assert series(asked.client) == {} and asked.client.get("/v1/stats").json()["history_cache"] is None


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("2GiB", 2**31),
        ("1.5 MiB", 3 * 2**19),
        ("10GB", 10**10),
        ("5kB", 5000),
        ("7KiB", 7168),
        ("3B", 3),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_size("--size", text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "2G", "2 gigabytes", "1e9", "2GiBB", "0x10", "٣GiB", "iB", "9" * 400])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(InputError, match="--size cannot be read"):
        parse_size("--size", text)


def test_a_store_on_another_device_than_the_base_is_refused(trained):
    with pytest.raises(InputError, match="history_cache lies on another device: got a store on meta; expected one on cpu"):
        open_engine(trained, history_cache=HistoryStore(2**20, device="meta"))


def test_a_base_stays_free_where_the_cache_cannot_be(trained):
    base = genre.Base.load(str(trained.base))
    with pytest.raises(InputError, match="capacity of the history cache: got -1"):
        genre.Engine(base, trained.registry, history_cache=-1)
    genre.Engine(base, trained.registry, history_cache=2**20).close()


def test_options_name_a_store_or_none(tmp_path):
    assert _history_cache("0", "0", None, "auto", 3600.0) is None
    found = _history_cache("2GiB", "1GiB", f"{tmp_path}:3GiB", "int8", 0.0)
    assert found == {
        "capacity": 2**31,
        "host": 2**30,
        "disk": tmp_path,
        "disk_bytes": 3 * 2**30,
        "storage": "int8",
        "ttl_s": None,
    }
    assert _history_cache("1MiB", "0", None, "auto", 60.0)["ttl_s"] == 60
    with pytest.raises(InputError, match="--history-cache is too small: got 2 bytes"):
        _history_cache("2", "0", None, "auto", 60.0)
