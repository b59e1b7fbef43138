"""Folders that somebody takes for a registry and that are something else.

Owns: what such a folder is, in words. Ignores: registries.

    describe_other(Path("data/shop"))     # "a data set folder"
"""

from pathlib import Path

from genre.data.folder import MARKER
from genre.registry.names import ALIASES, MANIFEST

_FILES = {
    MARKER: "a data set folder",
    "interactions.parquet": "a data set folder",
    "environment.json": "a run folder",
    MANIFEST: "the folder of one version",
    "adapter_config.json": "the folder of a PEFT adapter",
    "config.json": "the folder of a base",
}
"""A file that only such a folder has at its top."""

_SHOWN = 3


def describe_other(folder: Path) -> str | None:
    """Return what a folder is that has the marks of something else than a registry; None without such marks."""
    if (folder / ALIASES).is_dir():
        return "the folder of one name in a registry"
    return next((what for file, what in _FILES.items() if (folder / file).is_file()), None)


def describe_content(folder: Path) -> str:
    """Return what a folder without a version holds, as the end of a sentence about it."""
    if not folder.is_dir():
        return "which is not there yet"
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not found:
        return "which is empty"
    return f"which holds no version but {', '.join(found[:_SHOWN])}{' and more' if len(found) > _SHOWN else ''}"
