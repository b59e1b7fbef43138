"""Deployments: the references that a service serves, the versions that they mean, alias moves.

Owns: loading, swapping and unloading by name, following the registry, promote and roll back so that nothing is moved
that cannot be served. Ignores: HTTP, queues, who may ask.

    deployments.add("like@production")
    deployments.find("like").ref  ->  "like@production"

Threads: any may call anything, but the one that scores only reads. One operation is under way at a time; `find`, `get` and
`all` never wait for it.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import polars as pl

from genre.data.catalogue import Catalogue
from genre.engine import Engine, Request
from genre.engine.versions import need_answers
from genre.errors import GenreError, InputError, ManifestError, NotFoundError, RequestError, first_line
from genre.registry import Move, Registry, Version
from genre.registry.names import LATEST, PRODUCTION, parse_ref, shorten
from genre.serving.estimates import TokenEstimate
from genre.serving.logs import Log
from genre.serving.metrics import Metrics

RETRY_S = 30.0
NO_ITEMS = Catalogue(pl.DataFrame(schema={"item_id": pl.String, "title": pl.String}))


@dataclass(frozen=True)
class Deployment:
    """A reference that is served, and the version that it means now.

    Attributes:
        ref: As the engine knows it: `name`, `name@alias` or `name:version`.
        version: The version behind it.
        estimate: Of the tokens of its requests.
        catalogue: The items that its requests may name.
        public: Whether requests may name it; a canary's candidate answers requests to others.
    """

    ref: str
    version: Version
    estimate: TokenEstimate
    catalogue: Catalogue = field(repr=False, compare=False)
    public: bool = True

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.version.name

    @property
    def alias(self) -> str | None:
        """The alias that it follows; None for `name:version`."""
        return parse_ref(self.ref).alias

    def task(self, request: Request) -> str:
        """The task that a request asks for; empty where the request names none and the version has several."""
        names = [str(task["name"]) for task in self.version.manifest.tasks]
        if request.task is None:
            return names[0] if len(names) == 1 else ""
        return request.task if request.task in names else ""


class Deployments:
    """The references that one service serves; `settle` waits until the rows that are being scored have their answers."""

    def __init__(self, engine: Engine, log: Log, metrics: Metrics, settle: Callable[[], object]) -> None:
        self.engine = engine
        self.registry = engine.registry
        self.log = log
        self.metrics = metrics
        self.settle = settle
        self._deployed: Mapping[str, Deployment] = {}  # replaced as a whole, so that readers need no lock
        self._failed: dict[str, tuple[str, float]] = {}
        self._operations = threading.RLock()
        self._held = threading.Lock()

    def all(self) -> list[Deployment]:
        """All deployments, hidden candidates included."""
        return list(self._deployed.values())

    def public(self) -> list[Deployment]:
        """The deployments that requests may name."""
        return [deployment for deployment in self._deployed.values() if deployment.public]

    def get(self, ref: str) -> Deployment | None:
        """The deployment of exactly this reference."""
        return self._deployed.get(ref)

    def find(self, adapter: str) -> Deployment:
        """The deployment that a request means: of exactly that reference, or for a bare name its `production`, or its only one.

        Raises:
            RequestError: It is not served here.
        """
        found = self._deployed.get(adapter) or self._deployed.get(f"{adapter}@{PRODUCTION}")
        public = self.public()
        if found is None and not {"@", ":"} & set(adapter):
            same = [deployment for deployment in public if deployment.name == adapter]
            found = same[0] if len(same) == 1 else None
        if found is None or not found.public:
            known = ", ".join(deployment.ref for deployment in public[:20]) or "none is served yet"
            todo = "GET /v1/adapters lists them"
            raise RequestError("no such adapter is served here", got=adapter[:80], expected=known, todo=todo)
        return found

    def add(self, ref: str, *, public: bool = True) -> Deployment:
        """Load a reference and serve it; what is served already is brought up to date.

        Raises:
            GenreError: There is no such version, or it cannot be loaded here; what was served before still is.
        """
        parse_ref(ref)
        with self._operations:
            if ref not in self._deployed:
                self._check(ref)
                self._put(ref, self.engine.load(ref), public=public)
                return self._deployed[ref]
            self._swap(ref)
            if public and not self._deployed[ref].public:
                self._set(replace(self._deployed[ref], public=True))
            return self._deployed[ref]

    @contextmanager
    def held(self, ref: str) -> Iterator[None]:
        """Keep a reference from being unloaded within the block, for calls to the engine outside of the thread that scores.

        Raises:
            RequestError: It is no longer served: the engine would load it again.
        """
        with self._held:
            if ref not in self._deployed:
                raise RequestError("the adapter is no longer served", got=ref, todo="GET /v1/adapters lists what is")
            yield

    def drop(self, ref: str) -> None:
        """Stop serving a reference, and free its slot once no row or explanation in flight needs it.

        Raises:
            NotFoundError: It is not served.
        """
        with self._operations:
            if ref not in self._deployed:
                known = ", ".join(self._deployed) or None
                raise NotFoundError("no adapter is served under that reference", got=ref[:80], expected=known)
            self._deployed = {key: deployment for key, deployment in self._deployed.items() if key != ref}
            self._failed.pop(ref, None)
            self.settle()  # rows that wait are routed again before they are scored
            with self._held:
                self._unload(ref)

    def follow(self, name: str | None = None) -> None:
        """Swap to the versions that aliases name now, of one adapter or of all; one that cannot be loaded changes nothing."""
        with self._operations:
            names = [one.name for one in self.all() if one.alias and name in (None, one.name)]
            for adapter in dict.fromkeys(names):
                try:
                    pins = self.registry.pins(adapter)
                except GenreError as error:
                    self.log.write("aliases unreadable", level="error", adapter=adapter, error=str(error))
                    continue
                for deployment in self.all():
                    if deployment.name == adapter:
                        self._follow(deployment, pins.get(deployment.alias or ""))

    def _follow(self, deployment: Deployment, pin: str | None) -> None:
        if pin is None or deployment.version.digest.startswith(pin):
            return
        failed, retry_at = self._failed.get(deployment.ref, ("", 0.0))
        if failed == pin and time.monotonic() < retry_at:
            return
        try:
            self._swap(deployment.ref)
        except Exception as error:  # a version that breaks in any way must not stop the others from being followed
            self._failed[deployment.ref] = (pin, time.monotonic() + RETRY_S)
            self.metrics.swap_failures.labels(deployment.name).inc()
            serving = deployment.version.version
            self.log.failure("swap failed", error, ref=deployment.ref, version=shorten(pin), serving=serving)
        else:
            self._failed.pop(deployment.ref, None)

    def promote(self, ref: str, alias: str, *, floor: Mapping[str, float] | None = None, not_worse: bool = False) -> Move:
        """Move an alias in the registry, after loading the version here if that alias is served here; then follow it.

        Raises:
            GenreError: The version cannot be loaded here or is not good enough; nothing has moved then.
        """
        with self._operations:
            version = self.registry.resolve(ref)
            watched = any(one.name == version.name and one.alias == alias for one in self.all())
            trial = version.ref if watched and version.ref not in self._deployed else None
            if trial is not None:
                self._check(trial)
                self.engine.swap(trial)
            try:
                move = self.registry.promote(version, alias, floor=floor, not_worse=not_worse)
                self.follow(version.name)
            finally:
                if trial is not None:
                    self._unload(trial)
        return move

    def rollback(self, name: str, alias: str) -> Move:
        """Roll an alias back, and follow it.

        Raises:
            GenreError: There is nothing to go back to, or it is damaged.
        """
        with self._operations:
            move = self.registry.rollback(name, alias)
            self.follow(name)
        return move

    def _check(self, ref: str) -> None:
        """Refuse a version whose requests could not be weighed, before the engine knows it."""
        manifest = self.registry.resolve(ref).manifest
        need_answers(manifest, ref)
        TokenEstimate.of(manifest, 0)

    def _swap(self, ref: str) -> None:
        before = self._deployed[ref]
        self._check(ref)
        self._put(ref, self.engine.swap(ref), public=before.public)
        after = self._deployed[ref].version
        if after.digest != before.version.digest:
            self.metrics.swaps.labels(after.name).inc()
            self.log.write("swapped", ref=ref, version=after.version, digest=after.digest, before=before.version.version)

    def _put(self, ref: str, digest: str, *, public: bool) -> None:
        """Record the version that the engine serves for a reference."""
        version = self.registry.open_version(parse_ref(ref).name, digest)
        catalogue = NO_ITEMS if version.manifest.reads == "texts" else self._catalogue(ref)
        self._set(Deployment(ref, version, TokenEstimate.of(version.manifest, catalogue.size), catalogue, public))

    def _set(self, deployment: Deployment) -> None:
        self._deployed = {**self._deployed, deployment.ref: deployment}

    def _catalogue(self, ref: str) -> Catalogue:
        if self.engine.data is not None:
            return self.engine.data.catalogue
        loaded, *_ = self.engine.read_by(Request(ref, history=[]))
        return self.engine.catalogue_of(loaded)

    def _unload(self, ref: str) -> None:
        try:
            self.engine.unload(ref)
        except RequestError:  # the engine needed its slot and has put it out already
            self.log.write("was out already", ref=ref)


def served_by_default(registry: Registry) -> tuple[list[str], dict[str, str]]:
    """Every adapter of a registry: under `production`, or `latest` where that is not set. Encoders are not adapters.

    Returns:
        References whose version can answer requests on the base of the first one, and for each of the others the reason why it
        cannot: it is damaged, it has no tasks, it has another base or depth.

    Raises:
        InputError: There is none.
    """
    found: list[Version] = []
    refs: list[str] = []
    others: dict[str, str] = {}
    for name in registry.names():
        try:
            aliases = registry.aliases(name)
            alias = next((alias for alias in (PRODUCTION, LATEST) if alias in aliases), None)
            version = None if alias is None else registry.resolve(f"{name}@{alias}")
        except (GenreError, OSError) as error:
            others[name] = first_line(error, 300)
            continue
        if version is None or version.manifest.kind == "encoder":
            continue
        ref = f"{name}@{alias}"
        why = _unfit(version, found[0] if found else None)
        if why is not None:
            others[ref] = why
            continue
        found.append(version)
        refs.append(ref)
    if not refs:
        found_here = "; ".join(f"{ref}: {why}" for ref, why in list(others.items())[:3]) or f"the registry at {registry.url}"
        todo = "genre train publishes one"
        raise InputError("there is no adapter to serve", got=found_here, expected="one with tasks", todo=todo)
    return refs, others


def _unfit(version: Version, chosen: Version | None) -> str | None:
    """The reason why a version cannot be served beside `chosen`; None if it can."""
    manifest = version.manifest
    if not manifest.answers:
        return "it has no tasks: an imported adapter is a low-rank update alone"
    try:
        TokenEstimate.of(manifest, 0)
    except ManifestError as error:
        return str(error)
    if chosen is None:
        return None
    for name in ("fingerprint", "depth"):
        got, expected = getattr(manifest.base, name), getattr(chosen.manifest.base, name)
        if got != expected:
            return f"base.{name}: got {got}; expected {expected}, that of {chosen.ref}"
    return None
