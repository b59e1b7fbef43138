"""Small recipes, models and versions that several test modules build on."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genre.data.interactions import Interactions
from genre.recipe import Recipe

LIKE: dict[str, Any] = {"name": "like", "kind": "feedback", "label": "rating > 3"}
RATING: dict[str, Any] = {"name": "rating", "kind": "feedback", "label": "rating", "head": "scalar", "loss": "mse"}
NEXT: dict[str, Any] = {"name": "next_item", "kind": "next_item"}
GOOD: dict[str, Any] = {"name": "good", "kind": "text", "label": "recommended"}
STARS: dict[str, Any] = {"name": "stars", "kind": "text", "label": "rating", "loss": "cross_entropy"}
NUMBER: dict[str, Any] = {"name": "number", "kind": "text", "label": "rating", "loss": "mse"}
QUICK = {"epochs": 1, "batch_tokens": 1024}
"""The section `train` of a recipe that is trained many times."""


@dataclass(frozen=True)
class Trained:
    """Three trained adapters in one registry."""

    registry: Any
    runs: dict[str, Any]
    log: Interactions
    base: Path


def recipe(base: Path, /, *tasks: dict[str, Any], **sections: Any) -> Recipe:
    """A recipe that trains in a second; `train={"epochs": 1}` changes keys of a section, a text replaces it."""
    raw: dict[str, Any] = {
        "name": tasks[0]["name"],
        "data": {"path": "planted", "max_events": 16},
        "base": {"name": str(base)},
        "sequence": {"instruction": "User of age {age}:"},
        "encoder": {"learned": 8, "collaborative": 8},
        "tasks": list(tasks),
        "adapter": {},
        "train": {"epochs": 2, "batch_tokens": 512, "learning_rate": 5e-3, "dropout": 0.0, "tracker": "none"},
    }
    for name, value in sections.items():
        raw[name] = {**raw[name], **value} if isinstance(value, dict) else value
    return Recipe.parse(raw)


def text_recipe(base: Path | str, /, *tasks: dict[str, Any], **sections: Any) -> Recipe:
    """The same for `planted_texts`."""
    raw: dict[str, Any] = {
        "name": tasks[0]["name"],
        "data": {"path": "planted", "split": {"kind": "group", "valid": 0.15, "test": 0.2}},
        "base": {"name": str(base)},
        "sequence": {"text": ["title", "review"], "max_tokens": 64},
        "tasks": list(tasks),
        "train": {"epochs": 4, "batch_tokens": 1024, "learning_rate": 5e-3, "dropout": 0.0, "tracker": "none"},
    }
    for name, value in sections.items():
        raw[name] = {**raw.get(name, {}), **value}
    return Recipe.parse(raw)


def write_recipe(base: Path, /, *tasks: dict[str, Any], **sections: Any) -> str:
    """Write `NAME.yaml`, one epoch on the data set `shop`, into the current folder; return its name."""
    found = recipe(base, *tasks, **{"data": {"path": "shop"}, "train": {"epochs": 1}, **sections})
    Path(f"{found.name}.yaml").write_text(found.dump())
    return f"{found.name}.yaml"


def weights(assembly: Any) -> dict[str, Any]:
    """A copy of everything that trains, by name."""
    return {name: value.detach().clone() for name, value in assembly.model.trainable().items()}


def stir(assembly: Any, seed: int = 0, size: float = 0.3) -> None:
    """Give every low-rank B and every head weight random values, as if it had been trained."""
    import torch

    from genre.modules.heads.heads import CatalogueHead

    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in assembly.model.layers.values():
            layer.lora_B.copy_(torch.empty(layer.lora_B.shape).normal_(std=size / layer.rank**0.5, generator=draw))
        for parameter in assembly.model.heads.parameters():
            parameter.add_((torch.randn(parameter.shape, generator=draw) * size).to(parameter.device))
        for name, head in list(assembly.model.heads.items()):
            if isinstance(head, CatalogueHead) and head.memory is not None:
                factors = torch.randn(4, head.spec.width, generator=draw) * size / 6
                assembly.model.heads[name] = head.with_cooccurrence(factors.to(head.key.weight.device), 0.3)


def publish_stirred(
    registry: Any, wanted: Recipe, log: Interactions, base: Any, folder: Path, *, seed: int = 0, encoder: str | None = None
) -> Any:
    """Publish an adapter with random weights: as good as a trained one for everything but quality.

    Args:
        encoder: Reference of a published encoder; without one, items must be text.
    """
    from genre.engine.versions import read_encoder
    from genre.jobs.publish import adapter_manifest, write_adapter
    from genre.registry.manifest import Cost
    from genre.training.assembly import assemble

    shared = None if encoder is None else read_encoder(registry, registry.resolve(encoder).digest, base)
    assembly = assemble(wanted, log, base, shared)
    try:
        stir(assembly, seed)
        write_adapter(folder, assembly)
        digest = None if shared is None else shared.digest
        manifest = adapter_manifest(assembly, encoder=digest, cost=Cost(), metrics={})
        return registry.publish(folder, manifest)
    finally:
        assembly.model.release()


def rows_of(assembly: Any, windows: Any) -> list[Any]:
    """Rows of some windows."""
    return [assembly.builder.row(window) for window in windows]


def with_values(log: Interactions, **columns: dict[int, Any]) -> Interactions:
    """The same log with some cells changed: `with_values(log, rating={3: 1.0})`, by place in the log's order."""
    import polars as pl

    frame = log.frame
    for name, cells in columns.items():
        values = frame[name].to_list()
        for place, value in cells.items():
            values[place] = value
        frame = frame.with_columns(pl.Series(name, values, dtype=frame[name].dtype))
    changed = Interactions.from_frame(frame.drop("row"), items=log.catalogue.frame, users=log.users, name="changed")
    assert np.array_equal(changed.timestamps, log.timestamps)  # nobody moved
    return changed


def give_key(folder: Path) -> None:
    """What the first version that is trained on a data set folder leaves there, if it can."""
    from genre.data.user_key import new_key

    if (key := new_key(folder)) is not None:
        key.kept()


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes: what a full disk does, for this process alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


PRIVACY: dict[str, Any] = {"epsilon": 8, "users": 20, "feedback_values": [1, 2, 4, 5], "ranges": {}}
"""The section `train.privacy` of recipes on the planted log; one setting for all tests, since its noise is searched for once."""


def private_recipe(
    base: Path, *tasks: dict[str, Any], epochs: int = 3, privacy: dict[str, Any] | None = None, **sections: Any
) -> Recipe:
    """A recipe as `recipe` makes it, with privacy by user."""
    ranges = {task["name"]: [1, 5] for task in tasks if task.get("loss") == "mse"}
    train = {"epochs": epochs, **sections.pop("train", {}), "privacy": {**PRIVACY, "ranges": ranges, **(privacy or {})}}
    data = {"split": {"kind": "user_ratio"}, **sections.pop("data", {})}
    return recipe(base, *tasks, data=data, train=train, **sections)
