"""A version's recipe trained again for an audit, on a log that a check has changed.

Owns: what a retraining may change of the recipe, its folder, lines about the time left. Ignores: what is read off the result.
"""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from genre.data.interactions import Interactions
from genre.errors import InterruptedJobError, JobError
from genre.jobs.audit.subject import Subject
from genre.jobs.loading import own_recipe
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.training import fit
from genre.training.assembly import Assembly, assemble, needs_encoder


def audited_recipe(subject: Subject, what: str, *, merged: str = "audit its parents") -> Recipe:
    """The version's recipe with the overrides, its encoder fitted anew.

    Args:
        subject: The version.
        what: What it is audited with, for a message.
        merged: What helps where the version was merged, for a message.

    Raises:
        ManifestError: The version was not trained from a recipe.
    """
    overrides = subject.options.overrides
    recipe = own_recipe(subject.registry, subject.version, f"audited with {what}", overrides, merged=merged)
    update: dict[str, object] = {"train": recipe.train.model_copy(update={"tracker": "none"})}
    if needs_encoder(recipe):
        update["encoder"] = recipe.encoder.model_copy(update={"use": "fit"})
    return recipe.model_copy(update=update)


def foresee_trainings(subject: Subject, count: int) -> str:
    """A number of retrainings, and their time by that of the version's own training: "5 retrainings, about 3 min by …"."""
    cost = subject.loaded.manifest.cost.seconds
    about = f", about {count * cost / 60:,.0f} min by the {cost:,.0f} s of the version's own training" if cost else ""
    return f"{count} retraining{'' if count == 1 else 's'}{about}"


@contextmanager
def retrained(subject: Subject, recipe: Recipe, log: Interactions, reporter: Reporter) -> Iterator[Assembly]:
    """The recipe trained on a log, on the base for as long as the block lasts; nothing of it is left then.

    Raises:
        JobError: Ctrl-C.
    """
    root = Path(tempfile.mkdtemp(prefix=".retraining-", dir=subject.folder))
    try:
        assembly = assemble(recipe, log, subject.base)
        try:
            fit(assembly, root, reporter=reporter)
            yield assembly
        finally:
            assembly.model.release()
    except InterruptedJobError as error:
        raise JobError(error.what, got=error.got, todo="what ended before is in the report; start the audit again") from None
    finally:
        shutil.rmtree(root, ignore_errors=True)


class Turns:
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
