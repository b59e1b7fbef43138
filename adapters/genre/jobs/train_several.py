"""Several recipes at once on one base: which are trained alone first, then the group, then each evaluated and handed over.

Owns: the order of such a job, what its runs share. Ignores: command lines, how a group steps.

A recipe that has to fit a behaviour encoder is trained alone and first, in the order given, and its encoder published, so
that the others share it: `genre train next_item.yaml like.yaml rating.yaml` trains next_item, then like and rating at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from genre.data.interactions import Interactions
from genre.distributed import Processes
from genre.errors import GenreError, InputError, JobError
from genre.jobs.encoders import find_encoder
from genre.jobs.evaluate import say_few_users
from genre.jobs.inputs import claim_folder, open_base, open_log, run_folder
from genre.jobs.train import Run, check_base, check_resumed, conclude, describe_run, train
from genre.modules.base.base import Base
from genre.modules.embedding import SoftTokens
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.training.assembly import assemble, needs_encoder
from genre.training.checkpoints import fitted_encoder
from genre.training.loop import Fitted
from genre.training.parts import SharedEncoder
from genre.training.runtime import RandomStream
from genre.training.simultaneous import Member, check_together, fit_together


@dataclass
class _Place:
    """One recipe of the job, its log, its run folder (a guess while it is not `claimed`), its encoder (None: it needs none)."""

    recipe: Recipe
    log: Interactions
    root: Path
    claimed: bool
    shared: SharedEncoder | None = None

    def begin(self) -> Path:
        """Claim the run folder, unless that is done, and write what it says before the first step."""
        if not self.claimed:
            self.root, self.claimed = claim_folder(self.recipe.name), True
        describe_run(self.root, self.recipe)
        return self.root


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
) -> list[Run]:
    """Train several recipes on one frozen base; each result is that of its recipe alone.

    Args:
        recipes: With one base, depth and quantization; none of kind full.
        log: Wins over every recipe's data path.
        base: Wins over the recipes' base, and is checked against it.
        registry: Where encoders are looked for and published; without one each recipe that needs an encoder fits its own
            and is trained alone.
        folder: Holds a run folder per recipe, by name; by default `runs/<name>/<n>` each.
        resume: Go on from the run folders' last checkpoints; a run without one begins.
        reporter: Where progress goes.
        tokens: Most tokens that the base sees in one pass (see `genre.training.simultaneous.TOKENS`).
        on_run: Told of each run as soon as it has ended, in the order in which they end.

    Returns:
        The runs, in the order of the recipes.

    Raises:
        GenreError: The recipes do not go together, a run that is trained alone fails, or the job is interrupted.
        JobError: Some runs of the group failed; the others were finished and told to `on_run`.
    """
    say = reporter or Reporter.silent()
    check_together(recipes)
    if Processes.current().count > 1:
        raise InputError("several recipes train in one process", got=f"{Processes.current().count} processes", expected="one")
    base = base or open_base(recipes[0].base)
    check_base(recipes[0], base)
    logs = {recipe.data.path: log for recipe in recipes} if log is not None else {}
    places = []
    for recipe in recipes:
        if recipe.data.path not in logs:
            logs[recipe.data.path] = open_log(recipe.data.path)
        root = Path(folder) / recipe.name if folder is not None else run_folder(recipe.name, resume)
        places.append(_Place(recipe, logs[recipe.data.path], root, claimed=resume or folder is not None))
    if resume and not any(_checkpoint(place) for place in places):
        raise InputError(
            "there is nothing to resume", got=", ".join(str(place.root) for place in places), expected="checkpoints/last.pt",
            todo="train without --resume",
        )  # fmt: skip
    for place in places if resume else ():
        check_resumed(place.root, place.recipe)
    done: dict[str, Run] = {}

    def hand_over(run: Run, name: str) -> None:
        done[name] = run
        if on_run is not None:
            on_run(run)

    group: list[_Place] = []
    for place in places:
        place.shared = _encoder(place, group, base, registry, resume, say)
        if needs_encoder(place.recipe) and place.shared is None:
            say.line(f"{place.recipe.name} fits an encoder, and is trained alone and first")
            for each in places:  # now, so that a later --resume finds the folders of this job and not older ones
                each.begin()
            run = train(
                place.recipe, log=place.log, base=base, registry=registry, folder=place.root,
                resume=resume and _checkpoint(place), reporter=say,
            )  # fmt: skip
            hand_over(run, place.recipe.name)
        else:
            group.append(place)
    failed = _train_group(group, base, registry, resume, say, tokens, hand_over) if group else {}
    if failed:
        name, first = next(iter(failed.items()))
        raise JobError(f"{len(failed)} of {len(recipes)} recipes failed ({', '.join(failed)})", got=f"{name}: {first}")
    return [done[recipe.name] for recipe in recipes]


def _encoder(
    place: _Place, group: list[_Place], base: Base, registry: Registry | None, resume: bool, say: Reporter
) -> SharedEncoder | None:
    """The encoder that a recipe is given; the same object for all that are given the same version."""
    if resume and fitted_encoder(place.root):
        return None
    given = find_encoder(place.recipe, place.log, base, registry, say)
    if given is None:
        return None
    return next((other.shared for other in group if other.shared is not None and other.shared.digest == given.digest), given)


def _train_group(
    group: list[_Place],
    base: Base,
    registry: Registry | None,
    resume: bool,
    say: Reporter,
    tokens: int | None,
    hand_over: Callable[[Run, str], None],
) -> dict[str, GenreError]:
    """Train, evaluate and hand over a group; what failed, by name."""
    members: list[Member] = []
    for place in group:
        assembly = assemble(place.recipe, place.log, base, place.shared, soft=_soft(place, members), bare=True)
        members.append(Member(assembly, place.root, RandomStream(base.device), resume and _checkpoint(place)))
    for place, member in zip(group, members, strict=True):
        member.folder, own = place.begin(), member.assembly
        say_few_users(own.recipe.tasks, own.data, own.split, "test", _named(say, place.recipe.name))
    failed: dict[str, GenreError] = {}
    for member, fitted in zip(members, fit_together(members, reporter=say, tokens=tokens), strict=True):
        name, model = member.assembly.recipe.name, member.assembly.model
        if not isinstance(fitted, Fitted):
            failed[name] = fitted
            continue
        model.put(model.layers)
        try:
            hand_over(conclude(fitted, member.folder, registry, _named(say, name), Processes()), name)
        finally:
            model.release()
    return failed


def _named(say: Reporter, name: str) -> Reporter:
    return Reporter(lambda text: say.write(f"{name}: {text}"))


def _soft(place: _Place, members: list[Member]) -> SoftTokens | None:
    """The item vectors of another member with the same encoder and log."""
    if place.shared is None:
        return None
    same = (member.assembly for member in members if member.assembly.shared is place.shared)
    return next((other.model.soft for other in same if other.log is place.log), None)


def _checkpoint(place: _Place) -> bool:
    return (place.root / "checkpoints" / "last.pt").is_file()
