"""A share of an adapter's traffic for its `candidate`, until it fails too often.

Owns: whose requests go there, what counts as a failure, when traffic goes back. Ignores: how rows are scored.

The rule: a user (or, without a user id, a request id, or else a history) is always on the same side. A row that the
candidate fails, and that `production` then answers, is a failure of the candidate; one that both refuse is the request's own
fault. With `failures` of them among the candidate's last `window` rows all traffic goes back to `production`, and stays there
until `candidate` names another version or an operator sets the share again. The registry's aliases are left as they are.

    canaries.pick(deployment, request)  ->  the deployment of "like@candidate", for a tenth of the users
"""

import hashlib
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import to_json

from genre.engine import Request
from genre.errors import GenreError, InputError
from genre.registry.names import PRODUCTION
from genre.serving.deployments import Deployment, Deployments
from genre.serving.logs import Log
from genre.serving.metrics import Metrics

CANDIDATE = "candidate"


@dataclass
class Canary:
    """The canary of one adapter.

    Attributes:
        share: Of the traffic, while it runs.
        outcomes: Of its last rows: True for each that failed.
        state: `waiting` (for a candidate other than production), `running` or `halted`.
        version: The candidate that the state is about.
        rows: Rows that it has answered or failed.
        failures: Rows that it has failed.
        reason: Why it is halted.
    """

    share: float
    outcomes: deque[bool]
    state: str = "waiting"
    version: str | None = None
    rows: int = 0
    failures: int = 0
    reason: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def describe(self) -> dict[str, Any]:
        """The canary as the API shows it."""
        fields = ("share", "state", "version", "rows", "failures", "reason")
        return {name: getattr(self, name) for name in fields}

    def restart(self, version: str | None) -> None:
        """Reset the counts and wait for another candidate."""
        with self.lock:
            self.state = "waiting"
            self.version = version
            self.reason = None
            self.rows = 0
            self.failures = 0
            self.outcomes.clear()


class Canaries:
    """The canaries of one service: `failures` among a candidate's last `window` rows send its traffic back to production."""

    def __init__(self, deployments: Deployments, log: Log, metrics: Metrics, *, failures: int, window: int) -> None:
        self.deployments = deployments
        self.log = log
        self.metrics = metrics
        self.failures = failures
        self.window = window
        self._canaries: dict[str, Canary] = {}
        self._changing = threading.RLock()  # never taken by the thread that scores

    def set(self, name: str, share: float, *, halted: str | None = None, reason: str | None = None) -> Canary | None:
        """Give a name's candidate a share of its traffic; 0 ends it.

        Args:
            name: The adapter's name.
            share: Of the requests to its `production`.
            halted: A version that was given up before, which gets none of it.
            reason: The reason why it was given up.

        Raises:
            InputError: The name's `production` is not served here.
        """
        if self.deployments.get(f"{name}@{PRODUCTION}") is None:
            what = "a canary needs the name's production to be served"
            raise InputError(what, got=name[:80], expected=f"NAME@{PRODUCTION} is served")
        with self._changing:
            if share == 0:
                self._canaries.pop(name, None)
                self._withdraw(name)
                self.metrics.canary.labels(name).set(0)
                return None
            canary = self._canaries[name] = Canary(share, deque(maxlen=self.window))
            if halted is not None:
                canary.state = "halted"
                canary.version = halted
                canary.reason = reason
            self.sync()
            return canary

    def get(self, name: str) -> Canary | None:
        """The canary of a name."""
        return self._canaries.get(name)

    def all(self) -> list[tuple[str, Canary]]:
        """All canaries by name."""
        return list(self._canaries.items())

    def sync(self) -> None:
        """Load candidates that have come or moved, withdraw those that are halted or have become production."""
        with self._changing:
            for name, canary in self._canaries.items():
                self._sync(name, canary)

    def _sync(self, name: str, canary: Canary) -> None:
        try:
            aliases = self.deployments.registry.aliases(name)
        except GenreError as error:
            self.log.write("aliases unreadable", level="error", adapter=name, error=str(error))
            return
        version = aliases.get(CANDIDATE)
        if version != canary.version:
            canary.restart(version)
        if canary.state != "halted" and version is not None and version != aliases.get(PRODUCTION):
            self._run(name, canary)
        else:
            if canary.state != "halted":
                canary.state = "waiting"
            self._withdraw(name)
        self.metrics.canary.labels(name).set(canary.share if canary.state == "running" else 0)

    def _run(self, name: str, canary: Canary) -> None:
        ref = f"{name}@{CANDIDATE}"
        deployment = self.deployments.get(ref)
        if canary.state == "running" and deployment is not None and deployment.version.version == canary.version:
            return
        try:
            deployment = self.deployments.add(ref, public=False)
        except Exception as error:  # whatever is wrong with it, production goes on
            self._halt(name, canary, f"it cannot be loaded: {error}")
            return
        with canary.lock:
            canary.state = "running"
            canary.version = deployment.version.version

    def _withdraw(self, name: str) -> None:
        deployment = self.deployments.get(f"{name}@{CANDIDATE}")
        if deployment is not None and not deployment.public:
            self.deployments.drop(deployment.ref)

    def pick(self, deployment: Deployment, request: Request) -> Deployment | None:
        """The candidate, if it is this request's turn."""
        canary = self._canaries.get(deployment.name)
        if canary is None or canary.state != "running" or deployment.alias != PRODUCTION:
            return None
        if fraction(deployment.name, request) >= canary.share:
            return None
        candidate = self.deployments.get(f"{deployment.name}@{CANDIDATE}")
        return candidate if candidate is not None and self.runs(candidate) else None

    def runs(self, candidate: Deployment) -> bool:
        """Return whether a candidate still has traffic, and can answer it."""
        canary = self._canaries.get(candidate.name)
        if canary is None or canary.state != "running" or canary.version != candidate.version.version:
            return False
        return self.deployments.get(candidate.ref) is not None

    def record(self, candidate: Deployment, *, failed: bool) -> None:
        """Count a row that went to a candidate. Called by the thread that scores; never waits for loading."""
        canary = self._canaries.get(candidate.name)
        if canary is None or canary.version != candidate.version.version:
            return
        with canary.lock:
            canary.rows += 1
            canary.failures += failed
            canary.outcomes.append(failed)
            recent = sum(canary.outcomes)
        if recent >= self.failures and canary.state == "running":
            reason = f"{recent} of its last {len(canary.outcomes)} rows failed where {PRODUCTION} answered"
            self._halt(candidate.name, canary, reason)

    def _halt(self, name: str, canary: Canary, reason: str) -> None:
        canary.state = "halted"
        canary.reason = reason[:300]
        self.metrics.canary_rollbacks.labels(name).inc()
        self.metrics.canary.labels(name).set(0)
        self.log.write("canary rolled back", level="error", adapter=name, version=canary.version, reason=canary.reason)


def fraction(name: str, request: Request) -> float:
    """A number between 0 and 1, the same for all requests of a user."""
    if request.user_id is not None:
        key = f"user {request.user_id}"
    elif request.id is not None:
        key = f"id {request.id}"
    else:
        read = request.history if request.texts is None else request.texts
        key = "history " + to_json(read, inf_nan_mode="constants").decode()
    digest = hashlib.sha256(f"{name}\x1f{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
