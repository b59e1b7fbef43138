"""The frozen base sharded over processes: each holds a part of every layer, and gathers a whole layer while it runs.

Owns: what is sharded (FSDP2's `fully_shard`, layer by layer), launches that are refused. Ignores: gradients and the adapter,
which every process holds whole: they are small, and `genre.training.optimization` sums gradients.

    accelerate launch --config_file recipes/accelerate/fsdp2.yaml -m genre train recipes/like.yaml

Gathering is an exchange, so every process must run the base as often as the others: `Base.sharded`.
"""

import os
from collections.abc import Iterable
from typing import Any

from torch import nn

from genre.distributed import Processes, process_count
from genre.errors import InputError, RecipeError
from genre.modules.recommender import Recommender
from genre.recipe import Recipe


def check_launch(recipe: Recipe) -> None:
    """Check that a recipe can train the way it was launched.

    Raises:
        InputError: accelerate was configured for something that does not train here.
        RecipeError: The base's weights cannot be spread.
    """
    if _flag("ACCELERATE_USE_DEEPSPEED", default=False):
        raise InputError(
            "DeepSpeed is not supported",
            got="an accelerate launch with DeepSpeed",
            expected="plain data parallel, or FSDP2 to shard the base",
            todo="use recipes/accelerate/ddp_gpu.yaml or fsdp2.yaml",
        )
    if process_count() < 2 or not _requested():
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise InputError("only FSDP2 shards a base", got="fsdp_version 1", expected="fsdp_version: 2")
    if recipe.adapter.kind == "full":
        raise RecipeError("a full fine-tune does not train under FSDP2", got="adapter.kind full", todo="use plain data parallel")
    if recipe.generates:
        what = "a base that FSDP2 shards does not search: beams of one process would wait for the others'"
        raise RecipeError(what, got="head generate", expected="other heads", todo="use plain data parallel")
    if recipe.base.quantization != "none":
        got, todo = f"base.quantization {recipe.base.quantization}", "use plain data parallel: a quantized base is small"
        raise RecipeError("FSDP2 does not shard a quantized base", got=got, expected="none", todo=todo)


def shard_base(model: Recommender, trained: Iterable[nn.Parameter], processes: Processes) -> str | None:
    """Under an FSDP2 launch, shard the base's layers over the processes (mutates the base, for good).

    Returns:
        A report of it; None for any other launch.
    """
    if processes.count == 1 or not _requested():
        return None
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    base: Any = model.base
    mesh, whole = init_device_mesh(base.device.type, (processes.count,)), set(trained)
    for layer in _layers(base.body):
        own = {value for value in layer.parameters() if value in whole}
        fully_shard(layer, mesh=mesh, ignored_params=own, reshard_after_forward=_flag("FSDP_RESHARD_AFTER_FORWARD", default=True))
    held = [value for value in base.body.parameters() if value not in whole]
    mine = sum(getattr(value, "to_local", lambda value=value: value)().numel() for value in held)
    return f"FSDP2: a process holds {mine:,} of the base's {sum(value.numel() for value in held):,} numbers"


def _layers(body: nn.Module) -> Iterable[nn.Module]:
    """The stack of layers: the longest list of modules."""
    return max((module for module in body.modules() if isinstance(module, nn.ModuleList)), key=len)


def _requested() -> bool:
    return _flag("ACCELERATE_USE_FSDP", default=False)


def _flag(name: str, *, default: bool) -> bool:
    return os.environ.get(name, str(default)).lower() == "true"
