"""The fake-profile attack: the recipe trained again on the log with injected users who push the targets.

Owns: the retrainings and what is compared. Ignores: what a profile has (`fakes`), lists and scores (`lineup`).

The recipe is trained once without injected users as well, since a retraining alone moves lists. Every retraining has the seed and
the split of the recipe; an encoder is fitted anew, as fakes move its features too.
"""

from collections.abc import Sequence

import numpy as np

from genre.data.interactions import Interactions
from genre.data.sequences.text_rows import Builder
from genre.data.splits import TRAIN, split
from genre.data.suspects import named_users
from genre.jobs.audit.fakes import MOST_EVENTS, Injection, injected
from genre.jobs.audit.lineup import lineup_of
from genre.jobs.audit.report import InjectedProfiles, Named, ProfilesSection, Standing
from genre.jobs.audit.retraining import Turns, audited_recipe, foresee_trainings, retrained
from genre.jobs.audit.subject import Subject
from genre.jobs.audit.text import mean
from genre.jobs.loading import build_model
from genre.modules.recommender import Recommender
from genre.progress import Reporter
from genre.recipe import Recipe


class FakeProfiles:
    """The check `profiles`."""

    def foresee(self, subject: Subject) -> str:
        """The number of retrainings, and their time by that of the version's own training."""
        _recipe(subject)
        return f"fake profiles: {foresee_trainings(subject, subject.options.trainings)}"

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
        turns = Turns(options.trainings, reporter)
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


def _recipe(subject: Subject) -> Recipe:
    merged = "audit its parents, or leave retrainings out with --text-only"
    return audited_recipe(subject, "fake profiles", merged=merged)


def _retrained(subject: Subject, recipe: Recipe, log: Interactions, reporter: Reporter) -> Standing:
    """Where the targets stand, on average, once the recipe is trained on a log."""
    with retrained(subject, recipe, log, reporter) as assembly:
        return _stand(subject, assembly.model, assembly.builder)[0]


def _stand(subject: Subject, model: Recommender, builder: Builder) -> tuple[Standing, str]:
    """Where the targets stand under their own titles, on average, and what is ranked."""
    lineup = lineup_of(model, builder, subject.task, subject.measured, subject.targets, seed=subject.options.seed)
    standings: Sequence[Standing] = [lineup.place(target, None, [None])[0] for target in subject.targets]
    return mean(standings), lineup.lists


def named(log: Interactions) -> Named:
    """Count the users that the warnings of `genre data describe` name, fakes and real ones."""
    fake, found = injected(log), named_users(log)
    return Named(fakes=int((fake & found).sum()), real=int((found & ~fake).sum()))
