"""The options of federated training, and which recipes it can carry out.

Owns: these checks. Ignores: how rounds go.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from genre.errors import InputError, RecipeError
from genre.recipe import Recipe
from genre.tasks import RELATIVE
from genre.training.assembly import needs_encoder

MODULUS, LEVELS = 2**32, 2**22
"""Of SecAgg+: sums are taken modulo the first, a number of an update has one of so many values."""


@dataclass(frozen=True)
class FederatedOptions:
    """The options of federated training.

    Attributes:
        rounds: Rounds of local training and averaging.
        epochs: Epochs of local training in a round.
        freeze_a: A of every low-rank layer stays as it starts, the same at all clients, and B alone is trained.
        secure: The server learns sums of updates alone (SecAgg+); needs `freeze_a`.
        noise: Multiplier of the client-level noise (0: none); needs `freeze_a`.
        clip: The greatest length of a client's update, in a round with noise.
        delta: Of the epsilon that is reported; 1 / (10 n) for n clients if None.
        min_clients: A round with fewer answers ends the run.
        clients: Clients to wait for before the first round.
        wait_s: Most seconds to wait for them.
        bound: SecAgg+: the greatest absolute value of a number of an update.
    """

    rounds: int = 10
    epochs: int = 1
    freeze_a: bool = False
    secure: bool = False
    noise: float = 0.0
    clip: float = 1.0
    delta: float | None = None
    min_clients: int = 1
    clients: int = 1
    wait_s: float = 300.0
    bound: float = 2.0

    def __post_init__(self) -> None:
        for name in ("rounds", "epochs", "min_clients", "clients"):
            if (value := getattr(self, name)) < 1:
                raise InputError(name, got=value, expected="1 or more")
        for name, value in (("noise", self.noise), ("clip", self.clip), ("wait_s", self.wait_s), ("bound", self.bound)):
            least = 0 if name in ("noise", "wait_s") else math.ulp(0.0)
            if not (math.isfinite(value) and value >= least):
                raise InputError(name, got=value, expected="a number above 0" if least else "a number from 0")
        if self.delta is not None and not 0 < self.delta < 1:
            raise InputError("delta", got=self.delta, expected="between 0 and 1")
        if self.delta is not None and not self.noise:
            what, todo = "delta has no effect without noise", "add --noise, or leave --delta out"
            raise InputError(what, got="noise 0", expected="noise above 0", todo=todo)
        if self.min_clients > self.clients:
            raise InputError("min_clients", got=self.min_clients, expected=f"at most {self.clients}, the number of clients")
        if (self.secure or self.noise) and not self.freeze_a:
            what = "sums of updates need updates that add up, and products of two trained factors are large"
            raise InputError(what, got="freeze_a false", expected="freeze_a true", todo="add --freeze-a")
        if self.secure and self.clients < 3:
            what = "secure aggregation of two clients would tell each of them the other's update"
            raise InputError(what, got=f"{self.clients} clients", expected="3 or more")
        if self.secure and self.clients * LEVELS > MODULUS:
            raise InputError("SecAgg+ adds up fewer clients", got=self.clients, expected=f"at most {MODULUS // LEVELS}")

    @property
    def blank(self) -> bool:
        """True if nothing that was counted in a client's data may reach the server but noisy sums."""
        return self.noise > 0


def check_federated(recipe: Recipe) -> None:
    """Check that all of a recipe can be trained where the data is.

    Raises:
        RecipeError: It cannot; the message has the settings that let it.
    """
    if recipe.reads != "log":
        raise RecipeError(
            "federated training is of logs", got="tasks about labelled texts", expected="feedback or next_item tasks"
        )
    if recipe.adapter.kind not in ("lora", "rslora", "head_only"):
        expected = "lora, rslora or head_only"
        raise RecipeError("federated training publishes an adapter", got=f"adapter.kind {recipe.adapter.kind}", expected=expected)
    if recipe.train.privacy is not None:
        what, todo = "user-level privacy is not accounted for over rounds", "leave it out; --noise protects whole clients"
        raise RecipeError(what, got="train.privacy", expected="a recipe without it", todo=todo)
    if recipe.train.start is not None:
        todo = "leave it out"
        raise RecipeError("federated training starts anew", got=f"train.start {recipe.train.start}", expected="none", todo=todo)
    if relative := [task for task in recipe.tasks if task.loss in RELATIVE]:
        what, got = "clients of federated training keep no reference", f"loss {relative[0].loss} of task {relative[0].name}"
        raise RecipeError(
            what, got=got, expected="cross_entropy", todo="train it with genre train, from the version that results"
        )
    wrong = list(_one_logs(recipe))
    if wrong:
        got = ", ".join(f"{key} {value}" for key, value, _ in wrong)
        todo = " ".join(f"--set {key}={allowed}" for key, _, allowed in wrong)
        raise RecipeError(
            "federated training cannot fit what is computed from one log", got=got, expected="none of it", todo=todo
        )


def _one_logs(recipe: Recipe) -> Iterator[tuple[str, Any, Any]]:
    """Keys that ask for something computed from all events at once: their value, and the one that does not."""
    encoder, fits = recipe.encoder, needs_encoder(recipe) and recipe.encoder.use in ("auto", "fit")
    ranked = encoder.fuse and any(task.head == "catalogue" for task in recipe.tasks)
    for name in ("collaborative", "factors", "min_events"):
        if fits and getattr(encoder, name):
            yield f"encoder.{name}", getattr(encoder, name), 0
    if fits and encoder.codes is not None:
        yield "encoder.codes", encoder.codes.method, "null"
    for name in ("taste", "neighbours"):
        if ranked and getattr(encoder, name):
            yield f"encoder.{name}", getattr(encoder, name), 0
    if recipe.train.average:
        yield "train.average", recipe.train.average, 0
    if recipe.data.split.cold_items is not None:
        yield "data.split.cold_items", recipe.data.split.cold_items, "null"
