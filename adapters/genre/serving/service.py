"""One service: an engine, its deployments, the queue, the canary, what is logged and counted.

Owns: the parts and their life: start, follow the registry, drain, stop; the way of a request to its deployment. Ignores: HTTP.

    service = Service(engine, Settings())
    service.start(["like@production"])
    …
    service.stop()
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TextIO

from genre.engine import Engine, Request
from genre.errors import DataError, RequestError
from genre.serving.access import AdminAccess
from genre.serving.batching import Batcher, Routed
from genre.serving.canary import Canaries
from genre.serving.deployments import Deployments
from genre.serving.exploring import Explorer
from genre.serving.histories import HistoryCollector, figures
from genre.serving.logs import Log
from genre.serving.lookup import AliasHistory, Baselines, Lookup, count_events
from genre.serving.metrics import Metrics
from genre.serving.problems import Problem
from genre.serving.served import ServedLog
from genre.serving.settings import Settings
from genre.serving.state import OperatorState, StateFile

LONGEST_PREFIX = 4096
"""Estimated tokens of an instruction and the user's columns in it: no pass of the base can be cut within them."""
EXPLANATIONS = 16
"""Explanations that wait at most; more get 429."""


class Service:
    """The parts of one service, wired.

    Args:
        engine: Closed by whoever opened it, after `stop`.
        settings: Limits and times.
        stream: Where log lines go; standard error by default.
        state: Where operators' acts are kept over a restart; closed by `stop`.
        served: Where recommended lists and their rewards are written; closed by `stop`.

    Attributes:
        bodies: The one thread that reads and writes large bodies: several would only keep the interpreter from those that score.
    """

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        *,
        stream: TextIO | None = None,
        state: StateFile | None = None,
        served: ServedLog | None = None,
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.log = Log(stream)
        self.metrics = Metrics()
        if engine.history_store is not None:
            self.metrics.registry.register(HistoryCollector(engine.history_store))
        self.batcher = Batcher(engine, settings, self.log, self.metrics, self)
        self.deployments = Deployments(engine, self.log, self.metrics, self.batcher.settle)
        numbers = {"failures": settings.canary_failures, "window": settings.canary_window}
        self.canaries = Canaries(self.deployments, self.log, self.metrics, **numbers)
        self.state = OperatorState(state, self.deployments, self.canaries, self.log)
        self.lookup = Lookup(engine, self.deployments)
        self.alias_history = AliasHistory(engine.registry, self.log)
        self.baselines = Baselines(engine.registry, self.log)
        self.access = AdminAccess(settings.token, settings.token_guesses)
        policy = settings.exploration()
        self.explorer = None if policy is None else Explorer(policy)
        self.served = served
        self.draining = False
        self.bodies = ThreadPoolExecutor(1, thread_name_prefix="genre-bodies")
        self._explainer = ThreadPoolExecutor(1, thread_name_prefix="genre-explaining")
        self._explanations: dict[Future[Any], str] = {}
        self._end = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="genre-following", daemon=True)

    def start(self, refs: list[str], *, found: bool = False) -> None:
        """Load the references, then start scoring and following aliases.

        Args:
            refs: References.
            found: Nobody named them, they were found in the registry: what cannot be loaded is left out.

        Raises:
            GenreError: A reference cannot be served; nothing has started then.
        """
        self.state.restore(refs, self.settings.canary, found=found)
        for deployment in self.deployments.all():
            version = deployment.version
            self.log.write("serving", ref=deployment.ref, version=version.version, digest=version.digest)
        self.batcher.start()
        if self.settings.follow_s:
            self._follower.start()

    def stop(self) -> None:
        """Answer the waiting rows, then end every thread."""
        self._end.set()
        if self._follower.is_alive():
            self._follower.join()
        self.batcher.stop()
        self._explainer.shutdown(cancel_futures=True)
        self.bodies.shutdown()
        self.state.save()
        self.state.close()
        if self.served is not None:
            self.served.close()
        self.log.write("stopped")

    def _follow(self) -> None:
        while not self._end.wait(self.settings.follow_s):
            try:
                self.follow()
            except Exception as error:  # a registry that cannot be read now may be there again in a second
                self.log.failure("following failed", error)

    def follow(self) -> None:
        """Catch up with the registry once."""
        self.deployments.follow()
        self.canaries.sync()
        self.state.save()
        deployments = self.deployments.all()
        self.metrics.forget({deployment.version.version for deployment in deployments})
        self.alias_history.keep_only({deployment.name for deployment in deployments})
        self.baselines.keep_only({deployment.version.digest for deployment in deployments})

    def explain_aside(self, work: Callable[[], Any], caller: str = "") -> "Future[Any]":
        """Run a part of an explanation beside the threads that score. Called on the event loop.

        Args:
            work: The part.
            caller: Who asks: one with less than its share finds room where others have taken it all.

        Raises:
            Problem: 429, too many of them wait.
        """
        self._explanations = {future: who for future, who in self._explanations.items() if not future.done()}
        callers = [*self._explanations.values(), caller]
        if len(callers) > EXPLANATIONS and callers.count(caller) > max(1, EXPLANATIONS // len(set(callers))):
            got = len(self._explanations)
            error = RequestError("too many explanations are under way", got=got, todo="try again in a second")
            raise Problem(429, "too_many_explanations", error, {"Retry-After": "1"})
        future = self._explainer.submit(work)
        self._explanations[future] = caller
        return future

    def route(self, request: Request) -> Routed:
        """Choose the deployment that answers a request, and estimate how much work it is.

        Raises:
            RequestError: It is served by nobody, or it is too much.
        """
        deployment = self.deployments.find(request.adapter)
        estimate, most = deployment.estimate, self.settings.row_tokens
        if request.user and (prefix := estimate.prefix(request)) > LONGEST_PREFIX:
            what, expected = "the user's columns are too long", f"at most {LONGEST_PREFIX:,} with the instruction"
            raise RequestError(what, got=f"about {prefix:,} tokens", expected=expected)
        tokens = estimate.tokens(request, self._events(request))
        if tokens > most:
            what, todo = "the request asks for too much at once", "give fewer candidates or new items, or a shorter history"
            raise RequestError(what, got=f"about {tokens:,} tokens", expected=f"at most {most:,}", todo=todo)
        results, candidate = estimate.results(request), self.canaries.pick(deployment, request)
        if candidate is None:
            return Routed(request, deployment, tokens, results=results)
        return Routed(request, candidate, tokens, fallback=deployment, results=results)

    def check_call(self, rows: Sequence[Routed]) -> None:
        """Refuse a call whose rows are too much together.

        Raises:
            Problem: 413.
        """
        sums = {
            "tokens": (sum(row.tokens for row in rows), self.settings.call_tokens),
            "results": (sum(row.results for row in rows), self.settings.call_results),
        }
        for unit, (got, most) in sums.items():
            if got > most:
                todo = "send fewer rows, candidates or new items in a call, or a smaller k"
                expected = f"at most {most:,}"
                error = RequestError("the call asks for too much", got=f"about {got:,} {unit}", expected=expected, todo=todo)
                raise Problem(413, "too_much", error)

    def reroute(self, routed: Routed) -> Routed | None:
        """See `Router`: a candidate that was given up meanwhile is not tried, and what was unloaded is not loaded again."""
        if routed.fallback is not None and not self.canaries.runs(routed.deployment):
            routed = replace(routed, deployment=routed.fallback, fallback=None)
        return routed if self.deployments.get(routed.deployment.ref) is not None else None

    def record(self, routed: Routed, *, failed: bool) -> None:
        """See `Router`."""
        self.canaries.record(routed.deployment, failed=failed)

    def _events(self, request: Request) -> int:
        if request.history is not None:
            return len(request.history)
        if self.engine.data is None or request.user_id is None:
            return 0
        try:
            return count_events(self.engine.data, request.user_id)
        except DataError:
            return 0

    def forget(self, user_id: str) -> int:
        """Drop a user's states from the history cache; rows that wait leave none behind either. Return how many there were."""
        store = self.engine.history_store
        return 0 if store is None else store.forget(user_id, hold_s=self.settings.timeout_s)

    def not_ready(self) -> list[str]:
        """The reasons against sending traffic; empty when the service is ready."""
        reasons = ["the service is stopping"] if self.draining else []
        if not self.batcher.alive:
            reasons.append("nobody scores")
        if not self.deployments.all():
            reasons.append("no adapter is served")
        return reasons

    def stats(self) -> dict[str, Any]:
        """Live figures for the page."""
        queue = {"queue_rows": self.batcher.waiting, "queue_limit": self.settings.queue_rows}
        store = self.engine.history_store
        cache = None if store is None else figures(store)
        return {**self.metrics.live.figures(), **queue, "lanes": self._count_lanes(), "history_cache": cache}

    def _count_lanes(self) -> dict[str, int]:
        used = len(set(self.engine.resident().values()))
        self.metrics.engine(used, self.engine.capacity, self.engine.evictions)
        return {"used": used, "total": self.engine.capacity}

    def metrics_text(self) -> bytes:
        """The page for Prometheus, with the engine's figures brought up to date."""
        self._count_lanes()
        return self.metrics.text()
