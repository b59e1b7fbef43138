"""Checks before the first step, of every gradient, at every checkpoint and after the last step.

Owns: these, and naming the rows that are to blame. Ignores: what is done about a failure.
"""

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor, nn

from genre.data.sequences.layout import Sequence
from genre.errors import DivergedError, JobError
from genre.training.assembly import Assembly
from genre.training.runtime import same_random_states

SPIKE = 100.0
"""Warn when the gradient norm exceeds this multiple of its running median, naming the worst sequence."""


def check_trainable(assembly: Assembly, parameters: dict[str, nn.Parameter]) -> None:
    """Check that exactly the adapter's parameters (and those of an encoder that is being fitted) train."""
    kind = assembly.recipe.adapter.kind
    allowed = tuple(["heads."] + (["encoder."] if assembly.fits_encoder else []) + (["base."] if kind == "full" else []))
    lora = dict(assembly.model.lora_parameters())
    stray = [name for name in parameters if name not in lora and not name.startswith(allowed)]
    if stray or not parameters or (kind in ("lora", "rslora") and not lora):
        raise JobError("the wrong parameters train", got=stray[:5] or "none", expected=f"those of a {kind} adapter")


def check_finite(parameters: Mapping[str, Tensor], step: int) -> None:
    """Check that every weight is a number, before a checkpoint is written, so that the last good one stays.

    Raises:
        DivergedError: The message names the weight.
    """
    finite = _numbers([torch.isfinite(value).all() for value in parameters.values()])
    for name, every in zip(parameters, finite, strict=True):
        if not every:
            todo = "lower train.learning_rate; the last checkpoint is intact"
            raise DivergedError(f"weight {name} is not finite after step {step}", todo=todo)


def checksums(parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """A number per parameter that a step changes."""
    return dict(zip(parameters, _numbers([value.detach().float().sum() for value in parameters.values()]), strict=True))


def _numbers(values: Rows[Tensor]) -> list[float]:
    """Some scalars, read from a device all at once."""
    devices = {value.device for value in values}
    there = values if len(devices) < 2 else [value.cpu() for value in values]
    return torch.stack(list(there)).tolist() if there else []


def check_trained(parameters: Mapping[str, Tensor], start: Mapping[str, float]) -> None:
    """Check after the last step that every part of the adapter's update has changed since its checksum was taken."""
    still = [name for name, value in checksums(parameters).items() if value == start[name]]
    if len(still) == len(parameters) or any(name.endswith("lora_B") for name in still):
        raise DivergedError("weights did not change in training", got=still[:3], expected="a gradient in every low-rank layer")


class GradientMonitor:
    """Checks the gradient norm of every step.

    Args:
        assembly: The run, to name its rows.
        row_norms: The gradient norms of rows, each by itself; costs a pass per row, so it is called in a failure only.

    Attributes:
        norms: The last ones.
    """

    def __init__(self, assembly: Assembly, row_norms: Callable[[list[Sequence]], list[float]]) -> None:
        self.assembly = assembly
        self.row_norms = row_norms
        self.norms: deque[float] = deque(maxlen=50)

    def check(self, norm: float, rows: list[Sequence], step: int) -> str | None:
        """Note the norm, before clipping, of a step on some rows; a warning if it is a spike.

        Raises:
            DivergedError: It is not finite; the message names the sequences.
        """
        if not math.isfinite(norm):
            bad = [row for row, own in zip(rows, self.row_norms(rows), strict=True) if not math.isfinite(own)]
            names = name_rows(self.assembly, bad) if bad else "alone, each sequence has a finite one"
            advice = "look at them, or lower train.learning_rate; the last checkpoint is intact"
            todo = f"{len(bad)} of {len(rows)} sequences: {names}; {advice}"
            raise DivergedError(f"a gradient is not finite at step {step}", got=norm, todo=todo)
        usual = statistics.median(self.norms) if len(self.norms) >= 20 else math.inf
        self.norms.append(norm)
        clip = self.assembly.recipe.train.clip
        if norm <= max(clip, SPIKE * usual):
            return None
        worst = rows[int(np.nanargmax(self.row_norms(rows)))]
        return (
            f"step {step}: the gradient's norm is {norm:.3g}, {norm / usual:,.0f} times the usual, and is cut to {clip:g}; "
            f"the largest comes from {name_rows(self.assembly, [worst])}"
        )


def gradient_norms(
    loss_of: Callable[[list[Sequence]], Tensor], rows: Rows[Sequence], parameters: Mapping[str, nn.Parameter]
) -> list[float]:
    """The norm of each row's own gradient; NaN where its loss or gradient is not finite. Costs a pass per row.

    Torch's random numbers and the parameters' gradients are left as they were.
    """
    norms = []
    values = list(parameters.values())
    with same_random_states({value.device for value in values}):
        for row in rows:
            try:
                found = torch.autograd.grad(loss_of([row]), values, allow_unused=True)
            except DivergedError:
                norms.append(math.nan)
                continue
            norms.append(math.sqrt(sum(float(each.float().square().sum()) for each in found if each is not None)))
    return norms


def name_rows(assembly: Assembly, rows: Rows[Sequence]) -> str:
    """Name rows by their first target: "the sequence of row 17 (user u3, item i5) and 2 more"."""
    first = [int(row.events[row.targets][0]) for row in rows if row.targets.any()]
    return f"the sequence of {assembly.model.name_events(first)}" if first else "sequences without targets"
