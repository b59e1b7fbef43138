"""Values at dotted paths of nested sections, as `--set` writes them.

Owns: reading `train.epochs=3`, the place that it names. Ignores: what sections there are.

    data = {"train": {"epochs": 5}}
    override(data, "train.epochs=3")      # {"train": {"epochs": 3}}
"""

import contextlib
from typing import Any

import yaml

from genre.errors import RecipeError


def override(data: dict[str, Any], text: str) -> None:
    """Put the value of a `dotted.path=value` text, which is read as YAML, in its place (mutates).

    Raises:
        RecipeError: It has another form, or names no place.
    """
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise RecipeError("an override cannot be read", got=text, expected="a.b=c", todo="for example --set train.epochs=3")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = value
    if isinstance(parsed, str):  # YAML 1.1 reads 1e-3 as text
        with contextlib.suppress(ValueError):
            parsed = float(parsed)
    put(data, path, parsed)


def put(data: dict[str, Any], path: str, value: Any) -> None:
    """Put a value at a dotted path (mutates); list elements go by index, missing sections are made.

    Raises:
        RecipeError: The path goes through a plain value, or names no element.
    """
    *parents, last = path.split(".")
    node: Any = data
    for key in parents:
        node = node[_index(node, key, path)] if isinstance(node, list) else node.setdefault(key, {})
        if not isinstance(node, dict | list):
            raise RecipeError(f"override {path!r} goes through {key!r}, which holds a plain value", got=repr(node))
    node[_index(node, last, path) if isinstance(node, list) else last] = value


def _index(node: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise RecipeError(f"override {path!r} names no element", got=key, expected=f"0 to {len(node) - 1}")
    return int(key)
