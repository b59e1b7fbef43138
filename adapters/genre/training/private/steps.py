"""The steps of a private run: who takes part, the noisy gradient, and the check that both are what was accounted for.

Owns: Poisson sampling of users, noise on the clipped sum, the checks, what a checkpoint keeps, the epsilon spent. Ignores:
the optimizer, files.

    step    each of n users takes part with probability q          an empty step counts, and is noise alone
            g = (Σ_u clip(g_u) + N(0, (σ C)²)) / (q n)
            checked: users drawn = users added, every clipped norm ≤ C, the noise's deviation, the weights since the last step

Everything else of a run is a function of g: optimizer, moving average, learning rate.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from genre.data.sequences.layout import Sequence
from genre.distributed import Processes
from genre.errors import InputError, JobError
from genre.training.assembly import Assembly
from genre.training.checks import checksums
from genre.training.drawing import Labels
from genre.training.epochs import Epoch, lay_out
from genre.training.parts import mapped_heads
from genre.training.private.accounting import Plan, make_plan
from genre.training.private.gradients import Clipped, UserGradients
from genre.training.private.item_map import STEPS, fit_map
from genre.training.private.noise import Noise
from genre.training.private.statistics import Part, parts_of, release, start_heads

SIGMAS = 8.0
"""The noise's measured deviation may be so many standard errors from the planned one."""


class PrivateSteps:
    """The private part of one run.

    Args:
        assembly: The run, with `train.privacy` in its recipe.
        parameters: All that trains, by name.

    Attributes:
        plan: Its budget.
        steps: Steps taken, those before a resume included.
        released: The noisy statistics; None before `begin` and without them.
        item_map: The item map of next-item heads; None before `begin` and without one.
        pending: For each step of the epoch the codes of the users that it drew, of those who have rows.

    Raises:
        InputError: Several processes share the run, or Opacus is not installed.
        RecipeError: No noise keeps the run within its budget.
    """

    def __init__(self, assembly: Assembly, parameters: Mapping[str, nn.Parameter]) -> None:
        config, train = assembly.recipe.train.privacy, assembly.recipe.train
        assert config is not None
        if (count := Processes.current().count) > 1:
            raise InputError("a private run takes one process", got=f"{count} processes", expected="genre train")
        self.assembly = assembly
        self.parameters = dict(parameters)
        self.parts: list[Part] = parts_of(assembly) if config.statistics else []
        chosen = config if self.parts else config.model_copy(update={"statistics": 0.0})
        self.plan: Plan = make_plan(chosen, users=len(assembly.log.user_ids), epochs=train.epochs, map_steps=STEPS)
        self.noise = Noise(config.noise_seed)
        self.gradients = UserGradients(assembly.model, self.parameters, tokens=max(train.batch_tokens // train.accumulate, 1))
        self.steps = 0
        self.released: Tensor | None = None
        self.item_map: Tensor | None = None
        self.pending: list[frozenset[int]] = []
        self.marks: dict[str, float] = {}

    @property
    def publishes_metrics(self) -> bool:
        """True if the recipe declares the test part public."""
        config = self.assembly.recipe.train.privacy
        return config is not None and config.metrics == "public"

    def begin(self) -> None:
        """Release the statistics and start heads at them; once in a run, which a checkpoint remembers."""
        torch.manual_seed(self.noise.seed())  # dropout as nobody can foresee it
        if self.plan.statistics_sigma is not None:
            self.released = release(self.assembly, self.parts, self.noise, self.plan.statistics_sigma)
        if self.plan.map_sigma is not None:
            self.item_map = fit_map(self.assembly, self.noise, self.plan.map_sigma)
        self._start()

    def _start(self) -> None:
        if self.released is not None and self.plan.statistics_sigma is not None:
            start_heads(self.assembly, self.parts, self.released, self.plan.statistics_sigma)
        if self.item_map is not None:
            for head in mapped_heads(self.assembly.model).values():
                head.take_map(self.item_map)

    def plan_epoch(self, all_labels: Labels) -> Epoch:
        """Draw the users of an epoch's steps, each step by itself; rows and labels as `lay_out` gives them, which also raises."""
        rows, labels = lay_out(self.assembly, all_labels, *self._random())
        by_user = self._by_user(rows)
        batches = []
        self.pending = []
        for _ in range(self.plan.steps_per_epoch):
            drawn = self.noise.bernoulli(self.plan.sample_rate, self.plan.users).nonzero()[0].tolist()
            there = [user for user in drawn if user in by_user]
            self.pending.append(frozenset(there))
            batches.append([row for user in there for row in by_user[user]])
        return Epoch(batches, labels)

    def _random(self) -> tuple[float, np.random.Generator]:
        """The shift of an epoch's windows and what draws its negatives; unforeseeable, and the same for all users."""
        return float(self.noise.uniform(1)[0]), np.random.default_rng(self.noise.seed())

    def user_of(self, row: Sequence) -> int:
        """The code of the user whose events a row holds."""
        return int(self.assembly.log.user_codes[row.events[row.events >= 0][0]])

    def _by_user(self, rows: Iterable[Sequence]) -> dict[int, list[Sequence]]:
        found: dict[int, list[Sequence]] = {}
        for row in rows:
            found.setdefault(self.user_of(row), []).append(row)
        return found

    def gradient(self, rows: Iterable[Sequence], labels: Labels, *, index: int) -> Clipped:
        """Put the noisy mean gradient of a step into the parameters' `grad`.

        Args:
            rows: All rows of the users that the step drew.
            labels: Of the epoch.
            index: The step's number in its epoch.

        Raises:
            JobError: What was added is not what was accounted for; nothing was changed.
        """
        by_user = self._by_user(rows)
        clip, plan = self.plan.clip, self.plan
        found = self.gradients.clipped(list(by_user.values()), labels, clip)
        noisy, noise = self.noise.release(found.total, clip=clip, sigma=plan.sigma)
        self._check(found, noise, frozenset(by_user), self.pending[index] if index < len(self.pending) else None)
        parts = (noisy / plan.expected_users).split([value.numel() for value in self.parameters.values()])
        for value, own in zip(self.parameters.values(), parts, strict=True):
            value.grad = own.view_as(value).to(value.dtype)
        return found

    def _check(self, found: Clipped, noise: Tensor, users: frozenset[int], drawn: frozenset[int] | None) -> None:
        wanted, size = self.plan.sigma * self.plan.clip, noise.numel()
        measured = float(noise.double().square().mean().sqrt())
        trained = {id(value) for value in self.assembly.model.trainable().values()}
        checks = [
            ("the users added are not those drawn", len(users), None if drawn is None else len(drawn), users == drawn),
            ("users are missing from the sum", len(found.norms), len(users), len(found.norms) == len(users)),
            ("a clipped norm", f"{found.largest:g}", f"at most {self.plan.clip:g}", found.largest <= self.plan.clip * (1 + 1e-4)),
            (
                "the noise's standard deviation",
                f"{measured:g}",
                f"about {wanted:g}",
                abs(measured / wanted - 1) <= SIGMAS / math.sqrt(2 * size),
            ),
            (
                "tensors train that get no noise",
                len(trained),
                len(self.parameters),
                trained == {id(value) for value in self.parameters.values()},
            ),
            ("weights were changed outside the steps", *self._moved()),
        ]
        for what, got, expected, fine in checks:
            if not fine:
                what = f"the run is not as private as accounted for after step {self.steps}: {what}"
                raise JobError(what, got=got, expected=expected, todo="the last checkpoint is intact; report this")

    def _moved(self) -> tuple[Any, Any, bool]:
        """The first tensor that is not as the last step left it."""
        now = self._marks() if self.marks else {}
        moved = [name for name, value in now.items() if value != self.marks.get(name)]
        return moved[:1] or None, "none", not moved

    def _marks(self) -> dict[str, float]:
        model, shared = self.assembly.model, self.assembly.shared
        beside = {f"heads.{name}": value for name, value in model.heads.state_dict().items()}
        beside |= {} if shared is None else {f"encoder.{name}": value for name, value in shared.encoder.state_dict().items()}
        return checksums(beside | self.parameters)

    def stepped(self) -> None:
        """Count a step whose gradient has changed the weights."""
        self.steps += 1
        self.marks = self._marks()

    def report(self) -> str:
        """The epsilon that was spent, in a line."""
        plan, public = self.plan, "" if self.plan.secret else "; NOT private: the noise has a seed"
        spent = f"epsilon {plan.spent(self.steps):.2f} of {plan.epsilon:g} at delta {plan.delta:g}"
        return f"privacy: {spent} after {self.steps:,} of {plan.steps:,} steps{public}"

    def announce(self) -> str:
        """The plan of the run, in a line."""
        plan = self.plan
        before = f"an item map of {plan.map_steps} steps of all users, then " if plan.map_steps else ""
        draws = f"each of {plan.users:,} users with probability {plan.sample_rate:.4g}, {plan.expected_users:g} expected"
        return (
            f"privacy: epsilon {plan.epsilon:g}, delta {plan.delta:g}, by user: {before}{plan.steps:,} steps draw {draws}; "
            f"noise {plan.sigma:.3f} times clip {plan.clip:g}; nothing is validated, the last weights are kept"
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: the plan, the steps, the statistics. No state of the noise, which would take it off."""
        return {"plan": dataclasses.asdict(self.plan), "steps": self.steps, "released": self.released, "item_map": self.item_map}

    def restore(self, state: Mapping[str, Any] | None, step: int) -> None:
        """Go on from a checkpoint's state; weights are restored after it.

        Raises:
            InputError: It is of a run that was planned otherwise, or not private.
        """
        own = dataclasses.asdict(self.plan)
        if state is None or state["plan"] != own or state["steps"] != step:
            plan = own if state is None else state["plan"]
            held = {key: plan.get(key) for key, value in own.items() if plan.get(key) != value}
            todo = "resume with the recipe that it began with, epochs and users included, or start over without --resume"
            raise InputError("the checkpoint's budget is another one", got=held or "steps that were not counted", todo=todo)
        self.steps = step
        self.released = state["released"]
        self.item_map = state.get("item_map")
        config = self.assembly.recipe.train.privacy
        assert config is not None
        if config.noise_seed is not None:
            self.noise = Noise(config.noise_seed + 1 + step)
        self._start()
