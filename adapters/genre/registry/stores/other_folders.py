"""Folders that somebody takes for a registry and that are something else.

Owns: what such a folder is, in words. Ignores: registries.

    refuse_other(Path("data/shop"), lambda: [])     # RegistryError: data/shop is no registry: got a data set folder; …
"""

from collections.abc import Callable
from pathlib import Path

from genre.data.folder import MARKER
from genre.errors import RegistryError
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


def refuse_other(folder: Path, names: Callable[[], list[str]]) -> None:
    """Refuse a folder that has the marks of something else than a registry.

    Args:
        folder: The folder.
        names: Returns the names that have a version there: a registry may lie among other files.

    Raises:
        RegistryError: It has; the message says what it is.
    """
    what, todo = next((what for file, what in _FILES.items() if (folder / file).is_file()), None), "name the registry's folder"
    if (folder / ALIASES).is_dir():
        what, todo = "the folder of one name in a registry", f"name {folder.parent}"
    if what is not None and not names():
        raise RegistryError(f"{folder} is no registry", got=what, expected="a folder that genre train publishes into", todo=todo)


def describe_content(folder: Path) -> str:
    """Return what a folder without a version holds, as the end of a sentence about it."""
    if not folder.is_dir():
        return "which is not there yet"
    found = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not found:
        return "which is empty"
    return f"which holds no version but {', '.join(found[:_SHOWN])}{' and more' if len(found) > _SHOWN else ''}"
