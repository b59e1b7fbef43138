"""The reference of losses that are relative to one: the model as it was before the first step.

Owns: its weights, its output for a batch on the same base, what a target's rejected items and groups are. Ignores: formulas
(`genre.modules.losses`), where pairs come from.

    model.reference = Reference(model, ["next_item"])      # before the first step
    before = model.reference.hidden(model, batch)          # one more pass of the base, without gradients
    logits = model.reference.output("next_item", before, batch)

A run that starts anew has low-rank updates of zero before its first step, so its reference is the base without the adapter; one
that starts from a published version has that version as its reference. Either way there is one base in memory.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genre.data.code_trie import CodeTrie
from genre.data.sequences.batches import Batch, LabelledReads
from genre.data.sequences.transfer import upload
from genre.modules.embedding import SoftTokens
from genre.modules.generation import code_losses
from genre.modules.heads.heads import CatalogueHead, GenerateHead, Head
from genre.modules.losses import Negatives, draw_lists, group_relative, group_relative_items, softmax_dpo
from genre.modules.reading import read
from genre.tasks import Group, Preference


class Reference:
    """A frozen copy of what trains in a model, but for a base that is shared.

    Args:
        model: A `Recommender` before its first step; not changed.
        tasks: Names of the tasks that need the reference.

    Attributes:
        heads: One per task, frozen, as they score in training: without the terms that are fitted afterwards.
        low: A and B of each low-rank layer.
        soft: The item vectors; the model's own unless they train.
    """

    def __init__(self, model: Any, tasks: Iterable[str]) -> None:
        self.heads: dict[str, Head] = {name: _frozen(model.head(name)) for name in tasks}
        self.low = {name: (layer.lora_A.detach().clone(), layer.lora_B.detach().clone()) for name, layer in model.layers.items()}
        self.soft: SoftTokens | None = model.soft
        if self.soft is not None and any(value.requires_grad for value in self.soft.encoder.parameters()):
            self.soft = SoftTokens(deepcopy(self.soft.encoder).eval().requires_grad_(False), self.soft.table)
        self._tables: dict[str, tuple[Tensor, ...]] = {}

    @torch.no_grad()
    def hidden(self, model: Any, batch: Batch) -> Tensor:
        """(B, T, D) hidden states of a batch as they were before the first step, without dropout."""
        with evaluating(model), self._applied(model):
            found: Tensor = model.hidden(batch, self.soft)
        return found

    @torch.no_grad()
    def output(self, task: str, hidden: Tensor, batch: Batch) -> Tensor:
        """(n, N) logits at a task's reads, from the reference's hidden states."""
        head, reads = self.heads[task], batch.reads[task]
        if task not in self._tables and self.soft is not None:
            self._tables[task] = head.tables(self.soft.items())
        return read(head, hidden, batch, reads, self.soft, tables=self._tables.get(task), events=reads.events)

    @torch.no_grad()
    def code_losses(self, task: str, hidden: Tensor, reads: LabelledReads, trie: CodeTrie) -> Tensor:
        """(n,) negative log-probabilities of some reads' items, for a task that generates them; arguments of `code_losses`."""
        head = self.heads[task]
        assert isinstance(head, GenerateHead) and self.soft is not None
        return code_losses(head, hidden, reads, self.soft, trie)

    @contextmanager
    def _applied(self, model: Any) -> Iterator[None]:
        """A block in which the model's low-rank layers have the reference's weights."""
        own = {name: (layer.lora_A.data, layer.lora_B.data) for name, layer in model.layers.items()}
        try:
            for name, layer in model.layers.items():
                layer.lora_A.data, layer.lora_B.data = self.low[name]
            yield
        finally:
            for name, layer in model.layers.items():
                layer.lora_A.data, layer.lora_B.data = own[name]


def _frozen(head: Head) -> Head:
    if isinstance(head, CatalogueHead):
        head = head.with_neighbours(None).with_cooccurrence(None)
    return deepcopy(head).eval().requires_grad_(False)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """A block in which no module drops anything out."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


Loss = tuple[Callable[..., Tensor], tuple[Tensor, ...]]
"""A loss, and its arguments, each with a row per target."""


@dataclass(frozen=True)
class Pairs:
    """Rejected items of events, as a log says which: those of event e are `codes[first[e] : first[e] + count[e]]`.

    Attributes:
        first, count: (events,) int64.
        codes: (R,) int64 item codes.
    """

    first: np.ndarray
    count: np.ndarray
    codes: np.ndarray

    def draw(self, events: Tensor, most: int) -> Tensor:
        """(n, m) int64 item codes on the CPU, at most so many of each event, drawn without replacement; -1 for none."""
        numbers = events.numpy()
        first, count = torch.from_numpy(self.first[numbers]), torch.from_numpy(self.count[numbers])
        width = max(1, int(count.max())) if len(count) else 1
        free = torch.arange(width) >= count[:, None]
        chosen = torch.rand(len(numbers), width).masked_fill(free, 2.0).argsort(dim=1)[:, :most]
        places = (first[:, None] + chosen).masked_fill(free.gather(1, chosen), 0)
        return torch.from_numpy(self.codes)[places].masked_fill(free.gather(1, chosen), -1)


@dataclass(frozen=True)
class Preferences:
    """The loss `softmax_dpo` of a task.

    Attributes:
        wanted: The task's section.
        drawn: Where items are drawn from the catalogue.
        pairs: Where a log says which items were rejected.
    """

    wanted: Preference
    drawn: Negatives | None = None
    pairs: Pairs | None = None

    @property
    def from_policy(self) -> bool:
        """True if items are drawn from the policy itself."""
        return self.wanted.source == "policy"

    @property
    def of_others(self) -> bool:
        """True if items are other users' targets."""
        return self.wanted.source == "batch"

    @property
    def count(self) -> int:
        """The most items that are drawn for a target."""
        return self.wanted.negatives

    def counts(self, events: np.ndarray) -> np.ndarray:
        """(n,) the most items that are drawn for some events."""
        found = np.full(len(events), self.count)
        return found if self.pairs is None else np.minimum(found, self.pairs.count[events])

    def draw(self, events: Tensor, labels: Tensor) -> Tensor:
        """(n, m) int64 item codes on the CPU for n targets, from any source but the policy; -1 for none."""
        targets, count = len(labels), self.count
        if self.pairs is not None:
            return self.pairs.draw(events, count)
        if self.of_others:
            return labels[torch.randint(max(1, targets), (targets, count))]
        assert self.drawn is not None
        return self.drawn.draw_each(targets, count)

    def of_items(self, own: Tensor, before: Tensor, batch: Batch, reads: LabelledReads) -> Loss:
        """The loss of some targets of a head that generates items; arguments as of `Groups.of_items`."""
        assert reads.drawn_items is not None
        drawn = reads.drawn_items[:, 1:]
        none = (drawn < 0) | (drawn == reads.labels[:, None])
        if self.pairs is None:
            none |= in_history(drawn, batch, reads, whole=self.of_others)
        places = torch.arange(1, own.shape[1], device=own.device).expand(drawn.shape).masked_fill(none, -1)
        return partial(softmax_dpo, beta=self.wanted.beta), (own, torch.zeros_like(reads.labels), before, places)

    def of(self, output: Tensor, before: Tensor, batch: Batch, reads: LabelledReads, cold: Tensor | None) -> Loss:
        """The loss of some targets; arguments as of `Groups.of`."""
        rejected = self._rejected(output, batch, reads, cold)
        return partial(softmax_dpo, beta=self.wanted.beta), (output, reads.labels, before, rejected)

    def _rejected(self, output: Tensor, batch: Batch, reads: LabelledReads, cold: Tensor | None) -> Tensor:
        """(n, m) int64 item codes, -1 for none."""
        if self.pairs is not None:
            return upload(self.pairs.draw(reads.events, self.count), output.device)
        out = history_mask(output, batch, reads, whole=self.of_others).scatter_(1, reads.labels[:, None], True)
        if cold is not None:
            out = out | cold
        if self.from_policy:
            rejected = draw_lists(output.detach().masked_fill(out, -torch.inf), 1, self.count)[:, 0]
        else:
            rejected = upload(self.draw(reads.events, reads.on_host.labels), output.device)
        return rejected.masked_fill(out.gather(1, rejected), -1)


@dataclass(frozen=True)
class Groups:
    """The loss `group_relative` of a task.

    Attributes:
        wanted: The task's section.
        masked: Items of the history are no candidates, as in the task's ranking.
    """

    wanted: Group
    masked: bool
    from_policy = True

    @property
    def count(self) -> int:
        """The items that are drawn for a target by a head that generates them."""
        return self.wanted.size

    def counts(self, events: np.ndarray) -> np.ndarray:
        """(n,) the items that are drawn for some events by such a head."""
        return np.full(len(events), self.count)

    def of_items(self, own: Tensor, before: Tensor, batch: Batch, reads: LabelledReads) -> Loss:
        """The loss of some targets of a head that generates items.

        Args:
            own: (n, 1 + m) log-probabilities of the target and of what was drawn for it.
            before: (n, 1 + m) those of the reference.
            batch: What they are of.
            reads: The n targets, with what was drawn: first the target itself.
        """
        assert reads.drawn_items is not None
        drawn = reads.drawn_items[:, 1:]
        hits = drawn == reads.labels[:, None]
        counts = hits | ~in_history(drawn, batch, reads) if self.masked else torch.ones_like(hits)
        return partial(group_relative_items, kl=self.wanted.kl), (own[:, 1:], before[:, 1:], hits, counts)

    def of(self, output: Tensor, before: Tensor, batch: Batch, reads: LabelledReads, cold: Tensor | None) -> Loss:
        """The loss of some targets.

        Args:
            output: (n, N) logits of the policy.
            before: (n, N) those of the reference.
            batch: What they are of.
            reads: The n targets.
            cold: (N,) bool, items that are not drawn; None if all are.
        """
        out = history_mask(output, batch, reads) if self.masked else torch.zeros_like(output, dtype=torch.bool)
        if cold is not None:
            out = out | cold
        output, before = output.float().masked_fill(out, -torch.inf), before.float().masked_fill(out, -torch.inf)
        lists = draw_lists(output.detach(), self.wanted.size, self.wanted.length)
        formula = partial(group_relative, reward=self.wanted.reward, kl=self.wanted.kl)
        return formula, (output, reads.labels, before, lists)


def in_history(items: Tensor, batch: Batch, reads: LabelledReads, *, whole: bool = False) -> Tensor:
    """(n, m) bool: the items, (n, m), that are among the events that each target may see, or `whole` anywhere in its row."""
    return (items[:, :, None] == _seen(batch, reads, whole)[:, None, :]).any(-1)


def _seen(batch: Batch, reads: LabelledReads, whole: bool) -> Tensor:
    """(n, E) int64 the items of the events that each target may see, or of all events of its row; -1 for the others."""
    items = batch.history_items[reads.rows]
    if whole:
        return items
    return items.masked_fill(torch.arange(items.shape[1], device=items.device) >= reads.history_lengths[:, None], -1)


def history_mask(output: Tensor, batch: Batch, reads: LabelledReads, *, whole: bool = False) -> Tensor:
    """(n, N) bool: the items among the events that each target may see, or `whole` anywhere in its row."""
    items, count = _seen(batch, reads, whole), output.shape[1]
    found = torch.zeros(len(output), count + 1, dtype=torch.bool, device=output.device)
    return found.scatter_(1, torch.where(items >= 0, items, count), True)[:, :count]
