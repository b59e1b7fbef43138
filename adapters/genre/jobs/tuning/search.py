"""The search job: trial after trial on the validation part, kept in a study that can be cut and goes on.

Owns: the order of the job, what ends a trial and what ends the job, what is told. Ignores: how points are drawn, how one is
trained, the form of the files.

    found = tune(recipe, read_space(recipe), Search(sampler="tpe"), Path("runs/like/tune"), trials=20)
    found["best"]      # {"trial": 7, "value": 0.771, "parameters": {"train.learning_rate": 0.0012, …}, …}

    runs/like/tune:  study.journal  best.yaml  trials.jsonl  plots/…  trials/001/{recipe.yaml, log.jsonl}
"""

import json
import time
from pathlib import Path
from typing import Any

import torch

from genre.data.interactions import Interactions
from genre.data.texts.dataset import Texts
from genre.errors import DiskError, GenreError, InputError, InterruptedJobError, JobError
from genre.jobs.inputs import check_data, environment, open_data, write_text
from genre.jobs.tuning.plots import draw
from genre.jobs.tuning.report import importance, said, write_files
from genre.jobs.tuning.space import Space
from genre.jobs.tuning.study import Search, Study, need_optuna, open_study
from genre.jobs.tuning.trials import Trainer
from genre.jobs.tuning.working_folder import working_folder
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry

JOURNAL = "study.journal"


def tune(
    recipe: Recipe,
    space: Space,
    search: Search,
    folder: Path,
    *,
    trials: int | None,
    timeout_s: float | None = None,
    log: Interactions | Texts | None = None,
    base: Base | None = None,
    registry: Registry | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Search a space for the recipe with the best validation; nothing is published, the test part is never looked at.

    Args:
        recipe: The recipe that varies.
        space: What varies.
        search: How points are drawn and trials cut short.
        folder: The study's folder; a study that is there already goes on, if it is of the same recipe, space and data.
        trials: Trials that the study is to have in all; None, for a grid only, for all of its points.
        timeout_s: No trial begins after so many seconds.
        log: Wins over the recipe's data path; labelled texts where the recipe is about them.
        base: Wins over the recipe's base.
        registry: Where a fitted encoder is looked for; without one every trial fits its own.
        reporter: Where progress goes.

    Returns:
        The study in JSON values: `best`, `trials`, `importance`, `counts`, and the files.

    Raises:
        InputError: An option is out of range, or the study is of something else.
        InterruptedJobError: Ctrl-C; the same call goes on.
        JobError: No trial gave a value.
    """
    _check(trials, timeout_s, search)
    need_optuna()
    say = reporter or Reporter.silent()
    data = log if log is not None else open_data(recipe.data.path, recipe.reads)
    check_data(recipe, data)
    trainer = Trainer(recipe, data, base=base, registry=registry, reporter=say)
    trainer.check_space(space)
    objective = trainer.objective
    with working_folder(folder, JOURNAL):
        about = _about(trainer, space, search)
        with open_study(folder / JOURNAL, about, space, search, maximize=objective.maximize) as study:
            write_text(folder / "environment.json", json.dumps(environment(), indent=2) + "\n")
            job = _Job(study, trainer, folder, trials, say)
            try:
                job.run(timeout_s)
            except (KeyboardInterrupt, InterruptedJobError):
                job.files()
                what = f"interrupted after {len(study.finished())} trials"
                raise InterruptedJobError(what, got="Ctrl-C", todo=f"the same command goes on in {folder}") from None
            found = job.files() | {"recipe": recipe.name, "objective": objective.name, "search": vars(search)}
    counts = found["counts"]
    if counts["failed"] and not counts["complete"] + counts["pruned"]:
        reason = next(row["reason"] for row in found["trials"])
        raise JobError(f"none of {counts['failed']} trials gave a value", got=reason, todo="change the space")
    return found


def _check(trials: int | None, timeout_s: float | None, search: Search) -> None:
    if trials is None and search.sampler != "grid":
        raise InputError("how many trials?", got="no --trials", expected="--trials N", todo="only a grid ends by itself")
    if trials is not None and trials < 1:
        raise InputError("trials", got=trials, expected="1 or more")
    if timeout_s is not None and not 0 < timeout_s < float("inf"):
        raise InputError("timeout", got=timeout_s, expected="seconds, more than 0")


def _about(trainer: Trainer, space: Space, search: Search) -> dict[str, Any]:
    """What a study is of: what its trials have in common. Paths may change, content may not."""
    base, shared = trainer.parts(trainer.recipe)
    raw = trainer.recipe.model_dump(mode="json")
    del raw["data"]["path"], raw["base"]["name"]
    return {
        "recipe": raw, "search": vars(search), "space": space.describe(), "data": trainer.data.digest,
        "base": base.fingerprint, "encoder": None if shared is None else shared.digest,
    }  # fmt: skip


class _Job:
    """A study, and the training of its trials."""

    def __init__(self, study: Study, trainer: Trainer, folder: Path, trials: int | None, say: Reporter) -> None:
        self.study, self.trainer, self.folder, self.say = study, trainer, folder, say
        size = len(study.grid) if study.grid is not None else None
        self.wanted = min(each for each in (trials, size) if each is not None)

    def run(self, timeout_s: float | None) -> None:
        """Trials until there are enough, the grid is done or the time is up."""
        begun = time.monotonic()
        done = len(self.study.finished())
        if done:
            self.say.line(f"the study has {done} trials already; it goes on to {max(self.wanted, done)}")
        while len(self.study.finished()) < self.wanted:
            if timeout_s is not None and time.monotonic() - begun >= timeout_s:
                self.say.line(f"no more trials: {timeout_s:g} seconds are over")
                return
            trial = self.study.next()
            if trial is None:
                return
            self.trial(trial)

    def trial(self, trial: Any) -> None:
        """One trial, from drawing its point to its line."""
        point = self.study.space.suggest(trial)
        twin = self.study.twin(trial)
        if twin is not None:
            self._repeat(trial, twin)
        else:
            self._train(trial, point)
        write_files(self.folder, self.study, self.trainer.recipe, self.trainer.objective.name)
        self._tell(trial.number, self.study.space.values(point))

    def _train(self, trial: Any, point: dict[str, Any]) -> None:
        folder = self.folder / "trials" / f"{trial.number + 1:03d}"
        if self.study.should_prune(trial, {}):  # it was cut after it had been told to end
            self.study.prune(trial)
            return self.trainer.clear(folder)
        try:
            recipe = self.study.space.recipe(self.trainer.recipe, point)
            trained = self.trainer.train(recipe, folder, lambda values: self.study.should_prune(trial, values))
        except (InterruptedJobError, DiskError):
            raise  # the trial stays open and goes on with the study
        except GenreError as error:
            self.study.fail(trial, str(error))
        except Exception as error:
            if not _out_of_memory(error):
                self.study.fail(trial, f"{type(error).__name__}: {error}")
                raise
            self.study.fail(trial, "out of memory: " + str(error).splitlines()[0])
        else:
            facts = {"seconds": trained.seconds, "tokens": trained.tokens}
            if trained.value is None:
                self.study.prune(trial, **facts)
            else:
                self.study.complete(trial, trained.value, **facts)
        self.trainer.clear(folder)

    def _repeat(self, trial: Any, twin: Any) -> None:
        """Give a point that was drawn before the result that it had: training is a function of the recipe."""
        facts = {"same_as": twin.number + 1}
        self.study.should_prune(trial, twin.intermediate_values)
        if twin.state.name == "COMPLETE":
            self.study.complete(trial, twin.value, **facts)
        elif twin.state.name == "PRUNED":
            self.study.prune(trial, **facts)
        else:
            self.study.fail(trial, twin.user_attrs["reason"], **facts)

    def _tell(self, number: int, values: dict[str, Any]) -> None:
        ended = next(each for each in self.study.finished() if each.number == number)
        how = {"COMPLETE": f"{self.trainer.objective.name} {ended.value or 0:.4f}", "PRUNED": "pruned"}.get(
            ended.state.name, f"failed: {ended.user_attrs.get('reason')}"
        )
        best = self.study.best
        so_far = "none yet" if best is None else f"{best.value:.4f} of trial {best.number + 1}"
        self.say.line(f"trial {number + 1}/{self.wanted}: {how} with {said(values)}; best {so_far}")

    def files(self) -> dict[str, Any]:
        """Write every file; the study in JSON values."""
        objective, study = self.trainer.objective, self.study
        found = write_files(self.folder, study, self.trainer.recipe, objective.name)
        shares = importance(study)
        pictures = draw(self.folder / "plots", found, study.space.parameters, objective.name, shares, up=objective.maximize)
        best = study.best
        return {
            "study": str(self.folder), "best": None if best is None else next(r for r in found if r["trial"] == best.number + 1),
            "best_recipe": None if best is None else str(self.folder / "best.yaml"), "trials": found, "importance": shares,
            "space": study.space.describe(), "plots": [str(file) for file in pictures],
            "counts": {state: sum(row["state"] == state for row in found) for state in ("complete", "pruned", "failed")},
        }  # fmt: skip


def _out_of_memory(error: Exception) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in said or "out of memory" in said
