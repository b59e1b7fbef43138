"""One base, many resident adapters: load, score mixed batches, swap, evict.

Owns: who is resident, which version a name means now, the scoring pass. Ignores: training, HTTP.

    engine = Engine(base, registry, lanes=16)
    engine.score([Request("like@production", history=[…], candidates=["50"]), Request("next_item", history=[…], k=10)])

Threads: any number may call `score`, `load`, `swap`; a forward pass is one at a time (the base is one), loading is outside
of it. A request keeps the version it began with.
"""

import string
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genre.assembly import SharedEncoder
from genre.base import Base
from genre.catalogue import Catalogue
from genre.engine.items import Inline, ItemSpace
from genre.engine.requests import Request, Response, Scored
from genre.errors import GenreError, InputError, RequestError
from genre.heads import CatalogueHead, View
from genre.interactions import Interactions
from genre.lanes import Lanes, Place
from genre.lora import find_linears
from genre.registry import Registry
from genre.sequences import Batch, Layout, collate, plan_batches
from genre.sequences import Sequence as Row
from genre.tasks import Task
from genre.versions import Loaded, read_adapter

BRANCHES = 512


@dataclass(eq=False)
class Resident:
    """A version in a lane.

    Attributes:
        place: Its lane; None runs on the bare base.
        space: The catalogue as its encoder sees it.
        tables: What each head makes of the catalogue's item vectors.
        users: Requests under way that began with it.
        names: References that mean it now.
    """

    loaded: Loaded
    place: Place | None
    space: ItemSpace
    tables: dict[str, tuple[Tensor, ...]]
    users: int = 0
    names: set[str] = field(default_factory=set)


@dataclass
class _Job:
    """A request on its way through a call."""

    number: int
    request: Request
    resident: Resident
    task: Task
    inline: Inline
    codes: np.ndarray
    rows: list[Row]
    scores: list[np.ndarray] = field(default_factory=list)


class Engine:
    """Scores requests of many adapters on one base.

    Args:
        base: The base; the engine puts lane layers on it until `close`.
        registry: Where references are looked up.
        lanes: Adapters that are resident at once.
        data: A data set for `user_id` requests; its catalogue replaces the one that versions carry.
        batch_tokens: Padded tokens of one forward pass.

    Attributes:
        evictions: Versions that have left their lane.

    Raises:
        InputError: Something else is attached to the base.
    """

    def __init__(
        self,
        base: Base,
        registry: Registry,
        *,
        lanes: int = 16,
        data: Interactions | None = None,
        batch_tokens: int = 8192,
    ) -> None:
        base.need_bare()
        if lanes < 1:
            raise InputError("lanes", got=lanes, expected="at least 1")
        self.base, self.registry, self.data, self.batch_tokens, self.capacity = (
            base,
            registry,
            data,
            batch_tokens,
            lanes,
        )
        self.lanes = Lanes(base.model, find_linears(base.model, "all-linear"), slots=lanes + 1, dtype=base.dtype)
        base.occupied_by = "an engine"
        self.evictions = 0
        self._serving: dict[str, Resident] = {}
        self._resident: OrderedDict[str, Resident] = OrderedDict()
        self._pinned: set[str] = set()
        self._encoders: dict[str, SharedEncoder] = {}
        self._spaces: dict[tuple[str | None, str, tuple[str, ...]], ItemSpace] = {}
        self._table = threading.RLock()
        self._loading = threading.Lock()
        self._forward = threading.Lock()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the lane layers off the base."""
        with self._table, self._forward:
            if self.base.occupied_by == "an engine":
                self.lanes.detach()
                self.base.occupied_by = None
            self._serving.clear()
            self._resident.clear()

    def load(self, ref: str, *, pin: bool = False) -> str:
        """Make a version resident; a no-op for what is served already.

        Returns:
            Its digest.

        Raises:
            NotFoundError, ManifestError, IntegrityError: It cannot be loaded here.
        """
        resident = self._of(ref)
        if pin:
            with self._table:
                self._pinned.add(resident.loaded.digest)
        return resident.loaded.digest

    def swap(self, name: str, ref: str | None = None) -> str:
        """Let `name` mean what `ref` (by default `name` itself) means in the registry now.

        The new version is read, checked and staged aside; then one assignment makes it visible. Requests under way finish
        on the version they began with. If loading fails the old version goes on serving and the error is raised.

        Returns:
            The digest that is served from now on.
        """
        with self._loading:
            fresh = self._stage(ref or name, spare=1)
            with self._table:
                old = self._serving.get(name)
                self._serving[name] = fresh
                fresh.names.add(name)
                if old is not None and old is not fresh:
                    old.names.discard(name)
            self._drop_unused()
        return fresh.loaded.digest

    def unload(self, ref: str) -> None:
        """Let a reference mean nothing again, and free its lane once no request uses it."""
        with self._loading:
            with self._table:
                resident = self._serving.pop(ref, None)
                if resident is None:
                    raise RequestError(
                        "nothing is loaded by that reference", got=ref, expected=", ".join(self._serving) or "none"
                    )
                resident.names.discard(ref)
                self._pinned.discard(resident.loaded.digest)
            self._drop_unused()

    def resident(self) -> dict[str, str]:
        """The references that are served and the digests they mean."""
        with self._table:
            return {name: resident.loaded.digest for name, resident in self._serving.items()}

    def score(self, requests: Iterable[Request]) -> list[Response]:
        """Score requests of any adapters and tasks; a bad one fails alone.

        Returns:
            One response per request, in order.
        """
        asked = list(requests)
        done: list[Response | None] = [None] * len(asked)
        jobs: list[_Job] = []
        inline: dict[int, Inline] = {}
        try:
            for number, request in enumerate(asked):
                try:
                    jobs.append(self._plan(number, request, inline))
                except GenreError as error:
                    done[number] = Response(request.id, request.adapter, error=str(error))
            self._run(jobs)
            for job in jobs:
                done[job.number] = _respond(job)
        finally:
            self._release(jobs)
        return [response for response in done if response is not None]

    def read_by(self, request: Request) -> tuple[Loaded, list[dict[str, Any]], int, dict[str, Any]]:
        """What a request means now, before anything is scored.

        Returns:
            The version, the events of the history that it reads, how many older ones it does not, and the user's columns.

        Raises:
            GenreError: The version cannot be loaded, or the user is unknown.
        """
        request.check()
        loaded = self._of(request.adapter).loaded
        history, user = self._history(request)
        kept = history[-(loaded.layout.max_events - 1) :]
        return loaded, kept, len(history) - len(kept), user

    def catalogue_of(self, loaded: Loaded) -> Catalogue:
        """The items that a version's requests may name: those of the engine's data set, or else its own."""
        return self.data.catalogue if self.data is not None else loaded.catalogue

    def _release(self, jobs: Sequence[_Job]) -> None:
        """Let go of the versions that jobs began with."""
        with self._table:
            for job in jobs:
                job.resident.users -= 1
            stale = any(not job.resident.names for job in jobs)
        if stale and self._loading.acquire(blocking=False):  # who loads or swaps now drops them when done
            try:
                self._drop_unused()
            finally:
                self._loading.release()

    def _of(self, ref: str) -> Resident:
        with self._table:
            found = self._serving.get(ref)
            if found is not None:
                self._resident.move_to_end(found.loaded.digest)
                return found
        with self._loading:
            with self._table:
                if ref in self._serving:
                    return self._serving[ref]
            fresh = self._stage(ref)
            with self._table:
                self._serving[ref] = fresh
                fresh.names.add(ref)
            return fresh

    def _stage(self, ref: str, *, spare: int = 0) -> Resident:
        """Read a version and write it into a free lane; nothing is routed there yet. Held under `_loading`.

        `spare` lanes beyond the capacity may be used: a swap stages beside the version that it replaces.
        """
        loaded = read_adapter(self.registry, ref, self.base, encoders=self._encoders)
        with self._table:
            if loaded.digest in self._resident:
                self._resident.move_to_end(loaded.digest)
                return self._resident[loaded.digest]
        unknown = sorted(set(loaded.low) - set(self.lanes.layers))
        if unknown:
            raise InputError(f"{ref} adapts a linear that the base does not have", got=unknown[0])
        self._make_room(spare)
        space = self._space(loaded)
        tables = {}
        if space.vectors is not None:
            with torch.no_grad():
                tables = {name: head.tables(space.vectors) for name, head in loaded.heads.items()}
        with self._forward:  # a bucket may grow, which replaces its stacks
            place = self.lanes.write(loaded.low)
        resident = Resident(loaded, place, space, tables)
        with self._table:
            self._resident[loaded.digest] = resident
        return resident

    def _space(self, loaded: Loaded) -> ItemSpace:
        catalogue = self.catalogue_of(loaded)
        key = (loaded.shared.digest if loaded.shared else None, catalogue.digest, loaded.layout.text)
        if key not in self._spaces:
            self._spaces[key] = ItemSpace(catalogue, loaded.layout.text, loaded.shared, self.base, self._forward)
        return self._spaces[key]

    def _make_room(self, spare: int) -> None:
        with self._table:
            while len(self._resident) >= self.capacity + spare:
                idle = [r for digest, r in self._resident.items() if r.users == 0 and digest not in self._pinned]
                if not idle:
                    raise InputError(
                        "every lane is pinned or in use",
                        got=f"{self.capacity} lanes",
                        todo="give the engine more lanes or unpin one",
                    )
                self._evict(idle[0])

    def _evict(self, resident: Resident) -> None:
        for name in resident.names:
            self._serving.pop(name, None)
        resident.names.clear()
        self._resident.pop(resident.loaded.digest, None)
        with self._forward:
            self.lanes.erase(resident.place)
        self.evictions += 1

    def _drop_unused(self) -> None:
        """Free the lanes of versions that no reference means any more.

        Held under `_loading`, as all eviction is: a version between being staged and being named must not be taken for unused.
        """
        with self._table:
            for resident in [r for r in self._resident.values() if not r.names and r.users == 0]:
                self._evict(resident)

    def _plan(self, number: int, request: Request, inline: dict[int, Inline]) -> _Job:
        request.check()
        while True:  # what is evicted or swapped between look-up and use is looked up again
            resident = self._of(request.adapter)
            with self._table:
                if self._resident.get(resident.loaded.digest) is resident:
                    resident.users += 1
                    break
        try:
            task = _task(resident.loaded, request)
            items = inline.setdefault(id(resident.space), Inline(resident.space))
            history, user = self._history(request)
            seen = [items.code(event["item_id"] if "item_id" in event else event["item"]) for event in history]
            codes = _candidates(request, items, set(seen))
            job = _Job(number, request, resident, task, items, codes, [])
            layout = resident.loaded.layout
            kept = history[-(layout.max_events - 1) :]
            job.rows = _rows(job, layout, kept, seen[len(history) - len(kept) :], user)
            return job
        except BaseException:
            with self._table:
                resident.users -= 1
            raise

    def _history(self, request: Request) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        user = dict(request.user or {})
        if request.history is not None:
            return [dict(event) for event in request.history], user
        if self.data is None:
            raise RequestError(
                "user_id needs a data set",
                got=request.user_id,
                todo="give the history in the request, or give the engine data",
            )
        assert request.user_id is not None
        history = self.data.history(request.user_id)
        if self.data.users is not None:
            user = {**self.data.users.row(self.data.user_code(request.user_id), named=True), **user}
        return history, user

    @torch.no_grad()
    def _run(self, jobs: list[_Job]) -> None:
        rows = [(job, row) for job in jobs for row in job.rows]
        if not rows:
            return
        tables = {id(job.resident.space): job.inline.tables() for job in jobs}
        lengths = np.array([max(map(len, job.rows)) for job, _ in rows])  # of the job: its rows stay in order when sorted
        for chosen in plan_batches(lengths, self.batch_tokens):
            part = [rows[i] for i in chosen]
            batch = collate([row for _, row in part], {}).to(self.base.device)
            with self._forward:
                self.lanes.route([job.resident.place for job, _ in part], self.base.device)
                try:
                    embeds = self._embed(batch, [job for job, _ in part], tables)
                    hidden = self.base.hidden(embeds, batch.positions, batch.mask)
                finally:
                    self.lanes.clear()
            for place, (job, row) in enumerate(part):
                job.scores.append(_read(job, row, hidden[place], tables[id(job.resident.space)][1]).cpu().numpy())

    def _embed(self, batch: Batch, jobs: Sequence[_Job], tables: dict[int, tuple[Sequence[str], Tensor | None]]) -> Tensor:
        embeds = self.base.embedding(batch.tokens)
        by_space: dict[int, list[int]] = {}
        for place, job in enumerate(jobs):
            by_space.setdefault(id(job.resident.space), []).append(place)
        for space, places in by_space.items():
            shared, vectors = jobs[places[0]].resident.loaded.shared, tables[space][1]
            if shared is None or vectors is None:
                continue
            mine = torch.zeros(len(jobs), 1, dtype=torch.bool, device=batch.tokens.device)
            mine[places] = True
            at = (batch.items >= 0) & mine
            embeds[at] = vectors[batch.items[at]].to(embeds.dtype)
            at = (batch.feedback >= 0) & mine
            embeds[at] = shared.encoder.feedback_vectors(batch.feedback[at]).to(embeds.dtype)
        return embeds


def _task(loaded: Loaded, request: Request) -> Task:
    if request.task is None:
        if len(loaded.tasks) == 1:
            return next(iter(loaded.tasks.values()))
        raise RequestError("the adapter has several tasks", got="no task", expected=", ".join(loaded.tasks))
    if request.task not in loaded.tasks:
        raise RequestError("unknown task", got=request.task, expected=", ".join(loaded.tasks))
    return loaded.tasks[request.task]


def _candidates(request: Request, items: Inline, seen: set[int]) -> np.ndarray:
    """Codes of what is to be scored, after the filters."""
    catalogue = items.space.catalogue
    if request.candidates is not None:
        codes = [items.code(candidate) for candidate in request.candidates]
    elif request.allow is not None:
        codes = [items.code(item) for item in request.allow]
    else:
        codes = list(range(catalogue.size))
    unwanted = {items.code(item) for item in request.deny or () if item in catalogue}
    if request.candidates is None and request.exclude_seen:
        unwanted |= seen
    allowed = None if request.allow is None else {items.code(item) for item in request.allow}
    kept = [code for code in codes if code not in unwanted and (allowed is None or code in allowed)]
    return np.array(kept, dtype=np.int32)


def _rows(job: _Job, layout: Layout, history: Sequence[dict[str, Any]], codes: Sequence[int], user: dict[str, Any]) -> list[Row]:
    """The history once, with the candidates as branches in chunks; without any where the catalogue is scored by dot product."""
    fields = [name for _, name, _, _ in string.Formatter().parse(layout.instruction) if name]
    prefix = layout.prefix({name: user.get(name) for name in fields})
    column = layout.feedback.column
    raw = [event.get(column) for event in history]
    if all(isinstance(value, str) for value in layout.feedback.values):
        feedback = layout.feedback.encode(np.array(raw, dtype=object))
    else:
        try:
            feedback = layout.feedback.encode(np.array([np.nan if v is None else float(v) for v in raw]))
        except (TypeError, ValueError):
            raise RequestError(f"{column} in the history is no number", got=repr(raw)[:80]) from None
    groups = _groups(history)
    texts = job.inline.tables()[0] if layout.item != "token" else None
    items = np.array(codes, dtype=np.int32)

    def build(candidates: np.ndarray | None) -> Row:
        return layout.build(prefix, items, feedback, texts=texts, groups=groups, candidates=candidates)

    if job.task.kind == "next_item":
        return [build(None)] if len(job.codes) else []
    return [build(job.codes[start : start + BRANCHES]) for start in range(0, len(job.codes), BRANCHES)]


def _groups(history: Sequence[dict[str, Any]]) -> np.ndarray | None:
    if not any(event.get("impression_id") is not None for event in history):
        return None
    number: dict[object, int] = {}
    return np.array([-1 if (i := event.get("impression_id")) is None else number.setdefault(i, len(number)) for event in history])


def _read(job: _Job, row: Row, hidden: Tensor, vectors: Tensor | None, weights: Tensor | None = None) -> Tensor:
    """(n,) scores of one row's candidates (or of all its job's codes), float32; `weights` (1, E) as in `View`."""
    head, device = job.resident.loaded.heads[job.task.name], hidden.device
    ranking = isinstance(head, CatalogueHead)
    places = np.array([row.trunk - 1]) if ranking else row.candidate_reads
    view = None
    if vectors is not None:
        tables = job.resident.tables[job.task.name]
        if job.inline.rows and tables:
            tables = head.extend(tables, vectors)
        count = len(places)
        items = np.zeros(1, dtype=np.int64) if ranking else row.candidates
        view = View(
            tables, _tensor(row.codes, device)[None], _tensor(row.given, device)[None],
            torch.zeros(count, dtype=torch.long, device=device),
            torch.full((count,), len(row.codes), dtype=torch.long, device=device), _tensor(items, device), weights,
        )  # fmt: skip
    output = head(hidden[_tensor(places, device)], view)
    if ranking:
        return output[0, _tensor(job.codes, device)].float()
    score = head.score(output)
    if score.ndim == 2:  # classes: the expectation over their numbers
        score = score @ torch.arange(score.shape[1], dtype=score.dtype, device=score.device)
    return score.float()


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(values.astype(np.int64)).to(device)


def _respond(job: _Job) -> Response:
    scores = np.concatenate(job.scores) if job.scores else np.empty(0, dtype=np.float32)
    order = np.arange(len(scores))
    if job.request.k is not None:
        order = np.lexsort((order, -scores))[: job.request.k]
    results = tuple(Scored(job.inline.item_id(int(job.codes[i])), float(scores[i])) for i in order)
    return Response(job.request.id, job.request.adapter, job.resident.loaded.digest, results)
