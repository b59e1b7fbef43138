"""A search as an Optuna study in a journal file: opening it, drawing points, recording results.

Owns: the study's file, the sampler, which trial is next, the trials as rows. Ignores: training, reports.

Each trial's sampler is seeded by the study's seed and the trial's number, so an interrupted study that is resumed draws the
points that it would have drawn anyway. An interrupted trial is drawn again, at the same point, before any new one.

    with open_study(Path("study.journal"), about, space, Search(sampler="tpe"), maximize=True) as study:
        trial = study.next()
        study.end(trial, "complete", 0.77)
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from genre.errors import InputError
from genre.jobs.folders import check_same
from genre.jobs.tuning.space import Space, need_optuna

Sampler = Literal["tpe", "random", "grid"]
Pruner = Literal["median", "none"]
STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
NAME = "genre"


@dataclass(frozen=True)
class Search:
    """The options of a search.

    Attributes:
        sampler: `tpe`, `random` or `grid` (every point of the space once, in random order).
        pruner: `median` ends a trial whose best validation so far is below the median of the others' at the same epoch; `none`.
        seed: Of the sampler.

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

    def __init__(self, study: Any, space: Space, search: Search) -> None:
        self.study = study
        self.space = space
        self.search = search
        self.grid = space.grid(search.seed) if search.sampler == "grid" else None

    def finished(self) -> list[Any]:
        """Optuna's trials that are complete, pruned or failed for a reason, in order."""
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]
        return [trial for trial in trials if trial.state.name != "FAIL" or "reason" in trial.user_attrs]

    def rows(self) -> list[dict[str, Any]]:
        """A row of JSON values per finished trial; trials are numbered from 1."""
        names = {optuna: ours for ours, optuna in STATES.items()}
        rows = []
        for number, trial in enumerate(self.finished(), 1):
            epochs = {str(epoch): value for epoch, value in sorted(trial.intermediate_values.items())}
            row = {"trial": number, "state": names[trial.state.name], "value": None}
            row |= {"parameters": self.space.values(trial.params), "by_epoch": epochs}
            if row["state"] == "complete":
                row["value"] = trial.value
            facts = ("seconds", "tokens", "same_as", "reason")
            rows.append(row | {name: trial.user_attrs[name] for name in facts if name in trial.user_attrs})
        return rows

    def best(self) -> dict[str, Any] | None:
        """The row of the best complete trial; None if there is none."""
        complete = [row for row in self.rows() if row["state"] == "complete"]
        sign = 1 if self.study.direction.name == "MAXIMIZE" else -1
        return max(complete, key=lambda row: sign * row["value"], default=None)

    def next(self) -> Any | None:
        """The next trial, its point drawn: that of an interrupted trial, or a new one; None if the grid is done."""
        from optuna.trial import TrialState

        finished = self.finished()
        self.study.sampler = self._sampler(len(finished))
        interrupted = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in interrupted:  # failed without a reason: it does not count
            self.study.tell(trial.number, state=TrialState.FAIL)
        point = next((trial.params for trial in interrupted if trial.params.keys() == self.space.distributions.keys()), None)
        if self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            point = None  # enqueued by a process that was killed
        elif self.grid is not None and point is None:
            done = [trial.params for trial in finished]
            point = next((each for each in self.grid if each not in done), None)
            if point is None:
                return None
        if point is not None:
            self.study.enqueue_trial(point)
        drawn = self.study.ask(self.space.distributions)
        for trial in interrupted:
            self.should_prune(drawn, trial.intermediate_values)
        return drawn

    def should_prune(self, trial: Any, values: Mapping[int, float]) -> bool:
        """Record a trial's validation values by epoch; return whether it should end now."""
        known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        for epoch, value in values.items():
            if epoch not in known and not np.isnan(value):
                trial.report(value, epoch)
        return bool(trial.should_prune())

    def end(self, trial: Any, state: str, value: float | None = None, **facts: Any) -> None:
        """End a trial.

        Args:
            trial: From `next`.
            state: `complete`, `pruned` or `failed`.
            value: Of a complete trial.
            facts: Kept with it; a failed trial needs a `reason`.
        """
        from optuna.trial import TrialState

        for name, fact in facts.items():
            trial.set_user_attr(name, fact)
        self.study.tell(trial, value, state=TrialState[STATES[state]])

    def importance(self) -> dict[str, float]:
        """Each key's PED-ANOVA importance, largest first; empty where it cannot be estimated."""
        complete = [trial for trial in self.finished() if trial.state.name == "COMPLETE"]
        keys = [key for key in self.space.distributions if len({trial.params[key] for trial in complete}) > 1]
        if len(complete) < 4 or len({trial.value for trial in complete}) < 2 or not keys:
            return {}
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        try:
            found = get_param_importances(self.study, evaluator=PedAnovaImportanceEvaluator(), params=keys)
        except (RuntimeError, ValueError):  # the trials are too alike for an estimate
            return {}
        shares = {key: float(share) for key, share in found.items()}
        return shares if all(map(math.isfinite, shares.values())) else {}

    def _sampler(self, number: int) -> Any:
        from optuna import samplers

        seed = int(np.random.SeedSequence([self.search.seed, number]).generate_state(1)[0])
        return samplers.TPESampler(seed=seed) if self.search.sampler == "tpe" else samplers.RandomSampler(seed=seed)


@contextmanager
def open_study(file: Path, about: Mapping[str, Any], space: Space, search: Search, *, maximize: bool) -> Iterator[Study]:
    """Open a study, or begin one; nobody else may have it open.

    Args:
        file: Its journal.
        about: JSON values that identify the study; one that exists is resumed only with the same.
        space: The keys that vary.
        search: The options of the search.
        maximize: Higher values are better.

    Raises:
        InputError: Optuna is not installed, the file is not a journal, or it is another study.
    """
    optuna = need_optuna()
    from optuna import pruners
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = pruners.MedianPruner() if search.pruner == "median" else pruners.NopPruner()
    direction = "maximize" if maximize else "minimize"
    try:
        _mend(file)
        storage = JournalStorage(JournalFileBackend(str(file), lock_obj=_NoLock()))
        study = optuna.create_study(
            storage=storage, study_name=NAME, pruner=pruner, direction=direction, load_if_exists=True, sampler=None
        )
    except (ValueError, KeyError, TypeError) as error:
        todo = "name another folder"
        raise InputError(f"{file} is not a study", got=str(error), expected="an Optuna journal", todo=todo) from None
    stored = study.user_attrs.get(NAME)
    if stored is None:
        study.set_user_attr(NAME, dict(about))
    else:
        check_same("the study", stored, about, todo="name another --study, or resume with the options of its start")
    yield Study(study, space, search)


class _NoLock:
    """The journal's own lock: not needed, since the study's folder is locked (and a kill leaves no stale lock behind)."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


def _mend(file: Path) -> None:
    """Cut off a last line that a kill left half written: Optuna skips it, but not once more lines follow.

    Raises:
        ValueError: The last whole line is not a JSON object.
    """
    data = file.read_bytes() if file.is_file() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole and not isinstance(json.loads(whole.splitlines()[-1]), dict):
        raise ValueError("a line that is not a JSON object")
    if whole != data:
        with file.open("r+b") as journal:
            journal.truncate(len(whole))
