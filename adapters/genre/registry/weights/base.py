"""A base as files: the shapes of its weights, and its first layers, without torch.

Owns: reading a transformers folder's safetensors headers, and cutting the folder down to its first layers. Ignores: running
it. Llama-like (`model.layers.7.…`) and GPT-2-like (`transformer.h.7.…`) names are known.
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from genre.errors import BaseModelError
from genre.files import appearing_folder
from genre.registry.limits import MAX_JSON_BYTES, parse_json
from genre.registry.weights.tensors import Tensor, Weights, read_header, write_weights

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|layer)\.(\d+)\.")
_DEPTH_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_COPIED = (".json", ".txt", ".model", ".jinja", ".md")


def layer_of(name: str) -> int | None:
    """The layer that a weight or module belongs to; None for embeddings, norms and heads."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def read_weights(folder: Path) -> dict[str, tuple[Path, Tensor]]:
    """Return all weights of a base by name; BaseModelError if there are none, IntegrityError if a header is wrong."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        expected = "a transformers folder, such as `genre base prepare` makes"
        raise BaseModelError("no safetensors in the base's folder", got=folder, expected=expected)
    return {name: (file, tensor) for file in files for name, tensor in read_header(file).items()}


def count_layers(weights: Weights) -> int:
    """The number of layers that a base's weights make up."""
    return len({layer for name in weights if (layer := layer_of(name)) is not None})


def truncate_base(base_folder: Path, depth: int, out: Path) -> Path:
    """Write a base's first layers as a transformers folder of its own.

    Args:
        base_folder: A transformers folder with safetensors.
        depth: The number of layers to keep; the final norm and the head stay.
        out: A new folder.

    Raises:
        BaseModelError: The base has fewer layers, or no known name for them.
    """
    weights = read_weights(base_folder)
    layers = count_layers(weights)
    if not 1 <= depth <= layers:
        raise BaseModelError("the base has fewer layers", got=f"depth {depth}", expected=f"1 to {layers}")
    kept = {name: entry for name, entry in weights.items() if (layer_of(name) or 0) < depth}
    with appearing_folder(out) as folder:
        for file in sorted(Path(base_folder).iterdir()):
            if file.suffix in _COPIED and file.is_file() and not file.name.endswith(".index.json"):
                shutil.copyfile(file, folder / file.name)
        config = parse_json((folder / "config.json").read_bytes(), "config.json", limit=MAX_JSON_BYTES)
        (folder / "config.json").write_text(json.dumps(_cut_config(config, depth), indent=2) + "\n", encoding="utf-8")
        write_weights(folder / "model.safetensors", kept)
    return out


def link_base(base_folder: Path, out: Path) -> Path:
    """Copy a transformers folder; weights become hard links where the disk allows it, which outlive the original."""
    with appearing_folder(out) as folder:
        for file in sorted(Path(base_folder).iterdir()):
            if not file.is_file() or file.suffix not in (*_COPIED, ".safetensors"):
                continue
            if file.suffix != ".safetensors" or not _linked(file, folder / file.name):  # people edit a configuration in place
                shutil.copyfile(file, folder / file.name)
    return out


def _linked(file: Path, target: Path) -> bool:
    try:
        os.link(file.resolve(), target)
    except OSError:  # another disk, or one without links
        return False
    return True


def _cut_config(config: dict[str, Any], depth: int) -> dict[str, Any]:
    """Set the number of layers wherever the config keeps it, and cut the per-layer lists."""
    changed: dict[str, Any] = {key: depth for key in _DEPTH_KEYS if isinstance(config.get(key), int)}
    if isinstance(config.get("layer_types"), list):
        changed["layer_types"] = config["layer_types"][:depth]
    if isinstance(config.get("text_config"), dict):
        changed["text_config"] = _cut_config(config["text_config"], depth)
    if not changed:
        raise BaseModelError("config.json does not say how many layers the base has", expected=" or ".join(_DEPTH_KEYS))
    return config | changed
