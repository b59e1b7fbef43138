"""Local copies: a version's files on this machine, checked before they are handed out.

Owns: the cache of remote versions, `<cache>/<digest>/`, filled aside and renamed; and the stamps of folders that were found
whole, for the life of one registry object. Ignores: names and aliases (the digest is the identity), how a folder is checked.

A cached copy is checked like a fresh one: one that has rotted is dropped and fetched again. A stamp is every file's name, inode,
size, and times of modification and of change. The system sets the time of change itself, so a file cannot be altered and made
to look as before; what a stamp does not see is a disk that forgets, which the next process and `genre registry verify` find.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

from genre.errors import IntegrityError, RegistryError
from genre.files import disk_errors, sync_folder
from genre.registry.integrity import check_file_name, check_sizes, check_stored
from genre.registry.limits import MAX_MANIFEST_BYTES
from genre.registry.lookup import checked_version, open_version, require_version
from genre.registry.manifest import Manifest, Version
from genre.registry.names import MANIFEST
from genre.registry.stores.store import Store

Stamp = tuple[tuple[str, int, int, int, int], ...]
SETTLED_NS = 1_000_000_000


class LocalCopies:
    """The folders of a store's versions on this machine; any number of threads may use it.

    Args:
        store: The versions.
        cache: The folder for copies of a remote store's versions; made if missing.
    """

    def __init__(self, store: Store, cache: Path) -> None:
        self.store = store
        self.cache = cache
        self._stamps: dict[Path, tuple[str, Stamp]] = {}
        self._lock = Lock()

    def fetch(self, version: Version, *, recheck: bool = True) -> Path:
        """Return a folder with a version's files, re-hashed and checked; see `Registry.fetch`."""
        local = self.store.folder(version.name, version.version)
        folder = local or self.cache / version.digest
        if not recheck and self._is_unchanged(folder, version.digest):
            return folder
        try:
            with self._watch(folder, version.digest):
                if local is None:
                    self._fetch_remote(version, folder)
                else:
                    check_stored(local, open_version(self.store, version.name, version.digest).manifest)
        except (OSError, RegistryError):
            require_version(self.store, version.name, version.version)  # it may be gone, and not damaged
            raise
        return folder

    def check_stored(self, version: Version) -> None:
        """Check a version of a remote store as it is there, whatever lies in the cache; IntegrityError if it is damaged."""
        data = self.store.read(version.name, version.version, MANIFEST, MAX_MANIFEST_BYTES)
        with self._aside() as aside:
            self._fill(aside, checked_version(data, version.name, version.digest).manifest, data)

    def _fetch_remote(self, version: Version, target: Path) -> None:
        data = self.store.read(version.name, version.version, MANIFEST, MAX_MANIFEST_BYTES)
        manifest = checked_version(data, version.name, version.digest).manifest
        with disk_errors(self.cache):
            if target.is_dir():
                try:
                    check_stored(target, manifest)
                    return
                except (IntegrityError, OSError):
                    shutil.rmtree(target)
            with self._aside() as aside:
                self._fill(aside, manifest, data)
                sync_folder(aside)
                try:
                    os.rename(aside, target)
                except OSError:
                    if not target.is_dir():  # another process may have filled it
                        raise

    @contextlib.contextmanager
    def _aside(self) -> Iterator[Path]:
        """Yield a fresh folder in the cache, removed at the end if it is still there."""
        with disk_errors(self.cache):
            self.cache.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self.cache))
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _fill(self, folder: Path, manifest: Manifest, data: bytes) -> None:
        """Fetch a version's files into a folder, with its manifest's bytes, and check them."""
        with disk_errors(self.cache):
            self._download(manifest, folder)
            (folder / MANIFEST).write_bytes(data)
        check_stored(folder, manifest)

    def _download(self, manifest: Manifest, folder: Path) -> None:
        """Fetch what the manifest names, and nothing else, after a look at the sizes."""
        for file in manifest.files:
            check_file_name(file)
        sizes = self.store.files(manifest.name, manifest.version)
        check_sizes({file: sizes[file] for file in manifest.files if file in sizes})
        for file in manifest.files:
            if file not in sizes:
                ref = f"{manifest.name}:{manifest.version}"
                raise IntegrityError(f"{ref} is damaged: {file} is missing", todo="restore it from a copy")
            self.store.download(manifest.name, manifest.version, file, folder / file)

    def _is_unchanged(self, folder: Path, digest: str) -> bool:
        with self._lock:
            known = self._stamps.get(folder)
        return known is not None and known == (digest, _stamp(folder))

    @contextlib.contextmanager
    def _watch(self, folder: Path, digest: str) -> Iterator[None]:
        """Remember the folder if the check inside the block raises nothing, and nobody wrote there meanwhile.

        A file that was changed less than a second ago could be changed again within the same tick of its clock: such a folder
        is checked again the next time.
        """
        before = _stamp(folder)
        with self._lock:
            self._stamps.pop(folder, None)
        yield
        after = _stamp(folder)
        settled = after is not None and all(changed < time.time_ns() - SETTLED_NS for *_, changed in after)
        if after is not None and after == before and settled:
            with self._lock:
                self._stamps[folder] = (digest, after)


def _stamp(folder: Path) -> Stamp | None:
    try:
        with os.scandir(folder) as entries:
            states = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    except OSError:
        return None
    return tuple(sorted((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in states))
