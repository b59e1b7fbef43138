"""The device memory of a run by part, before any weight is loaded.

Owns: a run's weights, copies, moments and activations as bytes, from a base on `meta` and the batches of its first epoch.
Ignores: how the base's own passes are planned (`genre.modules.base.planned`), what is printed.

    assembly = assemble(recipe, log, PlannedBase.read("Qwen/Qwen3-8B", quantization="nf4", device="cuda"))
    plan_training(assembly).total(checkpoint=True)

All figures are of tensors. What a CUDA context takes, and what an allocator keeps between tensors, comes on top.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genre.data.sequences.batches import Batch, plan_batches
from genre.data.sequences.layout import Sequence as Row
from genre.data.splits import PARTS
from genre.distributed import Processes
from genre.errors import InputError
from genre.evaluation.ranking import block_size
from genre.modules.base.planned import PassMemory, PlannedBase
from genre.modules.embedding import embed
from genre.modules.live_tensors import LiveTensors
from genre.training.assembly import Assembly
from genre.training.drawing import Labels, step_batches
from genre.training.epochs import plan_epoch
from genre.training.logged import training_labels
from genre.training.micro_batches import count_targets, split_rows


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a run on the base's device.

    Attributes:
        base: The base's weights, in its quantization.
        adapter: What trains: low-rank layers, heads, encoder; in a full fine-tune beside the base.
        items: Item tables and what else the run holds of its catalogue.
        copies: The best weights, their average if there is one and, in a full fine-tune, the base's old weights.
        optimizer: AdamW's two moments.
        step: The most that a step adds: its batch, activations and gradients.
        checkpointed: The same with `train.checkpoint_activations`; None where the base's layers cannot be run again.
        evaluation: The most that an evaluation batch adds.
    """

    base: int
    adapter: int
    items: int
    copies: int
    optimizer: int
    step: int
    checkpointed: int | None
    evaluation: int

    def total(self, *, checkpoint: bool = False) -> int:
        """The peak of a run, from its second step on."""
        step = self.checkpointed if checkpoint and self.checkpointed is not None else self.step
        return self.base + self.adapter + self.items + self.copies + self.optimizer + max(step, self.evaluation)

    def as_dict(self) -> dict[str, int | None]:
        """The parts and both totals."""
        totals = {"total": self.total(), "total_checkpointed": None if self.checkpointed is None else self.total(checkpoint=True)}
        return asdict(self) | totals


def plan_training(assembly: Assembly) -> TrainingMemory:
    """Plan the memory of a run that was assembled on a `PlannedBase`, in training mode from now on.

    Raises:
        BaseModelError: The base cannot run on shapes.
        InputError: The base is not planned, or no user has enough events.
    """
    base, model, recipe = assembly.base, assembly.model, assembly.recipe
    if not isinstance(base, PlannedBase):
        raise InputError("a memory plan needs a planned base", got=type(base).__name__, expected="PlannedBase.read(…)")
    planned = plan_epoch(assembly, training_labels(assembly.builder.data, recipe.tasks), 0)
    split = [split_rows(rows, Processes(), recipe.train.accumulate) for rows in planned.batches]
    first, later = [parts[0] for parts in split], [part for parts in split for part in parts[1:]]
    parameters = model.trainable()
    own = _bytes(value for name, value in parameters.items() if not name.startswith("base."))
    trained = _bytes(parameters.values())
    old = base.weight_bytes if recipe.adapter.kind == "full" else 0
    averages = trained if recipe.train.average else 0
    model.train()
    if assembly.shared is not None:
        assembly.shared.encoder.train(assembly.fits_encoder)
    steps = _step_bytes(assembly, base, _largest(assembly, planned.labels, first), again=False)
    if later:  # whose activations come on top of the gradients of the first
        more = _step_bytes(assembly, base, _largest(assembly, planned.labels, later), again=True)
        steps = [max(one, trained + other) for one, other in zip(steps, more, strict=True)]
    items = _held(assembly, parameters)
    moments = sum(2 * value.nbytes for value in parameters.values())
    evaluation = _evaluation_bytes(assembly, base, assembly.builder.data.supervise(recipe.tasks))
    return TrainingMemory(base.weight_bytes, own, items, trained + averages + old, moments, steps[0], _second(steps), evaluation)


def _second(found: list[int]) -> int | None:
    return found[1] if len(found) > 1 else None


def _largest(assembly: Assembly, labels: Labels, micro_batches: Iterable[Sequence[Row]]) -> Batch:
    """The largest batch of some micro-batches."""
    batches = step_batches(assembly.model, max(micro_batches, key=_size), labels, assembly.recipe.train.batch_tokens)
    return max(batches, key=lambda batch: batch.tokens.numel())


def _size(rows: Any) -> tuple[int, int]:
    longest = max(map(len, rows), default=0)
    return len(rows) * longest, longest


def _step_bytes(assembly: Assembly, base: PlannedBase, batch: Batch, *, again: bool) -> list[int]:
    """What a step on a batch adds at the most, without and with checkpointing where that can be done.

    With `again` there are gradients of other micro-batches, which are left out.
    """
    model = assembly.model
    rows, tokens = batch.tokens.shape
    stand_in: Any = SimpleNamespace(embedding=lambda ids: torch.zeros(len(ids), base.embedding.weight.shape[1], dtype=base.dtype))
    hidden = torch.zeros(rows, tokens, base.hidden_size, dtype=base.dtype, requires_grad=True)
    with LiveTensors() as live:
        live.forget([hidden, *(each for each in vars(batch).values() if isinstance(each, Tensor))])
        embeds = None if model.blind else embed(stand_in, batch, model.soft, model.dropout)
        embedded = live.now
        loss, _ = model.losses(hidden, batch)
        if loss.requires_grad:
            loss.backward()
        beside = live.peak
        left = 0 if again else live.now - embedded - hidden.nbytes  # gradients, but for that of the states
        del loss
    soft = embeds is not None and embeds.requires_grad
    given = sum(each.nbytes for each in vars(batch).values() if isinstance(each, Tensor))
    if batch.mask is not None:
        given += batch.mask.numel() * base.dtype.itemsize  # as attention adds it
    for parameter in model.parameters():
        parameter.grad = None
    if model.blind:
        return [given + beside]
    read = None if batch.read_tokens is None else len(batch.read_tokens)
    shape: dict[str, Any] = {"train": True, "masked": batch.mask is not None, "soft": soft, "read": read, "again": again}
    found = []
    for checkpoint in (False, True) if base.checkpoints else (False,):
        one: PassMemory = base.plan(rows, tokens, checkpoint=checkpoint, **shape)
        found.append(given + max(embedded + left + one.peak, one.kept + beside))
    return found


def _evaluation_bytes(assembly: Assembly, base: PlannedBase, labels: Mapping[str, Any]) -> int:
    """What the largest batch of validation and test adds."""
    recipe, model = assembly.recipe, assembly.model
    largest: list[Row] = []
    for part in ("valid", "test"):
        rows = assembly.builder.evaluation_rows(assembly.split, PARTS[part], max_events=recipe.data.max_events)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        batches = [[rows[i] for i in chosen] for chosen in plan_batches(lengths, 4 * recipe.train.batch_tokens)]
        largest = max([largest, *batches], key=_size)
    if not largest:
        return 0
    targets, catalogue = count_targets(largest, labels), 0 if assembly.data.catalogue is None else assembly.data.catalogue.size
    ranked = [name for name in model.heads if model.head(name).per_item]
    scores = max((4 * catalogue * min(targets[name], block_size(catalogue)) for name in ranked), default=0)
    tables = sum(4 * catalogue * base.hidden_size for _ in ranked) + (4 * catalogue * base.hidden_size if ranked else 0)
    if model.blind:
        return scores + tables
    count, tokens = len(largest), max(map(len, largest))
    masked = any(row.branches for row in largest)
    mask = count * tokens * tokens * (1 + base.dtype.itemsize) if masked else 0
    embeds = count * tokens * base.hidden_size * base.dtype.itemsize
    return base.plan(count, tokens, train=False, masked=masked).peak + embeds + mask + scores + tables


def _held(assembly: Assembly, parameters: Mapping[str, Tensor]) -> int:
    """What a run holds on the device beside its base and what trains."""
    model = assembly.model
    held = [*model.heads.parameters(), *model.heads.buffers(), *([] if model.cold is None else [model.cold])]
    if model.encoder is not None and model.soft is not None:
        held += [*model.encoder.parameters(), *model.encoder.buffers()]
        held += [value for value in vars(model.soft.table).values() if isinstance(value, Tensor)]
        held += [value for each in vars(model.soft.table).values() if isinstance(each, Mapping) for value in each.values()]
        held += [] if model.soft.cached is None else [model.soft.cached]
    trained = {id(value) for value in parameters.values()}
    return _bytes(value for value in {id(each): each for each in held}.values() if id(value) not in trained)


def _bytes(values: Iterable[Tensor]) -> int:
    return sum(value.nbytes for value in values)
