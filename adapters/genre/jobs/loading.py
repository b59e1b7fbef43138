"""Loading what a job works on: a recipe's data and base, a published version as a model.

Owns: names of packaged data sets, the base that a manifest asks for, a version restored on data. Ignores: what the job does.

    manifest = registry.resolve("like@production").manifest
    data, base = open_data("ml-100k", manifest.reads), load_base(manifest)
    model, builder, split = restore(read_adapter(registry, "like@production", base), data, base)
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch

from genre.data.dataset import KIND_NAMES, DataKind, Dataset
from genre.data.interactions import Interactions
from genre.data.packaged import sources
from genre.data.sequences.control import recorded_rule
from genre.data.sequences.text_rows import Builder, rows_of
from genre.data.splits import SplitConfig
from genre.data.texts.dataset import Texts
from genre.data.user_key import new_key
from genre.distributed import Processes
from genre.engine.versions import Loaded, Low
from genre.errors import BaseModelError, DataError, InputError, ManifestError, RecipeError
from genre.modules.base.base import Base
from genre.modules.base.fingerprint import fingerprint
from genre.modules.base.precision import MEASURED, PRECISIONS, Precision, measured
from genre.modules.base.source import find
from genre.modules.embedding import SoftTokens
from genre.modules.lora.layer import LoraLinear
from genre.modules.recommender import Recommender
from genre.progress import Reporter
from genre.recipe import BaseConfig, Recipe
from genre.registry import Registry
from genre.registry.manifest import Manifest, Version

ALONE = Processes()


def open_log(path: str, *, trains: bool = False) -> Interactions:
    """Open a log: a data set folder, or a packaged data set by name (prepared if need be).

    Args:
        path: The folder or the name.
        trains: Versions will be trained on it: if the folder has no key that tells later who trained them, the log gets one that
            the first version writes into the folder.

    Raises:
        DataError: There is neither.
    """
    folder = _find(path)
    log = Interactions.read(folder)
    if trains and log.info.users_key is None:
        log.info = log.info.model_copy(update={"users_key": new_key(folder)})
    return log


def open_data(path: str, kind: DataKind | None = None, *, trains: bool = False) -> Dataset:
    """Open a log, or labelled texts.

    Args:
        path: A data set folder, or the name of a packaged data set (prepared if need be).
        kind: The kind to open; None opens what is there, the log where both are.
        trains: As of `open_log`.

    Raises:
        DataError: There is no such data set, or none of that kind.
    """
    folder = _find(path)
    if kind is None:
        kind = "texts" if Texts.is_at(folder) and not (folder / "interactions.parquet").is_file() else "log"
    return Texts.read(folder) if kind == "texts" else open_log(str(folder), trains=trains)


def check_data(recipe: Recipe, data: Dataset) -> None:
    """Check that a recipe reads this kind of data.

    Raises:
        RecipeError: It does not.
    """
    if data.kind != recipe.reads:
        task, wanted = recipe.tasks[0], KIND_NAMES[recipe.reads]
        todo = "change data.path or the kind of the tasks"
        what = f"task {task.name!r} of kind {task.kind} reads {wanted}"
        raise RecipeError(what, got=KIND_NAMES[data.kind], expected=wanted, todo=todo)


def _find(path: str) -> Path:
    if Path(path).is_dir():
        return Path(path)
    name = Path(path).name
    if name in sources.DATA:
        return sources.prepare_data(name)
    expected = f"a folder with interactions.parquet or texts.parquet, or one of {', '.join(sources.DATA)}"
    todo = "genre data prepare or genre data import makes one"
    if Path(path).is_file():
        todo = f"make one of this file with genre data import {path} --out DIR"
    raise DataError("no data set folder", got=path, expected=expected, todo=todo)


def open_base(wanted: BaseConfig, *, device: str | torch.device | None = None) -> Base:
    """Load the base of a recipe; raises as `Base.load` does."""
    dtype = dtype_of(wanted.precision, device)
    return Base.load(wanted.name, quantization=wanted.quantization, depth=wanted.depth, device=device, dtype=dtype)


def dtype_of(precision: str, device: str | torch.device | None = None) -> torch.dtype | None:
    """The type of a precision as a recipe names it; None for the device's own."""
    return measured(device).dtype if precision == MEASURED else PRECISIONS[precision]


def settle_precision(recipe: Recipe, base: Base | None, reporter: Reporter, processes: Processes = ALONE) -> Recipe:
    """Replace the precision `measured` of a recipe by the one that a run computes in, the same in all its processes.

    Args:
        recipe: The recipe; one that names a precision is returned as it is.
        base: The base that the run was given, whose precision it is then.
        reporter: Receives a line about it.
        processes: Those of the run.
    """
    if recipe.base.precision != MEASURED:
        return recipe
    if base is None:
        found = processes.broadcast(measured(processes.device))
    else:
        found = Precision(cast(Any, base.precision), "the base that was given is", {})
    reporter.line(f"computing in {found}")
    return recipe.model_copy(update={"base": recipe.base.model_copy(update={"precision": found.name})})


def load_base(manifest: Manifest, name: str | None = None, *, quantization: str | None = None, precision: str = "auto") -> Base:
    """Load the base that a manifest names, at its depth, once its weights are known to be those of the manifest.

    Args:
        manifest: Of a version. A name of the hub in it is looked up on this machine only: whoever published it wrote it.
        name: A folder or hub id, for versions whose base came from a folder, has moved or is to be fetched.
        quantization: Replaces the one that the version was trained on.
        precision: As in a recipe; a quantized base has its own.

    Raises:
        BaseModelError: There is no base of that name.
        InputError: A precision is named for a quantized base.
        ManifestError: Its weights are not those that the version was trained on.
    """
    wanted = manifest.base
    chosen: Any = quantization or wanted.quantization
    if chosen != "none":
        if precision not in ("auto", MEASURED):
            todo = "leave the precision out, or name quantization none"
            raise InputError("a quantized base has its own precision", got=f"{precision} with {chosen}", todo=todo)
        precision = "auto"
    source = name or wanted.name
    try:
        found = fingerprint(find(source, fetch=name is not None))
    except BaseModelError as error:
        if name is not None or not error.what.startswith("no base is called"):
            raise
        raise BaseModelError(error.what, expected=error.expected, todo="name its folder with --base") from None
    if found != wanted.fingerprint:
        todo = "name the base it was trained on"
        raise ManifestError("base.fingerprint", got=found, expected=wanted.fingerprint, todo=todo)
    return Base.load(source, quantization=chosen, depth=wanted.depth, dtype=dtype_of(precision))


def own_recipe(registry: Registry, version: Version, done: str, overrides: Iterable[str] = (), *, merged: str) -> Recipe:
    """Read the recipe that a version was trained from, with overrides.

    Args:
        registry: Holds the version.
        version: The version.
        done: What is to be done with it, for a message: `refreshed`.
        overrides: `KEY=VALUE` texts.
        merged: What helps where the version was merged.

    Raises:
        ManifestError: The version is not one that this library trained from a recipe.
    """
    manifest, file = version.manifest, registry.fetch(version) / "recipe.yaml"
    if manifest.kind != "adapter":
        todo = merged if manifest.kind == "merged" else "name an adapter"
        raise ManifestError(f"{version.ref} cannot be {done}", got=f"kind {manifest.kind}", expected="adapter", todo=todo)
    if not file.exists():
        what, expected = f"{version.ref} does not record what it was trained on", "a version that genre train published"
        raise ManifestError(what, got="no recipe", expected=expected)
    recipe = Recipe.read(file, overrides)
    rule = {"control_tokens": recorded_rule(manifest.sequence)}  # a recipe of before there were two does not tell
    return recipe.model_copy(update={"sequence": recipe.sequence.model_copy(update=rule)})


def restore(loaded: Loaded, data: Dataset, base: Base) -> tuple[Recommender, Builder, Any]:
    """Restore a published version as a model on some data, with the split that it was trained under; see `build_model`."""
    if loaded.manifest.data is None:
        raise ManifestError("data.split", got=None, expected="the split that the version was trained under")
    config = SplitConfig.model_validate((loaded.manifest.data.split or {}).get("split"))
    return *build_model(loaded, data, base), data.split(config)


def build_model(loaded: Loaded, data: Dataset, base: Base) -> tuple[Recommender, Builder]:
    """Build a model of a published version that scores rows of some data; it stays on the base until `release`.

    Raises:
        InputError: The version reads the other kind of data.
    """
    base.need_bare()
    builder = rows_of(data, loaded.reading)
    soft = None
    if loaded.shared is not None and data.catalogue is not None:
        soft = SoftTokens(loaded.shared.encoder, loaded.shared.encoder.table(data.catalogue, base))
    model = Recommender(base, loaded.tasks.values(), dict(loaded.heads), soft)
    model.put(lora_layers(base, loaded.low))
    return model.eval(), builder


@torch.no_grad()
def lora_layers(base: Base, low: Low, *, dropout: float = 0.0) -> dict[str, LoraLinear]:
    """LoRA layers of a stored update, in the base's order, ready for `Recommender.put`; the base is not changed.

    Files give their tensors in another order at each reading, and the state of an optimizer goes by the order.
    """
    layers: dict[str, LoraLinear] = {}
    order = {name: number for number, (name, _) in enumerate(base.model.named_modules())}
    for name in sorted(low, key=lambda each: order.get(each, -1)):
        a, b, scale = low[name]
        layer = LoraLinear(base.model.get_submodule(name), rank=a.shape[0], scale=scale, dropout=dropout)
        layer.lora_A.copy_(a)
        layer.lora_B.copy_(b)
        layers[name] = layer
    return layers
