"""Rows of many calls in one batch: a bounded queue and the one thread that scores.

Owns: who waits, what goes together, time-outs, whose fault a failure is. Ignores: HTTP, bodies, aliases.

    call = batcher.submit([Routed(request, deployment, tokens)], request_id="5b0c…", timeout_s=30)
    await call.done                      # call.answers[0]  ->  Answer(Response(…), deployment)

A free worker waits until no row has come for a few milliseconds, and for ten times as long at most, so that clients that were
answered together and ask again stay together; rows that came while it was busy have waited already. A batch ends at its rows or
its tokens. Rows are scored in the order in which they came. A batch that breaks is scored again row by row, so that only the
row that breaks it fails.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from genre.engine import Engine, Request, Response
from genre.errors import RequestError
from genre.serving.deployments import Deployment
from genre.serving.logs import Log
from genre.serving.metrics import Metrics
from genre.serving.problems import Problem, shorten
from genre.serving.settings import Settings

LONGEST_GATHER = 10
NO_NUMBER = "the version gave a score that is not a number"
INTERNAL = "the row could not be scored: an internal error; the log has the reason under the call's request id"


@dataclass(frozen=True)
class Routed:
    """A request with the deployment that is to answer it.

    Attributes:
        request: As the client sent it.
        deployment: The one that answers it.
        tokens: An upper bound of its rows' tokens.
        fallback: The one that answers if that fails: production, for a request that goes to a candidate.
    """

    request: Request
    deployment: Deployment
    tokens: int
    fallback: Deployment | None = None


@dataclass(frozen=True)
class Answer:
    """The response to a row, and the deployment that gave it (None: there is none)."""

    response: Response
    deployment: Deployment | None
    internal: bool = False


class Router(Protocol):
    """Routes a request again when its turn comes."""

    def reroute(self, routed: Routed) -> Routed | None:
        """Route the request again; None if no deployment can answer it any more."""

    def record(self, routed: Routed, *, failed: bool) -> None:
        """Count a row that a candidate was tried with; `failed` where production answered and the candidate did not."""


class Call:
    """Rows that came together and are answered together."""

    def __init__(self, size: int, request_id: str, timeout_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self.request_id = request_id
        self.loop = loop
        self.begun = time.monotonic()
        self.deadline = self.begun + timeout_s
        self.answers: list[Answer | None] = [None] * size
        self.missing = size
        self.given_up = False
        self.done: asyncio.Future[None] = loop.create_future()

    def answer(self, index: int, answer: Answer) -> None:
        """Store one row's answer; the last one wakes the waiting call."""
        self.answers[index] = answer
        self.missing -= 1
        if self.missing == 0 and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


@dataclass(frozen=True, eq=False)
class _Row:
    call: Call
    index: int
    routed: Routed


class Batcher:
    """The queue and its worker."""

    def __init__(self, engine: Engine, settings: Settings, log: Log, metrics: Metrics, router: Router) -> None:
        self.engine = engine
        self.settings = settings
        self.log = log
        self.metrics = metrics
        self.router = router
        self._queue: deque[_Row] = deque()
        self._changed = threading.Condition()
        self._scoring = False
        self._pauses = 0
        self._stopping = False
        self._rows_per_s = 0.0  # lately
        self._worker = threading.Thread(target=self._work, name="genre-scoring", daemon=True)

    def start(self) -> None:
        """Start the worker."""
        self._worker.start()

    def stop(self) -> None:
        """Score the waiting rows, then end the worker."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._worker.is_alive():
            self._worker.join()

    @property
    def alive(self) -> bool:
        """True while the worker runs."""
        return self._worker.is_alive()

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return len(self._queue)

    def submit(self, rows: Sequence[Routed], *, request_id: str, timeout_s: float) -> Call:
        """Queue the rows of a call (one or more), all of them or none. Called on the event loop.

        Raises:
            Problem: 429, they do not fit; 503, the service is stopping.
        """
        call = Call(len(rows), request_id, timeout_s, asyncio.get_running_loop())
        with self._changed:
            if self._stopping or not self._worker.is_alive():
                raise Problem(503, "stopping", "the service is stopping", {"Retry-After": "1"})
            if self._queue and len(self._queue) + len(rows) > self.settings.queue_rows:
                raise self._full(len(rows))
            self._queue.extend(_Row(call, index, routed) for index, routed in enumerate(rows))
            self.metrics.queue.set(len(self._queue))
            self._changed.notify_all()
        return call

    def _full(self, more: int) -> Problem:
        seconds = math.ceil(len(self._queue) / self._rows_per_s) if self._rows_per_s else 1
        got, most = f"{len(self._queue)} rows waiting and {more} more", f"at most {self.settings.queue_rows}"
        error = RequestError("the queue is full", got=got, expected=most, todo="try again after Retry-After seconds")
        return Problem(429, "queue_full", error, {"Retry-After": str(min(60, max(1, seconds)))})

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Score nothing within the block, which begins once the batch under way is scored."""
        with self._changed:
            self._pauses += 1
            self._changed.wait_for(lambda: not self._scoring)
        try:
            yield
        finally:
            with self._changed:
                self._pauses -= 1
                self._changed.notify_all()

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            try:
                self._score(batch)
            finally:
                with self._changed:
                    self._scoring = False
                    self._changed.notify_all()

    def _take(self) -> list[_Row] | None:
        """The next batch; None when everything is scored and the worker is to end."""
        with self._changed:
            self._changed.wait_for(self._ready)
            self._gather()
            self._changed.wait_for(self._ready)  # a pause may have begun meanwhile
            if not self._queue:
                return None
            batch = self._cut()
            self._scoring = True
            self.metrics.queue.set(len(self._queue))
        return batch

    def _ready(self) -> bool:
        return not self._pauses and bool(self._queue or self._stopping)

    def _gather(self) -> None:
        """Wait briefly for more rows, as long as they keep arriving."""
        moment = self.settings.gather_ms / 1000
        while 0 < len(self._queue) < self.settings.batch_rows and not self._stopping and not self._pauses:
            first, last = self._queue[0].call.begun, self._queue[-1].call.begun
            left = min(last + moment, first + LONGEST_GATHER * moment) - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                return

    def _cut(self) -> list[_Row]:
        batch: list[_Row] = []
        tokens = 0
        while self._queue and len(batch) < self.settings.batch_rows:
            first = self._queue[0]
            if first.call.given_up:
                self._queue.popleft()
                continue
            tokens += first.routed.tokens
            if batch and tokens > self.settings.batch_tokens:
                break
            batch.append(self._queue.popleft())
        return batch

    def _score(self, batch: list[_Row]) -> None:
        begun = time.monotonic()
        rows = [current for row in batch if (current := self._current(row, begun)) is not None]
        if not rows:
            return
        answers = self._answers(rows)
        fallbacks = self._fall_back(rows, answers)
        seconds = time.monotonic() - begun
        self.metrics.batch(len(rows), sum(row.routed.tokens for row in rows), seconds)
        rows_per_s = len(rows) / max(seconds, 1e-6)
        self._rows_per_s = 0.9 * (self._rows_per_s or rows_per_s) + 0.1 * rows_per_s
        for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            other = fallbacks.get(index)
            if row.routed.fallback is not None:
                self.router.record(row.routed, failed=other is not None and other.response.error is None)
            self._deliver(row, other or answer)

    def _current(self, row: _Row, now: float) -> _Row | None:
        """The row as it is to be scored now; None if it came too late, or its adapter is no longer served, which is answered."""
        routed = self.router.reroute(row.routed)
        if row.call.deadline <= now:
            self._fail(row, "the row waited too long", "timeout")
        elif routed is None:
            self._fail(row, f"{shorten(row.routed.request.adapter)} is no longer served", "request")
        else:
            return row if routed is row.routed else replace(row, routed=routed)
        return None

    def _fall_back(self, rows: Sequence[_Row], answers: Sequence[Answer]) -> dict[int, Answer]:
        """Production's answers to the rows that a candidate failed, by their index."""
        again = {}
        for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            production = row.routed.fallback
            if production is not None and answer.response.error is not None:
                again[index] = replace(row, routed=replace(row.routed, deployment=production, fallback=None))
        return dict(zip(again, self._answers(list(again.values())), strict=True)) if again else {}

    def _answers(self, batch: list[_Row]) -> list[Answer]:
        """One answer per row, whatever happens."""
        requests = [row.routed.request for row in batch]
        refs = [row.routed.deployment.ref for row in batch]
        try:
            found = [_finite(response) for response in self.engine.score(requests, refs)]
        except Exception as error:
            if len(batch) > 1:
                return [answer for row in batch for answer in self._answers([row])]
            self.log.failure("row failed", error, request_id=batch[0].call.request_id, adapter=refs[0])
            found = [Response(requests[0].id, requests[0].adapter, error=INTERNAL)]
        return [self._answer(row, response) for row, response in zip(batch, found, strict=True)]

    def _answer(self, row: _Row, response: Response) -> Answer:
        """The response, without a path of this machine in its error."""
        if response.error is None:
            return Answer(response, row.routed.deployment)
        internal = response.error in (INTERNAL, NO_NUMBER)
        text = shorten(response.error.replace(self.engine.registry.url, "the registry"))
        return Answer(replace(response, error=text), row.routed.deployment, internal)

    def _deliver(self, row: _Row, answer: Answer) -> None:
        assert answer.deployment is not None
        deployment, response = answer.deployment, answer.response
        if response.error is None:
            seconds = time.monotonic() - row.call.begun
            task = deployment.task(row.routed.request)
            self.metrics.row(deployment.name, task, (response.digest or "")[:12], seconds)
        else:
            self.metrics.row_failed(deployment.name, "internal" if answer.internal else "request")
        row.call.answer(row.index, answer)

    def _fail(self, row: _Row, error: str, kind: str) -> None:
        request, deployment = row.routed.request, row.routed.deployment
        self.metrics.row_failed(deployment.name, kind)
        row.call.answer(row.index, Answer(Response(request.id, request.adapter, error=error), deployment))


def _finite(response: Response) -> Response:
    """A response whose scores are numbers, or its error."""
    if all(math.isfinite(scored.score) for scored in response.results):
        return response
    return Response(response.id, response.adapter, error=NO_NUMBER)
