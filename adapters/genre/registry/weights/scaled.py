"""An adapter with one rank and one scale for all linears, for programs that read no others.

Owns: s B A as A and s B of the largest rank, in float32. Ignores: files of any format. PEFT's
rank_pattern, alpha_pattern and use_rslora mean

    s = alpha / rank, or alpha / sqrt(rank), each of the linear's own
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from genre.registry.weights.lora import Adapter, LoraModule
from genre.registry.weights.tensors import read_array

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Update:
    """The update of one linear: A (rank, in), and s B (out, rank), whose product is added to the base's weight.

    The rank is the adapter's largest; smaller ones are filled up with zeros.
    """

    path: str
    a: Array
    b: Array


def scale_of(module: LoraModule, config: dict[str, Any]) -> float:
    """The factor of B A."""
    return module.alpha / (math.sqrt(module.rank) if config.get("use_rslora") else module.rank)


def is_uniform(adapter: Adapter) -> bool:
    """Return whether all linears have the config's rank and alpha, scaled as plain LoRA."""
    config = adapter.config
    return not config.get("use_rslora") and all(
        module.rank == config["r"] and module.alpha == float(config["lora_alpha"]) for module in adapter.modules
    )


def largest_rank(adapter: Adapter) -> int:
    """The rank of `uniform_updates`."""
    return max(module.rank for module in adapter.modules)


def uniform_updates(adapter: Adapter, file: Path) -> Iterator[Update]:
    """Yield each linear's update, from the weights in `file`."""
    rank = largest_rank(adapter)
    for module in adapter.modules:
        a, b = (read_array(file, tensor).astype(np.float32) for tensor in (module.a, module.b))
        scaled, missing = b * np.float32(scale_of(module, adapter.config)), rank - module.rank
        yield Update(module.path, np.pad(a, ((0, missing), (0, 0))), np.pad(scaled, ((0, 0), (0, missing))))
