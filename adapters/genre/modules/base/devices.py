"""Where a base's modules compute, and where their weights are, whether or not accelerate moves them.

Owns: reading accelerate's hooks. Ignores: loading, adapters.
"""

from typing import Any

import torch
from torch import Tensor, nn


def device_of(module: nn.Module) -> torch.device:
    """Where a module with a weight computes: where its weight is, or where accelerate brings it for the pass."""
    hook: Any = getattr(module, "_hf_hook", None)
    for each in getattr(hook, "hooks", (hook,)):
        if getattr(each, "execution_device", None) is not None:
            return torch.device(each.execution_device)
    weight: Any = module.weight
    return weight.device


def weight_of(module: nn.Module) -> Tensor:
    """A module's weight, read from where accelerate keeps it if it is offloaded."""
    weight: Any = module.weight
    if weight.device.type != "meta":
        return weight
    hook: Any = module._hf_hook
    held = next(each.weights_map for each in getattr(hook, "hooks", (hook,)) if getattr(each, "weights_map", None) is not None)
    return held["weight"]
