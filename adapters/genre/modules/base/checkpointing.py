"""Layers that are run again in the backward pass: only their inputs are kept, for less memory and more time.

Owns: the switch that transformers' layers have for it. Ignores: what is read of their output.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from genre.errors import BaseModelError


@contextmanager
def recomputing(body: nn.Module, name: str, reading: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """A block in which a base's layers keep their inputs only, and run again in the backward pass.

    The layers ask for it by a flag, and look at it only while they train; their parts stay in evaluation.

    Args:
        body: A stack of transformers' layers.
        name: The base's, for messages.
        reading: Makes the block that the last layer runs in, both times: its MLP may see some tokens only.

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

    def narrowly(layer: Any, *given: Any) -> Any:
        def part(*given: Any) -> Any:
            with reading():
                return layer(*given)

        return again(part, *given)

    for number, layer in enumerate(layers, start=1):
        layer._gradient_checkpointing_func = narrowly if number == len(layers) else again
        layer.gradient_checkpointing, layer.training = True, True
    try:
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing, layer.training = False, False
