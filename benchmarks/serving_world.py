"""The world of the serving benchmark: a registry of versions with random weights, rows to ask, each version's answers.

Quality does not matter here; cost, identity and order do. Every version's answer to every row is computed by an engine in this
process before anything is served, each row alone; later answers are checked against that table.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import genre
from genre.engine import Engine, Request
from genre.engine.versions import read_encoder
from genre.jobs.encoders import publish_encoder
from genre.jobs.loading import load_base, open_log
from genre.jobs.publish import adapter_manifest, write_adapter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.registry.manifest import Cost
from genre.training.assembly import assemble
from tiny_world import NAME, tiny_base, tiny_log

TASKS: dict[str, dict[str, Any]] = {
    "like": {"name": "like", "kind": "feedback", "label": "rating > 3"},
    "rating": {"name": "rating", "kind": "feedback", "label": "rating", "head": "scalar", "loss": "mse"},
    "next_item": {"name": "next_item", "kind": "next_item"},
}
VERSIONS = 2
CANDIDATES = 10
TOLERANCE = 2e-4
KEPT = "world.json"

Row = dict[str, Any]


@dataclass
class World:
    """The state that every section needs.

    Attributes:
        registry, data, base: Paths, as given to `genre serve`.
        versions: For each adapter its versions' digests, the production one first.
        rows: Rows for `NAME@production`, without ids.
        expected: By digest and place in `rows`, each item's score.
    """

    registry: Path
    data: Path
    base: str
    versions: dict[str, list[str]]
    rows: list[Row]
    expected: dict[tuple[str, int], dict[str, float]]

    def arguments(self, *more: str) -> list[str]:
        """Arguments of `genre serve`."""
        return ["--registry", str(self.registry), "--data", str(self.data), "--base", self.base, *more]

    def engine(self) -> Engine:
        """An engine in this process, configured as the service's."""
        store = Registry(self.registry)
        base = load_base(store.resolve("like@production").manifest, self.base)
        return Engine(base, store, data=open_log(str(self.data)))

    def wrong(self, place: int, answer: Row) -> str | None:
        """Describe what is wrong with an answer to a row: another version's scores, a missing item, an unknown digest."""
        if "error" in answer:
            return f"error: {answer['error']}"
        wanted = self.expected.get((answer["digest"], place))
        if wanted is None or answer["digest"] not in self.versions[self.rows[place]["adapter"].partition("@")[0]]:
            return f"digest {answer['digest'][:12]}"
        row, got = self.rows[place], {item["item_id"]: item["score"] for item in answer["results"]}
        if "candidates" in row and [item["item_id"] for item in answer["results"]] != [_name(item) for item in row["candidates"]]:
            return "other items than asked"
        if "k" in row and (len(got) != row["k"] or min(got.values()) < sorted(wanted.values())[-row["k"]] - TOLERANCE):
            return "not the best items"
        for item, score in got.items():
            if abs(score - wanted[item]) > TOLERANCE * max(1.0, abs(wanted[item])):
                return f"score of {item}: {score} instead of {wanted[item]}"
        return None


def _name(item: Any) -> str:
    return item if isinstance(item, str) else str(item["title"])


def reopen(folder: Path) -> World | None:
    """Read the world that `keep` wrote into a folder; None if there is none."""
    file = folder / KEPT
    if not file.exists():
        return None
    kept = json.loads(file.read_text())
    expected = {(digest, place): scores for digest, place, scores in kept.pop("expected")}
    return World(folder / "registry", Path(kept.pop("data")), expected=expected, **kept)


def keep(folder: Path, world: World) -> None:
    """Write a world into its folder, so that the next run need not make it."""
    kept = {name: getattr(world, name) for name in ("base", "versions", "rows")}
    expected = [[digest, place, scores] for (digest, place), scores in world.expected.items()]
    (folder / KEPT).write_text(json.dumps({**kept, "data": str(world.data), "expected": expected}))


def make(folder: Path, data: str, base_name: str, depth: int | None, *, rows: int = 48) -> World:
    """Publish the versions, draw the rows, fill the table."""
    log = tiny_log() if data == NAME else open_log(data)
    if base_name == NAME:
        base_name = str(tiny_base(folder / "base"))
    place = log.write(folder / "data")
    base = genre.Base.load(base_name, depth=depth)
    registry = Registry(folder / "registry")
    encoder = None
    versions: dict[str, list[str]] = {}
    for name, task in TASKS.items():
        for number in range(VERSIONS):
            version, encoder = _publish(registry, log, base, task, encoder, folder / "aside" / f"{name}-{number}", seed=number)
            registry.promote(version, "candidate" if number else "production")
            versions.setdefault(name, []).append(version.digest)
    drawn = draw(log, rows)
    expected = _table(registry, log, base, versions, drawn)
    return World(folder / "registry", place, str(base_name), versions, drawn, expected)


@torch.no_grad()
def _publish(
    registry: Registry,
    log: genre.Interactions,
    base: genre.Base,
    task: dict[str, Any],
    encoder: str | None,
    folder: Path,
    seed: int,
) -> tuple[Any, str]:
    raw = {
        "name": task["name"],
        "data": {"path": "here", "max_events": 64},
        "base": {"name": base.name, "depth": base.depth},
        "encoder": {"learned": 8, "use": "fit" if encoder is None else "auto"},
        "tasks": [task],
        "train": {"tracker": "none"},
    }
    shared = None if encoder is None else read_encoder(registry, encoder, base)
    assembly = assemble(Recipe.parse(raw), log, base, shared)
    draws = torch.Generator().manual_seed(seed)
    try:
        for label, value in assembly.model.lora_parameters():
            if label.endswith("lora_B"):
                value.copy_(0.1 * value.shape[1] ** -0.5 * torch.randn(value.shape, generator=draws))
        for value in assembly.model.heads.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=draws))
        if encoder is None:
            encoder, _ = publish_encoder(assembly, folder, registry, Cost())
        assert encoder is not None
        write_adapter(folder / "version", assembly)
        manifest = adapter_manifest(assembly, encoder=encoder, cost=Cost(), metrics={})
        return registry.publish(folder / "version", manifest), encoder
    finally:
        assembly.model.release()


def draw(log: genre.Interactions, count: int) -> list[Row]:
    """Rows of all tasks: users of the data set, histories inline, new users, new items, the best of the catalogue."""
    rng = np.random.default_rng(0)
    items = log.catalogue.item_ids
    column = "rating"
    rows = []
    for place in range(count):
        name = list(TASKS)[place % len(TASKS)]
        user = log.user_ids[int(rng.integers(len(log.user_ids)))]
        row: Row = {"adapter": f"{name}@production"}
        if place % 4 == 3:
            events = log.history(user)[: int(rng.integers(1, 30))]
            row["history"] = [{"item_id": event["item_id"], column: event[column]} for event in events]
        elif place % 16 == 2:
            row["history"] = []
        else:
            row["user_id"] = user
        if name == "next_item":
            row["k"] = 10
        else:
            row["candidates"] = [items[code] for code in rng.choice(len(items), min(CANDIDATES, len(items)), replace=False)]
            if place % 12 == 7:
                row["candidates"][-1] = {"title": f"A film that nobody has seen, part {place}"}
        rows.append(row)
    return rows


def _table(
    registry: Registry, log: genre.Interactions, base: genre.Base, versions: dict[str, list[str]], rows: list[Row]
) -> dict[tuple[str, int], dict[str, float]]:
    expected = {}
    with Engine(base, registry, data=log) as engine:
        for place, row in enumerate(rows):
            name = row["adapter"].partition("@")[0]
            for digest in versions[name]:
                whole = {"k": log.catalogue.size} if "k" in row else {}
                (answer,) = engine.score([Request.from_json({**row, **whole, "adapter": f"{name}:{digest[:12]}"})])
                assert answer.error is None and answer.digest == digest, answer.error
                expected[digest, place] = {item.item_id: item.score for item in answer.results}
    for name, (first, second) in versions.items():  # a mixed-up version must show
        own = [place for place, row in enumerate(rows) if row["adapter"].startswith(f"{name}@")]
        gap = max(
            abs(expected[first, place][item] - expected[second, place][item]) for place in own for item in expected[first, place]
        )
        assert gap > 100 * TOLERANCE, f"versions of {name} hardly differ"
    return expected


def body(rows: list[Row]) -> bytes:
    """The body of a call."""
    return json.dumps({"requests": rows}).encode()
