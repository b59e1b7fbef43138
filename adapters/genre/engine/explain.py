"""Attribution of a score to the events of a history: "the history raises this score, because of …".

Owns: the requests behind an explanation, each event's share. Ignores: how requests are scored, HTTP, printing.

    found = explain(engine, Request("like@production", user_id="196", k=1), "50")
    found.events[0]  ->  EventShare(place=41, item_id="181", title="Return of the Jedi (1983)", feedback=5.0, …, share=0.21)

Two methods. `leave_one_out` scores the history without each event, as plain rows of one call: effect_j = s - s without j.
`gradient` takes gradient × input of each event in one forward and one backward pass: cheaper, and true to first order only.
Either way share_j = effect_j / Σ|effect|: signed, and absolute shares sum to one (all zero where nothing has an effect).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from genre.data.catalogue import Catalogue
from genre.engine import Engine, Request, Response
from genre.engine.gradients import event_gradients
from genre.engine.requests import NOT_FINITE
from genre.errors import InputError, JobError, RequestError

METHODS = ("leave_one_out", "gradient")
ATTEMPTS = 5
SAME = 5e-5
"""Scores that are nearer than this are shown alike."""
WEIGHTY = 0.1
"""Part of the largest share from which an event on the other side of a score is worth naming."""

Item = str | Mapping[str, Any]


@dataclass(frozen=True)
class EventShare:
    """One event's part in a score.

    Attributes:
        place: Position in the user's whole history, from 1, oldest first.
        item_id, title: Of its item.
        feedback: The value in the feedback column that the adapter reads; None where it has none.
        effect: What it adds to the score, in the score's unit; negative if it takes away.
        share: The effect's part in the sum of all absolute effects.
    """

    place: int
    item_id: str
    title: str
    feedback: Any
    effect: float
    share: float


@dataclass(frozen=True)
class Explanation:
    """One score, attributed to events.

    Attributes:
        adapter, digest, task: Who scored.
        item_id, title: What was scored.
        method: `leave_one_out` or `gradient`.
        column: The feedback column that the adapter reads; None if it reads no feedback.
        score: With the whole history.
        without_history: The same without any event.
        older: Events before those that the adapter reads; they have no part in the score.
        events: Those that it reads, the largest absolute share first.
    """

    adapter: str
    digest: str
    task: str
    item_id: str
    title: str
    method: str
    column: str | None
    score: float
    without_history: float
    older: int
    events: tuple[EventShare, ...]

    @property
    def sentence(self) -> str:
        """What the history does to the score, in words; then up to two events on each side, the one it follows first."""
        if not self.events:
            return "There is no history to explain it by."
        change = self.score - self.without_history
        if abs(change) < SAME:
            sides = [_speak("for", self._named(1, WEIGHTY)), _speak("against", self._named(-1, WEIGHTY))]
            said = "; ".join(side for side in sides if side)
            return f"The history does not change this score{f': {said}' if said else ''}."
        sign = 1 if change > 0 else -1
        with_it, against_it = ("for", "against")[::sign]
        causes, but = self._named(sign, 0.0), _speak(against_it, self._named(-sign, WEIGHTY))
        why = f"because of {' and '.join(causes)}" if causes else f"though no single event speaks {with_it} it"
        return f"The history {'raises' if change > 0 else 'as a whole lowers'} this score, {why}{f'; {but}' if but else ''}."

    def _named(self, sign: int, weight: float) -> list[str]:
        """The two events with the largest shares of a sign, if they reach this part of the largest share of all."""
        least = weight * abs(self.events[0].share)
        side = [event for event in self.events if event.share * sign > 0 and abs(event.share) >= least]
        return [
            f"“{event.title}”" + ("" if event.feedback is None else f" ({self.column} {_as_text(event.feedback)})")
            for event in side[:2]
        ]

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the same fields, and the sentence."""
        return {**asdict(self), "events": [asdict(event) for event in self.events], "sentence": self.sentence}


@dataclass(frozen=True)
class Question:
    """An explanation in progress: the requests that it needs, and everything in its answer but their scores.

    Attributes:
        requests: The whole history, none of it, then (`leave_one_out` only) without each event that is read, in order.
        answer: The explanation without scores; its events are in order.
    """

    requests: tuple[Request, ...]
    answer: Explanation

    def read(self, responses: Sequence[Response], gradients: np.ndarray | None = None) -> Explanation | None:
        """Build the explanation from the responses; None unless all of them come from the version that was asked.

        Args:
            responses: One per request, in order.
            gradients: (E,) effects for the method `gradient`.

        Raises:
            RequestError: A row cannot be scored.
        """
        for response in responses:
            if response.error is not None:
                raise RequestError(response.error)
        if any(response.digest != self.answer.digest for response in responses):
            return None
        scores = np.array([response.results[0].score for response in responses], dtype=np.float64)
        effects = scores[0] - scores[2:] if gradients is None else gradients.astype(np.float64)
        if not np.isfinite(effects).all():
            raise RequestError(NOT_FINITE)
        total = float(np.abs(effects).sum())
        shares = effects / total if total > 0 else np.zeros_like(effects)
        events = [
            replace(event, effect=float(effect), share=float(share))
            for event, effect, share in zip(self.answer.events, effects, shares, strict=True)
        ]
        events.sort(key=lambda event: -abs(event.share))
        return replace(self.answer, score=float(scores[0]), without_history=float(scores[1]), events=tuple(events))


def explain(
    engine: Engine, request: Request, item: Item, *, method: str = "leave_one_out", ref: str | None = None
) -> Explanation:
    """Attribute an item's score to the events of a request's history.

    Args:
        engine: Where it is scored.
        request: History, adapter and task; its candidates, k and filters are ignored.
        item: An item id, or an item given by its columns.
        method: `leave_one_out` (a row per event) or `gradient` (one forward and one backward pass).
        ref: An exact reference that is looked up instead of `request.adapter`.

    Raises:
        InputError: There is no such method.
        GenreError: The request cannot be scored.
        JobError: The reference meant another version each time that it was tried.
    """
    for _ in range(ATTEMPTS):
        question = ask(engine, request, item, method=method, ref=ref)
        gradients = None
        if method == "gradient":
            response, gradients = event_gradients(engine, question.requests[0], ref)
            if response.error is None and response.digest != question.answer.digest:
                continue
        refs = None if ref is None else [ref] * len(question.requests)
        found = question.read(engine.score(question.requests, refs), gradients)
        if found is not None:
            return found
    got = f"{ATTEMPTS} attempts"
    raise JobError(f"{request.adapter} was swapped during its explanation", got=got, todo="ask again")


def ask(engine: Engine, request: Request, item: Item, *, method: str = "leave_one_out", ref: str | None = None) -> Question:
    """The requests of an explanation, for callers that score them themselves (raises as `explain` does)."""
    check_method(method)
    request = replace(request, candidates=[item], k=None, allow=None, deny=None, where=None, diversity=None, beam=None)
    loaded, history, older, user = engine.read_by(request, ref)
    whole = replace(request, history=history, user=user, user_id=None)
    parts = [history, []]
    if method == "leave_one_out":
        parts += [history[:index] + history[index + 1 :] for index in range(len(history))]
    column = loaded.layout.feedback_column
    catalogue = engine.catalogue_of(loaded)
    titles = _titles(catalogue, [item, *(_item_of(event) for event in history)])
    events = [
        EventShare(older + index, *titles[index], event.get(column or ""), 0.0, 0.0)
        for index, event in enumerate(history, start=1)
    ]
    task = request.task or next(iter(loaded.tasks))
    answer = Explanation(request.adapter, loaded.digest, task, *titles[0], method, column, 0.0, 0.0, older, tuple(events))
    return Question(tuple(replace(whole, history=part) for part in parts), answer)


def _speak(side: str, named: list[str]) -> str:
    """`for it speak A and B`; nothing if there is nobody to speak."""
    return f"{side} it speak{'s' if len(named) == 1 else ''} {' and '.join(named)}" if named else ""


def _as_text(feedback: Any) -> str:
    return f"{feedback:g}" if isinstance(feedback, float) else str(feedback)


def check_method(method: str) -> None:
    """Raises `InputError` unless there is such a method."""
    if method not in METHODS:
        raise InputError("no such method", got=method, expected=" or ".join(METHODS))


def _item_of(event: Mapping[str, Any]) -> Item:
    return event["item_id"] if "item_id" in event else event["item"]


def _titles(catalogue: Catalogue, items: Sequence[Item]) -> list[tuple[str, str]]:
    """The id and the title of each item; inline items are named by their own columns."""
    known = {item: catalogue.code(item) for item in items if isinstance(item, str) and item in catalogue}
    titles = dict(zip(known, Catalogue(catalogue.frame[list(known.values())]).titles(), strict=True)) if known else {}
    named = []
    for item in items:
        if isinstance(item, str):
            named.append((item, titles.get(item, item)))
        else:
            title = str(item.get("title") or item.get("item_id") or "an item without a title")
            named.append((str(item.get("item_id") or title), title))
    return named
