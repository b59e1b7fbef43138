"""Activation checkpointing of a base's layers.

Owns: which layers keep only their inputs, the block in which they do. Ignores: what runs within a layer's pass.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from torch import nn

from genre.errors import BaseModelError
from genre.unpromised import checkpointed


@contextmanager
def checkpointing(body: nn.Module, name: str, around: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """A block in which a base's layers keep only their inputs for the backward pass, and run again in it.

    Args:
        body: The stack of layers.
        name: The base's, for messages.
        around: Opens a block around each pass of a layer, the first one and the one in the backward pass.

    Raises:
        BaseModelError: The layers cannot be run again.
    """
    from torch.utils.checkpoint import checkpoint
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise BaseModelError(
            f"the layers of base {name!r} cannot be run again",
            got=type(body).__name__,
            expected="layers that transformers can checkpoint",
            todo="set train.checkpoint_activations: false",
        )
    with checkpointed(layers, partial(checkpoint, use_reentrant=False, context_fn=lambda: (around(), around()))):
        yield
