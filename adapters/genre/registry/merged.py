"""An adapter merged into its base: one model that stock transformers loads, for servers without adapters.

Owns: W + (alpha / rank) B A, added to the full-precision weights only, and what the folder holds. Ignores: running it. An
export of an adapter that was trained on the first 8 layers:

    exported/
        config.json  model.safetensors  tokenizer.json  …      # the base's first 8 layers with the update in them
        heads.safetensors  manifest.json  recipe.yaml  README.md

Heads stay beside the model: transformers runs the body only. Merging into int8 or nf4 would round the update away, so the
base's folder has to hold the weights that the manifest's fingerprint names; the result may be quantized when it is loaded.
"""

import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from genre.errors import RegistryError
from genre.files import appearing_folder
from genre.registry.base_files import count_layers, read_weights, truncate_base
from genre.registry.card import render_card
from genre.registry.integrity import ADAPTER, CARD, CONFIG, list_files
from genre.registry.interchange import check_base, place_modules, read_lora
from genre.registry.lora_format import PREFIX, check_pairs
from genre.registry.manifest import Manifest
from genre.registry.tensors import Tensor, read_array, read_header
from genre.registry.values import Version

if TYPE_CHECKING:
    from genre.registry.core import Registry


def export_merged(registry: "Registry", ref: "str | Version", out: Path, base: Path | None) -> Path:
    """Write a version and its base as one transformers folder.

    Args:
        registry: Where the version is.
        ref: Which.
        out: A new folder.
        base: The base's transformers folder, in full precision.

    Raises:
        RegistryError: The version has no LoRA, or the base is missing.
        ManifestError: The folder holds another base, or other weights of it.
        IntegrityError: The version is damaged, or its shapes do not fit the base.
    """
    version = registry.resolve(ref)
    source, manifest = registry.fetch(version), version.manifest
    if not (source / ADAPTER).exists():
        raise RegistryError(f"{version.ref} has no LoRA to merge", got=f"kind {manifest.kind}, no {ADAPTER}")
    if base is None:
        raise RegistryError(
            f"{version.ref} needs its base to be merged into", got="no folder", expected=f"the folder of {manifest.base.name}",
            todo="pass base= or --base",
        )  # fmt: skip
    check_base(base, source, manifest)
    depth = manifest.base.depth or count_layers(read_weights(base))
    with appearing_folder(out) as folder:
        truncate_base(base, depth, folder / "model")
        for file in (folder / "model").iterdir():
            file.rename(folder / file.name)
        (folder / "model").rmdir()
        add_update(folder / "model.safetensors", source)
        for name in list_files(source):
            if name not in (ADAPTER, CONFIG, CARD):
                shutil.copyfile(source / name, folder / name)
        (folder / CARD).write_text(render_card(manifest, full=True) + _usage(manifest), encoding="utf-8")
    return Path(out)


def add_update(model: Path, adapter: Path) -> None:
    """Add an adapter's update to a base's weights, in place.

    Args:
        model: A safetensors file with every adapted weight.
        adapter: The folder of an adapter that fits it.
    """
    config, header = read_lora(adapter)
    weights = read_header(model)
    turned, slow = bool(config.get("fan_in_fan_out")), bool(config.get("use_rslora"))
    modules = check_pairs(config, header)
    places = place_modules(modules, {name: (model, tensor) for name, tensor in weights.items()}, None, turned)
    with open(model, "r+b") as file:
        for module in modules:
            first, second = (
                read_array(adapter / ADAPTER, header[f"{PREFIX}{module.path}.lora_{side}.weight"]).astype(np.float32)
                for side in "AB"
            )
            update = module.alpha / (math.sqrt(module.rank) if slow else module.rank) * (second @ first)
            tensor = weights[f"{places[module.path]}.weight"]
            file.seek(tensor.begin)
            file.write(_encode(read_array(model, tensor).astype(np.float32) + (update.T if turned else update), tensor))


def _encode(values: npt.NDArray[np.float32], tensor: Tensor) -> bytes:
    """The values as a tensor's dtype has them, little-endian, rounded to nearest even."""
    if tensor.dtype == "BF16":
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4").astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return values.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[tensor.dtype]).tobytes()


def _usage(manifest: Manifest) -> str:
    heads = ", ".join(f"{task['name']} ({task.get('head')})" for task in manifest.tasks)
    kind = "AutoModel" if manifest.reads == "texts" else "AutoModelForCausalLM"
    return f"""
## Use

```python
from transformers import {kind}, AutoTokenizer

model = {kind}.from_pretrained("<this folder>")
```

The adapter is in the weights; it cannot be taken out or swapped. Heads of its tasks: {heads}; those with weights are in
heads.safetensors, and a verbalizer reads the model's own logits.
"""
