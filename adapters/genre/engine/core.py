"""One base, many resident adapters: load, score mixed batches, swap, evict.

Owns: the parts of an engine and their life; the turns of a call. Ignores: training, HTTP.

    engine = Engine(base, registry, lanes=16)
    engine.score([Request("like@production", history=[…], candidates=["50"]), Request("next_item", history=[…], k=10)])

Threads: any number may call any of it; a forward pass is one at a time (the base is one), loading is outside of it. A request
keeps the version it began with.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from genre.data.catalogue import Catalogue
from genre.data.interactions import Interactions
from genre.engine.adapter_cache import AdapterCache
from genre.engine.adapter_source import AdapterSource, Resident
from genre.engine.frames import recommend_frame
from genre.engine.histories import Histories, open_store
from genre.engine.history_store import HistoryStore
from genre.engine.items import Inline
from genre.engine.passes import Passes
from genre.engine.planning import Job, history_of, plan
from genre.engine.requests import Request, Response, refused
from genre.engine.texts import plan_texts
from genre.engine.turn import ForwardTurn
from genre.engine.versions import Loaded
from genre.errors import GenreError, InputError, RequestError
from genre.modules.base.base import Base
from genre.modules.base.prefixes import takes_prefixes
from genre.modules.lora.layer import find_linears
from genre.modules.lora.slots import AdapterSlots
from genre.modules.lora.split_linears import split_linears
from genre.registry import Registry

TURN_BATCHES = 32
TURN_CODES = 2**24
"""Candidates of one turn, about: a row's items and scores stay in memory until its turn is over."""

_Waiting = tuple[int, Request, str]
"""A request that is not answered yet: its index in the call, the request, the reference that is looked up."""


class Engine:
    """Scores requests of many adapters on one base.

    Args:
        base: The base; the engine puts adapter slots on it until `close`.
        registry: Where references are looked up.
        lanes: Adapter slots: versions that are resident at once.
        host: Versions beyond those that stay in CPU memory when they leave their slot.
        data: A data set for `user_id` requests; its catalogue replaces the one that versions carry.
        batch_tokens: Padded tokens of one forward pass.
        history_cache: Bytes for the states of histories that were read, so that a user who comes back costs the new events alone
            (docs/engine.md), or a store for them, which the engine closes; None keeps none.

    Raises:
        InputError: Something else is attached to the base, or a size cannot be used.
    """

    def __init__(
        self,
        base: Base,
        registry: Registry,
        *,
        lanes: int = 16,
        host: int = 128,
        data: Interactions | None = None,
        batch_tokens: int = 8192,
        history_cache: int | HistoryStore | None = None,
    ) -> None:
        base.need_bare()
        for name, value, least in (("lanes", lanes, 1), ("host", host, 0), ("batch_tokens", batch_tokens, 1)):
            if value < least:
                raise InputError(name, got=value, expected=f"at least {least}")
        store = open_store(history_cache, base.device)
        self.history_store = store
        self.base = base
        self.registry = registry
        self.data = data
        self.capacity = lanes
        with ExitStack() as attachment:
            attachment.enter_context(base.attached("an engine"))
            linears = find_linears(base.model, "all-linear")
            attachment.enter_context(split_linears(base.model, linears))
            self.slots = AdapterSlots(base.model, linears, slots=lanes + 1, dtype=base.dtype)
            attachment.callback(self.slots.detach)
            if base.takes_blocks:
                attachment.enter_context(base.by_blocks())
            self._attachment = attachment.pop_all()
        self.forward = ForwardTurn()
        source = AdapterSource(base, registry, self.slots, data, self.forward)
        histories = Histories(store, base.depth) if store is not None and takes_prefixes(base) else None
        dropped: Any = {} if histories is None else {"unreferenced": histories.drop}
        self.cache = AdapterCache(source, capacity=lanes, cpu_capacity=host, **dropped)
        self.passes = Passes(base, self.slots, self.forward, batch_tokens, histories)
        self._state = threading.Condition()
        self._calls = 0
        self._open = True

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish running calls, refuse new ones, and detach the adapter slots from the base."""
        with self._state:
            was_open, self._open = self._open, False
            self._state.wait_for(lambda: self._calls == 0)
        if was_open:
            self.cache.clear()
            if self.history_store is not None:
                self.history_store.close()
            self._attachment.close()

    def load(self, ref: str, *, pin: bool = False) -> str:
        """Make a version resident; a no-op for what is resident already.

        Args:
            ref: `name`, `name@alias` or `name:version`; means the same version from then on, until a swap.
            pin: Never evict what it means, after a swap too.

        Returns:
            Its digest.

        Raises:
            NotFoundError, ManifestError, IntegrityError: It cannot be loaded here.
            InputError: Every slot is pinned.
        """
        with self._held(ref, pin=pin) as resident:
            return resident.digest

    def unpin(self, ref: str) -> None:
        """Undo the pin of `load`."""
        self.cache.unpin(ref)

    def swap(self, name: str, ref: str | None = None) -> str:
        """Point `name` at the version that `ref` (by default `name` itself) names in the registry now.

        The new version is read, checked and staged aside; then one assignment makes it visible. Requests under way finish
        on the version they began with. If loading fails the old version goes on serving and the error is raised.

        Returns:
            The digest that is served from now on.
        """
        with self._call():
            return self.cache.swap(name, ref or name)

    def unload(self, ref: str) -> None:
        """Remove a reference, and free its slot once no request uses it."""
        with self._call():
            self.cache.unload(ref)

    def resident(self) -> dict[str, str]:
        """The references whose version is in a slot, and its digest."""
        return self.cache.served()

    def occupancy(self) -> dict[str, int]:
        """Versions in slots (`lanes`) and in the CPU tier (`host`), the bytes of their low-rank weights, `requests` under way."""
        return self.cache.occupancy()

    @property
    def evictions(self) -> int:
        """Versions that have left their slot since the engine started, for whatever reason."""
        return self.cache.evictions

    def score(
        self,
        requests: Iterable[Request | Mapping[str, Any]],
        refs: Sequence[str] | None = None,
        *,
        pass_s: float | None = None,
    ) -> list[Response]:
        """Score requests of any adapters and tasks; a bad one fails alone.

        Adapters may outnumber the slots: the call takes turns, those that are resident first.

        Args:
            requests: Requests, or rows as `Request.from_json` reads them; one that is none gets an error response.
            refs: Exact references, one per request, that are looked up instead of `Request.adapter`; responses keep the
                request's own `adapter`. For callers that have already resolved an alias.
            pass_s: Seconds of one forward pass at most, about, by the speed of those before; None for no such limit. Other
                threads have their turn between passes.

        Returns:
            One response per request, in order.

        Raises:
            InputError: The engine is closed, or there are more or fewer references than requests.
        """
        asked = [_read(row) for row in requests]
        if refs is not None and len(refs) != len(asked):
            raise InputError("refs", got=f"{len(refs)} references", expected=f"one for each of {len(asked)} requests")
        done = [row if isinstance(row, Response) else None for row in asked]
        pass_tokens = self.passes.tokens_in(pass_s)
        with self._call():
            waiting = self._order(asked, refs)
            inline: dict[int, Inline] = {}
            while waiting:
                jobs: list[Job] = []
                try:
                    waiting = self._turn(waiting, jobs, done, inline, pass_tokens)
                    self.passes.run(jobs, pass_tokens)
                    for job in jobs:
                        done[job.number] = job.respond()
                finally:
                    self.cache.release([job.resident for job in jobs])
        return [response for response in done if response is not None]

    def recommend_frame(self, adapter: str, users: Any = None, k: int = 10, **options: Any) -> Any:
        """The best k items for users of the engine's data set, a row for each user and item.

        Args:
            adapter: `name`, `name@alias` or `name:version`.
            users: Ids, or a polars or pandas frame with a column user_id; None for all users.
            k: Items for each user; fewer where fewer are left.
            options: More fields of `Request`: task, candidates, exclude_seen, allow, deny, where, diversity, beam.

        Returns:
            A frame, pandas where users are and polars otherwise: user_id, rank (from 1), item_id, title, score and, for next-item
            tasks, probability. A user for whom nothing is left has no row.

        Raises:
            InputError: The engine has no data set, users cannot be read, or an option is unknown.
            RequestError: A user cannot be answered, who is named, or an option cannot be used.
        """
        return recommend_frame(self.score, self.data, adapter, users, k, options)

    def read_by(self, request: Request, ref: str | None = None) -> tuple[Loaded, list[dict[str, Any]], int, dict[str, Any]]:
        """Resolve a request without scoring it.

        Returns:
            The version, the events of the history that it reads, the number of older ones, and the user's columns.

        Raises:
            GenreError: The version cannot be loaded, or the user is unknown.
        """
        with self._held(ref or request.adapter) as resident:
            loaded = resident.loaded
            history, user = history_of(request, self.data)
            kept = history[loaded.layout.latest(len(history))]
            return loaded, kept, len(history) - len(kept), user

    def catalogue_of(self, loaded: Loaded) -> Catalogue:
        """The items that a version's requests may name: those of the engine's data set, or else its own."""
        return self.cache.source.catalogue_of(loaded)

    @contextmanager
    def planned(self, request: Request, ref: str | None = None) -> Iterator[Job]:
        """Plan a request as rows of the version that it means, which stays in its slot meanwhile.

        Raises:
            GenreError: The request cannot be answered.
        """
        with self.planned_together([request], ref or request.adapter) as (job,):
            yield job

    @contextmanager
    def planned_together(self, requests: Sequence[Request], ref: str) -> Iterator[list[Job]]:
        """Plan requests as rows of one version, which stays in its slot meanwhile; raises as `planned`."""
        with self._held(ref) as resident:
            inline: dict[int, Inline] = {}
            most = self.passes.batch_tokens
            yield [self._plan(number, request, resident, inline, most) for number, request in enumerate(requests)]

    @contextmanager
    def _call(self) -> Iterator[None]:
        """Count a call, so that `close` waits for it."""
        with self._state:
            if not self._open:
                raise InputError("the engine is closed", todo="open a new one on the base")
            self._calls += 1
        try:
            yield
        finally:
            with self._state:
                self._calls -= 1
                self._state.notify_all()

    @contextmanager
    def _held(self, ref: str, *, pin: bool = False) -> Iterator[Resident]:
        """Hold a version in its slot."""
        with self._call():
            resident = self.cache.acquire(ref, pin=pin)
            assert resident is not None
            try:
                yield resident
            finally:
                self.cache.release([resident])

    def _order(self, asked: Sequence[Request | Response], refs: Sequence[str] | None) -> list[_Waiting]:
        """The requests with their references, resident versions first; refused ones, responses already, are left out."""
        waiting: dict[str, list[_Waiting]] = {}
        for number, request in enumerate(asked):
            if isinstance(request, Request):
                ref = request.adapter if refs is None else refs[number]
                waiting.setdefault(ref, []).append((number, request, ref))
        resident = self.cache.served()
        order = sorted(waiting, key=lambda ref: ref not in resident)
        return [one for ref in order for one in waiting[ref]]

    def _turn(
        self,
        waiting: Sequence[_Waiting],
        jobs: list[Job],
        done: list[Response | None],
        inline: dict[int, Inline],
        pass_tokens: int,
    ) -> list[_Waiting]:
        """Plan as many requests as slots and budget allow in one turn; the caller runs and releases `jobs` (mutated).

        Returns:
            Those that are left.
        """
        tokens = codes = 0
        for index, (number, request, ref) in enumerate(waiting):
            if tokens >= TURN_BATCHES * self.passes.batch_tokens or codes >= TURN_CODES:
                return list(waiting[index:])
            try:
                resident = self.cache.acquire(ref, wait=not jobs)
                if resident is None:
                    return list(waiting[index:])
                try:
                    job = self._plan(number, request, resident, inline, pass_tokens)
                except BaseException:
                    self.cache.release([resident])
                    raise
            except GenreError as error:
                done[number] = refused(request, error)
            else:
                jobs.append(job)
                tokens += sum(map(len, job.rows))
                codes += len(job.codes)
        return []

    def _plan(self, number: int, request: Request, resident: Resident, inline: dict[int, Inline], pass_tokens: int) -> Job:
        items = inline.setdefault(id(resident.space), Inline(resident.space))
        if request.texts is not None or resident.loaded.text_layout is not None:
            return plan_texts(number, request, resident, items)
        return plan(number, request, resident, items, self.data, row_tokens=self.passes.row_tokens(pass_tokens))


def _read(row: Request | Mapping[str, Any]) -> Request | Response:
    """Parse a row as a request, or return its error response."""
    try:
        return row if isinstance(row, Request) else Request.from_json(row)
    except RequestError as error:
        return refused(row, error)
