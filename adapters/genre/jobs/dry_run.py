"""A dry run: everything of a training job but the training, and what the job would cost.

Owns: assembling a job's recipes as the job would, counting their rows, tokens and steps, and taking one real step.
Ignores: how the result is printed. Nothing is kept: run folders are temporary, and nothing is published.

    plan      943 rows, 167,230 tokens (169,204 with padding), 83 steps per epoch        computed
    cost      1.93 s for a step of 2,044 tokens, which raised peak memory by 231 MiB     measured (genre.training.costs)
"""

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from genre.data.dataset import Dataset
from genre.data.interactions import Interactions
from genre.data.sequences.layout import Sequence as Row
from genre.distributed import Processes
from genre.errors import BaseModelError, InputError, ManifestError
from genre.jobs.encoders import check_codes, check_leak, encoder_name, find_encoder
from genre.jobs.folders import run_folder
from genre.jobs.loading import open_base, open_log, settle_precision
from genre.jobs.memory import Device, plan_run
from genre.jobs.publish import encoder_manifest
from genre.jobs.train import check_base, wire
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.registry.manifest import Cost as NoCost
from genre.training import Loop
from genre.training.assembly import Assembly, assemble, check_feedback, feedback_column, needs_encoder
from genre.training.costs import Evaluation, Memory, Parameters, count_parameters, evaluation_cost, memory, padded, timed
from genre.training.memory_plan import TrainingMemory
from genre.training.parts import SharedEncoder
from genre.training.reporting import check_tracker
from genre.training.runtime import RandomStream
from genre.training.simultaneous import Group, Member, PendingStep, check_together


@dataclass(frozen=True)
class Epoch:
    """The size of the first epoch; later ones differ by a few rows."""

    rows: int
    tokens: int
    padded_tokens: int
    steps: int


@dataclass(frozen=True)
class Expected:
    """The plan of one recipe: all of it is computed, nothing measured.

    Attributes:
        recipe: Resolved.
        data: The data set's name; `events` are texts where it is one of labelled texts.
        encoder: The behaviour encoder: "fitted", the version or recipe that it comes from, or None.
        run: The run folder.
        version_bytes: Of the adapter version; None for a full fine-tune, which is not published.
        privacy: Its budget in a line; None for a run without one.
    """

    recipe: Recipe
    data: str
    events: int
    training_events: int
    parameters: Parameters
    epoch: Epoch
    epochs: int
    encoder: str | None
    run: str
    version_bytes: int | None
    privacy: str | None = None


@dataclass(frozen=True)
class Cost:
    """The cost of a recipe that trains alone, or of several that train together.

    Attributes:
        recipes: Their names.
        memory: See `Memory`.
        step_tokens: Of the measured step, padding included.
        step_seconds: Measured.
        training_seconds: All epochs at that pace.
        evaluation_seconds: All evaluation at the pace of one measured batch, without metrics and their intervals.
    """

    recipes: tuple[str, ...]
    memory: Memory
    step_tokens: int
    step_seconds: float
    training_seconds: float
    evaluation_seconds: float


@dataclass(frozen=True)
class DryRun:
    """The plan and cost of a training job.

    Attributes:
        base: The base's name, depth, full depth, quantization and precision.
        recipes: In the order given.
        costs: In training order.
        published: Names that would get a version in the registry.
        device: That the memory is planned for.
        memory: The memory of each recipe by itself, planned; none for a base that cannot run on shapes.
    """

    base: tuple[str, int, int, str, str]
    recipes: tuple[Expected, ...]
    costs: tuple[Cost, ...]
    published: tuple[str, ...]
    device: str
    memory: dict[str, TrainingMemory]


def dry_run(
    recipes: Sequence[Recipe],
    *,
    log: Dataset | None = None,
    base: Base | None = None,
    registry: Registry | None = None,
    folder: Path | str | None = None,
    reporter: Reporter | None = None,
    tokens: int | None = None,
    device: Device | None = None,
) -> DryRun:
    """Assemble what `train` (of several recipes `train_together`) would, take two steps of it, and keep nothing.

    Args:
        recipes: One or several.
        log: Wins over the recipes' data path.
        base: Wins over the recipes' base; it is bare again after.
        registry: Where an encoder is looked for.
        folder: The run folder, or the folder of several.
        reporter: Where progress goes.
        tokens: Most tokens of one pass of several recipes.
        device: Plan the memory for this one; by default for the one that the steps are taken on.

    Raises:
        GenreError: Whatever the job itself would raise before its third step.
    """
    if Processes.current().count > 1:
        raise InputError(
            "a dry run takes one process", got=f"{Processes.current().count} processes", expected="genre train --dry-run"
        )
    for recipe in recipes:
        check_tracker(recipe.train.tracker)
    if len(recipes) > 1:
        check_together(recipes)
    root = None if folder is None else Path(folder)
    with TemporaryDirectory(prefix="genre-dry-run-") as scratch:
        rehearsal = _Rehearsal(recipes, log, base, registry, root, reporter or Reporter.silent(), tokens, Path(scratch), device)
        return rehearsal.run()


@dataclass
class _Rehearsal:
    """One dry run and what it has found so far; run folders are in `scratch`."""

    recipes: Sequence[Recipe]
    log: Dataset | None
    base: Base | None
    registry: Registry | None
    folder: Path | None
    reporter: Reporter
    tokens: int | None
    scratch: Path
    device: Device | None
    encoders: list[tuple[str, Assembly, SharedEncoder]] = field(default_factory=list)
    expected: dict[str, Expected] = field(default_factory=dict)
    costs: list[Cost] = field(default_factory=list)

    def run(self) -> DryRun:
        recipes = [_without_tracker(settle_precision(recipe, self.base, self.reporter)) for recipe in self.recipes]
        if len(recipes) == 1:
            assembly = wire(recipes[0], self.log, self.base, self.registry, self.reporter, Processes())
            base = assembly.base
            self.alone(assembly)
        else:
            base = self.base or open_base(recipes[0].base)
            check_base(recipes[0], base)
            self.several(recipes, base)
        plans = tuple(dataclasses.replace(self.expected[recipe.name], recipe=recipe) for recipe in self.recipes)
        names = [name for name, *_ in self.encoders] + [each.recipe.name for each in plans if each.version_bytes is not None]
        about = (base.name, base.depth, base.full_depth, base.quantization, base.precision)
        place = self.device or base.device.type
        exact = recipes if place == base.device.type else self.recipes  # another device has a precision of its own
        memory = {recipe.name: found for recipe in exact if (found := self.planned(recipe, place)) is not None}
        return DryRun(about, plans, tuple(self.costs), tuple(dict.fromkeys(names)), place, memory)

    def planned(self, recipe: Recipe, device: Any) -> TrainingMemory | None:
        """The planned memory of a recipe by itself."""
        try:
            return plan_run(recipe, data=self.log, registry=self.registry, device=device)
        except BaseModelError as error:
            self.reporter.line(str(error))
            return None

    def several(self, recipes: Sequence[Recipe], base: Base) -> None:
        """Rehearse first the recipes that fit an encoder, each alone, then the others together."""
        logs: dict[str, Any] = {recipe.data.path: self.log for recipe in recipes} if self.log is not None else {}
        members: list[tuple[Member, str | None]] = []
        for recipe in recipes:
            if recipe.data.path not in logs:
                logs[recipe.data.path] = open_log(recipe.data.path)
            log = logs[recipe.data.path]
            encoder, origin = self.find_encoder(recipe, log, base)
            if needs_encoder(recipe) and encoder is None:
                self.alone(assemble(recipe, log, base))
            else:
                assembly = assemble(recipe, log, base, encoder, bare=True)
                members.append((Member(assembly, self.scratch / recipe.name, RandomStream(*base.devices)), origin))
        if members:
            self.together(members)

    def find_encoder(self, recipe: Recipe, log: Interactions, base: Base) -> tuple[SharedEncoder | None, str | None]:
        """The encoder that an earlier recipe of this job would have published, else the registry's; and its origin."""
        for name, assembly, encoder in reversed(self.encoders):
            if recipe.encoder.use == "auto" and encoder_name(log) == name:
                try:
                    check_leak(encoder_manifest(assembly, name, cost=NoCost()), recipe, log)
                    check_feedback(feedback_column(recipe, log), encoder.feedback_column)
                    check_codes(recipe, encoder.encoder.spec.codes)
                except ManifestError as error:
                    self.reporter.line(f"{recipe.name} cannot share the encoder of {assembly.recipe.name}: {error}")
                    continue
                return encoder, f"that of {assembly.recipe.name}"
        found = find_encoder(recipe, log, base, self.registry, self.reporter)
        return found, found.digest and found.digest[:12] if found is not None else None

    def alone(self, assembly: Assembly) -> None:
        """Take two steps of a run that trains by itself."""
        name, shared = assembly.recipe.name, assembly.shared
        try:
            with closing(Loop(assembly, self.scratch / name, Reporter.silent())) as loop:
                origin = "fitted" if assembly.fits_encoder else shared.digest[:12] if shared and shared.digest else None
                rows = self.expect(loop, origin)
                loop.set_training()
                self.reporter.line(f"{name}: taking a step")
                measured = timed(assembly.base.device, lambda: loop.step(rows, 0.0))
                self.add_cost([loop], padded(rows), *measured, [evaluation_cost(loop)])
        finally:
            assembly.model.release()
        if assembly.fits_encoder and shared is not None:
            ready = dataclasses.replace(shared, encoder=shared.encoder.eval().requires_grad_(False), digest="dry run")
            self.encoders.append((encoder_name(assembly.data), assembly, ready))

    def together(self, members: list[tuple[Member, str | None]]) -> None:
        """Take two rounds of steps of runs that train at once."""
        group = Group([member for member, _ in members], self.reporter, tokens=self.tokens)
        with closing(group):
            loops = [run.loop for run in group.runs]
            origins = [origin for _, origin in members]
            steps = [
                PendingStep(run, self.expect(run.loop, origin), 0.0) for run, origin in zip(group.runs, origins, strict=True)
            ]
            self.reporter.line(f"{', '.join(run.name for run in group.runs)}: taking a round of steps")

            def work() -> None:
                group.take(steps)
                if errors := [run.error for run in group.runs if run.error is not None]:
                    raise errors[0]

            with group.attached():
                measured = timed(group.base.device, work)
                evaluations = []
                for run in group.runs:
                    with group.exclusive(run):
                        evaluations.append(evaluation_cost(run.loop))
        self.add_cost(loops, sum(step.size for step in steps), *measured, evaluations)

    def add_cost(self, loops: list[Loop], tokens: int, seconds: float, growth: int, evaluations: list[Evaluation]) -> None:
        """Note the cost of runs that train at once, from a measured step of so many tokens and one evaluation of each."""
        names = tuple(loop.recipe.name for loop in loops)
        whole = sum(plan.epoch.padded_tokens * plan.epochs for plan in (self.expected[name] for name in names))
        needed = memory(loops, max(each.memory_bytes for each in evaluations), growth)
        evaluating = sum(each.seconds for each in evaluations)
        self.costs.append(Cost(names, needed, tokens, seconds, seconds / tokens * whole, evaluating))

    def expect(self, loop: Loop, encoder: str | None) -> list[Row]:
        """Note the plan of a recipe; the rows of its largest batch."""
        assembly, recipe = loop.assembly, loop.recipe
        data = assembly.data
        parameters = count_parameters(assembly.model)
        own = sum(value.numel() for value in assembly.model.heads.state_dict().values())
        run = self.folder or run_folder(recipe.name, False)
        training = loop.plan(0)
        tokens = sum(len(row) for rows in training for row in rows)
        self.expected[recipe.name] = Expected(
            recipe,
            data.info.name,
            events=len(data),
            training_events=int(assembly.train_mask.sum()),
            parameters=parameters,
            epoch=Epoch(sum(map(len, training)), tokens, sum(map(padded, training)), len(training)),
            epochs=recipe.train.epochs,
            encoder=encoder,
            run=str(run / recipe.name if self.folder is not None and len(self.recipes) > 1 else run),
            version_bytes=4 * (parameters.lora + own) if recipe.adapter.publishable else None,
            privacy=None if loop.private is None else loop.private.announce(),
        )
        loop.state.batch = max(range(len(training)), key=lambda index: padded(training[index]))
        return training[loop.state.batch]


def _without_tracker(recipe: Recipe) -> Recipe:
    """The recipe without its tracker, which would write files and may ask for a login."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"tracker": "none"})})
