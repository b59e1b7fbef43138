"""What a run would take, from one real step of it: parameters, rows, memory, time.

Owns: counting a run's plan, and measuring a step and an evaluation batch. Ignores: where a run's parts come from, how the
figures are shown.

    plan = lay_out(loop)            943 rows, 167,230 tokens (169,204 with padding), 83 steps in an epoch
    cost = rehearse(loop, plan)     1.93 s for 2,044 tokens, 231 MiB beside 170 MiB of base and 5 MiB of optimizer
"""

import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from genre.data.sequences.batches import plan_batches
from genre.data.sequences.layout import Sequence
from genre.data.splits import PARTS
from genre.modules.recommender import Recommender
from genre.training.loop import Loop
from genre.training.prediction import BATCH_TOKENS, score_batch
from genre.training.state import peak_memory_bytes


@dataclass(frozen=True)
class Parameters:
    """How many numbers train, and of how many.

    Attributes:
        lora, heads, encoder: Of the adapter; the encoder's are 0 unless it is being fitted.
        full: Of the base in a full fine-tune, else 0.
        base: The base's own, at its depth.
    """

    lora: int
    heads: int
    encoder: int
    full: int
    base: int

    @property
    def trained(self) -> int:
        """All that train."""
        return self.lora + self.heads + self.encoder + self.full


@dataclass(frozen=True)
class Plan:
    """What a run goes through.

    Attributes:
        rows, tokens, padded, steps: Of the first epoch; `padded` counts padding too. Later ones differ by a few.
        epochs: At most.
        evaluated: Padded tokens of the validation part, read after every epoch, and of the test part, read once.
        largest: The rows of the largest batch of training, and of evaluation.
    """

    rows: int
    tokens: int
    padded: int
    steps: int
    epochs: int
    evaluated: tuple[int, int]
    largest: tuple[list[Sequence], list[Sequence]]


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors by what they are for, beside what Python and its libraries take.

    Attributes:
        base: The base's weights.
        trained: What trains beside the base.
        kept: The best weights so far, their average if there is one, and, in a full fine-tune, the base's own, which are put
            back.
        optimizer: AdamW's two moments.
        step: The most that a step has at once beyond these: what is kept for the backward pass, gradients, what is being
            computed.
        evaluation: The same of an evaluation batch.
    """

    base: int
    trained: int
    kept: int
    optimizer: int
    step: int
    evaluation: int

    @property
    def peak(self) -> int:
        """The most at once."""
        return self.base + self.trained + self.kept + self.optimizer + max(self.step, self.evaluation)


@dataclass(frozen=True)
class Cost:
    """What was measured, and what follows.

    Attributes:
        memory: In bytes.
        tokens: Of the step that was measured, padding included.
        step_seconds: That it took.
        training_seconds: Of all epochs, at that pace.
        evaluation_seconds: Of reading the validation part after every epoch and the test part once, at the pace of the
            batch that was measured; without metrics and their intervals.
        peak_bytes: Of the process so far, libraries and all; on CUDA of the device.
    """

    memory: Memory
    tokens: int
    step_seconds: float
    training_seconds: float
    evaluation_seconds: float
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.training_seconds + self.evaluation_seconds


def count_parameters(model: Recommender) -> Parameters:
    """What trains of a model, as a run of it counts."""
    lora = {name for name, _ in model.lora_parameters()}
    sizes = {"lora": 0, "heads": 0, "encoder": 0, "base": 0}
    for name, value in model.trainable().items():
        sizes["lora" if name in lora else name.split(".")[0]] += value.numel()
    whole = sum(_numbers(value) for value in _weights(model.base.model))
    return Parameters(sizes["lora"], sizes["heads"], sizes["encoder"], sizes["base"], whole)


def lay_out(loop: Loop) -> Plan:
    """Count what a run goes through, and find its largest batches."""
    rows, batches = loop.plan(0)
    training = [[rows[i] for i in chosen] for chosen in batches]
    read: list[list[list[Sequence]]] = []
    for part, tokens in (("valid", 4 * loop.train.batch_tokens), ("test", BATCH_TOKENS)):
        found = loop.assembly.builder.evaluation_rows(
            loop.assembly.split, PARTS[part], max_events=loop.recipe.data.max_events
        )  # fmt: skip
        lengths = np.array([len(row) for row in found], dtype=np.int64)
        read.append([[found[i] for i in chosen] for chosen in plan_batches(lengths, tokens)])
    return Plan(
        rows=len(rows), tokens=sum(map(len, rows)), padded=sum(map(padded, training)), steps=len(training),
        epochs=loop.train.epochs, evaluated=(sum(map(padded, read[0])), sum(map(padded, read[1]))),
        largest=(max(training, key=padded), max((batch for part in read for batch in part), key=padded, default=[])),
    )  # fmt: skip


def rehearse(loop: Loop, plan: Plan) -> Cost:
    """Take a warm-up step and a measured one on the largest batch, and read an evaluation batch (mutates the model)."""
    rows = plan.largest[0]
    loop.model.train()
    if loop.assembly.shared is not None:
        loop.assembly.shared.encoder.train(loop.assembly.fits_encoder)
    loop.step(rows, 0.0)
    step, seconds = measure(loop.assembly.base.device, lambda: loop.step(rows, 0.0))
    evaluation, reading = read_one(loop, plan)
    return Cost(
        held(loop, step, evaluation), padded(rows), seconds, seconds / padded(rows) * plan.padded * plan.epochs, reading,
        peak_memory_bytes(loop.assembly.base.device),
    )  # fmt: skip


def held(loop: Loop, step: int, evaluation: int) -> Memory:
    """A run's bytes, given those of its step and of an evaluation batch."""
    base = _bytes(_weights(loop.assembly.base.model))
    trained, full = _bytes(loop.parameters.values()), loop.recipe.adapter.kind == "full"
    beside = _bytes(value for name, value in loop.parameters.items() if not name.startswith("base."))
    kept = trained + _bytes(loop.average.values.values()) + (base if full else 0)
    return Memory(base, beside, kept, 2 * trained, step, evaluation)


def read_one(loop: Loop, plan: Plan) -> tuple[int, float]:
    """Read one evaluation batch: its bytes, and the seconds of all evaluation of the run at its pace."""
    rows = plan.largest[1]
    if not rows:
        return 0, 0.0
    loop.model.eval()
    with torch.no_grad():
        spent, seconds = measure(
            loop.assembly.base.device,
            lambda: list(score_batch(loop.model, rows, loop.supervise, loop.model.catalogue_tables())),
        )
    return spent, seconds / padded(rows) * (plan.epochs * plan.evaluated[0] + plan.evaluated[1])


def padded(rows: list[Sequence]) -> int:
    """Tokens of a batch, padding included."""
    return len(rows) * max(map(len, rows))


def measure(device: torch.device, work: Callable[[], object]) -> tuple[int, float]:
    """Do some work: the most bytes of tensors that it has at once beyond what was there before, and its seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before, begun = torch.cuda.memory_allocated(device), time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before, time.perf_counter() - begun
    begun = time.perf_counter()
    with _Watch() as watch:
        work()
    return watch.peak, time.perf_counter() - begun


class _Watch(TorchDispatchMode):
    """Counts the bytes of tensors that are made within the block and still alive; the CPU's allocator keeps no count.

    Attributes:
        peak: The most at once. What an operation needs inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._alive: dict[int, int] = {}
        self._now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {each.untyped_storage()._cdata for each in tree_iter((args, kwargs)) if isinstance(each, Tensor)}
        for each in tree_iter(result):
            if not isinstance(each, Tensor):
                continue
            storage = each.untyped_storage()
            if storage._cdata in given or storage._cdata in self._alive:  # a view, or changed in place
                continue
            self._alive[storage._cdata] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._drop, storage._cdata)
        return result

    def _drop(self, storage: int) -> None:
        self._now -= self._alive.pop(storage, 0)


def _weights(base: nn.Module) -> Iterator[Tensor]:
    """The base's own parameters, without those of layers that are attached to it."""
    return (value for name, value in base.named_parameters() if "lora_" not in name)


def _numbers(value: Tensor) -> int:
    """How many numbers a weight stands for; 4-bit ones are packed."""
    state = getattr(value, "quant_state", None)
    return value.numel() if state is None else math.prod(state.shape)


def _bytes(values: Iterable[Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in values)
