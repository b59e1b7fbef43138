"""From a loss to changed weights; every process holds all gradients and the whole optimizer.

Owns: backward passes, the sum of gradients over processes, clipping, AdamW and its learning rate. Ignores: what the loss is of,
when a step is due.

    for loss in losses:                # a process may have none
        optimization.backward(loss)
    extra = optimization.all_reduce(extra)
    norm = optimization.clip()         # nothing has changed yet
    optimization.step(learning_rate(train, progress))
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genre.distributed import Processes
from genre.recipe import TrainConfig


def learning_rate(train: TrainConfig, progress: float) -> float:
    """Linear warm-up from a twentieth, then linear decay to a tenth; `progress` is the share of the run done, in [0, 1]."""
    if progress < train.warmup:
        return train.learning_rate * max(progress / train.warmup, 0.05)
    return train.learning_rate * (1 - 0.9 * (progress - train.warmup) / (1 - train.warmup))


class Optimization:
    """Steps of one optimizer.

    Args:
        accelerator: accelerate's.
        processes: The processes.
        parameters: The trained parameters; the same in each process, and mutated by `step`.
        train: Learning rate, weight decay and the bound of the gradient's norm.

    Attributes:
        optimizer: AdamW as accelerate wraps it.
    """

    def __init__(self, accelerator: Any, processes: Processes, parameters: Sequence[nn.Parameter], train: TrainConfig) -> None:
        self.accelerator = accelerator
        self.processes = processes
        self.parameters = parameters
        self.max_norm = train.clip
        adamw = torch.optim.AdamW(parameters, lr=train.learning_rate, weight_decay=train.weight_decay)
        self.optimizer = accelerator.prepare_optimizer(adamw)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a micro-batch to that of the step."""
        self.accelerator.backward(loss)

    @torch.no_grad()
    def all_reduce(self, extra: Tensor) -> Tensor:
        """Sum the gradients over processes in one exchange, where a missing one counts as zero.

        Args:
            extra: (k,) float32 further numbers to sum.

        Returns:
            (k,) their sums.
        """
        if self.processes.count == 1:
            return extra
        own = [torch.zeros_like(value) if value.grad is None else value.grad for value in self.parameters]
        flat = torch.cat([*(value.reshape(-1).float() for value in own), extra.to(own[0].device)])
        *sums, extra = self.processes.all_reduce(flat).split([*(value.numel() for value in own), len(extra)])
        for value, total in zip(self.parameters, sums, strict=True):
            value.grad = total.view_as(value).to(value.dtype)
        return extra

    def clip(self) -> Tensor:
        """Bound the gradient's norm by `train.clip`; return the norm before that, (), infinite or NaN if the gradient is."""
        norm: Tensor = self.accelerator.clip_grad_norm_(list(self.parameters), self.max_norm)
        return norm

    def step(self, rate: float) -> None:
        """Change the weights, and drop the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.zero_grad()

    def restart(self) -> None:
        """Forget the moments of earlier steps, which are of weights that were replaced."""
        self.optimizer.state.clear()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=True)
