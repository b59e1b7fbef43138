"""The protocol of a figure: split, history, order of equal times, ranking, windows; and the targets whose order is no tie.

Owns: the line that manifests, reports and benchmarks have; which targets a tie touches. Ignores metrics.

    protocol_line(recipe, log, task)
    # last_n (n 1); prequential: all earlier events are history; equal seconds in hash order; windows of 50 events; …
    ties_of(log, found_split, found)     ->  Ties(rule="equal seconds in hash order", tied=415, targets=943, others=array([…]), …)
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from genre.data.dataset import Dataset
from genre.data.interactions import Interactions, need_log
from genre.data.splits import Split
from genre.evaluation.targets import Targets
from genre.recipe import Recipe
from genre.tasks import Task


def protocol_line(recipe: Recipe, data: Dataset, task: Task) -> str:
    """The evaluation protocol in a line: split, history, ranking, ties, windows; for labelled texts, the token limit."""
    config = {key: value for key, value in recipe.data.split.model_dump().items() if value not in (None, 0)}
    kind = config.pop("kind")
    if kind == "group":
        shares = f"valid {config.get('valid', 0)}, test {config.get('test')} of the groups, seed {config.get('seed', 0)}"
        return f"{kind} ({shares}): no group on two sides; texts of at most {recipe.sequence.max_tokens} tokens"
    how = "transductive history" if kind == "given" else "prequential: all earlier events are history"
    window = f"windows of {recipe.data.max_events} events"
    if recipe.sequence.window == "blocks":
        window += ", which move by half of that"
    ranking = f"; full catalogue, seen items {task.seen}, mid-rank for equal scores" if task.kind == "next_item" else ""
    settings = ", ".join(f"{key} {value}" for key, value in config.items())
    return f"{kind} ({settings}); {how}; {need_log(data).tie_rule}; {window}{ranking}"


@dataclass(frozen=True)
class Ties:
    """Targets whose place among their user's events is a tie.

    Attributes:
        rule: The order of equal times, in words.
        tied: Targets that share their time (and rank) with another event of their user, siblings of an impression aside.
        targets: All targets.
        others: Mask of the targets that are no tie, bool[targets].
        name: The others, in words.
    """

    rule: str
    tied: int
    targets: int
    others: npt.NDArray[np.bool_]
    name: str

    @property
    def words(self) -> str:
        """The number of ties, for a protocol; empty where there is none."""
        if not self.tied:
            return ""
        beside = f"; beside all, the figures on {self.name}" if self.others.any() else ""
        return f"{self.tied:,} of {self.targets:,} targets are such ties{beside}"


def ties_of(log: Interactions, split: Split, targets: Targets) -> Ties | None:
    """Return the ties among the targets of a split; None if the split is transductive, where order does not matter."""
    if split.transductive:
        return None
    tied = log.undecided[targets.event]
    last = split.config.kind == "last_n" and split.config.n == 1 and log.impressions is None  # else a user may have several
    name = "users whose last event is no tie" if last else "targets that are no tie"
    return Ties(log.tie_rule, int(tied.sum()), len(targets), ~tied, name)
