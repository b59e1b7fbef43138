"""Bodies of requests and responses, as bytes.

Owns: JSON that cannot harm (depth, numbers, long texts), the outer shape of a call. Ignores: the rows, which fail alone.

    read_rows(b'{"requests": [{"adapter": "like@production", …}]}', ScoreBody, most=256)
"""

import re
from typing import Any, TypeVar

from fastapi import Request as Http
from fastapi import Response as Reply
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json, to_json

from genre.errors import RequestError
from genre.serving.http.schema import ExplainBody, ScoreBody
from genre.serving.problems import Problem
from genre.validation import refusal

_Body = TypeVar("_Body", bound=BaseModel)

JSON = "application/json"
LONGEST_TEXT = 8192
LARGEST_NUMBER = 2**53
MOST_VALUES = 2**20
"""Values of a body, about: each takes some sixty bytes of memory, and the parser stops every thread until it has them all."""
_SUSPECT = re.compile(rb"\d{16}|[eE][+-]?\d{3}")


def parse(data: bytes) -> Any:
    """A JSON value: UTF-8, at most 200 levels deep, only finite numbers up to 2^53, texts of at most 8,192 characters.

    Raises:
        Problem: 400, it is not; 413, it has more than a million values.
    """
    if len(data) > MOST_VALUES and (values := sum(map(data.count, (b",", b"[", b"{")))) > MOST_VALUES:
        error = RequestError("the body has too many values", got=f"about {values:,}", expected=f"at most {MOST_VALUES:,}")
        raise Problem(413, "too_large", error)
    try:
        value = from_json(data, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "bad_json", RequestError("the body is not JSON", got=str(error))) from None
    if len(data) > LONGEST_TEXT or _SUSPECT.search(data):  # nothing in other bodies can be too large
        _check(value)
    return value


def _check(value: Any) -> None:
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            pending.extend(one)
            pending.extend(one.values())
        elif isinstance(one, list):
            pending.extend(one)
        elif isinstance(one, str):
            if len(one) > LONGEST_TEXT:
                error = RequestError("a text is too long", got=len(one), expected=f"at most {LONGEST_TEXT}")
                raise Problem(400, "too_long", error)
        elif isinstance(one, int | float) and not -LARGEST_NUMBER <= one <= LARGEST_NUMBER:
            raise Problem(400, "bad_number", RequestError("a number is out of range", expected="at most 2^53 either way"))


def read_body(data: bytes, model: type[_Body]) -> _Body:
    """Read the body of a call.

    Raises:
        Problem: 400, it is not JSON; 422, it has another shape.
    """
    try:
        return model.model_validate(parse(data))
    except ValidationError as error:
        found = refusal(error, "the body", list(model.model_fields), RequestError)
        raise Problem(422, "bad_body", found) from None


def read_rows(data: bytes, model: type[ScoreBody | ExplainBody], most: int) -> list[Any]:
    """Read the rows of a call, whatever they are.

    Raises:
        Problem: 400, it is not JSON; 422, it has no list of 1 to `most` requests.
    """
    rows: list[Any] = read_body(data, model).requests
    if len(rows) > most:
        raise Problem(422, "bad_body", RequestError("requests has a wrong length", got=len(rows), expected=f"at most {most}"))
    return rows


async def body_of(http: Http) -> bytes:
    """Read the body of a call declared as JSON, which a cross-site form cannot send.

    Raises:
        Problem: 415, it is declared as something else.
    """
    need_json(http)
    return await http.body()


def need_json(http: Http) -> None:
    """Refuse a body that is not declared as JSON, before it is read.

    Raises:
        Problem: 415.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise Problem(415, "not_json", RequestError("a call needs a JSON body", got=repr(kind[:80]), expected=JSON))


def caller_of(http: Http) -> str:
    """The address of the client."""
    return "" if http.client is None else http.client.host


def reply(value: Any, status: int = 200) -> Reply:
    """A JSON answer."""
    return Reply(to_json(value), status_code=status, media_type=JSON)
