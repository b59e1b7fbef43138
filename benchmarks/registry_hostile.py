"""Damaged and hostile versions, one per seed, for `registry.py --only damage`.

Owns: making one, and offering it: as a stored version to fetch, a folder to publish, or an archive to import.
Every one must be refused. Ignores: counting.
"""

import io
import json
import os
import pickle
import random
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from genre.modules.base.fingerprint import fingerprint
from genre.registry import BaseInfo, Manifest, Registry

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["q_proj"]}


def write_base(folder: Path) -> Path:
    """The base of the adapters here: a single linear."""
    folder.mkdir(parents=True)
    save_file({"model.layers.0.self_attn.q_proj.weight": np.ones((64, 64), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"num_hidden_layers": 1}')
    return folder


def write_adapter(folder: Path, seed: int, width: int = 64) -> Path:
    """A good adapter, other weights for each seed."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, width)).astype(np.float32), rng.normal(size=(width, 2)).astype(np.float32)
    save_file({f"{MODULE}.lora_A.weight": a, f"{MODULE}.lora_B.weight": b}, folder / "adapter_model.safetensors")
    save_file({"like.weight": rng.normal(size=(1, 64)).astype(np.float32)}, folder / "heads.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    (folder / "recipe.yaml").write_text("name: like\n")
    return folder


def draft(name: str = "like", base: str = "f" * 64) -> Manifest:
    """The manifest of a good adapter."""
    return Manifest(name=name, base=BaseInfo(name="tiny", fingerprint=base))


class Trap:
    """Unpickling this writes a file: the sentinel that must never appear."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.sentinel), "w")


def offer(seed: int, registry: Registry, base: Path, work: Path) -> tuple[str, Callable[[], object]]:
    """Make hostile case number `seed`; return its description and the call that must be refused."""
    rng = random.Random(seed)
    kinds = [_stored, _stored, _names, _archive, _pickle, _header, _header, _weights, _manifest, _config]
    return kinds[seed % len(kinds)](rng, seed, registry, base, work)


def _stored(rng: random.Random, seed: int, registry: Registry, base: Path, work: Path) -> tuple[str, Callable[[], object]]:
    version = registry.publish(write_adapter(work / "a", seed), draft(f"stored{seed}"))
    folder = registry.fetch(version)
    file = folder / rng.choice(sorted(os.listdir(folder)))
    data = bytearray(file.read_bytes())
    how = rng.choice(["flip", "cut", "missing", "grown", "swapped"])
    if how == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del data[rng.randrange(len(data)) :]
    elif how == "grown":
        data += b"\0"
    if how == "missing":
        file.unlink()
    elif how == "swapped":
        file.unlink()
        file.symlink_to(base / "model.safetensors")
    else:
        file.write_bytes(data)
    return f"stored {file.name} {how}", lambda: registry.fetch(version.ref)


def _names(rng: random.Random, seed: int, registry: Registry, base: Path, work: Path) -> tuple[str, Callable[[], object]]:
    folder = write_adapter(work / "a", seed)
    how = rng.choice(["code", "hidden", "space", "link", "folder", "pipe", "long", "many", "bin", "name", "alias", "unicode"])
    files = {
        "code": "modeling.py",
        "hidden": ".heads.json",
        "space": "a b.json",
        "long": "x" * 200 + ".json",
        "bin": "a.bin",
    }
    files["unicode"] = "heads\u202e.json"
    if how in files:
        (folder / files[how]).write_text("{}")
    elif how == "link":
        (folder / "x.json").symlink_to(rng.choice(["/etc/passwd", "../../x.json", str(base / "config.json")]))
    elif how == "folder":
        (folder / "x.json").mkdir()
    elif how == "pipe":
        os.mkfifo(folder / "x.json")
    elif how == "many":
        for number in range(100):
            (folder / f"x{number}.json").write_text("{}")
    name = rng.choice(["../like", "/like", "..", "Like", "a/b", "aliases", ".like", "a" * 65, "a\0", ""])
    if how == "name":
        (folder / "manifest.json").write_text(json.dumps(draft().raw() | {"name": name}))
        return f"name {name!r}", lambda: registry.publish(folder)
    if how == "alias":
        return f"alias {name!r}", lambda: registry.publish(folder, draft(), alias=name)
    return f"file {how}", lambda: registry.publish(folder, draft())


def _archive(rng: random.Random, seed: int, registry: Registry, base: Path, work: Path) -> tuple[str, Callable[[], object]]:
    folder = write_adapter(work / "a", seed)
    slip = rng.choice(["../slip.json", "/slip.json", "a/../../slip.json", "..\\slip.json", "C:slip.json"])
    how = rng.choice(["slip", "link", "hard", "device", "cut", "flip"])
    path = work / rng.choice(["a.tar", "a.tar.gz", "a.zip"])
    if path.suffix == ".zip":
        how = "slip" if how in ("hard", "device") else how
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in folder.iterdir():
                archive.write(file, file.name)
            member = zipfile.ZipInfo(slip if how == "slip" else "x.json")
            member.external_attr = (0o120777 if how == "link" else 0o100644) << 16
            if how in ("slip", "link"):
                archive.writestr(member, "/etc/passwd")
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
            tar.add(folder, "a")
            info = tarfile.TarInfo(slip if how == "slip" else "a/adapter_config.json")
            info.linkname = "../../../etc/passwd"
            info.type = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}.get(how, info.type)
            if how not in ("cut", "flip"):
                tar.addfile(info, io.BytesIO())
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[rng.randrange(1, len(data) // 2) :]
    elif how == "flip":  # in the archive's header of its first member, not in its padding
        data[0] ^= 0xFF
    path.write_bytes(data)
    info_ = BaseInfo(name="tiny", fingerprint=fingerprint(base))
    return f"{path.suffix} {how}", lambda: registry.import_peft(path, "taken", base=info_, base_folder=base)


def _pickle(rng: random.Random, seed: int, registry: Registry, base: Path, work: Path) -> tuple[str, Callable[[], object]]:
    folder = write_adapter(work / "a", seed)
    data = pickle.dumps(Trap(work.parent / "sentinel"), protocol=rng.choice([0, 2, 4, 5]))
    if rng.random() < 0.4:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", data)
        data = buffer.getvalue()
    file = rng.choice(["adapter_model.safetensors", "heads.safetensors", "adapter_config.json"])
    (folder / file).write_bytes(data)
    return f"pickle as {file}", lambda: registry.publish(folder, draft())


def _header(rng: random.Random, seed: int, registry: Registry, base: Path, work: Path) -> tuple[str, Callable[[], object]]:
    folder = write_adapter(work / "a", seed)
    file = folder / rng.choice(["adapter_model.safetensors", "heads.safetensors"])
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    row = header[rng.choice([key for key in header if key != "__metadata__"])]
    begin, end = row["data_offsets"]
    how = rng.choice(
        [
            "shape",
            "overflow",
            "negative",
            "dtype",
            "beyond",
            "overlap",
            "deep",
            "length",
            "keys",
            "text",
            "bool",
            "cut",
            "twice",
        ]
    )
    changes: dict[str, dict[str, Any]] = {
        "shape": {"shape": [1 << 40, 1 << 20]},
        "overflow": {"shape": [1 << 32, 1 << 32, 4], "data_offsets": [0, (1 << 64) * 16]},
        "negative": {"shape": [-1, -64]},
        "dtype": {"dtype": rng.choice(["I64", "F8_E4M3", "Q4", "", None, ["F32"], "BOOL"])},
        "beyond": {"data_offsets": [begin + (1 << 40), end + (1 << 40)]},
        "overlap": {"data_offsets": [begin + 4, end + 4]},
        "keys": {"code": "import os"},
        "text": {"shape": "64"},
        "bool": {"shape": [True, True]},
    }
    row |= changes.get(how, {})
    text = json.dumps(header).encode()
    if how == "deep":
        text = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    elif how == "twice":
        text = text[:-1] + b"," + text[1:]
    size = rng.choice([1 << 63, 1 << 40, len(data) * 2]) if how == "length" else len(text)
    changed = struct.pack("<Q", size) + text + data[8 + length :]
    file.write_bytes(changed[: rng.randrange(len(changed))] if how == "cut" else changed)
    return f"{file.name} header {how}", lambda: registry.publish(folder, draft())


def _weights(rng: random.Random, seed: int, registry: Registry, base: Path, work: Path) -> tuple[str, Callable[[], object]]:
    folder = write_adapter(work / "a", seed)
    how = rng.choice(["nan", "inf", "zero B", "zero head", "rank", "lone A", "odd", "shapes", "none", "nan head"])
    weights = {
        f"{MODULE}.lora_A.weight": np.ones((2, 64), np.float32),
        f"{MODULE}.lora_B.weight": np.ones((64, 2), np.float32),
    }
    a, b = weights
    if how in ("nan", "inf"):
        weights[rng.choice([a, b])][1, 1] = np.float32(how)
    elif how == "zero B":
        weights[b][:] = 0
    elif how == "rank":
        weights = {a: np.ones((4096, 64), np.float32), b: np.ones((64, 4096), np.float32)}
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG | {"r": rng.choice([4096, 2, 10**18])}))
    elif how == "lone A":
        del weights[b]
    elif how == "odd":
        odd = ["model.embed_tokens.weight", "lora_magnitude_vector", "../x.lora_A.weight", f"{MODULE}.lora_embedding_A"]
        weights[rng.choice(odd)] = np.ones(2, np.float32)
    elif how == "shapes":
        weights[b] = np.ones((64, 3), np.float32)
    if how == "none":
        (folder / "adapter_model.safetensors").unlink()
        (folder / "heads.safetensors").unlink()
    else:
        save_file(weights, folder / "adapter_model.safetensors")
    if how in ("zero head", "nan head"):
        save_file(
            {"like.weight": np.full((1, 64), np.nan if how == "nan head" else 0, np.float32)},
            folder / "heads.safetensors",
        )
    return f"weights {how}", lambda: registry.publish(folder, draft())


def _manifest(rng: random.Random, seed: int, registry: Registry, base: Path, work: Path) -> tuple[str, Callable[[], object]]:
    folder = write_adapter(work / "a", seed)
    raw = json.dumps(draft().raw())
    texts = {
        "cut": raw[: rng.randrange(len(raw))],
        "deep": raw[:-1] + ',"notes":' + "[" * 50_000 + "]" * 50_000 + "}",
        "nan": raw.replace('"seconds": 0.0', '"seconds": NaN'),
        "huge": raw.replace('"seconds": 0.0', '"seconds": 1e999'),
        "digits": raw.replace('"tokens": 0', '"tokens": ' + "9" * 100_000),
        "unknown": raw[:-1] + ',"exec":"x"}',
        "twice": raw[:-1] + ',"name":"other"}',
        "schema": raw.replace('"schema": 1', '"schema": 2'),
        "long": raw[:-1] + " " * (5 << 20) + "}",
        "list": "[]",
        "encoder": raw.replace('"encoder": null', '"encoder": "' + "0" * 64 + '"'),
        "parent": raw.replace('"parents": []', '"parents": ["../x"]'),
        "surrogate": raw.replace('"tokenizer": null', '"tokenizer": "\\ud800"'),
    }
    how = rng.choice(sorted(texts))
    (folder / "manifest.json").write_text(texts[how])
    return f"manifest {how}", lambda: registry.publish(folder)


def _config(rng: random.Random, seed: int, registry: Registry, base: Path, work: Path) -> tuple[str, Callable[[], object]]:
    folder = write_adapter(work / "a", seed)
    how = rng.choice(
        [
            "recipe tag",
            "recipe bomb",
            "dora",
            "regex",
            "deep",
            "rank",
            "kind",
            "mapping",
            "alpha",
            "not text",
            "pattern",
        ]
    )
    changes: dict[str, dict[str, Any]] = {
        "dora": {"use_dora": True},
        "regex": {"rank_pattern": {"(a|a)*b": 2}},
        "rank": {"r": -1},
        "kind": {"peft_type": "PROMPT_TUNING"},
        "mapping": {"auto_mapping": {"parent_library": "os", "base_model_class": "system"}},
        "alpha": {"lora_alpha": "x"},
        "pattern": {"alpha_pattern": ["q_proj"]},
    }
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes.get(how, {})))
    if how == "deep":
        (folder / "adapter_config.json").write_text("[" * 100_000)
    if how == "recipe tag":
        (folder / "recipe.yaml").write_text("name: !!python/object/apply:os.system ['touch sentinel']\n")
    if how == "recipe bomb":
        (folder / "recipe.yaml").write_text("a: &a [x, x]\nb: [*a, *a]\n")
    if how == "not text":
        (folder / "README.md").write_bytes(b"\xff\xfe\0")
    return f"config {how}", lambda: registry.publish(folder, draft())


def clean(work: Path) -> None:
    """Remove the files of a case."""
    shutil.rmtree(work)
