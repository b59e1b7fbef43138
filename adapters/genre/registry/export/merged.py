"""An adapter merged into its base: one model that stock transformers loads, for servers without adapters.

Owns: W + (alpha / rank) B A, added to the full-precision weights only, and the files of the folder. Ignores: running it. An
export of an adapter that was trained on the first 8 layers:

    exported/
        config.json  model.safetensors  tokenizer.json  …      # the base's first 8 layers with the update in them
        heads.safetensors  manifest.json  recipe.yaml  README.md

Heads stay beside the model: transformers runs the body only. Merging into int8 or nf4 would round the update away, so the
base's folder has to hold the weights that the manifest's fingerprint names; the result may be quantized when it is loaded.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from genre.errors import RegistryError
from genre.files import appearing_folder
from genre.registry.card import render_card
from genre.registry.export.peft import auto_class, check_base, paths_in_base
from genre.registry.integrity import CARD, list_files
from genre.registry.manifest import Manifest, Version
from genre.registry.weights.base import count_layers, read_weights, truncate_base
from genre.registry.weights.lora import ADAPTER, CONFIG, Adapter, read_adapter
from genre.registry.weights.modules import Linears
from genre.registry.weights.scaled import scale_of
from genre.registry.weights.tensors import Tensor, read_array, read_header


def export_merged(
    version: Version, source: Path, out: Path, base: Path | None, *, finish: Callable[[Path], None] = lambda folder: None
) -> None:
    """Write a version, whose files are in `source`, and its base as one transformers folder; see `Registry.export`.

    `finish` adds to the folder before it appears.
    """
    manifest = version.manifest
    if not (source / ADAPTER).exists():
        raise RegistryError(f"{version.ref} has no LoRA to merge", got=f"kind {manifest.kind}, no {ADAPTER}")
    if base is None:
        expected = f"the folder of {manifest.base.name}"
        todo = "pass base= or --base"
        raise RegistryError(f"{version.ref} needs its base to be merged into", got="no folder", expected=expected, todo=todo)
    adapter = read_adapter(source)
    check_base(base, adapter, manifest)
    depth = manifest.base.depth or count_layers(read_weights(base))
    with appearing_folder(out) as folder:
        truncate_base(base, depth, folder / "model")
        for file in (folder / "model").iterdir():
            file.rename(folder / file.name)
        (folder / "model").rmdir()
        add_update(folder / "model.safetensors", adapter, source / ADAPTER)
        for name in list_files(source):
            if name not in (ADAPTER, CONFIG, CARD):
                shutil.copyfile(source / name, folder / name)
        (folder / CARD).write_text(render_card(manifest, full=True) + _usage(manifest, auto_class(adapter)), encoding="utf-8")
        finish(folder)


def add_update(model: Path, adapter: Adapter, adapter_file: Path) -> None:
    """Add an adapter's update, from the weights in `adapter_file`, to a base's weights in the file `model`, in place."""
    weights = read_header(model)
    linears = Linears({name: (model, tensor) for name, tensor in weights.items()})
    paths = paths_in_base(adapter, linears, None)
    if tied := [path for path in paths.values() if f"{path}.weight" not in weights]:
        expected = "a base whose head has its own weights: here they are the token embedding's"
        raise RegistryError(f"LoRA of {tied[0]} cannot be merged", got="tied weights", expected=expected)
    with open(model, "r+b") as file:
        for module in adapter.modules:
            a, b = (read_array(adapter_file, tensor).astype(np.float32) for tensor in (module.a, module.b))
            update = scale_of(module, adapter.config) * (b @ a)
            path = paths[module.path]
            tensor = weights[f"{path}.weight"]
            merged = read_array(model, tensor).astype(np.float32) + (update.T if linears.swapped(path) else update)
            file.seek(tensor.begin)
            file.write(_encode(merged, tensor))


def _encode(values: npt.NDArray[np.float32], tensor: Tensor) -> bytes:
    """Encode values in a tensor's dtype, little-endian, rounded to nearest even."""
    if tensor.dtype == "BF16":
        bits = np.ascontiguousarray(values, dtype="<f4").view("<u4").astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return values.astype({"F64": "<f8", "F32": "<f4", "F16": "<f2"}[tensor.dtype]).tobytes()


def _usage(manifest: Manifest, kind: str) -> str:
    heads = ", ".join(f"{task['name']} ({task.get('head')})" for task in manifest.tasks)
    return f"""
## Use

```python
from transformers import {kind}, AutoTokenizer

model = {kind}.from_pretrained("<this folder>")
```

The adapter is in the weights; it cannot be taken out or swapped. Heads of its tasks: {heads}; those with weights are in
heads.safetensors, and a verbalizer reads the model's own logits.
"""
