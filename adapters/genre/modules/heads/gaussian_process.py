"""Gaussian process regression of a user's feedback over item vectors: how the feedback so far carries over to a target.

Owns: what a head sees of a history (`View`), the process, and the ridge regression that heads start from. Ignores: hidden
states, losses.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from genre.data.sequences.transfer import upload


@dataclass(frozen=True)
class View:
    """The history that a head sees beside hidden states: n targets in B rows of at most E events.

    Attributes:
        tables: `Head.tables` of the item vectors.
        history: (B, E) int64 item codes, -1 for padding at the end.
        feedback: (B, E) int64 feedback codes, 0 where there is none.
        rows: (n,) int64 row of each target.
        history_lengths: (n,) int64 events of the row that lie before the target's impression (in transductive scoring all of
            them); the others are not looked at.
        items: (n,) int64 item code of each target.
        time_index: (n,) int64, how many of these events come before each target in time; all of them if None.
        weights: (B, E) float how much each event counts, 1 if None; explanations take gradients by it.
        host_rows: `rows` on the CPU; None if they are there.
    """

    tables: tuple[Tensor, ...]
    history: Tensor
    feedback: Tensor
    rows: Tensor
    history_lengths: Tensor
    items: Tensor
    time_index: Tensor | None = None
    weights: Tensor | None = None
    host_rows: Tensor | None = None

    @property
    def event_weights(self) -> Tensor:
        """(B, E) float: the weight of each event, 0 for padding."""
        there = (self.history >= 0).float()
        return there if self.weights is None else there * self.weights


class GaussianProcess(nn.Module):
    """The posterior mean for a target of a Gaussian process over the user's events before it.

        a_t = b·ē_t + α k_tᵀ (K + I)⁻¹ r,    r_j = s(f_j) - b·ē_j
        K_ij = σ₀ + σ₁ ē_i·ē_j / D + Σ_m τ_m exp(-|i - j| / ℓ_m)

    over the n events j before the target that have feedback f_j; k_t holds the same kernel between the target and each event.
    b gives an item's bias, s is a learned bias of each feedback value (`worth` in the files). The kernel's terms are the user's
    own bias, preferences that carry over to similar items, and drifts that fade with the events in between. The noise is the
    unit of the variances. With σ₀ alone the sum is the user's smoothed mean residual, so it starts near the additive
    baseline, see `start_at`. One Cholesky factor of a row's events serves all of its targets, since its leading part is that
    of the leading events. Source: Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), algorithm 2.1.
    """

    variances = (0.2, 0.3, 0.1, 0.1)
    spans = (3.0, 20.0)

    def __init__(self, width: int, feedback_codes: int) -> None:
        super().__init__()
        self.item = nn.Linear(width, 1, bias=False)
        self.worth = nn.Parameter(torch.zeros(feedback_codes))
        self.share = nn.Parameter(torch.ones(()))
        self.log_variance = nn.Parameter(torch.tensor(self.variances).log())
        self.log_span = nn.Parameter(torch.tensor(self.spans).log())
        nn.init.zeros_(self.item.weight)

    def tables(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """(N, D) → item biases (N,), and (N, D) vectors whose products are the kernel's second term."""
        unit = to_unit(vectors)
        return self.item(unit).squeeze(-1), unit * (self.log_variance[1].exp() / unit.shape[-1]).sqrt()

    def forward(self, view: View) -> Tensor:
        """(n,) float32."""
        item, vectors = view.tables
        if not view.history.shape[1] or not len(view.rows):
            return item[view.items]
        present, codes = view.event_weights * (view.feedback > 0), view.history.clamp_min(0)
        residual = (self.worth[view.feedback] - item[codes]) * present
        events, step = vectors[codes] * present.unsqueeze(-1), torch.arange(present.shape[1], device=present.device)
        kernel = events @ events.transpose(1, 2) + self._drift(step[:, None] - step) * present[:, :, None] * present[:, None]
        factor, failed = torch.linalg.cholesky_ex(kernel + torch.eye(len(step), device=present.device))
        factor = torch.where(failed[:, None, None] > 0, torch.nan, factor)  # weights that have diverged: so does the loss
        rest = torch.linalg.solve_triangular(factor, residual.unsqueeze(-1), upper=False)
        index, width = columns(view.rows if view.host_rows is None else view.host_rows, len(present))
        column = upload(index, present.device)

        def by_row(values: Tensor) -> Tensor:
            """(n, …) one of each target → (B, C, …) targets of a row side by side, zeros where it has fewer."""
            return values.new_zeros(len(present), width, *values.shape[1:]).index_put((view.rows, column), values)

        asked, visible = by_row(vectors[view.items]), by_row(view.history_lengths)
        now = visible if view.time_index is None else by_row(view.time_index)
        steps = now[:, None] - step[:, None]
        steps = torch.where(steps > 0, steps, 1 - steps)  # to the next event, seen in transductive scoring, is one step as well
        cross = events @ asked.transpose(1, 2) + self._drift(steps) * present.unsqueeze(-1)
        solved = torch.linalg.solve_triangular(factor, cross, upper=False)
        before = step[:, None] < visible[:, None]  # (B, E, C); what a target does not see comes last in its column
        fit = torch.where(before, solved * rest, 0.0).sum(1)
        return item[view.items] + self.share * fit[view.rows, column]

    def _drift(self, steps: Tensor) -> Tensor:
        """The kernel's terms that no item vector enters, for events that are so many steps apart."""
        variance, apart = self.log_variance.exp(), steps.abs().unsqueeze(-1)
        return variance[0] + (variance[2:] * torch.exp(-apart / self.log_span.exp())).sum(-1)

    @torch.no_grad()
    def start_at(self, vectors: Tensor, item_bias: Tensor, weight: Tensor, feedback_bias: Tensor) -> None:
        """Start near the additive baseline (mutates).

        Args:
            vectors: (N, D) item vectors.
            item_bias: (N,) smoothed mean label of each item, in the head's own units, less the overall mean.
            weight: (N,) training events of each item.
            feedback_bias: (codes,) the same for each feedback value.
        """
        self.item.weight[0] = ridge(to_unit(vectors), item_bias, weight)
        self.worth.copy_(feedback_bias)


def columns(rows: Tensor, count: int) -> tuple[Tensor, int]:
    """(n,) row numbers below `count` → (n,) the index of each among those of its row, and the size of the largest row."""
    order = torch.argsort(rows, stable=True)
    sizes = torch.bincount(rows, minlength=count)
    starts = sizes.cumsum(0) - sizes
    index = torch.empty_like(rows)
    index[order] = torch.arange(len(rows), device=rows.device) - starts[rows[order]]
    return index, int(sizes.max())


def to_unit(vectors: Tensor) -> Tensor:
    """Rows scaled to a mean square of one, float32."""
    return vectors.float() * torch.rsqrt(vectors.float().square().mean(-1, keepdim=True) + 1e-6)


def ridge(features: Tensor, wanted: Tensor, weight: Tensor, *, strength: float = 1e-2) -> Tensor:
    """Weights (D,) or (D, k) that give `wanted`, (N,) or (N, k), from `features` (N, D).

    Rows are weighted by `weight` (N,), and the penalty is relative to their sum.
    """
    w = weight.double().to(features.device)
    gram = strength * w.sum() * torch.eye(features.shape[1], dtype=torch.float64, device=features.device)
    right = gram.new_zeros(len(gram), *wanted.shape[1:])
    for rows in torch.arange(len(features), device=features.device).split(65536):  # a large catalogue fits in double by parts
        x = features[rows].double()
        gram += x.t() @ (w[rows, None] * x)
        right += (x * w[rows, None]).t() @ wanted.to(features.device)[rows].double()
    return torch.linalg.solve(gram, right).float()
