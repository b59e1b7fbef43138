"""Requests and responses: what a caller says and gets.

Owns: their fields, the JSON rows of `genre score`, checks that need no model. Ignores: models, the registry.

    {"id": "1", "adapter": "like@production", "history": [{"item_id": "50", "rating": 5}], "candidates": ["181", "172"]}
    {"id": "1", "adapter": "like@production", "digest": "9f2c…", "results": [{"item_id": "181", "score": 0.83}, …]}
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from genre.engine.filters import Condition
from genre.engine.reranking import POOL
from genre.errors import RequestError

MAX_CANDIDATES = 100_000
MAX_HISTORY = 100_000
MAX_TEXTS = 10_000
MAX_CONDITIONS = 32

_TYPES: tuple[tuple[str, Any, str], ...] = (
    ("adapter", str, "a reference such as like@production"),
    ("user_id", str, "a text"),
    ("task", str, "the name of a task"),
    ("user", Mapping, "an object with the user's columns"),
    ("exclude_seen", bool, "true or false"),
    ("id", str | int, "a text"),
)
_LISTS = ("history", "candidates", "allow", "deny", "where", "texts")
_NOT_OF_TEXTS = ("history", "candidates", "user_id", "user", "allow", "deny", "where", "diversity")


@dataclass(frozen=True)
class Request:
    """One question to one adapter.

    Attributes:
        adapter: `name`, `name@alias` or `name:version`.
        history: Events in order: `item_id` (or `item` with its columns, for an item that the catalogue does not have), and the
            feedback column.
        candidates: Item ids, or items given by their columns; None scores the whole catalogue.
        k: Give the best k only, best first; None gives every candidate in the order asked.
        task: Which of the adapter's tasks; may be left out if it has one.
        user_id: Take history and columns from the data set that the engine has, if `history` is None.
        user: The user's columns, for the instruction.
        exclude_seen: Leave the history's items out of what is recommended (when `candidates` is None).
        allow, deny: Only these items, none of these items.
        where: Only items that meet all of these conditions on their columns, such as `in_stock == true` (see `filters`).
        diversity: λ of maximal marginal relevance, from 0 to 1 (see `reranking`): how much the k items are to differ; 0 or None
            gives the best k. Scores stay the items' own. Needs k and an adapter with item vectors.
        texts: Of an adapter that reads labelled texts: texts by their columns, each with a `text_id` or known by its place.
        id: Comes back in the response.
    """

    adapter: str
    history: Sequence[Mapping[str, Any]] | None = None
    candidates: Sequence[str | Mapping[str, Any]] | None = None
    k: int | None = None
    task: str | None = None
    user_id: str | None = None
    user: Mapping[str, Any] | None = None
    exclude_seen: bool = True
    allow: Sequence[str] | None = None
    deny: Sequence[str] | None = None
    where: Sequence[str] | None = None
    diversity: float | None = None
    texts: Sequence[Mapping[str, Any]] | None = None
    id: str | None = None

    @classmethod
    def from_json(cls, row: object) -> "Request":
        """Read one row of a score file.

        Raises:
            RequestError: A field is missing, unknown or of the wrong type.
        """
        if not isinstance(row, dict):
            raise RequestError("a request is no JSON object", got=type(row).__name__)
        known = set(cls.__dataclass_fields__)
        if stray := sorted(set(row) - known):
            raise RequestError("a request has an unknown field", got=stray[0], expected=", ".join(sorted(known)))
        if not isinstance(row.get("adapter"), str):
            raise RequestError(
                "a request needs an adapter",
                got=repr(row.get("adapter")),
                expected="a reference such as like@production",
            )
        for name in _LISTS:
            if row.get(name) is not None and not isinstance(row[name], list):
                raise RequestError(f"{name} is no list", got=type(row[name]).__name__)
        _check_text(row)
        values: dict[str, Any] = {key: str(value) if key == "id" and value is not None else value for key, value in row.items()}
        return cls(**values)

    def check(self) -> None:
        """Check what can be checked without a model.

        Raises:
            RequestError: A value cannot be used.
        """
        if self.history is None and self.user_id is None and self.texts is None:
            raise RequestError("a request needs a history or a user_id", todo="give history: [] for a user without events")
        for name, kind, what in _TYPES:
            value = getattr(self, name)
            if (value is None and name == "adapter") or (value is not None and not isinstance(value, kind)):
                raise RequestError(f"{name} cannot be used", got=repr(value)[:80], expected=what)
        for name in _LISTS:
            value = getattr(self, name)
            if value is not None and (isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection)):
                raise RequestError(f"{name} is no list", got=repr(value)[:80])
        for name in ("allow", "deny"):
            stray = [item for item in getattr(self, name) or () if not isinstance(item, str)]
            if stray:
                raise RequestError(f"{name} cannot be used", got=repr(stray[0])[:80], expected="item ids")
        if self.k is not None and (not isinstance(self.k, int) or isinstance(self.k, bool) or self.k < 1):
            raise RequestError("k cannot be used", got=repr(self.k)[:80], expected="a whole number from 1")
        self._check_choice()
        if self.k is None and self.candidates is None and self.texts is None:
            raise RequestError("a request needs candidates or k")
        for name, most in (
            ("history", MAX_HISTORY), ("candidates", MAX_CANDIDATES), ("texts", MAX_TEXTS), ("where", MAX_CONDITIONS)
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and len(value) > most:
                raise RequestError(f"{name} is too long", got=len(value), expected=f"at most {most:,}")
        self._check_texts()
        for event in () if self.history is None else self.history:
            if not isinstance(event, Mapping) or not ({"item_id", "item"} & event.keys()):
                raise RequestError(
                    "an event of the history names no item",
                    got=repr(event)[:80],
                    expected="item_id, or item with its columns",
                )
            if not isinstance(event.get("impression_id"), str | int | None):
                raise RequestError("impression_id cannot be used", got=repr(event["impression_id"])[:80], expected="a text")
            _check_item(event["item_id"] if "item_id" in event else event["item"])
        for item in () if self.candidates is None else self.candidates:
            _check_item(item)
        _check_text({name: getattr(self, name) for name in self.__dataclass_fields__})

    def _check_choice(self) -> None:
        """What is said about which items are chosen, beside lists of ids."""
        for text in self.where or ():
            Condition.read(text)
        if self.diversity is None:
            return
        if isinstance(self.diversity, bool) or not isinstance(self.diversity, int | float) or not 0 <= self.diversity <= 1:
            raise RequestError("diversity cannot be used", got=repr(self.diversity)[:80], expected="a number from 0 to 1")
        if self.diversity and self.k is None:
            raise RequestError("diversity needs k", got="no k", expected="how many items are to differ")
        if self.diversity and self.k is not None and self.k > POOL:
            raise RequestError("k is too large for diversity", got=self.k, expected=f"at most {POOL:,}")

    def _check_texts(self) -> None:
        """What goes with texts, and that each is an object of texts and numbers."""
        if self.texts is None:
            return
        if beside := [name for name in _NOT_OF_TEXTS if getattr(self, name) is not None]:
            raise RequestError(f"{beside[0]} does not go with texts", got=beside[0], expected="texts, and k or nothing")
        for text in self.texts:
            if not isinstance(text, Mapping) or not text:
                raise RequestError("a text cannot be read", got=repr(text)[:80], expected="an object with its columns")
            for name, value in text.items():
                right = isinstance(value, str | int | float | None) and not isinstance(value, bool)
                if not isinstance(name, str) or not right or (name == "text_id" and value is None):
                    raise RequestError(f"column {name!r} of a text cannot be used", got=repr(value)[:80], expected="a text")


def _check_item(item: Any) -> None:
    """Refuse what is neither an item's id nor its columns."""
    if not isinstance(item, str | Mapping):
        raise RequestError("an item cannot be read", got=repr(item)[:80], expected="an item id, or an object with its columns")


def _check_text(value: Any) -> None:
    """Refuse half a surrogate pair anywhere: JSON can say it, but no text file, tokenizer or table can hold it."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RequestError("a text is no Unicode", got=ascii(value)[:80], expected="no half of a surrogate pair") from None
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _check_text(key)
            _check_text(inner)
    elif isinstance(value, Collection) and not isinstance(value, bytes):
        for inner in value:
            _check_text(inner)


@dataclass(frozen=True)
class Scored:
    """One item and its score: a probability, a value, or a logit over the catalogue."""

    item_id: str
    score: float


@dataclass(frozen=True)
class ScoredText:
    """One text and its score.

    Attributes:
        score: A probability, a value, or the expected value of the classes; where those are words, the likeliest one's share.
        classes: The probability of each class; None for tasks without classes.
    """

    text_id: str
    score: float
    classes: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Response:
    """What came of a request; `digest` names the version that answered, `error` says why nothing did."""

    id: str | None
    adapter: str
    digest: str | None = None
    results: "tuple[Scored, ...] | tuple[ScoredText, ...]" = ()
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The row of a score file."""
        if self.error is not None:
            return {"id": self.id, "adapter": self.adapter, "error": self.error}
        results = [_row(item) for item in self.results]
        return {"id": self.id, "adapter": self.adapter, "digest": self.digest, "results": results}


def _row(item: Scored | ScoredText) -> dict[str, Any]:
    if isinstance(item, Scored):
        return {"item_id": item.item_id, "score": item.score}
    row = {"text_id": item.text_id, "score": item.score}
    return row if item.classes is None else row | {"classes": dict(item.classes)}
