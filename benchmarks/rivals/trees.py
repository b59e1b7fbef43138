"""Gradient-boosted trees on running user, item and genre means, for feedback tasks.

Features of an event, all from before it (prequential) or from the training part: the user's running mean and count, the item's
training mean and count, the user's running mean over events that share a category with the item, the additive baseline, the
categories themselves, and the numeric user columns. Source of the learner: scikit-learn's histogram gradient boosting.
"""

from itertools import product

import numpy as np
import polars as pl

from genre.data.interactions import Interactions
from genre.data.splits import TRAIN, VALID, Split
from genre.evaluation.baselines import SMOOTHING, item_mean
from genre.evaluation.history import Histories
from genre.evaluation.targets import Targets, targets


def features(log: Interactions, split: Split, label: np.ndarray, categories: str | None = "genres") -> np.ndarray:
    """(n, F) float64 features of every event."""
    known = (np.asarray(split.part) == TRAIN) & ~np.isnan(label)
    overall, events = float(label[known].mean()), np.arange(len(log))
    histories = Histories(log, split)
    total, count = histories.sums(label, events)
    codes = log.item_codes
    sums = np.bincount(codes[known], label[known], log.catalogue.size)
    counts = np.bincount(codes[known], minlength=log.catalogue.size)
    inside = known.astype(np.float64)  # a training event's own label is taken out of its item's mean
    own_sum, own_count = sums[codes] - np.where(known, label, 0), counts[codes] - inside
    item = (own_sum + SMOOTHING * overall) / (own_count + SMOOTHING)
    user = (total + SMOOTHING * overall) / (count + SMOOTHING)
    residual_total, _ = histories.sums(label - item_mean(log, label, known)[codes], events)
    columns = [user, count, item, own_count, residual_total / (count + SMOOTHING)]
    if categories is not None and categories in log.catalogue.frame.columns:
        names = [set(str(text or "").replace(",", " ").split()) for text in log.catalogue.texts([categories])]
        common = sorted({name for own in names for name in own})[:40]
        table = np.array([[name in own for name in common] for own in names], dtype=np.float64)[codes]
        shared, weight = np.zeros(len(log)), np.zeros(len(log))
        for place in range(table.shape[1]):
            mine = table[:, place] > 0
            sums_g, counts_g = histories.sums(np.where(mine, label, np.nan), events)
            shared += mine * (sums_g + SMOOTHING * user) / (counts_g + SMOOTHING)
            weight += mine
        columns += [shared / np.maximum(weight, 1), weight, *table.T]
    if log.users is not None:
        for name in log.users.columns:
            if log.users.schema[name].is_numeric():
                columns.append(log.users[name].cast(pl.Float64).to_numpy()[log.user_codes])
    return np.column_stack(columns)


def boosted_trees(
    log: Interactions, split: Split, label: np.ndarray, found: Targets, *, binary: bool, seed: int, choose: Split
) -> np.ndarray:
    """Scores of the targets, by trees fitted on `split`; their number and size are chosen on the validation part of `choose`."""
    from sklearn.metrics import mean_squared_error, roc_auc_score

    table = features(log, choose, label)
    valid = targets(log, choose, VALID, label)
    best, chosen = -np.inf, (8, 100)
    for size in product((8, 31), (100, 300)):
        scores = _fitted(size, table, choose, label, valid.event, binary=binary, seed=seed)
        value = roc_auc_score(valid.label, scores) if binary else -mean_squared_error(valid.label, scores)
        if value > best:
            best, chosen = value, size
    table = table if split is choose else features(log, split, label)
    return _fitted(chosen, table, split, label, found.event, binary=binary, seed=seed)


def _fitted(
    size: tuple[int, int], table: np.ndarray, split: Split, label: np.ndarray, asked: np.ndarray, *, binary: bool, seed: int
) -> np.ndarray:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    leaves, rounds = size
    train = np.flatnonzero((np.asarray(split.part) == TRAIN) & ~np.isnan(label))
    kind = HistGradientBoostingClassifier if binary else HistGradientBoostingRegressor
    model = kind(max_iter=rounds, max_leaf_nodes=leaves, learning_rate=0.05, min_samples_leaf=50, random_state=seed)
    model.fit(table[train], label[train].astype(int) if binary else label[train])
    return model.predict_proba(table[asked])[:, 1] if binary else model.predict(table[asked])
