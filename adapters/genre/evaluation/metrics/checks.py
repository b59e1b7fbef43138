"""Checks and small sums that every metric shares.

Owns: turning what a caller passes into float64 arrays of one length, refusing NaN by row, weighted totals and safe
division. Ignores what is measured.

    >>> ratio(np.array([1.0, 3.0]), np.array([2.0, 0.0]))
    array([0.5, nan])
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from genre.errors import DataError

Floats: TypeAlias = npt.NDArray[np.float64]
Integers: TypeAlias = npt.NDArray[np.int64]
Vector: TypeAlias = npt.ArrayLike


def finite(values: Vector, what: str) -> Floats:
    """Return `values` as float64, refusing NaN and infinities.

    Args:
        values: [n] or [n, C] numbers.
        what: Their name in the message, in the singular.

    Raises:
        DataError: One is not finite; the message names its row.
    """
    array = np.asarray(values, dtype=np.float64)
    bad = ~np.isfinite(array)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        value = array[row] if array.ndim == 1 else array[row][bad[row]][0]
        raise DataError(f"the {what} of row {row} is not a finite number", got=value, expected="a finite number per row")
    return array


def same_length(**arrays: npt.NDArray[Any] | None) -> int:
    """Return the common length of the arrays that are given.

    Raises:
        DataError: They differ in length.
    """
    lengths = {name: len(array) for name, array in arrays.items() if array is not None}
    if len(set(lengths.values())) > 1:
        got = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise DataError("the arrays of a metric differ in length", got=got, expected="one row per event in each")
    return next(iter(lengths.values()), 0)


def event_weights(weights: Vector | None, count: int) -> Floats:
    """Return float64 [count] weights, ones by default.

    Raises:
        DataError: A weight is negative or not finite, or there are more or fewer than `count`.
    """
    if weights is None:
        return np.ones(count)
    array = finite(weights, "weight")
    same_length(weights=array, rows=np.empty(count))
    if (array < 0).any():
        row = int(np.argmax(array < 0))
        raise DataError(f"the weight of row {row} is negative", got=array[row], expected="weights of at least 0")
    return array


def probabilities(scores: Vector) -> Floats:
    """Return [n] or [n, C] scores as float64, refusing what is outside [0, 1].

    Raises:
        DataError: A score is not a probability; the message names its row.
    """
    array = finite(scores, "score")
    bad = (array < 0) | (array > 1)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise DataError(f"the score of row {row} is not a probability", got=array[bad].flat[0], expected="a number in [0, 1]")
    return array


def binary_labels(labels: Vector) -> Floats:
    """Return labels as float64, refusing what is neither 0 nor 1.

    Raises:
        DataError: The message names the row.
    """
    return class_labels(labels, 2)


def class_labels(labels: Vector, count: int) -> Floats:
    """Return labels as float64, refusing what is not a whole number from 0 to `count` - 1.

    Raises:
        DataError: The message names the row.
    """
    truth = finite(labels, "label")
    bad = (truth < 0) | (truth >= count) | (truth != np.floor(truth))
    if bad.any():
        row = int(np.argmax(bad))
        expected = "0 or 1" if count == 2 else f"a class code from 0 to {count - 1}"
        raise DataError(f"the label of row {row} is not a class", got=truth[row], expected=expected)
    return truth


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide element by element; NaN, without a warning, where the denominator is 0."""
    result = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), np.nan)
    np.divide(numerator, denominator, out=result, where=denominator != 0)
    return result


def sums_by(groups: Integers, statistics: Floats, count: int) -> Floats:
    """Sum the rows of each group: [n] codes in 0 … count-1 and [n, S] statistics give [count, S]."""
    columns = [np.bincount(groups, weights=column, minlength=count) for column in statistics.T]
    return np.stack(columns, axis=1)
