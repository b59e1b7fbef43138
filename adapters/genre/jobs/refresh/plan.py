"""The plan of a refresh: its options, the new version's recipe, which events train and which test.

Owns: what a refresh may change of a version's own recipe, which events are new, their parts, the replayed sample of old ones.
Ignores: models, training.

    |- old: up to the last second that the version was trained on -|- new ------------------------------|
    |  a seeded sample of windows is replayed                      |  train 0.6  | valid 0.1 | test 0.3  |

The parts are by time, over all users, and training ends with a second, so the test lies after everything that the old or the new
version was trained on. A target's history is everything of its user before it, as always.
"""

from dataclasses import dataclass

import numpy as np

from genre.data.interactions import Interactions
from genre.data.splits import TEST, TRAIN, VALID, Split, SplitConfig, split
from genre.engine.versions import Loaded
from genre.errors import DataError, InputError, ManifestError, RecipeError
from genre.jobs.loading import own_recipe
from genre.jobs.start import PRIVATE_START, check_update, without_start
from genre.recipe import Recipe
from genre.registry import Registry
from genre.registry.manifest import Version

MIN_TARGETS = 100
MIN_USERS = 20
"""A test of fewer targets, or of fewer users, is too small to decide on."""


@dataclass(frozen=True)
class RefreshOptions:
    """The options of a refresh.

    Attributes:
        replay: Share of old events among the training events.
        valid, test: Shares of the new events that validate and test; the test ones are the latest.
        tolerance: The loss that still counts as not worse; see `refresh.gate`.
        encoder_due: A new encoder is due above this share of new events, or of the catalogue, on items that it does not know.
        overrides: `train.KEY=VALUE` changes of the version's own recipe.
        path: The log's path for the new version's recipe; the old one's if None.
    """

    replay: float = 0.2
    valid: float = 0.1
    test: float = 0.3
    tolerance: float = 0.01
    encoder_due: float = 0.2
    overrides: tuple[str, ...] = ()
    path: str | None = None

    def check(self) -> None:
        """Check the options.

        Raises:
            InputError: One is out of range; RecipeError: an override is not of `train`.
        """
        for name, value in (("replay", self.replay), ("valid", self.valid), ("test", self.test)):
            if not 0 <= value < 1 or (name == "test" and value == 0):
                raise InputError(f"{name} is out of range", got=value, expected="a share from 0 to 1, 1 not included")
        if self.valid + self.test >= 1:
            raise InputError("valid and test leave no training events", got=self.valid + self.test, expected="less than 1")
        if not 0 <= self.tolerance < 1 or not 0 <= self.encoder_due <= 1:
            got = f"{self.tolerance}, {self.encoder_due}"
            raise InputError("tolerance or encoder_due is out of range", got=got, expected="shares from 0 to 1")
        for override in self.overrides:
            if not override.startswith("train.") or override.startswith("train.start="):
                what, todo = "a refresh can only change how a version is trained", "train another adapter with genre train"
                raise RecipeError(what, got=override, expected="train.KEY=VALUE", todo=todo)


def read_recipe(registry: Registry, version: Version, options: RefreshOptions) -> Recipe:
    """The version's own recipe with the overrides.

    Raises:
        ManifestError: The version is not one that this library trained from a recipe.
    """
    recipe = own_recipe(registry, version, "refreshed", options.overrides, merged="refresh its parents and merge again")
    if "privacy" in version.manifest.notes:
        what = PRIVATE_START.format(version.ref)
        todo = f"train it from the start: genre refresh {version.name} --from-start"
        raise ManifestError(what, got="notes.privacy", expected="a version without it", todo=todo)
    if version.manifest.data is None or version.manifest.data.time_span is None:
        what, expected = f"{version.ref} does not record what it was trained on", "a version that genre train published"
        raise ManifestError(what, got="no time span", expected=expected)
    return recipe


def resolve_recipe(registry: Registry, recipe: Recipe, loaded: Loaded, split: SplitConfig, options: RefreshOptions) -> Recipe:
    """The recipe of the new version: the plan's split, and the old version's encoder by reference.

    Raises:
        ManifestError: The version's update is not the one that its recipe describes.
    """
    check_update(loaded, recipe)
    recipe = without_start(recipe)  # it goes on from the version itself
    kept = {"split": split, "hold_out": (), "limit": None, "path": options.path or recipe.data.path}
    use = recipe.encoder.use
    if loaded.shared is not None and loaded.shared.digest is not None:
        use = registry.find(loaded.shared.digest).ref
    update = {"data": recipe.data.model_copy(update=kept), "encoder": recipe.encoder.model_copy(update={"use": use})}
    return recipe.model_copy(update=update)


@dataclass(frozen=True)
class Plan:
    """The parts of a log for one refresh.

    Attributes:
        since: The last second that the version was trained on; later events are new.
        split: A temporal one whose validation and test parts are new.
        supervised: (n,) bool, the training targets: the new events before the validation part, and the replayed ones.
        counts: Events: `new`, and of them `train`, `valid`, `test`; `replayed` old ones.
    """

    since: int
    split: Split
    supervised: np.ndarray
    counts: dict[str, int]


def plan(
    log: Interactions, since: int, *, replay: float, valid: float, test: float, block: int, seed: int, min_events: int = 0
) -> Plan | None:
    """Split a log that has new events; None if they are too few for a training and a test part.

    Args:
        log: The log.
        since: The last second that the version was trained on.
        replay: Share of old events among the training events.
        valid: Share of the new events for validation.
        test: Share of the new events, the latest, for the test.
        block: Old events of a user that are replayed together.
        seed: Of the replayed sample.
        min_events: Users with fewer events in the whole log are unused.

    Raises:
        DataError: An impression reaches from old events into the held-out ones.
    """
    new = log.timestamps > since
    count, total = int(new.sum()), len(log)
    held = round(count * (valid + test)), round(count * test)
    if not 0 < held[1] <= held[0] < count:
        return None
    held = _whole_seconds(log.timestamps, held, count)
    config = SplitConfig(kind="temporal", valid=(held[0] - held[1]) / total, test=held[1] / total, min_events=min_events)
    chosen = split(log, config)
    if (~new & (chosen.part > TRAIN)).any():
        what = "an impression reaches from what the version was trained on into the held-out events"
        raise DataError(what, todo="wait for more new events")
    usable = chosen.part == TRAIN
    fresh = usable & new
    wanted = round(replay / (1 - replay) * int(fresh.sum()))
    again = _replayed(log, usable & ~new, wanted, block=block, seed=seed)
    counts = {"new": count, "train": int(fresh.sum())}
    counts |= {"valid": int((chosen.part == VALID).sum()), "test": int((chosen.part == TEST).sum())}
    counts["replayed"] = int(again.sum())
    return Plan(since, chosen, fresh | again, counts)


def _whole_seconds(timestamps: np.ndarray, held: tuple[int, int], count: int) -> tuple[int, int]:
    """Hold out the rest of the second that training would end in: of it nothing would be new to the next refresh."""
    times = np.sort(timestamps)
    first = len(times) - int(np.searchsorted(times, times[-held[0]]))
    if first >= count:
        return held
    return first, first if held[0] == held[1] else held[1]


def _replayed(log: Interactions, old: np.ndarray, wanted: int, *, block: int, seed: int) -> np.ndarray:
    """(n,) bool: at most `wanted` old events, in whole blocks of one user's neighbouring events drawn at random."""
    events = np.flatnonzero(old)
    user = log.user_codes[events]
    first = np.searchsorted(user, user)
    number = (np.arange(len(events)) - first) // block
    starts = np.flatnonzero(np.diff(user, prepend=-1) | np.diff(number, prepend=-1))
    again = np.zeros(len(log), dtype=bool)
    for piece in np.random.default_rng([seed, 1]).permutation(len(starts)):
        if wanted <= 0:
            break
        stop = starts[piece + 1] if piece + 1 < len(starts) else len(events)
        taken = events[starts[piece] : stop][-wanted:]
        again[taken] = True
        wanted -= len(taken)
    return again
