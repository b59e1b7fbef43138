"""What the registry hands out.

Owns: the small frozen values that cross the seam. Ignores: how they come about.

    >>> Listed("like", "a3f09c12be77", ("latest", "production")).aliases
    ('latest', 'production')
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from genre.registry.manifest import Manifest


class Publishable(Protocol):
    """What else than a folder can be published: a finished run."""

    @property
    def folder(self) -> Path:
        """The folder that holds the files of the version."""

    @property
    def manifest(self) -> Manifest:
        """The draft of its manifest."""


@dataclass(frozen=True)
class Version:
    """A published version; `ref` is `name:version`."""

    name: str
    version: str
    digest: str
    manifest: Manifest

    @property
    def ref(self) -> str:
        """The reference that always means this version."""
        return f"{self.name}:{self.version}"


@dataclass(frozen=True)
class Listed:
    """One row of a listing; made without opening the version."""

    name: str
    version: str
    aliases: tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """Something that `verify` found. `version` and `file` are empty where they do not apply."""

    name: str
    version: str
    file: str
    what: str

    def __str__(self) -> str:
        """One line: where, then what."""
        place = f"{self.name}:{self.version}" if self.version else self.name
        return f"{place}{'/' + self.file if self.file else ''} {self.what}"


def references(manifest: Manifest) -> list[str]:
    """What a version needs or came from: its encoder's digest, then its parents."""
    return [reference for reference in (manifest.encoder, *manifest.parents) if reference]
