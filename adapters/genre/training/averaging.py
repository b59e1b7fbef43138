"""The moving average of a run's weights, which is validated, kept and published instead of the last step's weights.

Owns: the average, and swapping it in for a while. Ignores: steps, what the weights are of.

    a ← d a + (1 - d) w  after each step,  d = min(decay, (1 + t) / (10 + t)) after t steps

So the average forgets its start in the first steps, and a short run's reaches back a tenth of it. Source: Polyak and Juditsky
1992; the decay's beginning is that of TensorFlow's ExponentialMovingAverage.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The average of some parameters.

    Args:
        parameters: The trained parameters, by name.
        decay: In (0, 1); 0 for none, where everything here leaves the weights alone.

    Attributes:
        values: The average by the parameters' names, in float32 at least, since bfloat16 would round a step's share away; empty
            without one.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.values: dict[str, Tensor] = {}
        if decay:
            wide = {name: torch.promote_types(value.dtype, torch.float32) for name, value in parameters.items()}
            self.values = {name: value.detach().to(wide[name], copy=True) for name, value in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after a step to the average; steps count from 1."""
        if self.values:
            weights = [self.parameters[name].to(value.dtype) for name, value in self.values.items()]
            decay = min(self.decay, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(decay)(list(self.values.values()), weights, step)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A block in which the parameters hold the average."""
        if not self.values:
            yield
            return
        own = {name: value.detach().clone() for name, value in self.parameters.items()}
        copy_into(self.parameters, self.values)
        try:
            yield
        finally:
            copy_into(self.parameters, own)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Replace the average by one of a checkpoint."""
        self.values = {name: value.to(self.parameters[name].device, copy=True) for name, value in values.items()}


@torch.no_grad()
def copy_into(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Overwrite parameters by name."""
    for name, value in values.items():
        parameters[name].copy_(value)
