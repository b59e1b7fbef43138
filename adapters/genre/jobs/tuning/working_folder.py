"""A folder that one long job works in, again and again until it is done.

Owns: its lock. Ignores: what the job does, and whether it is the same job as before (`genre.jobs.same`).

    with working_folder(Path("runs/like/tune"), "study.journal"):
        …
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from genre.errors import InputError, RecipeError
from genre.files import disk_errors
from genre.recipe import Recipe

LOCK = ".lock"


@contextmanager
def working_folder(folder: Path, marker: str) -> Iterator[None]:
    """Hold a folder for the time of the block; it is made if need be.

    Args:
        folder: The folder.
        marker: The file that says it is this job's.

    Raises:
        InputError: It is a file, holds other things, or another process works in it.
        DiskError: It cannot be made.
    """
    if folder.is_file():
        raise InputError("the folder to work in is a file", got=folder, expected="a folder, or a new name")
    if folder.is_dir() and not (folder / marker).exists() and any(path.name != LOCK for path in folder.iterdir()):
        raise InputError(
            f"{folder} holds other files", got=f"no {marker}", expected="a new folder, or one to go on in", todo="name another"
        )
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        with disk_errors(folder):
            lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"another process works in {folder}", todo="wait for it, or name another folder") from None
    try:
        yield
    finally:
        lock.release()


def need_events(recipe: Recipe, what: str) -> None:
    """Refuse recipes over labelled texts, which have no users and are trained by a loop of their own.

    Raises:
        RecipeError: A task is of kind text.
    """
    for task in recipe.tasks:
        if task.kind == "text":
            raise RecipeError(
                f"{what} works on logs of events", got=f"task {task.name!r} of kind text", expected="events of users"
            )
