"""A layout as a manifest records it, checked where a version is read: whoever published it wrote it.

Owns: the kinds and bounds of its fields. Ignores: tokens.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from genre.data.sequences.instruction import parts_of
from genre.data.sequences.windows import WindowRule
from genre.errors import ManifestError
from genre.validation import expected

MOST_EVENTS = 2**16
MOST_VALUES = 2**14
MOST_TOKENS = 2**16


class _Described(BaseModel):
    model_config = ConfigDict(strict=True)
    instruction: str = Field(max_length=MOST_TOKENS)
    text: list[str] = Field(max_length=256)


class LogLayout(_Described):
    """The record of a `Layout`."""

    item: Literal["text", "token", "both"]
    max_item_tokens: int = Field(ge=1, le=MOST_TOKENS)
    max_events: int = Field(ge=1, le=MOST_EVENTS)
    window: WindowRule = "sliding"
    soft_feedback: bool
    feedback: str | None
    values: list[FiniteFloat] | list[str] = Field(max_length=MOST_VALUES)


class TextsLayout(_Described):
    """The record of a `TextLayout`."""

    max_tokens: int = Field(ge=1, le=MOST_TOKENS)
    pool: Literal["mean", "first", "last"]


def check_described(described: Mapping[str, Any], kind: type[LogLayout] | type[TextsLayout]) -> None:
    """Check the fields of a layout's record; others may lie beside them.

    Raises:
        ManifestError: A field is missing, or of another kind or size.
        DataError: The instruction cannot be read.
    """
    try:
        kind.model_validate(dict(described))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field, got = ".".join(map(str, first["loc"][:1])), repr(first["input"])[:80]
        raise ManifestError(f"sequence.{field} cannot be read", got=got, expected=expected(first)[:200]) from None
    parts_of(described["instruction"])
