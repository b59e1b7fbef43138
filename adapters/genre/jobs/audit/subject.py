"""What is audited: a version, its log, and the users and items that the checks look at.

Owns: the draw of users and targets, and how it is told. Ignores: what a check does with them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import BaseModel

from genre.data.interactions import Interactions
from genre.engine.versions import Loaded
from genre.errors import DataError, InputError, ManifestError
from genre.jobs.audit.options import AuditOptions
from genre.jobs.audit.report import SampledTarget
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.registry import Registry
from genre.registry.manifest import Version
from genre.tasks import Task

SEARCHERS = 30
"""Users, at most, whose lists an attacker watches to choose words; others are measured."""
COMMON = 0.1
"""Share of the sampled users who may have a target already."""


@dataclass(frozen=True)
class Subject:
    """A version under audit.

    Attributes:
        loaded: The version's modules and manifest.
        task: The task whose lists are looked at.
        targets: Codes of the items that are pushed.
        measured: Ids of the users whose lists are measured.
        searched: Ids of other users, whose lists an attacker may try words on.
        folder: For files that a check needs while it runs.
    """

    registry: Registry
    version: Version
    loaded: Loaded
    log: Interactions
    base: Base
    options: AuditOptions
    task: Task
    targets: tuple[int, ...]
    measured: tuple[str, ...]
    searched: tuple[str, ...]
    folder: Path

    @property
    def sampled_targets(self) -> list[SampledTarget]:
        """The targets with their titles and numbers of events."""
        counts, titles = np.bincount(self.log.item_codes, minlength=self.log.catalogue.size), self.log.catalogue.titles()
        return [
            SampledTarget(item_id=self.log.catalogue.item_ids[code], title=titles[code], events=int(counts[code]))
            for code in self.targets
        ]


class Check(Protocol):
    """One check of an audit; `genre.jobs.audit.job.CHECKS` lists them, and a page has a template of the check's name."""

    def foresee(self, subject: Subject) -> str:
        """Say what the check will do and about how long it takes, in a line; refuse what it cannot do."""
        ...

    def run(self, subject: Subject, reporter: Reporter) -> BaseModel:
        """Run the check; its section of the report."""
        ...


def task_of(loaded: Loaded, name: str | None) -> Task:
    """Return the task that is asked for, or the first.

    Raises:
        ManifestError: The version reads labelled texts, which recommend nothing.
        InputError: It has no such task.
    """
    if loaded.manifest.reads == "texts":
        expected = "an adapter that reads a log"
        raise ManifestError(f"{loaded.name} has no items that somebody could push", got="labelled texts", expected=expected)
    if name is not None and name not in loaded.tasks:
        raise InputError(f"{loaded.name} has no such task", got=name, expected=", ".join(loaded.tasks))
    task = loaded.tasks[name] if name is not None else next(iter(loaded.tasks.values()))
    if task.head == "generate":
        todo = "audit another task, or the same recipe with head: catalogue"
        raise ManifestError(
            f"task {task.name!r} of {loaded.name} generates items",
            got="head generate",
            expected="a head that scores every item",
            todo=todo,
        )
    return task


def draw_users(log: Interactions, options: AuditOptions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Draw the users who are measured, and, where items are pushed, others whom an attacker watches.

    Raises:
        DataError: The log has too few users.
    """
    count = len(log.user_ids)
    if count < 4:
        raise DataError("an audit needs users", got=f"{count} in the log", expected="at least 4")
    draw = np.random.default_rng((options.seed, 1)).permutation(count)
    searched = min(SEARCHERS, max(2, count // 4), options.users) if options.pushes else 0
    measured = draw[searched : searched + options.users]
    names = log.user_ids
    return tuple(names[code] for code in measured), tuple(names[code] for code in draw[:searched])


def draw_targets(log: Interactions, options: AuditOptions, measured: Sequence[str]) -> tuple[int, ...]:
    """Return the items that are named, or draw items with events, but no more than the median item has.

    Items that more than a tenth of the measured users have are not drawn.

    Raises:
        InputError: A named item is not in the catalogue; DataError: No item can be drawn.
    """
    if options.items:
        for item in options.items:
            if item not in log.catalogue:
                todo = "name an item_id; genre data describe shows the log"
                raise InputError("no such item to push", got=item, expected="an item_id of the catalogue", todo=todo)
        return tuple(dict.fromkeys(log.catalogue.code(item) for item in options.items))
    counts = np.bincount(log.item_codes, minlength=log.catalogue.size)
    codes = np.array([log.user_code(user) for user in measured])
    theirs = np.isin(log.user_codes, codes)
    _, items = np.unique(np.stack([log.user_codes[theirs], log.item_codes[theirs]]), axis=1)
    owners = np.bincount(items, minlength=log.catalogue.size)
    rare = (counts > 0) & (counts <= np.median(counts[counts > 0])) & (owners <= COMMON * len(measured))
    if not rare.any():
        expected, todo = f"an item that at most {COMMON:.0%} of the sampled users have", "name items with --target"
        raise DataError("no item can be drawn as a target", got="items that most users have", expected=expected, todo=todo)
    drawn = np.random.default_rng((options.seed, 2)).permutation(np.flatnonzero(rare))[: options.targets]
    return tuple(int(code) for code in drawn)
