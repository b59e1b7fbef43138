"""From a batch of rows to what goes into the base: token embeddings, with item and feedback vectors at the soft tokens.

Owns: the lookup of soft tokens' vectors, and the one function that embeds a batch in training, evaluation and the engine.
Ignores: low-rank layers, heads.

    embeds = embed(base, batch, soft)      # (B, T, D), ready for `Base.hidden`
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from genre.data.code_trie import CodeTrie
from genre.data.sequences.batches import Batch
from genre.data.sequences.transfer import upload
from genre.modules.base.base import Base
from genre.modules.codes.item_codes import ItemCodes
from genre.modules.encoder import BehaviourEncoder, ItemTable
from genre.modules.heads.neighbours import ItemIndex


class SoftVectors(Protocol):
    """A lookup of the vectors behind item and feedback codes."""

    def items(self, codes: Tensor) -> Tensor:
        """(n, D) vectors of some items."""
        ...

    def feedback(self, codes: Tensor) -> Tensor:
        """(n, D) vectors of some feedback values."""
        ...

    @property
    def index(self) -> ItemIndex:
        """The items as a head's item neighbours look them up."""
        ...

    @property
    def codes(self) -> ItemCodes | None:
        """The codes of items; None without them."""
        ...


@dataclass
class SoftTokens:
    """The vectors of a behaviour encoder over one catalogue.

    Attributes:
        encoder: The behaviour encoder.
        table: The features of the catalogue in use.
        cached: (N, D) item vectors, computed once while the encoder is frozen.
    """

    encoder: BehaviourEncoder
    table: ItemTable
    cached: Tensor | None = None

    def items(self, codes: Tensor | None = None) -> Tensor:
        """(n, D) item vectors; all items if `codes` is None."""
        if any(parameter.requires_grad for parameter in self.encoder.parameters()):
            self.cached = None
            if codes is None and not torch.is_grad_enabled():
                return self.every()
            return self.encoder.item_vectors(self.table, codes)
        if self.cached is None:
            self.cached = self.every()
        return self.cached if codes is None else self.cached[codes]

    def feedback(self, codes: Tensor) -> Tensor:
        """(n, D) feedback vectors."""
        return self.encoder.feedback_vectors(codes)

    @cached_property
    def index(self) -> ItemIndex:
        """The items as a head's item neighbours look them up."""
        return self.encoder.index(self.table)

    @property
    def codes(self) -> ItemCodes | None:
        """The codes of items; None where the encoder has none."""
        return self.encoder.codes

    @cached_property
    def trie(self) -> CodeTrie:
        """The catalogue's items by their codes, which the encoder must have."""
        assert self.codes is not None and self.table.codes is not None
        return CodeTrie(self.table.codes.cpu().numpy(), self.codes.sizes)

    @torch.no_grad()
    def every(self, *, cold: bool = False) -> Tensor:
        """(N, D) vectors of all items as they are used in evaluation, computed by parts so that a large catalogue fits.

        With `cold` as they would be if none of them had training events.
        """
        codes = torch.arange(len(self.table), device=self.table.rows.device)
        table = ItemTable(self.table.features, torch.full_like(self.table.rows, -1)) if cold else self.table
        training = self.encoder.training
        parts = [self.encoder.eval().item_vectors(table, some) for some in codes.split(65536)]
        self.encoder.train(training)
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def embed(base: Base, batch: Batch, soft: SoftVectors | Sequence[SoftVectors | None] | None, dropout: float = 0.0) -> Tensor:
    """Embed the tokens of a batch and put the vectors of soft tokens in their positions.

    Args:
        base: The base whose token embedding is used.
        batch: B rows of T tokens.
        soft: The vectors of every row's soft tokens, or one lookup per row; None where rows have no soft tokens.
        dropout: Applied to the soft tokens' vectors.

    Returns:
        (B, T, D) in the base's dtype.
    """
    flat, host = base.embedding(batch.tokens.reshape(-1)), batch.on_host
    lookups = soft if isinstance(soft, Sequence) else [soft] * len(batch.tokens)
    for vectors in {id(each): each for each in lookups if each is not None}.values():
        own = [each is vectors for each in lookups]
        kinds: list[tuple[Tensor, Callable[[Tensor], Tensor]]] = [(host.items, vectors.items), (host.feedback, vectors.feedback)]
        if host.code_tokens is not None and vectors.codes is not None:
            kinds.append((host.code_tokens, vectors.codes.token_vectors))
        for codes, look_up in kinds:
            there = codes >= 0 if all(own) else (codes >= 0) & torch.tensor(own)[:, None]
            positions = there.reshape(-1).nonzero().squeeze(-1)
            if len(positions):
                asked = upload(codes.reshape(-1)[positions], flat.device)
                found = F.dropout(look_up(asked), dropout, training=dropout > 0)
                flat.index_copy_(0, upload(positions, flat.device), found.to(flat.dtype))
    return flat.view(*batch.tokens.shape, -1)
