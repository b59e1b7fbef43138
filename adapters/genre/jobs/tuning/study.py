"""A search as an Optuna study in a journal file: opening it, drawing points, keeping what they gave.

Owns: the study's file, who draws points, which trial is next. Ignores: training, reports.

Each trial's sampler is seeded by the study's seed and the trial's number, so a study that was cut and goes on draws the points
that it would have drawn anyway. A trial that was cut stays open and is the next one.

    with open_study(Path("study.journal"), about, space, Search(sampler="tpe"), maximize=True) as study:
        trial = study.next()
        study.complete(trial, 0.77)
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from genre.errors import InputError
from genre.jobs.same import check_same
from genre.jobs.tuning.space import Space

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["median", "none"]
ABOUT = "genre"


@dataclass(frozen=True)
class Search:
    """How points are drawn and trials are cut short.

    Attributes:
        sampler: `tpe`, `random` or `grid` (every point of the space once, in a drawn order).
        pruner: `median` ends a trial whose best validation so far is below the median of the others' at the same epoch; `none`.
        seed: Of the draws.

    Raises:
        InputError: One of them is unknown.
    """

    sampler: Sampler = "tpe"
    pruner: Pruner = "median"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in (("sampler", get_args(Sampler)), ("pruner", get_args(Pruner))):
            if getattr(self, name) not in known:
                raise InputError(f"no such {name}", got=getattr(self, name), expected=", ".join(known))
        if self.seed < 0:
            raise InputError("seed", got=self.seed, expected="0 or more")


class Study:
    """An open study of one space; use it through `open_study`."""

    def __init__(self, optuna_study: Any, space: Space, search: Search) -> None:
        self.study, self.space, self.search = optuna_study, space, search
        self.grid = space.grid(search.seed) if search.sampler == "grid" else None

    def finished(self) -> list[Any]:
        """The trials that are over, in order: complete, pruned or failed."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]

    @property
    def best(self) -> Any | None:
        """The best complete trial; None if there is none."""
        complete = [trial for trial in self.finished() if trial.state.name == "COMPLETE"]
        sign = 1 if self.study.direction.name == "MAXIMIZE" else -1
        return max(complete, key=lambda trial: sign * trial.value, default=None)

    def next(self) -> Any | None:
        """The next trial: the one that was cut, or a new one; None if the grid is done."""
        from optuna.trial import Trial

        trials = self.study.get_trials(deepcopy=False)
        cut = [trial for trial in trials if trial.state.name == "RUNNING"]
        waiting = [trial for trial in trials if trial.state.name == "WAITING"]
        self.study.sampler = self._sampler(cut[0].number if cut else len(trials) - len(waiting))
        if cut:
            return Trial(self.study, cut[0]._trial_id)
        if self.grid is not None and not waiting:
            seen = [trial.params for trial in trials]
            left = [point for point in self.grid if point not in seen]
            if not left:
                return None
            self.study.enqueue_trial(left[0])
        return self.study.ask()

    def twin(self, trial: Any) -> Any | None:
        """The finished trial at the same point; None if there is none."""
        return next((each for each in self.finished() if each.params == trial.params), None)

    def should_prune(self, trial: Any, values: Mapping[int, float]) -> bool:
        """Keep the validation values of a trial by epoch, and tell whether it is to end."""
        known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        for epoch, value in values.items():
            if epoch not in known and not np.isnan(value):
                trial.report(value, epoch)
        return trial.should_prune()

    def complete(self, trial: Any, value: float, **facts: Any) -> None:
        """End a trial with its value."""
        self._end(trial, "COMPLETE", facts, value)

    def prune(self, trial: Any, **facts: Any) -> None:
        """End a trial early."""
        self._end(trial, "PRUNED", facts)

    def fail(self, trial: Any, reason: str, **facts: Any) -> None:
        """End a trial that gave no value."""
        self._end(trial, "FAIL", {**facts, "reason": reason})

    def _end(self, trial: Any, state: str, facts: Mapping[str, Any], value: float | None = None) -> None:
        from optuna.trial import TrialState

        for name, fact in facts.items():
            trial.set_user_attr(name, fact)
        self.study.tell(trial, value, state=TrialState[state])

    def _sampler(self, number: int) -> Any:
        from optuna import samplers

        seed = int(np.random.SeedSequence([self.search.seed, number]).generate_state(1)[0])
        return samplers.TPESampler(seed=seed) if self.search.sampler == "tpe" else samplers.RandomSampler(seed=seed)


@contextmanager
def open_study(file: Path, about: Mapping[str, Any], space: Space, search: Search, *, maximize: bool) -> Iterator[Study]:
    """Open a study, or begin one; nobody else may have it open.

    Args:
        file: Its journal.
        about: JSON values that say what it is a study of; a study that was begun goes on only with the same.
        space: What varies.
        search: How it is searched.
        maximize: Whether higher values are better.

    Raises:
        InputError: Optuna is not installed, the file is no journal, or it is a study of something else.
    """
    optuna = need_optuna()
    from optuna import pruners
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    _mend(file)
    pruner = pruners.MedianPruner() if search.pruner == "median" else pruners.NopPruner()
    direction = "maximize" if maximize else "minimize"
    try:
        storage = JournalStorage(JournalFileBackend(str(file), lock_obj=_Held()))
        study = optuna.create_study(
            storage=storage, study_name=ABOUT, pruner=pruner, direction=direction, load_if_exists=True, sampler=None
        )
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file} is no study", got=str(error), expected="an Optuna journal", todo="name another folder"
        ) from None
    stored = study.user_attrs.get(ABOUT)
    if stored is None:
        study.set_user_attr(ABOUT, dict(about))
    else:
        check_same("the study", stored, about, todo="name another --study, or go on with what it was begun with")
    yield Study(study, space, search)


def need_optuna() -> Any:
    """Optuna.

    Raises:
        InputError: It is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise InputError("genre tune needs optuna", todo="pip install 'genre-adapters[tune]'") from None
    return optuna


class _Held:
    """The journal's own lock: nothing to do, since the study's folder is locked (and a kill leaves no stale lock behind)."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


def _mend(file: Path) -> None:
    """Cut a last line that a kill left half written: Optuna reads over it, but no more once it is written on."""
    data = file.read_bytes() if file.is_file() else b""
    whole = data[: data.rfind(b"\n") + 1]
    try:
        if whole and not isinstance(json.loads(whole.splitlines()[-1]), dict):
            raise ValueError("a line that is no JSON object")
    except ValueError as error:
        raise _no_study(file, error) from None
    if whole != data:
        with file.open("r+b") as journal:
            journal.truncate(len(whole))


def _no_study(file: Path, error: Exception) -> InputError:
    return InputError(f"{file} is no study", got=str(error), expected="an Optuna journal", todo="name another folder")
