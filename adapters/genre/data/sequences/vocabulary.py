"""What a feedback slot can hold: the values of one column as codes and words.

Owns: which values, the codes between them. Ignores: where slots stand, tokens.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from genre.errors import DataError


@dataclass(frozen=True)
class FeedbackVocabulary:
    """Which values a feedback slot can hold.

    Attributes:
        column: The log's feedback column.
        values: Its values in order; numbers between two values go to the nearer one. Code 0 is "missing or unknown", code
            i + 1 is `values[i]`.
    """

    column: str
    values: tuple[float, ...] | tuple[str, ...]

    @classmethod
    def fit(cls, column: str, observed: np.ndarray, *, most: int = 20) -> "FeedbackVocabulary":
        """Every distinct value, or `most` quantiles of a numeric column that has more.

        Raises:
            DataError: The column holds no value, or more than 1,000 different texts.
        """
        if observed.dtype == object:
            texts = sorted({value for value in observed if value is not None})
            if len(texts) > 1000:
                raise DataError(f"feedback column {column!r} is free text", got=f"{len(texts)} values", expected="at most 1000")
            values: tuple[Any, ...] = tuple(texts)
        else:
            numbers = np.unique(observed[~np.isnan(observed)].astype(np.float64))
            if len(numbers) > most:
                numbers = np.unique(np.quantile(observed[~np.isnan(observed)], np.linspace(0, 1, most)))
            values = tuple(float(number) for number in numbers)
        if not values:
            raise DataError(
                f"feedback column {column!r} has no value in the training events",
                todo="choose another sequence.feedback",
            )
        return cls(column, values)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Codes of raw values: (n,) float with NaN or object with None → (n,) int32."""
        if values.dtype == object:
            code = {value: i + 1 for i, value in enumerate(self.values)}
            return np.array([code.get(value, 0) for value in values], dtype=np.int32)
        known = np.asarray(self.values, dtype=np.float64)
        middles = (known[1:] + known[:-1]) / 2
        return np.where(np.isnan(values), 0, np.searchsorted(middles, np.nan_to_num(values)) + 1).astype(np.int32)

    @property
    def size(self) -> int:
        """Number of codes, the missing one included."""
        return len(self.values) + 1

    def word(self, code: int) -> str:
        """What a text slot says for a code."""
        if code == 0:
            return " ?"
        value = self.values[code - 1]
        return f" {value:g}" if isinstance(value, float) else f" {value}"
