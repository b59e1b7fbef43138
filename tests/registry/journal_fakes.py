"""Journals as they should not be, or as earlier releases wrote them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from registry_fakes import draft, write_adapter

from genre.registry import Manifest, Registry, Version
from genre.registry.integrity import prepare
from genre.registry.manifest import checksum_of, render

NEWER = ("actor", "before", "digest", "name", "signature")


def entry_of(registry: Registry, number: int, name: str = "like") -> Path:
    return Path(registry.url) / name / "aliases" / f"{number}.json"


def read_entry(registry: Registry, number: int, name: str = "like") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(entry_of(registry, number, name).read_text())
    return found


def rewrite(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change an entry and seal it again, as whoever may write to the store can."""
    raw = json.loads(file.read_text())
    change(raw)
    file.write_bytes(render(raw | {"checksum": checksum_of(raw)}))


def as_earlier_release(raw: dict[str, Any]) -> None:
    """Make an entry what an earlier release would have written: 12 digits, and no chain."""
    for key in NEWER:
        del raw[key]
    for target in raw["state"].values():
        del target["digest"]


def publish_twins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: Registry) -> tuple[Version, Version, Registry]:
    """Publish two versions whose short digits are the same, the second one into another registry.

    The stand-in for a pair with 12 equal digits, which takes minutes to find: a version is the first digit of its digest here.
    """
    monkeypatch.setattr("genre.registry.names.SHORT", 1)
    folder = write_adapter(tmp_path / "twin")
    first = registry.publish(folder, draft(), alias="production")
    other = Registry(tmp_path / "other")
    for number in range(200):
        trial = draft(notes={"try": number})
        if digest_of_draft(folder, trial, tmp_path / f"trial-{number}").startswith(first.version):
            return first, other.publish(folder, trial, alias="production"), other
    raise AssertionError("no two of 200 digests begin with the same digit")


def digest_of_draft(folder: Path, given: Manifest, scratch: Path) -> str:
    scratch.mkdir()
    return prepare(folder, scratch, given, "somebody").digest
