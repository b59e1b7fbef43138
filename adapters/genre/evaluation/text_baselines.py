"""Baselines on labelled texts.

Owns: the majority (or mean), and a linear model on TF-IDF weights of words and pairs of words, fitted on the training texts, its
strength chosen on the validation texts by the task's first metric. Ignores tokenizers and models of language.

    scorers = text_baselines(texts, ["title", "review"], split, task, targets)
    evaluate_feedback(["auc"], targets, scorers["tfidf_linear"]())
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from genre.data.splits import TRAIN, VALID, Split
from genre.data.texts.dataset import Texts
from genre.errors import DataError
from genre.evaluation.labels import known_labels
from genre.evaluation.metrics.by_name import metric
from genre.evaluation.metrics.checks import Floats
from genre.evaluation.targets import Targets, evaluate_feedback
from genre.tasks import Task

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
"""Inverse strengths of the penalty that are tried."""


def text_baselines(
    texts: Texts, columns: Sequence[str], split: Split, task: Task, targets: Targets
) -> dict[str, Callable[[], Floats]]:
    """Return, by name, a function that scores the targets: `majority` (or `mean`) and `tfidf_linear`, which is fitted then.

    Args:
        texts: The texts.
        columns: The columns that are read, joined.
        split: A split of them.
        task: Its loss decides the kind of model: logistic regression, or ridge regression for mse.
        targets: The texts to score.

    Returns:
        Functions of float64 [m], or [m, C] class probabilities. No linear model where all training labels are the same.

    Raises:
        DataError: No training text has a label.
    """
    labels = texts.labels_of(task)
    known = known_labels(labels)
    train, valid = (np.flatnonzero((split.part == part) & known) for part in (TRAIN, VALID))
    if not len(train):
        raise DataError("no training text has a label", got=task.label, expected="at least one")
    constant = partial(_constant, labels[train], task, len(targets))
    scorers: dict[str, Callable[[], Floats]] = {("mean" if task.loss == "mse" else "majority"): constant}
    if len(np.unique(labels[train])) > 1:
        scorers["tfidf_linear"] = partial(_linear, texts, columns, task, labels, train, valid, targets.event)
    return scorers


def _constant(labels: np.ndarray, task: Task, count: int) -> Floats:
    """The training share of label 1, the mean, or the share of each class; so accuracy is that of the majority class."""
    if task.loss != "cross_entropy":
        return np.full(count, float(labels.mean()))
    shares = np.bincount(labels.astype(np.int64), minlength=len(task.classes or ())) / len(labels)
    return np.tile(shares, (count, 1))


def _linear(
    data: Texts,
    columns: Sequence[str],
    task: Task,
    labels: np.ndarray,
    train: np.ndarray,
    valid: np.ndarray,
    wanted: np.ndarray,
) -> Floats:
    """Logistic (or ridge) regression on TF-IDF of words, marks and pairs of them that two training texts have (of few, one)."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = np.array(data.join(columns), dtype=object)
    fewest = 2 if len(train) > 100 else 1
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=fewest, token_pattern=r"\w+|[^\w\s]+")
    features = words.fit_transform(texts[train])
    found = words.transform(texts[np.concatenate([valid, wanted])])
    chosen, first = None, metric(task.metrics[0])
    best = np.nan
    check = Targets(valid, *data.owners(valid), labels[valid].astype(np.float64))
    for strength in STRENGTHS if len(valid) else (1.0,):
        scores = _scores(_fit(features, labels[train], strength, task), found, task)
        value = evaluate_feedback([first.name], check, scores[: len(valid)], resamples=0)[first.name].value
        if chosen is None or first.better(value, best):
            chosen, best = scores[len(valid) :], value
    assert chosen is not None
    return chosen


def _fit(features: Any, labels: np.ndarray, strength: float, task: Task) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    if task.loss == "mse":
        return Ridge(alpha=1 / strength).fit(features, labels)
    return LogisticRegression(C=strength, max_iter=1000).fit(features, labels.astype(np.int64))


def _scores(model: Any, features: Any, task: Task) -> Floats:
    """Values, probabilities of label 1, or of every class, including classes without a training text."""
    if task.loss == "mse":
        return np.asarray(model.predict(features), dtype=np.float64)
    probabilities = np.asarray(model.predict_proba(features), dtype=np.float64)
    if task.loss == "log_loss":
        return probabilities[:, 1]
    every = np.zeros((len(probabilities), len(task.classes or ())))
    every[:, model.classes_] = probabilities
    return every
