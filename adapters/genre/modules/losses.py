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


def mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """The weighted mean of (n,) values; 0, connected to the graph, of none."""
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
    return mean(F.cross_entropy(logits.float(), labels, reduction="none"), weights)


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
    return mean(torch.logsumexp(logits, dim=1) - own.float(), weights)


def mse(predictions: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """(prediction - label)², averaged; both (n,) float."""
    return mean((predictions.float() - labels.float()).square(), weights)


def log_loss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """-[y log σ(z) + (1 - y) log(1 - σ(z))], averaged; logits z and labels y in [0, 1] are (n,) float."""
    return mean(F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none"), weights)


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
    return mean(-_ratios(logits, labels, propensity, clip) * reward, None)


def snips(logits: Tensor, labels: Tensor, reward: Tensor, propensity: Tensor, *, clip: float) -> Tensor:
    """-Σ w r / Σ w: self-normalized, so that a policy gains nothing by leaving what the log shows; arguments as `ips`."""
    return mean(-reward.float(), _ratios(logits, labels, propensity, clip))


def dr(logits: Tensor, labels: Tensor, reward: Tensor, propensity: Tensor, *, clip: float, model: Tensor) -> Tensor:
    """-[Σ_i π(i) q_i + w (r - q_a)], averaged: doubly robust, by a model q of the reward, (N,); arguments as `ips`."""
    expected = logits.float().softmax(-1) @ model
    return mean(-(expected + _ratios(logits, labels, propensity, clip) * (reward - model[labels])), None)


def _ratios(logits: Tensor, labels: Tensor, propensity: Tensor, clip: float) -> Tensor:
    """(n,) the weights of what was shown."""
    chance = -F.cross_entropy(logits.float(), labels, reduction="none")
    return (chance.exp() / propensity).clamp_max(clip)


def softmax_dpo(logits: Tensor, labels: Tensor, reference: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """-log σ(-log Σ_d exp(β (g_d - g_a))), g = log π - log π_ref, averaged over targets a that are preferred to some items d.

    With one d it is DPO (Rafailov et al., 2023); with several S-DPO (Chen et al., 2024, equation 8), which is the cross-entropy
    of a among {a, d, …} by the logits β g. Normalizers of π and π_ref cancel.

    Args:
        logits: (n, N) of π over the catalogue.
        labels: (n,) int64, the item a.
        reference: (n, N) of π_ref, without a gradient.
        rejected: (n, m) int64, the items d; -1 for none.
        beta: β.
    """
    gain = beta * (logits.float() - reference.float())
    there = rejected >= 0
    margin = gain.gather(1, rejected.clamp_min(0)) - gain.gather(1, labels[:, None])
    margin = F.pad(margin.masked_fill(~there, -torch.inf), (1, 0))
    return mean(torch.logsumexp(margin, dim=1), there.any(dim=1).to(margin.dtype))


def group_relative(logits: Tensor, labels: Tensor, reference: Tensor, lists: Tensor, *, reward: str, kl: float) -> Tensor:
    """-mean_g A_g log π(list_g) + kl · KL(π ‖ π_ref), averaged over targets: a policy gradient without a critic.

    A list is drawn from π item by item without replacement, π(list) = Π_j π(i_j) / (1 - Σ_{k<j} π(i_k)), and rewarded by the
    place of the target in it. Its advantage is A = (r - mean) / deviation within the target's group (GRPO, Shao et al., 2024), 0
    where all rewards are alike. Draws after the target do not change the reward, and are left out of log π(list): their
    gradient is 0 on average.

    Args:
        logits: (n, N) of π over the catalogue; -inf excludes an item.
        labels: (n,) int64, the target.
        reference: (n, N) of π_ref, without a gradient, -inf where the logits are.
        lists: (n, G, L) int64, drawn from π; see `draw_lists`.
        reward: `ndcg`, `mrr` or `hit`.
        kl: Weight of the divergence, which is summed over the catalogue and not sampled.
    """
    log_share, log_before = F.log_softmax(logits.float(), dim=-1), F.log_softmax(reference.float(), dim=-1)
    hits = lists == labels[:, None, None]
    advantage = _advantages((hits * _place_rewards(reward, lists.shape[-1], logits.device)).sum(-1))
    drawn = log_share.gather(1, lists.flatten(1)).view(lists.shape)
    counts = (drawn > -torch.inf) & (hits.cumsum(-1) - hits.long() == 0)  # a catalogue can be shorter than a list
    drawn = torch.where(counts, drawn, 0.0)
    taken = (drawn.exp() * counts).cumsum(-1) - drawn.exp() * counts
    chance = (drawn - torch.log1p(-taken.clamp_max(1 - SMALLEST_REST)) * counts).sum(-1)
    distance = torch.where(log_share > -torch.inf, log_share - log_before, 0.0)
    return mean(-(advantage * chance).mean(-1) + kl * (log_share.exp() * distance).sum(-1), None)


def group_relative_items(chance: Tensor, before: Tensor, hits: Tensor, counts: Tensor, *, kl: float) -> Tensor:
    """-mean_g A_g log π(i_g) + kl · mean_g (r_g - 1 - log r_g), r = π_ref(i) / π(i): `group_relative` over lists of one item.

    The items are drawn from π independently, and rewarded by 1 if they are the target. Those that do not count take no part in
    the first term, as if they had been drawn again: as advantages of a group sum to zero, log π of what is left, and log π over
    what may be drawn, have the same gradient. The last term is k3 (Schulman, 2020), which is never negative and on average
    KL(π ‖ π_ref) over all items; its gradient is that of KL(π_ref ‖ π), as in GRPO.

    Args:
        chance: (n, G) log π of the drawn items.
        before: (n, G) log π_ref of them, without a gradient.
        hits: (n, G) bool, the target itself.
        counts: (n, G) bool, items that may be answered with.
        kl: Weight of the divergence.
    """
    members = counts.sum(-1, keepdim=True).clamp_min(1)
    share = (hits & counts).sum(-1, keepdim=True) / members
    deviation = (share * (1 - share)).sqrt()  # 0 where all rewards are alike, and exactly so
    alike = deviation == 0
    advantage = torch.where(counts & ~alike, (hits.to(share.dtype) - share) / deviation.masked_fill(alike, 1.0), 0.0)
    log_ratio = before - chance
    distance = log_ratio.exp() - 1 - log_ratio
    return mean(-(advantage * chance / members).sum(-1) + kl * distance.mean(-1))


SMALLEST_REST = 1e-6
"""What is left of a softmax after the items of a list is not taken for smaller, as single precision cannot tell."""


def _place_rewards(name: str, length: int, device: torch.device) -> Tensor:
    """(L,) the reward of each place of a list."""
    place = torch.arange(1, length + 1, dtype=torch.float32, device=device)
    return {"ndcg": 1 / torch.log2(1 + place), "mrr": 1 / place, "hit": torch.ones_like(place)}[name]


def _advantages(rewards: Tensor) -> Tensor:
    """(n, G) rewards less their mean, over their deviation; 0 where all are alike."""
    alike = (rewards == rewards[:, :1]).all(dim=-1, keepdim=True)
    centred = rewards - rewards.mean(dim=-1, keepdim=True)
    deviation = centred.square().mean(dim=-1, keepdim=True).sqrt()
    return torch.where(alike, 0.0, centred / deviation.masked_fill(alike, 1.0))


@torch.no_grad()
def draw_lists(logits: Tensor, size: int, length: int) -> Tensor:
    """Draw (n, size, length) int64 items from softmax(logits), (n, N), each list without replacement (Gumbel top-k)."""
    scores, most = logits.float(), min(length, logits.shape[-1])
    lists = [(scores - torch.empty_like(scores).exponential_().log()).topk(most, dim=-1).indices for _ in range(size)]
    return torch.stack(lists, dim=1)


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

    def draw_each(self, targets: int, count: int) -> Tensor:
        """Draw (targets, count) int64 items on the CPU, anew for each target and with replacement."""
        drawn = torch.searchsorted(self.upper, torch.rand(targets, count, dtype=torch.float64))
        return drawn.clamp_max(len(self.upper) - 1)

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
