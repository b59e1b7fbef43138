"""Rows of many calls in one batch: a bounded queue and the one thread that scores.

Owns: who waits, what goes together, time-outs, whose fault a failure is. Ignores: HTTP, bodies, aliases.

    call = batcher.submit([Ask(request, served)], timeout_s=30)
    await call.done                      # call.answers[0]  ->  Answer(Response(…), served)

A free worker waits until no row has come for a few milliseconds, and for ten times as long at most, so that clients that were
answered together and ask again stay together; rows that came while it was busy have waited already. A batch ends at its rows or
its tokens. Rows are served in the order in which they came. A batch that
breaks is scored again row by row, so that only the row that breaks it fails.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Protocol

from genre.engine import Engine, Request, Response
from genre.errors import RequestError
from genre.serving.logs import Log
from genre.serving.metrics import Metrics
from genre.serving.problems import Problem, shorten
from genre.serving.served import Served
from genre.serving.settings import Settings

LONGEST_GATHER = 10
NO_NUMBER = "the version gave a score that is no number"
INTERNAL = "the row could not be scored: an internal error; the log has the reason under the call's request id"


@dataclass(frozen=True)
class Ask:
    """A row that is to be scored.

    Attributes:
        request: As it was asked.
        served: By whom.
        tokens: How much work it is, from above.
        instead: Who answers if that one fails: production, for a row that goes to a candidate.
    """

    request: Request
    served: Served
    tokens: int
    instead: Served | None = None


@dataclass(frozen=True)
class Answer:
    """What came of a row: the engine's response under the reference that was asked, and who gave it (None: nobody could)."""

    response: Response
    served: Served | None
    internal: bool = False


class Routes(Protocol):
    """Who answers what, as it is when a row's turn comes."""

    def now(self, ask: Ask) -> Ask | None:
        """The row with whoever is to answer it now; None if nobody does any more."""

    def tried(self, ask: Ask, *, failed: bool) -> None:
        """A candidate was tried with this row; whether it failed where production answered."""


class Call:
    """Rows that came together and are answered together."""

    def __init__(self, size: int, request_id: str, timeout_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self.request_id, self.loop = request_id, loop
        self.begun = time.monotonic()
        self.deadline = self.begun + timeout_s
        self.answers: list[Answer | None] = [None] * size
        self.missing = size
        self.given_up = False
        self.done: asyncio.Future[None] = loop.create_future()

    def answer(self, place: int, answer: Answer) -> None:
        """One row's answer; the last one wakes whoever waits."""
        self.answers[place] = answer
        self.missing -= 1
        if self.missing == 0 and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


@dataclass(frozen=True, eq=False)
class _Waiting:
    call: Call
    place: int
    ask: Ask


@dataclass
class _Errand:
    run: Callable[[], None]
    done: "Future[None]" = field(default_factory=Future)


class Batcher:
    """The queue and its worker."""

    def __init__(self, engine: Engine, settings: Settings, log: Log, metrics: Metrics, routes: Routes) -> None:
        self.engine, self.settings, self.log, self.metrics, self.routes = engine, settings, log, metrics, routes
        self._queue: deque[_Waiting] = deque()
        self._errands: deque[_Errand] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._pace = 0.0  # rows per second, lately
        self._worker = threading.Thread(target=self._work, name="genre-scoring", daemon=True)

    def start(self) -> None:
        """Start the worker."""
        self._worker.start()

    def stop(self) -> None:
        """Score what waits, then end the worker."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._worker.is_alive():
            self._worker.join()

    @property
    def alive(self) -> bool:
        """Whether somebody scores."""
        return self._worker.is_alive()

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return len(self._queue)

    def submit(self, asks: Sequence[Ask], *, request_id: str, timeout_s: float) -> Call:
        """Queue the rows of a call, all of them or none. Called on the event loop.

        Raises:
            Problem: 429, they do not fit; 503, the service is stopping.
        """
        call = Call(len(asks), request_id, timeout_s, asyncio.get_running_loop())
        if not asks:
            call._finish()
            return call
        with self._changed:
            if self._stopping or not self._worker.is_alive():
                raise Problem(503, "stopping", "the service is stopping", {"Retry-After": "1"})
            if self._queue and len(self._queue) + len(asks) > self.settings.queue_rows:
                raise self._full(len(asks))
            self._queue.extend(_Waiting(call, place, ask) for place, ask in enumerate(asks))
            self.metrics.queue.set(len(self._queue))
            self._changed.notify_all()
        return call

    def _full(self, more: int) -> Problem:
        seconds = math.ceil(len(self._queue) / self._pace) if self._pace else 1
        error = RequestError(
            "the queue is full", got=f"{len(self._queue)} rows waiting and {more} more",
            expected=f"at most {self.settings.queue_rows}", todo="try again after Retry-After seconds",
        )  # fmt: skip
        return Problem(429, "queue_full", error, {"Retry-After": str(min(60, max(1, seconds)))})

    def between(self, run: Callable[[], None]) -> None:
        """Run something while nothing is being scored, and wait for it."""
        errand = _Errand(run)
        with self._changed:
            there = self._worker.is_alive() and not self._stopping
            if there:
                self._errands.append(errand)
                self._changed.notify_all()
        if not there:
            run()
            return
        errand.done.result()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            batch, errands = taken
            for errand in errands:
                _run(errand)
            if batch:
                self._score(batch)

    def _take(self) -> tuple[list[_Waiting], list[_Errand]] | None:
        """The next batch and what is to be done before it; None when everything is done and the worker is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._errands or self._stopping)
            self._gather()
            if not self._queue and not self._errands:
                return None
            errands = list(self._errands)
            self._errands.clear()
            batch = self._cut()
            self.metrics.queue.set(len(self._queue))
        return batch, errands

    def _gather(self) -> None:
        """Let rows wait a moment for others, as long as these keep coming."""
        moment = self.settings.gather_ms / 1000
        while 0 < len(self._queue) < self.settings.batch_rows and not self._stopping and not self._errands:
            first, last = self._queue[0].call.begun, self._queue[-1].call.begun
            left = min(last + moment, first + LONGEST_GATHER * moment) - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                return

    def _cut(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        tokens = 0
        while self._queue and len(batch) < self.settings.batch_rows:
            first = self._queue[0]
            if first.call.given_up:
                self._queue.popleft()
                continue
            tokens += first.ask.tokens
            if batch and tokens > self.settings.batch_tokens:
                break
            batch.append(self._queue.popleft())
        return batch

    def _score(self, batch: list[_Waiting]) -> None:
        begun = time.monotonic()
        rows = [current for waiting in batch if (current := self._current(waiting, begun)) is not None]
        if not rows:
            return
        answered = list(zip(rows, self._answers(rows), strict=True))
        again = [(row, answer) for row, answer in answered if row.ask.instead is not None and answer.response.error is not None]
        instead = dict(zip([id(row) for row, _ in again], self._by_production([row for row, _ in again]), strict=True))
        seconds = time.monotonic() - begun
        self.metrics.batch(len(rows), sum(row.ask.tokens for row in rows), seconds)
        self._pace = 0.9 * (self._pace or len(rows) / max(seconds, 1e-6)) + 0.1 * len(rows) / max(seconds, 1e-6)
        for row, answer in answered:
            other = instead.get(id(row))
            if row.ask.instead is not None:
                self.routes.tried(row.ask, failed=other is not None and other.response.error is None)
            self._deliver(row, other or answer)

    def _current(self, waiting: _Waiting, now: float) -> _Waiting | None:
        """The row as it is to be scored now; None if it was too late, or nobody answers it any more, and it has been told so."""
        ask = self.routes.now(waiting.ask)
        if waiting.call.deadline <= now:
            self._fail(waiting, "the row waited too long", "timeout")
        elif ask is None:
            self._fail(waiting, f"{shorten(waiting.ask.request.adapter)} is served no longer", "request")
        else:
            return waiting if ask is waiting.ask else replace(waiting, ask=ask)
        return None

    def _by_production(self, rows: list[_Waiting]) -> list[Answer]:
        """Answers to rows that a candidate failed."""
        if not rows:
            return []
        return self._answers([replace(row, ask=replace(row.ask, served=row.ask.instead, instead=None)) for row in rows])  # type: ignore[arg-type]

    def _answers(self, batch: list[_Waiting]) -> list[Answer]:
        """One answer per row, whatever happens."""
        requests = [waiting.ask.request for waiting in batch]
        refs = [waiting.ask.served.ref for waiting in batch]
        try:
            found = [_finite(response) for response in self.engine.score(requests, refs)]
        except Exception as error:
            if len(batch) > 1:
                return [answer for waiting in batch for answer in self._answers([waiting])]
            self.log.failure("row failed", error, request_id=batch[0].call.request_id, adapter=refs[0])
            found = [Response(requests[0].id, requests[0].adapter, error=INTERNAL)]
        return [self._answer(waiting, response) for waiting, response in zip(batch, found, strict=True)]

    def _answer(self, waiting: _Waiting, response: Response) -> Answer:
        """The response, without a path of this machine in its error."""
        if response.error is None:
            return Answer(response, waiting.ask.served)
        internal = response.error in (INTERNAL, NO_NUMBER)
        text = shorten(response.error.replace(self.engine.registry.url, "the registry"))
        return Answer(replace(response, error=text), waiting.ask.served, internal=internal)

    def _deliver(self, waiting: _Waiting, answer: Answer) -> None:
        assert answer.served is not None
        served, response = answer.served, answer.response
        if response.error is None:
            taken = time.monotonic() - waiting.call.begun
            self.metrics.row(served.name, served.task(waiting.ask.request), (response.digest or "")[:12], taken)
        else:
            self.metrics.row_failed(served.name, "internal" if answer.internal else "request")
        waiting.call.answer(waiting.place, answer)

    def _fail(self, waiting: _Waiting, error: str, kind: str) -> None:
        self.metrics.row_failed(waiting.ask.served.name, kind)
        request = waiting.ask.request
        waiting.call.answer(waiting.place, Answer(Response(request.id, request.adapter, error=error), waiting.ask.served))


def _finite(response: Response) -> Response:
    """A response whose scores are numbers, or its error."""
    if all(math.isfinite(scored.score) for scored in response.results):
        return response
    return Response(response.id, response.adapter, error=NO_NUMBER)


def _run(errand: _Errand) -> None:
    try:
        errand.run()
    except BaseException as error:
        errand.done.set_exception(error)
    else:
        errand.done.set_result(None)
