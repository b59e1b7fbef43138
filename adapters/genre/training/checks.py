"""What must hold before the first step and after the last: the right parameters train, and they moved."""

import torch
from torch import nn

from genre.assembly import Assembly
from genre.errors import DivergedError, JobError


def check_trainable(assembly: Assembly, parameters: dict[str, nn.Parameter]) -> None:
    """Exactly the adapter's parameters (and those of an encoder that is being fitted) train."""
    kind = assembly.recipe.adapter.kind
    allowed = tuple(["heads."] + (["encoder."] if assembly.fits_encoder else []) + (["base."] if kind == "full" else []))
    lora = dict(assembly.model.lora_parameters())
    stray = [name for name in parameters if name not in lora and not name.startswith(allowed)]
    if stray or not parameters or (kind in ("lora", "rslora") and not lora):
        raise JobError("the wrong parameters train", got=stray[:5] or "none", expected=f"those of a {kind} adapter")


def check_trained(parameters: dict[str, nn.Parameter], start: dict[str, float]) -> None:
    """After the last step every part of the adapter is finite, and its update is not what it started as."""
    for name, value in parameters.items():
        if not torch.isfinite(value).all():
            raise DivergedError(f"weight {name} is not finite after training", todo="lower train.learning_rate")
    still = [name for name, value in parameters.items() if float(value.detach().float().sum()) == start[name]]
    if len(still) == len(parameters) or any(name.endswith("lora_B") for name in still):
        raise DivergedError("weights did not change in training", got=still[:3], expected="a gradient in every low-rank layer")
