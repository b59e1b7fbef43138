"""Requests about labelled texts: their rows, their states, their responses.

Owns: reading the texts of a request against the version that answers it, and its response. Ignores: slots, forward passes,
heads.

    {"id": "1", "adapter": "reviews", "task": "rating", "texts": [{"title": "Lovely", "review": "Fits as if made for me."}]}
    {"id": "1", "adapter": "reviews", "digest": "9f2c…",
     "results": [{"text_id": "0", "score": 4.7, "classes": {"1": 0.01, …, "5": 0.79}}]}

A text is one row, on an encoder and on a causal base; rows of many requests and adapters share a pass as any others do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genre.engine.adapter_source import Resident
from genre.engine.items import Inline
from genre.engine.planning import Job, best, task_of
from genre.engine.requests import NOT_FINITE, Request, Response, ScoredText, refused
from genre.errors import RequestError


@dataclass(eq=False)
class TextJob(Job):
    """A request about texts; `codes` are their indices, `rows` has one row for each, its scores (1,) or (1, C).

    Attributes:
        ids: The id of each text in the response.
    """

    ids: tuple[str, ...] = ()

    def respond(self) -> Response:
        """The response, once every row is scored; equal scores stay in the order of the request."""
        found = np.concatenate([part for part in self.scores if part is not None]) if self.rows else np.empty(0)
        if not np.isfinite(found).all():
            return refused(self.request, NOT_FINITE)
        classes = self.task.classes if found.ndim == 2 else None
        scores = found if classes is None else _expected(found, classes)
        order = np.arange(len(scores)) if self.request.k is None else best(scores, self.request.k)
        results = tuple(ScoredText(self.ids[i], float(scores[i]), _shares(found[i], classes)) for i in order)
        return Response(self.request.id, self.request.adapter, self.resident.digest, results, note=self.note)


def _expected(found: np.ndarray, classes: Sequence[float | str]) -> np.ndarray:
    """(n, C) probabilities → (n,) expected value of the classes; where they are words, the probability of the likeliest."""
    if all(isinstance(value, str) for value in classes):
        return found.max(1)
    return found @ np.asarray(classes, dtype=np.float64)


def _shares(found: np.ndarray, classes: Sequence[float | str] | None) -> dict[str, float] | None:
    if classes is None:
        return None
    names = (value if isinstance(value, str) else f"{value:g}" for value in classes)
    return {name: float(share) for name, share in zip(names, found, strict=True)}


def plan_texts(number: int, request: Request, resident: Resident, inline: Inline) -> TextJob:
    """Turn a checked request into rows.

    Args:
        number: Its index in the call.
        request: The request.
        resident: The version that answers it.
        inline: The call's items, of which texts name none.

    Raises:
        RequestError: The version reads a user's events, or the texts have other columns than it reads, or no words.
    """
    loaded = resident.loaded
    layout = loaded.text_layout
    if layout is None:
        raise RequestError(f"{request.adapter} reads a user's events", got="texts", expected="a history or a user_id")
    if request.texts is None:
        expected, todo = f"texts with {', '.join(layout.text)}", 'give "texts": [{…}]'
        raise RequestError(f"{request.adapter} reads labelled texts", got="no texts", expected=expected, todo=todo)
    task = task_of(loaded, request)
    try:
        joined = [_join(text, layout.text) for text in request.texts]
        rows = layout.rows(joined, np.arange(len(joined)))
    except (TypeError, ValueError, OverflowError) as error:  # odd values of a type that no check foresaw
        raise RequestError("the texts cannot be used", got=f"{type(error).__name__}: {error}"[:160]) from error
    ids = tuple(str(text.get("text_id", index)) for index, text in enumerate(request.texts))
    note = None if rows else "no text is given"
    return TextJob(number, request, resident, task, inline, np.arange(len(rows)), rows, [None] * len(rows), note, ids=ids)


def _join(text: Mapping[str, Any], columns: Sequence[str]) -> str:
    """The columns of one text as `Texts.join` joins them."""
    if stray := sorted(set(text) - {*columns, "text_id"}):
        raise RequestError("a text has an unknown column", got=stray[0], expected=", ".join(columns))
    parts = [str(value).strip() for name in columns if (value := text.get(name)) is not None]
    if not any(parts):
        raise RequestError("a text has no words", got=repr(dict(text))[:80], expected=" or ".join(columns))
    return "; ".join(part for part in parts if part)
