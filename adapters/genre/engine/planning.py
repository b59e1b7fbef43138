"""From a request to rows: its task, its items, its history.

Owns: reading a request against the version that answers it, chunks of branches. Ignores: slots,
forward passes, heads.

A request is one history and C candidates. The history is laid out once, the candidates after it as branches that see it and
themselves. So many candidates share a row as its token budget holds; each further row repeats the history, in equal shares.
Tasks that score the whole catalogue by a dot product need no branches; those that generate items make them as their search goes
(`genre.engine.generating`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np
import torch

from genre.data.interactions import Interactions
from genre.data.schema import FEEDBACK
from genre.data.sequences.batches import Batch
from genre.data.sequences.instruction import fields_of
from genre.data.sequences.layout import Layout
from genre.data.sequences.layout import Sequence as Row
from genre.data.sequences.transfer import upload
from genre.engine.adapter_source import Resident
from genre.engine.generating import Generation
from genre.engine.items import Inline
from genre.engine.requests import EVENT_FIELDS, NOT_FINITE, Request, Response, Scored, refused
from genre.engine.reranking import POOL, diversify
from genre.engine.versions import Loaded
from genre.errors import GenreError, RequestError
from genre.tasks import BEAM, Task

UserVectors = Callable[[Inline, Sequence[Row], Batch, torch.Tensor], Sequence[np.ndarray]]
"""Of the call's items, rows, the same as tensors and their states: a vector of each row."""


@dataclass(eq=False)
class Job:
    """A request with all that its scores need.

    Attributes:
        number: Its index in the call.
        resident: The version that answers it.
        inline: Codes of the call's items.
        codes: (C,) int32 what is scored.
        rows: The history with the candidates in chunks, or alone for a task that scores the catalogue.
        scores: For each row, the scores of its candidates (of all codes where the history is alone); None until they are known.
        note: Why nothing is scored; None where something is.
        fault: Why it cannot be scored, found out after it was planned.
        begun: When the request was taken up, in seconds of the monotonic clock.
        user_vectors: Makes a vector of each row, which takes the place of its scores; None scores.
        generation: The search of a task that generates items, whose rows change from pass to pass and whose scores are logits
            of codes; None for other tasks.
    """

    number: int
    request: Request
    resident: Resident
    task: Task
    inline: Inline
    codes: np.ndarray
    rows: list[Row]
    scores: list[np.ndarray | None] = field(default_factory=list)
    note: str | None = None
    fault: GenreError | None = None
    user_vectors: UserVectors | None = None
    generation: Generation | None = None
    begun: float = field(default_factory=monotonic)

    @property
    def head(self) -> Any:
        """The task's head."""
        return self.resident.loaded.heads[self.task.name]

    def begin(self) -> None:
        """Get ready for the first pass, once the call's items are embedded (changes the rows of a search)."""
        if self.generation is not None and self.rows:
            try:
                self._take(self.generation.begin())
            except GenreError as error:
                self.fault, self.rows = error, []

    def go_on(self) -> bool:
        """Go on once every row is scored: True if there are further rows to score (changes the rows of a search)."""
        if self.generation is None or not self.rows:
            return False
        self._take(self.generation.advance([own for own in self.scores if own is not None]))
        return bool(self.rows)

    def _take(self, rows: list[Row]) -> None:
        self.rows = rows
        self.scores = [None] * len(rows)

    def respond(self) -> Response:
        """The response, once every row is scored; equal scores stay in the order of the codes."""
        if self.fault is not None:
            return refused(self.request, self.fault)
        if self.generation is not None:
            return self._generated(self.generation)
        scores = np.concatenate([np.empty(0, dtype=np.float32), *(part for part in self.scores if part is not None)])
        if not np.isfinite(scores).all():
            return refused(self.request, NOT_FINITE)
        order = np.arange(len(scores)) if self.request.k is None else self._choose(scores, self.codes, self.request.k)
        shares = _shares(scores, order).tolist() if self.task.kind == "next_item" else [None] * len(order)
        results = tuple(map(Scored, map(self.inline.item_id, self.codes[order].tolist()), scores[order].tolist(), shares))
        return Response(self.request.id, self.request.adapter, self.resident.digest, results, note=self.note)

    def _generated(self, generation: Generation) -> Response:
        """The response to what was searched for: of `k` items those that were found, of given items all."""
        if not generation.search.finite:
            return refused(self.request, NOT_FINITE)
        scores, shares = generation.results()
        order = np.arange(len(scores))
        if self.request.k is not None:
            there = np.flatnonzero(np.isfinite(scores))
            order = there[self._choose(scores[there], self.codes[there], self.request.k)]
        codes, found = self.codes[order].tolist(), scores[order].tolist()
        results = tuple(map(Scored, map(self.inline.item_id, codes), found, shares[order].tolist()))
        return Response(self.request.id, self.request.adapter, self.resident.digest, results, note=self.note)

    def _choose(self, scores: np.ndarray, codes: np.ndarray, k: int) -> np.ndarray:
        """Indices of the best k of some items, or of k diverse ones."""
        if not self.request.diversity:
            return best(scores, k)
        pool = best(scores, POOL)
        chosen = upload(torch.from_numpy(codes[pool].astype(np.int64)), self.inline.space.base.device)
        vectors = self.inline.items(chosen).cpu().numpy()
        return pool[diversify(scores[pool], vectors, k, float(self.request.diversity))]


def plan(number: int, request: Request, resident: Resident, inline: Inline, data: Interactions | None, *, row_tokens: int) -> Job:
    """Turn a checked request into rows.

    Args:
        number: Its index in the call.
        request: The request.
        resident: The version that answers it.
        inline: The call's items, of the version's catalogue.
        data: Where the history of a `user_id` comes from.
        row_tokens: Tokens of one row at most, unless a history and one branch are more.

    Raises:
        GenreError: The request cannot be answered.
    """
    known, begun = len(inline.rows), monotonic()
    try:
        loaded = resident.loaded
        task = task_of(loaded, request)
        history, user = history_of(request, data)
        history_items = [inline.code(event["item_id"] if "item_id" in event else event["item"]) for event in history]
        check_events(history, loaded.layout, () if data is None else data.event_columns)
        if request.diversity and inline.space.vectors is None:
            got = f"{request.adapter}, which reads items as text"
            raise RequestError("diversity needs item vectors", got=got, expected="an adapter with an encoder")
        if request.beam is not None and task.head != "generate":
            got = f"beam {request.beam} for task {task.name!r} with head {task.head}"
            raise RequestError("beam is for tasks that generate items", got=got, expected="no beam: every item is scored")
        codes, note = _candidates(request, inline, history_items, task)
        layout = loaded.layout
        kept = layout.latest(len(history))
        rows = _rows(task, inline, layout, history[kept], history_items[kept], user, codes, row_tokens)
        inline.take_in()
        job = Job(number, request, resident, task, inline, codes, rows, [None] * len(rows), note, begun=begun)
        if job.head.generates and rows:
            job.generation = Generation(inline, codes, rows[0], _width(request, task), row_tokens)
        return job
    except BaseException as error:
        inline.forget(known)
        if isinstance(error, TypeError | ValueError | OverflowError | RecursionError):  # odd values that no check foresaw
            raise RequestError("the request cannot be used", got=f"{type(error).__name__}: {error}"[:160]) from error
        raise


def _width(request: Request, task: Task) -> int | None:
    """The width of a request's search; None to score every item that is given."""
    if request.candidates is not None:
        return None
    return max(request.beam or task.beam or BEAM, request.k or 0)


def task_of(loaded: Loaded, request: Request) -> Task:
    """The task that a request asks for.

    Raises:
        RequestError: There is no such task, or several and none is named.
    """
    if request.task is None:
        if len(loaded.tasks) == 1:
            return next(iter(loaded.tasks.values()))
        raise RequestError("the adapter has several tasks", got="no task", expected=", ".join(loaded.tasks))
    if request.task not in loaded.tasks:
        raise RequestError("unknown task", got=request.task, expected=", ".join(loaded.tasks))
    return loaded.tasks[request.task]


def history_of(request: Request, data: Interactions | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A request's events and its user's columns.

    Raises:
        RequestError, DataError: The user cannot be looked up.
    """
    user = dict(request.user or {})
    if request.history is not None:
        return [dict(event) for event in request.history], user
    if data is None:
        todo = "give the history in the request, or give the engine data"
        raise RequestError("user_id needs a data set", got=request.user_id, todo=todo)
    assert request.user_id is not None
    history = data.history(request.user_id)
    if data.users is not None:
        user = {**data.users.row(data.user_code(request.user_id), named=True), **user}
    return history, user


def check_events(history: Sequence[dict[str, Any]], layout: Layout, columns: Sequence[str]) -> None:
    """Check that events name what is known, and their feedback where a version reads one.

    Args:
        history: The events of a request.
        layout: The version's; its feedback column has to be in every event, null where it is not known.
        columns: Event columns of the data set, which events may have beside.

    Raises:
        RequestError: An event has an unknown field, or no feedback.
    """
    column = layout.feedback_column
    own = () if column is None else (column,)
    known = dict.fromkeys((*EVENT_FIELDS, *own, *FEEDBACK, *columns))
    for place, event in enumerate(history):
        if stray := [name for name in event if name not in known]:
            what = f"history[{place}] has an unknown field"
            raise RequestError(what, got=stray[0][:80], expected=", ".join(known))
        if column is not None and column not in event:
            what, got = f"history[{place}] has no {column}", ", ".join(event)
            raise RequestError(what, got=got, expected=f"{column}, null where it is not known")


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest scores, the largest first, equal ones in order."""
    indices = np.arange(len(scores))
    if 4 * k < len(scores):  # sorting a whole catalogue for ten of its items would take longer than scoring it
        least = np.partition(scores, len(scores) - k)[len(scores) - k]
        indices = np.flatnonzero(scores >= least)
    return indices[np.lexsort((indices, -scores[indices]))[:k]]


def _candidates(request: Request, inline: Inline, history_items: Sequence[int], task: Task) -> tuple[np.ndarray, str | None]:
    """Codes of what is to be scored, after the filters, and why there is none."""
    if request.candidates is None and request.k is None:
        raise RequestError("a request needs candidates or k")
    catalogue = inline.space.catalogue
    asked = request.candidates if request.candidates is not None else request.allow
    if asked is not None:
        codes = np.array([inline.code(item) for item in asked], dtype=np.int32)
    else:
        codes = np.arange(catalogue.size, dtype=np.int32)
    note = None if len(codes) else "no item is asked for"

    def keep(kept: np.ndarray, why: str) -> None:
        nonlocal codes, note
        note = why if len(codes) and not kept.any() else note
        codes = codes[kept]

    if denied := [catalogue.code(item) for item in request.deny or () if item in catalogue]:
        keep(~np.isin(codes, denied), "every item is denied")
    if request.candidates is None and _excludes_seen(request, task) and history_items:
        what = f"each of {len(codes):,} items is in the history" if len(codes) > 1 else "the one item is in the history"
        keep(
            _unseen(codes, history_items, whole=asked is None and len(codes) == catalogue.size),
            f"{what}, and exclude_seen: false keeps those",
        )
    if request.candidates is not None and request.allow is not None:
        keep(np.isin(codes, [inline.code(item) for item in request.allow]), "no candidate is allowed")
    for condition in request.where or ():
        keep(inline.met(condition, codes), f"no item meets {condition}")
    return codes, note


def _unseen(codes: np.ndarray, history_items: Sequence[int], *, whole: bool) -> np.ndarray:
    """(C,) bool: the codes that are not in the history; `whole` if code i is i, so that nothing has to be looked for."""
    if not whole:
        return ~np.isin(codes, history_items)
    unseen = np.ones(len(codes), dtype=bool)
    seen = np.array(history_items)
    unseen[seen[seen < len(codes)]] = False  # inline items follow the catalogue's
    return unseen


def _shares(logits: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(k,) float64: the softmax of (C,) logits at k of them."""
    powers = np.exp(logits.astype(np.float64) - logits.max(initial=-np.inf))
    return powers[chosen] / powers.sum()


def _excludes_seen(request: Request, task: Task) -> bool:
    """Whether a history's items are left out: what the request says, or else the task's rule."""
    return task.seen == "masked" if request.exclude_seen is None else request.exclude_seen


def _rows(
    task: Task,
    inline: Inline,
    layout: Layout,
    history: Sequence[dict[str, Any]],
    history_items: Sequence[int],
    user: dict[str, Any],
    codes: np.ndarray,
    row_tokens: int,
) -> list[Row]:
    prefix = layout.prefix({name: user.get(name) for name in fields_of(layout.instruction)})
    feedback, groups = _feedback(layout, history), _groups(history)
    texts = inline.texts if layout.item != "token" else None
    items = np.array(history_items, dtype=np.int32)

    def build(candidates: np.ndarray | None) -> Row:
        return layout.build(prefix, items, feedback, texts=texts, groups=groups, candidates=candidates)

    if not len(codes):
        return []
    if task.kind == "next_item":
        return [build(None)]
    lengths = np.ones(len(codes), dtype=np.int64)
    if texts is not None:
        lengths = np.array([len(layout.item_tokens(texts[code])[0]) + (layout.item == "both") for code in codes.tolist()])
    shared = len(build(None)) if lengths.sum() > row_tokens // 2 else 0  # not needed where everything fits in any case
    return [build(part) for part in _chunks(codes, lengths, max(row_tokens - shared, shared))]


def _chunks(codes: np.ndarray, lengths: np.ndarray, room: int) -> list[np.ndarray]:
    """Parts of about the same number of tokens, each within the room (but for an item that is longer)."""
    total = int(lengths.sum())
    share = total / math.ceil(total / max(room, 1))
    number = (np.cumsum(lengths) - lengths) // share  # by where a branch begins
    return np.split(codes, np.flatnonzero(np.diff(number)) + 1)


def _feedback(layout: Layout, history: Sequence[dict[str, Any]]) -> np.ndarray:
    """(E,) feedback codes; zeros for a version that reads none."""
    if layout.feedback is None:
        return np.zeros(len(history), dtype=np.int32)
    column = layout.feedback.column
    raw = [event.get(column) for event in history]
    if all(isinstance(value, str) for value in layout.feedback.values):
        if stray := [value for value in raw if not isinstance(value, str | None)]:
            raise RequestError(f"{column} in the history is not text", got=repr(stray[0])[:80])
        return layout.feedback.encode(np.array(raw, dtype=object))
    try:
        numbers = np.array([np.nan if value is None else float(value) for value in raw], dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise RequestError(f"{column} in the history is not a number", got=repr(raw)[:80]) from None
    present = numbers[[value is not None for value in raw]]
    if len(infinite := present[~np.isfinite(present)]):
        raise RequestError(
            f"{column} in the history is not a number", got=float(infinite[0]), expected="a finite number, or null"
        )
    return layout.feedback.encode(numbers)


def _groups(history: Sequence[dict[str, Any]]) -> np.ndarray | None:
    if not any(event.get("impression_id") is not None for event in history):
        return None
    number: dict[object, int] = {}
    return np.array([-1 if (i := event.get("impression_id")) is None else number.setdefault(i, len(number)) for event in history])
