"""The configuration of user-level differential privacy, and the recipes that cannot have it.

Owns: the keys of `train.privacy`, delta from the number of users, the refusal of what would look past the noise. Ignores: noise,
accounting, training (`genre.training.private`).

    train: {privacy: {unit: user, epsilon: 8, delta: auto, clip: 1.0}}
"""

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

PER_USER_SPLITS = ("last_n", "user_ratio")
"""Splits in which no user's events decide the part of another user's."""

TRAINED = ("lora", "rslora", "head_only", "no_base")
"""Kinds of adapter whose gradients are computed user by user."""


class PrivacyConfig(BaseModel):
    """User-level differential privacy: adding or removing all events of one user hardly changes what is published.

    Attributes:
        unit: Whose events are protected together.
        epsilon: The whole budget, of steps and statistics.
        delta: The probability that epsilon does not hold; `auto` is a twentieth of one over the number of users, in one digit.
        clip: Largest norm of one user's part of a step's gradient, over all trained tensors.
        users: Users that a step is expected to draw, each by itself; a twentieth of all if None.
        statistics: Share of epsilon for noisy statistics that heads start at (item popularity, mean labels); 0 for none.
        item_map: Share of epsilon for a linear map of item vectors that next-item heads start at, itself started at neighbours by
            text; 0 for none. Steps then train the base's part and leave the map.
        ngrams: Neighbours of each item by n-grams of its text, which next-item heads add with weights that no event chose; 0 for
            none. They are of public texts alone and cost nothing of epsilon.
        feedback_values: All values that the feedback column can have, since those that occur are private.
        ranges: For each task with loss `mse`, the lowest and highest label that is possible.
        metrics: `withheld` keeps metrics on these users' events out of the version; `public` publishes them, for data whose
            test users have agreed to that.
        noise_seed: Fixes all noise, for tests: whoever knows it can take the noise off, and the version says "not private".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: Literal["user"] = "user"
    epsilon: float = Field(gt=0, le=100, allow_inf_nan=False)
    delta: Literal["auto"] | float = "auto"
    clip: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    users: int | None = Field(default=None, ge=1)
    statistics: float = Field(default=0.1, ge=0, lt=1)
    item_map: float = Field(default=0.0, ge=0, lt=1)
    ngrams: int = Field(default=0, ge=0, le=4096)
    feedback_values: tuple[float, ...] | tuple[str, ...] = ()
    ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)
    metrics: Literal["withheld", "public"] = "withheld"
    noise_seed: int | None = Field(default=None, ge=0, lt=2**63)

    @field_validator("delta")
    @classmethod
    def _delta(cls, value: float | str) -> float | str:
        if isinstance(value, float) and not 0 < value < 1:
            raise ValueError(f"got {value:g}; expected auto, or a probability between 0 and 1")
        return value

    @field_validator("feedback_values")
    @classmethod
    def _values(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if any(isinstance(value, float) and not math.isfinite(value) for value in values):
            raise ValueError("one of the values is not finite; events without feedback need none")
        if len(set(values)) < len(values):
            raise ValueError("two of the values are the same")
        return tuple(sorted(values))

    @field_validator("ranges")
    @classmethod
    def _ranges(cls, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        for task, (low, high) in ranges.items():
            if not math.isfinite(low) or not math.isfinite(high):
                raise ValueError(f"the range of {task} has no end: {low:g} to {high:g}")
            if not low < high:
                raise ValueError(f"the range of {task} is empty: {low:g} to {high:g}")
        return ranges

    def delta_of(self, users: int) -> float:
        """The delta for so many users: the recipe's, or 1 / (20 users) rounded down to one digit, so below 1 / (10 users)."""
        if self.delta != "auto":
            return float(self.delta)
        exact = 1 / (20 * users)
        unit = 10.0 ** float(f"{exact:e}".partition("e")[2])
        return float(f"{max(int(exact / unit + 1e-9), 1) * unit:.0e}")


def refuse(recipe: Any) -> None:
    """Check that nothing in a private recipe looks at several users at once other than through noise (mutates nothing).

    Raises:
        ValueError: The message names the key and what to write instead.
    """
    privacy: PrivacyConfig = recipe.train.privacy
    if recipe.reads == "texts":
        raise ValueError("train.privacy protects the users of a log, and labelled texts have none")
    for each in (recipe.data.split, *recipe.data.hold_out):
        if each.kind not in PER_USER_SPLITS:
            kinds = " or ".join(PER_USER_SPLITS)
            raise ValueError(f"train.privacy: a {each.kind} split cuts where everybody's events say; use {kinds}")
        for key in ("cold_items", "users", "folds"):
            if getattr(each, key) is not None:
                raise ValueError(f"train.privacy: data.split.{key} draws by looking at all users; leave it out")
    if recipe.data.limit is not None:
        raise ValueError("train.privacy: data.limit keeps the latest events of all users together; leave it out")
    if recipe.train.start is not None:
        raise ValueError("train.privacy: train.start goes on from weights that saw events without noise; leave it out")
    if recipe.encoder.min_events:
        raise ValueError("train.privacy: encoder.min_events counts everybody's events of an item; set it to 0")
    if recipe.encoder.codes is not None:
        raise ValueError(
            "train.privacy: encoder.codes trains vectors of codes with the encoder, and a private one does not train"
        )
    if recipe.base.quantization == "int8":
        raise ValueError("train.privacy: an int8 base rounds the rows of a batch together; use nf4 or none")
    if recipe.adapter.kind not in TRAINED:
        raise ValueError(f"train.privacy: adapter.kind {recipe.adapter.kind} has a gradient as large as the base for every user")
    if privacy.statistics + privacy.item_map >= 1:
        raise ValueError("train.privacy: statistics and item_map take all of epsilon; leave some for the steps")
    if privacy.item_map and not (recipe.encoder.whiten and recipe.encoder.fuse):
        raise ValueError("train.privacy.item_map starts at neighbours by text; set encoder.whiten and encoder.fuse to true")
    if privacy.item_map and not any(task.kind == "next_item" for task in recipe.tasks):
        raise ValueError("train.privacy.item_map is of next_item tasks, and there is none; set it to 0")
    if privacy.ngrams and not (recipe.encoder.whiten and recipe.encoder.text and recipe.sequence.text):
        raise ValueError(
            "train.privacy.ngrams reads items' texts; name their columns in sequence.text, and set encoder.whiten to true"
        )
    if privacy.ngrams and not any(task.kind == "next_item" for task in recipe.tasks):
        raise ValueError("train.privacy.ngrams is of next_item tasks, and there is none; set it to 0")
    names = {task.name for task in recipe.tasks}
    if stray := sorted(privacy.ranges.keys() - names):
        raise ValueError(f"train.privacy.ranges names no task of the recipe: {stray[0]}")
    for task in recipe.tasks:
        if task.loss == "mse" and task.name not in privacy.ranges:
            raise ValueError(f"train.privacy.ranges lacks the possible labels of task {task.name}, such as {task.name}: [1, 5]")
        if task.logged is not None:
            raise ValueError(
                f"train.privacy: loss {task.loss} of task {task.name} reads rewards without a bound; use cross_entropy"
            )
        if task.preference is not None or task.group is not None:
            raise ValueError(f"train.privacy: loss {task.loss} of task {task.name} draws across users; use cross_entropy")
        if task.head == "generate":
            raise ValueError(f"train.privacy: head 'generate' of task {task.name} has no gradient by user; use catalogue")
        if task.head == "categorical" and task.classes is None:
            raise ValueError(f"train.privacy: task {task.name} needs its classes, since those that occur are private")
    if not privacy.feedback_values and recipe.sequence.feedback != "none":
        todo = "such as feedback_values: [1, 2, 3, 4, 5], or set sequence.feedback to none"
        raise ValueError(
            f"train.privacy.feedback_values lists what the feedback column can hold, since what occurs is private; {todo}"
        )


def public_only(recipe: Any) -> Any:
    """The recipe without what is fitted to events outside the steps: it starts from texts, public values and chance."""
    off = {"use": "fit", "learned": 0, "collaborative": 0, "factors": 0, "taste": 0, "min_events": 0}
    if not recipe.encoder.whiten or recipe.train.privacy.item_map:
        off["neighbours"] = (
            0  # of them those by text are left: there are none without whitened text, and an item map starts there
        )
    if recipe.encoder.use != "auto":
        off.pop("use")
    train = recipe.train.model_copy(update={"early_stop": None})
    return recipe.model_copy(update={"encoder": recipe.encoder.model_copy(update=off), "train": train})


def public_range(task: Any, config: PrivacyConfig) -> tuple[float, float]:
    """The lowest and highest label of a feedback task, as the recipe declares them."""
    return config.ranges[task.name] if task.loss == "mse" else (0.0, 1.0)


def public_start(task: Any, config: PrivacyConfig) -> dict[str, float]:
    """The start of a head from what is public: an even prior, or the middle and a quarter of the possible labels."""
    if task.loss == "log_loss":
        return {"prior": 0.5}
    if task.loss != "mse":
        return {}
    low, high = public_range(task, config)
    return {"mean": (low + high) / 2, "deviation": (high - low) / 4}
