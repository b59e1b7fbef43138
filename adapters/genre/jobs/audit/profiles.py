"""The fake-profile attack: the recipe trained again on the log with injected users who push the targets.

Owns: the retrainings and what is compared. Ignores: what a profile has (`fakes`), lists and scores (`lineup`).

The recipe is trained once without injected users as well, since a retraining alone moves lists. Every retraining has the seed and
the split of the recipe; an encoder is fitted anew, as fakes move its features too.
"""

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genre.data.interactions import Interactions
from genre.data.sequences.text_rows import Builder
from genre.data.splits import TRAIN, split
from genre.data.suspects import named_users
from genre.errors import InterruptedJobError, JobError
from genre.jobs.audit.fakes import MOST_EVENTS, Injection, injected
from genre.jobs.audit.lineup import lineup_of
from genre.jobs.audit.report import InjectedProfiles, Named, ProfilesSection, Standing
from genre.jobs.audit.subject import Subject
from genre.jobs.audit.text import mean
from genre.jobs.loading import build_model, own_recipe
from genre.modules.recommender import Recommender
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.training import fit
from genre.training.assembly import assemble, needs_encoder


class FakeProfiles:
    """The check `profiles`."""

    def foresee(self, subject: Subject) -> str:
        """The number of retrainings, and their time by that of the version's own training."""
        _recipe(subject)
        count, cost = subject.options.trainings, subject.loaded.manifest.cost.seconds
        about = f", about {count * cost / 60:,.0f} min by the {cost:,.0f} s of the version's own training" if cost else ""
        return f"fake profiles: {count} retrainings{about}"

    def run(self, subject: Subject, reporter: Reporter) -> ProfilesSection:
        """Train again and again."""
        options, log = subject.options, subject.log
        recipe = _recipe(subject)
        fillers = int(np.clip(np.median(np.diff(log.user_offsets)) - len(subject.targets), 2, MOST_EVENTS))
        span = log.time_span(split(log, recipe.data.split).part == TRAIN)
        model, builder = build_model(subject.loaded, log, subject.base)
        try:
            published, lists = _stand(subject, model, builder)
        finally:
            model.release()
        turns = _Turns(options.trainings, reporter)
        turns.begin("no injected users")
        clean = _retrained(subject, recipe, log, reporter)
        done: list[InjectedProfiles] = []
        for attack in options.attacks:
            for share in options.shares:
                users = max(1, round(share * len(log.user_ids)))
                turns.begin(f"{attack}, {users} users ({share:.1%})")
                made = Injection(attack, users, fillers, subject.targets, span, options.seed)
                burst, spread = (made.into(log, subject.task, arrival) for arrival in ("burst", "spread"))
                standing = _retrained(subject, recipe, burst, reporter)
                found = InjectedProfiles(
                    attack=attack,
                    share=share,
                    users=users,
                    standing=standing,
                    named_burst=named(burst),
                    named_spread=named(spread),
                )
                done.append(found)
                names = f"describe names {found.named_burst.fakes}, {found.named_spread.fakes} if they come spread out"
                reporter.line(f"exposure {standing.exposure:.4f}, without them {clean.exposure:.4f}; {names}")
        return ProfilesSection(
            lists=lists,
            events=fillers + len(subject.targets),
            overrides=list(options.overrides),
            published=published,
            clean=clean,
            named_clean=int(named_users(log).sum()),
            attacks=done,
        )


class _Turns:
    """Lines at the beginning of each retraining, with the time left by those before."""

    def __init__(self, total: int, reporter: Reporter) -> None:
        self.total, self.reporter = total, reporter
        self.number, self.begun = 0, time.perf_counter()

    def begin(self, what: str) -> None:
        """Write the line of the next one."""
        left = (time.perf_counter() - self.begun) / max(self.number, 1) * (self.total - self.number)
        self.number += 1
        about = f"; about {left / 60:,.1f} min left" if self.number > 1 else ""
        self.reporter.line(f"retraining {self.number} of {self.total}: {what}{about}")


def _recipe(subject: Subject) -> Recipe:
    """The version's recipe with the overrides, its encoder fitted anew."""
    merged, overrides = "audit its parents, or leave retrainings out with --text-only", subject.options.overrides
    recipe = own_recipe(subject.registry, subject.version, "audited with fake profiles", overrides, merged=merged)
    update: dict[str, object] = {"train": recipe.train.model_copy(update={"tracker": "none"})}
    if needs_encoder(recipe):
        update["encoder"] = recipe.encoder.model_copy(update={"use": "fit"})
    return recipe.model_copy(update=update)


def _retrained(subject: Subject, recipe: Recipe, log: Interactions, reporter: Reporter) -> Standing:
    """Where the targets stand, on average, once the recipe is trained on a log."""
    root = Path(tempfile.mkdtemp(prefix=".retraining-", dir=subject.folder))
    try:
        assembly = assemble(recipe, log, subject.base)
        try:
            fit(assembly, root, reporter=reporter)
            return _stand(subject, assembly.model, assembly.builder)[0]
        finally:
            assembly.model.release()
    except InterruptedJobError as error:
        raise JobError(error.what, got=error.got, todo="what ended before is in the report; start the audit again") from None
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _stand(subject: Subject, model: Recommender, builder: Builder) -> tuple[Standing, str]:
    """Where the targets stand under their own titles, on average, and what is ranked."""
    lineup = lineup_of(model, builder, subject.task, subject.measured, subject.targets, seed=subject.options.seed)
    standings: Sequence[Standing] = [lineup.place(target, None, [None])[0] for target in subject.targets]
    return mean(standings), lineup.lists


def named(log: Interactions) -> Named:
    """Count the users that the warnings of `genre data describe` name, fakes and real ones."""
    fake, found = injected(log), named_users(log)
    return Named(fakes=int((fake & found).sum()), real=int((found & ~fake).sum()))
