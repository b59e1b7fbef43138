"""Adapters out to stock PEFT and in from elsewhere.

Owns: what an exported folder holds, and which foreign adapters are taken. Ignores: torch, and vLLM (see `vllm`). An export
of an adapter that was trained on the first 8 layers:

    exported/
        README.md  adapter_config.json  adapter_model.safetensors  heads.safetensors  manifest.json  recipe.yaml
        base/config.json, model.safetensors, …         # the base's first 8 layers: on all 30 the adapter loads silently
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genre.errors import IntegrityError, ManifestError, NotFoundError, RegistryError
from genre.files import appearing_folder
from genre.modules.base.fingerprint import fingerprint
from genre.registry import limits
from genre.registry.archive import extract, is_archive, pack
from genre.registry.base_files import (
    Weights,
    count_layers,
    layer_of,
    read_weights,
    truncate_base,
    write_weights,
)
from genre.registry.card import render_card
from genre.registry.integrity import ADAPTER, CARD, CONFIG, list_files
from genre.registry.lora_format import PREFIX, LoraModule, check_config, check_pairs
from genre.registry.manifest import BaseInfo, Manifest, check_fit
from genre.registry.names import LATEST, check_name
from genre.registry.tensors import FLOATS, read_header
from genre.registry.values import Version

if TYPE_CHECKING:
    from genre.registry.core import Registry

# The module path of one and the same linear differs with the class that the adapter was trained on.
_WRAPPERS = ("", "model.", "transformer.", "base_model.")
_CONFIG_FIELDS = (
    "peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out", "bias", "rank_pattern",
    "alpha_pattern",
)  # fmt: skip


def export(
    registry: "Registry",
    ref: "str | Version",
    out: Path,
    *,
    to: str = "peft",
    base: Path | None = None,
    tar: bool = False,
) -> Path:
    """Write a version as a folder that something else loads.

    Args:
        registry: Where the version is.
        ref: Which.
        out: A new folder; with `tar`, `<out>.tar` is written beside it.
        to: `peft` (see `export_peft`), `merged` (see `genre.registry.merged.export_merged`) or `vllm` (see
            `genre.registry.vllm.export_vllm`).
        base: The base's transformers folder.
        tar: Also write a tar.

    Raises:
        RegistryError: There is no such form, or this version cannot take it.
    """
    from genre.registry.merged import export_merged
    from genre.registry.vllm import export_vllm

    forms = {"peft": export_peft, "merged": export_merged, "vllm": export_vllm}
    if to not in forms:
        raise RegistryError("cannot export to that", got=repr(to)[:80], expected="peft, merged or vllm")
    written = forms[to](registry, ref, Path(out), base)
    if tar:
        pack(written, written.with_name(written.name + ".tar"))
    return written


def export_peft(registry: "Registry", ref: "str | Version", out: Path, base: Path | None) -> Path:
    """Write a version as a folder that stock PEFT loads.

    Args:
        registry: Where the version is.
        ref: Which.
        out: A new folder.
        base: The base's transformers folder. Needed where the version's depth is set: if that is not all of the
            base's layers, the first ones go along.

    Raises:
        RegistryError: The version has no LoRA, or the base is missing.
        IntegrityError: The version is damaged, or its shapes do not fit the base.
    """
    version = registry.resolve(ref)
    source, manifest = registry.fetch(version), version.manifest
    if not (source / ADAPTER).exists():
        raise RegistryError(f"{version.ref} has no LoRA to export", got=f"kind {manifest.kind}, no {ADAPTER}")
    if manifest.base.depth is not None and base is None:
        raise RegistryError(
            f"{version.ref} is for the first {manifest.base.depth} layers of {manifest.base.name}",
            expected="the base's folder, so that the cut base goes along (on more layers it loads and is wrong)",
            todo="pass base= or --base",
        )
    cut = base is not None and check_base(base, source, manifest)
    with appearing_folder(out) as folder:
        for file in list_files(source):
            shutil.copyfile(source / file, folder / file)
        if (source / CARD).read_text(encoding="utf-8") == render_card(manifest):
            (folder / CARD).write_text(render_card(manifest, full=True) + _usage(manifest, cut), encoding="utf-8")
        if cut and base is not None and manifest.base.depth is not None:
            truncate_base(base, manifest.base.depth, folder / "base")
    return Path(out)


def import_peft(
    registry: "Registry",
    source: str | Path,
    name: str,
    *,
    base: BaseInfo,
    base_folder: str | Path,
    alias: str | Iterable[str] = LATEST,
    **fields: Any,
) -> "Version":
    """Publish a PEFT LoRA adapter from elsewhere, after checking every shape against its base.

    Only `adapter_config.json` and `adapter_model.safetensors` are taken; the config is written anew from the fields
    that LoRA needs, and what else lay there is listed in `notes.not_imported`.

    Args:
        registry: Where to.
        source: A folder, a tar or a zip.
        name: The adapter's name in the registry.
        base: The base that it is for.
        base_folder: That base as a transformers folder.
        alias: Aliases that will name the version.
        fields: Further fields of the manifest, such as `tasks` or `tokenizer`.

    Raises:
        IntegrityError: It is not plain LoRA (DoRA, biases, LoHa, …; the reason is given), or a file is unsafe.
        ManifestError: A module is not in the base, has another shape, or lies beyond `base.depth`.
    """
    check_name(name)
    with _opened(Path(source)) as (folder, others), tempfile.TemporaryDirectory(prefix="genre-import-") as temporary:
        config, header = read_lora(folder)
        modules = check_pairs(config, header)
        swapped = bool(config.get("fan_in_fan_out"))
        on_disk = read_weights(Path(base_folder))
        if base.fingerprint != (found := fingerprint(Path(base_folder))):
            raise ManifestError("the base's folder holds another base", got=f"fingerprint {found}", expected=base.fingerprint)
        paths = place_modules(modules, on_disk, base.depth, swapped)
        target = Path(temporary)
        weights: Weights = {
            f"{PREFIX}{paths[module.path]}.lora_{side}.weight": (
                folder / ADAPTER,
                header[f"{PREFIX}{module.path}.lora_{side}.weight"],
            )
            for module in modules
            for side in "AB"
        }
        write_weights(target / ADAPTER, weights)
        (target / CONFIG).write_text(json.dumps(_clean_config(config, modules, paths, base.name), indent=2), encoding="utf-8")
        notes = {"imported": True, **({"not_imported": others[:100]} if others else {}), **fields.pop("notes", {})}
        draft = Manifest.parse({"name": name, "kind": "adapter", "base": base.model_dump(), "notes": notes} | fields)
        return registry.publish(target, draft, alias=alias)


def place_modules(modules: Iterable[LoraModule], weights: Weights, depth: int | None, swapped: bool) -> dict[str, str]:
    """Find each adapted linear in the base and compare shapes.

    Args:
        modules: The adapter's.
        weights: The base's.
        depth: Layers that count; None for all.
        swapped: The adapter says that the base keeps weights as (in, out), as GPT-2 does.

    Returns:
        The module's path in the base by its path in the adapter.

    Raises:
        ManifestError: A module is missing, lies beyond `depth`, or has another shape.
    """
    paths: dict[str, str] = {}
    for module in modules:
        path = _find_module(module.path, weights)
        shape = weights[_tied(path, weights)][1].shape
        wanted = (module.inputs, module.outputs) if swapped else (module.outputs, module.inputs)
        if shape != wanted:
            raise ManifestError(f"LoRA of {module.path} does not fit the base", got=f"{wanted}", expected=f"{shape} of {path}")
        layer = layer_of(path)
        if depth is not None and layer is not None and layer >= depth:
            raise ManifestError(f"LoRA of {module.path} lies beyond the depth", got=f"layer {layer}", expected=f"below {depth}")
        paths[module.path] = path
    if len(set(paths.values())) != len(paths):
        raise ManifestError("two modules of the adapter are one in the base", got=", ".join(sorted(paths))[:200])
    return paths


def _find_module(path: str, weights: Weights) -> str:
    bare = [path.removeprefix(wrapper) for wrapper in _WRAPPERS if path.startswith(wrapper)]
    for candidate in (path, *(wrapper + stem for stem in bare for wrapper in _WRAPPERS)):
        if _tied(candidate, weights) in weights:
            return candidate
    some = ", ".join(list(weights)[:3])
    raise ManifestError(
        f"LoRA of {path} has no linear in the base", expected=f"one of the base's modules, such as those of {some}"
    )


def _tied(path: str, weights: Weights) -> str:
    """The weight of a module; a head without its own is tied to the embedding."""
    if path == "lm_head" and "lm_head.weight" not in weights:
        return next((name for name in weights if name.endswith(("embed_tokens.weight", "wte.weight"))), "")
    return f"{path}.weight"


def read_lora(folder: Path) -> tuple[dict[str, Any], Any]:
    """The checked config and the header of an adapter's weights."""
    for name in (CONFIG, ADAPTER):
        if not (folder / name).is_file() or (folder / name).is_symlink():
            pickled = " (a .bin is a pickle and is never opened: save it as safetensors)" if name == ADAPTER else ""
            raise IntegrityError(f"{name} is missing or a link", expected=f"a PEFT adapter's {CONFIG} and {ADAPTER}{pickled}")
    if (folder / CONFIG).stat().st_size > limits.MAX_CONFIG_BYTES:
        raise IntegrityError(f"{CONFIG} is too large", expected=f"at most {limits.MAX_CONFIG_BYTES:,} bytes")
    config = check_config(limits.parse_json((folder / CONFIG).read_bytes(), CONFIG, limit=limits.MAX_CONFIG_BYTES))
    return config, read_header(folder / ADAPTER, FLOATS)


def _clean_config(config: dict[str, Any], modules: list[LoraModule], paths: dict[str, str], base: str) -> dict[str, Any]:
    """The fields that say what the weights mean; patterns become whole module names, so nothing is left to match."""
    kept = {field: config[field] for field in _CONFIG_FIELDS if field in config}
    kept["task_type"] = kept.get("task_type") or "CAUSAL_LM"
    kept["rank_pattern"] = {paths[module.path]: module.rank for module in modules if module.rank != config["r"]}
    kept["alpha_pattern"] = {
        paths[module.path]: module.alpha for module in modules if module.alpha != float(config["lora_alpha"])
    }
    targets = sorted(paths.values())
    return kept | {"target_modules": targets, "base_model_name_or_path": base, "inference_mode": True}


@contextmanager
def _opened(source: Path) -> Iterator[tuple[Path, list[str]]]:
    if source.is_dir():
        others = sorted(entry.name[:80] for entry in source.iterdir() if entry.name not in (CONFIG, ADAPTER))
        yield source, others
        return
    if not source.is_file():
        raise NotFoundError("nothing to import", got=source, expected="a PEFT folder, a tar or a zip")
    if not is_archive(source):
        raise IntegrityError(f"{source.name} is no archive", expected="a PEFT folder, a tar or a zip")
    with tempfile.TemporaryDirectory(prefix="genre-import-") as temporary:
        others = extract(source, (CONFIG, ADAPTER), Path(temporary))
        yield Path(temporary), [name[:80] for name in others]


def check_base(base: Path, source: Path, manifest: Manifest) -> bool:
    """Check that a folder holds a version's base; return whether the version needs only the first layers of it."""
    weights = read_weights(base)
    check_fit(manifest, base_fingerprint=fingerprint(base))
    config, header = read_lora(source)
    place_modules(check_pairs(config, header), weights, manifest.base.depth, bool(config.get("fan_in_fan_out")))
    return manifest.base.depth is not None and manifest.base.depth < count_layers(weights)


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
