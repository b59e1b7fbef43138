"""Base + encoder + LoRA + heads: something that trains and scores.

Owns: how a batch becomes hidden states and task outputs, which parameters train. Ignores: files, the registry, the loop.

    embeds = token embeddings, soft tokens in their places      (B, T, D)
    hidden = base body with the adapter's low-rank updates      (B, T, D)
    output = head(hidden at the task's reads)                   (n,) or (n, N)
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from genre.data.code_trie import CodeTrie
from genre.data.sequences.batches import Batch, LabelledReads
from genre.data.sequences.transfer import upload
from genre.errors import DivergedError
from genre.modules.base.base import Base
from genre.modules.embedding import SoftTokens, embed
from genre.modules.generation import code_losses
from genre.modules.heads.heads import CatalogueHead, GenerateHead, Head
from genre.modules.lora.layer import LoraLinear, attach, detach, find_linears
from genre.modules.losses import LOSSES, LoggedRewards, Negatives, mean, sampled_cross_entropy, sampled_log_loss
from genre.modules.reading import read, view_of
from genre.modules.reference import Groups, Preferences, Reference
from genre.tasks import Task


class Recommender(nn.Module):
    """One adapter on one base, ready to train or to score.

    Attributes:
        base: The frozen base (not a submodule: its parameters are never the adapter's).
        tasks: The adapter's tasks by name.
        heads: One head per task.
        soft: The behaviour encoder and its item table; None where everything is text.
        dropout: Of the soft tokens' vectors in training.
        negatives: For each next-item task that trains on a sampled softmax, what it draws from.
        logged: For each task that learns a policy from propensities, what came of the events.
        relative: For each task whose loss is relative to a reference, what it draws.
        reference: The reference of these tasks; None before `keep_reference`.
        trie: The items that generate heads learn to tell apart, by their codes; None without such a head.
        cold: (N,) bool, items without training events, which are not negatives of next-item tasks; None if all items are.
        name_events: Names events of the data in a message.
        checkpoint_activations: In training, keep only the inputs of the base's layers and run these again in the backward pass.
        blind: Leave the base out: heads read zeros, to measure what it adds.
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
        negatives: Mapping[str, Negatives] | None = None,
        logged: Mapping[str, LoggedRewards] | None = None,
        relative: Mapping[str, Preferences | Groups] | None = None,
        trie: CodeTrie | None = None,
        cold: Tensor | None = None,
        name_events: Callable[[list[int]], str] = lambda events: f"the events {events[:3]}",
        checkpoint_activations: bool = False,
        blind: bool = False,
    ) -> None:
        super().__init__()
        self._bare = (base,)  # in a tuple, the base stays out of the module tree and of every state dict
        self.soft = soft
        self.dropout = dropout
        self.tasks = {task.name: task for task in tasks}
        self.negatives = dict(negatives or {})
        self.logged = dict(logged or {})
        self.relative = dict(relative or {})
        self.reference: Reference | None = None
        self.trie = trie
        self.cold = cold
        self.name_events = name_events
        self.checkpoint_activations = checkpoint_activations
        self.blind = blind
        self.heads = nn.ModuleDict(heads)
        self.layers: dict[str, LoraLinear] = {}
        self.lora = nn.ModuleList()
        self.encoder = soft.encoder if soft is not None else None
        self._attachment = ExitStack()
        self.to(base.device)

    @property
    def base(self) -> Base:
        """The frozen base."""
        return self._bare[0]

    def attach(
        self, *, targets: Any, layers: Any, rank: int, alpha: float, dropout: float, rslora: bool, bare: bool = False
    ) -> None:
        """Make trainable low-rank layers and put them on the base (mutates it until `release`); raises as `put` does.

        With `bare` they are only held: the base stays bare until `put(model.layers)`.
        """
        self.base.need_bare()
        names = find_linears(self.base.model, targets, layers)
        scale = alpha / math.sqrt(rank) if rslora else alpha / rank
        linears = {name: self.base.model.get_submodule(name) for name in names}
        made = {name: LoraLinear(linear, rank=rank, scale=scale, dropout=dropout) for name, linear in linears.items()}
        self._hold(made)
        if not bare:
            self.put(made)

    def keep_reference(self) -> None:
        """Keep the weights as they are now as the reference of the losses that need one."""
        self.reference = Reference(self, self.relative) if self.relative else None

    def _hold(self, layers: dict[str, LoraLinear]) -> None:
        self.layers = layers
        self.lora = nn.ModuleList(layers.values())

    def put(self, layers: dict[str, LoraLinear]) -> None:
        """Put low-rank layers that exist already on the base, by the name of the linear they hold.

        Raises:
            InputError: Something else is attached to this base.
        """
        self.base.need_bare()
        self._hold(layers)
        if layers:
            self._attachment.enter_context(self.base.attached("one adapter's model"))
            attach(self.base.model, layers)
            self._attachment.callback(detach, self.base.model, layers)

    def unfreeze(self) -> None:
        """Let every weight of the base train, for comparison with a full fine-tune; `release` puts the old weights back.

        Raises:
            InputError: Something is attached to this base.
        """
        self._attachment.enter_context(self.base.attached("one adapter's model"))
        model = self.base.model
        before = {name: value.detach().clone() for name, value in model.named_parameters()}

        @torch.no_grad()
        def put_back() -> None:
            for name, value in model.named_parameters():
                value.copy_(before[name])
            model.requires_grad_(False)

        self._attachment.callback(put_back)
        model.requires_grad_(True)

    def release(self) -> None:
        """Leave the base as it was: without low-rank layers (which keep their weights), frozen, with its own weights."""
        self._attachment.close()
        self.base.model.eval()  # training sets the linears that layers hold to training, where int8 ones round otherwise

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

    def head(self, task: str) -> Head:
        """The head of a task."""
        return cast(Head, self.heads[task])

    def hidden(self, batch: Batch, soft: SoftTokens | None = None) -> Tensor:
        """(B, T, D) hidden states, with `soft` in place of its own soft tokens; zeros for a model without its base."""
        base = self.base
        if self.blind:
            return torch.zeros(*batch.tokens.shape, base.hidden_size, device=base.device)
        embeds = embed(base, batch, soft or self.soft, self.dropout if self.training else 0.0)
        checkpoint = self.checkpoint_activations and self.training
        places = batch.positions, batch.mask
        return base.hidden(embeds, *places, lengths=batch.lengths, checkpoint=checkpoint, read=batch.read_tokens)

    def output(
        self,
        task: str,
        hidden: Tensor,
        batch: Batch,
        *,
        reads: LabelledReads | None = None,
        tables: tuple[Tensor, ...] | None = None,
    ) -> Tensor:
        """A task's raw output at its reads: (n,), (n, C) or (n, N).

        Args:
            task: Its name.
            hidden: (B, T, D).
            batch: What the hidden states are of.
            reads: Some of the batch's reads of the task; all of them if None.
            tables: Of a head over the whole catalogue (`Head.tables` of all item vectors), made anew if None.
        """
        head, chosen = self.head(task), reads or batch.reads[task]
        if head.per_item and tables is None and self.soft is not None:
            tables = head.tables(self.soft.items())
        return read(head, hidden, batch, chosen, self.soft, tables=tables, events=chosen.events)

    def catalogue_tables(self) -> dict[str, tuple[Tensor, ...]]:
        """For each task whose head scores the whole catalogue, its tables of all items as they are now."""
        heads = {name: head for name in self.heads if (head := self.head(name)).per_item}
        if self.soft is None or not heads:
            return {}
        vectors = self.soft.items()
        return {name: head.tables(vectors) for name, head in heads.items()}

    def forward(
        self, batch: Batch, shares: Mapping[str, float] | None = None, *, check: bool = True
    ) -> tuple[Tensor, dict[str, tuple[Tensor, int]]]:
        """The weighted sum of the tasks' mean losses, from a batch; see `losses`."""
        before = None if self.reference is None else self.reference.hidden(self, batch)
        return self.losses(self.hidden(batch), batch, shares, before=before, check=check)

    def losses(
        self,
        hidden: Tensor,
        batch: Batch,
        shares: Mapping[str, float] | None = None,
        tables: Mapping[str, tuple[Tensor, ...]] | None = None,
        *,
        before: Tensor | None = None,
        check: bool = True,
    ) -> tuple[Tensor, dict[str, tuple[Tensor, int]]]:
        """The weighted sum of the tasks' mean losses, from hidden states.

        Args:
            hidden: (B, T, D).
            batch: What the hidden states are of.
            shares: For each task, the share of a larger batch's targets that this one has; 1 if None. The sums over the
                micro-batches of a batch are then the batch's own.
            tables: `catalogue_tables`, where nothing that they are made of trains.
            before: (B, T, D) the reference's hidden states; by default the model's own, which they have the size of.
            check: Look at every loss, which waits for the device; otherwise the caller does so later.

        Returns:
            The scalar to go backward from, and each task's mean loss, a scalar without a gradient, and number of targets.

        Raises:
            DivergedError: A loss is not finite; the message names the task and the events.
        """
        total = hidden.new_zeros((), dtype=torch.float32)
        parts: dict[str, tuple[Tensor, int]] = {}
        for name, reads in batch.reads.items():
            loss, given = self._loss_of(name, hidden, batch, (tables or {}).get(name), hidden if before is None else before)
            value = loss(*given)
            if check and not torch.isfinite(value):
                bad = [i for i in range(len(reads.labels)) if not torch.isfinite(loss(*(each[i : i + 1] for each in given)))]
                where = f"{len(bad)} of {len(reads.labels)} targets: {self.name_events(reads.events[bad].tolist())}"
                todo = f"{where}; look at them, or lower train.learning_rate"
                what = f"the loss of task {name!r} is not finite"
                raise DivergedError(what, got=float(value.detach()), expected="a finite loss", todo=todo)
            parts[name] = (value.detach(), len(reads.labels))
            total = total + self.tasks[name].weight * (1.0 if shares is None else shares[name]) * value
        return total, parts

    def _loss_of(
        self, name: str, hidden: Tensor, batch: Batch, tables: tuple[Tensor, ...] | None, before: Tensor
    ) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
        """A task's loss and its arguments, each with a row per target."""
        reads = batch.reads[name]
        head = self.head(name)
        if isinstance(head, GenerateHead):
            assert self.soft is not None and self.trie is not None
            if name not in self.relative:
                return mean, (code_losses(head, hidden, reads, self.soft, self.trie),)
            assert self.reference is not None and reads.drawn_items is not None, "items are drawn before a step"
            each, shape = reads.drawn(), reads.drawn_items.shape
            own = -code_losses(head, hidden, each, self.soft, self.trie).view(shape)
            known = -self.reference.code_losses(name, before, each, self.trie).view(shape)
            return self.relative[name].of_items(own, known, batch, reads)
        if name not in self.negatives:
            output = self.output(name, hidden, batch, tables=tables)
            if name in self.relative:
                assert self.reference is not None, "keep_reference comes before the first step"
                return self.relative[name].of(output, self.reference.output(name, before, batch), batch, reads, self.cold)
            if self.cold is not None and self.heads[name].per_item:
                output = output.masked_fill(self.cold, -torch.inf)
            if name in self.logged:
                off_policy, logged = self.logged[name].of(reads.events, output.device)
                return off_policy, (output, reads.labels, *logged)
            kept = self.tasks[name].keep_negatives
            loss = LOSSES[self.tasks[name].loss] if kept is None else partial(sampled_log_loss, kept=kept)
            return loss, (output, reads.labels)
        assert isinstance(head, CatalogueHead) and self.soft is not None
        drawn, log_count = self.negatives[name].draw()
        view, (others,) = view_of(head, batch, reads, self.soft, drawn)
        drawn, log_count = upload(drawn, others.device), upload(log_count, others.device)
        query, keys = head.ask(reads.of(hidden), view), view.tables[0]
        given = (head.match(query, keys[view.items]), head.logits(query, keys[others]) - log_count, reads.items[:, None] == drawn)
        return sampled_cross_entropy, given
