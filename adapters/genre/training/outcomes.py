"""The figures of a step, and the weights before it.

Owns: reading them, when they are looked at. Ignores: how a step is taken.

On an accelerator the host is a step ahead: the figures of a step are read once the next one has been given to the device, so that
it never waits for the host. What the step has changed by then can be taken back.
"""

import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from genre.data.sequences.layout import Sequence
from genre.data.sequences.transfer import Readback, upload
from genre.training.checks import GradientMonitor


class StepResult:
    """The outcome of one step; its figures are read from the device when they are first asked for.

    Args:
        tokens: Of its rows, without padding.
        counts: The number of targets of each task.
        weights: Of each task in the loss.
        found: (tasks + 2,) float32: each task's mean loss, the number of processes that were interrupted, and the norm of the
            gradient before clipping.
    """

    def __init__(self, tokens: int, counts: Mapping[str, int], weights: Mapping[str, float], found: Tensor) -> None:
        self.tokens = tokens
        self._counts = counts
        self._weights = weights
        self._found = Readback(found)

    @cached_property
    def _values(self) -> list[float]:
        return self._found.read().tolist()

    @property
    def targets(self) -> int:
        """The number of targets of all tasks."""
        return sum(self._counts.values())

    @property
    def losses(self) -> dict[str, tuple[float, int]]:
        """For each task its mean loss and its number of targets."""
        return {name: (mean, count) for (name, count), mean in zip(self._counts.items(), self._values, strict=False)}

    @property
    def loss(self) -> float:
        """The weighted sum of the tasks' mean losses."""
        return sum(self._weights[name] * mean for name, (mean, _) in self.losses.items())

    @property
    def interrupted(self) -> bool:
        """True if a process was interrupted."""
        return self._values[-2] > 0

    @property
    def norm(self) -> float:
        """The norm of the gradient before clipping."""
        return self._values[-1]

    @property
    def finite(self) -> bool:
        """True if every figure is."""
        return all(map(math.isfinite, self._values))


def mean_losses(parts: Mapping[str, tuple[Tensor, int]], share: Mapping[str, float]) -> Tensor:
    """(tasks,) float32: each task's mean loss times the share of a batch's targets that a micro-batch has."""
    values = torch.stack([value for value, _ in parts.values()])
    exact = torch.float64 if values.device.type == "cpu" else torch.float32
    return (values.to(exact) * upload(torch.tensor([share[name] for name in parts], dtype=exact), values.device)).float()


class Snapshot:
    """A copy of some parameters, one tensor per device."""

    @torch.no_grad()
    def __init__(self, parameters: Rows[nn.Parameter]) -> None:
        self._parameters: dict[torch.device, list[nn.Parameter]] = {}
        for parameter in parameters:
            self._parameters.setdefault(parameter.device, []).append(parameter)
        self._values = {device: torch.cat([each.reshape(-1) for each in own]) for device, own in self._parameters.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Give the parameters the values that they had."""
        for device, own in self._parameters.items():
            parts = self._values[device].split([parameter.numel() for parameter in own])
            for parameter, value in zip(own, parts, strict=True):
                parameter.copy_(value.view_as(parameter))


@dataclass
class _Step:
    """A step whose figures have not been looked at, and the weights before it if it has changed them already."""

    rows: list[Sequence]
    number: int
    result: StepResult
    before: Snapshot | None = None
    report: Callable[[], None] = field(default=lambda: None)


class StepChecks:
    """Looks at the figures of every step, at once or when the next one has been given to the device.

    Args:
        gradients: Checks gradient norms.
        parameters: The trained parameters.
        late: Look at a step after the next one has begun.
        run_again: Runs some rows forward and raises `DivergedError` for a loss that is not finite; None where each pass does so.
        warn: Called with a warning.

    Attributes:
        interrupted: True if a process was interrupted by the last step that was looked at.
    """

    def __init__(
        self,
        gradients: GradientMonitor,
        parameters: Rows[nn.Parameter],
        *,
        late: bool,
        run_again: Callable[[list[Sequence]], None] | None,
        warn: Callable[[str], None],
    ) -> None:
        self.gradients = gradients
        self.parameters = parameters
        self.late = late
        self.run_again = run_again
        self.warn = warn
        self.interrupted = False
        self._last: _Step | None = None

    def add(self, rows: list[Sequence], number: int, result: StepResult) -> None:
        """Take the figures of a step, before it changes the weights.

        Raises:
            DivergedError: A loss or a gradient, of this step or of the one before if that is looked at now, is not finite; the
                weights are those before that step, and the message names the sequences.
        """
        self.settle()
        step = _Step(rows, number, result)
        if self.late:
            step.before, self._last = Snapshot(self.parameters), step
        else:
            self._check(step)

    def report(self, report: Callable[[], None]) -> None:
        """Call a function once the figures of the last step have been looked at."""
        if self._last is None:
            report()
        else:
            self._last.report = report

    def settle(self) -> None:
        """Look at the figures of the last step if that has not been done; raises as `add` does."""
        step, self._last = self._last, None
        if step is not None:
            self._check(step)
            step.report()

    def _check(self, step: _Step) -> None:
        self.interrupted = step.result.interrupted
        if step.before is not None and not step.result.finite:
            step.before.restore()
        if self.run_again is not None and not step.result.finite:
            self.run_again(step.rows)
        if warning := self.gradients.check(step.result.norm, step.rows, step.number):
            self.warn(warning)
