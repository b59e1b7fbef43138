"""What a service counts, for Prometheus and for the page.

Owns: the series, their labels, the last minute's figures. Ignores: what is done with them. No global state: every
service has a registry of its own.

    genre_row_seconds_bucket{adapter="like",task="like",version="a3f09c12be77",le="0.05"} 912
"""

import threading
import time
from collections import Counter as Counts
from collections import deque
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
        self.calls = Histogram(
            "genre_call_seconds", "Calls by route and status.", ["route", "status"], registry=own, buckets=SECONDS
        )
        self.rows = Histogram(
            "genre_row_seconds",
            "From a row's arrival to its answer.",
            ["adapter", "task", "version"],
            registry=own,
            buckets=SECONDS,
        )
        self.errors = Counter("genre_row_errors", "Rows that failed alone.", ["adapter", "kind"], registry=own)
        self.refused = Counter("genre_refused_calls", "Calls that were refused as a whole.", ["code"], registry=own)
        self.queue = Gauge("genre_queue_rows", "Rows that wait.", registry=own)
        self.batch_rows = Histogram("genre_batch_rows", "Rows of a micro-batch.", registry=own, buckets=SIZES)
        self.batch_tokens = Histogram("genre_batch_tokens", "Estimated tokens of a micro-batch.", registry=own, buckets=TOKENS)
        self.batch_seconds = Histogram(
            "genre_batch_seconds", "The engine's time for a micro-batch.", registry=own, buckets=SECONDS
        )
        self.lanes = Gauge("genre_lanes", "The engine's lanes.", ["state"], registry=own)
        self.swaps = Counter("genre_swaps", "Versions that replaced another one.", ["adapter"], registry=own)
        self.swap_failures = Counter("genre_swap_failures", "Versions that could not be loaded.", ["adapter"], registry=own)
        self.evictions = Counter("genre_evictions", "Versions that left their lane.", registry=own)
        self.canary = Gauge("genre_canary_share", "Share of traffic that goes to the candidate now.", ["adapter"], registry=own)
        self.canary_rollbacks = Counter("genre_canary_rollbacks", "Candidates that were given up.", ["adapter"], registry=own)
        ProcessCollector(registry=own)
        self.live = Live()
        self._seen: dict[tuple[str, str, str], float] = {}
        self._evicted, self._lock = 0, threading.Lock()

    def batch(self, rows: int, tokens: int, seconds: float) -> None:
        """A micro-batch was scored."""
        self.batch_rows.observe(rows)
        self.batch_tokens.observe(tokens)
        self.batch_seconds.observe(seconds)

    def engine(self, used: int, lanes: int, evictions: int) -> None:
        """What the engine says of itself: lanes that hold a version, all lanes, versions that have left theirs since it began."""
        self.lanes.labels("used").set(used)
        self.lanes.labels("total").set(lanes)
        with self._lock:
            self.evictions.inc(evictions - self._evicted)
            self._evicted = evictions

    def row(self, adapter: str, task: str, version: str, seconds: float) -> None:
        """A row was answered."""
        self.rows.labels(adapter, task, version).observe(seconds)
        self._seen[adapter, task, version] = time.monotonic()
        self.live.row(seconds)

    def row_failed(self, adapter: str, kind: str) -> None:
        """A row failed alone; `kind` is request, timeout or internal."""
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
        for labels, seen in list(self._seen.items()):
            if labels[2] not in versions and seen < before:
                self.rows.remove(*labels)
                self._seen.pop(labels, None)

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)


class Live:
    """The last minute in figures; a second of it at a time."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self._lock = threading.Lock()
        self._seconds: deque[list[int]] = deque(maxlen=WINDOW_S + 1)  # [second, rows, calls, errors]
        self._latencies: deque[tuple[float, float]] = deque(maxlen=2000)

    def row(self, seconds: float) -> None:
        """A row was answered."""
        with self._lock:
            self._latencies.append((time.monotonic(), seconds))
        self._add(1)

    def call(self) -> None:
        """A call was answered."""
        self._add(2)

    def error(self) -> None:
        """A row failed."""
        self._add(3)

    def _add(self, place: int) -> None:
        now = int(time.monotonic() - self.begun)
        with self._lock:
            if not self._seconds or self._seconds[-1][0] != now:
                self._seconds.append([now, 0, 0, 0])
            self._seconds[-1][place] += 1

    def figures(self) -> dict[str, Any]:
        """Rates per second over the last minute, latencies in ms (None where there is none), rows of each second."""
        uptime = time.monotonic() - self.begun
        now = int(uptime)
        with self._lock:
            kept = {entry[0]: list(entry) for entry in self._seconds if now - WINDOW_S <= entry[0] < now}
            recent = sorted(taken for when, taken in self._latencies if time.monotonic() - when <= WINDOW_S)
        span = max(1, min(WINDOW_S, now))
        sums = [sum(entry[place] for entry in kept.values()) for place in (1, 2, 3)]
        quantiles = {
            f"p{q}": 1000 * recent[min(len(recent) - 1, len(recent) * q // 100)] if recent else None for q in (50, 90, 99)
        }
        return {
            "uptime_s": round(uptime, 3), "window_s": WINDOW_S, "rows_per_s": sums[0] / span, "requests_per_s": sums[1] / span,
            "errors_per_s": sums[2] / span, "latency_ms": quantiles,
            "per_second": [kept[second][1] if second in kept else 0 for second in range(now - WINDOW_S, now)],
        }  # fmt: skip
