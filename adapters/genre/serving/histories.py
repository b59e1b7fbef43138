"""The history cache of a service, for those who watch and operate it.

Owns: its series for Prometheus, its figures for the page. Ignores: what is kept, and for how long (`genre.engine.history_store`).

    genre_history_cache_hits_total 9120.0
    genre_history_cache_bytes{tier="device"} 2.1e+09
"""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from genre.engine.history_store import HistoryStore, StoreCounters

COUNTERS = {
    "hits": "States of histories that were found.",
    "misses": "States of histories that were not there.",
    "tokens_spared": "Tokens that were not computed, since their states were found.",
    "evictions": "States that left the cache for want of room.",
    "disk_failures": "States that the disk did not take, or did not give back.",
}


class HistoryCollector(Collector):
    """The series of a store, read when they are asked for."""

    def __init__(self, store: HistoryStore) -> None:
        self.store = store

    def collect(self) -> Iterator[Metric]:
        """Read the series."""
        found = self.store.counters
        for name, about in COUNTERS.items():
            yield CounterMetricFamily(f"genre_history_cache_{name}", about, value=getattr(found, name))
        yield GaugeMetricFamily("genre_history_cache_states", "States of histories in the cache.", value=found.entries)
        held = GaugeMetricFamily("genre_history_cache_bytes", "Bytes of the cache, by tier.", labels=["tier"])
        for tier, size in _bytes_of(found).items():
            held.add_metric([tier], size)
        yield held


def figures(store: HistoryStore) -> dict[str, int]:
    """The figures for the page: hits, misses, states and bytes."""
    found = store.counters
    size = sum(_bytes_of(found).values())
    return {"hits": found.hits, "misses": found.misses, "states": found.entries, "bytes": size}


def _bytes_of(found: StoreCounters) -> dict[str, int]:
    return {"device": found.device_bytes, "host": found.host_bytes, "disk": found.disk_bytes}
