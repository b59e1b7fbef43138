"""Conditions on item columns: what is in stock, what is fresh, what costs at most so much.

Owns: their one form, a text that is read and never evaluated as code, and which rows of a table meet one. Ignores requests and
models.

    in_stock == true           price <= 9.99           language != 'fr'
    released >= 2024-01-31     released within 30 days of 2024-05-01

A condition is a column, one of == != > >= < <=, and a value: a number, true or false, a text (quotes may be left out) or an ISO
date or time. `within N days of T` keeps times t with T - N days <= t <= T. Times are dates, ISO texts, or seconds since 1970;
without a zone they are UTC. An empty cell meets no condition: what is not known to be in stock is not recommended.
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl

from genre.errors import RequestError

FORM = "COLUMN, one of == != > >= < <=, and a value; or COLUMN within N days of TIME"
LONGEST = 300
_COMPARED = re.compile(r"\s*([^\s=!<>][^=!<>]*?)\s*(==|!=|>=|<=|>|<)\s*([^\s=!<>].*?)\s*")
_WITHIN = re.compile(r"\s*(\S.*?)\s+within\s+(\d+(?:\.\d+)?)\s+days?\s+of\s+(\S.*?)\s*")
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {"==": operator.eq, "!=": operator.ne, ">": operator.gt}
_OPERATORS |= {">=": operator.ge, "<": operator.lt, "<=": operator.le}
_TEXTS = (pl.String, pl.Categorical, pl.Enum)
_DAY = 86_400.0


@dataclass(frozen=True)
class Condition:
    """A condition as it is written, in parts.

    Attributes:
        column: The item column.
        op: One of the six comparisons, or `within`.
        value: As it is written, without quotes.
        days: Of `within`.
    """

    column: str
    op: str
    value: str
    days: float = 0.0

    @classmethod
    def read(cls, text: object) -> "Condition":
        """Read a condition.

        Raises:
            RequestError: It is not text, too long, or of no known form.
        """
        if not isinstance(text, str) or len(text) > LONGEST:
            raise RequestError("a condition cannot be read", got=repr(text)[:80], expected=FORM)
        if found := _WITHIN.fullmatch(text):
            return cls(found[1], "within", _plain(found[3]), float(found[2]))
        if found := _COMPARED.fullmatch(text):
            return cls(found[1], found[2], _plain(found[3]))
        raise RequestError("a condition cannot be read", got=repr(text)[:80], expected=FORM, todo="for example in_stock == true")

    def met(self, items: pl.DataFrame) -> np.ndarray:
        """Test each row, (n,) bool.

        Raises:
            RequestError: There is no such column, or the value is of another type than the column.
        """
        if self.column not in items.columns:
            columns, todo = ", ".join(items.columns), "give the engine the data set that has it"
            got = f"{self.column} {self.op} {self.value}"
            raise RequestError(f"the items have no column {self.column!r}", got=got, expected=f"one of {columns}", todo=todo)
        series = items[self.column]
        known = series.is_not_null().to_numpy()
        if isinstance(series.dtype, _TEXTS) and self.op in ("==", "!="):
            return known & _OPERATORS[self.op](series.cast(pl.String).fill_null(""), self.value).to_numpy()
        if series.dtype == pl.Boolean:
            return known & _OPERATORS[self._equality("true or false")](series.fill_null(False).to_numpy(), self._truth())
        if series.dtype.is_numeric() and self.op != "within":
            numbers = series.cast(pl.Float64).fill_null(np.nan).to_numpy()
            return ~np.isnan(numbers) & _OPERATORS[self.op](numbers, self._number())
        values, at = self._seconds(series), self._time()
        if self.op == "within":
            return (values <= at) & (values >= at - self.days * _DAY)
        return ~np.isnan(values) & _OPERATORS[self.op](values, at)

    def _seconds(self, series: pl.Series) -> np.ndarray:
        """(n,) float64 seconds since 1970, NaN for an empty cell."""
        if series.dtype.is_temporal() and series.dtype in (pl.Date, pl.Datetime):
            return series.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64).to_numpy() / 1e6
        if isinstance(series.dtype, _TEXTS):
            texts = series.cast(pl.String)
            seconds = {text: _instant(text) for text in texts.drop_nulls().unique(maintain_order=True).to_list() if text.strip()}
            if strange := [text for text, second in seconds.items() if second is None]:
                raise self._foreign("texts that are not times", f"e.g. {strange[0][:40]!r}", "== or != for texts, or ISO times")
            return np.array([np.nan if (second := seconds.get(text)) is None else second for text in texts.to_list()], float)
        if series.dtype.is_numeric():
            values = series.cast(pl.Float64).fill_null(np.nan).to_numpy()
            if np.nanmax(np.abs(values), initial=0.0) < 10_000:
                raise self._foreign(
                    "numbers too small for times", f"{self.column} {self.op}", "seconds since 1970, or compare years"
                )
            return values
        raise self._foreign(str(series.dtype), self.op, "a column of numbers, texts, times or true and false")

    def _equality(self, expected: str) -> str:
        if self.op not in ("==", "!="):
            raise self._foreign(expected, self.op, "== or !=")
        return self.op

    def _truth(self) -> bool:
        if self.value.lower() not in ("true", "false"):
            raise self._foreign("true or false", repr(self.value), "true or false")
        return self.value.lower() == "true"

    def _number(self) -> float:
        try:
            number = float(self.value)
        except ValueError:
            number = np.nan
        if not np.isfinite(number):
            raise self._foreign("numbers", repr(self.value), "a number")
        return number

    def _time(self) -> float:
        second = _instant(self.value)
        if second is None:
            raise self._foreign("times", repr(self.value), "an ISO date or time, such as 2024-05-01")
        return second

    def _foreign(self, what: str, got: str, expected: str) -> RequestError:
        return RequestError(f"the condition on column {self.column!r} does not fit: it holds {what}", got=got, expected=expected)


def _plain(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def _instant(text: str) -> float | None:
    """Seconds since 1970 of an ISO date or time; None if it is none."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
