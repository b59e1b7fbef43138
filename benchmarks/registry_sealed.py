"""Sealed hostile versions, one per seed, for `registry.py --only sealed`: their digests are right, and their content is not.

Owns: hostile encoders, catalogues, heads and fields of a manifest, and offering a version of any kind. Ignores: counting.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from genre.registry import Registry
from genre.registry.journal import Journal
from genre.registry.manifest import checksum_of, digest_of, render
from registry_case import Case, store
from registry_sealed_files import FILES

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    0.5,
    10**12,
    2**63,
    "",
    "many",
    "../x",
    "{0.__class__}",
    [],
    {},
    [[]],
    [None],
    {"a": {}},
)


def offer(seed: int, registry: Registry, good: str, work: Path) -> tuple[str, str, str]:
    """Put hostile version number `seed` into the store.

    Args:
        seed: Decides all of it.
        registry: Has a good version and its encoder.
        good: The reference of the good version.
        work: An empty folder.

    Returns:
        Its kind, its name, its reference.
    """
    rng = random.Random(seed)
    kind = list(KINDS)[seed % len(KINDS)]
    version = registry.resolve(good)
    folder = work / "adapter"
    shutil.copytree(registry.fetch(version, recheck=False), folder)
    case = Case(folder, version.manifest.raw() | {"name": f"h{seed}"}, registry, rng)
    what = KINDS[kind](case)
    if case.encoder is not None:
        case.raw["encoder"] = store(registry, *case.encoder)
    digest = store(registry, case.folder, case.raw)
    name = case.raw["name"] if isinstance(case.raw["name"], str) else f"h{seed}"
    stored = Path(registry.url) / f"h{seed}" / digest[:12]
    for change in case.stored:
        change(stored)
    if not any((stored.parent / "aliases").glob("*.json")):
        Journal(registry.store, f"h{seed}").append("production", digest[:12], "publish")
    return f"{kind}: {what}", name, f"h{seed}:{digest[:12]}"


def _encoders(case: Case) -> str:
    """An encoder of its own beside it: `encoder.json` decides nothing that the tensors do not have."""
    version = case.registry.find(str(case.raw["encoder"]))
    folder = case.folder.with_name("encoder")
    shutil.copytree(case.registry.fetch(version, recheck=False), folder)
    described = json.loads((folder / "encoder.json").read_text())
    spec = described["spec"]
    huge = case.rng.choice([2**20, 2**31, 2**40, 10**15, -1, 0, 1.5, "x", None])
    ways: dict[str, dict[str, Any]] = {
        **{
            name: {"spec": spec | {name: huge if huge != spec[name] else -2}}
            for name in ("width", "learned", "collaborative", "factors", "feedback")
        },
        "dense": {"spec": spec | {"dense": [[f"d{n}", 2**20] for n in range(case.rng.choice([1, 1000, 100_000]))]}},
        "text": {"spec": spec | {"text": case.rng.choice([5, [5], ["nothing"], [[]], "title"])}},
        "dropout": {"spec": spec | {"width": 10, "dropout": "x"}},
        "field": {"spec": spec | {"code": "import os"}},
        "no spec": {"spec": None},
        "items": {"items": case.rng.choice([[5] * 3, ["x"] * 10**6, {"a": 1}, "items"])},
        "values": {"feedback": {"column": "rating", "values": case.rng.choice([[0.0] * 10**6, "12345", None, [{}] * 5])}},
        "list": {},
    }
    how = case.rng.choice([*ways, "tensors", "integers", "catalogue"])
    (folder / "encoder.json").write_text(json.dumps([described] if how == "list" else described | ways.get(how, {})))
    if how in ("tensors", "integers"):
        tensors = dict(load_file(folder / "encoder.safetensors"))
        name = case.rng.choice(sorted(tensors))
        tensors[name] = np.ones(
            tensors[name].shape if how == "integers" else (7, 3), np.int64 if how == "integers" else np.float32
        )
        (folder / "encoder.safetensors").unlink()
        save_file(tensors, folder / "encoder.safetensors")
    if how == "catalogue":
        how = f"catalogue {_write_catalogue(case.rng, folder / 'catalogue.jsonl')}"
    case.encoder = folder, version.manifest.raw() | {"name": f"{case.raw['name']}-encoder"}
    return f"encoder {how}"


def _write_catalogue(rng: random.Random, file: Path) -> str:
    ways: dict[str, Callable[[], str]] = {
        "columns": lambda: "".join(json.dumps({"item_id": f"i{n}", f"c{n}": 1}) + "\n" for n in range(6000)),
        "types": lambda: '{"item_id": 5}\n{"item_id": {"a": []}}\n',
        "twice": lambda: '{"item_id": "a", "title": "x"}\n' * 3,
        "no id": lambda: '{"title": "x"}\n',
        "deep": lambda: '{"item_id": ' + "[" * 5000 + "]" * 5000 + "}\n",
        "number": lambda: '{"item_id": "a", "title": 1e400}\n',
        "line": lambda: '{"item_id": "a", "title": "' + "x" * 5_000_000 + '"}\n',
        "empty": lambda: "",
        "blank": lambda: "\n\n",
    }
    how = rng.choice(sorted(ways))
    file.write_text(ways[how]())
    return how


def _catalogues(case: Case) -> str:
    return _write_catalogue(case.rng, case.folder / "catalogue.jsonl")


def _heads(case: Case) -> str:
    described = json.loads((case.folder / "heads.json").read_text())
    own = described["like"]
    field_ = case.rng.choice(
        ["size", "width", "classes", "cooccurrence", "feedback_codes", "kind", "loss", "neighbours", "ngrams"]
    )
    value = case.rng.choice([*ODD[1:], 2**40, {"items": 2**40}, "catalogue", [1] * 10])
    whole = case.rng.choice([None, None, None, [described], {}, {"like": None}, {"like": []}, {"other": own}])
    other = "wrong" if value == own[field_] else value
    case.write("heads.json", {"like": own | {field_: other}} if whole is None else whole)
    return f"heads.json {field_}" if whole is None else "heads.json as a whole"


def _sequences(case: Case) -> str:
    sequence = dict(case.raw["sequence"])
    case.raw["sequence"] = sequence
    if case.rng.random() < 0.3:
        name = case.rng.choice(sorted(sequence.keys() - {"control_tokens"}))  # older versions record no rule
        del sequence[name]
        return f"no {name}"
    name, value = case.rng.choice(
        [
            ("instruction", "Age {age:>100000000}:"),
            ("instruction", "{age.__class__.__mro__}"),
            ("instruction", "{age!r:{age}}"),
            ("instruction", "{"),
            ("instruction", 5),
            ("instruction", "x" * 3_000_000),
            ("max_events", 10**15),
            ("max_events", "many"),
            ("max_events", -1),
            ("max_events", 0),
            ("max_item_tokens", "x"),
            ("item", "code"),
            ("item", ["token"]),
            ("text", 5),
            ("text", [5]),
            ("values", "12345"),
            ("values", [{}]),
            ("values", [float(n) for n in range(100_000)]),
            ("feedback", 5),
            ("feedback", "behaviour"),
            ("soft_feedback", "x"),
        ]
    )
    sequence[name] = value
    return f"{name} {str(value)[:20]}"


def _tasks(case: Case) -> str:
    task = dict(case.raw["tasks"][0])
    ways: dict[str, Any] = {
        "no kind": [{"name": "like"}],
        "kind": [task | {"kind": "__import__('os')"}],
        "label": [task | {"label": "__import__('os').system('touch sentinel') > 3"}],
        "head": [task | {"head": "pickle"}],
        "many": [task | {"name": f"t{n}"} for n in range(2000)],
        "name": [task | {"name": "../x"}],
        "field": [task | {"code": "import os"}],
        "classes": [task | {"classes": 2**40, "head": "ordinal"}],
        "weights": [task | {"weight": "x"}],
        "none": [],
    }
    how = case.rng.choice(sorted(ways))
    case.raw["tasks"] = ways[how]
    return how


def _bases(case: Case) -> str:
    base = dict(case.raw["base"])
    how = case.rng.choice(["fingerprint", "name", "depth", "tokenizer", "quantization"])
    if how == "tokenizer":
        case.raw["tokenizer"] = "0" * 64
        return how
    names = ["https://evil.example/base", "../../../etc", "evil/base", "/dev/zero", "\x00", "x" * 10**5, "smollm2-135m"]
    base["name"] = case.rng.choice(names)
    if how == "depth":
        base["depth"] = case.rng.choice([1, 10**12])
    else:
        base["fingerprint"] = case.rng.choice(["0" * 64, "", "x" * 10**5])
    case.raw["base"] = base
    return f"{how} {base['name'][:20]!r}"


def _references(case: Case) -> str:
    good = case.registry.resolve("like@production").digest
    how = case.rng.choice(["itself", "missing", "adapter", "parents"])
    if how == "parents":
        case.raw["parents"] = ["0" * 64] * 5000 + [good]
        case.raw["encoder"] = good
    else:
        case.raw["encoder"] = {"itself": "1" * 64, "missing": "0" * 64, "adapter": good}[how]
    return how


def _manifests(case: Case) -> str:
    how = case.rng.choice(["notes", "deep", "kind", "schema", "field", "metrics", "kind encoder", "long", "name"])
    if how == "notes":
        case.raw["notes"] = {"x": [[]] * 400_000}
    elif how == "deep":
        value: Any = 1
        for _ in range(200):
            value = [value]
        case.raw["notes"] = {"x": value}
    elif how == "long":
        case.raw["code_version"] = "x" * 5_000_000
    elif how == "name":
        case.stored.append(lambda stored: (stored / "manifest.json").write_bytes(_renamed(stored / "manifest.json")))
    else:
        changes: dict[str, dict[str, object]] = {
            "kind": {"kind": "pickle"},
            "schema": {"schema": 2},
            "field": {"exec": "x"},
            "metrics": {"metrics": {"like": {"auc": {"value": "x"}}}},
            "kind encoder": {"kind": "encoder", "encoder": None},
        }
        case.raw |= changes[how]
    return how


def _renamed(file: Path) -> bytes:
    """A manifest of another name, sealed again."""
    raw = json.loads(file.read_bytes()) | {"name": "like"}
    raw["digest"] = digest_of(raw)
    raw["checksum"] = checksum_of(raw)
    return render(raw)


def _texts(case: Case) -> str:
    """Layouts of labelled texts over weights that read a log."""
    values = [{"pool": "mean"}, {"pool": "mean", "max_tokens": 10**12, "text": ["title"]}, {"pool": [], "max_tokens": "x"}]
    case.raw["sequence"] = case.rng.choice(values)
    return str(case.raw["sequence"])[:30]


KINDS: dict[str, Callable[[Case], str]] = {
    **FILES,
    "encoders": _encoders,
    "catalogues": _catalogues,
    "heads": _heads,
    "sequences": _sequences,
    "tasks": _tasks,
    "bases": _bases,
    "references": _references,
    "manifests": _manifests,
    "texts": _texts,
}
"""Makers by kind."""
