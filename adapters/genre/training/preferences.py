"""What losses that are relative to a reference read off a log: rejected items, and which events have any.

Owns: pairs of impressions and of a column, what is drawn from the catalogue, limits of sections against the catalogue. Ignores:
formulas, models.
"""

from collections.abc import Mapping

import numpy as np

from genre.data.fields import ids as item_ids
from genre.data.interactions import Interactions
from genre.errors import DataError, RecipeError
from genre.modules.losses import Negatives
from genre.modules.reference import Groups, Pairs, Preferences
from genre.tasks import Task


def relative_losses(
    tasks: Mapping[str, Task], log: Interactions, train_mask: np.ndarray, cold: np.ndarray | None
) -> dict[str, Preferences | Groups]:
    """For each task whose loss is relative to a reference, what it draws.

    Args:
        tasks: Tasks by name.
        log: The log.
        train_mask: (n,) bool, events that train.
        cold: (N,) bool, items that are not drawn.

    Raises:
        RecipeError: A section asks for more items than there are.
        DataError: The log has no impressions, no such column, or an item that is not in its catalogue; or nothing is rejected.
    """
    found: dict[str, Preferences | Groups] = {}
    for name, task in tasks.items():
        if task.group is not None:
            _check_count(task, "group.length", task.group.length, log)
            found[name] = Groups(task.group, masked=task.seen == "masked")
        elif task.preference is not None:
            wanted, drawn, pairs = task.preference, None, pairs_of(task, log)
            if pairs is not None:
                _check_pairs(task, pairs, train_mask)
            else:
                _check_count(task, "preference.negatives", wanted.negatives, log)
                counts = np.bincount(log.item_codes[train_mask], minlength=log.catalogue.size)
                flat = counts if wanted.source == "popularity" else np.zeros_like(counts)
                drawn = Negatives(flat, wanted.negatives, cold)
            found[name] = Preferences(wanted, drawn, pairs)
    return found


def _check_count(task: Task, key: str, count: int, log: Interactions) -> None:
    if count >= log.catalogue.size:
        expected = f"fewer than the {log.catalogue.size:,} items of the catalogue"
        raise RecipeError(f"task {task.name!r}: {key} asks for too many items", got=count, expected=expected)


def _check_pairs(task: Task, pairs: Pairs, train_mask: np.ndarray) -> None:
    if not (pairs.count[train_mask] > 0).any():
        assert task.preference is not None
        got = f"{int(train_mask.sum()):,} training events, none with a rejected item"
        expected = f"{task.preference.source} in which something was chosen and something else was not"
        raise DataError(f"task {task.name!r} has nothing to prefer", got=got, expected=expected)


def pairs_of(task: Task, log: Interactions) -> Pairs | None:
    """The rejected items of a task's targets, where a log says which; None where they are drawn.

    Raises:
        DataError: As `relative_losses`.
    """
    wanted = task.preference
    if wanted is None or wanted.source not in ("impressions", "pairs"):
        return None
    chosen = log.labels_of(task) >= 0
    pairs = _of_impressions(task, log, chosen) if wanted.source == "impressions" else _of_column(task, log, wanted.column)
    return Pairs(pairs.first, np.where(chosen, pairs.count, 0), pairs.codes)


def _of_impressions(task: Task, log: Interactions, chosen: np.ndarray) -> Pairs:
    """What the same impression showed and the label does not hold for; events without a label are left out."""
    shown = log.impressions
    if shown is None:
        todo = "import it with --map impression_id=THEIRS, or choose another preference.source"
        got = ", ".join(log.event_columns) or "no event columns"
        raise DataError(f"task {task.name!r} needs impressions", got=got, expected="a column 'impression_id'", todo=todo)
    rejected = np.flatnonzero(task.labels(log.labels) == 0)
    rejected = rejected[np.argsort(shown[rejected], kind="stable")]
    first = np.searchsorted(shown[rejected], shown)
    count = np.searchsorted(shown[rejected], shown, side="right") - first
    return Pairs(first, count, log.item_codes[rejected].astype(np.int64))


def _of_column(task: Task, log: Interactions, column: str) -> Pairs:
    """The ids in a column, separated by blanks."""
    log.need_column(column)
    ids = item_ids(log.frame[column]).str.extract_all(r"\S+")
    count = ids.list.len().fill_null(0).to_numpy().astype(np.int64)
    events = np.repeat(np.arange(len(log)), count)
    flat = ids.filter(ids.list.len().fill_null(0) > 0).explode().to_list()
    unknown = next((place for place, item in enumerate(flat) if item not in log.catalogue), None)
    if unknown is not None:
        got = f"{flat[unknown]!r} in {column} of {log.name_row(int(events[unknown]))}"
        todo = "take it out, or import the items with it"
        raise DataError(
            f"a rejected item of task {task.name!r} is unknown", got=got, expected="an id of the catalogue", todo=todo
        )
    codes = log.catalogue.codes(flat).astype(np.int64)
    own = np.flatnonzero(codes == log.item_codes[events])
    if len(own):
        got = f"{column} of {log.name_row(int(events[own[0]]))}"
        raise DataError(f"a rejected item of task {task.name!r} is the chosen one", got=got, expected="another item")
    return Pairs(np.cumsum(count) - count, count, codes)
