"""Locks between processes, and between machines that share a folder.

Owns: flock, its refusals, and the lock that shows that the writer of a temporary folder lives. Ignores: what is locked.

NFS turns an flock into a lock of the whole file with its server. Such a lock may be exclusive only on a file that is open for
writing, which a folder never is; and on a mount whose locks stay on the machine, two machines would not see each other.
"""

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from genre.errors import DiskError

OWNER = ".owner"
_MOUNTS = Path("/proc/self/mountinfo")
_LOCAL = {"nolock", "local_lock=flock", "local_lock=all"}


def lock(descriptor: int, mode: int, root: Path) -> None:
    """Lock, or refuse a disk that has no locks: writers there would not see each other."""
    try:
        fcntl.flock(descriptor, mode)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise
        raise DiskError(
            f"{root} has no file locks",
            got=error.strerror,
            expected="a disk with flock, as local disks and NFS with its lock service have",
            todo="start the lock service, or put the registry on a local disk or an object store",
        ) from None


@contextlib.contextmanager
def owned(folder: Path, root: Path) -> Iterator[None]:
    """Show that the writer of a temporary folder lives; the system drops the lock with the process."""
    descriptor = os.open(folder / OWNER, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        lock(descriptor, fcntl.LOCK_EX, root)
        yield
    finally:
        os.close(descriptor)


def is_owned(path: Path) -> bool:
    """Return whether a living writer holds a temporary folder. A file lives for a moment only and only under the lock: nobody's.

    Earlier releases locked the folder itself.
    """
    if path.is_file():
        return False
    descriptor = _open_owner(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno != errno.EBADF:  # a folder on NFS, where no earlier release could write
            raise
    finally:
        os.close(descriptor)
    return False


def _open_owner(path: Path) -> int:
    try:
        return os.open(path / OWNER, os.O_RDWR | os.O_NOFOLLOW)
    except PermissionError:  # of another user
        return os.open(path / OWNER, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


def check_mount(folder: Path, mounts: Path = _MOUNTS) -> None:
    """Refuse a folder on a mount of NFS whose locks stay on this machine; where mounts cannot be listed nothing is known.

    Raises:
        DiskError: It is on one.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    place, found = folder.resolve(), ("", "", "")
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]) if len(fields) > 4 else ""
        if len(kind) > 2 and point and place.is_relative_to(point) and len(point) >= len(found[0]):  # the last mount wins
            found = point, kind[0], kind[2]
    local = _LOCAL.intersection(found[2].split(","))
    if found[1].startswith("nfs") and local:
        raise DiskError(
            f"{folder} is on a mount whose locks hold on this machine only",
            got=f"{found[0]} of type {found[1]} with {', '.join(sorted(local))}",
            expected="locks that hold between the machines that share it",
            todo="mount it without that option, or put the registry on a local disk or an object store",
        )
