"""The search space: which keys of a recipe vary, over which values.

Owns: `--search` texts and space files, checking them against the recipe's schema, the default space, the grid.
Ignores: who draws a point, what becomes of it.

    space = read_space(recipe, ["train.learning_rate=log:1e-4:3e-3", "adapter.rank=2,4,8", "train.dropout=0:0.5:0.1"])
    space.recipe(recipe, {"train.learning_rate": 1e-3, "adapter.rank": 4, "train.dropout": 0.2})

A range is `[log:]LOW:HIGH[:STEP]` (both ends included; whole numbers where the key holds such), a choice `A,B,C` or a YAML list.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from genre.errors import RecipeError
from genre.jobs.tuning.keys import changed, find, kinds
from genre.jobs.tuning.ranges import FORM, Choices, Range, read_parameter
from genre.recipe import Recipe

MAX_GRID = 100_000
_MEASURED = ("name", "data.path", "data.split.", "data.hold_out")
_OF_TASK = ("name", "kind", "label", "metrics", "seen")


@dataclass(frozen=True)
class Space:
    """What varies; never empty."""

    parameters: tuple[Range | Choices, ...]

    def suggest(self, trial: Any) -> dict[str, Any]:
        """A point: a drawn value by key."""
        return {each.key: each.suggest(trial) for each in self.parameters}

    def values(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """What a point puts into a recipe, by key."""
        return {each.key: each.value(point[each.key]) for each in self.parameters}

    def recipe(self, recipe: Recipe, point: Mapping[str, Any]) -> Recipe:
        """A recipe at a point.

        Raises:
            RecipeError: Values that are each allowed do not go together.
        """
        return changed(recipe, self.values(point))

    def grid(self, seed: int) -> list[dict[str, Any]]:
        """Every point of the grid, in an order that the seed draws.

        Raises:
            RecipeError: A range has no step, or there are too many points.
        """
        points = [each.points() for each in self.parameters]
        size = math.prod(map(len, points))
        if size > MAX_GRID:
            raise RecipeError("the grid has too many points", got=f"{size:,}", expected=f"at most {MAX_GRID:,}")
        found = [dict(zip((each.key for each in self.parameters), values, strict=True)) for values in itertools.product(*points)]
        return [found[place] for place in np.random.default_rng(seed).permutation(size)]

    def describe(self) -> dict[str, str]:
        """Key → what it varies over, as it is written."""
        return {each.key: each.describe() for each in self.parameters}


def read_space(recipe: Recipe, texts: Iterable[str] = (), file: Path | None = None, *, grid: bool = False) -> Space:
    """The space of a file and of `KEY=VALUES` texts (which win), or the default one if there is neither.

    Args:
        recipe: The resolved recipe that varies.
        texts: Such as `adapter.rank=2,4,8`.
        file: A YAML mapping of keys to the same texts, to lists, or to `{low, high, step, log}`.
        grid: Whether the default space is to be a grid.

    Raises:
        RecipeError: A key is unknown or changes what is measured, a range is empty or no range of numbers, a value does not
            fit the schema.
    """
    wanted: dict[str, Any] = {} if file is None else _read_file(file)
    given: dict[str, Any] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not key or not values.strip():
            raise RecipeError("a search cannot be read", got=text, expected=f"KEY={FORM}")
        if key.strip() in given:
            raise RecipeError("a key is searched twice", got=key.strip(), expected="each key once")
        given[key.strip()] = values
    wanted |= given
    if not wanted:
        wanted = default_space(recipe, grid=grid)
    known = kinds(recipe)
    parameters = tuple(read_parameter(key, value, find(key, known)) for key, value in wanted.items())
    for each in parameters:
        _check(recipe, each)
    return Space(parameters)


def default_space(recipe: Recipe, *, grid: bool = False) -> dict[str, Any]:
    """What is worth varying first: the learning rate, the regularizers, and the rank where there is one."""
    low_rank = recipe.adapter.kind in ("lora", "rslora")
    rate = "log:1e-5:1e-3" if recipe.adapter.kind == "full" else "log:2e-4:1e-2"
    if grid:
        rates = "3e-5,1e-4,3e-4" if recipe.adapter.kind == "full" else "5e-4,1e-3,3e-3"
        return {"train.learning_rate": rates, **({"adapter.rank": "4,8,16"} if low_rank else {"train.dropout": "0.1,0.3,0.5"})}
    space: dict[str, Any] = {"train.learning_rate": rate}
    if low_rank:
        space |= {"adapter.rank": "2,4,8,16,32", "adapter.alpha": "8,16,32"}
    return space | {"train.dropout": "0:0.5:0.05", "train.weight_decay": "log:1e-3:1e-1"}


def _read_file(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"search space {path} cannot be read", got=str(error), todo="name a YAML file") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"search space {path} is not YAML", got=str(error).replace("\n", " ")) from None
    if not isinstance(found, dict) or not found or not all(isinstance(key, str) for key in found):
        got = "an empty mapping" if found == {} else type(found).__name__
        raise RecipeError(f"search space {path} is no mapping of keys", got=got, expected=f"lines such as adapter.rank: {FORM}")
    return found


def _check(recipe: Recipe, parameter: Range | Choices) -> None:
    """Refuse a key that changes what trials are measured by, and values that the schema refuses by themselves."""
    key = parameter.key
    parts = key.split(".")
    if any(key == name or (name.endswith(".") and key.startswith(name)) for name in _MEASURED) or (
        parts[0] == "tasks" and parts[-1] in _OF_TASK
    ):
        raise RecipeError(
            f"{key} cannot be searched", got=parameter.describe(), expected="a key that leaves the validation targets as they are"
        )
    for value in parameter.ends():
        try:
            changed(recipe, {key: value})
        except RecipeError as error:
            if f"{error.path}.".startswith(f"{key}."):  # what only fails together with other keys may go with their other values
                todo = None if error.expected else error.what
                raise RecipeError(f"search of {key}", got=str(value), expected=error.expected, todo=todo) from None
