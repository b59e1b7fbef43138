"""What a refresh is asked for, and the recipe that follows.

Owns: the options, the version's own recipe, what of it a refresh may change. Ignores: data, training.
"""

import math
from dataclasses import dataclass

from genre.data.splits import SplitConfig
from genre.engine.versions import Loaded
from genre.errors import InputError, ManifestError, RecipeError
from genre.recipe import Recipe
from genre.registry import Registry
from genre.registry.manifest import Version


@dataclass(frozen=True)
class RefreshOptions:
    """How to refresh.

    Attributes:
        replay: Share of old events among those that are learnt from.
        valid, test: Shares of the new events that validate and test; the test ones are the latest.
        tolerance: How much worse still counts as not worse; see `refresh_judge`.
        encoder_due: Share of new events, or of the catalogue, on items without vectors of their own above which a new
            encoder is due.
        overrides: `train.KEY=VALUE` changes of the version's own recipe.
        path: Where the log came from, for the new version's recipe; the old one's if None.
    """

    replay: float = 0.2
    valid: float = 0.1
    test: float = 0.3
    tolerance: float = 0.01
    encoder_due: float = 0.2
    overrides: tuple[str, ...] = ()
    path: str | None = None

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            InputError: An option is out of range; RecipeError: an override is not of `train`.
        """
        for name, value, most in (("replay", self.replay, 1), ("valid", self.valid, 1), ("test", self.test, 1)):
            if not 0 <= value < most or (name == "test" and value == 0):
                raise InputError(f"{name} is out of range", got=value, expected="a share from 0 to 1, 1 not included")
        if self.valid + self.test >= 1:
            raise InputError("valid and test leave nothing to learn from", got=self.valid + self.test, expected="less than 1")
        if not 0 <= self.tolerance < 1 or not 0 <= self.encoder_due <= 1:
            raise InputError(
                "tolerance or encoder_due is out of range", got=f"{self.tolerance}, {self.encoder_due}", expected="shares"
            )
        for override in self.overrides:
            if not override.startswith("train."):
                raise RecipeError(
                    "a refresh changes how a version is trained, not what it is", got=override, expected="train.KEY=VALUE",
                    todo="train another adapter with genre train",
                )  # fmt: skip


def read_recipe(registry: Registry, version: Version, options: RefreshOptions) -> Recipe:
    """The version's own recipe with the overrides.

    Raises:
        ManifestError: The version is not one that this library trained from a recipe.
    """
    manifest, file = version.manifest, registry.fetch(version) / "recipe.yaml"
    if manifest.kind != "adapter":
        todo = "refresh its parents and merge again" if manifest.kind == "merged" else "refresh an adapter"
        raise ManifestError(f"{version.ref} cannot be refreshed", got=f"kind {manifest.kind}", expected="adapter", todo=todo)
    if not file.exists() or manifest.data is None or manifest.data.time_span is None:
        raise ManifestError(
            f"{version.ref} does not say what it was trained on", got="no recipe or no time span",
            expected="a version that genre train published",
        )  # fmt: skip
    return Recipe.read(file, options.overrides)


def resolve_recipe(registry: Registry, recipe: Recipe, loaded: Loaded, chosen: SplitConfig, options: RefreshOptions) -> Recipe:
    """The recipe of the new version: the plan's split, and the encoder by its own reference.

    Raises:
        ManifestError: The version's update is not the one that its recipe describes.
    """
    adapter = recipe.adapter
    scale = adapter.alpha / (math.sqrt(adapter.rank) if adapter.kind == "rslora" else adapter.rank)
    for name, (a, _, own) in loaded.low.items():
        if (len(a), own) != (adapter.rank, scale):
            raise ManifestError(
                f"{loaded.name}:{loaded.version} is not what its recipe says: rank and scale of {name}",
                got=f"{len(a)}, {own:g}", expected=f"{adapter.rank}, {scale:g}",
            )  # fmt: skip
    kept = {"split": chosen, "hold_out": (), "limit": None, "path": options.path or recipe.data.path}
    use = recipe.encoder.use
    if loaded.shared is not None and loaded.shared.digest is not None:
        use = registry.find(loaded.shared.digest).ref
    update = {"data": recipe.data.model_copy(update=kept), "encoder": recipe.encoder.model_copy(update={"use": use})}
    return recipe.model_copy(update=update)
