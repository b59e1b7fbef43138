"""Locks of files that one service at a time has.

Owns: the lock beside a file. Ignores: what is in it.
"""

from pathlib import Path

from filelock import FileLock, Timeout

from genre.errors import InputError


def lock_beside(path: Path, option: str) -> FileLock:
    """Take the lock beside a file; it goes with the process.

    Args:
        path: The file, which need not exist.
        option: What named it, for the error.

    Raises:
        InputError: Another service has it, or its folder is not there or cannot be written.
    """
    if not path.parent.is_dir():  # the lock would make it
        raise InputError(f"{option} cannot be used", got=path, expected="a file in a folder that exists")
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    what = f"{option} cannot be used"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(what, got=f"{path}, which another service uses", expected="a file of its own") from None
    except OSError as error:
        raise InputError(what, got=path, expected="a file in a folder that can be written", todo=error.strerror) from None
    return lock
