"""A dry run: everything of a training job but the training; what it would take is measured on one real step.

Owns: assembling a job's recipes as the job would, the step of a group, what would be written where. Ignores: how a step is
measured, how figures are shown. Nothing is kept: run folders lie in a temporary folder, and nothing is published.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from genre.data.interactions import Interactions
from genre.data.texts.dataset import Texts
from genre.distributed import Ranks
from genre.engine.versions import encoder_manifest
from genre.errors import InputError, ManifestError
from genre.jobs.encoders import check_leak, encoder_name, find_encoder
from genre.jobs.inputs import open_base, open_log, run_folder
from genre.jobs.train import check_base, wire
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.registry.manifest import Cost as NoCost
from genre.training import Loop
from genre.training.assembly import Assembly, SharedEncoder, assemble, needs_encoder
from genre.training.dry_run import (
    Cost,
    Memory,
    Parameters,
    Plan,
    count_parameters,
    held,
    lay_out,
    measure,
    read_one,
    rehearse,
)
from genre.training.simultaneous import Due, Group, Member, check_together, waves
from genre.training.state import Stream, peak_memory_bytes
from genre.training.text_assembly import AnyAssembly
from genre.training.trackers import need_tracker


@dataclass(frozen=True)
class Expected:
    """What one recipe would train on and leave.

    Attributes:
        recipe: Resolved.
        data: The data set's name, its events (or texts) and those that train.
        parameters: What trains.
        plan: What the run goes through.
        encoder: The behaviour encoder: "fitted", the reference or recipe that it comes from, or None.
        folder: The run folder.
        version_bytes: Of the adapter version; None for a full fine-tune, which is not published.
    """

    recipe: Recipe
    data: tuple[str, int, int]
    parameters: Parameters
    plan: Plan
    encoder: str | None
    folder: Path
    version_bytes: int | None


@dataclass(frozen=True)
class DryRun:
    """What a training job would take.

    Attributes:
        base: The base's name, depth, full depth, quantization and precision.
        recipes: In the order given.
        costs: For the recipes that train together (one name: alone), in the order in which they would, what that takes.
        published: The names that the registry would get a version of.
    """

    base: tuple[str, int, int, str, str]
    recipes: tuple[Expected, ...]
    costs: tuple[tuple[tuple[str, ...], Cost], ...]
    published: tuple[str, ...]


def dry_run(
    recipes: Sequence[Recipe],
    *,
    log: Interactions | Texts | None = None,
    base: Base | None = None,
    registry: Registry | None = None,
    folder: Path | str | None = None,
    reporter: Reporter | None = None,
    tokens: int | None = None,
) -> DryRun:
    """Assemble what `train` (of several recipes `train_together`) would, take a step of it, and keep nothing.

    Args:
        recipes: One or several.
        log: Wins over the recipes' data path.
        base: Wins over the recipes' base; it is bare again after.
        registry: Where an encoder is looked for.
        folder: The run folder, or the folder of several.
        reporter: Where progress goes.
        tokens: Most tokens of one pass of several recipes.

    Raises:
        GenreError: What the job itself would raise before its second step.
    """
    if Ranks.here().count > 1:
        raise InputError("a dry run takes one process", got=f"{Ranks.here().count} processes", expected="genre train --dry-run")
    for recipe in recipes:
        need_tracker(recipe.train.tracker)
    say = reporter or Reporter.silent()
    with TemporaryDirectory(prefix="genre-dry-run-") as aside:
        return _Rehearsals(recipes, log, base, registry, folder, say, tokens, Path(aside)).run()


class _Rehearsals:
    """One dry run of some recipes."""

    def __init__(
        self, recipes: Sequence[Recipe], log: Interactions | Texts | None, base: Base | None, registry: Registry | None,
        folder: Path | str | None, say: Reporter, tokens: int | None, aside: Path,
    ) -> None:  # fmt: skip
        if len(recipes) > 1:
            check_together(recipes)
        self.recipes, self.log, self.base, self.registry = recipes, log, base, registry
        self.folder, self.say, self.tokens, self.aside = folder, say, tokens, aside
        self.fitted: list[tuple[str, Assembly, SharedEncoder]] = []
        self.found: dict[str, Expected] = {}
        self.costs: list[tuple[tuple[str, ...], Cost]] = []

    def run(self) -> DryRun:
        if len(self.recipes) == 1:
            assembly = wire(_quiet(self.recipes[0]), self.log, self.base, self.registry, self.say, Ranks())
            base = assembly.base
            self.alone(assembly)
        else:
            base = self.several()
        order = tuple(self.found[recipe.name] for recipe in self.recipes)
        names = [name for name, *_ in self.fitted] + [each.recipe.name for each in order if each.version_bytes is not None]
        about = (base.name, base.depth, base.full_depth, base.quantization, str(base.dtype).removeprefix("torch."))
        return DryRun(about, order, tuple(self.costs), tuple(dict.fromkeys(names)))

    def several(self) -> Base:
        base = self.base or open_base(self.recipes[0].base)
        check_base(self.recipes[0], base)
        logs: dict[str, Any] = {recipe.data.path: self.log for recipe in self.recipes} if self.log is not None else {}
        members: list[tuple[Member, str | None]] = []
        for recipe in map(_quiet, self.recipes):
            if recipe.data.path not in logs:
                logs[recipe.data.path] = open_log(recipe.data.path)
            log = logs[recipe.data.path]
            given, source = self.encoder(recipe, log, base)
            if needs_encoder(recipe) and given is None:
                self.alone(assemble(recipe, log, base))
            else:
                assembly = assemble(recipe, log, base, given, bare=True)
                members.append((Member(assembly, self.aside / recipe.name, Stream(base.device)), source))
        if members:
            self.together(members)
        return base

    def encoder(self, recipe: Recipe, log: Interactions, base: Base) -> tuple[SharedEncoder | None, str | None]:
        """What a recipe would be given: what an earlier recipe of this job would have published, else the registry's."""
        for name, assembly, shared in reversed(self.fitted):
            if recipe.encoder.use == "auto" and encoder_name(log) == name:
                try:
                    check_leak(encoder_manifest(assembly, name, cost=NoCost()), recipe, log)
                except ManifestError:
                    continue
                return shared, f"that of {assembly.recipe.name}"
        given = find_encoder(recipe, log, base, self.registry, self.say)
        return given, given.digest and given.digest[:12] if given is not None else None

    def alone(self, assembly: AnyAssembly) -> None:
        """Rehearse a run that trains by itself."""
        name = assembly.recipe.name
        try:
            with _loop(assembly, self.aside / name) as loop:
                plan = lay_out(loop)
                shared = assembly.shared
                used = "fitted" if assembly.fits_encoder else shared.digest[:12] if shared and shared.digest else None
                self.found[name] = self.expect(loop, plan, used)
                self.say.line(f"{name}: taking a step")
                self.costs.append(((name,), rehearse(loop, plan)))
        finally:
            assembly.model.release()
        if isinstance(assembly, Assembly) and assembly.fits_encoder and shared is not None:
            ready = dataclasses.replace(shared, encoder=shared.encoder.eval().requires_grad_(False), digest="dry run")
            self.fitted.append((encoder_name(assembly.log), assembly, ready))

    def together(self, members: list[tuple[Member, str | None]]) -> None:
        """Rehearse runs that train at once: a round of a step of each."""
        group = Group([member for member, _ in members], self.say, self.tokens, None)
        try:
            plans = [lay_out(lane.loop) for lane in group.lanes]
            for lane, plan, (_, source) in zip(group.lanes, plans, members, strict=True):
                self.found[lane.name] = self.expect(lane.loop, plan, source)
            names = tuple(lane.name for lane in group.lanes)
            self.say.line(f"{', '.join(names)}: taking a round of steps")
            due = [Due(lane, plan.largest[0], 0.0) for lane, plan in zip(group.lanes, plans, strict=True)]
            group.segments.check()
            group.attach()

            def go() -> None:
                for wave in waves(due, group.tokens):
                    group.go(wave)

            go()
            step, seconds = measure(group.base.device, go)
            for lane in group.lanes:
                if lane.error is not None:
                    raise lane.error
            group.detach()
            memory, reading = None, 0.0
            for lane, plan in zip(group.lanes, plans, strict=True):
                with group.alone(lane):
                    evaluation, more = read_one(lane.loop, plan)
                memory, reading = _add(memory, held(lane.loop, step, evaluation)), reading + more
        finally:
            group.close()
        taken, peak = sum(each.size for each in due), peak_memory_bytes(group.base.device)
        whole = sum(plan.padded * plan.epochs for plan in plans)
        assert memory is not None
        self.costs.append((names, Cost(memory, taken, seconds, seconds / taken * whole, reading, peak)))

    def expect(self, loop: Loop, plan: Plan, encoder: str | None) -> Expected:
        assembly, recipe = loop.assembly, loop.recipe
        data = assembly.log if isinstance(assembly, Assembly) else assembly.texts
        parameters = count_parameters(assembly.model)
        own = sum(value.numel() for value in assembly.model.heads.state_dict().values())
        name = recipe.name
        several = len(self.recipes) > 1
        root = run_folder(name, False) if self.folder is None else Path(self.folder) / name if several else Path(self.folder)
        return Expected(
            recipe, (data.info.name, len(data), int(assembly.usable.sum())), parameters, plan, encoder, root,
            None if recipe.adapter.kind == "full" else 4 * (parameters.lora + own),
        )  # fmt: skip


def _quiet(recipe: Recipe) -> Recipe:
    """The recipe without its tracker, which would write and may ask for a login."""
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"tracker": "none"})})


@contextmanager
def _loop(assembly: AnyAssembly, folder: Path) -> Iterator[Loop]:
    loop = Loop(assembly, folder, Reporter.silent(), None)
    try:
        yield loop
    finally:
        loop.close()


def _add(one: Memory | None, other: Memory) -> Memory:
    """What two runs on one base hold; the base, the step of all and the larger evaluation count once."""
    if one is None:
        return other
    return Memory(
        one.base, one.trained + other.trained, one.kept + other.kept, one.optimizer + other.optimizer, other.step,
        max(one.evaluation, other.evaluation),
    )  # fmt: skip
