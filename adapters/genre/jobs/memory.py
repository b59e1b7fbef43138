"""The device memory of a training run or a service, planned from configurations and file headers: no weights are loaded.

Owns: finding what a recipe or a registry names, and adding up its parts. Ignores: how passes are planned
(`genre.modules.base.planned`, `genre.training.memory_plan`), what is printed.

    plan_run(Recipe.read("recipes/like.yaml"), device="cuda").total(checkpoint=True)
    plan_service(Registry("registry"), ["like@production"], lanes=16, device="cuda").total
"""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from genre.data.dataset import Dataset
from genre.data.interactions import Interactions, need_log
from genre.errors import ManifestError, NotFoundError, RegistryError
from genre.jobs.encoders import sharable
from genre.jobs.loading import check_data, dtype_of, open_data
from genre.jobs.start import without_start
from genre.modules.base.devices import chosen_type
from genre.modules.base.planned import PlannedBase
from genre.modules.base.precision import MEASURED
from genre.modules.lora.layer import find_linears, linear_shape
from genre.modules.lora.slots import bucket, group_by_input, slots_for
from genre.recipe import Recipe
from genre.registry import Registry, Version
from genre.registry.weights.tensors import SIZES, read_header
from genre.training.assembly import assemble_any
from genre.training.memory_plan import TrainingMemory, plan_training

Device = Literal["cpu", "cuda"]
ROW_TOKENS = 512
"""Tokens of a row in the planned pass of a service; memory follows the tokens of a pass, hardly how they are cut into rows."""


def this_device() -> Device:
    """Where a job would run on this machine: as `cuda` on every accelerator."""
    return "cpu" if chosen_type() == "cpu" else "cuda"


def plan_run(
    recipe: Recipe, *, data: Dataset | None = None, registry: Registry | None = None, device: Device | None = None
) -> TrainingMemory:
    """Plan the memory of training a recipe alone.

    Args:
        recipe: The recipe; of its base nothing but the configuration and the tokenizer is read.
        data: Takes precedence over the recipe's data path.
        registry: Where an encoder would be found.
        device: Where the run would be; by default this machine's.

    Raises:
        GenreError: Whatever training would refuse about recipe and data, or a base that cannot run on shapes.
    """
    data = open_data(recipe.data.path, recipe.reads) if data is None else data
    check_data(recipe, data)
    place, wanted = device or this_device(), recipe.base
    dtype = _dtype(wanted.precision, wanted.quantization, place)
    base = PlannedBase.read(wanted.name, quantization=wanted.quantization, depth=wanted.depth, dtype=dtype, device=place)
    assembly = assemble_any(without_start(recipe), data, base)
    try:
        if assembly.shared is not None and registry is not None and recipe.encoder.use != "fit":
            with suppress(NotFoundError, ManifestError):
                sharable(recipe, need_log(data), registry)
                assembly.shared.encoder.requires_grad_(False)
        return plan_training(assembly)
    finally:
        assembly.model.release()


@dataclass(frozen=True)
class ServiceMemory:
    """Bytes of a service on its device.

    Attributes:
        base: The base's weights, in its quantization.
        adapters: The slots of the resident adapters.
        heads: Their heads.
        items: Encoders, and the vectors of their items.
        histories: What the history cache may take.
        passing: The most that a forward pass adds.
    """

    base: int
    adapters: int
    heads: int
    items: int
    histories: int
    passing: int

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(asdict(self).values())

    def as_dict(self) -> dict[str, int]:
        """The parts and their sum."""
        return asdict(self) | {"total": self.total}


def plan_service(
    registry: Registry,
    refs: Sequence[str],
    *,
    base: str | None = None,
    quantization: Any = None,
    precision: str = "auto",
    data: Interactions | None = None,
    lanes: int = 16,
    batch_tokens: int = 8192,
    batch_rows: int = 64,
    histories: int = 0,
    device: Device | None = None,
) -> ServiceMemory:
    """Plan the memory of serving some versions.

    Args:
        registry: Holds the versions; their files are fetched, and of weights the headers are read.
        refs: `name`, `name@alias` or `name:version`, all of them resident.
        base: In place of the base's name in their manifests.
        quantization: In place of that in their manifests.
        precision: As in a recipe.
        data: Its catalogue replaces the versions' own.
        lanes: Adapter slots.
        batch_tokens: Tokens of a forward pass.
        batch_rows: Rows of a micro-batch, which may each use another adapter.
        histories: Bytes of the history cache.
        device: Where the service would be; by default this machine's.

    Raises:
        GenreError: A version cannot be found, or the base cannot run on shapes.
    """
    versions = [registry.resolve(ref) for ref in dict.fromkeys(refs)]
    if not versions:
        raise RegistryError("a service needs versions", got="none")
    wanted, place = versions[0].manifest.base, device or this_device()
    kind = quantization or wanted.quantization
    options: dict[str, Any] = {"quantization": kind, "depth": wanted.depth, "dtype": _dtype(precision, kind, place)}
    planned = PlannedBase.read(base or wanted.name, **options, device=place, tokenizer=False)
    names = find_linears(planned.model, "all-linear")
    shapes = [[linear_shape(planned.model.get_submodule(name)) for name in members] for members in group_by_input(names)]
    sizes = [(group[0][0] * len(group), [out for _, out in group]) for group in shapes]
    itemsize = planned.dtype.itemsize
    ranks = [rank for version in versions if (rank := _rank(registry, version)) is not None]
    slot = sum(first + sum(outs) for first, outs in sizes)
    slots = sum(slots_for(count, lanes + 1) * rank * slot for rank, count in Counter(map(bucket, ranks)).items())
    heads = sum(_tensor_bytes(registry, version, "heads.safetensors") for version in versions)
    encoders: dict[str, tuple[Version, int]] = {}
    for version in versions:
        if version.manifest.encoder is not None:
            found = registry.find(version.manifest.encoder)
            encoders[found.digest] = found, (_catalogue_size(registry, found) if data is None else data.catalogue.size)
    items = sum(_tensor_bytes(registry, version, "encoder.safetensors") for version, _ in encoders.values())
    items += sum(4 * count * (planned.hidden_size + 3) for _, count in encoders.values())
    rows = max(1, batch_tokens // ROW_TOKENS)
    passing = planned.plan(rows, min(batch_tokens, ROW_TOKENS), train=False).peak
    passing += batch_tokens * (planned.hidden_size * itemsize + 5 * 8)  # embedded tokens, and the batch's integers
    if len(ranks) > 1:  # gathered, row by row; newer CUDA devices do without
        passing += min(batch_rows, rows) * max(ranks) * max(first + max(outs) for first, outs in sizes) * itemsize
    if any(task.get("kind") == "next_item" for version in versions for task in version.manifest.tasks):
        most = max((count for _, count in encoders.values()), default=0)
        passing += 4 * most * (planned.hidden_size + min(batch_rows, 64))
    return ServiceMemory(planned.weight_bytes, slots * itemsize, heads, items, histories, passing)


def _dtype(precision: str, quantization: str, place: Device) -> torch.dtype | None:
    """The type that a precision means there; what would have to be measured on another device is that device's own."""
    if quantization != "none" or (precision == MEASURED and place != this_device()):
        return None
    return dtype_of(precision, place)


def _rank(registry: Registry, version: Version) -> int | None:
    file = registry.fetch(version) / "adapter_config.json"
    return int(json.loads(file.read_text(encoding="utf-8"))["r"]) if file.exists() else None


def _tensor_bytes(registry: Registry, version: Version, name: str) -> int:
    file = registry.fetch(version) / name
    if not file.exists():
        return 0
    return sum(SIZES[each.dtype] * _count(each.shape) for each in read_header(file).values())


def _count(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


def _catalogue_size(registry: Registry, version: Version) -> int:
    file = registry.fetch(version) / "catalogue.jsonl"
    with file.open("rb") as lines:
        return sum(1 for _ in lines)
