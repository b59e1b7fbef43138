"""From a loss to changed weights; every process holds all gradients and the whole optimizer.

Owns: backward passes, adding gradients up over processes, clipping, AdamW's step and its state. Ignores: what the loss is of,
when a step is due.

    for loss in losses:            # a process may have none
        updates.backward(loss)
    told = updates.add_up(told)
    norm = updates.clip()          # nothing has changed yet
    updates.step(rate)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genre.distributed import Processes
from genre.recipe import TrainConfig
from genre.training.micro_batches import add_up


class Updates:
    """Steps of one optimizer on parameters that each process holds whole.

    Args:
        accelerator: accelerate's.
        processes: The processes.
        parameters: What trains; the same in each process, and mutated by `step`.
        train: Learning rate, weight decay and the bound of the gradient's norm.

    Attributes:
        optimizer: AdamW as accelerate wraps it.
    """

    def __init__(self, accelerator: Any, processes: Processes, parameters: Sequence[nn.Parameter], train: TrainConfig) -> None:
        self.accelerator, self.processes, self.parameters, self.bound = accelerator, processes, parameters, train.clip
        adamw = torch.optim.AdamW(parameters, lr=train.learning_rate, weight_decay=train.weight_decay)
        self.optimizer = accelerator.prepare_optimizer(adamw)

    def backward(self, loss: Tensor) -> None:
        """Add a piece's gradient to what the step has so far."""
        self.accelerator.backward(loss)

    def add_up(self, told: Tensor) -> Tensor:
        """Add up the gradients of all processes, and (k,) float32 further numbers; these, on the CPU."""
        return add_up(self.processes, self.parameters, told)

    def clip(self) -> float:
        """Bound the gradient's norm by `train.clip`; the norm before that, infinite or not a number if the gradient is."""
        return float(self.accelerator.clip_grad_norm_(list(self.parameters), self.bound))

    def step(self, rate: float) -> None:
        """Change the weights, and forget the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.forget()

    def forget(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """AdamW's state dict."""
        found: dict[str, Any] = self.optimizer.state_dict()
        return found

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state dict, and from the parameters' present values."""
        self.optimizer.load_state_dict(state)
