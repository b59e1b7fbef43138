"""The read cache: versions of remote stores on this machine, keyed by digest.

Owns: the folder `<cache>/<digest>/`, filled aside and renamed. Ignores: names and aliases (the digest is the identity).

A hit is checked like a miss: a version that has rotted in the cache is dropped and fetched again.
"""

import os
import shutil
import tempfile
from pathlib import Path

from genre.errors import IntegrityError
from genre.files import disk_errors
from genre.registry.integrity import check_file_name, check_sizes, check_stored
from genre.registry.manifest import Manifest
from genre.registry.names import MANIFEST
from genre.registry.store import Store


def cached_folder(cache: Path, digest: str) -> Path:
    """Where a version's copy lies, if there is one."""
    return cache / digest


def fetch_cached(cache: Path, store: Store, manifest: Manifest, manifest_bytes: bytes) -> Path:
    """Return a verified local copy of a version.

    Args:
        cache: The cache's folder; made if missing.
        store: Where the version lies.
        manifest: Its manifest, already checked.
        manifest_bytes: The same as stored.

    Raises:
        IntegrityError: The stored version is damaged or unsafe; nothing is left in the cache.
    """
    target = cached_folder(cache, manifest.digest)
    if target.is_dir():
        try:
            check_stored(target, manifest)
            return target
        except (IntegrityError, OSError):
            with disk_errors(cache):
                shutil.rmtree(target)
    with disk_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=cache))
        try:
            _download(store, manifest, aside)
            (aside / MANIFEST).write_bytes(manifest_bytes)
            check_stored(aside, manifest)
            try:
                os.rename(aside, target)
            except OSError:
                if not target.is_dir():  # another process may have filled it
                    raise
            return target
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _download(store: Store, manifest: Manifest, folder: Path) -> None:
    """Fetch what the manifest names, and nothing else, after looking at the sizes."""
    for file in manifest.files:
        check_file_name(file)
    sizes = store.files(manifest.name, manifest.version)
    check_sizes({file: sizes[file] for file in manifest.files if file in sizes})
    for file in manifest.files:
        if file not in sizes:
            raise IntegrityError(
                f"{manifest.name}:{manifest.version} is damaged: {file} is missing", todo="restore it from a copy"
            )
        store.download(manifest.name, manifest.version, file, folder / file)
