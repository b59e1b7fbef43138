"""Layers that are run again in the backward pass: only their inputs are kept, for less memory and more time.

Owns: the switch that transformers' layers have for it.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from genre.errors import BaseModelError


@contextmanager
def recomputing(body: nn.Module, name: str) -> Iterator[None]:
    """A block in which a base's layers keep their inputs only, and run again in the backward pass.

    The layers ask for it by a flag, and look at it only while they train; their parts stay in evaluation.

    Args:
        body: A stack of transformers' layers.
        name: The base's, for messages.

    Raises:
        BaseModelError: The layers cannot be run again.
    """
    from torch.utils.checkpoint import checkpoint
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[Any] = [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise BaseModelError(
            f"the layers of base {name!r} cannot be run again", got=type(body).__name__,
            expected="layers that transformers can checkpoint", todo="set train.checkpoint_activations: false",
        )  # fmt: skip
    again: Any = functools.partial(checkpoint, use_reentrant=False)

    for layer in layers:
        layer._gradient_checkpointing_func = again
        layer.gradient_checkpointing, layer.training = True, True
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing, layer.training = False, False
