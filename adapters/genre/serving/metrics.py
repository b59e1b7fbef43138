"""The metrics of a service, for Prometheus and for the page.

Owns: the series, their labels, the last minute's figures. Ignores: who reads them. No global state: every service has a
registry of its own.

    genre_row_seconds_bucket{adapter="like",task="like",version="a3f09c12be77",le="0.05"} 912
"""

import threading
import time
from collections import Counter as Counts
from collections import deque
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKENS = (64, 256, 1024, 2048, 4096, 8192, 16384, 65536)
WINDOW_S = 60
KEEP_S = 600


class Metrics:
    """All series of one service."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        histogram = partial(Histogram, registry=own)
        counter = partial(Counter, registry=own)
        gauge = partial(Gauge, registry=own)
        self.calls = histogram("genre_call_seconds", "Calls by route and status.", ["route", "status"], buckets=SECONDS)
        labels = ["adapter", "task", "version"]
        self.rows = histogram("genre_row_seconds", "From a row's arrival to its answer.", labels, buckets=SECONDS)
        self.errors = counter("genre_row_errors", "Rows that failed alone.", ["adapter", "kind"])
        self.refused = counter("genre_refused_calls", "Calls that were refused as a whole.", ["code"])
        self.queue = gauge("genre_queue_rows", "Rows that wait.")
        self.batch_rows = histogram("genre_batch_rows", "Rows of a micro-batch.", buckets=SIZES)
        self.batch_tokens = histogram("genre_batch_tokens", "Estimated tokens of a micro-batch.", buckets=TOKENS)
        self.batch_seconds = histogram("genre_batch_seconds", "The engine's time for a micro-batch.", buckets=SECONDS)
        self.lanes = gauge("genre_lanes", "The engine's lanes.", ["state"])
        self.swaps = counter("genre_swaps", "Versions that replaced another one.", ["adapter"])
        self.swap_failures = counter("genre_swap_failures", "Versions that could not be loaded.", ["adapter"])
        self.evictions = counter("genre_evictions", "Versions that left their lane.")
        self.canary = gauge("genre_canary_share", "Share of traffic that goes to the candidate now.", ["adapter"])
        self.canary_rollbacks = counter("genre_canary_rollbacks", "Candidates that were given up.", ["adapter"])
        self.impressions = counter("genre_impressions", "Recommended lists by whether they are in the served log.", ["outcome"])
        self.feedback = counter("genre_feedback", "Rewards that were sent, by outcome.", ["outcome"])
        ProcessCollector(registry=own)
        self.live = Live()
        self._answered: dict[tuple[str, str, str], float] = {}
        self._evicted = 0
        self._lock = threading.Lock()

    def batch(self, rows: int, tokens: int, seconds: float) -> None:
        """Count a batch that was scored."""
        self.batch_rows.observe(rows)
        self.batch_tokens.observe(tokens)
        self.batch_seconds.observe(seconds)

    def engine(self, used: int, lanes: int, evictions: int) -> None:
        """Record the engine's occupied slots, all its slots, and its evictions."""
        self.lanes.labels("used").set(used)
        self.lanes.labels("total").set(lanes)
        with self._lock:
            self.evictions.inc(evictions - self._evicted)
            self._evicted = evictions

    def row(self, adapter: str, task: str, version: str, seconds: float) -> None:
        """Count a row that was answered."""
        self.rows.labels(adapter, task, version).observe(seconds)
        self._answered[adapter, task, version] = time.monotonic()
        self.live.row(seconds)

    def row_failed(self, adapter: str, kind: str) -> None:
        """Count a row that failed alone; `kind` is request, timeout or internal."""
        self.errors.labels(adapter, kind).inc()
        self.live.error()

    def counts(self) -> Counts[tuple[str, str]]:
        """Rows that each adapter's versions have answered."""
        found: Counts[tuple[str, str]] = Counts()
        for family in self.rows.collect():
            for sample in family.samples:
                if sample.name.endswith("_count"):
                    found[sample.labels["adapter"], sample.labels["version"]] += int(sample.value)
        return found

    def forget(self, versions: set[str]) -> None:
        """Drop the series of versions that are not among these and have answered nothing for ten minutes."""
        before = time.monotonic() - KEEP_S
        for labels, answered in list(self._answered.items()):
            if labels[2] not in versions and answered < before:
                self.rows.remove(*labels)
                self._answered.pop(labels, None)

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class Live:
    """The last minute in figures, second by second."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self._lock = threading.Lock()
        self._seconds: deque[list[int]] = deque(maxlen=WINDOW_S + 1)  # [second, rows, calls, errors]
        self._latencies: deque[tuple[float, float]] = deque(maxlen=2000)

    def row(self, seconds: float) -> None:
        """Count a row that was answered."""
        with self._lock:
            self._latencies.append((time.monotonic(), seconds))
        self._add(1)

    def call(self) -> None:
        """Count a call that was answered."""
        self._add(2)

    def error(self) -> None:
        """Count a row that failed."""
        self._add(3)

    def _add(self, column: int) -> None:
        now = int(time.monotonic() - self.begun)
        with self._lock:
            if not self._seconds or self._seconds[-1][0] != now:
                self._seconds.append([now, 0, 0, 0])
            self._seconds[-1][column] += 1

    def figures(self) -> dict[str, Any]:
        """Rates per second over the last minute, latencies in ms (None where there is none), rows of each second."""
        uptime = time.monotonic() - self.begun
        now = int(uptime)
        with self._lock:
            kept = {entry[0]: list(entry) for entry in self._seconds if now - WINDOW_S <= entry[0] < now}
            recent = sorted(taken for when, taken in self._latencies if time.monotonic() - when <= WINDOW_S)
        span = max(1, min(WINDOW_S, now))
        rows, calls, errors = (sum(entry[column] for entry in kept.values()) / span for column in (1, 2, 3))
        return {
            "uptime_s": round(uptime, 3),
            "window_s": WINDOW_S,
            "rows_per_s": rows,
            "requests_per_s": calls,
            "errors_per_s": errors,
            "latency_ms": {f"p{q}": _quantile_ms(recent, q) for q in (50, 90, 99)},
            "per_second": [kept[second][1] if second in kept else 0 for second in range(now - WINDOW_S, now)],
        }


def _quantile_ms(ordered: list[float], percent: int) -> float | None:
    return 1000 * ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else None
