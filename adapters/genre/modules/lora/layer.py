"""Low-rank layers: y = x (W + s B A)ᵀ, attached to a base and taken off again.

Owns: which linears are adapted, the trainable layer (fused where the base is in full precision), several of them on one linear
for packed batches, PEFT's file format in and out. Ignores: tasks, paths, HTTP, serving (`genre.modules.lora.slots`).

    >>> import torch
    >>> layer = LoraLinear(torch.nn.Linear(4, 3), rank=2, scale=2.0)
    >>> bool((layer(torch.ones(1, 4)) == layer.base(torch.ones(1, 4))).all())  # B starts at 0: the base itself
    True

Source: Hu et al., LoRA (2021), equation 3; the scale alpha / sqrt(rank) is Kalajdzievski, rsLoRA (2023).
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from genre.errors import BaseModelError, ManifestError
from genre.modules.lora.products import AddUpdate, FusedLora

PEFT_PREFIX = "base_model.model."


class LoraLinear(nn.Module):
    """A frozen linear with one trainable low-rank update.

    Shapes: x (…, in) → (…, out); `lora_A` (rank, in), `lora_B` (out, rank), both float32 whatever the base's precision.

    Attributes:
        base: The frozen linear: `nn.Linear`, transformers' `Conv1D`, or a bitsandbytes linear.
        scale: alpha / rank, or alpha / sqrt(rank).
    """

    def __init__(self, base: nn.Module, *, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base
        self.scale = scale
        self.rank = rank
        in_features, out_features = linear_shape(base)
        device: Any = base.weight.device
        self.lora_A = nn.Parameter(torch.empty(rank, in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(out_features, rank, device=device))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.dropout = nn.Dropout(dropout)
        self.fused = type(base) is nn.Linear and dropout == 0

    def forward(self, x: Tensor) -> Tensor:
        """The base's product plus the update's."""
        a, b = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        if self.fused and x.shape[:-1].numel() >= 4 * self.rank:
            spans = [(0, x.shape[:-1].numel(), 0, self.scale)]
            return FusedLora.apply(x, self.base.weight, self.base.bias, spans, a, b)
        return AddUpdate.apply(self.base(x), self.dropout(x), a, b, self.scale)


@dataclass
class PackedSpans:
    """The runs whose tokens make up a packed batch, in training; mutated before each pass.

    Attributes:
        spans: (adapter slot, first token, end) in order, each slot once, together all tokens.
        drawing: The block in which a slot's run draws its random numbers.
        read: The spans among the tokens that are read, which are fewer, where a linear gets only these; empty if it gets all.
    """

    spans: tuple[tuple[int, int, int], ...] = ()
    drawing: Callable[[int], AbstractContextManager[None]] = lambda slot: nullcontext()
    read: tuple[tuple[int, int, int], ...] = ()

    def of(self, tokens: int) -> tuple[tuple[int, int, int], ...]:
        """The spans of an input of so many tokens."""
        return self.read if self.read and tokens < self.spans[-1][2] else self.spans


class PackedLora(nn.Module):
    """A frozen linear with one trainable low-rank update per adapter slot; each slot's tokens are a slice of a packed batch.

    What a slot's tokens give, and the gradient of its update, is what its own `LoraLinear` gives on them alone. The
    updates may differ in rank, scale and dropout, and a slot may have none here.

    Shapes: x (…, in) with T tokens in all → (…, out).

    Attributes:
        base: The frozen linear.
        updates: The layer of each slot that adapts this linear; not submodules, since each belongs to a run.
        packed: The slots' tokens.
    """

    def __init__(self, base: nn.Module, updates: Mapping[int, LoraLinear], packed: PackedSpans) -> None:
        super().__init__()
        self.base = base
        self.updates = dict(updates)
        self.packed = packed
        self.int8 = type(base).__name__ == "Linear8bitLt"

    def forward(self, x: Tensor) -> Tensor:
        """The base's product plus each slice's own update."""
        flat = x.reshape(-1, x.shape[-1])
        spans = self.packed.of(len(flat))
        here = {slot: self.updates[slot] for slot, _, _ in spans if slot in self.updates}
        if not here:
            return self._product(flat).view(*x.shape[:-1], -1)
        if len(spans) == 1 and (only := next(iter(here.values()))).fused:
            return only(x)
        if all(layer.fused for layer in here.values()):
            index = {slot: 2 * number for number, slot in enumerate(here)}
            scale = {slot: layer.scale for slot, layer in here.items()}
            slices = [(start, stop, index.get(slot, -1), scale.get(slot, 0.0)) for slot, start, stop in spans]
            pairs = [part.to(x.dtype) for layer in here.values() for part in (layer.lora_A, layer.lora_B)]
            return FusedLora.apply(x, self.base.weight, self.base.bias, slices, *pairs)
        y = self._product(flat)
        return torch.cat([self._updated(*span, flat, y) for span in spans]).view(*x.shape[:-1], -1)

    def _product(self, flat: Tensor) -> Tensor:
        """(T, in) → (T, out) of the bare linear.

        An 8-bit one rounds its inputs by columns of the whole batch unless it is in training, as it is where it is adapted:
        so each slice goes alone, in the mode that it has in its own run.
        """
        if not self.int8:
            return self.base(flat)
        found = []
        for slot, start, stop in self.packed.spans:
            self.base.train(slot in self.updates)
            found.append(self.base(flat[None, start:stop])[0])
        return torch.cat(found)

    def _updated(self, slot: int, start: int, stop: int, flat: Tensor, y: Tensor) -> Tensor:
        """One slice of the bare linear's product, with its slot's update if that has one here."""
        layer, own = self.updates.get(slot), flat[start:stop]
        if layer is None:
            return y[start:stop]
        if layer.dropout.p > 0:
            with self.packed.drawing(slot):
                own = layer.dropout(own)
        return AddUpdate.apply(y[start:stop], own, layer.lora_A.to(own.dtype), layer.lora_B.to(own.dtype), layer.scale)


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear, whichever library it comes from."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    rows, columns = module.weight.shape  # type: ignore[misc]  # transformers' Conv1D keeps (in, out)
    return int(rows), int(columns)


def is_linear(module: nn.Module) -> bool:
    """Return whether LoRA can go on a module: `nn.Linear` and its quantized kinds, or transformers' `Conv1D`."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def layer_of(name: str) -> int | None:
    """The number of the layer that a linear is in: 3 for `model.layers.3.mlp.up_proj`; None outside of the layers."""
    match = re.search(r"\.(\d+)\.", name)
    return int(match[1]) if match else None


def find_linears(
    model: nn.Module, targets: Literal["all-linear"] | Iterable[str], layers: Literal["all"] | Iterable[int] = "all"
) -> list[str]:
    """Names of the linears inside the base's layers that `targets` and `layers` choose, in the model's order.

    Raises:
        BaseModelError: A target or a layer names nothing.
    """
    found = [
        (name, layer) for name, module in model.named_modules() if is_linear(module) and (layer := layer_of(name)) is not None
    ]
    wanted = None if targets == "all-linear" else set(targets)
    depth = 1 + max((layer for _, layer in found), default=-1)
    indices = set(range(depth)) if layers == "all" else {i + depth if i < 0 else i for i in layers}
    if stray := sorted(i for i in indices if not 0 <= i < depth):
        raise BaseModelError("adapter.layers names layers that the base does not have", got=stray, expected=f"0 to {depth - 1}")
    ends = {name.rsplit(".", 1)[-1] for name, _ in found}
    if wanted is not None and (missing := sorted(wanted - ends)):
        raise BaseModelError("adapter.targets names no linear of the base", got=missing, expected=", ".join(sorted(ends)))
    return [name for name, layer in found if layer in indices and (wanted is None or name.rsplit(".", 1)[-1] in wanted)]


def attach(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put a layer in the place of each named linear, which it holds as `base` (mutates the model); `detach` undoes it."""
    for name, layer in layers.items():
        model.set_submodule(name, layer)


def detach(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put the bare linears back (mutates the model)."""
    for name, layer in layers.items():
        model.set_submodule(name, layer.base)  # type: ignore[arg-type]


def to_peft(layers: Mapping[str, LoraLinear]) -> dict[str, Tensor]:
    """The update's weights under the names of PEFT's `adapter_model.safetensors`, contiguous float32 on the CPU."""
    return {
        f"{PEFT_PREFIX}{name}.{part}.weight": getattr(layer, part).detach().float().cpu().contiguous()
        for name, layer in layers.items()
        for part in ("lora_A", "lora_B")
    }


def peft_config(
    names: Iterable[str],
    *,
    base: str,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    rslora: bool = False,
    conv1d: bool = False,
    encoder: bool = False,
) -> dict[str, Any]:
    """`adapter_config.json` as stock PEFT reads it; targets are whole module names, so that no other linear matches."""
    return {
        "peft_type": "LORA",
        "task_type": "FEATURE_EXTRACTION" if encoder else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": sorted(names),
        "use_rslora": rslora,
        "fan_in_fan_out": conv1d,
        "bias": "none",
        "inference_mode": True,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def from_peft(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Read PEFT's format.

    Returns:
        For each adapted linear's name: A (rank, in), B (out, rank) and the scale.

    Raises:
        ManifestError: A weight has no partner or a name that is not LoRA's.
    """
    rank_of = _pattern(config.get("rank_pattern") or {}, int(config["r"]))
    alpha_of = _pattern(config.get("alpha_pattern") or {}, float(config["lora_alpha"]))
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in weights.items():
        match = re.fullmatch(rf"{re.escape(PEFT_PREFIX)}(.+)\.(lora_[AB])\.weight", key)
        if not match:
            raise ManifestError("an adapter weight is not LoRA's", got=key, expected="….lora_A.weight or ….lora_B.weight")
        parts.setdefault(match.group(1), {})[match.group(2)] = tensor
    layers = {}
    for name, pair in parts.items():
        if len(pair) < 2 or pair["lora_A"].shape[0] != pair["lora_B"].shape[1]:
            raise ManifestError(
                f"adapter weights of {name} do not fit together", got={k: tuple(v.shape) for k, v in pair.items()}
            )
        rank = rank_of(name)
        if pair["lora_A"].shape[0] != rank:
            raise ManifestError(f"rank of {name}", got=pair["lora_A"].shape[0], expected=rank)
        scale = alpha_of(name) / (math.sqrt(rank) if config.get("use_rslora") else rank)
        layers[name] = (pair["lora_A"], pair["lora_B"], scale)
    return layers


def _pattern(pattern: Mapping[str, Any], default: Any) -> Any:
    def value(name: str) -> Any:
        for key, special in pattern.items():
            if re.match(rf"(.*\.)?({key})$", name):
                return special
        return default

    return value
