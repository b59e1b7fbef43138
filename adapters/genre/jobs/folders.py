"""Folders that jobs leave behind: run folders by number, working folders that are locked and resumed.

Owns: which folder a run gets, the lock of one that is worked in, the check that a job resumes what it began, `environment.json`.
Ignores: what jobs write.

    with working_folder(Path("runs/like/tune"), "study.journal"):
        check_same("the study", {"seed": 0}, {"seed": 1})     # InputError: … seed differs: got 1; expected 0
"""

import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from genre.errors import InputError
from genre.files import disk_errors, write_json, write_text
from genre.modules.base.precision import kept_measurement, processor
from genre.recipe import Recipe
from genre.training.reporting import read_log

LOCK = ".lock"
RUNS = Path("runs")


def run_folder(name: str, resume: bool) -> Path:
    """The run folder of a recipe's name: the next number, or the last one to resume."""
    parent = RUNS / name
    numbers = sorted(int(path.name) for path in parent.glob("*") if path.name.isdigit()) if parent.is_dir() else []
    if resume and numbers:
        return parent / str(numbers[-1])
    return parent / str((numbers[-1] if numbers else 0) + 1)


def claim_folder(name: str) -> Path:
    """Make the next run folder of a name, so that two runs never share one."""
    while True:
        folder = run_folder(name, resume=False)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


def describe_run(root: Path, recipe: Recipe) -> None:
    """Write what a run folder holds before the first step: the resolved recipe and the environment."""
    root.mkdir(parents=True, exist_ok=True)
    write_text(root / "recipe.yaml", recipe.dump())
    write_json(root / "environment.json", environment())


@contextmanager
def removed_if_refused(made: Iterable[Path]) -> Iterator[None]:
    """A block that leaves no run folder without a step if it refuses its input.

    Args:
        made: The folders that this job made, by the end of the block.
    """
    try:
        yield
    except InputError:
        for root in made:
            remove_unused(root)
        raise


def remove_unused(root: Path) -> None:
    """Remove a run folder in which no step was taken, and what is empty then of `runs/NAME` and `runs`."""
    if read_log(root):
        return
    shutil.rmtree(root, ignore_errors=True)
    for parent in (root.parent, RUNS) if root.parent.parent == RUNS else ():
        with suppress(OSError):  # it holds other runs
            parent.rmdir()


@contextmanager
def working_folder(folder: Path, marker: str) -> Iterator[None]:
    """Make a folder if need be, and hold it for the time of the block.

    Args:
        folder: The folder.
        marker: A file that only this kind of job leaves there.

    Raises:
        InputError: It is a file, holds other things, or another process works in it.
        DiskError: It cannot be made.
    """
    if folder.is_file():
        raise InputError("the folder to work in is a file", got=folder, expected="a folder, or a new name")
    if folder.is_dir() and not (folder / marker).exists() and any(path.name != LOCK for path in folder.iterdir()):
        expected = "a new folder, or one of an earlier run"
        raise InputError(f"{folder} holds other files", got=f"no {marker}", expected=expected, todo="name another")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with hold(folder / LOCK, InputError(f"another process works in {folder}", todo="wait for it, or name another folder")):
        yield


def hold(path: Path, busy: InputError) -> FileLock:
    """Take a lock file; `release` the lock, or use it in a `with`.

    Raises:
        InputError: `busy`, if another process holds it.
        DiskError: The lock file cannot be made.
    """
    lock = FileLock(path)
    try:
        with disk_errors(path):
            lock.acquire(timeout=0)
    except Timeout:
        raise busy from None
    return lock


def check_same(what: str, stored: Mapping[str, Any], wanted: Mapping[str, Any], *, todo: str | None = None) -> None:
    """Check that a job resumes with the settings that it began with.

    Raises:
        InputError: Something differs; the message names the first key and both values.
    """
    ours, theirs = _leaves(wanted), _leaves(stored)
    for key in dict.fromkeys([*theirs, *ours]):
        if ours.get(key) != theirs.get(key):
            got, expected = _shown(ours, key), _shown(theirs, key)
            raise InputError(f"{what} is of another run: {key} differs", got=got, expected=expected, todo=todo)


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        return {path: leaf for key, each in value.items() for path, leaf in _leaves(each, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): json.loads(json.dumps(value))}


def _shown(leaves: Mapping[str, Any], key: str) -> str:
    return json.dumps(leaves[key], ensure_ascii=False)[:80] if key in leaves else "nothing"


def environment() -> dict[str, Any]:
    """Package versions and the machine, for run folders and reports."""
    packages = ("genre-adapters", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy", "polars")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "faster_precision": kept_measurement(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "packages": {name: package_version(name) for name in packages},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
