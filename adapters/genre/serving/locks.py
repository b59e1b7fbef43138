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
        raise unusable(option, path, "a file in a folder that exists")
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise unusable(option, f"{path}, which another service uses", "a file of its own") from None
    except OSError as error:
        raise unusable(option, path, "a file in a folder that can be written", error.strerror) from None
    return lock


def unusable(option: str, got: object, expected: str, todo: str | None = None) -> InputError:
    """The error of an option whose file cannot be used."""
    return InputError(f"{option} cannot be used", got=got, expected=expected, todo=todo)
