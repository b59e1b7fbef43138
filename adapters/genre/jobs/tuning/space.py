"""The search space: the keys of a recipe that vary, each over an Optuna distribution.

Owns: `--search` texts and space files, checking them against the recipe's schema, the default space, the grid.
Ignores: the sampler, training.

    space = read_space(recipe, ["train.learning_rate=log:1e-4:3e-3", "adapter.rank=2,4,8", "train.dropout=0:0.5:0.1"])
    space.recipe(recipe, {"train.learning_rate": 1e-3, "adapter.rank": 4, "train.dropout": 0.2})

A range is `[log:]LOW:HIGH[:STEP]` (both ends included; integers where the key holds integers), a choice `A,B,C` or a YAML list.
"""

import itertools
import json
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import numpy as np
import yaml
from pydantic import BaseModel

from genre.errors import InputError, RecipeError, fault_of_file, kind_of
from genre.recipe import Recipe

FORM = "[log:]LOW:HIGH[:STEP] or A,B,C"
MAX_GRID = 100_000
_FIXED = ("name", "data.path", "data.split.", "data.hold_out")
_FIXED_IN_TASKS = ("name", "kind", "label", "metrics", "seen")


def need_optuna() -> Any:
    """Import Optuna.

    Raises:
        InputError: It is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise InputError("genre tune needs optuna", todo="pip install 'genre-adapters[tune]'") from None
    return optuna


@dataclass(frozen=True)
class Kind:
    """The type of a recipe key: numbers or not, integers only, null allowed."""

    number: bool
    whole: bool
    nothing: bool


@dataclass(frozen=True)
class Parameter:
    """One key that varies.

    Attributes:
        key: Its dotted path.
        text: The range or the choices as a user writes them.
        distribution: Optuna's. Choices that are lists are stored as their JSON text there.
        values: The choices; empty for a range.
    """

    key: str
    text: str
    distribution: Any
    values: tuple[Any, ...] = ()

    @property
    def log(self) -> bool:
        """True for a range on a logarithmic scale."""
        return bool(getattr(self.distribution, "log", False))

    def value(self, drawn: Any) -> Any:
        """The recipe's value for a drawn one: 0.35 for the seventh step of 0.05, not 0.35000000000000003."""
        if self.values:
            return self.values[self.distribution.choices.index(drawn)]
        stepped = isinstance(drawn, float) and self.distribution.step is not None
        return float(f"{drawn:.12g}") if stepped else drawn

    def grid(self) -> list[Any]:
        """The drawn values that make a grid.

        Raises:
            RecipeError: The range has no step.
        """
        if self.values:
            return list(self.distribution.choices)
        low, high, step = self.distribution.low, self.distribution.high, self.distribution.step
        if self.log or step is None:
            expected = "choices A,B,C or a range LOW:HIGH:STEP"
            raise RecipeError(f"a grid needs a few values of {self.key}", got=self.text, expected=expected)
        return [self.value(low + index * step) for index in range(round((high - low) / step) + 1)]


@dataclass(frozen=True)
class Space:
    """The keys that vary; never empty."""

    parameters: tuple[Parameter, ...]

    @property
    def distributions(self) -> dict[str, Any]:
        """Optuna's distributions by key."""
        return {each.key: each.distribution for each in self.parameters}

    def values(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe's values at a drawn point, by key."""
        return {each.key: each.value(point[each.key]) for each in self.parameters}

    def recipe(self, recipe: Recipe, point: Mapping[str, Any]) -> Recipe:
        """The recipe at a drawn point.

        Raises:
            RecipeError: The values are valid one by one but not together.
        """
        return recipe.with_values(self.values(point))

    def grid(self, seed: int) -> list[dict[str, Any]]:
        """All points of the grid, shuffled by the seed.

        Raises:
            RecipeError: A range has no step, or there are too many points.
        """
        values = [each.grid() for each in self.parameters]
        size = math.prod(map(len, values))
        if size > MAX_GRID:
            raise RecipeError("the grid has too many points", got=f"{size:,}", expected=f"at most {MAX_GRID:,}")
        points = [dict(zip(self.distributions, each, strict=True)) for each in itertools.product(*values)]
        return [points[index] for index in np.random.default_rng(seed).permutation(size)]

    def describe(self) -> dict[str, str]:
        """The range or choices of each key, as a user writes them."""
        return {each.key: each.text for each in self.parameters}


def read_space(recipe: Recipe, texts: Iterable[str] = (), file: Path | None = None, *, grid: bool = False) -> Space:
    """The space of a file and of `KEY=VALUES` texts, which take precedence; the default space without either.

    Args:
        recipe: The resolved recipe that varies.
        texts: Such as `adapter.rank=2,4,8`.
        file: A YAML mapping of keys to the same texts, to lists, or to `{low, high, step, log}`.
        grid: Make the default space a grid.

    Raises:
        RecipeError: A key is unknown or changes the validation targets, a range is empty or not numeric, or a value does not
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
    wanted = wanted | given or default_space(recipe, grid=grid)
    known = kinds(recipe)
    parameters = tuple(_parameter(key, value, find(key, known)) for key, value in wanted.items())
    for each in parameters:
        _check(recipe, each)
    return Space(parameters)


def default_space(recipe: Recipe, *, grid: bool = False) -> dict[str, Any]:
    """The keys that usually matter most: the learning rate, the regularizers, and the rank where there is one."""
    low_rank = recipe.adapter.kind in ("lora", "rslora")
    rate = "log:1e-5:1e-3" if recipe.adapter.kind == "full" else "log:2e-4:1e-2"
    if grid:
        rates = "3e-5,1e-4,3e-4" if recipe.adapter.kind == "full" else "5e-4,1e-3,3e-3"
        return {"train.learning_rate": rates, **({"adapter.rank": "4,8,16"} if low_rank else {"train.dropout": "0.1,0.3,0.5"})}
    space: dict[str, Any] = {"train.learning_rate": rate}
    if low_rank:
        space |= {"adapter.rank": "2,4,8,16,32", "adapter.alpha": "8,16,32"}
    return space | {"train.dropout": "0:0.5:0.05", "train.weight_decay": "log:1e-3:1e-1"}


def kinds(recipe: Recipe) -> dict[str, Kind]:
    """The kind of every key of a resolved recipe that holds one value, by dotted path; entries of `tasks` by index."""
    return dict(_walk(recipe, ""))


def _walk(config: BaseModel, prefix: str) -> Iterator[tuple[str, Kind]]:
    for name, field in type(config).model_fields.items():
        path, value = prefix + name, getattr(config, name)
        if isinstance(value, BaseModel):
            yield from _walk(value, f"{path}.")
        elif isinstance(value, tuple) and any(isinstance(each, BaseModel) for each in value):
            for index, each in enumerate(value):
                yield from _walk(each, f"{path}.{index}.")
        else:
            union = get_origin(field.annotation) in (Union, types.UnionType)
            options = get_args(field.annotation) if union else (field.annotation,)
            number = bool({int, float} & set(options))
            yield path, Kind(number, number and float not in options, type(None) in options)


def find(key: str, known: Mapping[str, Kind]) -> Kind:
    """The kind of a key.

    Raises:
        RecipeError: There is no such key; the message suggests the nearest one.
    """
    if key in known:
        return known[key]
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        raise RecipeError(f"{key!r} is a section, not a key", got=key, expected=f"one of {', '.join(inside)}")
    last = key.rsplit(".", 1)[-1]
    named = [name for name in known if name.rsplit(".", 1)[-1] == last]
    near = named or [name for name in known if last == "".join(word[0] for word in name.rsplit(".", 1)[-1].split("_"))]
    near = near or get_close_matches(key, list(known), n=1, cutoff=0.75)
    todo = f"did you mean {near[0]!r}?" if near else None
    expected = "a dotted key of the recipe, such as train.learning_rate"
    raise RecipeError("the search space names an unknown key", got=key, expected=expected, todo=todo)


def _numbers(kind: Kind) -> str:
    """What a search of numbers takes, in a message."""
    return f"{'integers' if kind.whole else 'numbers'} as {FORM}"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"search space {path} cannot be read", got=fault_of_file(error), todo="name a YAML file") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"search space {path} is not YAML", got=fault_of_file(error)) from None
    if not isinstance(found, dict) or not found or not all(isinstance(key, str) for key in found):
        got = "an empty mapping" if found == {} else kind_of(found)
        raise RecipeError(f"search space {path} does not map keys", got=got, expected=f"lines such as adapter.rank: {FORM}")
    return found


def _parameter(key: str, wanted: Any, kind: Kind) -> Parameter:
    """Read the values of a key: a text, a list, or a mapping of `low`, `high`, `step` and `log`."""
    where = f"search of {key}"
    if isinstance(wanted, str):
        wanted = _parse(wanted.strip(), where, kind)
    if isinstance(wanted, list):
        return _choices(key, where, kind, wanted)
    if not isinstance(wanted, dict):
        expected = f'"{FORM}" in quotes, a list, or low and high'
        raise RecipeError(where, got=str(wanted), expected=expected, todo="YAML reads 2:30 without quotes as 150")
    strange = sorted(set(wanted) - {"low", "high", "step", "log"})
    if strange or not {"low", "high"} <= set(wanted):
        got = ", ".join(strange) if strange else ", ".join(map(str, wanted))
        raise RecipeError(where, got=got, expected="low, high and, optionally, step and log")
    return _range(key, where, kind, **wanted)


def _parse(text: str, where: str, kind: Kind) -> Any:
    """The list or mapping that a text is short for."""
    if text.startswith("["):
        try:
            listed = yaml.safe_load(text)
        except yaml.YAMLError:
            listed = None
        if not isinstance(listed, list):
            raise RecipeError(where, got=text, expected="a YAML list")
        return listed
    if not kind.number or ":" not in text:
        return [_plain(part) for part in text.split(",")]
    log = text.startswith("log:")
    parts = text.removeprefix("log:").split(":")
    if len(parts) not in (2, 3):
        raise RecipeError(where, got=text, expected=FORM)
    return {**dict(zip(("low", "high", "step"), parts, strict=False)), "log": log}


def _plain(text: str) -> Any:
    """A scalar as YAML reads it; anything else stays a text."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    return value if isinstance(value, bool | int | float) or value is None else text.strip()


def _range(key: str, where: str, kind: Kind, low: Any, high: Any, step: Any = None, log: Any = False) -> Parameter:
    """A range; Optuna would accept LOW equal to HIGH, and would only warn about a range that is not a whole number of steps."""
    distributions = need_optuna().distributions
    if not kind.number:
        raise RecipeError(where, got="a range", expected="choices A,B,C: the key is not a number")
    first, last = _number(low, where, kind), _number(high, where, kind)
    width = None if step is None else _number(step, where, kind)
    shown = f"{low}:{high}"
    if first >= last:
        raise RecipeError(f"{where} is empty", got=shown, expected="LOW below HIGH")
    if log and (first <= 0 or width is not None):
        raise RecipeError(where, got=f"log:{shown}", expected="LOW above 0, and no step, for a log range")
    if width is not None:
        if not 0 < width <= last - first:
            raise RecipeError(where, got=f"step {step}", expected=f"above 0 and at most {last - first:g}")
        if not math.isclose(count := (last - first) / width, round(count), rel_tol=1e-9):
            raise RecipeError(where, got=f"{shown}:{step}", expected="a range that is a whole number of steps")
    text = f"{'log:' if log else ''}{first}:{last}{'' if width is None else f':{width}'}"
    if kind.whole:
        return Parameter(key, text, distributions.IntDistribution(first, last, log=bool(log), step=width or 1))
    return Parameter(key, text, distributions.FloatDistribution(first, last, log=bool(log), step=width))


def _choices(key: str, where: str, kind: Kind, values: list[Any]) -> Parameter:
    if kind.number:
        values = [None if value is None and kind.nothing else _number(value, where, kind) for value in values]
    text = json.dumps(values, ensure_ascii=False, default=str)
    labels = [json.dumps(value) if isinstance(value, list | dict) else value for value in values]
    if len(values) < 2:
        raise RecipeError(where, got=text, expected="at least two values", todo=f"fix one with --set {key}=VALUE")
    if len({json.dumps(label, default=str) for label in labels}) < len(values):
        raise RecipeError(f"{where} names a value twice", got=text, expected="each value once")
    return Parameter(key, text, need_optuna().distributions.CategoricalDistribution(labels), tuple(values))


def _number(value: Any, where: str, kind: Kind) -> Any:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan  # YAML 1.1 reads 1e-3 as text
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (kind.whole and number != int(number)):
        raise RecipeError(where, got=str(value), expected=_numbers(kind))
    return int(number) if kind.whole else number


def _check(recipe: Recipe, parameter: Parameter) -> None:
    """Refuse a key that changes the validation targets, and values that the schema refuses by themselves."""
    key = parameter.key
    first, last = key.split(".")[0], key.split(".")[-1]
    fixed = any(key == name or (name.endswith(".") and key.startswith(name)) for name in _FIXED)
    if fixed or (first == "tasks" and last in _FIXED_IN_TASKS):
        expected = "a key that leaves the validation targets unchanged"
        raise RecipeError(f"{key} cannot be searched", got=parameter.text, expected=expected)
    distribution = parameter.distribution
    for value in parameter.values or (distribution.low, distribution.high):
        try:
            recipe.with_values({key: value})
        except RecipeError as error:
            if f"{error.path}.".startswith(f"{key}."):  # a failure only in combination may work with other values
                todo = None if error.expected else error.what
                raise RecipeError(f"search of {key}", got=str(value), expected=error.expected, todo=todo) from None
