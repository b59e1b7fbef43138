"""A sealed version in the making: its files and its manifest, and putting both into a store past every check of `publish`.

Owns: sealing. Ignores: what is hostile about it.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from genre.registry import Registry
from genre.registry.manifest import checksum_of, digest_of, render, utc_now

Tensors = dict[str, np.ndarray]
WEIGHTS, HEADS, CONFIG = "adapter_model.safetensors", "heads.safetensors", "adapter_config.json"


@dataclass
class Case:
    """A version in the making.

    Attributes:
        folder: Its files, those of a good version; to be changed.
        raw: Its manifest; to be changed, before files, digest, version and checksum are filled in.
        registry: Where it goes.
        encoder: A copy of the encoder's files and manifest, if that is what is hostile.
        stored: What is done to the folder in the store, after sealing.
    """

    folder: Path
    raw: dict[str, Any]
    registry: Registry
    rng: random.Random
    encoder: tuple[Path, dict[str, Any]] | None = None
    stored: list[Callable[[Path], object]] = field(default_factory=list)

    def write(self, name: str, value: Any) -> None:
        """Write JSON into a file of the version."""
        (self.folder / name).write_text(value if isinstance(value, str) else json.dumps(value))

    def tensors(self, name: str) -> Tensors:
        """The tensors of a file."""
        return dict(load_file(self.folder / name))

    def save(self, name: str, tensors: Tensors) -> None:
        """Write tensors into a file of the version."""
        (self.folder / name).unlink(missing_ok=True)
        save_file(tensors, self.folder / name)

    def config(self, **changes: Any) -> None:
        """Change fields of the adapter's config."""
        self.write(CONFIG, json.loads((self.folder / CONFIG).read_text()) | changes)


def store(registry: Registry, folder: Path, raw: dict[str, Any]) -> str:
    """Seal a folder and put it in the store, whatever it holds; its digest."""
    name = str(raw["name"])
    hashes = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
        if file.is_file() and file.name != "manifest.json"
    }
    raw = raw | {"files": hashes | raw.pop("more_files", {}), "created": utc_now()}
    raw["digest"] = digest_of(raw)
    raw["version"] = raw["digest"][:12]
    raw["checksum"] = checksum_of(raw)
    (folder / "manifest.json").write_bytes(render(raw))
    target = Path(registry.url) / name / raw["version"]
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, target)
    return str(raw["digest"])
