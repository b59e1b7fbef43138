"""Losses as pure functions of logits and labels.

Owns: the losses of the method, sampled and off-policy ones among them, with their formulas; the draw of negatives. Ignores:
tasks, models.

    >>> import torch
    >>> log_loss(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0])).item()  # ln 2
    0.6931471824645996

Every function takes an optional weight per target, returns the weighted mean as a scalar tensor, and gives 0 (connected
to the graph, so that backward works) for an empty input.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genre.data.sequences.transfer import upload


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    if values.numel() == 0:
        return values.sum()
    if weights is None:
        return values.mean()
    return (values * weights).sum() / weights.sum().clamp_min(torch.finfo(values.dtype).tiny)


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """-log softmax(logits)[label], averaged.

    Args:
        logits: (n, C) scores over classes or catalogue items; -inf excludes a class.
        labels: (n,) int64 class of each target.
        weights: (n,) or None.
    """
    return _mean(F.cross_entropy(logits.float(), labels, reduction="none"), weights)


def sampled_cross_entropy(own: Tensor, others: Tensor, hits: Tensor, weights: Tensor | None = None) -> Tensor:
    """-log[exp(z) / (exp(z) + Σ_j exp(z_j - c_j))], averaged: cross-entropy with drawn items in the place of the catalogue.

    Args:
        own: (n,) logit z of each target's own item.
        others: (n, m) logits of the drawn items less c_j, the log of how often the draw is expected to hold item j (the
            logQ correction), so that the sum is that of all other items in expectation.
        hits: (n, m) bool, where a drawn item is the target's own; those take no part.
        weights: (n,) or None.
    """
    logits = torch.cat([own.float()[:, None], others.float().masked_fill(hits, -torch.inf)], dim=1)
    return _mean(torch.logsumexp(logits, dim=1) - own.float(), weights)


def mse(predictions: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """(prediction - label)², averaged; both (n,) float."""
    return _mean((predictions.float() - labels.float()).square(), weights)


def log_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """-[y log σ(z) + (1 - y) log(1 - σ(z))], averaged; logits z and labels y in [0, 1] are (n,) float."""
    return _mean(F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none"), weights)


def sampled_log_loss(logits: Tensor, labels: Tensor, kept: float, weights: Tensor | None = None) -> Tensor:
    """`log_loss` of z - log s, where a share s of the negatives was kept.

    Leaving negatives out multiplies the odds of label 1 among what is left by 1/s, and nothing else; z, without the shift, is the
    logit over all events (King and Zeng 2001, section 4.1).

    Args:
        logits: (n,) z.
        labels: (n,) in [0, 1].
        kept: s, in (0, 1].
        weights: (n,) or None.
    """
    return log_loss(logits.float() - math.log(kept), labels, weights)


def ips(logits: Tensor, labels: Tensor, reward: Tensor, propensity: Tensor, *, clip: float) -> Tensor:
    """-w r with w = min(π(a) / p, clip), averaged: the clipped inverse propensity estimate of a policy's reward, to be raised.

    Args:
        logits: (n, N) over the catalogue; π is their softmax. -inf excludes an item.
        labels: (n,) int64, the item a that was shown.
        reward: (n,) r, what came of it.
        propensity: (n,) p, in (0, 1], with which it was shown.
        clip: The largest weight; beyond it an item's probability is not raised any more.
    """
    return _mean(-_ratios(logits, labels, propensity, clip) * reward, None)


def snips(logits: Tensor, labels: Tensor, reward: Tensor, propensity: Tensor, *, clip: float) -> Tensor:
    """-Σ w r / Σ w: self-normalized, so that a policy gains nothing by leaving what the log shows; arguments as `ips`."""
    return _mean(-reward.float(), _ratios(logits, labels, propensity, clip))


def dr(logits: Tensor, labels: Tensor, reward: Tensor, propensity: Tensor, *, clip: float, model: Tensor) -> Tensor:
    """-[Σ_i π(i) q_i + w (r - q_a)], averaged: doubly robust, by a model q of the reward, (N,); arguments as `ips`."""
    expected = logits.float().softmax(-1) @ model
    return _mean(-(expected + _ratios(logits, labels, propensity, clip) * (reward - model[labels])), None)


def _ratios(logits: Tensor, labels: Tensor, propensity: Tensor, clip: float) -> Tensor:
    """(n,) the weights of what was shown."""
    chance = -F.cross_entropy(logits.float(), labels, reduction="none")
    return (chance.exp() / propensity).clamp_max(clip)


@dataclass(frozen=True)
class LoggedRewards:
    """What came of a log's events, for the losses that learn from it.

    Attributes:
        loss: `ips`, `snips` or `dr`.
        reward, propensity: (events,) float32 on the CPU, by the log's event number.
        clip: The largest weight.
        model: (N,) float32, the mean reward of each item; for `dr`.
    """

    loss: str
    reward: Tensor
    propensity: Tensor
    clip: float
    model: Tensor

    def of(self, events: Tensor, device: torch.device) -> tuple[Callable[..., Tensor], tuple[Tensor, Tensor]]:
        """The loss, and the rewards and propensities of some events, (n,) int64 on the CPU."""
        own = upload(self.reward[events], device), upload(self.propensity[events], device)
        if self.loss == "dr":
            return partial(dr, clip=self.clip, model=upload(self.model, device)), own
        return partial(ips if self.loss == "ips" else snips, clip=self.clip), own


LOSSES: dict[str, Callable[..., Tensor]] = {"cross_entropy": cross_entropy, "mse": mse, "log_loss": log_loss}


POWER = 0.75
"""Of popularity: between itself, where rare items are hardly ever drawn, and a uniform draw (Mikolov et al., 2013)."""


class Negatives:
    """Items drawn with replacement by smoothed popularity, q_i ∝ (n_i + 1)^0.75, in place of the whole catalogue for one step.

        codes, log_count = negatives.draw()     # shared by every target of the batch
        loss = sampled_cross_entropy(own, others - log_count, codes == targets[:, None])

    With M draws from q, item i counts Σ_j exp(z_j) / (M q_j) in the catalogue's sum, which is its expectation (Bengio & Senécal,
    2008; Yi et al., 2019); `log_count` is log(M q_i) less the log of how often i was drawn.

    Args:
        counts: (N,) training events of each item.
        size: M, how many are drawn; N or more means every item once, with nothing to correct.
        cold: (N,) bool, cold items, never drawn.
    """

    def __init__(self, counts: np.ndarray, size: int, cold: np.ndarray | None = None) -> None:
        weight = (counts.astype(np.float64) + 1) ** POWER
        self.present = torch.arange(len(counts))
        if cold is not None:
            weight[cold] = 0
            self.present = self.present[torch.from_numpy(~cold)]
        share = weight / weight.sum()
        self.size = size
        self.upper = torch.from_numpy(np.cumsum(share))
        with np.errstate(divide="ignore"):
            self.log_expected = torch.from_numpy(np.log(share * size))

    def draw(self) -> tuple[Tensor, Tensor]:
        """Draw distinct items and their logQ corrections: (m,) int64 and (m,) float32, m at most M, on the CPU.

        Uses torch's own random numbers there, so that a resumed run draws what an uninterrupted one does.
        """
        count = len(self.upper)
        if self.size >= len(self.present):
            return self.present, torch.zeros(len(self.present))
        drawn = torch.searchsorted(self.upper, torch.rand(self.size, dtype=torch.float64)).clamp_max(count - 1)
        codes, times = torch.unique(drawn, return_counts=True)
        log_count = (self.log_expected[codes] - times.double().log()).float()
        return codes, log_count
