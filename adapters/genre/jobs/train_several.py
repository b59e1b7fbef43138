"""Training several recipes at once on one base: which train alone first, then the group, then each evaluated and handed over.

Owns: the order of such a job, what its runs share. Ignores: command lines, how a group steps.

A recipe that has to fit a behaviour encoder is trained alone and first, in the order given, and its encoder published, so
that the others share it: `genre train next_item.yaml like.yaml rating.yaml` trains next_item, then like and rating at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genre.data.interactions import Interactions
from genre.distributed import Processes
from genre.errors import GenreError, InputError, JobError
from genre.evaluation.baselines import chosen_baselines
from genre.jobs.encoders import find_encoder
from genre.jobs.evaluate import warn_few_users
from genre.jobs.folders import claim_folder, describe_run, remove_unused, removed_if_refused, run_folder
from genre.jobs.loading import open_base, open_log, settle_precision
from genre.jobs.train import Run, check_base, check_resumed, conclude, interrupted, train
from genre.modules.base.base import Base
from genre.modules.embedding import SoftTokens
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.training import Fitted
from genre.training.assembly import assemble, needs_encoder
from genre.training.checkpoints import fitted_encoder
from genre.training.parts import SharedEncoder
from genre.training.runtime import RandomStream
from genre.training.simultaneous import Member as Trainee
from genre.training.simultaneous import check_together, fit_together


@dataclass
class _Member:
    """One recipe of the job.

    Attributes:
        log: Its log.
        root: Its run folder; provisional until it is `claimed`.
        shared: Its encoder; None if it needs none, or fits its own.
    """

    recipe: Recipe
    log: Interactions
    root: Path
    claimed: bool
    shared: SharedEncoder | None = None

    def begin(self, made: list[Path]) -> Path:
        """Claim the run folder, unless that is done, and write what it holds before the first step; one that is new is `made`."""
        new = not self.claimed or not self.root.exists()
        if not self.claimed:
            self.root = claim_folder(self.recipe.name)
            self.claimed = True
        made += [self.root] if new else []
        describe_run(self.root, self.recipe)
        return self.root

    def has_checkpoint(self) -> bool:
        """Return whether there is a checkpoint to resume from."""
        return (self.root / "checkpoints" / "last.pt").is_file()


def train_together(
    recipes: Sequence[Recipe],
    *,
    log: Interactions | None = None,
    base: Base | None = None,
    registry: Registry | None = None,
    folder: Path | str | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    tokens: int | None = None,
    on_run: Callable[[Run], None] | None = None,
    baselines: str = "all",
    on_evaluated: Callable[[Run], None] | None = None,
) -> list[Run]:
    """Train several recipes on one frozen base; each result is that of its recipe alone.

    Args:
        recipes: With one base, depth and quantization; none of kind full.
        log: Takes precedence over every recipe's data path.
        base: Takes precedence over the recipes' base, and is checked against it.
        registry: Searched for encoders, and gets new ones; without one each recipe that needs an encoder fits its own and is
            trained alone.
        folder: Holds a run folder per recipe, by name; by default `runs/<name>/<n>` each.
        resume: Resume from the run folders' last checkpoints; a run without one begins.
        reporter: Receives progress.
        tokens: Most tokens in one pass of the base (see `genre.training.simultaneous.TOKENS`).
        on_run: Called with each run as soon as it has ended, in the order in which they end.
        baselines: Which baselines are evaluated, as in `train`.
        on_evaluated: Called with each run before its baselines are computed, as in `train`.

    Returns:
        The runs, in the order of the recipes.

    Raises:
        GenreError: The recipes do not go together, a run that is trained alone fails, or the job is interrupted.
        JobError: Some runs of the group failed; the others were finished and passed to `on_run`.
        InputError: Every recipe is refused.
    """
    check_together(recipes)
    chosen_baselines(baselines)
    if Processes.current().count > 1:
        raise InputError("several recipes train in one process", got=f"{Processes.current().count} processes", expected="one")
    reporter = reporter or Reporter.silent()
    recipes = [settle_precision(recipe, base, reporter) for recipe in recipes]
    base = base or open_base(recipes[0].base)
    check_base(recipes[0], base)
    job = _Job(base, registry, resume, reporter, tokens, on_run, baselines, on_evaluated)
    with removed_if_refused(job.made):
        return job.run(recipes, log, None if folder is None else Path(folder))


@dataclass
class _Job:
    """The options of the job, the run folders that it made, and the runs that have ended, by recipe name."""

    base: Base
    registry: Registry | None
    resume: bool
    reporter: Reporter
    tokens: int | None
    on_run: Callable[[Run], None] | None
    baselines: str
    on_evaluated: Callable[[Run], None] | None
    made: list[Path] = field(default_factory=list)
    done: dict[str, Run] = field(default_factory=dict)

    def run(self, recipes: Sequence[Recipe], log: Interactions | None, folder: Path | None) -> list[Run]:
        logs = {recipe.data.path: log for recipe in recipes} if log is not None else {}
        members = []
        for recipe in recipes:
            if recipe.data.path not in logs:
                logs[recipe.data.path] = open_log(recipe.data.path, trains=True)
            root = run_folder(recipe.name, self.resume) if folder is None else folder / recipe.name
            members.append(_Member(recipe, logs[recipe.data.path], root, claimed=self.resume or folder is not None))
        if self.resume and not any(each.has_checkpoint() for each in members):
            got, expected = ", ".join(str(each.root) for each in members), "checkpoints/last.pt"
            raise InputError("there is nothing to resume", got=got, expected=expected, todo="train without --resume")
        for each in members if self.resume else ():
            check_resumed(each.root, each.recipe)
        group: list[_Member] = []
        for each in members:
            each.shared = self._encoder(each, group)
            if each.shared is None and needs_encoder(each.recipe):
                self._train_alone(each, members)
            else:
                group.append(each)
        failed = self._train_group(group) if group else {}
        if failed:
            name, first = next(iter(failed.items()))
            refused = len(failed) == len(recipes) and all(isinstance(error, InputError) for error in failed.values())
            kind = InputError if refused else JobError
            raise kind(f"{len(failed)} of {len(recipes)} recipes failed ({', '.join(failed)})", got=f"{name}: {first}")
        return [self.done[recipe.name] for recipe in recipes]

    def _encoder(self, member: _Member, group: list[_Member]) -> SharedEncoder | None:
        """A recipe's published encoder; the same object for all that use the same version."""
        if self.resume and fitted_encoder(member.root):
            return None
        found = find_encoder(member.recipe, member.log, self.base, self.registry, self.reporter)
        if found is None:
            return None
        return next((each.shared for each in group if each.shared is not None and each.shared.digest == found.digest), found)

    def _train_alone(self, member: _Member, members: list[_Member]) -> None:
        self.reporter.line(f"{member.recipe.name} fits an encoder, and is trained alone and first")
        for each in members:  # now, so that a later --resume finds the folders of this job and not older ones
            each.begin(self.made)
        log, root, resume = member.log, member.root, self.resume and member.has_checkpoint()
        run = train(
            member.recipe,
            log=log,
            base=self.base,
            registry=self.registry,
            folder=root,
            resume=resume,
            reporter=self.reporter,
            baselines=self.baselines,
            on_evaluated=self.on_evaluated,
        )
        self._hand_over(run, member.recipe.name)

    def _train_group(self, group: list[_Member]) -> dict[str, GenreError]:
        """Train, evaluate and hand over a group; the errors of those that failed, by name."""
        trainees: list[Trainee] = []
        for each in group:
            soft = _soft(each, trainees)
            with self.reporter.phase(f"{each.recipe.name}: preparing the model", at_once=False):
                assembly = assemble(each.recipe, each.log, self.base, each.shared, soft=soft, bare=True)
            stream = RandomStream(*self.base.devices)
            trainees.append(Trainee(assembly, each.root, stream, self.resume and each.has_checkpoint()))
        for each, trainee in zip(group, trainees, strict=True):
            trainee.folder = each.begin(self.made)
            own = trainee.assembly
            warn_few_users(own.recipe.tasks, own.data, own.split, "test", self._named(each.recipe.name))
        failed: dict[str, GenreError] = {}
        ended = fit_together(trainees, reporter=self.reporter, tokens=self.tokens)
        for trainee, fitted in zip(trainees, ended, strict=True):
            name, model = trainee.assembly.recipe.name, trainee.assembly.model
            if not isinstance(fitted, Fitted):
                failed[name] = fitted
                if isinstance(fitted, InputError) and trainee.folder in self.made:
                    remove_unused(trainee.folder)
                continue
            model.put(model.layers)
            try:
                self._hand_over(self._conclude(fitted, trainee.folder, self._named(name)), name)
            except KeyboardInterrupt:
                raise interrupted(trainee.folder) from None
            finally:
                model.release()
        return failed

    def _conclude(self, fitted: Fitted, root: Path, reporter: Reporter) -> Run:
        options: dict[str, Any] = {"baselines": self.baselines, "on_evaluated": self.on_evaluated}
        return conclude(fitted, root, self.registry, reporter, Processes(), **options)

    def _hand_over(self, run: Run, name: str) -> None:
        self.done[name] = run
        if self.on_run is not None:
            self.on_run(run)

    def _named(self, name: str) -> Reporter:
        return Reporter(lambda text: self.reporter.write(f"{name}: {text}"))


def _soft(member: _Member, trainees: list[Trainee]) -> SoftTokens | None:
    """The item vectors of another recipe with the same encoder and log."""
    if member.shared is None:
        return None
    same = (each.assembly for each in trainees if each.assembly.shared is member.shared)
    return next((other.model.soft for other in same if other.log is member.log), None)
