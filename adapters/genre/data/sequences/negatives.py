"""Which items stand for a whole catalogue in one training step.

Owns: the distribution that negatives are drawn from, the draw, what each drawn item is expected to count for. Ignores:
heads, losses, where item vectors come from.

    negatives = Negatives(counts, 4096)           # counts: training events of each of N items
    codes, log_count = negatives.draw(device)     # shared by every target of the batch
    loss = sampled_cross_entropy(own, others - log_count, codes == targets[:, None])

With M draws from q, item i stands in Σ_j exp(z_j) / (M q_j) for the catalogue's own sum, which is its expectation
(Bengio & Senécal, 2008; Yi et al., 2019); `log_count` is log(M q_i) less the log of how often i was drawn.
"""

import numpy as np
import torch
from torch import Tensor

POWER = 0.75
"""Of popularity: between itself, where rare items are hardly ever drawn, and a uniform draw (Mikolov et al., 2013)."""


class Negatives:
    """Items drawn with replacement by smoothed popularity: q_i ∝ (n_i + 1)^0.75.

    Args:
        counts: (N,) training events of each item.
        size: M, how many are drawn; N or more means every item once, with nothing to correct.
        absent: (N,) bool, items that are never drawn.
    """

    def __init__(self, counts: np.ndarray, size: int, absent: np.ndarray | None = None) -> None:
        weight = (counts.astype(np.float64) + 1) ** POWER
        self.present = torch.arange(len(counts))
        if absent is not None:
            weight[absent] = 0
            self.present = self.present[torch.from_numpy(~absent)]
        share = weight / weight.sum()
        self.size = size
        self.upper = torch.from_numpy(np.cumsum(share))
        with np.errstate(divide="ignore"):
            self.log_expected = torch.from_numpy(np.log(share * size))

    def draw(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Different items and the log of what each counts for too much: (m,) int64 and (m,) float32, m at most M.

        Uses torch's own random numbers on the CPU, so that a resumed run draws what an uninterrupted one does.
        """
        count = len(self.upper)
        if self.size >= len(self.present):
            return self.present.to(device), torch.zeros(len(self.present), device=device)
        drawn = torch.searchsorted(self.upper, torch.rand(self.size, dtype=torch.float64)).clamp_max(count - 1)
        codes, times = torch.unique(drawn, return_counts=True)
        log_count = (self.log_expected[codes] - times.double().log()).float()
        return codes.to(device), log_count.to(device)
