"""A linear model on the TF-IDF weights of token unigrams and bigrams, as a term of a head over texts.

Owns: the n-grams of a text, their weights, fitting them on training texts, their logits. Ignores: hidden states, tasks.

    "not soft"  →  tokens 25, 3730  →  n-grams 25, 3730 and (25, 3730)  →  x, |x| = 1  →  Σ_t x_t w_t

A head adds these logits to what it reads off the base's state, so that training starts at the linear model and the base learns
what counting words misses. In training a text gets the logits of weights that were fitted without its group (five folds): weights
fitted with it would know its label and leave the base nothing to learn.

Source of the weighting: Salton & Buckley (1988), x_t = (1 + ln tf_t)(1 + ln((1 + n) / (1 + df_t))), scaled to length one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genre.data.sequences.batches import padded

STRENGTH = 3.0
"""Inverse strength of the penalty on the weights: the C of a logistic, 1 / C of a ridge regression."""

FOLDS = 5

UNSEEN = -5.0
"""The logit of a class that no text of the fit has."""


class TfidfNgrams(nn.Module):
    """The logits of a text's n-grams.

    Shapes: tokens (n, T) int64 and their lengths (n,) → (n, C) float32.

    Attributes:
        keys: (V,) int64, ascending: a token, or a bigram as (first + 1) · 2³² + second.
        idf: (V,) float32.
        weight: (V, C) float32, frozen.
        constant: (C,) float32: the linear model's constant, less the share or mean of the labels, which is in the head's bias.
        share: Trained: how much of it counts; 1 at the start.
        out_of_fold: (N, C) float32, in training alone: each training text's logits by weights fitted without its group, by the
            caller's number; NaN for other texts. Not part of any file.
    """

    keys: Tensor
    idf: Tensor
    weight: Tensor
    constant: Tensor
    out_of_fold: Tensor | None

    def __init__(self, count: int, columns: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(count, dtype=torch.int64))
        self.register_buffer("idf", torch.zeros(count))
        self.register_buffer("weight", torch.zeros(count, columns))
        self.register_buffer("constant", torch.zeros(columns))
        self.register_buffer("out_of_fold", None, persistent=False)
        self.share = nn.Parameter(torch.ones(()))

    @classmethod
    def fit(
        cls, rows: Sequence[np.ndarray], labels: np.ndarray, groups: np.ndarray, *, loss: str, classes: int, most: int
    ) -> "TfidfNgrams":
        """Fit on training texts.

        Args:
            rows: The tokens of each of N texts.
            labels: (N,) its label; NaN, or -1 for classes, where it has none or does not train.
            groups: (N,) int, what folds keep together.
            loss: The task's: logistic regression (`log_loss`, `cross_entropy`) or ridge regression (`mse`).
            classes: Of `cross_entropy`.
            most: Keep at most so many n-grams, the most frequent of those that at least two texts have (of few texts, one).
        """
        train = np.flatnonzero(~np.isnan(labels) if labels.dtype.kind == "f" else labels >= 0)
        some = [rows[index] for index in train.tolist()]
        keys, frequency = _frequencies(some, 2 if len(train) > 100 else 1, most)
        made = cls(len(keys), classes if loss == "cross_entropy" else 1)
        made.keys.copy_(torch.from_numpy(keys))
        made.idf.copy_(torch.from_numpy(1 + np.log((1 + len(train)) / (1 + frequency))))
        features, wanted = made._matrix(some), labels[train]
        fold = np.random.default_rng(0).permutation(int(groups.max()) + 1)[groups[train]] % FOLDS
        logits = np.zeros((len(train), made.weight.shape[1]), dtype=np.float32)
        for number in np.unique(fold):
            own = fold == number
            weight, constant = _linear(features[~own], wanted[~own], loss, classes)
            logits[own] = features[own] @ weight + constant
        weight, constant = _linear(features, wanted, loss, classes)
        made.weight.copy_(torch.from_numpy(weight))
        made.constant.copy_(torch.from_numpy(constant))
        made.out_of_fold = torch.full((len(labels), logits.shape[1]), torch.nan)
        made.out_of_fold[torch.from_numpy(train)] = torch.from_numpy(logits)
        return made

    def forward(self, tokens: Tensor, lengths: Tensor, numbers: Tensor | None = None) -> Tensor:
        """(n, C) logits of n rows; in training, out-of-fold ones of the training texts that `numbers` names."""
        if self.training and self.out_of_fold is not None and numbers is not None:
            known = self.out_of_fold[numbers.to(self.out_of_fold.device)]
            return self.share * torch.where(known.isnan(), 0.0, known)
        row, index, value = self._values(tokens, lengths)
        constant = self.constant.expand(len(tokens), -1)
        return self.share * constant.index_add(0, row, value[:, None] * self.weight[index])

    def _values(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row, index among the keys and value x of every n-gram that a row has."""
        inside = torch.arange(tokens.shape[1], device=tokens.device) < lengths.to(tokens.device)[:, None]
        ngrams = torch.cat([tokens, ((tokens[:, :-1] + 1) << 32) | tokens[:, 1:]], 1)
        there = torch.cat([inside, inside[:, 1:]], 1)
        at = torch.searchsorted(self.keys, ngrams).clamp_max(max(len(self.keys) - 1, 0))
        there &= self.keys[at] == ngrams if len(self.keys) else False
        owner = torch.arange(len(tokens), device=tokens.device)[:, None].expand_as(ngrams)[there]
        found, times = torch.unique(owner * max(len(self.keys), 1) + at[there], return_counts=True)
        row, index = found // max(len(self.keys), 1), found % max(len(self.keys), 1)
        value = (1 + times.log()) * self.idf[index]
        length = value.new_zeros(len(tokens)).index_add(0, row, value.square()).sqrt()
        return row, index, value / length[row]

    def _matrix(self, rows: Sequence[np.ndarray], *, at_once: int = 1024) -> Any:
        """The rows' values as a sparse (n, V) matrix."""
        from scipy.sparse import csr_matrix, vstack

        parts = []
        for start in range(0, len(rows), at_once):
            some = rows[start : start + at_once]
            row, index, value = self._values(padded(some, 0), torch.tensor([len(own) for own in some]))
            parts.append(csr_matrix((value.numpy(), (row.numpy(), index.numpy())), shape=(len(some), len(self.keys))))
        return vstack(parts).tocsr()


def _frequencies(rows: Sequence[np.ndarray], fewest: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The `most` commonest n-grams that at least `fewest` rows have, ascending, and how many rows have each."""
    own = []
    for row in rows:
        tokens = row.astype(np.int64)
        own.append(np.unique(np.concatenate([tokens, ((tokens[:-1] + 1) << 32) | tokens[1:]])))
    keys, frequency = np.unique(np.concatenate(own), return_counts=True)
    order = np.lexsort((keys, -frequency))[:most]
    kept = np.sort(order[frequency[order] >= fewest])
    return keys[kept], frequency[kept]


def _linear(features: Any, labels: np.ndarray, loss: str, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """(V, C) weights and (C,) constants of a linear model, float32; zeros where labels are all alike."""
    from sklearn.linear_model import LogisticRegression, Ridge

    weight = np.zeros((features.shape[1], classes if loss == "cross_entropy" else 1), dtype=np.float32)
    constant = np.zeros(weight.shape[1], dtype=np.float32)
    if len(np.unique(labels)) < 2:
        return weight, constant
    if loss == "mse":
        model = Ridge(alpha=1 / STRENGTH).fit(features, labels)
        weight[:, 0], constant[0] = model.coef_, model.intercept_ - labels.mean()
        return weight, constant
    model = LogisticRegression(C=STRENGTH, max_iter=1000).fit(features, labels.astype(np.int64))
    if loss == "log_loss":
        share = labels.mean()
        weight[:, 0], constant[0] = model.coef_[0], model.intercept_[0] - np.log(share / (1 - share))
        return weight, constant
    present = model.classes_
    constant[:] = UNSEEN  # a class that no text of these has
    if len(present) == 2:  # one column that tells the second class from the first
        weight[:, present[1]], constant[present] = model.coef_[0], (0.0, model.intercept_[0])
    else:
        weight[:, present], constant[present] = model.coef_.T, model.intercept_
    return weight, constant
