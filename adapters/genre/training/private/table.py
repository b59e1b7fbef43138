"""The budget table of a private version: where every tensor and number that it holds comes from.

Owns: the table, as manifests keep it under `notes.privacy`; the walk over a version that finds what the table does not name.
Ignores: how versions are written and stored.

    {"unit": "user", "epsilon": 8.0, "delta": 5e-05, "private": true, "mechanisms": [{"name": "steps", "sigma": 1.08, …}, …],
     "public": {"catalogue": "…"}, "off": {"encoder.learned": "…"},
     "sources": {"heads.safetensors:like.linear.weight": "steps", …}}
"""

import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from importlib.metadata import version
from pathlib import Path
from typing import Any

from genre.errors import JobError
from genre.modules.heads.heads import CatalogueHead, ScalarHead, VerbalizerHead
from genre.training.assembly import Assembly
from genre.training.parts import mapped_heads
from genre.training.private.accounting import epsilon_of
from genre.training.private.item_map import CLIP
from genre.training.private.statistics import Part
from genre.training.private.steps import PrivateSteps

PUBLIC = {
    "users": "the number of users, which sets probability, steps and delta",
    "catalogue": "item ids, titles, columns and what the base and n-grams make of them; not their order or counts in the log",
    "base": "its weights and tokenizer",
    "recipe": "every key, declared feedback values and ranges included, and the split's rule",
    "constants": "weight and fading of neighbours by text, starts and steps of item maps, which this release fixes",
    "chance": "weights as the recipe's seed makes them",
    "form": "the log's columns and the order of equal times",
}
"""What is taken as public, and what that covers."""

OFF = {
    "encoder.learned": "vectors of items learnt from events",
    "encoder.collaborative": "vectors of items that are seen together",
    "encoder.factors": "factors of items of the same users",
    "encoder.taste": "the co-occurrence term, whose weight validation chooses",
    "encoder.neighbours": "item neighbours by co-occurrence, and weights that validation chooses; neighbours by text stay",
    "encoder.min_events": "items that count as new for lack of events; all items train alike",
    "sequence.feedback": "feedback values that occur: the recipe declares them",
    "train.early_stop": "validation: the last weights are kept",
    "train.sampled": "counts of negatives: they are drawn evenly",
    "heads": "starts at means, priors and biases of the labels, other than noisy ones",
    "data": "digest, number of events and time span",
    "cost": "tokens, seconds and memory, which follow from the users' events",
}
"""What is off in a private run, and what it would tell."""

_ANY_RUN = {
    "recipe.yaml": "recipe",
    "README.md": "recipe",
    "catalogue.jsonl": "catalogue",
    "adapter_config.json:*": "recipe",
    "heads.json:*": "recipe",
    "encoder.json:spec.*": "recipe",
    "encoder.json:feedback.*": "recipe",
    "manifest.json:name": "recipe",
    "manifest.json:kind": "recipe",
    "manifest.json:schema": "recipe",
    "manifest.json:tasks.*": "recipe",
    "manifest.json:sequence.*": "recipe",
    "manifest.json:data.name": "recipe",
    "manifest.json:data.split.*": "recipe",
    "manifest.json:base.*": "base",
    "manifest.json:tokenizer": "base",
    "manifest.json:encoder": "catalogue",
    "manifest.json:catalogue": "catalogue",
    "manifest.json:protocol.*": "form",
    "manifest.json:code_version": "recipe",
    "manifest.json:cost.lora_params": "recipe",
    "manifest.json:cost.head_params": "recipe",
    "manifest.json:notes.privacy.*": "recipe",
    "manifest.json:notes.from_start": "recipe",
    "manifest.json:notes.precision": "recipe",
    "manifest.json:parents.*": "recipe",
}
_SEALED = frozenset({"version", "digest", "created", "files", "provenance", "checksum"})
"""Fields that publishing fills in from the others, the time and the builder."""


def budget(private: PrivateSteps) -> dict[str, Any]:
    """The table of a run's adapter."""
    plan, assembly = private.plan, private.assembly
    config = assembly.recipe.train.privacy
    assert config is not None
    mechanisms = []
    if plan.statistics_sigma is not None:
        known = {"sigma": plan.statistics_sigma, "epsilon": epsilon_of([(plan.statistics_sigma, 1.0, 1)], plan.delta)}
        what = [f"{part.what} of {part.task} by item" for part in private.parts]
        mechanisms.append({"name": "statistics", "releases": what, **known})
    if plan.map_sigma is not None:
        known = {"sigma": plan.map_sigma, "clip": CLIP, "sample_rate": 1.0, "steps": plan.map_steps}
        alone = epsilon_of([(plan.map_sigma, 1.0, plan.map_steps)], plan.delta)
        mechanisms.append({"name": "item_map", **known, "epsilon": alone})
    steps = (plan.sigma, plan.sample_rate, private.steps)
    known = {"sigma": plan.sigma, "clip": plan.clip, "sample_rate": plan.sample_rate, "steps": private.steps}
    mechanisms.append({"name": "steps", **known, "epsilon": epsilon_of([steps], plan.delta)})
    sources = dict(_ANY_RUN)
    for name in private.parameters:
        file, key = ("heads.safetensors", name.removeprefix("heads.")) if name.startswith("heads.") else ("", name)
        sources[f"{file}:{key}" if file else _peft_name(key)] = "steps"
    for task, head in assembly.model.heads.items():
        if isinstance(head, ScalarHead):
            sources[f"heads.safetensors:{task}.moments"] = "statistics" if Part(task, "labels") in private.parts else "recipe"
        elif isinstance(head, VerbalizerHead):
            sources[f"heads.safetensors:{task}.numbers"] = "recipe"
        elif isinstance(head, CatalogueHead) and head.neighbours is not None:
            for name, _ in head.neighbours.named_buffers():
                of_texts = config.ngrams and name in ("items", "values")
                sources[f"heads.safetensors:{task}.neighbours.{name}"] = "catalogue" if of_texts else "constants"
    for task in mapped_heads(assembly.model) if plan.map_sigma is not None else ():
        sources[f"heads.safetensors:{task}.memory.weight"] = "item_map"
        sources[f"heads.safetensors:{task}.key.weight"] = "statistics" if Part(task, "counts") in private.parts else "constants"
    public = dict(PUBLIC)
    if config.metrics == "public":
        public["metrics"] = "events of the test part, by the recipe's own word"
        sources |= {"manifest.json:metrics.*": "metrics", "manifest.json:notes.untied.*": "metrics"}
    return {
        **_heading(plan.epsilon, plan.delta, plan.secret),
        "spent": plan.spent(private.steps),
        "mechanisms": mechanisms,
        "public": public,
        "off": OFF | ({} if config.metrics == "public" else {"metrics": "metrics on the users' own events"}),
        "sources": sources,
    }


def public_budget(assembly: Assembly) -> dict[str, Any]:
    """The table of an encoder that a private run made: nothing in it is of any user."""
    assert assembly.shared is not None
    sources = dict(_ANY_RUN)
    for name in assembly.shared.encoder.state_dict():
        fitted = name.endswith(("_mean", "_std", "_whitening"))
        sources[f"encoder.safetensors:{name}"] = "catalogue" if fitted or name == "scale" else "chance"
    return {**_heading(0.0, 0.0, True), "spent": 0.0, "mechanisms": [], "public": PUBLIC, "off": OFF, "sources": sources}


def _heading(epsilon: float, delta: float, secret: bool) -> dict[str, Any]:
    try:
        accountant = f"PRV (opacus {version('opacus')})"
    except ModuleNotFoundError:
        accountant = "PRV"
    neighbours = "all events of one user, added or removed"
    return {
        "unit": "user",
        "neighbours": neighbours,
        "epsilon": epsilon,
        "delta": delta,
        "private": secret,
        "accountant": accountant,
    }


def _peft_name(key: str) -> str:
    from genre.modules.lora.layer import PEFT_PREFIX

    return f"adapter_model.safetensors:{PEFT_PREFIX}{key}.weight"


def check_sources(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Walk a private version, and refuse a tensor or number that its budget table does not name.

    Args:
        folder: Its files.
        manifest: Its manifest as JSON values, a draft or sealed.

    Raises:
        JobError: The message names the first one.
    """
    sources = manifest["notes"]["privacy"]["sources"]
    exact = {name for name in sources if "*" not in name}
    patterns = [name for name in sources if "*" in name]
    for name in entries(folder, manifest):
        if name not in exact and not any(fnmatchcase(name, pattern) for pattern in patterns):
            todo = "it would be published without noise; turn off what makes it"
            raise JobError("a private version holds what its budget does not name", got=name, todo=todo)


def entries(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """Everything that a version holds: `file:tensor`, `file:key.of.json`, files of other kinds, and the manifest's own keys."""
    from safetensors import safe_open

    for file in sorted(folder.iterdir()):
        if file.name == "manifest.json":
            continue
        if file.suffix == ".safetensors":
            with safe_open(file, framework="np") as tensors:
                yield from (f"{file.name}:{name}" for name in sorted(tensors.keys()))
        elif file.suffix == ".json":
            yield from (f"{file.name}:{key}" for key in leaves(json.loads(file.read_text(encoding="utf-8"))))
        else:
            yield file.name
    own = {key: value for key, value in manifest.items() if key not in _SEALED}
    empty: dict[str, Any] = {
        "cost": {"seconds": 0.0, "tokens": 0, "peak_memory_bytes": 0},
        "data": {"digest": "withheld", "rows": 0},
    }
    for section, values in empty.items():
        held = own.get(section) or {}
        own[section] = {key: value for key, value in held.items() if key not in values or value != values[key]}
    own["cost"].pop("bytes", None)
    yield from (f"manifest.json:{key}" for key in leaves(own))


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """The dotted paths of all values that are no mapping or list, but for those that are null."""
    children = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else None
    if children is None:
        if value is not None:
            yield path
        return
    for key, child in children:
        yield from leaves(child, f"{path}.{key}" if path else str(key))
