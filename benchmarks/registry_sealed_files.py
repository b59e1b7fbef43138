"""Hostile files of sealed versions: what is no file, weights and configs that nobody should allocate or match, journals.

Owns: a maker for each kind. Ignores: sealing, what a manifest says.
Limits here: a sparse file has 8 GB of holes, a file of many values 24 MB, a journal 100,002 entries.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from genre.registry.journal import Journal
from genre.registry.manifest import checksum_of, render
from registry_case import CONFIG, HEADS, WEIGHTS, Case


def _special_files(case: Case) -> str:
    name = case.rng.choice([WEIGHTS, HEADS, CONFIG, "heads.json", "manifest.json", "README.md", "recipe.yaml"])
    how = case.rng.choice(["pipe", "link", "folder", "sparse", "socket", "device"])

    def change(stored: Path) -> None:
        file = stored / name
        file.unlink()
        if how == "pipe":
            os.mkfifo(file)
        elif how == "folder":
            file.mkdir()
        elif how == "sparse":
            file.touch()
            os.truncate(file, 8 * 2**30)
        elif how == "socket":
            os.mknod(file, 0o140600)
        else:
            file.symlink_to("/dev/zero" if how == "device" else "/etc/passwd")

    case.stored.append(change)
    return f"{name} is a {how}"


def _file_names(case: Case) -> str:
    name = case.rng.choice(
        ["../x.json", "/etc/passwd", "a/b.json", "..", "", ".x.json", "x.py", "x" * 5000 + ".json", "a\x00.json"]
    )
    many = case.rng.random() < 0.3
    case.raw["more_files"] = {f"x{n}.json": "0" * 64 for n in range(20_000)} if many else {name: "0" * 64}
    return "20,000 files" if many else repr(name[:20])


def _journals(case: Case) -> str:
    how = case.rng.choice(["rollback first", "many", "far", "state", "elsewhere", "loop", "alias"])

    def change(stored: Path) -> None:
        journal = Journal(case.registry.store, stored.parent.name)
        folder = stored.parent / "aliases"
        move = journal.append("production", stored.name, "rollback" if how == "rollback first" else "publish")
        first = folder / f"{move.n}.json"
        if how in ("many", "far"):
            source = first
            for number in range(2, 100_003) if how == "many" and case.rng.random() < 0.1 else [10**8]:
                file = folder / f"{number}.json"
                if number % 50_000:
                    os.link(source, file)
                else:  # ext4 allows 65,000 links of a file
                    source = shutil.copyfile(first, file)
        if how in ("state", "elsewhere", "loop", "alias"):
            raw = json.loads(first.read_text())
            target = {"n": 1, "version": stored.name}
            if how == "state":
                raw["state"] |= {f"a{number}": target for number in range(3000)}
            elif how == "elsewhere":
                raw["version"] = raw["state"]["production"]["version"] = "0" * 12
            elif how == "alias":
                raw |= {"alias": "../x", "state": {"../x": target}}
            else:
                raw |= {"action": "publish", "previous": stored.name, "checks": ["x" * 10**5] * 5}
            raw["checksum"] = checksum_of(raw)
            first.write_bytes(render(raw))

    case.stored.append(change)
    _weights(case)  # whatever the journal says, the version itself must not load either
    return how


def _patterns(case: Case) -> str:
    how = case.rng.choice(["many", "backtracking", "group", "rank", "alpha", "deep"])
    field_ = case.rng.choice(["rank_pattern", "alpha_pattern"])
    values: dict[str, Any] = {
        "many": {f"p{number}.*q_.*_proj": 2 for number in range(9_999)},
        "backtracking": {f"{'.*' * 3}{number}": 2 for number in range(5_000)},
        "group": {"(a|a)*b": 2, "((.*)*)*x": 2},
        "rank": {"q_proj": 10**9, "v_proj": -1},
        "alpha": {"q_proj": "x", "v_proj": 1e300},
        "deep": {"(" * 5000: 2},
    }
    case.config(**{field_: values[how]})
    if how in ("many", "backtracking"):  # over as many modules as a large model has
        one = next(value for name, value in case.tensors(WEIGHTS).items() if name.endswith("lora_A.weight"))
        names = [
            f"base_model.model.model.layers.{n}.self_attn.q_a_b_proj.lora_{side}.weight" for n in range(500) for side in "AB"
        ]
        case.save(WEIGHTS, {name: (one if "_A" in name else np.ascontiguousarray(one.T)) for name in names})
    return f"{field_} {how}"


def _configs(case: Case) -> str:
    changes: dict[str, object] = case.rng.choice(
        [
            {"use_dora": True},
            {"peft_type": "PROMPT_TUNING"},
            {"auto_mapping": {"parent_library": "os", "base_model_class": "system"}},
            {"lora_alpha": 1e308},
            {"lora_alpha": None},
            {"r": 0},
            {"r": 2**40},
            {"bias": "all"},
            {"modules_to_save": ["lm_head"]},
            {"use_rslora": "yes"},
            {"init_lora_weights": "pissa"},
            {"fan_in_fan_out": 5},
        ]
    )
    case.config(**changes)
    return str(next(iter(changes)))


def _weights(case: Case) -> str:
    file = case.rng.choice([WEIGHTS, HEADS])
    tensors = case.tensors(file)
    name = case.rng.choice(sorted(name for name, value in tensors.items() if value.ndim))
    value = tensors[name]
    ways: dict[str, np.ndarray] = {
        "integers": np.ones(value.shape, case.rng.choice([np.int64, np.int8, np.bool_, np.uint8])),
        "nan": np.full_like(value, np.nan),
        "beyond float32": np.full(value.shape, 1e39, np.float64),
        "wide": np.ones((*value.shape[:-1], value.shape[-1] * 3), np.float32),
        "empty": np.zeros((0, *value.shape[1:]), np.float32),
        "scalar": np.ones((), np.float32),
        "five dimensions": np.ones((1, 1, 1, *value.shape), np.float32),
    }
    how = case.rng.choice([*ways, "missing", "more", "renamed", "infinite"])
    if how == "infinite":
        value[..., -1] = np.inf
    elif how in ways:
        tensors[name] = ways[how]
    else:
        if how != "more":
            del tensors[name]
        if how == "more":
            tensors["like.more.weight" if file == HEADS else "base_model.model.model.embed_tokens.weight"] = value
        if how == "renamed":
            tensors[name + ".x"] = value
    if not tensors:
        tensors["other.weight"] = value
    case.save(file, tensors)
    return f"{file} {how}"


def _overflows(case: Case) -> str:
    tensors = {name: np.where(value < 0, -3e38, 3e38).astype(np.float32) for name, value in case.tensors(WEIGHTS).items()}
    case.save(WEIGHTS, tensors)
    case.config(lora_alpha=1e6)
    return "products beyond float32"


def _headers(case: Case) -> str:
    file = case.folder / case.rng.choice([WEIGHTS, HEADS])
    ways: dict[str, Callable[[], bytes]] = {
        "shape": lambda: b'{"like.w":{"dtype":"F32","shape":[1099511627776,1099511627776],"data_offsets":[0,8]}}',
        "many": lambda: json.dumps(
            {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(120_000)}
        ).encode(),
        "names": lambda: json.dumps({"x" * 10**6: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}).encode(),
        "deep": lambda: b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "values": lambda: b'{"__metadata__":{},"x":[' + b"0," * 8_000_000 + b"0]}",
        "digits": lambda: b'{"x":{"dtype":"F32","shape":[' + b"9" * 10**6 + b'],"data_offsets":[0,0]}}',
        "twice": lambda: b'{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"x":{}}',
        "list": lambda: b'{"like.w":[]}',
        "pickle": lambda: b"\x80\x04\x95",
        "empty": lambda: b"",
    }
    how = case.rng.choice(sorted(ways))
    text = ways[how]()
    length = len(text) if case.rng.random() < 0.9 else 2**63
    file.write_bytes(length.to_bytes(8, "little") + text + b"\0" * 8)
    return f"{file.name} header {how}"


def _many_values(case: Case) -> str:
    part = case.rng.choice([b"[],", b'{"a":[]},', b"0,", b'"",', b"[[]],"])
    name = case.rng.choice(["heads.json", "more.json", CONFIG])
    size = 3_000_000 if name == CONFIG else 24_000_000
    (case.folder / name).write_bytes(b'{"x": [' + part * (size // len(part)) + b"0]}")
    return f"{name} of {part.decode()}"


def _plain_files(case: Case) -> str:
    ways: dict[str, tuple[str, bytes]] = {
        "tag": ("recipe.yaml", b"name: !!python/object/apply:os.system ['touch sentinel']\n"),
        "bomb": ("recipe.yaml", b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"),
        "deep": ("recipe.yaml", b"[" * 5000),
        "long": ("recipe.yaml", b"x: " + b"y" * 300_000),
        "NUL": ("README.md", b"\0" * 100),
        "not text": ("README.md", b"\xff\xfe\0"),
        "large": ("README.md", b"x" * 5_000_000),
        "lines": ("more.jsonl", b'{"x": NaN}\n'),
    }
    how = case.rng.choice(sorted(ways))
    name, data = ways[how]
    (case.folder / name).write_bytes(data)
    return f"{name} {how}"


FILES: dict[str, Callable[[Case], str]] = {
    "special files": _special_files,
    "file names": _file_names,
    "journals": _journals,
    "patterns": _patterns,
    "configs": _configs,
    "weights": _weights,
    "products": _overflows,
    "headers": _headers,
    "many values": _many_values,
    "plain files": _plain_files,
}
"""Makers by kind; each changes a case and names what it did."""
