"""The transformers model of a base: loaded, cut, frozen, with the parts that a CPU is quickest with.

Owns: quantization, depth, precision, where weights are, which models' layers are known part by part. Ignores: where a base comes
from (`genre.modules.base.source`), adapters, what runs through it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genre.errors import BaseModelError, first_line
from genre.modules.base.fused_layers import fuse_layers
from genre.modules.base.kinds import EAGER
from genre.modules.base.quiet import quiet
from genre.modules.base.source import is_encoder
from genre.unpromised import execution_device

Quantization = Literal["none", "int8", "nf4"]

IN_PARTS = ("llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Model types of layers, rotary positions, a final norm, and nothing between."""


def cut_layers(name: str, config: Any, depth: int | None) -> int:
    """Leave the first `depth` layers in a configuration, all if None (mutates it); the number that the base has on disk.

    Raises:
        BaseModelError: It has no layers, or fewer.
    """
    full_depth: int | None = getattr(config, "num_hidden_layers", None)
    if full_depth is None:
        raise BaseModelError(f"base {name!r} has no stack of layers", got=config.model_type, expected="a GPT-kind model")
    if depth is not None and not 1 <= depth <= full_depth:
        raise BaseModelError("depth is out of range", got=depth, expected=f"1 to {full_depth} for base {name!r}")
    config.num_hidden_layers = depth or full_depth
    if len(getattr(config, "layer_types", None) or ()) > config.num_hidden_layers:
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    return full_depth


def load_model(
    name: str,
    folder: Path,
    config: Any,
    quantization: Quantization,
    device: str,
    dtype: torch.dtype | None,
    device_map: Mapping[str, str | int] | None,
    offload_folder: str | Path | None,
) -> Any:
    """Load and freeze the model in a folder, as `config` describes it; for the other arguments and errors see `Base.load`."""
    from transformers import AutoModel, AutoModelForCausalLM

    if device_map is not None:
        device = "cpu" if {str(each) for each in device_map.values()} <= {"cpu", "disk"} else "cuda"
    precision = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    encoder = is_encoder(config)
    kind: Any = AutoModel if encoder else AutoModelForCausalLM
    with quiet():
        try:
            model = kind.from_pretrained(
                folder,
                config=config,
                dtype=precision,
                device_map=dict(device_map) if device_map else "auto" if device == "auto" else {"": device},
                offload_folder=offload_folder,
                quantization_config=_bits(quantization, device),
                attn_implementation=None if encoder else "eager" if config.model_type in EAGER else "sdpa",
            )
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            reason = first_line(error)
            if "does not support an attention implementation" in reason:
                reason = f"{config.model_type}, whose attention is its own and takes no mask for branches"
            raise BaseModelError(f"base {name!r} cannot be loaded", got=reason) from None
    for module in model.modules():  # bitsandbytes would repack nf4 weights for a CPU kernel that passes no gradient
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    embedding = model.get_input_embeddings()
    place = execution_device(embedding)
    if place is not None and not embedding.weight.is_meta and torch.device(place) != embedding.weight.device:
        got, todo = f"{place} and {embedding.weight.device}", "name one device for both"
        raise BaseModelError(f"base {name!r} ties its embeddings, which the device map parts", got=got, todo=todo)
    whole = device == "cpu" and device_map is None  # accelerate moves nothing of it between devices
    if whole and precision in (torch.float32, torch.bfloat16) and config.model_type in IN_PARTS:
        fuse_layers(model)
    model.eval()
    model.requires_grad_(False)
    return model


def device_of(module: nn.Module) -> torch.device:
    """The device on which a module computes: that of its weight, or that which accelerate moves it to for the pass."""
    weight: Any = module.weight
    return torch.device(execution_device(module) or "cpu") if weight.is_meta else weight.device


def weight_of(module: nn.Module) -> Tensor:
    """A module's weight; read to the CPU if it is offloaded."""
    from accelerate.utils import align_module_device, has_offloaded_params

    with align_module_device(module, torch.device("cpu") if has_offloaded_params(module) else None):
        weight: Any = module.weight
    return weight


def _bits(quantization: Quantization, device: str) -> Any:
    if quantization == "none":
        return None
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if device != "cpu" and torch.cuda.is_available() else torch.float32,
    )
