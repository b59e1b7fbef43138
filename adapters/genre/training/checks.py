"""What must hold before the first step, at every checkpoint and after the last; which rows are to blame when it does not."""

import math
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Rows

import torch
from torch import Tensor, nn

from genre.data.sequences.layout import Sequence
from genre.errors import DivergedError, JobError
from genre.training.assembly import Assembly


def check_trainable(assembly: Assembly, parameters: dict[str, nn.Parameter]) -> None:
    """Exactly the adapter's parameters (and those of an encoder that is being fitted) train."""
    kind = assembly.recipe.adapter.kind
    allowed = tuple(["heads."] + (["encoder."] if assembly.fits_encoder else []) + (["base."] if kind == "full" else []))
    lora = dict(assembly.model.lora_parameters())
    stray = [name for name in parameters if name not in lora and not name.startswith(allowed)]
    if stray or not parameters or (kind in ("lora", "rslora") and not lora):
        raise JobError("the wrong parameters train", got=stray[:5] or "none", expected=f"those of a {kind} adapter")


def check_finite(parameters: Mapping[str, Tensor], step: int) -> None:
    """Every weight is a number; asked before a checkpoint is written, so that the last good one stays.

    Raises:
        DivergedError: The message names the weight.
    """
    for name, value in parameters.items():
        if not torch.isfinite(value).all():
            raise DivergedError(
                f"weight {name} is not finite after step {step}",
                todo="lower train.learning_rate; the last checkpoint is intact",
            )


def check_trained(parameters: dict[str, nn.Parameter], start: dict[str, float]) -> None:
    """After the last step every part of the adapter's update is not what it started as."""
    still = [name for name, value in parameters.items() if float(value.detach().float().sum()) == start[name]]
    if len(still) == len(parameters) or any(name.endswith("lora_B") for name in still):
        raise DivergedError("weights did not change in training", got=still[:3], expected="a gradient in every low-rank layer")


def gradient_norms(
    loss_of: Callable[[list[Sequence]], Tensor], rows: Rows[Sequence], parameters: Mapping[str, nn.Parameter]
) -> list[float]:
    """The norm of each row's own gradient; not a number where its loss or gradient is none. Costs a pass per row.

    Torch's random numbers and the parameters' gradients are left as they were.
    """
    norms = []
    values = list(parameters.values())
    with torch.random.fork_rng(devices=sorted({value.device.index for value in values if value.device.type == "cuda"})):
        for row in rows:
            try:
                found = torch.autograd.grad(loss_of([row]), values, allow_unused=True)
            except DivergedError:
                norms.append(math.nan)
                continue
            norms.append(math.sqrt(sum(float(each.float().square().sum()) for each in found if each is not None)))
    return norms


def name_rows(assembly: Assembly, rows: Rows[Sequence]) -> str:
    """Name rows by their first supervised event: "the sequence of row 17 (user u3, item i5) and 2 more"."""
    first = [int(row.events[row.targets][0]) for row in rows if row.targets.any()]
    return f"the sequence of {assembly.model.name_events(first)}" if first else "sequences without targets"
