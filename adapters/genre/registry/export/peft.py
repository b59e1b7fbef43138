"""Adapters out to stock PEFT and in from elsewhere.

Owns: the files of an exported folder, which foreign adapters are taken, and the check that an adapter fits its base. Ignores:
torch. An export of an adapter that was trained on the first 8 layers:

    exported/
        README.md  adapter_config.json  adapter_model.safetensors  heads.safetensors  manifest.json  recipe.yaml
        base/config.json, model.safetensors, …         # the base's first 8 layers: on all 30 the adapter loads silently
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from genre.errors import IntegrityError, ManifestError, NotFoundError, RegistryError
from genre.files import appearing_folder
from genre.modules.base.fingerprint import fingerprint
from genre.registry.card import render_card
from genre.registry.export.archive import extract, is_archive
from genre.registry.integrity import CARD, list_files
from genre.registry.manifest import BaseInfo, Manifest, Version, check_fit
from genre.registry.weights.base import count_layers, layer_of, read_weights, truncate_base
from genre.registry.weights.lora import ADAPTER, CONFIG, PREFIX, Adapter, read_adapter
from genre.registry.weights.tensors import Weights, write_weights

# The module path of one and the same linear differs with the class that the adapter was trained on.
_WRAPPERS = ("", "model.", "transformer.", "base_model.")
_CONFIG_FIELDS = ["peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out", "bias"]
_CONFIG_FIELDS += ["rank_pattern", "alpha_pattern"]


def export_peft(version: Version, source: Path, out: Path, base: Path | None) -> None:
    """Write a version, whose files are in `source`, as a folder that stock PEFT loads.

    The base's folder is needed where the version's depth is set: if that is not all of the base's layers, the first ones go
    along. For the errors see `Registry.export`.
    """
    manifest = version.manifest
    if not (source / ADAPTER).exists():
        raise RegistryError(f"{version.ref} has no LoRA to export", got=f"kind {manifest.kind}, no {ADAPTER}")
    if manifest.base.depth is not None and base is None:
        raise RegistryError(
            f"{version.ref} is for the first {manifest.base.depth} layers of {manifest.base.name}",
            expected="the base's folder, so that the cut base goes along (on more layers it loads and is wrong)",
            todo="pass base= or --base",
        )
    cut = None if base is None else check_base(base, read_adapter(source), manifest)
    with appearing_folder(out) as folder:
        for file in list_files(source):
            shutil.copyfile(source / file, folder / file)
        if (source / CARD).read_text(encoding="utf-8") == render_card(manifest):
            (folder / CARD).write_text(render_card(manifest, full=True) + _usage(manifest, cut is not None), encoding="utf-8")
        if cut is not None and base is not None:
            truncate_base(base, cut, folder / "base")


def check_base(base: Path, adapter: Adapter, manifest: Manifest) -> int | None:
    """Check that a folder holds the base of a version, and that the adapter fits it, else ManifestError.

    Returns:
        The number of the base's first layers that the version is for; None for all.
    """
    weights = read_weights(base)
    check_fit(manifest, base_fingerprint=fingerprint(base))
    paths_in_base(adapter, weights, manifest.base.depth)
    depth = manifest.base.depth
    return depth if depth is not None and depth < count_layers(weights) else None


@contextmanager
def prepare_import(
    source: Path, name: str, base: BaseInfo, base_folder: Path, fields: Mapping[str, Any]
) -> Iterator[tuple[Path, Manifest]]:
    """Yield a temporary folder and the draft of a version, made of an adapter from elsewhere; see `Registry.import_peft`."""
    with _opened(source) as (folder, others), tempfile.TemporaryDirectory(prefix="genre-import-") as temporary:
        adapter = read_adapter(folder)
        base_weights = read_weights(base_folder)
        if base.fingerprint != (found := fingerprint(base_folder)):
            raise ManifestError("the base's folder holds another base", got=f"fingerprint {found}", expected=base.fingerprint)
        paths = paths_in_base(adapter, base_weights, base.depth)
        target = Path(temporary)
        weights = {
            f"{PREFIX}{paths[module.path]}.lora_{side}.weight": (folder / ADAPTER, tensor)
            for module in adapter.modules
            for side, tensor in (("A", module.a), ("B", module.b))
        }
        write_weights(target / ADAPTER, weights)
        (target / CONFIG).write_text(json.dumps(_clean_config(adapter, paths, base.name), indent=2), encoding="utf-8")
        notes = {"imported": True, **({"not_imported": others[:100]} if others else {}), **fields.get("notes", {})}
        draft = {"name": name, "kind": "adapter", "base": base.model_dump()} | dict(fields) | {"notes": notes}
        yield target, Manifest.parse(draft)


def paths_in_base(adapter: Adapter, weights: Weights, depth: int | None) -> dict[str, str]:
    """Find each adapted linear in the base's weights and compare shapes; return its path there by its path in the adapter.

    Raises:
        ManifestError: A module is missing, lies beyond the first `depth` layers, or has another shape.
    """
    paths: dict[str, str] = {}
    for module in adapter.modules:
        path = _find_module(module.path, weights)
        shape = weights[_weight_of(path, weights)][1].shape
        wanted = (module.b.shape[0], module.a.shape[1])[:: -1 if adapter.swapped else 1]
        if shape != wanted:
            raise ManifestError(f"LoRA of {module.path} does not fit the base", got=f"{wanted}", expected=f"{shape} of {path}")
        layer = layer_of(path)
        if depth is not None and layer is not None and layer >= depth:
            raise ManifestError(f"LoRA of {module.path} lies beyond the depth", got=f"layer {layer}", expected=f"below {depth}")
        paths[module.path] = path
    if len(set(paths.values())) != len(paths):
        raise ManifestError("two modules of the adapter map to one of the base", got=", ".join(sorted(paths))[:200])
    return paths


def _find_module(path: str, weights: Weights) -> str:
    bare = [path.removeprefix(wrapper) for wrapper in _WRAPPERS if path.startswith(wrapper)]
    for candidate in (path, *(wrapper + stem for stem in bare for wrapper in _WRAPPERS)):
        if _weight_of(candidate, weights) in weights:
            return candidate
    expected = f"one of the base's modules, such as those of {', '.join(list(weights)[:3])}"
    raise ManifestError(f"LoRA of {path} has no linear in the base", expected=expected)


def _weight_of(path: str, weights: Weights) -> str:
    """The name of a module's weight; a head without its own is tied to the embedding."""
    if path == "lm_head" and "lm_head.weight" not in weights:
        return next((name for name in weights if name.endswith(("embed_tokens.weight", "wte.weight"))), "")
    return f"{path}.weight"


def _clean_config(adapter: Adapter, paths: dict[str, str], base: str) -> dict[str, Any]:
    """The config's fields that give the weights their meaning, with whole module names for patterns."""
    config, modules = adapter.config, adapter.modules
    kept = {field: config[field] for field in _CONFIG_FIELDS if field in config}
    return kept | {
        "task_type": config.get("task_type") or "CAUSAL_LM",
        "rank_pattern": {paths[module.path]: module.rank for module in modules if module.rank != config["r"]},
        "alpha_pattern": {paths[m.path]: m.alpha for m in modules if m.alpha != float(config["lora_alpha"])},
        "target_modules": sorted(paths.values()),
        "base_model_name_or_path": base,
        "inference_mode": True,
    }


@contextmanager
def _opened(source: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder with the adapter's two files, and the names of the others."""
    if source.is_dir():
        yield source, sorted(entry.name[:80] for entry in source.iterdir() if entry.name not in (CONFIG, ADAPTER))
        return
    if not source.is_file():
        raise NotFoundError("nothing to import", got=source, expected="a PEFT folder, a tar or a zip")
    if not is_archive(source):
        raise IntegrityError(f"{source.name} is not an archive", expected="a PEFT folder, a tar or a zip")
    with tempfile.TemporaryDirectory(prefix="genre-import-") as temporary:
        others = extract(source, (CONFIG, ADAPTER), Path(temporary))
        yield Path(temporary), [name[:80] for name in others]


def _usage(manifest: Manifest, cut: bool) -> str:
    base = "<this folder>/base" if cut else manifest.base.name
    return f"""
## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "<this folder>")
```
"""
