"""Where a job's parts are: its log, its base, its run folder; what it says of the machine."""

import os
import platform
import time
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import torch

from genre.data.dataset import KIND_NAMES, DataKind, Dataset
from genre.data.interactions import Interactions
from genre.data.texts.dataset import Texts
from genre.errors import BaseModelError, DataError, ManifestError, RecipeError
from genre.files import atomic
from genre.modules.base.base import Base
from genre.modules.base.loading import PRECISIONS
from genre.recipe import BaseConfig, Recipe
from genre.registry.manifest import Manifest


def open_log(path: str) -> Interactions:
    """The log of a recipe: a data set folder, or a data set that comes as a package (prepared if need be).

    Raises:
        DataError: Neither.
    """
    return Interactions.read(_find(path))


def open_data(path: str, kind: DataKind | None = None) -> Dataset:
    """Open a log, or labelled texts.

    Args:
        path: A data set folder, or the name of a data set that comes as a package (prepared if need be).
        kind: The kind that is wanted; None takes what is there, the log where both are.

    Raises:
        DataError: Neither is there, or not the one that is wanted.
    """
    folder = _find(path)
    if kind is None:
        kind = "texts" if Texts.is_at(folder) and not (folder / "interactions.parquet").is_file() else "log"
    return Texts.read(folder) if kind == "texts" else Interactions.read(folder)


def check_data(recipe: Recipe, data: Dataset) -> None:
    """Check that the data are of the kind that a recipe reads.

    Raises:
        RecipeError: They are not.
    """
    if data.kind != recipe.reads:
        task, wanted = recipe.tasks[0], KIND_NAMES[recipe.reads]
        todo = "change data.path or the kind of the tasks"
        what = f"task {task.name!r} of kind {task.kind} reads {wanted}"
        raise RecipeError(what, got=KIND_NAMES[data.kind], expected=wanted, todo=todo)


def _find(path: str) -> Path:
    from genre.data.packaged import sources

    if Path(path).is_dir():
        return Path(path)
    name = Path(path).name
    if name in sources.DATA:
        return sources.prepare_data(name)
    raise DataError(
        "no data set folder", got=path,
        expected=f"a folder with interactions.parquet or texts.parquet, or one of {', '.join(sources.DATA)}",
        todo="genre data prepare or genre data import makes one",
    )  # fmt: skip


def open_base(wanted: BaseConfig, *, device: str | torch.device | None = None) -> Base:
    """The base of a recipe, as it asks for it; raises as `Base.load` does."""
    return Base.load(
        wanted.name, quantization=wanted.quantization, depth=wanted.depth, device=device, dtype=PRECISIONS[wanted.precision]
    )


def load_base(manifest: Manifest, name: str | None = None, *, quantization: str | None = None, precision: str = "auto") -> Base:
    """The base that a manifest names, at its depth.

    Args:
        manifest: Of a version.
        name: Where the base is, for versions whose base came from a folder or has moved.
        quantization: Another one than the version was trained on.
        precision: As a recipe calls it.

    Raises:
        BaseModelError: Nothing of that name can be found.
        ManifestError: The weights of that name are others.
    """
    wanted = manifest.base
    chosen: Any = quantization or wanted.quantization
    try:
        base = Base.load(name or wanted.name, quantization=chosen, depth=wanted.depth, dtype=PRECISIONS[precision])
    except BaseModelError as error:
        if name is not None or not error.what.startswith("no base is called"):
            raise
        raise BaseModelError(error.what, expected=error.expected, todo="say where it is with --base") from None
    if base.fingerprint != wanted.fingerprint:
        raise ManifestError(
            "base.fingerprint", got=base.fingerprint, expected=wanted.fingerprint, todo="name the base it was trained on"
        )
    return base


def processor() -> str:
    """The CPU's name, which instructions torch uses, and which are for bfloat16: what speed and rounding depend on."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8", errors="replace").splitlines() if facts.is_file() else []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = told.get("model name") or platform.processor() or platform.machine()
    also = sorted({"avx512_bf16", "amx_bf16"}.intersection(told.get("flags", "").split()))
    return ", ".join([name, torch.backends.cpu.get_cpu_capability(), *also])


def environment() -> dict[str, Any]:
    """Versions and machine, for the run folder and for reports."""
    packages = ("genre-adapters", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy", "polars")
    return {
        "python": platform.python_version(), "platform": platform.platform(), "processor": processor(), "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "packages": {name: package_version(name) for name in packages},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def write_text(path: Path, text: str) -> None:
    """Write a file at once: aside, then renamed.

    Raises:
        DiskError: The disk is full or not writable.
    """
    with atomic(path) as aside:
        aside.write_text(text, encoding="utf-8")


def claim_folder(name: str) -> Path:
    """The next run folder of a name, made at once, so that two runs never share one."""
    while True:
        folder = run_folder(name, resume=False)
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


def run_folder(name: str, resume: bool) -> Path:
    """The run folder of a recipe's name: the next number, or the last one to resume."""
    parent = Path("runs") / name
    numbers = sorted(int(path.name) for path in parent.glob("*") if path.name.isdigit()) if parent.is_dir() else []
    if resume and numbers:
        return parent / str(numbers[-1])
    return parent / str((numbers[-1] if numbers else 0) + 1)
