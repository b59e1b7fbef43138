"""Which version folders were found whole, and whether anything has touched them since.

Owns: the stamps of checked folders, for the life of one registry object. Ignores: how a folder is checked.

A stamp is every file's name, inode, size, and times of modification and of change. The system sets the time of change itself
whenever content or times are changed, so a file cannot be altered and made to look as before; what a stamp does not see is a
disk that forgets, which the next process and `genre registry verify` find.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

Stamp = tuple[tuple[str, int, int, int, int], ...]
SETTLED_NS = 1_000_000_000


class Checks:
    """Folders that were checked, by path; any number of threads may use it."""

    def __init__(self) -> None:
        self._stamps: dict[Path, tuple[str, Stamp]] = {}
        self._lock = Lock()

    def holds(self, folder: Path, digest: str) -> bool:
        """Whether the folder was found whole as this version, and is as it was then."""
        with self._lock:
            known = self._stamps.get(folder)
        return known is not None and known == (digest, stamp_of(folder))

    @contextlib.contextmanager
    def watch(self, folder: Path, digest: str) -> Iterator[None]:
        """Remember the folder if the check inside the block raises nothing, and nobody wrote there meanwhile.

        A file that was changed less than a second ago could be changed again within the same tick of its clock: such a folder
        is checked again the next time.
        """
        before = stamp_of(folder)
        with self._lock:
            self._stamps.pop(folder, None)
        yield
        after = stamp_of(folder)
        settled = after is not None and all(changed < time.time_ns() - SETTLED_NS for *_, changed in after)
        if after is not None and after == before and settled:
            with self._lock:
                self._stamps[folder] = (digest, after)


def stamp_of(folder: Path) -> Stamp | None:
    """The stamp of a folder; None if there is none."""
    try:
        with os.scandir(folder) as entries:
            states = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
    except OSError:
        return None
    return tuple(sorted((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in states))
