"""Canary users: an audit of the training itself, whose result is a lower bound on its epsilon.

Owns: the canaries, the one training, their scores. Ignores: the bound (`genre.evaluation.privacy`).

Canaries have items at random with the feedback of any event, so no other user has anything like their history, and nothing but
training on it makes a model fit it. Each is put into the log with probability 1/2; the recipe is trained once; a canary that
the model fits much better than the version does, which has seen none of them, is guessed to be in.
"""

from functools import partial

import numpy as np

from genre.errors import DataError
from genre.evaluation.metrics.bootstrap import LEVEL
from genre.evaluation.privacy import confidence_of, epsilon_bound
from genre.jobs.audit.fakes import MOST_EVENTS, Injection, injected
from genre.jobs.audit.report import CanariesSection
from genre.jobs.audit.retraining import Turns, audited_recipe, foresee_trainings, retrained
from genre.jobs.audit.subject import Subject
from genre.jobs.audit.user_losses import layout_of, mean_losses
from genre.jobs.loading import build_model
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.training.assembly import training_split


class CanaryUsers:
    """The check `canaries`."""

    def foresee(self, subject: Subject) -> str:
        """The number of canaries, and the time of the training."""
        _recipe(subject)
        return f"canaries: {subject.options.canaries} users, each inserted or not, {foresee_trainings(subject, 1)}"

    def run(self, subject: Subject, reporter: Reporter) -> CanariesSection:
        """Insert canaries, train, guess."""
        options, log, recipe = subject.options, subject.log, _recipe(subject)
        events = int(np.clip(np.median(np.diff(log.user_offsets)), 2, MOST_EVENTS))
        span = log.time_span(training_split(recipe, log)[1])
        whole = Injection("random", options.canaries, events, (), span, options.seed).into(log, subject.task, "spread")
        canary = injected(whole)
        inserted = np.random.default_rng((options.seed, 6)).random(len(canary)) < 0.5
        chosen = training_split(recipe, whole)[1] & canary[whole.user_codes]
        losses = partial(mean_losses, task=subject.task, chosen=chosen, max_events=recipe.data.max_events)
        model, _ = build_model(subject.loaded, whole, subject.base)
        try:
            before = losses(model, whole, subject.loaded.layout)
        finally:
            model.release()
        Turns(1, reporter).begin(f"{int((inserted & canary).sum())} of {options.canaries} canary users inserted")
        kept = whole.select((inserted | ~canary)[whole.user_codes])
        with retrained(subject, recipe, kept, reporter) as assembly:
            after = losses(assembly.model, whole, layout_of(assembly))
        scores, known = confidence_of(after) - confidence_of(before), canary & ~np.isnan(after) & ~np.isnan(before)
        if known.sum() < 2:
            raise DataError(
                "the canaries have no training events with a label",
                got=f"{int(known.sum())} of {options.canaries}",
                expected="2 or more",
                todo="audit another task with --task, or insert more with --canaries",
            )
        privacy, delta = recipe.train.privacy, options.delta
        if delta is None:
            delta = 1 / (10 * len(log.user_ids)) if privacy is None else privacy.delta_of(len(kept.user_ids))
        bound = epsilon_bound(scores[known], inserted[known], delta=delta)
        reporter.line(f"epsilon is at least {bound.epsilon:.2f} ({bound.right} of {bound.guesses} guesses right)")
        return CanariesSection(
            canaries=int(known.sum()),
            included=int((inserted & known).sum()),
            events=events,
            overrides=list(options.overrides),
            epsilon=bound.epsilon,
            delta=delta,
            confidence=LEVEL,
            guesses=bound.guesses,
            right=bound.right,
            claimed=None if privacy is None else privacy.epsilon,
            scores=[round(float(score), 6) for score in scores[known]],
            inserted=inserted[known].tolist(),
        )


def _recipe(subject: Subject) -> Recipe:
    return audited_recipe(subject, "canary users")
