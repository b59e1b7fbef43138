"""Whether a job goes on with what it began with.

check_same("the study", {"seed": 0}, {"seed": 1})     # InputError: … seed differs: got 1; expected 0
"""

import json
from collections.abc import Mapping
from typing import Any

from genre.errors import InputError


def check_same(what: str, stored: Mapping[str, Any], wanted: Mapping[str, Any], *, todo: str | None = None) -> None:
    """Check that a job goes on with what it began with.

    Raises:
        InputError: Something differs; the message names the first key and both values.
    """
    ours, theirs = _leaves(wanted), _leaves(stored)
    for key in dict.fromkeys([*theirs, *ours]):
        if ours.get(key) != theirs.get(key):
            raise InputError(
                f"{what} is of another run: {key} differs", got=_shown(ours, key), expected=_shown(theirs, key), todo=todo
            )


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {path: leaf for key, each in value.items() for path, leaf in _leaves(each, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): json.loads(json.dumps(value))}


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return json.dumps(leaves[key], ensure_ascii=False)[:80] if key in leaves else "nothing"
