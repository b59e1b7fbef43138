"""Archives from elsewhere, read without letting a member out of the folder or a bomb into memory.

Owns: which members are accepted, and their limits. Ignores: what the files mean. A tar (plain or gzip) or a zip is recognized
by its content; every member must be a plain file or a folder under a relative path:

    my-adapter/adapter_config.json
    my-adapter/adapter_model.safetensors
"""

import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

from genre.errors import IntegrityError
from genre.files import disk_errors
from genre.registry.integrity import check_file_name, check_sizes
from genre.registry.limits import MAX_TOTAL_BYTES

MAX_MEMBERS = 10_000
_MAX_READ = 16 * 2**20
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, ValueError, NotImplementedError, RuntimeError)


def is_archive(path: Path) -> bool:
    """Return whether a file is a tar, a gzip or a zip, by its content."""
    with open(path, "rb") as file:
        start = file.read(265)
    return start.startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b")) or start[257:262] == b"ustar"


def extract(archive: Path, wanted: Iterable[str], folder: Path, *, marker: str, inside: str = ".") -> list[str]:
    """Write the wanted files of an archive, at its top or in its one top folder, into an existing folder.

    Args:
        archive: A tar or a zip.
        wanted: Names of files.
        folder: Where they go.
        marker: A file of the folder that is meant: without it at the top, the one folder there that has it is taken.
        inside: A folder in that one whose files are wanted.

    Returns:
        The members that were not wanted, for the record.

    Raises:
        IntegrityError: The archive is broken, a member is not accepted, or a limit is passed; nothing of a member that
            is not accepted was written.
    """
    names = set(wanted)
    with _broken(archive), disk_errors(folder), _opened(archive) as rows:
        members = _check_members(rows)
        top = str(PurePosixPath(_marked(members, _top(members), marker)) / inside)
        chosen = {path.name: path for path in members if path.name in names and str(path.parent) == top}
        check_sizes({check_file_name(name): members[path].size for name, path in chosen.items()})
        for name, path in chosen.items():
            _write(members[path], folder / name)
    return sorted(str(path) for path in members if path not in chosen.values())


class _Member(NamedTuple):
    name: str
    size: int
    is_file: bool
    is_folder: bool
    open: Callable[[], IO[bytes] | None]


@contextmanager
def _opened(path: Path) -> Iterator[Iterator[_Member]]:
    """Open a zip or a tar; every read of a tar is bounded, since tarfile reads a PAX header of any size in one go."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield _zip_members(archive)
        return
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    with (
        gzip.open(path) if zipped else open(path, "rb") as raw,
        tarfile.open(fileobj=cast(Any, _Bounded(raw)), mode="r:") as tar,
    ):
        yield _tar_members(tar)


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        is_file = kind in (0, stat.S_IFREG) and not info.is_dir()
        yield _Member(info.filename, info.file_size, is_file, info.is_dir(), partial(archive.open, info))


def _tar_members(tar: tarfile.TarFile) -> Iterator[_Member]:
    for info in tar:
        is_file = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and info.sparse is None
        yield _Member(info.name, info.size, is_file, info.isdir(), partial(tar.extractfile, info))


class _Bounded:
    """A file that refuses to read, or to unpack, more than the limits."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.tell = file.tell
        self.close = file.close

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return bytes(self._file.read(size))

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset > 2 * MAX_TOTAL_BYTES:
            raise tarfile.ReadError(f"a member that ends at byte {offset}")
        return int(self._file.seek(offset, whence))


def _check_members(rows: Iterable[_Member]) -> dict[PurePosixPath, _Member]:
    """Check all members; return the files by path."""
    members: dict[PurePosixPath, _Member] = {}
    total = 0
    for count, member in enumerate(rows, 1):
        name, path = member.name, PurePosixPath(member.name)
        hostile = name.startswith("/") or ".." in path.parts or any(letter in name for letter in "\\\0:\n\r")
        if hostile or not name or len(name) > 512:
            what = "a member of the archive would leave its folder"
            raise IntegrityError(what, got=repr(name[:80]), expected="a relative path")
        if not member.is_file and not member.is_folder:
            raise IntegrityError(f"member {name[:80]!r} of the archive is not a plain file", expected="no links, no devices")
        total += max(member.size, 0)
        if count > MAX_MEMBERS or total > MAX_TOTAL_BYTES or member.size < 0:
            expected = f"at most {MAX_MEMBERS:,} members and {MAX_TOTAL_BYTES:,} bytes"
            raise IntegrityError("the archive is too large", got=f"{count:,} members, {total:,} bytes", expected=expected)
        if member.is_folder:
            continue
        if path in members:
            raise IntegrityError("the archive has a member twice", got=repr(name[:80]))
        members[path] = member
    return members


def _top(members: dict[PurePosixPath, _Member]) -> str:
    """The archive's one top folder, or the archive itself."""
    firsts = {path.parts[0] for path in members}
    inside = all(len(path.parts) > 1 for path in members)
    return firsts.pop() if inside and len(firsts) == 1 else "."


def _marked(members: Iterable[PurePosixPath], top: str, marker: str) -> str:
    """The top, or the one folder in it that holds the marker where the top does not."""
    folders = sorted(str(path.parent) for path in members if path.name == marker)
    inside = [each for each in folders if str(PurePosixPath(each).parent) == top]
    if top in folders or not inside:
        return top
    if len(inside) > 1:
        raise IntegrityError(f"the archive holds several folders with {marker}", got=", ".join(inside[:8]), expected="one")
    return inside[0]


def _write(member: _Member, target: Path) -> None:
    source = member.open()
    assert source is not None
    with source, open(target, "xb") as file:
        left = member.size
        while left and (data := source.read(min(2**20, left))):
            file.write(data)
            left -= len(data)
        if left or source.read(1):
            what = f"{target.name} in the archive is not as long as its header says"
            raise IntegrityError(what, expected=f"{member.size:,} bytes")


@contextmanager
def _broken(archive: Path) -> Iterator[None]:
    try:
        yield
    except (*_BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise IntegrityError(f"{archive.name} is a broken archive", got=str(error)[:200] or type(error).__name__) from None


def pack(folder: Path, target: Path) -> None:
    """Write a tar of a folder's files, the same bytes for the same content."""

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        info.mode = 0o755 if info.isdir() else 0o644
        return info

    aside = target.with_name(f".{target.name}.tmp")
    with disk_errors(target):
        try:
            with tarfile.open(aside, "w") as tar:
                for path in sorted(folder.rglob("*")):
                    tar.add(path, f"{folder.name}/{path.relative_to(folder)}", recursive=False, filter=plain)
            shutil.move(aside, target)
        finally:
            aside.unlink(missing_ok=True)
