"""A store behind any fsspec URL: files first, the manifest last, alias entries by conditional create.

Owns: the remote implementation of `store.Store`. Ignores: what the files mean; caching (see `cache`).

A version is visible once its `manifest.json` is there, and that is written last. `create_entry` relies on the conditional write
of the file system, and is tested with S3's `If-None-Match: *`. Where fsspec has none it looks, writes and reads back, which two
writers in the same instant could both pass: keep to one writer there.

    s3://bucket/registry/like/a3f09c12be77/heads.safetensors, …, manifest.json
    s3://bucket/registry/like/aliases/1.json
"""

import contextlib
import errno
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import fsspec

from genre.errors import JobError, NotFoundError, RegistryError
from genre.registry.names import ALIASES, HEADS, MANIFEST, RECORDS, SIGNATURES, is_name, is_version
from genre.registry.store import is_entry, is_record, is_signature


class RemoteStore:
    """A store on an fsspec file system; `options` go to it unchanged."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.url = url.rstrip("/")
        try:
            # Listings must be fresh: another writer's entry decides what the next number is.
            file_system, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **options)
        except (ImportError, ValueError) as error:
            todo = "pip install 'genre-adapters[s3]' for s3://, or another fsspec package"
            raise RegistryError("no file system for this registry", got=f"{url}: {error}", todo=todo) from None
        self._fs = file_system
        self._root = root

    def names(self) -> list[str]:
        return list(self.listing())

    def listing(self) -> dict[str, list[str]]:
        """See `Store`; one recursive listing."""
        rows = []
        for path, info in self._find().items():
            if _is_version_file(path) and path.endswith(f"/{MANIFEST}"):
                name, version, _ = path.split("/")
                rows.append((name, _time(info), version))
        versions: dict[str, list[str]] = {}
        for name, _, version in sorted(rows):
            versions.setdefault(name, []).append(version)
        return versions

    def versions(self, name: str) -> list[str]:
        """See `Store`; the order is that of the manifests' times."""
        found = [(_time(info), path) for path, info in self._find(name).items() if path.endswith(f"/{MANIFEST}")]
        return [path.split("/")[1] for _, path in sorted(found) if _is_version_file(path)]

    def known(self) -> list[str]:
        found = set()
        for path in self._find():
            if _is_head(path):
                found.add(path.split("/")[1])
            elif _is_journal_file(path) or (_is_version_file(path) and path.endswith(f"/{MANIFEST}")):
                found.add(path.split("/")[0])
        return sorted(found)

    def has(self, name: str, version: str) -> bool:
        with self._errors():
            return bool(self._fs.exists(self._path(name, version, MANIFEST)))

    def read(self, name: str, version: str, file: str, limit: int) -> bytes:
        path = self._path(name, version, file)
        with self._errors():
            try:
                return bytes(self._fs.cat_file(path, start=0, end=limit + 1))
            except FileNotFoundError:
                raise NotFoundError(f"{file} is missing", got=path.rpartition("/")[0]) from None
            except OSError as error:
                if error.errno == errno.EINVAL:  # S3 has no range in an empty object
                    return b""
                raise

    def folder(self, name: str, version: str) -> Path | None:
        return None

    def files(self, name: str, version: str) -> dict[str, int]:
        """See `Store`; files in folders below count, with their path."""
        return {path.split("/", 2)[2]: int(info["size"]) for path, info in self._find(name, version).items()}

    def download(self, name: str, version: str, file: str, target: Path) -> None:
        with self._errors():
            self._fs.get_file(self._path(name, version, file), str(target))

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="genre-publish-") as folder:
            yield Path(folder)

    def commit(self, staged: Path, name: str, version: str) -> bool:
        """See `Store`. Two writers of one version write the same bytes but for the manifest, where one wins."""
        if self.has(name, version):
            return False
        with self._errors():
            for path in sorted(staged.iterdir()):
                if path.name != MANIFEST:
                    self._fs.put_file(str(path), self._path(name, version, path.name))
        return self._create(self._path(name, version, MANIFEST), (staged / MANIFEST).read_bytes())

    def entries(self, name: str) -> list[int]:
        files = [path.rpartition("/")[2] for path in self._find(name, ALIASES)]
        return sorted(int(file[:-5]) for file in files if is_entry(file))

    def create_entry(self, name: str, number: int, data: bytes) -> bool:
        return self._create(self._path(name, ALIASES, f"{number}.json"), data)

    def put(self, name: str, folder: str, file: str, data: bytes) -> None:
        with self._errors():
            self._fs.pipe_file(self._path(name, folder, file), data)

    def check_writable(self, name: str) -> None:
        """See `Store`: nothing is known before a write."""

    def remove(self, name: str, version: str) -> None:
        with self._errors():
            self._fs.rm_file(self._path(name, version, MANIFEST))
        self.remove_unfinished(f"{name}/{version}")
        beside = [f"{RECORDS}/{version}.json"]
        beside += [f"{SIGNATURES}/{file}" for file in self.files(name, SIGNATURES) if file.startswith(f"{version}-")]
        for file in beside:
            with self._errors(), contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._path(name, file))

    def unfinished(self) -> dict[str, int]:
        """See `Store`: files of versions without a manifest, where all files are older than an hour."""
        folders: dict[str, dict[str, dict[str, Any]]] = {}
        for path, info in self._find().items():
            name, _, rest = path.partition("/")
            version, _, file = rest.partition("/")
            if is_name(name) and is_version(version):
                folders.setdefault(f"{name}/{version}", {})[file] = info
        old = time.time() - 3600
        return {
            folder: sum(int(info["size"]) for info in files.values())
            for folder, files in sorted(folders.items())
            if MANIFEST not in files and all(_time(info) < old for info in files.values())
        }

    def remove_unfinished(self, path: str) -> None:
        found = self._find(path)
        with self._errors():
            for file in found:
                self._fs.rm_file(self._path(file))

    def content(self) -> str:
        return "which holds other files but no version" if self._find() else "which is empty"

    def strays(self) -> list[str]:
        known = (_is_version_file, _is_journal_file, _is_record, _is_head)
        return sorted(path for path in self._find() if not any(of_kind(path) for of_kind in known))

    def writing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def cleaning(self) -> AbstractContextManager[None]:
        """See `Store`: no lock; gc leaves alone what is younger than an hour."""
        return nullcontext()

    def _path(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _find(self, *below: str) -> dict[str, dict[str, Any]]:
        """All files below, by their path under the root."""
        with self._errors():
            try:
                found = self._fs.find(self._path(*below), detail=True)
            except FileNotFoundError:
                return {}
        return {path.removeprefix(self._root + "/"): info for path, info in found.items()}

    def _create(self, path: str, data: bytes) -> bool:
        """Write unless it exists. A retried request may find its own first attempt, so the content decides who won."""
        with self._errors():
            if self._fs.exists(path):
                return False
            try:
                self._fs.pipe_file(path, data, mode="create")
            except FileExistsError:
                pass
            except OSError as error:
                if "PreconditionFailed" not in str(error) and "ConditionalRequestConflict" not in str(error):
                    raise
            return bytes(self._fs.cat_file(path)) == data

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise JobError(f"the registry at {self.url} did not answer as it should", got=str(error)[:300]) from error


def _is_version_file(path: str) -> bool:
    parts = path.split("/")
    return len(parts) == 3 and is_name(parts[0]) and is_version(parts[1])


def _is_journal_file(path: str) -> bool:
    parts = path.split("/")
    return len(parts) == 3 and is_name(parts[0]) and parts[1] == ALIASES and is_entry(parts[2])


def _is_record(path: str) -> bool:
    parts = path.split("/")
    kinds = {RECORDS: is_record, SIGNATURES: is_signature}
    return len(parts) == 3 and is_name(parts[0]) and parts[1] in kinds and kinds[parts[1]](parts[2])


def _is_head(path: str) -> bool:
    parts = path.split("/")
    return len(parts) == 3 and parts[0] == HEADS and is_name(parts[1])


def _time(info: dict[str, Any]) -> float:
    stamp = info.get("LastModified") or info.get("created") or info.get("mtime") or 0.0
    return stamp.timestamp() if isinstance(stamp, datetime) else float(stamp)
