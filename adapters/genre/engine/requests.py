"""Requests and responses.

Owns: their fields, and the one check that a request passes where it enters: as a row of a file, in an HTTP body or in Python.
The OpenAPI document is generated from the same fields. Ignores: models, the registry.

    {"id": "1", "adapter": "like@production", "history": [{"item_id": "50", "rating": 5}], "candidates": ["181", "172"]}
    {"id": "1", "adapter": "like@production", "digest": "9f2c…", "results": [{"item_id": "181", "score": 0.83}, …]}
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    GetPydanticSchema,
    Strict,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    model_validator,
    with_config,
)
from pydantic.dataclasses import dataclass as checked
from pydantic_core import PydanticSerializationError, to_json
from typing_extensions import TypedDict

from genre import display
from genre.engine.filters import Condition
from genre.engine.reranking import POOL
from genre.errors import RequestError
from genre.tasks import MAX_BEAM
from genre.validation import refusal

if TYPE_CHECKING:
    import polars as pl

MAX_CANDIDATES = 100_000
MAX_HISTORY = 100_000
MAX_TEXTS = 10_000
MAX_CONDITIONS = 32
NOT_FINITE = "the version gave a score that is not a number"
"""The error of a row with a score that is not finite: JSON has no such number, and nobody can rank by it."""
SHOWN = 3
"""Results in the short form of a response."""

_NOT_OF_TEXTS = ("history", "candidates", "user_id", "user", "allow", "deny", "where", "diversity", "beam")
_CONFIG = ConfigDict(extra="forbid", use_attribute_docstrings=True)

_Text = Annotated[str, Strict()]
_Whole = Annotated[int, Strict()]
_Number = Annotated[float, Strict()]
_Columns = dict[_Text, Any]
_Item = _Text | _Columns
_Row = dict[_Text, _Text | _Whole | _Number | None]


@with_config(ConfigDict(extra="allow"))
class Event(TypedDict, total=False):
    """An item of the catalogue, or one that is given by its columns, and the feedback that the adapter reads, null if not known.

    Further fields are columns of events: rating, click, behaviour and those of the mounted data set; others are refused.
    """

    item_id: _Item
    item: _Item
    impression_id: _Text | _Whole | None
    timestamp: Any


EVENT_FIELDS = tuple(Event.__annotations__)
"""The fields of an event that every adapter knows."""


def _events(history: list[Event]) -> list[Event]:
    for event in history:
        if "item_id" not in event and "item" not in event:
            expected = "item_id, or item with its columns"
            raise RequestError("an event of the history names no item", got=repr(event)[:80], expected=expected)
    return history


def _texts(texts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if any(text.get("text_id", "") is None for text in texts):
        raise RequestError("the text_id of a text cannot be used", got=None, expected="a text, or no text_id")
    return texts


def _conditions(where: list[str]) -> list[str]:
    for text in where:
        Condition.read(text)
    return where


def _list_of(kind: Any, most: int | None = None) -> GetPydanticSchema:
    """Read any sequence as a list of `kind`, whatever the annotation allows in Python."""
    meant = Annotated[list[kind], FailFast(), Field(max_length=most)]
    return GetPydanticSchema(lambda _, handler: handler.generate_schema(meant))


Columns = Annotated[Mapping[str, Any], GetPydanticSchema(lambda _, handler: handler.generate_schema(_Columns))]
Item = Annotated[str | Mapping[str, Any], GetPydanticSchema(lambda _, handler: handler.generate_schema(_Item))]
History = Annotated[Sequence[Mapping[str, Any]], _list_of(Event, MAX_HISTORY), AfterValidator(_events)]
Candidates = Annotated[Sequence[str | Mapping[str, Any]], _list_of(_Item, MAX_CANDIDATES)]
Items = Annotated[Sequence[str], _list_of(_Text)]
Conditions = Annotated[Sequence[str], _list_of(_Text, MAX_CONDITIONS), AfterValidator(_conditions)]
Texts = Annotated[Sequence[Mapping[str, Any]], _list_of(Annotated[_Row, Field(min_length=1)], MAX_TEXTS), AfterValidator(_texts)]
Id = Annotated[_Text, BeforeValidator(str)]


@checked(frozen=True, config=_CONFIG)
class _Question:
    """A question that is checked where it enters; a `RequestError` names the first thing that is wrong."""

    @classmethod
    def from_json(cls, row: object) -> Self:
        """Read one row of a score file or of an HTTP body.

        Raises:
            RequestError: A field is missing, unknown, or its value cannot be used.
        """
        reader = _reader(cls)  # type: ignore[arg-type]  # mypy holds a class for unhashable where its instances are
        return reader.validate_python(row)

    @model_validator(mode="wrap")
    @classmethod
    def _refuse(cls, data: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            question = handler(data)
        except ValidationError as error:
            raise refusal(error, "a request", [one.name for one in fields(cls)], RequestError) from None
        try:
            to_json(vars(question), inf_nan_mode="constants", bytes_mode="base64", fallback=lambda _: None)
        except PydanticSerializationError as error:  # no file, tokenizer or table can hold half a surrogate pair
            half = re.search(r"encode character ('.*?')", str(error))
            if half is None:
                raise RequestError("a request cannot be read", got=str(error)[:80], expected="JSON") from None
            raise RequestError("a text is not Unicode", got=half[1], expected="no half of a surrogate pair") from None
        return question


@cache
def _reader(cls: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(cls)


@checked(frozen=True, config=_CONFIG)
class Request(_Question):
    """One question to one adapter.

    Raises:
        RequestError: A field is unknown or its value cannot be used.
    """

    adapter: _Text
    """`name`, `name@alias` or `name:version`; over HTTP one that is served."""
    history: History | None = None
    """Events in order, instead of user_id: each an item and its feedback; [] for a new user."""
    candidates: Candidates | None = None
    """Item ids, or items by their columns; without them the whole catalogue is scored."""
    k: Annotated[_Whole, Field(ge=1)] | None = None
    """The best k only, best first; without it every candidate, in the order asked."""
    task: _Text | None = None
    """May be left out where the adapter has one."""
    user_id: _Text | None = None
    """Takes history and columns from the mounted data set, where no history is given."""
    user: Columns | None = None
    """The user's columns, for the instruction."""
    exclude_seen: Annotated[bool, Strict()] | None = None
    """Leave the history's items out of what is recommended from the whole catalogue; by default as the task was evaluated."""
    allow: Items | None = None
    """Only these items."""
    deny: Items | None = None
    """None of these items."""
    where: Conditions | None = None
    """Conditions on item columns, such as in_stock == true; all must be met."""
    diversity: Annotated[_Number, Field(ge=0, le=1)] | None = None
    """The λ of maximal marginal relevance: 0 is off, near 1 the k items differ most. Needs k and item vectors."""
    beam: Annotated[_Whole, Field(ge=1, le=MAX_BEAM)] | None = None
    """Of a task that generates items: prefixes that its search keeps at each level, k or more; candidates are all scored."""
    texts: Texts | None = None
    """For an adapter that reads labelled texts, instead of a history: each by its columns, and a text_id."""
    id: Id | None = None
    """Comes back in the response."""

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.history is None and self.user_id is None and self.texts is None:
            raise RequestError("a request needs a history or a user_id", todo="give history: [] for a user without events")
        if self.texts is not None and (beside := [name for name in _NOT_OF_TEXTS if getattr(self, name) is not None]):
            raise RequestError(f"{beside[0]} does not go with texts", got=beside[0], expected="texts, and k or nothing")
        if self.diversity and self.k is None:
            raise RequestError("diversity needs k", got="no k", expected="how many items are to differ")
        if self.diversity and self.k is not None and self.k > POOL:
            raise RequestError("k is too large for diversity", got=self.k, expected=f"at most {POOL:,}")
        return self


@checked(frozen=True, config=_CONFIG)
class ExplainRequest(_Question):
    """A question for the events of a history that an item's score comes from."""

    adapter: _Text
    item: Item
    """An item id, or an item by its columns."""
    id: Id | None = None
    task: _Text | None = None
    user_id: _Text | None = None
    history: History | None = None
    user: Columns | None = None
    method: Literal["leave_one_out", "gradient"] = "leave_one_out"

    def request(self) -> Request:
        """The request whose score is explained."""
        names = ("adapter", "history", "task", "user_id", "user", "id")
        return Request(candidates=[self.item], **{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Scored:
    """One item and its score.

    Attributes:
        score: A probability, a value, a logit over the catalogue, or the log-probability of an item that is generated.
        probability: Of next-item tasks: the softmax of the logits over all items that the request could be answered with, so
            that it depends on what is left out. None for other tasks.
    """

    item_id: str
    score: float
    probability: float | None = field(default=None, compare=False)


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
    """The outcome of a request.

    Attributes:
        digest: The version that answered.
        error: Why none did.
        note: Why the results are empty, where they are.
    """

    id: str | None
    adapter: str
    digest: str | None = None
    results: "tuple[Scored, ...] | tuple[ScoredText, ...]" = ()
    error: str | None = None
    note: str | None = None

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Response({self.adapter}: {self.error})"
        shown = [f"{_id_of(item)} {item.score:.4g}" for item in self.results[:SHOWN]]
        more = len(self.results) - len(shown)
        return f"Response({self.adapter}: {', '.join(shown) or self.note or 'no results'}{f' and {more} more' if more else ''})"

    def _repr_html_(self) -> str:
        if self.error is not None:
            return display.facts(self.adapter, {"error": self.error})
        frame = self.frame
        return display.table(
            f"{self.adapter}, version {(self.digest or '')[:12]}", frame.columns, frame.rows(), note=self.note or ""
        )

    @property
    def frame(self) -> "pl.DataFrame":
        """The results as a polars frame: rank from 1, item_id (or text_id), score, and probability, or one column a class.

        Raises:
            RequestError: The request was not answered.
        """
        import polars as pl

        if self.error is not None:
            raise RequestError(f"{self.adapter} did not answer", got=self.error, expected="results", todo="see Response.error")
        texts = any(isinstance(item, ScoredText) for item in self.results)
        columns: dict[str, Any] = {"rank": range(1, len(self.results) + 1)}
        columns["text_id" if texts else "item_id"] = [_id_of(item) for item in self.results]
        columns["score"] = [item.score for item in self.results]
        if any(getattr(item, "probability", None) is not None for item in self.results):
            columns["probability"] = [getattr(item, "probability", None) for item in self.results]
        for name in {name: None for item in self.results for name in getattr(item, "classes", None) or ()}:
            columns[name] = [(getattr(item, "classes", None) or {}).get(name) for item in self.results]
        types = {"rank": pl.Int64, "text_id" if texts else "item_id": pl.String, "score": pl.Float64}
        return pl.DataFrame(columns, schema_overrides=types)

    def to_json(self) -> dict[str, Any]:
        """The row of a score file."""
        if self.error is not None:
            return {"id": self.id, "adapter": self.adapter, "error": self.error}
        results = [_row(item) for item in self.results]
        row = {"id": self.id, "adapter": self.adapter, "digest": self.digest, "results": results}
        return row if self.note is None else row | {"note": self.note}


def _id_of(item: Scored | ScoredText) -> str:
    return item.item_id if isinstance(item, Scored) else item.text_id


def refused(row: object, error: object) -> Response:
    """The error response to a row of any form, with its id and reference where those can be read."""
    found = row if isinstance(row, Mapping) else {name: getattr(row, name, None) for name in ("id", "adapter")}
    number, adapter = found.get("id"), found.get("adapter")
    return Response(None if number is None else str(number), adapter if isinstance(adapter, str) else "", error=str(error))


def _row(item: Scored | ScoredText) -> dict[str, Any]:
    if isinstance(item, Scored):
        return {"item_id": item.item_id, "score": item.score}
    row = {"text_id": item.text_id, "score": item.score}
    return row if item.classes is None else row | {"classes": dict(item.classes)}
