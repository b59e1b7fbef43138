"""From the bytes of a call to its rows.

Owns: JSON that cannot harm (depth, numbers, long texts), the outer shape of a call. Ignores: what a row says.

    read_rows(b'{"requests": [{"adapter": "like@production", …}]}', most=256)
"""

import re
from typing import Any

from pydantic_core import from_json

from genre.errors import RequestError
from genre.serving.problems import Problem

LONGEST_TEXT = 8192
LARGEST_NUMBER = 2**53
_SUSPECT = re.compile(rb"\d{16}|[eE][+-]?\d{3}")


def parse(data: bytes) -> Any:
    """A JSON value: UTF-8, at most 200 levels deep, only finite numbers up to 2^53, texts of at most 8,192 characters.

    Raises:
        Problem: 400, it is not.
    """
    try:
        value = from_json(data, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise Problem(400, "bad_json", RequestError("the body is no JSON", got=str(error))) from None
    if len(data) > LONGEST_TEXT or _SUSPECT.search(data):  # otherwise nothing in it can be too large
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
                raise Problem(
                    400, "too_long", RequestError("a text is too long", got=len(one), expected=f"at most {LONGEST_TEXT}")
                )
        elif isinstance(one, int | float) and not -LARGEST_NUMBER <= one <= LARGEST_NUMBER:
            raise Problem(400, "bad_number", RequestError("a number is out of range", expected="at most 2^53 either way"))


def read_object(data: bytes, known: dict[str, type | tuple[type, ...]], needed: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object with known fields of known types.

    Raises:
        Problem: 400, it is no JSON; 422, it has another shape.
    """
    value = parse(data)
    if not isinstance(value, dict):
        raise _shape("the body is no JSON object", got=_kind(value))
    if stray := sorted(set(value) - set(known)):
        raise _shape("the body has an unknown field", got=stray[0][:80], expected=", ".join(known))
    for field in needed:
        if field not in value:
            raise _shape(f"the body has no {field}", expected=", ".join(needed))
    for field, kinds in known.items():
        if field in value and (not isinstance(value[field], kinds) or (isinstance(value[field], bool) and kinds is not bool)):
            raise _shape(f"{field} cannot be used", got=_kind(value[field]), expected=_names(kinds))
    return value


def read_rows(data: bytes, most: int) -> list[Any]:
    """The rows of a call, whatever they are.

    Raises:
        Problem: 400, it is no JSON; 422, it has no list of 1 to `most` requests.
    """
    rows: list[Any] = read_object(data, {"requests": list}, ("requests",))["requests"]
    if not 1 <= len(rows) <= most:
        raise _shape("requests has a wrong length", got=len(rows), expected=f"1 to {most}")
    return rows


def _shape(what: str, *, got: object = None, expected: object = None) -> Problem:
    return Problem(422, "bad_body", RequestError(what, got=got, expected=expected))


_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "null")


def _names(kinds: type | tuple[type, ...]) -> str:
    names = [_KINDS[kind] for kind in (kinds if isinstance(kinds, tuple) else (kinds,))]
    return " or ".join(dict.fromkeys(names))
