"""Item neighbours: what a next-item head adds to its trained score from the items of the history alone.

    Δ_i = β₁ standardize(Σ_j γ₁^(events since j) B_ji)  +  β₂ √r cos(Σ_j γ₂^(events since j) t_j, t_i)

B is EASE's item-to-item matrix of the training events, the strongest entries of each row; t are whitened text vectors (r
dimensions), so that an item without events has neighbours too. Both are closed forms: nothing here is trained by the loop.
`genre.training.neighbours` fits B and chooses β and γ on validation.

Owns: the arithmetic and the storage of B. Ignores: how it was fitted, hidden states.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_CELLS = 2**24
"""Entries of B that are gathered at a time."""


@dataclass(frozen=True)
class ItemIndex:
    """A catalogue as item neighbours see it, N items.

    Attributes:
        rows: (N,) int64 row of each item in the encoder's id-bound tables, -1 for an item that it does not know.
        codes: (M,) int64, the other way round: the catalogue's code of each row, N for an item that the catalogue lacks.
        text: (N, r) float32 whitened text vectors of length one, zero for an item without text; None without whitened text.
    """

    rows: Tensor
    codes: Tensor
    text: Tensor | None

    @classmethod
    def of(cls, rows: Tensor, known: int, text: Tensor | None) -> "ItemIndex":
        """Index a catalogue by its items' rows (N,) among an encoder's `known` ids, with (N, r) whitened text features."""
        codes = torch.full((known + 1,), len(rows), device=rows.device)
        codes[torch.where(rows >= 0, rows, known)] = torch.arange(len(rows), device=rows.device)
        return cls(rows, codes[:known], None if text is None else F.normalize(text, dim=-1))

    def with_text(self, more: Tensor | None) -> "ItemIndex":
        """The index with further items, which are known by their (m, r) text vectors alone."""
        return self if more is None or self.text is None else replace(self, text=torch.cat([self.text, more]))


class ItemNeighbours(nn.Module):
    """The neighbours of M items, `count` each, and the weights of the two terms.

    Attributes:
        items: (M, count) int32, the rows of B's strongest entries.
        values: (M, count) float16, these entries.
        blend: (2,) β of co-occurrence and of text.
        fade: (2,) γ of co-occurrence and of text.
    """

    items: Tensor
    values: Tensor
    blend: Tensor
    fade: Tensor

    def __init__(self, rows: int, count: int) -> None:
        super().__init__()
        self.register_buffer("items", torch.zeros(rows, count, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(rows, count, dtype=torch.float16))
        self.register_buffer("blend", torch.zeros(2))
        self.register_buffer("fade", torch.ones(2))

    def forward(self, index: ItemIndex, history: Tensor, weights: Tensor, codes: Tensor | None = None) -> Tensor:
        """Score items from histories.

        Args:
            index: The catalogue.
            history: (n, E) int64 item codes, the latest last, -1 for padding anywhere; codes from N on have text alone.
            weights: (n, E) float how much each event counts.
            codes: (m,) int64 item codes that are scored; all N if None.

        Returns:
            (n, N) or (n, m) float32.
        """
        size = len(index.rows)
        together, text = self.together(index, history, weights), self.text(index, history, weights, codes)
        if codes is not None:
            together = F.pad(together, (0, 1))[:, torch.where(codes < size, codes, size)]
        return self.blend[0] * together + self.blend[1] * text

    def together(self, index: ItemIndex, history: Tensor, weights: Tensor) -> Tensor:
        """(n, N) co-occurrence with each history, standardized over the catalogue; zero for a history without neighbours."""
        size, count = len(index.rows), self.items.shape[1]
        known = (history >= 0) & (history < size)
        rows = torch.where(known, index.rows[history.clamp(0, size - 1)], -1)
        faded = faded_weights(history, weights, self.fade[0]) * (rows >= 0)
        step = max(1, MAX_CELLS // max(history.shape[1] * count, 1))
        parts = []
        for some, weight in zip(rows.clamp_min(0).split(step), faded.split(step), strict=True):
            values = self.values[some].float() * weight.unsqueeze(-1)
            columns = index.codes[self.items[some].long()]
            total = values.new_zeros(len(some), size + 1)
            parts.append(total.scatter_add(1, columns.flatten(1), values.flatten(1))[:, :size])
        scores = torch.cat(parts) if parts else history.new_zeros(0, size, dtype=torch.float32)
        centred = scores - scores.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + 1e-12).sqrt()

    def text(self, index: ItemIndex, history: Tensor, weights: Tensor, codes: Tensor | None = None) -> Tensor:
        """(n, N) or (n, m) cosine of the items' texts with each history's, times √r; zero without whitened text."""
        if index.text is None:
            return history.new_zeros(len(history), len(index.rows) if codes is None else len(codes), dtype=torch.float32)
        wanted = index.text[: len(index.rows)] if codes is None else index.text[codes]
        return self.text_query(index, history, weights) @ wanted.t() * index.text.shape[1] ** 0.5

    def text_query(self, index: ItemIndex, history: Tensor, weights: Tensor) -> Tensor:
        """(n, r) text vector of each history, of length one (zero without text); needs whitened text."""
        assert index.text is not None
        faded = faded_weights(history, weights, self.fade[1])
        width = index.text.shape[1]
        step = max(1, MAX_CELLS // max(history.shape[1] * width, 1))
        pieces = zip(history.clamp_min(0).split(step), faded.split(step), strict=True)
        asked = [torch.einsum("ne,ner->nr", weight, index.text[some]) for some, weight in pieces]
        return F.normalize(torch.cat(asked), dim=-1) if asked else index.text.new_zeros(0, width)


def faded_weights(history: Tensor, weights: Tensor, fade: Tensor) -> Tensor:
    """(n, E): each event's weight times fade^(events since it), 0 for padding."""
    there = history >= 0
    age = there.flip(1).cumsum(1).flip(1) - 1
    return torch.where(there, fade ** age.clamp_min(0).float() * weights, 0.0)


def histories_of(items: Tensor, weights: Tensor, rows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The history of each of n reads, (n, E) item codes with -1 for padding and (n, E) weights.

    Args:
        items: (B, E) int64 item codes of each row's events.
        weights: (B, E) weight of each event.
        rows: (n,) row of each read.
        lengths: (n,) events of its row that a read may see.
    """
    seen = torch.arange(items.shape[1], device=items.device) < lengths[:, None]
    return torch.where(seen, items[rows], -1), weights[rows]
