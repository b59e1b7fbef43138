"""Item neighbours: what a next-item head adds to its trained score from the items of the history alone.

    Δ_i = β₁ standardize(Σ_j γ₁^(events since j) B_ji)  +  β₂ √r cos(Σ_j γ₂^(events since j) t_j, t_i)

B is EASE's item-to-item matrix of the training events, the strongest entries of each row; t are whitened text vectors (r
dimensions), so that an item without events has neighbours too. The first sum of an item that the encoder does not know by its
id is the mean of its nearest known items', weighted by the cosine of their texts: beside items with both terms, one with text
alone would hardly ever be answered with. Both are closed forms: nothing here is trained by the loop. `genre.training.neighbours`
fits B and chooses β and γ on validation.

Owns: the arithmetic and the storage of B. Ignores: how it was fitted, hidden states.
"""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_CELLS = 2**24
"""Entries of B that are gathered at a time."""
CLOSENESS = 4.0
"""The power of the cosine by which a nearest item counts; versions are measured with it."""


@dataclass(frozen=True)
class StandIns:
    """The nearest known items of u items that an encoder does not know by their ids.

    Attributes:
        items: (u,) int64 codes of these items.
        nearest: (u, k) int64 codes of known items.
        shares: (u, k) float32 how much each counts, 1 in all; 0 for an item without text.
    """

    items: Tensor
    nearest: Tensor
    shares: Tensor

    @classmethod
    def of(cls, items: Tensor, known: Tensor, text: Tensor, count: int) -> "StandIns":
        """The `count` known items whose texts, (N, r) of length one, are nearest to those of some items."""
        found = text[known].t()
        nearest, shares = [], []
        for some in items.split(max(1, MAX_CELLS // max(len(known), 1))):
            near = (text[some] @ found).clamp_min(0).topk(min(count, len(known)), dim=1)
            share = near.values**CLOSENESS
            nearest.append(known[near.indices])
            shares.append(share / share.sum(1, keepdim=True).clamp_min(1e-12))
        if not nearest:
            return cls(items, items.new_zeros(0, count), text.new_zeros(0, count))
        return cls(items, torch.cat(nearest), torch.cat(shares))

    def join(self, more: "StandIns") -> "StandIns":
        """These items and more."""
        return StandIns(*(torch.cat([getattr(self, name), getattr(more, name)]) for name in ("items", "nearest", "shares")))


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
    _fewer: "ItemIndex | None" = field(default=None, repr=False, compare=False)
    _stand_ins: dict[int, StandIns] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, rows: Tensor, known: int, text: Tensor | None) -> "ItemIndex":
        """Index a catalogue by its items' rows (N,) among an encoder's `known` ids, with (N, r) whitened text features."""
        codes = torch.full((known + 1,), len(rows), device=rows.device)
        codes[torch.where(rows >= 0, rows, known)] = torch.arange(len(rows), device=rows.device)
        return cls(rows, codes[:known], None if text is None else F.normalize(text, dim=-1))

    def with_text(self, more: Tensor | None) -> "ItemIndex":
        """The index with further items, which are known by their (m, r) text vectors alone."""
        if more is None or self.text is None:
            return self
        return replace(self, text=torch.cat([self.text, more]), _fewer=self, _stand_ins={})

    def stand_ins(self, count: int) -> StandIns | None:
        """The nearest known items of each unknown one, `count` of each; None without whitened text."""
        if self.text is None:
            return None
        if count not in self._stand_ins:
            if self._fewer is None:
                self._stand_ins[count] = StandIns.of((self.rows < 0).nonzero().squeeze(1), self._known, self.text, count)
            else:
                fewer = self._fewer.stand_ins(count)
                assert fewer is not None and self._fewer.text is not None
                more = torch.arange(len(self._fewer.text), len(self.text), device=self.rows.device)
                self._stand_ins[count] = fewer.join(StandIns.of(more, self._known, self.text, count))
        return self._stand_ins[count]

    @cached_property
    def _known(self) -> Tensor:
        return (self.rows >= 0).nonzero().squeeze(1) if self._fewer is None else self._fewer._known


class ItemNeighbours(nn.Module):
    """The neighbours of M items, `count` each, and the weights of the two terms.

    Attributes:
        items: (M, count) int32, the rows of B's strongest entries.
        values: (M, count) float16, these entries.
        blend: (2,) β of co-occurrence and of text.
        fade: (2,) γ of co-occurrence and of text.
        stand_ins: Nearest items by text that stand in for an item whose id the encoder does not know; with 0 it has text alone.
    """

    items: Tensor
    values: Tensor
    blend: Tensor
    fade: Tensor

    def __init__(self, rows: int, count: int, stand_ins: int = 0) -> None:
        super().__init__()
        self.stand_ins = stand_ins
        self.register_buffer("items", torch.zeros(rows, count, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(rows, count, dtype=torch.float16))
        self.register_buffer("blend", torch.zeros(2))
        self.register_buffer("fade", torch.ones(2))

    def forward(self, index: ItemIndex, history: Tensor, weights: Tensor, codes: Tensor | None = None) -> Tensor:
        """Score items from histories.

        Args:
            index: The catalogue.
            history: (n, E) int64 item codes, the latest last, -1 for padding anywhere; codes from N on count by their text alone.
            weights: (n, E) float how much each event counts.
            codes: (m,) int64 item codes that are scored; all N if None.

        Returns:
            (n, N) or (n, m) float32.
        """
        together, text = self.together(index, history, weights), self.text(index, history, weights, codes)
        if codes is None:
            together = together[:, : len(index.rows)]
        else:
            width = together.shape[1]
            together = F.pad(together, (0, 1))[:, torch.where(codes < width, codes, width)]
        return self.blend[0] * together + self.blend[1] * text

    def together(self, index: ItemIndex, history: Tensor, weights: Tensor) -> Tensor:
        """(n, N) co-occurrence with each history, standardized over the catalogue; zero for a history without neighbours.

        With stand-ins it is (n, N + m), where the index has m further items.
        """
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
        if self.stand_ins and (stand_ins := index.stand_ins(self.stand_ins)) is not None and index.text is not None:
            taken = scores.new_zeros(len(scores), len(stand_ins.items))
            for nearest, share in zip(stand_ins.nearest.t(), stand_ins.shares.t(), strict=True):
                taken += scores[:, nearest] * share
            scores = F.pad(scores, (0, len(index.text) - size)).index_copy(1, stand_ins.items, taken)
        own = scores[:, :size]
        mean = own.mean(1, keepdim=True)
        return (scores - mean) / ((own - mean).square().mean(1, keepdim=True) + 1e-12).sqrt()

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
