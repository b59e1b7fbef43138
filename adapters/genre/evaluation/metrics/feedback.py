"""Metrics of a predicted feedback that are additive: log loss, errors, classification.

Owns: the formula of each metric, as a function of labels and scores with an optional weight per event, and as
statistics per event whose weighted totals give the value, so that a bootstrap needs one matrix product. Ignores where
labels and scores come from, and intervals (`genre.evaluation.metrics.bootstrap`).

Labels are 0 and 1 (or class codes, or values), scores are probabilities of label 1 (or [n, C] class probabilities, or
values); n events. No event, or no total weight, always gives NaN.

    >>> mae(labels=[1, 2, 5], scores=[1, 3, 3])  # (0 + 1 + 2) / 3
    1.0
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from genre.evaluation.metrics.checks import (
    Floats,
    Integers,
    Vector,
    binary_labels,
    class_labels,
    event_weights,
    finite,
    probabilities,
    ratio,
    same_length,
)

CLIP = 1e-7
"""Log loss takes a probability for at least this and at most 1 minus this."""

Finish = Callable[[Floats], Floats]
"""Totals [R, S] of the statistics, for R weightings, to R values."""


# --- means of one term per event ------------------------------------------------------------------------------------


def log_loss(labels: Vector, scores: Vector, *, weights: Vector | None = None) -> float:
    """Return the mean negative log-likelihood of the labels, in nats.

    Σ w -[y ln p + (1 - y) ln(1 - p)] / Σ w; for [n, C] class probabilities Σ w -ln p_y / Σ w. A probability is
    clipped to [1e-7, 1 - 1e-7]. There are no ties. NaN for an empty input.

    Raises:
        DataError: A label is not a class, a score is not a probability, or the lengths differ.
    """
    return _value(log_loss_statistics(labels, scores), mean, weights)


def log_loss_statistics(labels: Vector, scores: Vector) -> Floats:
    """Return [n, 2]: one, and the event's negative log-likelihood."""
    given = probabilities(scores)
    truth = binary_labels(labels) if given.ndim == 1 else class_labels(labels, given.shape[1])
    same_length(labels=truth, scores=given)
    if given.ndim == 1:
        right = np.where(truth == 1, given, 1 - given)
    else:
        right = given[np.arange(len(given)), truth.astype(np.int64)]
    return _with_one(-np.log(np.clip(right, CLIP, 1 - CLIP)))


def rmse(labels: Vector, scores: Vector, *, weights: Vector | None = None) -> float:
    """Return the root of the mean squared error: √(Σ w (y - s)² / Σ w). No ties. NaN for an empty input.

    Raises:
        DataError: A label or score is not finite, or the lengths differ.
    """
    return _value(squared_error_statistics(labels, scores), root_mean, weights)


def squared_error_statistics(labels: Vector, scores: Vector) -> Floats:
    """Return [n, 2]: one, and the squared error."""
    return _with_one(_errors(labels, scores) ** 2)


def mae(labels: Vector, scores: Vector, *, weights: Vector | None = None) -> float:
    """Return the mean absolute error: Σ w |y - s| / Σ w. No ties. NaN for an empty input.

    Raises:
        DataError: A label or score is not finite, or the lengths differ.
    """
    return _value(absolute_error_statistics(labels, scores), mean, weights)


def absolute_error_statistics(labels: Vector, scores: Vector) -> Floats:
    """Return [n, 2]: one, and the absolute error."""
    return _with_one(np.abs(_errors(labels, scores)))


def accuracy(labels: Vector, scores: Vector, *, weights: Vector | None = None) -> float:
    """Return the weighted share of events whose predicted class is the label.

    The predicted class is 1 if p ≥ 0.5, else 0; for [n, C] class scores the largest, of equal ones the lowest code.
    NaN for an empty input.

    Raises:
        DataError: A label is not a class, a score is not a probability (no finite number in [n, C]), or the lengths differ.
    """
    return _value(accuracy_statistics(labels, scores), mean, weights)


def accuracy_statistics(labels: Vector, scores: Vector) -> Floats:
    """Return [n, 2]: one, and whether the predicted class is right."""
    truth, predicted, _ = _predicted(labels, scores)
    return _with_one((truth == predicted).astype(np.float64))


def macro_f1(labels: Vector, scores: Vector, *, weights: Vector | None = None) -> float:
    """Return F1 averaged over the classes that occur among labels or predictions.

    F1_c = 2 TP_c / (2 TP_c + FP_c + FN_c), by weight. Predicted classes as in `accuracy`. NaN for an empty input.

    Raises:
        DataError: As `accuracy`.
    """
    return _value(f1_statistics(labels, scores), macro_mean, weights)


def f1_statistics(labels: Vector, scores: Vector) -> Floats:
    """Return [n, 2C]: per class, whether the event is a true positive, then how often it is labelled or predicted."""
    truth, predicted, classes = _predicted(labels, scores)
    codes = np.arange(classes)
    labelled, called = truth[:, None] == codes, predicted[:, None] == codes
    return np.concatenate([labelled & called, labelled.astype(np.float64) + called], axis=1)


def f1(labels: Vector, scores: Vector, *, weights: Vector | None = None) -> float:
    """Return F1 of label 1: 2 TP / (2 TP + FP + FN), by weight; predicted where p ≥ 0.5.

    No ties. NaN for an empty input, and where label 1 is neither given nor predicted.

    Raises:
        DataError: A label is neither 0 nor 1, a score is not a probability, or the lengths differ.
    """
    return _value(positive_statistics(labels, scores), positive_f1, weights)


def positive_statistics(labels: Vector, scores: Vector) -> Floats:
    """Return [n, 2]: whether the event is a true positive, and how often it is labelled or predicted 1."""
    truth, called = binary_labels(labels), probabilities(scores) >= 0.5
    same_length(labels=truth, scores=called)
    return np.stack([truth * called, truth + called], axis=1)


# --- totals to values -----------------------------------------------------------------------------------------------


def mean(totals: Floats) -> Floats:
    """[R, 2] totals of (one, term) to R means."""
    return ratio(totals[:, 1], totals[:, 0])


def root_mean(totals: Floats) -> Floats:
    """[R, 2] totals of (one, square) to R root means."""
    return np.sqrt(mean(totals))


def positive_f1(totals: Floats) -> Floats:
    """[R, 2] totals of `positive_statistics` to R values."""
    return ratio(2 * totals[:, 0], totals[:, 1])


def macro_mean(totals: Floats) -> Floats:
    """[R, 2C] totals of `f1_statistics` to R means over the classes that occur."""
    right, seen = np.split(totals, 2, axis=1)
    each = np.where(seen > 0, ratio(2 * right, seen), 0.0)
    return ratio(each.sum(axis=1), (seen > 0).sum(axis=1).astype(np.float64))


def _value(statistics: Floats, finish: Finish, weights: Vector | None) -> float:
    totals = event_weights(weights, len(statistics)) @ statistics
    return float(finish(totals[None, :])[0])


# --- inputs ---------------------------------------------------------------------------------------------------------


def _with_one(terms: Floats) -> Floats:
    return np.stack([np.ones(len(terms)), terms], axis=1)


def _errors(labels: Vector, scores: Vector) -> Floats:
    truth, values = finite(labels, "label"), finite(scores, "score")
    same_length(labels=truth, scores=values)
    return truth - values


def _predicted(labels: Vector, scores: Vector) -> tuple[Floats, Integers, int]:
    """Return the labels, the predicted classes and the number of classes."""
    given = np.asarray(scores, dtype=np.float64)
    if given.ndim == 1:
        classes, predicted = 2, (probabilities(given) >= 0.5).astype(np.int64)
    else:
        classes, predicted = given.shape[1], np.argmax(finite(given, "score"), axis=1)
    truth = class_labels(labels, classes)
    same_length(labels=truth, scores=given)
    return truth, predicted, classes
