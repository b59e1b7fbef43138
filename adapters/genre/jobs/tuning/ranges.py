"""One searched key: a range of numbers, or a choice of values.

Owns: their two forms, reading them, what Optuna and a grid take of them. Ignores: which keys there are, the schema's bounds.

    read_parameter("adapter.rank", "2,4,8", Kind(number=True, whole=True, nothing=False))     # Choices("adapter.rank", (2, 4, 8))
"""

import json
import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import yaml

from genre.errors import RecipeError
from genre.jobs.tuning.keys import Kind

FORM = "[log:]LOW:HIGH[:STEP] or A,B,C"


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; every `step` from `low`, or spread by their logarithm."""

    key: str
    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Any) -> Any:
        """A value, from whoever draws the points of an Optuna trial."""
        draw = trial.suggest_int if self.whole else trial.suggest_float
        step = self.step or (1 if self.whole else None)
        return draw(self.key, self.low, self.high, log=self.log) if self.log else draw(self.key, self.low, self.high, step=step)

    def ends(self) -> tuple[Any, ...]:
        """The values that have to fit the schema for all others to fit."""
        return self.low, self.high

    def points(self) -> list[Any]:
        """The values that a grid takes.

        Raises:
            RecipeError: The range has no step.
        """
        if self.log or (self.step is None and not self.whole):
            raise RecipeError(
                f"a grid needs a few values of {self.key}", got=self.describe(), expected="choices A,B,C or a range LOW:HIGH:STEP"
            )
        first, step = Decimal(str(self.low)), Decimal(str(self.step or 1))
        count = int((Decimal(str(self.high)) - first) / step) + 1
        values = [first + place * step for place in range(count)]
        return [int(value) if self.whole else float(value) for value in values]

    def value(self, drawn: Any) -> Any:
        """What goes into the recipe for a drawn value: 0.35 for the seventh step of 0.05, not 0.35000000000000003."""
        if self.whole or self.step is None:
            return drawn
        step = Decimal(str(self.step))
        return float(Decimal(str(self.low)) + round((drawn - self.low) / self.step) * step)

    def describe(self) -> str:
        """The range as it is written."""
        return f"{'log:' if self.log else ''}{self.low}:{self.high}{'' if self.step is None else f':{self.step}'}"


@dataclass(frozen=True)
class Choices:
    """One of some values."""

    key: str
    values: tuple[Any, ...]

    @property
    def labels(self) -> list[Any]:
        """The values as a study stores them: lists as their JSON text."""
        return [json.dumps(value) if isinstance(value, list | dict) else value for value in self.values]

    def suggest(self, trial: Any) -> Any:
        """A label, from whoever draws the points of an Optuna trial."""
        return trial.suggest_categorical(self.key, self.labels)

    def ends(self) -> tuple[Any, ...]:
        """The values that have to fit the schema."""
        return self.values

    def points(self) -> list[Any]:
        """The labels that a grid takes."""
        return self.labels

    def value(self, drawn: Any) -> Any:
        """What goes into the recipe for a label."""
        return self.values[self.labels.index(drawn)]

    def describe(self) -> str:
        """The choices as they are written."""
        return json.dumps(list(self.values), ensure_ascii=False, default=str)


def read_parameter(key: str, value: Any, kind: Kind) -> Range | Choices:
    """Read what a key varies over: a text, a list, or a mapping of `low`, `high`, `step` and `log`.

    Raises:
        RecipeError: A range is empty or no range of numbers, or a choice is none.
    """
    where = f"search of {key}"
    if isinstance(value, dict):
        strange = sorted(set(value) - {"low", "high", "step", "log"})
        if strange or not {"low", "high"} <= set(value):
            got = ", ".join(strange) if strange else ", ".join(map(str, value))
            raise RecipeError(where, got=got, expected="low, high and, if wanted, step and log")
        return _range(key, where, kind, value["low"], value["high"], value.get("step"), bool(value.get("log", False)))
    if isinstance(value, list):
        return _choices(key, where, kind, value)
    if not isinstance(value, str):
        expected = f'"{FORM}" in quotes, a list, or low and high'
        raise RecipeError(where, got=str(value), expected=expected, todo="YAML reads 2:30 without quotes as 150")
    text = value.strip()
    if text.startswith("["):
        try:
            listed = yaml.safe_load(text)
        except yaml.YAMLError:
            listed = None
        if not isinstance(listed, list):
            raise RecipeError(where, got=text, expected="a YAML list")
        return _choices(key, where, kind, listed)
    if kind.number and ":" in text:
        first, *rest = text.split(":")
        log = first.strip() == "log"
        parts = rest if log else [first, *rest]
        if len(parts) not in (2, 3):
            raise RecipeError(where, got=text, expected=FORM)
        return _range(key, where, kind, parts[0], parts[1], parts[2] if len(parts) == 3 else None, log)
    return _choices(key, where, kind, [_plain(part) for part in text.split(",")])


def _plain(text: str) -> Any:
    """A value as YAML reads it; what is no plain value there stays a text."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    return value if isinstance(value, bool | int | float) or value is None else text.strip()


def _range(key: str, where: str, kind: Kind, low: Any, high: Any, step: Any, log: bool) -> Range:
    if not kind.number:
        raise RecipeError(where, got="a range", expected="choices A,B,C: the key holds no number")
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
        if (Decimal(str(last)) - Decimal(str(first))) % Decimal(str(width)):
            raise RecipeError(where, got=f"{shown}:{step}", expected="a range that is a whole number of steps")
    return Range(key, first, last, width, log, kind.whole)


def _choices(key: str, where: str, kind: Kind, values: list[Any]) -> Choices:
    if kind.number:
        values = [None if value is None and kind.nothing else _number(value, where, kind) for value in values]
    chosen = Choices(key, tuple(values))
    if len(values) < 2:
        raise RecipeError(where, got=chosen.describe(), expected="at least two values", todo=f"fix one with --set {key}=VALUE")
    if len({json.dumps(label, default=str) for label in chosen.labels}) < len(values):
        raise RecipeError(f"{where} names a value twice", got=chosen.describe(), expected="each value once")
    return chosen


def _number(value: Any, where: str, kind: Kind) -> Any:
    expected = "whole numbers" if kind.whole else "numbers"
    try:
        number = float(value) if not isinstance(value, bool) else math.nan  # YAML 1.1 reads 1e-3 as text
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or (kind.whole and number != int(number)):
        raise RecipeError(where, got=str(value), expected=expected)
    return int(number) if kind.whole else number
