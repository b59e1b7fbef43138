"""Adapters out to stock PEFT.

Owns: the files of an exported folder, and the check that an adapter fits its base. Ignores: torch, adapters from elsewhere
(`foreign`). An export of an adapter that was trained on the first 8 layers:

    exported/
        README.md  adapter_config.json  adapter_model.safetensors  heads.safetensors  manifest.json  recipe.yaml
        base/config.json, model.safetensors, …         # the base's first 8 layers: on all 30 the adapter loads silently
        encoder/encoder.safetensors, manifest.json, …  # where its rows hold soft tokens
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from genre.errors import ManifestError, RegistryError
from genre.files import appearing_folder
from genre.modules.base.fingerprint import fingerprint
from genre.registry.card import extend_card, is_rendered
from genre.registry.integrity import CARD, list_files
from genre.registry.manifest import Manifest, Version, check_fit
from genre.registry.weights.base import count_layers, layer_of, read_weights, truncate_base
from genre.registry.weights.lora import ADAPTER, CONFIG, Adapter, read_adapter
from genre.registry.weights.modules import Linears

BASE, ENCODER_FOLDER = "base", "encoder"
CUT_BASE = f"./{BASE}"
"""The base in the config of an export that has it: `AutoPeftModelForCausalLM.from_pretrained(".")` asks no hub, in the folder."""


def export_peft(
    version: Version,
    source: Path,
    out: Path,
    base: Path | None,
    encoder: Path | None = None,
    *,
    finish: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write a version, whose files are in `source`, as a folder that stock PEFT loads.

    The base's folder is needed where the version's depth is set and not known to be all of the base: the first layers go along
    then. So do the files of the version's encoder, in `encoder`. `finish` adds to the folder before it appears. For the errors
    see `Registry.export`.
    """
    manifest = version.manifest
    if not (source / ADAPTER).exists():
        raise RegistryError(f"{version.ref} has no LoRA to export", got=f"kind {manifest.kind}, no {ADAPTER}")
    if base is None and manifest.base.depth not in (None, manifest.notes.get("base_layers")):
        raise RegistryError(
            f"{version.ref} is for the first {manifest.base.depth} layers of {manifest.base.name}",
            expected="the base's folder, so that the cut base goes along (on more layers it loads and is wrong)",
            todo="pass base= or --base",
        )
    adapter = read_adapter(source)
    cut = None if base is None else check_base(base, adapter, manifest)
    with appearing_folder(out) as folder:
        for file in list_files(source):
            shutil.copyfile(source / file, folder / file)
        card = (source / CARD).read_text(encoding="utf-8")
        if is_rendered(card, manifest):
            usage = _usage(manifest, adapter, cut is not None, encoder is not None)
            (folder / CARD).write_text(extend_card(card, manifest, usage), encoding="utf-8")
        if cut is not None and base is not None:
            truncate_base(base, cut, folder / BASE)
            name_base(folder / CONFIG, str(adapter.config.get("base_model_name_or_path")), CUT_BASE)
        if encoder is not None:
            (folder / ENCODER_FOLDER).mkdir()
            for file in list_files(encoder):
                shutil.copyfile(encoder / file, folder / ENCODER_FOLDER / file)
        finish(folder)


def name_base(config: Path, old: str, new: str) -> None:
    """Put another base into a config, and leave every other byte of it as it is."""
    before, after = (f'"base_model_name_or_path": {json.dumps(name)}' for name in (old, new))
    config.write_text(config.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")


def check_base(base: Path, adapter: Adapter, manifest: Manifest) -> int | None:
    """Check that a folder holds the base of a version, and that the adapter fits it, else ManifestError.

    Returns:
        The number of the base's first layers that the version is for; None for all.
    """
    weights = read_weights(base)
    check_fit(manifest, base_fingerprint=fingerprint(base))
    paths_in_base(adapter, Linears(weights), manifest.base.depth)
    depth = manifest.base.depth
    return depth if depth is not None and depth < count_layers(weights) else None


def paths_in_base(adapter: Adapter, linears: Linears, depth: int | None) -> dict[str, str]:
    """Find each adapted linear in the base's weights and compare shapes; return its path there by its path in the adapter.

    Raises:
        ManifestError: A module is missing, lies beyond the first `depth` layers, or has another shape.
    """
    paths: dict[str, str] = {}
    for module in adapter.modules:
        path = linears.find(module.path)
        shape = linears.shape(path)
        wanted = (module.b.shape[0], module.a.shape[1])[:: -1 if linears.swapped(path) else 1]
        if shape != wanted:
            raise ManifestError(f"LoRA of {module.path} does not fit the base", got=f"{wanted}", expected=f"{shape} of {path}")
        layer = layer_of(path)
        if depth is not None and layer is not None and layer >= depth:
            raise ManifestError(f"LoRA of {module.path} lies beyond the depth", got=f"layer {layer}", expected=f"below {depth}")
        paths[module.path] = path
    if len(set(paths.values())) != len(paths):
        raise ManifestError("two modules of the adapter map to one of the base", got=", ".join(sorted(paths))[:200])
    return paths


def auto_class(adapter: Adapter) -> str:
    """The transformers class that loads the base of an adapter."""
    return "AutoModel" if adapter.config.get("task_type") == "FEATURE_EXTRACTION" else "AutoModelForCausalLM"


def _usage(manifest: Manifest, adapter: Adapter, cut: bool, encoder: bool) -> str:
    kind = auto_class(adapter)
    base = f"folder / {BASE!r}" if cut else f'"<the folder of {manifest.base.name}>"'
    text = f"""
## Use

```python
from pathlib import Path

from peft import PeftModel
from transformers import {kind}

folder = Path("<this folder>")
model = PeftModel.from_pretrained({kind}.from_pretrained({base}), folder)
```
"""
    if cut:
        auto = "AutoPeftModelForFeatureExtraction" if kind == "AutoModel" else "AutoPeftModelForCausalLM"
        text += f'\nIn this folder, `{auto}.from_pretrained(".")` does the same. Neither asks a hub.\n'
    if manifest.encoder is not None:
        where = f"the behaviour encoder in `{ENCODER_FOLDER}/`" if encoder else f"the behaviour encoder {manifest.encoder}"
        text += f"""
Rows of this adapter hold soft tokens: vectors of items and of feedback in place of token embeddings, made by {where} from
item ids, texts and features. Stock PEFT does not make them; `genre score` does, once a registry has adapter and encoder:

```console
$ genre registry import <this folder> --as {manifest.name} --base <the folder of {manifest.base.name}>
```
"""
    if manifest.tasks:
        text += "\nHeads are in `heads.json` and, where they have weights, in `heads.safetensors`; PEFT runs the body only.\n"
    return text
