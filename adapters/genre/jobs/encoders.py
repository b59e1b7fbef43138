"""The behaviour encoder of a run: found in the registry, checked for leakage, published.

Owns: an encoder's name in a registry, whether a recipe may use it. Ignores: how an encoder is fitted.
"""

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
from genre.training.assembly import Assembly, check_feedback, feedback_column, needs_encoder
from genre.training.parts import SharedEncoder


def encoder_name(data: Dataset) -> str:
    """The name of a data set's behaviour encoder in a registry."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in data.info.name.lower())[:50].strip("-")
    return f"encoder-{plain or 'log'}"


def find_encoder(
    recipe: Recipe, data: Dataset, base: Base, registry: Registry | None, reporter: Reporter
) -> SharedEncoder | None:
    """Find the published encoder of a recipe and check it; None if the run fits a new one or needs none."""
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
        check_feedback(feedback_column(recipe, need_log(data)), shared)
    except (NotFoundError, ManifestError) as error:
        if recipe.encoder.use != "auto":
            raise
        reporter.line(f"fitting a new encoder: {error}")
        return None
    reporter.line(f"using the encoder {version.ref}")
    return shared


def publish_encoder(assembly: Assembly, root: Path, registry: Registry | None, cost: Cost) -> tuple[str, str]:
    """Publish the encoder that a run fitted; return its digest and its reference."""
    folder = root / "encoder"
    shutil.rmtree(folder, ignore_errors=True)
    with appearing_folder(folder) as aside:
        write_encoder(aside, assembly)
    store = registry or Registry(root / "registry")
    name = encoder_name(assembly.data)
    published = store.publish(folder, encoder_manifest(assembly, name, cost=cost))
    return published.digest, published.ref


def check_leak(encoder: Manifest, recipe: Recipe, log: Interactions) -> None:
    """Refuse an encoder that was fitted on events that this recipe validates or tests on.

    Raises:
        ManifestError: It was, or it may have been.
    """
    data = encoder.data
    held_out = split(log, recipe.data.split).held_out
    if data is not None and data.digest == log.digest and data.split is not None:
        theirs = split(log, SplitConfig.model_validate(data.split["split"])).part == 0
        for held in data.split.get("hold_out") or []:  # type: ignore[union-attr]
            theirs &= split(log, SplitConfig.model_validate(held)).part == 0
        overlap = int((theirs & held_out).sum())
        if overlap:
            todo = "fit it with data.hold_out naming this recipe's split, or use encoder.use: fit"
            what = "the encoder was fitted on events that this recipe is evaluated on"
            raise ManifestError(what, got=f"{overlap} events", expected="none", todo=todo)
        return
    first = int(log.timestamps[held_out].min()) if held_out.any() else None
    if data is None or data.time_span is None or (first is not None and data.time_span[1] > first):
        what = "the encoder was fitted on another log that overlaps in time with this recipe's evaluation"
        got, expected = None if data is None else data.time_span, f"nothing later than {first}"
        raise ManifestError(what, got=got, expected=expected, todo="use encoder.use: fit")
