"""Rows of many calls in one batch: bounded queues and the threads that score.

Owns: who waits, what goes together, time-outs, whose fault a failure is. Ignores: HTTP, bodies, aliases.

    call = batcher.submit([Routed(request, deployment, tokens)], request_id="5b0c…", timeout_s=30)
    await call.done                      # call.answers[0]  ->  Answer(Response(…), deployment)

A free worker waits until no row has come for a few milliseconds, and for ten times as long at most, so that clients that were
answered together and ask again stay together; rows that came while it was busy have waited already. A batch ends at its rows, at
its tokens, or at those that the base computes in a tenth of a second, for who comes meanwhile waits for all of it. Callers take
turns, and so do the calls of one caller (`genre.serving.turns`). A row of more tokens than a batch goes alone, in a thread of its
own: the engine runs one forward pass at a time, so that its passes and those of batches alternate. A batch that breaks is scored
again row by row, so that only the row that breaks it fails.
"""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from genre.engine import Engine, Request, Response
from genre.engine.requests import NOT_FINITE
from genre.errors import RequestError
from genre.serving.deployments import Deployment
from genre.serving.logs import Log
from genre.serving.metrics import Metrics
from genre.serving.problems import Problem, shorten
from genre.serving.settings import Settings
from genre.serving.turns import Turns

LONGEST_GATHER = 10
TURNS_IN_BATCH = 4
"""Lines that may fill a batch together, each with a quantum, before one of them goes on."""
LARGEST_QUANTUM = 512
"""Tokens of a line before the others, where a batch holds more: batches are smaller on a slow base."""
INTERNAL = "the row could not be scored: an internal error; the log has the reason under the call's request id"


@dataclass(frozen=True)
class Routed:
    """A request with the deployment that is to answer it.

    Attributes:
        request: As the client sent it.
        deployment: The one that answers it.
        tokens: An upper bound of its rows' tokens.
        fallback: The one that answers if that fails: production, for a request that goes to a candidate.
        results: An upper bound of the results in its answer.
    """

    request: Request
    deployment: Deployment
    tokens: int
    fallback: Deployment | None = None
    results: int = 0


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


class _Worker:
    """A thread that scores, and the rows that wait for it.

    Attributes:
        rows: Those that wait, by caller and call.
        scoring: The number of the batch that it scores now; 0 for none.
    """

    def __init__(self, name: str, quantum: int, work: Callable[["_Worker"], None], *, gathers: bool) -> None:
        self.gathers = gathers
        self.rows: Turns[_Row] = Turns(quantum)
        self.newest = 0.0
        self.scoring = 0
        self.thread = threading.Thread(target=work, args=(self,), name=name, daemon=True)


class Batcher:
    """The queues and their workers: one for batches, one for rows that are larger than a batch."""

    def __init__(self, engine: Engine, settings: Settings, log: Log, metrics: Metrics, router: Router) -> None:
        self.engine = engine
        self.settings = settings
        self.log = log
        self.metrics = metrics
        self.router = router
        self._changed = threading.Condition()
        self._pauses = 0
        self._batches = 0
        self._stopping = False
        self._rows_per_s = 0.0  # lately
        quantum = max(1, min(LARGEST_QUANTUM, settings.batch_tokens // TURNS_IN_BATCH))
        self._small = _Worker("genre-scoring", quantum, self._work, gathers=True)
        self._large = _Worker("genre-scoring-large", quantum, self._work, gathers=False)
        self._workers = (self._small, self._large)

    def start(self) -> None:
        """Start the workers."""
        for worker in self._workers:
            worker.thread.start()

    def stop(self) -> None:
        """Score the waiting rows, then end the workers."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for worker in self._workers:
            if worker.thread.is_alive():
                worker.thread.join()

    @property
    def alive(self) -> bool:
        """True while the workers run."""
        return all(worker.thread.is_alive() for worker in self._workers)

    @property
    def waiting(self) -> int:
        """Rows in the queues."""
        return sum(len(worker.rows) for worker in self._workers)

    def submit(self, rows: Sequence[Routed], *, request_id: str, timeout_s: float, caller: str = "") -> Call:
        """Queue the rows of a call (one or more), all of them or none. Called on the event loop.

        Args:
            rows: The rows.
            request_id: The call's.
            timeout_s: Seconds from now until rows are no longer scored.
            caller: Who shares turns and room in the queue with nobody else: a client's address.

        Raises:
            Problem: 429, they do not fit; 503, the service is stopping.
        """
        call = Call(len(rows), request_id, timeout_s, asyncio.get_running_loop())
        with self._changed:
            if self._stopping or not self.alive:
                raise Problem(503, "stopping", "the service is stopping", {"Retry-After": "1"})
            if not self._fits(caller, len(rows)):
                raise self._full(len(rows))
            most = self._batch_tokens()
            for index, routed in enumerate(rows):
                worker = self._large if routed.tokens > most else self._small
                worker.rows.push((caller, id(call)), _Row(call, index, routed), routed.tokens)
                worker.newest = call.begun
            self.metrics.queue.set(self.waiting)
            self._changed.notify_all()
        return call

    def _batch_tokens(self) -> int:
        """Tokens of a batch at most, now."""
        return min(self.settings.batch_tokens, self.engine.passes.tokens_in(self.settings.batch_ms / 1000))

    def _fits(self, caller: str, more: int) -> bool:
        """True if there is room for more rows, or the caller has less than its share of a queue that others have filled."""
        most, waiting = self.settings.queue_rows, self.waiting
        if not waiting or waiting + more <= most:
            return True
        own = sum(worker.rows.under(caller) for worker in self._workers)
        callers = max(worker.rows.keys + (not worker.rows.under(caller)) for worker in self._workers)
        return own + more <= most // callers

    def _full(self, more: int) -> Problem:
        waiting = self.waiting
        seconds = math.ceil(waiting / self._rows_per_s) if self._rows_per_s else 1
        got, most = f"{waiting} rows waiting and {more} more", f"at most {self.settings.queue_rows}"
        error = RequestError("the queue is full", got=got, expected=most, todo="try again after Retry-After seconds")
        return Problem(429, "queue_full", error, {"Retry-After": str(min(60, max(1, seconds)))})

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Score nothing within the block, which begins once the batches under way are scored."""
        with self._changed:
            self._pauses += 1
            self._changed.wait_for(lambda: not any(worker.scoring for worker in self._workers))
        try:
            yield
        finally:
            with self._changed:
                self._pauses -= 1
                self._changed.notify_all()

    def settle(self) -> None:
        """Wait until the batches under way are scored; later ones go on meanwhile."""
        with self._changed:
            under_way = {worker.scoring for worker in self._workers} - {0}
            self._changed.wait_for(lambda: under_way.isdisjoint(worker.scoring for worker in self._workers))

    def _work(self, worker: _Worker) -> None:
        while (batch := self._take(worker)) is not None:
            try:
                self._score(batch)
            finally:
                with self._changed:
                    worker.scoring = 0
                    self._changed.notify_all()

    def _take(self, worker: _Worker) -> list[_Row] | None:
        """The next batch; None when everything is scored and the worker is to end."""

        def ready() -> bool:
            return not self._pauses and bool(len(worker.rows) or self._stopping)

        with self._changed:
            self._changed.wait_for(ready)
            if worker.gathers:
                self._gather(worker)
                self._changed.wait_for(ready)  # a pause may have begun meanwhile
            if not len(worker.rows):
                return None
            batch = self._cut(worker.rows)
            self._batches += 1
            worker.scoring = self._batches
            self.metrics.queue.set(self.waiting)
        return batch

    def _gather(self, worker: _Worker) -> None:
        """Wait briefly for more rows, as long as they keep arriving."""
        moment = self.settings.gather_ms / 1000
        while 0 < len(worker.rows) < self.settings.batch_rows and not self._stopping and not self._pauses:
            first = worker.rows.first()[0].call.begun
            left = min(worker.newest + moment, first + LONGEST_GATHER * moment) - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                return

    def _cut(self, rows: Turns[_Row]) -> list[_Row]:
        batch: list[_Row] = []
        tokens, most = 0, self._batch_tokens()
        while len(rows) and len(batch) < self.settings.batch_rows:
            first, work = rows.first()
            if first.call.given_up:
                rows.pop()
                continue
            tokens += work
            if batch and tokens > most:
                break
            batch.append(rows.pop()[0])
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
            found = self.engine.score(requests, refs, pass_s=self.settings.batch_ms / 1000)
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
        internal = response.error in (INTERNAL, NOT_FINITE)
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
