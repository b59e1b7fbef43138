"""One trial: a recipe trained on the training part, valued by its best result on the validation part.

Owns: what trials share (the data, the base, the encoder), training a point, the files of a trial. Ignores: how points are drawn.

The test part is never read, and nothing is published.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from genre.data.dataset import Dataset
from genre.data.splits import VALID
from genre.errors import InputError, JobError, RecipeError
from genre.evaluation.labels import check_metrics, known_labels
from genre.evaluation.metrics import Metric, bootstrap, metric
from genre.files import write_text
from genre.jobs.encoders import find_encoder
from genre.jobs.loading import open_base
from genre.jobs.tuning.space import Space
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.training import TrainingState, fit
from genre.training.assembly import assemble_any, needs_encoder, training_split
from genre.training.parts import SharedEncoder

FIXED_BY_ENCODER = {f"encoder.{key}" for key in ("text", "learned", "collaborative", "factors", "dense", "dropout")}


def refuse_private(recipe: Recipe) -> None:
    """Refuse a private recipe where several runs are compared (RecipeError)."""
    if recipe.train.privacy is not None:
        what = "trials would be compared on users' events, and each would spend the budget of train.privacy anew"
        todo = "tune on public data, then train once with the values that it finds"
        raise RecipeError(what, got=f"epsilon {recipe.train.privacy.epsilon:g}", expected="a recipe without it", todo=todo)


class Objective:
    """The first task's first metric on the validation part.

    Raises:
        InputError: The validation part has no target of that task, or none that its metric can be computed from.
        RecipeError, DataError: As `genre.evaluation.labels.check_metrics`.
    """

    def __init__(self, recipe: Recipe, data: Dataset) -> None:
        task = recipe.tasks[0]
        refuse_private(recipe)
        check_metrics(task, data)
        self.name = f"{task.name}.{task.metrics[0]}"
        self.metric = metric(task.metrics[0])
        labels = data.labels_of(task.with_classes(data.labels))
        wanted = (training_split(recipe, data)[0].part == VALID) & known_labels(labels)
        if not wanted.any():
            what = f"the validation part has no target of task {task.name!r}, which decides between trials"
            raise InputError(what, got="0", expected="a split with validation events", todo="change data.split")
        if task.is_binary:
            self._check_classes(labels[wanted], data, np.flatnonzero(wanted))

    def _check_classes(self, labels: np.ndarray, data: Dataset, events: np.ndarray) -> None:
        """Refuse labels of 0 and 1 from which the metric could not be computed whatever a model predicts."""
        impressions = None if data.impressions is None else data.impressions[events]
        owners, equal = data.owners(events)[0], np.full(len(labels), 0.5)
        if np.isnan(bootstrap(self.metric, owners, labels, equal, impressions=impressions, resamples=0).value):
            got = "one label only in each user or impression"
            if labels.min() == labels.max():
                got = f"label {labels[0]:g} in all of {len(labels):,} targets"
            what = f"{self.name}, which decides between trials, has no value on the validation part"
            todo = "change data.split, or name another metric first"
            raise InputError(what, got=got, expected="targets of both labels", todo=todo)

    @property
    def maximize(self) -> bool:
        """True if higher values are better."""
        return self.metric.direction == "higher"

    def by_epoch(self, state: TrainingState) -> dict[int, float]:
        """The values so far, by epoch from 1."""
        return {int(row["epoch"]): float(row[self.name]) for row in state.history if self.name in row}


class Trainer:
    """Trains points of a space one after the other on the same data; the base and the encoder are loaded once.

    Args:
        recipe: The recipe that varies.
        data: The log, or labelled texts.
        base: The recipe's base; trials of another base or depth load theirs.
        registry: Searched for a fitted encoder; without one every trial fits its own, as `genre train` would.
        reporter: Receives progress.
    """

    def __init__(
        self, recipe: Recipe, data: Dataset, *, base: Base | None, registry: Registry | None, reporter: Reporter
    ) -> None:
        self.recipe = recipe
        self.data = data
        self.registry = registry
        self.reporter = reporter
        self.objective = Objective(recipe, data)
        self._base = (recipe.base, base) if base is not None else None
        self._encoder: tuple[Any, SharedEncoder | None] | None = None

    def parts(self, recipe: Recipe) -> tuple[Base, SharedEncoder | None]:
        """A recipe's base and its published encoder, if there is one; those of the last trial are reused if they fit."""
        if self._base is None or self._base[0] != recipe.base:
            self._base = None  # two bases may not fit into memory
            self._encoder = None
            self._base = (recipe.base, open_base(recipe.base))
        base = self._base[1]
        wanted = (recipe.encoder.use, needs_encoder(recipe))
        if self._encoder is None or self._encoder[0] != wanted:
            self._encoder = (wanted, find_encoder(recipe, self.data, base, self.registry, self.reporter))
        return base, self._encoder[1]

    def check_space(self, space: Space) -> None:
        """Refuse keys that change nothing.

        Raises:
            RecipeError: The encoder is published already, so its own settings cannot vary.
        """
        _, shared = self.parts(self.recipe)
        stuck = [each.key for each in space.parameters if each.key in FIXED_BY_ENCODER]
        if shared is not None and stuck and all(each.key != "encoder.use" for each in space.parameters):
            what, got = f"{stuck[0]} changes nothing here", "an encoder that is fitted and published"
            raise RecipeError(what, got=got, expected="a new encoder in each trial", todo="add --set encoder.use=fit")

    def train(self, recipe: Recipe, folder: Path, should_stop: Callable[[dict[int, float]], bool]) -> "Trained":
        """Train a recipe, from its last checkpoint if it was interrupted.

        Args:
            recipe: A recipe at a point of the space.
            folder: The trial's folder.
            should_stop: Called after each epoch with the values so far by epoch.

        Raises:
            GenreError: The point cannot be trained, or diverged.
            JobError: There is no value.
        """
        base, shared = self.parts(recipe)
        assembly = assemble_any(recipe, self.data, base, shared)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "recipe.yaml", recipe.dump())
            resume = (folder / "checkpoints" / "last.pt").is_file()
            trained = Trained()

            def on_validation(state: TrainingState) -> None:
                trained.update(self.objective.by_epoch(state), state)
                if should_stop(trained.values):
                    raise _Pruned

            try:
                state = fit(assembly, folder, resume=resume, reporter=self.reporter, on_validation=on_validation).state
            except _Pruned:
                return trained
            trained.update(self.objective.by_epoch(state), state)
            should_stop(trained.values)
        finally:
            assembly.model.release()
        trained.value = best(self.objective.metric, trained.values)
        if trained.value is None:
            raise JobError(f"{self.objective.name} has no value on the validation part", got="NaN", expected="a number")
        return trained

    def clear(self, folder: Path) -> None:
        """Remove the checkpoints of a trial that is over."""
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


@dataclass
class Trained:
    """The result of a trial: its values by epoch, the best of them (None if it was pruned), its cost."""

    values: dict[int, float] = field(default_factory=dict)
    value: float | None = None
    seconds: float = 0.0
    tokens: int = 0

    def update(self, values: dict[int, float], state: TrainingState) -> None:
        """Record the progress of a run."""
        self.values = values
        self.seconds = round(state.seconds, 3)
        self.tokens = state.tokens


def best(chosen: Metric, values: dict[int, float]) -> float | None:
    """The best of some values; None if all are NaN."""
    found: float | None = None
    for value in values.values():
        if not np.isnan(value) and (found is None or chosen.better(value, found)):
            found = value
    return found


class _Pruned(Exception):
    """Ends a run from inside its loop; no error."""
