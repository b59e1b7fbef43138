"""The moving average of a run's weights: what is validated, kept and published in the place of the last step's.

Owns: the average, and putting it in the weights' place for a while. Ignores: steps, what the weights are of.

    a ← d a + (1 - d) w  after each step,  d = min(decay, (1 + t) / (10 + t)) after t steps

So the average forgets its start in the first steps, and a short run's reaches back a tenth of it. Source: Polyak and Juditsky
1992; the decay's beginning is that of TensorFlow's ExponentialMovingAverage.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The average of some parameters.

    Args:
        parameters: What trains, by name.
        decay: In (0, 1); 0 for none, where everything here leaves the weights alone.

    Attributes:
        values: The average by the parameters' names, in float32 at least, since bfloat16 would round a step's share away; empty
            without one.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.values = {name: _wide(value).clone() for name, value in parameters.items()} if decay else {}

    @torch.no_grad()
    def take(self, step: int) -> None:
        """Take the weights after a step in, the first of which is 1 (mutates the average)."""
        if self.values:
            decay = min(self.decay, (1 + step) / (10 + step))
            weights = [self.parameters[name].to(value.dtype) for name, value in self.values.items()]
            torch._foreach_lerp_(list(self.values.values()), weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A block in which the parameters hold the average."""
        if not self.values:
            yield
            return
        own = {name: value.detach().clone() for name, value in self.parameters.items()}
        self._put(self.values)
        try:
            yield
        finally:
            self._put(own)

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from an average that `values` was (mutates)."""
        self.values = {name: value.clone() for name, value in values.items()}

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)


def _wide(value: Tensor) -> Tensor:
    return value.detach().to(torch.promote_types(value.dtype, torch.float32))
