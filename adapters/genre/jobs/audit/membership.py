"""The membership attacks: can somebody tell who trained a version, by how well it fits their events?

Owns: the shadow adapters, which users train which, what is attacked with what. Ignores: formulas (`genre.evaluation.privacy`).

    users      a b c d e f g h
    shadow 1   a   c     f g        a random half of the users …
    shadow 2     b   d e     h      … and the other half, so that every user trains half of the shadows
    shadow 3   a b     e   g

Each shadow is attacked with the help of the others but that of the other half, and it is known who trained these. An attacker who
has the log, the recipe and the version could do that.
"""

from dataclasses import dataclass

import numpy as np

from genre.errors import DataError
from genre.evaluation.privacy import confidence_of, likelihood_ratios, membership, receiver_curve
from genre.jobs.audit.report import Attack, MembershipSection
from genre.jobs.audit.retraining import Turns, audited_recipe, foresee_trainings, retrained
from genre.jobs.audit.subject import Subject
from genre.jobs.audit.user_losses import attacked_events, layout_of, mean_losses, trained_on, trained_users
from genre.jobs.loading import build_model
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry.names import WITHHELD
from genre.training.assembly import training_split

MIN_USERS = 20
"""Members, and others, that an attack needs at least for its figures to mean anything."""


class MembershipAttack:
    """The check `membership`."""

    def foresee(self, subject: Subject) -> str:
        """The number of shadow adapters, and their time: each is trained on half of the users."""
        _recipe(subject)
        shadows, users = subject.options.shadows, len(subject.measured)
        if users < MIN_USERS:
            raise _too_few(f"{users} users", "draw more with --users")
        return f"membership: {users} users against {foresee_trainings(subject, shadows)}, less on half of the users each"

    def run(self, subject: Subject, reporter: Reporter) -> MembershipSection:
        """Train the shadows and attack them; attack the version itself where some users did not train it."""
        options, log, recipe = subject.options, subject.log, _recipe(subject)
        train = training_split(recipe, log)[1]
        measured = np.isin(log.user_ids, subject.measured)
        chosen = attacked_events(log, train) & measured[log.user_codes]
        confidence, inside = _train_shadows(subject, recipe, chosen, reporter)
        known = np.flatnonzero(~np.isnan(confidence).any(axis=0))
        found = _Shadows(known, confidence[:, known], inside[:, known])
        scores = [found.scores(each) for each in range(options.shadows)]
        published, why_not = _published(subject, recipe, train, chosen, found)
        loss, ratio, offline = (_pooled(found, np.stack(each), options.seed) for each in zip(*scores, strict=True))
        return MembershipSection(
            shadows=options.shadows,
            users=len(known),
            overrides=list(options.overrides),
            loss=loss,
            ratio=ratio,
            offline=offline,
            published=published,
            why_not=why_not,
        )


@dataclass(frozen=True)
class _Shadows:
    """Shadow adapters seen by the users who are measured.

    Attributes:
        users: (U,) codes.
        confidence: (S, U) of each shadow in each user's events.
        inside: (S, U) bool, users who trained the shadow.
    """

    users: np.ndarray
    confidence: np.ndarray
    inside: np.ndarray

    def scores(self, attacked: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(U,) scores of the users of one shadow by loss, by likelihood ratio and offline; NaN where there is none.

        The shadow of the other half is left out too: of those that remain every user trained half, so that their number tells
        nothing.
        """
        others = np.arange(len(self.confidence)) // 2 != attacked // 2
        return self.against(self.confidence[attacked], others)

    def against(self, seen: np.ndarray, shadows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same for (U,) confidence of any model, with some of the shadows, (S,) bool."""
        return seen, *likelihood_ratios(seen, self.confidence[shadows], self.inside[shadows])


def _recipe(subject: Subject) -> Recipe:
    return audited_recipe(subject, "shadow adapters")


def _train_shadows(subject: Subject, recipe: Recipe, chosen: np.ndarray, reporter: Reporter) -> tuple[np.ndarray, np.ndarray]:
    """Train the shadows on halves of the users; arrays as of `_Shadows`."""
    log, shadows = subject.log, subject.options.shadows
    turns, count = Turns(shadows, reporter), len(log.user_ids)
    draw = np.random.default_rng((subject.options.seed, 5))
    confidence, inside = [], []
    for number in range(shadows):
        if number % 2 == 0:
            half = np.zeros(count, dtype=bool)
            half[draw.permutation(count)[: count // 2]] = True
        else:
            half = ~half
        turns.begin(f"a shadow adapter on {int(half.sum()):,} of {count:,} users")
        with retrained(subject, recipe, log.select(half[log.user_codes]), reporter) as assembly:
            losses = mean_losses(
                assembly.model, log, layout_of(assembly), subject.task, chosen, max_events=recipe.data.max_events
            )
            confidence.append(confidence_of(losses))
            inside.append(trained_on(assembly, log))
    return np.stack(confidence), np.stack(inside)


def _pooled(found: _Shadows, scores: np.ndarray, seed: int) -> Attack:
    """The figures of an attack, (S, U) scores, over all shadows together."""
    there = ~np.isnan(scores)
    users = np.broadcast_to(found.users, scores.shape)
    return _attack(scores[there], found.inside[there], users[there], seed)


def _attack(scores: np.ndarray, member: np.ndarray, users: np.ndarray, seed: int) -> Attack:
    counts = [len(np.unique(users[each])) for each in (member, ~member)]
    if min(counts) < MIN_USERS:
        got = f"{counts[0]} users who trained a model and {counts[1]} who did not"
        raise _too_few(got, "draw more with --users, or train more shadows with --shadows")
    found = membership(scores, member, users, seed=seed)
    return Attack(**vars(found), curve=receiver_curve(scores, member))


def _too_few(got: str, todo: str) -> DataError:
    return DataError("too few users for a membership attack", got=got, expected=f"at least {MIN_USERS}", todo=todo)


def _published(
    subject: Subject, recipe: Recipe, train: np.ndarray, chosen: np.ndarray, found: _Shadows
) -> tuple[dict[str, Attack] | None, str]:
    """Attack the version itself, if the log holds users who did not train it; else the reason."""
    log, data = subject.log, subject.loaded.manifest.data
    if data is None or data.digest == WITHHELD:
        return None, "it does not say what it was trained on"
    if data.digest != log.digest:
        return None, "the log is not the one that the version was trained on, so it is not known who trained it"
    member = trained_users(log, train, least=recipe.data.min_events)[found.users]
    if min(member.sum(), (~member).sum()) < MIN_USERS:
        return None, f"of the measured users {(~member).sum():,} did not train it; a comparison needs {MIN_USERS}"
    model, _ = build_model(subject.loaded, log, subject.base)
    try:
        layout = subject.loaded.layout
        losses = mean_losses(model, log, layout, subject.task, chosen, max_events=recipe.data.max_events)
    finally:
        model.release()
    loss, _, offline = found.against(confidence_of(losses[found.users]), np.ones(len(found.confidence), dtype=bool))
    attacks = {}
    for name, scores in (("loss", loss), ("offline", offline)):
        there = ~np.isnan(scores)
        attacks[name] = _attack(scores[there], member[there], found.users[there], subject.options.seed)
    return attacks, ""
