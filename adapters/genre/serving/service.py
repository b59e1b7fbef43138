"""One service: an engine, who is served, the queue, the canary, what is told of them.

Owns: the parts and their life: start, follow the registry, drain, stop. Ignores: HTTP.

    service = Service(engine, Settings())
    service.start(["like@production"])
    …
    service.stop()
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TextIO

from genre.engine import Engine, Request
from genre.errors import DataError, RequestError
from genre.serving.backoff import Backoff
from genre.serving.batching import Ask, Batcher
from genre.serving.canary import Canaries
from genre.serving.fleet import Fleet
from genre.serving.logs import Log
from genre.serving.lookup import Lookup
from genre.serving.memory import Memory
from genre.serving.metrics import Metrics
from genre.serving.moves import Moves
from genre.serving.problems import Problem
from genre.serving.settings import Settings
from genre.serving.state import StateFile

ASIDE = 16


class Service:
    """The parts of one service, wired.

    Args:
        engine: Closed by whoever opened it, after `stop`.
        settings: What the service was told.
        stream: Where log lines go; standard error by default.
        state: Where operators' acts are kept over a restart; closed by `stop`.
    """

    def __init__(
        self, engine: Engine, settings: Settings, *, stream: TextIO | None = None, state: StateFile | None = None
    ) -> None:
        self.engine, self.settings = engine, settings
        self.log, self.metrics = Log(stream), Metrics()
        self.batcher = Batcher(engine, settings, self.log, self.metrics, self)
        self.fleet = Fleet(engine, self.log, self.metrics, self.batcher.between)
        self.canaries = Canaries(
            self.fleet, self.log, self.metrics, failures=settings.canary_failures, window=settings.canary_window
        )
        self.memory = Memory(state, self.fleet, self.canaries, self.log)
        self.lookup, self.moves = Lookup(engine, self.fleet), Moves(engine.registry, self.log)
        self.guesses = Backoff(settings.token_guesses)
        self.draining = False
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="genre-aside")
        self._pending: set[Future[Any]] = set()
        self._end = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="genre-following", daemon=True)

    def start(self, refs: list[str], *, found: bool = False) -> None:
        """Load what is to be served and begin to score and to follow.

        Args:
            refs: References.
            found: Nobody named them, they were found in the registry: what cannot be loaded is left out.

        Raises:
            GenreError: A reference cannot be served; nothing has started then.
        """
        self.memory.start(refs, self.settings.canary, found=found)
        for served in self.fleet.all():
            self.log.write("serving", ref=served.ref, version=served.version.version, digest=served.version.digest)
        self.batcher.start()
        if self.settings.follow_s:
            self._follower.start()

    def stop(self) -> None:
        """Answer what waits, then end every thread."""
        self._end.set()
        if self._follower.is_alive():
            self._follower.join()
        self.batcher.stop()
        self._aside.shutdown(cancel_futures=True)
        self.memory.save()
        self.memory.close()
        self.log.write("stopped")

    def _follow(self) -> None:
        while not self._end.wait(self.settings.follow_s):
            try:
                self.follow()
            except Exception as error:  # a registry that cannot be read now may be there again in a second
                self.log.failure("following failed", error)

    def follow(self) -> None:
        """Catch up with the registry once."""
        self.fleet.follow()
        self.canaries.sync()
        self.memory.save()
        self.metrics.forget({served.version.version for served in self.fleet.all()})
        self.moves.keep({served.name for served in self.fleet.all()})

    def aside(self, work: Callable[[], Any]) -> "Future[Any]":
        """Run something that is no row beside the worker. Called on the event loop.

        Raises:
            Problem: 429, too many of them wait.
        """
        self._pending = {future for future in self._pending if not future.done()}
        if len(self._pending) >= ASIDE:
            error = RequestError("too many explanations are under way", got=len(self._pending), todo="try again in a second")
            raise Problem(429, "too_many_explanations", error, {"Retry-After": "1"})
        future = self._aside.submit(work)
        self._pending.add(future)
        return future

    def ask(self, request: Request) -> Ask:
        """Who is to score a request, and how much work it is.

        Raises:
            RequestError: Nobody scores it, or it is too much.
        """
        served = self.fleet.route(request.adapter)
        tokens = served.weight.tokens(request, self._events(request))
        if tokens > self.settings.row_tokens:
            raise RequestError(
                "the request asks for too much at once", got=f"about {tokens:,} tokens",
                expected=f"at most {self.settings.row_tokens:,}", todo="give fewer candidates or a shorter history",
            )  # fmt: skip
        candidate = self.canaries.pick(served, request)
        return Ask(request, served, tokens) if candidate is None else Ask(request, candidate, tokens, instead=served)

    def now(self, ask: Ask) -> Ask | None:
        """See `Routes`: a candidate that was given up meanwhile is not tried, and what was unloaded is not loaded again."""
        if ask.instead is not None and not self.canaries.runs(ask.served):
            ask = replace(ask, served=ask.instead, instead=None)
        return ask if self.fleet.get(ask.served.ref) is not None else None

    def tried(self, ask: Ask, *, failed: bool) -> None:
        """See `Routes`."""
        self.canaries.record(ask.served, failed=failed)

    def _events(self, request: Request) -> int:
        if request.history is not None:
            return len(request.history)
        data = self.engine.data
        if data is None or not isinstance(request.user_id, str):
            return 0
        try:
            code = data.user_code(request.user_id)
        except DataError:
            return 0
        return int(data.user_offsets[code + 1] - data.user_offsets[code])

    def not_ready(self) -> list[str]:
        """Why no traffic should come; empty if it should."""
        reasons = ["the service is stopping"] if self.draining else []
        if not self.batcher.alive:
            reasons.append("nobody scores")
        if not self.fleet.all():
            reasons.append("no adapter is served")
        return reasons

    def stats(self) -> dict[str, Any]:
        """Live figures for the page."""
        return {
            **self.metrics.live.figures(), "queue_rows": self.batcher.waiting, "queue_limit": self.settings.queue_rows,
            "lanes": self._lanes(),
        }  # fmt: skip

    def _lanes(self) -> dict[str, int]:
        used = len(set(self.engine.resident().values()))
        self.metrics.engine(used, self.engine.capacity, self.engine.evictions)
        return {"used": used, "total": self.engine.capacity}

    def metrics_text(self) -> bytes:
        """The page for Prometheus, with what only the engine knows brought up to date."""
        self._lanes()
        return self.metrics.text()
