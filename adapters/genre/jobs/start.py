"""The published version that a run starts from: `train.start`.

Owns: finding it, and whether a recipe can go on from it. Ignores: training, refreshes (`genre.jobs.refresh`), which follow the
log's time and promote what they make.

    recipe, start = find_start(recipe, data, base, registry, reporter)
    assemble_from(start, recipe, data, base)
"""

import math

from genre.data.interactions import Interactions
from genre.engine.versions import Loaded, read_adapter
from genre.errors import ManifestError, RecipeError
from genre.jobs.encoders import check_codes, check_leak
from genre.jobs.folders import check_same
from genre.jobs.forget.versions import refuse_forgotten
from genre.jobs.loading import lora_layers, own_recipe
from genre.modules.base.base import Base
from genre.modules.heads.heads import CatalogueHead, Head
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.registry.manifest import Version
from genre.tasks import Task
from genre.training.assembly import Start

PRIVATE_START = "{} is private: going on from its weights would spend its budget again"


def find_start(
    recipe: Recipe, log: Interactions, base: Base, registry: Registry | None, reporter: Reporter
) -> tuple[Recipe, Start]:
    """Load the version that a recipe starts from.

    Returns:
        The recipe with the version and its encoder by reference, and the version's parts.

    Raises:
        RecipeError: There is no registry, or the recipe differs from the version's in what its weights depend on.
        ManifestError: The version cannot be gone on from, does not fit the base, or it or what it came from has seen events that
            this recipe is evaluated on, or users who were forgotten since.
    """
    ref = recipe.train.start
    assert ref is not None
    if registry is None:
        raise RecipeError("train.start names a version, which needs a registry", got=ref, todo="give --registry DIR")
    version = registry.resolve(ref)
    own = own_recipe(registry, version, "started from", merged="start from one of its parents")
    if "privacy" in version.manifest.notes:
        raise ManifestError(PRIVATE_START.format(version.ref), got="notes.privacy", expected="a version without it")
    refuse_forgotten(registry, version, log)
    _check_recipe(version, own, recipe)
    _check_encoder(registry, version, recipe)
    for _, reference, other in registry.lineage(version):
        if other is None:
            what, expected = f"{version.ref} came from a version that is not here", "all that it came from"
            raise ManifestError(what, got=reference, expected=expected, todo="pull it, or start from another version")
        if other.manifest.data is not None or other.manifest.kind != "merged":
            check_leak(other.manifest, recipe, log, subject=other.ref, start=True)
    loaded = read_adapter(registry, version, base)
    check_update(loaded, recipe)
    check_codes(recipe, None if loaded.shared is None else loaded.shared.encoder.spec.codes)
    kept = None if loaded.shared is None or loaded.shared.digest is None else registry.find(loaded.shared.digest).ref
    update = {
        "encoder": recipe.encoder.model_copy(update={"use": kept or recipe.encoder.use}),
        "train": recipe.train.model_copy(update={"start": version.ref}),
    }
    reporter.line(f"starting from {version.ref}")
    layers = lora_layers(base, loaded.low, dropout=recipe.adapter.dropout)
    heads = {task.name: _bare(loaded.heads[task.name], task) for task in recipe.tasks}
    start = Start(loaded.shared, loaded.layout, heads, layers, parents=(loaded.digest,))
    return recipe.model_copy(update=update), start


def _bare(head: Head, task: Task) -> Head:
    """A head for another loss, without the terms that are fitted after training, as this run fits its own."""
    head = head.with_neighbours(None).with_cooccurrence(None) if isinstance(head, CatalogueHead) else head
    head.spec = head.spec.model_copy(update={"loss": task.loss})
    return head


def _check_recipe(version: Version, own: Recipe, recipe: Recipe) -> None:
    """Refuse a recipe that lays out rows, adapts the base or reads heads otherwise than the version (InputError)."""
    tasks, wanted = ({task.name: _read_as(task) for task in each.tasks} for each in (own, recipe))
    if missing := sorted(wanted.keys() - tasks.keys()):
        todo = "name the recipe's task as the version's"
        raise RecipeError(f"{version.ref} has no task {missing[0]!r}", got=", ".join(tasks), expected=missing[0], todo=todo)

    def described(of: Recipe, own_tasks: object) -> dict[str, object]:
        adapter, base = of.adapter.model_dump(mode="json", exclude={"dropout"}), of.base
        sections = {"sequence": of.sequence.model_dump(mode="json"), "adapter": adapter, "tasks": own_tasks}
        return sections | {"base": {"depth": base.depth, "quantization": base.quantization}}

    stored = described(own, {name: tasks[name] for name in wanted})
    check_same(f"train.start {version.ref}", stored, described(recipe, wanted), todo="write what that version's recipe has")


def _read_as(task: Task) -> dict[str, object]:
    """What a head's weights depend on; the loss of a ranking may be another one."""
    loss = None if task.kind == "next_item" else task.loss
    return {"kind": task.kind, "head": task.head, "loss": loss, "classes": task.classes}


def _check_encoder(registry: Registry, version: Version, recipe: Recipe) -> None:
    """Refuse an encoder that is not the version's: its heads and layers know no other (RecipeError)."""
    use, digest = recipe.encoder.use, version.manifest.encoder
    if digest is None or use == "auto":
        return
    if use in ("fit", "none") or registry.resolve(use).digest != digest:
        what, expected = f"{version.ref} goes with its own encoder", f"auto or {registry.find(digest).ref}"
        raise RecipeError(f"{what}, which encoder.use changes", got=use, expected=expected)


def check_update(loaded: Loaded, recipe: Recipe) -> None:
    """Check that a version's update has the rank and scale that a recipe describes.

    Raises:
        ManifestError: It does not.
    """
    adapter = recipe.adapter
    scale = adapter.alpha / (math.sqrt(adapter.rank) if adapter.kind == "rslora" else adapter.rank)
    for name, (a, _, own) in loaded.low.items():
        if (len(a), own) != (adapter.rank, scale):
            what = f"{loaded.name}:{loaded.version} differs from its recipe in rank and scale of {name}"
            raise ManifestError(what, got=f"{len(a)}, {own:g}", expected=f"{adapter.rank}, {scale:g}")


def without_start(recipe: Recipe) -> Recipe:
    """The recipe as if it started anew, where weights are not needed or come from elsewhere."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"start": None})})
