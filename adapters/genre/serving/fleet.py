"""Who is served: references, the versions that they mean, alias moves.

Owns: loading, swapping and unloading by name, following the registry, promote and roll back so that nothing is moved
that cannot be served. Ignores: HTTP, queues, who may ask.

    fleet.add("like@production"); fleet.route("like").ref  ->  "like@production"

Threads: any may call anything, but the one that scores only reads. One operation is under way at a time; `route`, `get` and
`all` never wait for it.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import polars as pl

from genre.data.catalogue import Catalogue
from genre.engine import Engine, Request
from genre.errors import GenreError, InputError, NotFoundError, RequestError
from genre.registry import Move, Registry, Version
from genre.registry.names import LATEST, PRODUCTION, parse_ref
from genre.serving.logs import Log
from genre.serving.metrics import Metrics
from genre.serving.served import Served, Weight

RETRY_S = 30.0
NO_ITEMS = Catalogue(pl.DataFrame(schema={"item_id": pl.String, "title": pl.String}))
Errand = Callable[[Callable[[], None]], None]


class Fleet:
    """The references that one service serves.

    Args:
        engine: Where versions are loaded.
        log, metrics: Where moves are told and counted.
        between: Runs something while no row is being scored.
    """

    def __init__(self, engine: Engine, log: Log, metrics: Metrics, between: Errand) -> None:
        self.engine, self.registry, self.log, self.metrics, self.between = engine, engine.registry, log, metrics, between
        self._served: Mapping[str, Served] = {}  # replaced as a whole, so that readers need no lock
        self._failed: dict[str, tuple[str, float]] = {}
        self._operations = threading.RLock()
        self._held = threading.Lock()

    def all(self) -> list[Served]:
        """Everything that is served, hidden candidates too."""
        return list(self._served.values())

    def get(self, ref: str) -> Served | None:
        """What is served under exactly this reference."""
        return self._served.get(ref)

    def route(self, adapter: str) -> Served:
        """What a request that names `adapter` means: exactly that, or for a bare name its `production`, or its only reference.

        Raises:
            RequestError: It is not served here.
        """
        found = self._served.get(adapter) or self._served.get(f"{adapter}@{PRODUCTION}")
        if found is None and not {"@", ":"} & set(adapter):
            same = [served for served in self._served.values() if served.name == adapter and served.public]
            found = same[0] if len(same) == 1 else None
        if found is None or not found.public:
            known = [served.ref for served in self._served.values() if served.public]
            raise RequestError(
                "no such adapter is served here", got=adapter[:80], expected=", ".join(known[:20]) or "none is served yet",
                todo="GET /v1/adapters lists them",
            )  # fmt: skip
        return found

    def add(self, ref: str, *, public: bool = True) -> Served:
        """Load a reference and serve it; what is served already is brought up to date.

        Raises:
            GenreError: There is no such version, or it cannot be loaded here; what was served before still is.
        """
        parse_ref(ref)
        with self._operations:
            if ref not in self._served:
                self._put(ref, self.engine.load(ref), public=public)
                return self._served[ref]
            self._swap(ref)
            if public and not self._served[ref].public:
                self._set(ref, replace(self._served[ref], public=True))
            return self._served[ref]

    @contextmanager
    def held(self, ref: str) -> Iterator[None]:
        """Within the block a reference is not unloaded; for what asks the engine beside the thread that scores.

        Raises:
            RequestError: It is served no longer: the engine would load it again.
        """
        with self._held:
            if ref not in self._served:
                raise RequestError("the adapter is served no longer", got=ref, todo="GET /v1/adapters lists what is")
            yield

    def drop(self, ref: str) -> None:
        """Serve a reference no longer and free its lane, once nothing that is being scored or explained needs it.

        Raises:
            NotFoundError: It is not served.
        """
        with self._operations:
            if ref not in self._served:
                raise NotFoundError("nothing is served by that reference", got=ref[:80], expected=", ".join(self._served) or None)
            self._served = {key: served for key, served in self._served.items() if key != ref}
            self._failed.pop(ref, None)
            with self._held:
                self.between(lambda: self._unload(ref))

    def follow(self, name: str | None = None) -> list[str]:
        """Swap to what aliases name now, of one adapter or of all; what cannot be loaded leaves the old version serving.

        Returns:
            The references that moved.
        """
        moved = []
        with self._operations:
            for one in dict.fromkeys(served.name for served in self.all() if served.alias and name in (None, served.name)):
                try:
                    held = self.registry.aliases(one)
                except GenreError as error:
                    self.log.write("aliases unreadable", level="error", adapter=one, error=str(error))
                    continue
                moved += [served.ref for served in self.all() if served.name == one and self._follow(served, held)]
        return moved

    def _follow(self, served: Served, held: Mapping[str, str]) -> bool:
        version = held.get(served.alias or "")
        if version is None or version == served.version.version:
            return False
        failed, again = self._failed.get(served.ref, ("", 0.0))
        if failed == version and time.monotonic() < again:
            return False
        try:
            self._swap(served.ref)
        except Exception as error:  # a version that breaks in any way must not stop the others from being followed
            self._failed[served.ref] = (version, time.monotonic() + RETRY_S)
            self.metrics.swap_failures.labels(served.name).inc()
            self.log.failure("swap failed", error, ref=served.ref, version=version, serving=served.version.version)
            return False
        self._failed.pop(served.ref, None)
        return True

    def promote(self, ref: str, alias: str, *, floor: Mapping[str, float] | None = None, not_worse: bool = False) -> Move:
        """Move an alias in the registry, after trying the version here if that alias is served here; then follow it.

        Raises:
            GenreError: The version cannot be loaded here or is not good enough; nothing has moved then.
        """
        with self._operations:
            version = self.registry.resolve(ref)
            watched = [served for served in self.all() if served.name == version.name and served.alias == alias]
            trial = version.ref if watched and version.ref not in self._served else None
            if trial is not None:
                self.engine.swap(trial)
            try:
                move = self.registry.promote(version, alias, floor=floor, not_worse=not_worse)
                self.follow(version.name)
            finally:
                if trial is not None:
                    self._unload(trial)
        return move

    def rollback(self, name: str, alias: str) -> Move:
        """Let an alias name again what it named before, and follow it.

        Raises:
            GenreError: There is nothing to go back to, or it is damaged.
        """
        with self._operations:
            move = self.registry.rollback(name, alias)
            self.follow(name)
        return move

    def _swap(self, ref: str) -> None:
        before = self._served[ref].version
        self._put(ref, self.engine.swap(ref), public=self._served[ref].public)
        after = self._served[ref].version
        if after.digest != before.digest:
            self.metrics.swaps.labels(after.name).inc()
            self.log.write("swapped", ref=ref, version=after.version, digest=after.digest, before=before.version)

    def _put(self, ref: str, digest: str, *, public: bool) -> None:
        """Write down what the engine serves for a reference."""
        version = self.registry.open_version(parse_ref(ref).name, digest[:12])
        catalogue = NO_ITEMS if version.manifest.reads == "texts" else self._catalogue(ref)
        weight = Weight.of(version.manifest, catalogue.size)
        self._set(ref, Served(ref, version, weight, catalogue, public))

    def _set(self, ref: str, served: Served) -> None:
        self._served = {**self._served, ref: served}

    def _catalogue(self, ref: str) -> Catalogue:
        if self.engine.data is not None:
            return self.engine.data.catalogue
        loaded, *_ = self.engine.read_by(Request(ref, history=[], k=1))
        return self.engine.catalogue_of(loaded)

    def _unload(self, ref: str) -> None:
        try:
            self.engine.unload(ref)
        except RequestError:  # the engine needed its lane and has put it out already
            self.log.write("was out already", ref=ref)


def default_refs(registry: Registry) -> list[str]:
    """Every adapter that is there: under `production`, or `latest` where that is not set. Encoders are no adapters.

    Raises:
        InputError: There is none.
    """
    refs = []
    for name in registry.names():
        held = registry.aliases(name)
        alias = next((alias for alias in (PRODUCTION, LATEST) if alias in held), None)
        if alias is not None and registry.resolve(f"{name}@{alias}").manifest.kind != "encoder":
            refs.append(f"{name}@{alias}")
    if not refs:
        raise InputError("there is no adapter to serve", got=f"the registry at {registry.url}", todo="genre train publishes one")
    return refs


def fitting(registry: Registry, refs: Iterable[str], chosen: Version) -> tuple[list[str], dict[str, str]]:
    """Those references whose version has the base and depth of `chosen`, and of the others why they do not."""
    wanted, kept, other = chosen.manifest.base, [], {}
    for ref in refs:
        base = registry.resolve(ref).manifest.base
        for field in ("fingerprint", "depth"):
            got, expected = getattr(base, field), getattr(wanted, field)
            if got != expected:
                other[ref] = f"base.{field}: got {got}; expected {expected}, that of {chosen.ref}"
                break
        else:
            kept.append(ref)
    return kept, other
