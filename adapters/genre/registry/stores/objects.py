"""Objects behind any fsspec URL: find, read, create once, put, remove.

Owns: the calls into fsspec, their errors, and the probe of conditional writes. Ignores: what the objects are (`remote`).

Writers agree through one operation: an object that is created only if it does not exist (S3's `If-None-Match: *`). A store that
lets two writers create the same object would lose one of two alias moves, so it is refused, unless the caller says that nobody
else writes there.
"""

import contextlib
import errno
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from threading import Barrier, Lock
from typing import Any

import fsspec

from genre.errors import JobError, RegistryError

PROBE = ".probe-"
_RACERS = 4


class Objects:
    """The objects under one URL; `options` go to the fsspec file system unchanged.

    Args:
        url: The root.
        options: For the file system.
        single_writer: Nobody else writes there, so conditional writes are not asked for.
    """

    def __init__(self, url: str, options: Mapping[str, Any], *, single_writer: bool = False) -> None:
        self.url = url.rstrip("/")
        try:
            # Listings must be fresh: another writer's entry decides what the next number is.
            self.fs, self.root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **options)
        except (ImportError, ValueError) as error:
            todo = "pip install 'genre-adapters[s3]' for s3://, or another fsspec package"
            raise RegistryError("no file system for this registry", got=f"{url}: {error}", todo=todo) from None
        self._checked = single_writer
        self._checking = Lock()

    def path(self, *parts: str) -> str:
        """Return the full path of an object."""
        return "/".join((self.root, *parts))

    def find(self, *below: str) -> dict[str, dict[str, Any]]:
        """Return all objects below, by their path under the root."""
        with self.errors():
            try:
                found = self.fs.find(self.path(*below), detail=True)
            except FileNotFoundError:
                return {}
        return {path.removeprefix(self.root + "/"): info for path, info in found.items()}

    def exists(self, path: str) -> bool:
        """Return whether there is such an object."""
        with self.errors():
            return bool(self.fs.exists(self.path(path)))

    def read(self, path: str, limit: int) -> bytes | None:
        """Return at most `limit` + 1 bytes; None if there is no such object."""
        with self.errors():
            try:
                return bytes(self.fs.cat_file(self.path(path), start=0, end=limit + 1))
            except FileNotFoundError:
                return None
            except OSError as error:
                if error.errno == errno.EINVAL:  # S3 has no range in an empty object
                    return b""
                raise

    def download(self, path: str, target: Path) -> bool:
        """Copy an object to this machine; False if there is none."""
        with self.errors():
            try:
                self.fs.get_file(self.path(path), str(target))
            except FileNotFoundError:
                return False
            return True

    def upload(self, source: Path, path: str) -> None:
        """Write or replace an object with a file of this machine."""
        with self.errors():
            self.fs.put_file(str(source), self.path(path))

    def put(self, path: str, data: bytes) -> None:
        """Write or replace an object."""
        with self.errors():
            self.fs.pipe_file(self.path(path), data)

    def create(self, path: str, data: bytes) -> bool:
        """Write unless it exists. A retried request may find its own first attempt, so the content decides who won."""
        full = self.path(path)
        with self.errors():
            if self.fs.exists(full):
                return False
            self._create(full, data)
            return bytes(self.fs.cat_file(full)) == data

    def remove(self, path: str) -> None:
        """Delete an object that may be gone already."""
        with self.errors(), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.path(path))

    def check_writers(self) -> None:
        """Refuse a store that would let two writers create the same object; found out by trying, once for this object.

        Raises:
            RegistryError: It would.
        """
        with self._checking:
            if not self._checked:
                self._probe()
                self._checked = True

    def _probe(self) -> None:
        path = self.path(f"{PROBE}{uuid.uuid4().hex}")
        together = Barrier(_RACERS)
        got = None

        def race(racer: int) -> bool:
            together.wait()
            return self._create(path, f"{racer}".encode())

        with self.errors():
            try:
                with ThreadPoolExecutor(_RACERS) as pool:
                    won = sum(pool.map(race, range(_RACERS)))
                if won != 1:
                    got = f"{won} of {_RACERS} writers at once created the same object"
            except NotImplementedError as error:
                got = str(error) or "the file system cannot create an object only if it does not exist"
            except OSError as error:
                if "NotImplemented" not in str(error):
                    raise
                got = str(error)[:200]
            finally:
                with contextlib.suppress(FileNotFoundError):
                    self.fs.rm_file(path)
        if got is not None:
            raise RegistryError(
                f"the store of {self.url} has no conditional writes: of two writers one would overwrite the other",
                got=got,
                expected="an object that is created only if it does not exist, as S3's If-None-Match does",
                todo="if nobody else ever writes there, say so: Registry(url, single_writer=True) or GENRE_SINGLE_WRITER=1",
            )

    def _create(self, full: str, data: bytes) -> bool:
        try:
            self.fs.pipe_file(full, data, mode="create")
        except FileExistsError:
            return False
        except OSError as error:
            if "PreconditionFailed" not in str(error) and "ConditionalRequestConflict" not in str(error):
                raise
            return False
        return True

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what the store answers into a JobError."""
        try:
            yield
        except OSError as error:
            raise JobError(f"the registry at {self.url} did not answer as it should", got=str(error)[:300]) from error


def time_of(info: Mapping[str, Any]) -> float:
    """Return when an object was written, in seconds by the store's clock; 0 if it does not say."""
    stamp = info.get("LastModified") or info.get("created") or info.get("mtime") or 0.0
    return stamp.timestamp() if isinstance(stamp, datetime) else float(stamp)
