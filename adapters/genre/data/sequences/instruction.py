"""Instructions: text with the user's columns in braces, and nothing else that `str.format` knows.

Owns: reading and filling them in. Ignores: tokens. An instruction comes with a published version, so that it is data: a field
names a column, and reaches into no value and sets no width.

    fill("A user of {age}, in order:", {"age": 24})  ->  "A user of 24, in order:"
"""

import string
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from genre.errors import DataError


@lru_cache(maxsize=256)
def parts_of(instruction: str) -> tuple[tuple[str, str | None], ...]:
    """Return the parts of an instruction: a text, and the column that follows it (None for none).

    Raises:
        DataError: A brace is alone, or a field is more than a column's name.
    """
    expected, todo = "{column}, and {{ or }} for a brace", "change sequence.instruction"
    try:
        parts = tuple(string.Formatter().parse(instruction))
    except ValueError as error:
        raise DataError("the instruction cannot be read", got=str(error), expected=expected, todo=todo) from None
    for _, field, form, conversion in parts:
        if field is not None and (not field or form or conversion or set(field) & set(".[]{}")):
            written = "{" + field + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "") + "}"
            raise DataError("the instruction cannot be read", got=f"the field {written[:80]}", expected=expected, todo=todo)
    return tuple((text, field) for text, field, _, _ in parts)


def fields_of(instruction: str) -> list[str]:
    """Return the user's columns that an instruction names; DataError as of `parts_of`."""
    return [field for _, field in parts_of(instruction) if field is not None]


def fill(instruction: str, columns: Mapping[str, Any]) -> str:
    """Put the user's columns into an instruction, `unknown` for None.

    Raises:
        DataError: It cannot be read, or names a column that is not there.
    """
    filled = []
    for text, field in parts_of(instruction):
        filled.append(text)
        if field is None:
            continue
        if field not in columns:
            got = ", ".join(sorted(columns)) or "no user columns"
            todo = "change sequence.instruction or give users.parquet that column"
            raise DataError(f"the instruction needs the user column {field!r}", got=got, todo=todo)
        filled.append("unknown" if columns[field] is None else str(columns[field]))
    return "".join(filled)
