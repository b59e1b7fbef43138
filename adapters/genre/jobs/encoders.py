"""Which behaviour encoder a run uses, and whether it may: found in the registry, checked for leaks, published."""

import shutil
from pathlib import Path

from genre.data.dataset import Dataset
from genre.data.interactions import Interactions, need_log
from genre.data.splits import SplitConfig, split
from genre.engine.versions import read_encoder
from genre.errors import ManifestError, NotFoundError, RecipeError
from genre.files import appearing_folder
from genre.jobs.publish import encoder_manifest, write_encoder
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.registry.manifest import Cost, Manifest
from genre.training.assembly import Assembly, needs_encoder
from genre.training.parts import SharedEncoder


def encoder_name(data: Dataset) -> str:
    """What the behaviour encoder of a data set is called in a registry."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in data.info.name.lower())[:50].strip("-")
    return f"encoder-{plain or 'log'}"


def find_encoder(recipe: Recipe, data: Dataset, base: Base, registry: Registry | None, say: Reporter) -> SharedEncoder | None:
    """The published encoder that a run is to use, checked; None if it fits a new one or needs none."""
    if not needs_encoder(recipe) or recipe.encoder.use == "fit":
        return None
    ref = encoder_name(data) if recipe.encoder.use == "auto" else recipe.encoder.use
    if registry is None:
        if recipe.encoder.use == "auto":
            return None
        raise RecipeError("encoder.use names a version, which needs a registry", got=ref, todo="give --registry DIR")
    try:
        version = registry.resolve(ref)
        shared = read_encoder(registry, version.digest, base)
        check_leak(version.manifest, recipe, need_log(data))
    except (NotFoundError, ManifestError) as error:
        if recipe.encoder.use != "auto":
            raise
        say.line(f"fitting a new encoder: {error}")
        return None
    say.line(f"using the encoder {version.ref}")
    return shared


def publish_encoder(assembly: Assembly, root: Path, registry: Registry | None, cost: Cost) -> tuple[str, str]:
    """Publish the encoder that a run fitted: its digest and its reference."""
    folder = root / "encoder"
    shutil.rmtree(folder, ignore_errors=True)
    with appearing_folder(folder) as aside:
        write_encoder(aside, assembly)
    store = registry or Registry(root / "registry")
    name = encoder_name(assembly.data)
    published = store.publish(folder, encoder_manifest(assembly, name, cost=cost))
    return published.digest, published.ref


def check_leak(encoder: Manifest, recipe: Recipe, log: Interactions) -> None:
    """Refuse an encoder that was fitted on events which this recipe validates or tests on.

    Raises:
        ManifestError: It was, or it cannot be told.
    """
    data = encoder.data
    held_out = split(log, recipe.data.split).held_out
    if data is not None and data.digest == log.digest and data.split is not None:
        theirs = split(log, SplitConfig.model_validate(data.split["split"])).part == 0
        for held in data.split.get("hold_out") or []:  # type: ignore[union-attr]
            theirs &= split(log, SplitConfig.model_validate(held)).part == 0
        overlap = int((theirs & held_out).sum())
        if overlap:
            raise ManifestError(
                "the encoder was fitted on events that this recipe is evaluated on", got=f"{overlap} events", expected="none",
                todo="fit it with data.hold_out naming this recipe's split, or use encoder.use: fit",
            )  # fmt: skip
        return
    first = int(log.timestamps[held_out].min()) if held_out.any() else None
    if data is None or data.time_span is None or (first is not None and data.time_span[1] > first):
        raise ManifestError(
            "the encoder was fitted on another log that overlaps in time with this recipe's evaluation",
            got=None if data is None else data.time_span, expected=f"nothing later than {first}", todo="use encoder.use: fit",
        )  # fmt: skip
