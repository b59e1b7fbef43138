"""Base + encoder + LoRA + heads: something that trains and scores.

Owns: how a batch becomes hidden states and task outputs, which parameters train. Ignores: files, the registry, the loop.

    embeds = token embeddings, soft tokens in their places      (B, T, D)
    hidden = base body with the adapter's low-rank updates      (B, T, D)
    output = head(hidden at the task's reads)                   (n,) or (n, N)
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genre.base import Base
from genre.encoder import BehaviourEncoder, ItemTable
from genre.errors import DivergedError
from genre.heads import Head, View
from genre.lora import LoraLinear, attach, detach, find_linears
from genre.losses import LOSSES
from genre.sequences import Batch
from genre.tasks import Task


@dataclass
class SoftTokens:
    """Item and feedback vectors that stand in a row's soft-token places.

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
            return self.encoder.item_vectors(self.table, codes)
        if self.cached is None:
            with torch.no_grad():
                self.cached = self.encoder.eval().item_vectors(self.table)
        return self.cached if codes is None else self.cached[codes]


def embed(base: Base, batch: Batch, soft: SoftTokens | None, dropout: float = 0.0) -> Tensor:
    """Token embeddings with soft tokens in their places, (B, T, D) in the base's dtype."""
    embeds = base.embedding(batch.tokens)
    if soft is None:
        return embeds
    flat = embeds.reshape(-1, embeds.shape[-1])
    for codes, lookup in ((batch.items, soft.items), (batch.feedback, soft.encoder.feedback_vectors)):
        places = (codes.reshape(-1) >= 0).nonzero().squeeze(-1)
        if len(places):
            vectors = F.dropout(lookup(codes.reshape(-1)[places]), dropout, training=dropout > 0)
            flat = flat.index_copy(0, places, vectors.to(flat.dtype))
    return flat.view_as(embeds)


class Recommender(nn.Module):
    """One adapter on one base, ready to train or to score.

    Attributes:
        base: The frozen base (not a submodule: its parameters are never the adapter's).
        tasks: The adapter's tasks by name.
        heads: One head per task.
        soft: The behaviour encoder and its item table; None where everything is text.
        layers: The low-rank layers by the name of the linear they hold (empty for head-only and full).
    """

    def __init__(
        self,
        base: Base,
        tasks: Iterable[Task],
        heads: dict[str, Head],
        soft: SoftTokens | None,
        *,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self._bare = (base,)  # in a tuple, the base stays out of the module tree and of every state dict
        self.soft, self.dropout = soft, dropout
        self.tasks = {task.name: task for task in tasks}
        self.heads = nn.ModuleDict(heads)
        self.layers: dict[str, LoraLinear] = {}
        self.lora = nn.ModuleList()
        self.encoder = soft.encoder if soft is not None else None
        self._before: dict[str, Tensor] = {}
        self.to(base.device)

    @property
    def base(self) -> Base:
        """The frozen base."""
        return self._bare[0]

    def attach(self, *, targets: Any, layers: Any, rank: int, alpha: float, dropout: float, rslora: bool) -> None:
        """Put trainable low-rank layers on the base (mutates it until `release`); raises as `put` does."""
        names = find_linears(self.base.model, targets, layers)
        scale = alpha / math.sqrt(rank) if rslora else alpha / rank
        linears = {name: self.base.model.get_submodule(name) for name in names}
        self.put({name: LoraLinear(linear, rank=rank, scale=scale, dropout=dropout) for name, linear in linears.items()})

    def put(self, layers: dict[str, LoraLinear]) -> None:
        """Put low-rank layers that exist already on the base, by the name of the linear they hold.

        Raises:
            InputError: Something else is attached to this base.
        """
        self.base.need_bare()
        attach(self.base.model, layers)
        self.layers, self.lora = layers, nn.ModuleList(layers.values())
        self.base.occupied_by = "one adapter's model" if layers else None

    def unfreeze(self) -> None:
        """Let every weight of the base train, for comparison with a full fine-tune; `release` puts the old weights back.

        Raises:
            InputError: Something is attached to this base.
        """
        self.put({})
        self._before = {name: value.detach().clone() for name, value in self.base.model.named_parameters()}
        self.base.model.requires_grad_(True)

    @torch.no_grad()
    def release(self) -> None:
        """Leave the base as it was: without low-rank layers (which keep their weights), frozen, with its own weights."""
        if self._before:
            for name, value in self.base.model.named_parameters():
                value.copy_(self._before[name])
            self.base.model.requires_grad_(False)
            self._before = {}
            self.base.occupied_by = None
        if self.layers and self.base.occupied_by is not None:
            detach(self.base.model, self.layers)
            self.base.occupied_by = None

    def lora_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters of the low-rank update."""
        for name, layer in self.layers.items():
            yield f"{name}.lora_A", layer.lora_A
            yield f"{name}.lora_B", layer.lora_B

    def trainable(self) -> dict[str, nn.Parameter]:
        """Every parameter that trains, by a stable name."""
        found = dict(self.lora_parameters())
        found |= {f"heads.{name}": value for name, value in self.heads.named_parameters()}
        if self.encoder is not None:
            found |= {f"encoder.{name}": value for name, value in self.encoder.named_parameters()}
        found |= {f"base.{name}": value for name, value in self.base.model.named_parameters() if "lora_" not in name}
        return {name: value for name, value in found.items() if value.requires_grad}

    def hidden(self, batch: Batch) -> Tensor:
        """(B, T, D) hidden states."""
        base = self.base
        return base.hidden(embed(base, batch, self.soft, self.dropout if self.training else 0.0), batch.positions, batch.mask)

    def output(self, task: str, hidden: Tensor, batch: Batch) -> Tensor:
        """A task's raw output at its reads: (n,), (n, C) or (n, N)."""
        head, reads = self.heads[task], batch.reads[task]
        state = hidden[reads.rows, reads.places]
        if self.soft is None:
            return head(state)
        tables = head.tables(self.soft.items())  # type: ignore[operator]
        return head(state, View(tables, batch.history, batch.given, reads.rows, reads.seen, reads.items))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, tuple[float, int]]]:
        """The weighted sum of the tasks' mean losses.

        Returns:
            The scalar to go backward from, and each task's mean loss and number of targets.

        Raises:
            DivergedError: A loss is not finite; the message names the task and the events of the worst rows.
        """
        hidden = self.hidden(batch)
        total = hidden.new_zeros((), dtype=torch.float32)
        parts: dict[str, tuple[float, int]] = {}
        for name, reads in batch.reads.items():
            task = self.tasks[name]
            value = LOSSES[task.loss](self.output(name, hidden, batch), reads.labels)
            if not torch.isfinite(value):
                raise DivergedError(
                    f"the loss of task {name!r} is not finite", got=float(value.detach()), expected="a finite loss",
                    todo=f"look at the events {reads.events[:3].tolist()}…, or lower train.learning_rate",
                )  # fmt: skip
            parts[name] = (float(value.detach()), len(reads.labels))
            total = total + task.weight * value
        return total, parts
