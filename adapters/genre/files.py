"""Files and folders that appear whole or not at all.

Owns: writing a folder aside and renaming it into place, turning a full or read-only disk into one line, refusing a path that
cannot be written before the work that fills it, and the user's cache folder. Ignores: what the files mean.

    with appearing_folder(Path("data/ml-100k")) as aside:
        (aside / "dataset.json").write_text("{}")
    # data/ml-100k exists now; had the block failed, nothing would be there
"""

import errno
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from genre.errors import DiskError, GenreError, InputError

_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def cache_folder() -> Path:
    """Return the cache folder: $GENRE_CACHE, or the user's cache folder of the system."""
    given = os.environ.get("GENRE_CACHE")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("genre")


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk under `path` into a `DiskError`.

    Raises:
        DiskError: For the disk's own errors; any other error passes.
    """
    try:
        yield
    except GenreError:
        raise
    except Exception as error:
        # Libraries wrap what the system said and keep the words, not always the type or the number.
        full = any(words in str(error).lower() for words in ("no space left on device", "file too large", "quota exceeded"))
        if not full and not (isinstance(error, OSError) and error.errno in _DISK_ERRNOS):
            raise
        raise DiskError(
            f"cannot write {path}",
            got="no space left on device" if full else f"{getattr(error, 'strerror', None) or error}",
            expected="a writable disk with room",
            todo="free some space or choose another folder; nothing half-written is left",
        ) from error


def check_writable(path: Path, what: str) -> None:
    """Refuse a path where no file can be made, before the work whose result goes there; nothing is left behind.

    Args:
        path: The file that will be written; its parents need not exist.
        what: The name of the path in a message, such as an option.

    Raises:
        InputError: One of its parents is a file, or the nearest one that is there takes no new file.
    """
    nearest = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    if not nearest.is_dir():
        raise InputError(f"{what} lies in a file", got=nearest, expected="a folder")
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise InputError(
            f"{what} cannot be written",
            got=f"{nearest}: {error.strerror or error}",
            expected="a folder that takes new files",
            todo="name another folder, or make this one writable",
        ) from None


@contextmanager
def appearing_folder(path: Path, *, marker: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, renamed to `path` when the block ends well, removed when it fails.

    Args:
        path: The folder to make. Its parents are made.
        marker: A file that says "this folder is ours, it may be replaced"; without it an existing folder that holds
            anything is refused.

    Raises:
        InputError: If `path` exists and is neither empty nor marked, or lies in a file.
        DiskError: If the disk is full or not writable.
    """
    path = Path(path).absolute()
    refuse_foreign(path, marker)
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise InputError(f"{path} lies in a file", got=path.parent, expected="a folder") from None
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            aside.chmod(0o755)
            yield aside
            sync_folder(aside)
            replace_folder(aside, path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`; what was at `target` is removed, and put back when the rename fails."""
    if not target.exists():
        os.replace(source, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    try:
        os.replace(target, old)
        os.replace(source, target)
    except BaseException:  # Ctrl-C too
        if not target.exists():
            os.replace(old, target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def refuse_foreign(path: Path, marker: str | None) -> None:
    """Raise an `InputError` if a folder exists, and is neither empty nor holds the marker: see `appearing_folder`."""
    if not path.exists():
        return
    if path.is_dir() and (not any(path.iterdir()) or (marker is not None and (path / marker).exists())):
        return
    raise InputError(
        f"{path} exists already",
        got="a file" if path.is_file() else "a folder with other files",
        expected=f"a new folder{f', or one that holds {marker}' if marker else ''}",
        todo="choose another folder, or remove this one",
    )


@contextmanager
def atomic(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A path beside the wanted one that is renamed into place when the block ends well, and removed when it does not.

    Args:
        path: The wanted path.
        durable: Bring the content to the disk first; not needed for a file that means nothing after the process.

    Raises:
        DiskError: The disk is full or not writable.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        yield aside
        if durable:
            sync(aside)
        os.replace(aside, path)
    except OSError as error:
        raise DiskError(
            f"{path} cannot be written",
            got=error.strerror or str(error),
            todo="free some space or choose another folder",
        ) from None
    except RuntimeError as error:  # torch.save reports a full disk as a RuntimeError of its stream writer
        if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
            raise
        raise DiskError(f"{path} cannot be written", got="a full disk", todo="free some space") from None
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file's content to the disk, so that a name that it is given next never means an empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Bring a folder's files and names to the disk, its folders' too; links are left as they are."""
    for folder, _, files in os.walk(path):
        for name in files:
            if (file := Path(folder, name)).is_file() and not file.is_symlink():
                sync(file)
        sync(Path(folder))


def write_text(path: Path, text: str) -> None:
    """Write a file that appears whole.

    Raises:
        DiskError: The disk is full or not writable.
    """
    with atomic(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file for people and programs, which appears whole; errors as of `write_text`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
