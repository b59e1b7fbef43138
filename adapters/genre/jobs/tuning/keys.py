"""The keys of a recipe by their dotted paths: which there are, what they hold, how one is changed.

Owns: walking the recipe's schema. Ignores: ranges, studies.

    kinds(recipe)["train.learning_rate"]                    # Kind(number=True, whole=False, nothing=False)
    changed(recipe, {"adapter.rank": 4, "tasks.0.weight": 2.0})
"""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from genre.errors import RecipeError
from genre.recipe import Recipe


@dataclass(frozen=True)
class Kind:
    """What a key holds: whether numbers, whole ones only, and whether nothing (null) too."""

    number: bool
    whole: bool
    nothing: bool


def kinds(recipe: Recipe) -> dict[str, Kind]:
    """Every key of a resolved recipe that holds one value, by its dotted path; lists such as `tasks` by place."""
    return dict(_walk(recipe, ""))


def _walk(config: BaseModel, prefix: str) -> Iterator[tuple[str, Kind]]:
    for name, field in type(config).model_fields.items():
        path, value = prefix + name, getattr(config, name)
        if isinstance(value, BaseModel):
            yield from _walk(value, f"{path}.")
        elif isinstance(value, tuple) and any(isinstance(each, BaseModel) for each in value):
            for place, each in enumerate(value):
                yield from _walk(each, f"{path}.{place}.")
        else:
            yield path, _kind(field.annotation)


def _kind(annotation: Any) -> Kind:
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    number = bool({int, float} & set(options))
    return Kind(number, number and float not in options, type(None) in options)


def find(key: str, known: Mapping[str, Kind]) -> Kind:
    """What a key holds.

    Raises:
        RecipeError: There is no such key; the message names the nearest.
    """
    if key in known:
        return known[key]
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        raise RecipeError(f"{key!r} is a section, not a key", got=key, expected=f"one of {', '.join(inside)}")
    last = key.rsplit(".", 1)[-1]
    named = [name for name in known if name.rsplit(".", 1)[-1] == last]
    near = named or get_close_matches(key, list(known), n=1, cutoff=0.6)
    todo = f"did you mean {near[0]!r}?" if near else None
    expected = "a dotted key of the recipe, such as train.learning_rate"
    raise RecipeError("the search space names an unknown key", got=key, expected=expected, todo=todo)


def changed(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """A recipe with other values at some dotted keys, checked again.

    Raises:
        RecipeError: A value, or what they are together, is refused by the schema.
    """
    raw: Any = recipe.model_dump(mode="json")
    for key, value in values.items():
        place = raw
        *parents, last = key.split(".")
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        place[last] = value
    return Recipe.parse(raw)
