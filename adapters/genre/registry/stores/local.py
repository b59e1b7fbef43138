"""A store in a folder.

Owns: the local implementation of `store.Store`. Ignores: what the files mean; object stores (`remote`).

A version is written into `<name>/.tmp-…`, every file and the folder are fsynced, and one rename makes it visible. An
alias entry is written to a temporary file and hard-linked to its number, so it is complete when it appears and a second
writer of the same number fails. POSIX only (flock; see docs/decisions/registry-locks.md).

    registry/
        .lock                                   # writers share it, gc has it alone
        like/a3f09c12be77/manifest.json, …      # a version
        like/aliases/1.json, 2.json, …          # the journal
        like/baselines/a3f09c12be77.json        # what a version was measured against
        like/signatures/a3f09c12be77-3b6a….json # who vouches for it
        like/.tmp-8f2c…/version/, .owner        # an unfinished publish, invisible, and the lock of its writer
        .heads/like/head.json                   # the last entry of the journal of `like`
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from genre.errors import DiskError, NotFoundError, RegistryError
from genre.files import check_writable, disk_errors, sync
from genre.registry.limits import open_plain
from genre.registry.names import ALIASES, AUDITS, HEAD, HEADS, RECORDS, SIGNATURES, is_name, is_version
from genre.registry.stores.locks import check_mount, is_owned, lock, owned
from genre.registry.stores.other_folders import describe_content
from genre.registry.stores.store import is_entry, is_record, is_signature

TEMPORARY = ".tmp-"


class LocalStore:
    """A store in a folder. A lock shuts writers out while gc runs, so nothing has to be marked."""

    grace_s = 0.0

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def names(self) -> list[str]:
        return sorted(name for name in self._name_folders() if any(_is_folder(e, is_version) for e in _scan(self.root / name)))

    def listing(self) -> dict[str, list[str]]:
        found = {name: self.versions(name) for name in self._name_folders()}
        return {name: versions for name, versions in sorted(found.items()) if versions}

    def versions(self, name: str) -> list[str]:
        """See `Store`; the order is that of the folders' modification times."""
        found = []
        for entry in _scan(self.root / name):
            if _is_folder(entry, is_version):
                with contextlib.suppress(FileNotFoundError):  # gc has just removed it
                    found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
        return [version for _, version in sorted(found)]

    def known(self) -> list[str]:
        journals = {name for name in self._name_folders() if self.entries(name)}
        heads = {entry.name for entry in _scan(self.root / HEADS) if _is_folder(entry, is_name)}
        return sorted(journals | heads | set(self.names()))

    def has(self, name: str, version: str) -> bool:
        folder = self.root / name / version
        return folder.is_dir() and not folder.is_symlink() and not folder.parent.is_symlink()

    def read(self, name: str, version: str, file: str, limit: int) -> bytes:
        path = self.root / name / version / file
        try:
            with open_plain(path) as source:
                return source.read(limit + 1)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"{path.name} is missing", got=str(path.parent)) from None
        except OSError as error:
            raise DiskError(f"cannot read {path.name}", got=error.strerror) from None

    def folder(self, name: str, version: str) -> Path | None:
        return self.root / name / version

    def files(self, name: str, version: str) -> dict[str, int]:
        return {entry.name: entry.stat(follow_symlinks=False).st_size for entry in _scan(self.root / name / version)}

    def download(self, name: str, version: str, file: str, target: Path) -> None:
        shutil.copyfile(self.root / name / version / file, target, follow_symlinks=False)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Path]:
        """See `Store`. A lock beside the folder shows that its writer lives."""
        with disk_errors(self.root), contextlib.ExitStack() as held:
            with self.writing():
                folder = self._make_temporary(name)
                held.enter_context(owned(folder, self.root))
            try:
                staged = folder / "version"
                staged.mkdir(mode=0o755)
                yield staged
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                with contextlib.suppress(OSError):  # a name's first publish that failed leaves no empty folder
                    os.rmdir(folder.parent)

    def commit(self, staged: Path, name: str, version: str) -> bool:
        with disk_errors(self.root):
            for path in staged.iterdir():
                sync(path)
            sync(staged)
            target = self.root / name / version
            if target.exists():
                return False
            try:
                os.rename(staged, target)
            except OSError:
                if target.exists():  # another writer of the same content was first
                    return False
                raise
            sync(target.parent)
            return True

    def entries(self, name: str) -> list[int]:
        try:
            return sorted(int(file[:-5]) for file in os.listdir(self.root / name / ALIASES) if is_entry(file))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def create_entry(self, name: str, number: int, data: bytes) -> bool:
        folder = self.root / name / ALIASES
        with disk_errors(folder):
            try:
                with _written_aside(folder, data) as aside:
                    _link(aside, folder / f"{number}.json")
            except FileExistsError:
                return False
            sync(folder)
            sync(folder.parent)
            return True

    def put(self, name: str, folder: str, file: str, data: bytes) -> None:
        path = self.root / name / folder
        with disk_errors(path), _written_aside(path, data) as aside:
            os.replace(aside, path / file)
            sync(path)

    def check_writable(self, name: str) -> None:
        check_writable(self.root / name / ALIASES, "the registry")

    def remove(self, name: str, version: str) -> None:
        with disk_errors(self.root):
            aside = self.root / name / f"{TEMPORARY}{uuid.uuid4().hex}"
            os.rename(self.root / name / version, aside)
            for records in (RECORDS, AUDITS):
                (self.root / name / records / f"{version}.json").unlink(missing_ok=True)
            for signature in (self.root / name / SIGNATURES).glob(f"{version}-*.json"):
                signature.unlink(missing_ok=True)
            shutil.rmtree(aside)

    def unfinished(self) -> dict[str, int]:
        places = ("", ALIASES, RECORDS, AUDITS, SIGNATURES)
        folders = [self.root / name / place for name in self._name_folders() for place in places]
        folders += [self.root / HEADS / entry.name for entry in _scan(self.root / HEADS)]
        paths = sorted((path for folder in folders for path in folder.glob(f"{TEMPORARY}*")), key=str)
        found = {}
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # a publish that failed has just removed its own
                if not path.is_symlink() and not is_owned(path):
                    found[str(path.relative_to(self.root))] = _bytes(path)
        return found

    def remove_unfinished(self, path: str) -> None:
        target = self.root / path
        if target.is_file():
            target.unlink()
        else:
            shutil.rmtree(target)

    def content(self) -> str:
        return describe_content(self.root)

    def strays(self) -> list[str]:
        own = (".lock", HEADS)
        found = [entry.name for entry in _scan(self.root) if entry.name not in own and not _is_folder(entry, is_name)]
        found += [f"{HEADS}/{entry.name}" for entry in _scan(self.root / HEADS) if not _is_folder(entry, is_name)]
        beside = {ALIASES: is_entry, RECORDS: is_record, AUDITS: is_record, SIGNATURES: is_signature}
        places = {f"{name}/{place}": is_known for name in self._name_folders() for place, is_known in beside.items()}
        places |= {f"{HEADS}/{entry.name}": _is_head for entry in _scan(self.root / HEADS) if _is_folder(entry, is_name)}
        for name in self._name_folders():
            for entry in _scan(self.root / name):
                known = _is_folder(entry, lambda text: is_version(text) or text in beside)
                if not known and not entry.name.startswith(TEMPORARY):
                    found.append(f"{name}/{entry.name}")
        for place, is_known in places.items():
            strange = [entry.name for entry in _scan(self.root / place) if not is_known(entry.name)]
            found += [f"{place}/{file}" for file in strange if not file.startswith(TEMPORARY)]
        return sorted(found)

    def keep(self, name: str, version: str) -> bool:
        return self.has(name, version)

    def mark(self, path: str) -> None:
        """See `Store`: no effect."""

    def marked(self) -> list[str]:
        return []

    def settled(self, paths: list[str], grace: float) -> dict[str, int]:
        """See `Store`; the age is that since it was published."""
        now = time.time()
        return {path: 0 for path in paths if grace == 0 or now - (self.root / path).lstat().st_mtime >= grace}

    def bury(self, path: str, mark: int) -> bool:
        return True

    def writing(self) -> AbstractContextManager[bool]:
        return self._lock(fcntl.LOCK_SH)

    def cleaning(self) -> AbstractContextManager[bool]:
        return self._lock(fcntl.LOCK_EX)

    @contextlib.contextmanager
    def _lock(self, mode: int) -> Iterator[bool]:
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            check_mount(self.root)
            descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            lock(descriptor, mode, self.root)
            yield mode == fcntl.LOCK_EX
        finally:
            os.close(descriptor)

    def _make_temporary(self, name: str) -> Path:
        parent = self.root / name
        while True:
            parent.mkdir(parents=True, exist_ok=True)
            if parent.is_symlink():
                raise RegistryError(f"{name!r} is a link in the store", expected="a folder")
            try:
                folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=parent))
            except FileNotFoundError:  # another first publish has just failed and removed the empty parent
                continue
            os.chmod(folder, 0o755)
            sync(self.root)
            return folder

    def _name_folders(self) -> list[str]:
        return [entry.name for entry in _scan(self.root) if _is_folder(entry, is_name)]


def _is_head(file: str) -> bool:
    return file == HEAD


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_folder(entry: os.DirEntry[str], wanted: Callable[[str], bool]) -> bool:
    return wanted(entry.name) and entry.is_dir(follow_symlinks=False)


def _bytes(path: Path) -> int:
    return sum(file.lstat().st_size for file in (path, *path.rglob("*")) if not file.is_dir())


def _link(aside: Path, path: Path) -> None:
    """Link; over NFS a repeated request may find its own first attempt."""
    try:
        os.link(aside, path)
    except FileExistsError:
        if not os.path.samefile(aside, path):
            raise


@contextlib.contextmanager
def _written_aside(folder: Path, data: bytes) -> Iterator[Path]:
    """Write a temporary file, whole and on the disk, to be linked or renamed; what is left of it goes in the end."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        aside.write_bytes(data)
        sync(aside)
        yield aside
    finally:
        aside.unlink(missing_ok=True)
