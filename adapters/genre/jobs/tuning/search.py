"""The search job: trial after trial on the validation part, recorded in a study that can be interrupted and resumed.

Owns: the order of the job, what ends a trial and what ends the job, messages, the files beside the journal. Ignores: how points
are drawn, how a trial is trained.

    found = tune(recipe, read_space(recipe), Search(sampler="tpe"), Path("runs/like/tune"), trials=20)
    found["best"]      # {"trial": 7, "value": 0.771, "parameters": {"train.learning_rate": 0.0012, …}, …}

    runs/like/tune:  study.journal  best.yaml  trials.jsonl  plots/…  trials/001/{recipe.yaml, log.jsonl}
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from genre.data.dataset import Dataset
from genre.errors import DiskError, GenreError, InputError, InterruptedJobError, JobError, first_line
from genre.files import write_json, write_text
from genre.jobs.folders import environment, working_folder
from genre.jobs.loading import check_data, open_data
from genre.jobs.tuning.plots import draw
from genre.jobs.tuning.space import Space, need_optuna
from genre.jobs.tuning.study import STATES, Search, Study, open_study
from genre.jobs.tuning.trials import Trainer
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
    log: Dataset | None = None,
    base: Base | None = None,
    registry: Registry | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Search a space for the recipe with the best validation; nothing is published, and the test part is never read.

    Args:
        recipe: The recipe that varies.
        space: The keys that vary.
        search: The options of the search.
        folder: The study's folder; an existing study is resumed if it is of the same recipe, space and data.
        trials: Trials of the whole study; None, for a grid only, for all of its points.
        timeout_s: No trial begins after this many seconds.
        log: Takes precedence over the recipe's data path; labelled texts for a recipe of text tasks.
        base: Takes precedence over the recipe's base.
        registry: Searched for a fitted encoder; without one every trial fits its own.
        reporter: Receives progress.

    Returns:
        The study in JSON values: `best`, `trials`, `importance`, `counts`, and the files.

    Raises:
        InputError: An option is out of range, or the folder holds another study.
        InterruptedJobError: Ctrl-C; the same call resumes.
        JobError: No trial gave a value.
    """
    _check(trials, timeout_s, search)
    need_optuna()
    reporter = reporter or Reporter.silent()
    data = log if log is not None else open_data(recipe.data.path, recipe.reads)
    check_data(recipe, data)
    trainer = Trainer(recipe, data, base=base, registry=registry, reporter=reporter)
    trainer.check_space(space)
    objective = trainer.objective
    with working_folder(folder, JOURNAL):
        about = _about(trainer, space, search)
        with open_study(folder / JOURNAL, about, space, search, maximize=objective.maximize) as study:
            write_json(folder / "environment.json", environment())
            job = _Job(study, trainer, folder, trials, reporter)
            try:
                job.run(timeout_s)
            except (KeyboardInterrupt, InterruptedJobError):
                job.write_files()
                what = f"interrupted after {len(study.finished())} trials"
                raise InterruptedJobError(what, got="Ctrl-C", todo=f"the same command resumes in {folder}") from None
            found = job.write_files() | {"recipe": recipe.name, "objective": objective.name, "search": vars(search)}
    counts = found["counts"]
    if counts["failed"] and not counts["complete"] + counts["pruned"]:
        reason = next(row["reason"] for row in found["trials"])
        raise JobError(f"none of {counts['failed']} trials gave a value", got=reason, todo="change the space")
    return found


def describe_point(parameters: Mapping[str, Any]) -> str:
    """A point in one line."""
    return ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in parameters.items())


def _check(trials: int | None, timeout_s: float | None, search: Search) -> None:
    if trials is None and search.sampler != "grid":
        todo = "only --sampler grid ends by itself"
        raise InputError("the number of trials is missing", got="no --trials", expected="--trials N", todo=todo)
    if trials is not None and trials < 1:
        raise InputError("trials", got=trials, expected="1 or more")
    if timeout_s is not None and not 0 < timeout_s < float("inf"):
        raise InputError("timeout", got=timeout_s, expected="seconds, more than 0")


def _about(trainer: Trainer, space: Space, search: Search) -> dict[str, Any]:
    """The identity of a study: everything that its trials share. Paths may change, content may not."""
    base, shared = trainer.parts(trainer.recipe)
    raw = trainer.recipe.model_dump(mode="json")
    del raw["data"]["path"], raw["base"]["name"]
    about = {"recipe": raw, "search": vars(search), "space": space.describe(), "data": trainer.data.digest}
    return about | {"base": base.fingerprint, "encoder": None if shared is None else shared.digest}


class _Job:
    """A study, and the training of its trials."""

    def __init__(self, study: Study, trainer: Trainer, folder: Path, trials: int | None, reporter: Reporter) -> None:
        self.study = study
        self.trainer = trainer
        self.folder = folder
        self.reporter = reporter
        size = len(study.grid) if study.grid is not None else None
        self.wanted = min(each for each in (trials, size) if each is not None)

    def run(self, timeout_s: float | None) -> None:
        """Run trials until there are enough, the grid is done or the time is up."""
        begun = time.monotonic()
        done = len(self.study.finished())
        if done:
            self.reporter.line(f"resuming a study of {done} trials, up to {max(self.wanted, done)}")
        while len(self.study.finished()) < self.wanted:
            if timeout_s is not None and time.monotonic() - begun >= timeout_s:
                self.reporter.line(f"no more trials: the time limit of {timeout_s:g} seconds is reached")
                return
            trial = self.study.next()
            if trial is None:
                return
            self.trial(trial)

    def trial(self, trial: Any) -> None:
        """Run one trial and report it in a line."""
        rows, values = self.study.rows(), self.study.space.values(trial.params)
        twin = next((row for row in rows if row["parameters"] == values), None)
        if twin is None:
            self._train(trial, self.folder / "trials" / f"{len(rows) + 1:03d}")
        else:
            self._repeat(trial, twin)
        last = self._write_trials()[-1]
        objective = self.trainer.objective.name
        outcome = {"complete": f"{objective} {last['value'] or 0:.4f}", "pruned": "pruned"}
        shown = outcome.get(last["state"], f"failed: {last.get('reason')}")
        best = self.study.best()
        so_far = "none yet" if best is None else f"{best['value']:.4f} of trial {best['trial']}"
        self.reporter.line(f"trial {last['trial']}/{self.wanted}: {shown} with {describe_point(values)}; best {so_far}")

    def _train(self, trial: Any, folder: Path) -> None:
        end = self.study.end
        if self.study.should_prune(trial, {}):  # interrupted between the pruner's decision and its record
            end(trial, "pruned")
            return self.trainer.clear(folder)
        try:
            recipe = self.study.space.recipe(self.trainer.recipe, trial.params)
            trained = self.trainer.train(recipe, folder, lambda values: self.study.should_prune(trial, values))
        except (InterruptedJobError, DiskError):
            raise  # the trial stays open, and runs first when the study is resumed
        except GenreError as error:
            end(trial, "failed", reason=str(error))
        except Exception as error:
            if not _out_of_memory(error):
                end(trial, "failed", reason=f"{type(error).__name__}: {error}")
                raise
            end(trial, "failed", reason="out of memory: " + first_line(error))
        else:
            state = "pruned" if trained.value is None else "complete"
            end(trial, state, trained.value, seconds=trained.seconds, tokens=trained.tokens)
        self.trainer.clear(folder)

    def _repeat(self, trial: Any, twin: Mapping[str, Any]) -> None:
        """Reuse the result of a point that was drawn before: training is a function of the recipe."""
        self.study.should_prune(trial, {int(epoch): value for epoch, value in twin["by_epoch"].items()})
        reason = {"reason": twin["reason"]} if "reason" in twin else {}
        self.study.end(trial, twin["state"], twin["value"], same_as=twin["trial"], **reason)

    def _write_trials(self) -> list[dict[str, Any]]:
        """Write the trials and the best recipe so far; return the rows."""
        rows, best = self.study.rows(), self.study.best()
        write_text(self.folder / "trials.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        if best is not None:
            figure = f"{self.trainer.objective.name} {best['value']:.6g} on the validation part"
            recipe = self.trainer.recipe.with_values(best["parameters"]).dump()
            write_text(
                self.folder / "best.yaml", f"# The best of {len(rows)} trials, number {best['trial']}: {figure}.\n{recipe}"
            )
        return rows

    def write_files(self) -> dict[str, Any]:
        """Write every file; the study in JSON values."""
        objective, space, shares = self.trainer.objective, self.study.space, self.study.importance()
        rows, best = self._write_trials(), self.study.best()
        pictures = draw(self.folder / "plots", rows, space.parameters, objective.name, shares, up=objective.maximize)
        return {
            "study": str(self.folder),
            "best": best,
            "best_recipe": None if best is None else str(self.folder / "best.yaml"),
            "trials": rows,
            "importance": shares,
            "space": space.describe(),
            "plots": [str(file) for file in pictures],
            "counts": {state: sum(row["state"] == state for row in rows) for state in STATES},
        }


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in text or "out of memory" in text
