"""The cost of a training run: its parameters, memory and time, from the shapes of its tensors and one measured step.

Owns: counting, predicting and measuring these for runs that are set up. Ignores: where a run's parts come from, how the figures
are shown.

    seconds, growth = timed(device, lambda: loop.step(rows, 0.0))       # 1.93 s; 231 MiB more at the peak
    memory([loop], evaluation, growth).peak                             # 530 MiB, predicted
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from genre.data.sequences.batches import plan_batches
from genre.data.sequences.layout import Sequence as Row
from genre.data.sequences.transfer import DIRECT
from genre.data.splits import PARTS
from genre.evaluation.ranking import block_size
from genre.modules.recommender import Recommender
from genre.training.loop import Loop
from genre.training.micro_batches import count_targets
from genre.training.prediction import score_batch
from genre.training.runtime import peak_memory_bytes, reset_peak_memory


@dataclass(frozen=True)
class Parameters:
    """Trained parameters by part; `full` is the base's in a full fine-tune, `base` the size of the base itself."""

    lora: int
    heads: int
    encoder: int
    full: int
    base: int

    @property
    def trained(self) -> int:
        """All trained parameters."""
        return self.lora + self.heads + self.encoder + self.full


@dataclass(frozen=True)
class Memory:
    """Bytes: some computed from the shapes of tensors, two measured, and a predicted peak.

    Attributes:
        base: The base's weights.
        trained: Trained weights beside the base.
        kept: Copies: the best weights, their average if there is one and, in a full fine-tune, the base's old weights.
        optimizer: AdamW's two moments.
        evaluation: Of the largest evaluation batch, see `Evaluation`.
        step: Measured growth of peak memory over the first step: activations, gradients and the moments.
        process: Measured peak of the process, libraries included; on CUDA of the device.
    """

    base: int
    trained: int
    kept: int
    optimizer: int
    evaluation: int
    step: int
    process: int

    @property
    def peak(self) -> int:
        """The predicted peak of tensors: weights and copies, and a step or the moments beside an evaluation batch."""
        return self.base + self.trained + self.kept + max(self.step, self.optimizer + self.evaluation)


@dataclass(frozen=True)
class Evaluation:
    """All evaluation of a run: validation after every epoch, and the test part once.

    Attributes:
        seconds: Estimated at the pace of the largest batch, without metrics and their intervals.
        memory_bytes: Predicted for that batch from shapes: the tensors at the widest point of a layer, and the scores of the
            largest catalogue. Masks and what kernels need inside are not counted, nor what an allocator keeps.
    """

    seconds: float
    memory_bytes: int


def count_parameters(model: Recommender) -> Parameters:
    """Count a model's trained parameters by part."""
    lora = {name for name, _ in model.lora_parameters()}
    sizes = {"lora": 0, "heads": 0, "encoder": 0, "base": 0}
    for name, value in model.trainable().items():
        sizes["lora" if name in lora else name.split(".")[0]] += value.numel()
    whole = sum(_numbers(value) for value in _weights(model.base.model))
    return Parameters(sizes["lora"], sizes["heads"], sizes["encoder"], sizes["base"], whole)


def padded(rows: list[Row]) -> int:
    """Tokens of a batch, padding included."""
    return len(rows) * max(map(len, rows), default=0)


def timed(device: torch.device, work: Callable[[], object]) -> tuple[float, int]:
    """Do some work twice: the seconds of the second time, and by how many bytes the first one raised peak memory.

    Peak memory is that of the process (whose peak begins anew on Linux), and on an accelerator of the device.
    """
    reset_peak_memory(device)
    before = peak_memory_bytes(device)
    work()
    growth = max(peak_memory_bytes(device) - before, 0)  # a process may give memory back meanwhile
    wait = (lambda: None) if device.type in DIRECT else partial(torch.get_device_module(device).synchronize, device)
    wait()
    begun = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begun, growth


def evaluation_cost(loop: Loop) -> Evaluation:
    """Read one batch, the largest of validation and test, and scale it up to all evaluation of a run."""
    model, builder, train = loop.model, loop.assembly.builder, loop.train
    largest: list[Row] = []
    tokens = 0
    for part, times in (("valid", train.epochs), ("test", 1)):
        rows = builder.evaluation_rows(loop.assembly.split, PARTS[part], max_events=loop.recipe.data.max_events)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        batches = [[rows[i] for i in chosen] for chosen in plan_batches(lengths, 4 * train.batch_tokens)]
        tokens += times * sum(map(padded, batches))
        largest = max([largest, *batches], key=padded)
    if not largest:
        return Evaluation(0.0, 0)
    model.eval()
    begun = time.perf_counter()
    with torch.no_grad():
        tables = model.catalogue_tables()
        list(score_batch(model, largest, loop.all_labels, tables))  # which copies scores to the host
    seconds = time.perf_counter() - begun
    return Evaluation(seconds / padded(largest) * tokens, _batch_bytes(loop, largest, {k: len(v[0]) for k, v in tables.items()}))


def _batch_bytes(loop: Loop, rows: list[Row], catalogues: Mapping[str, int]) -> int:
    """Predicted bytes of an evaluation batch, at its most inside a gated MLP: three wide products, beside four states."""
    base = loop.assembly.base
    widest = max((getattr(module, "out_features", 0) for module in base.body.modules()), default=0)
    # The states: the embedded tokens, the layer's input, its sum with the attention's output, and that sum normed.
    tensors = padded(rows) * (4 * base.hidden_size + 3 * widest) * base.dtype.itemsize
    targets = count_targets(rows, loop.all_labels)
    scores = max((4 * items * min(targets[name], block_size(items)) for name, items in catalogues.items()), default=0)
    return tensors + scores


def memory(loops: list[Loop], evaluation: int, step: int) -> Memory:
    """The memory of runs on one base.

    Args:
        loops: The runs.
        evaluation: Bytes of the largest evaluation batch.
        step: By how many bytes a step, or a round of steps, raised peak memory.
    """
    base = loops[0].assembly.base
    weights = _bytes(_weights(base.model))
    trained = sum(_bytes(loop.parameters.values()) for loop in loops)
    beside = sum(_bytes(value for name, value in loop.parameters.items() if not name.startswith("base.")) for loop in loops)
    averages = sum(_bytes(loop.average.values.values()) for loop in loops)
    kept = trained + averages + (weights if loops[0].recipe.adapter.kind == "full" else 0)
    return Memory(weights, beside, kept, 2 * trained, evaluation, step, peak_memory_bytes(base.device))


def _weights(base: nn.Module) -> Iterable[Tensor]:
    """The base's own parameters, without those of layers that are attached to it."""
    return (value for name, value in base.named_parameters() if "lora_" not in name)


def _numbers(value: Tensor) -> int:
    """The number of parameters that a weight holds; 4-bit ones are packed."""
    state = getattr(value, "quant_state", None)
    return value.numel() if state is None else math.prod(state.shape)


def _bytes(values: Iterable[Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in values)
