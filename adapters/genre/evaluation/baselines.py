"""Baselines without training.

Owns: item mean, running user share (of all events, of those in a prompt), additive and bias-only for feedback tasks; popularity
and the item-to-item models (`ease`, `item_models`) for next-item tasks; every baseline's name, and the choice among them. Ignores
metrics, and models that take torch (`genre.training.self_attentive`).

A baseline knows what an adapter knows: training events, and the target's history (`Histories`), so it moves along with
the user through the test period, and never sees the label of the target, of a later event or of a sibling.

    scores = feedback_baselines(log, split, label, found, binary=True)
    evaluate_feedback(["auc"], found, scores["additive"])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from genre.data.interactions import Interactions
from genre.data.sequences.windows import WindowRule, evaluation_windows
from genre.data.splits import TRAIN, Split
from genre.errors import DataError, InputError
from genre.evaluation.ease import EaseScorer, ease
from genre.evaluation.history import Histories
from genre.evaluation.item_models import EaseText, FadedModel, item_neighbours, text_neighbours, transitions
from genre.evaluation.labels import smoothing
from genre.evaluation.metrics.checks import Floats, Integers
from genre.evaluation.ranking import Block, Seen, block_rows, block_size
from genre.evaluation.targets import Targets

SMOOTHING = 5.0
"""Every mean counts the overall mean as five events.

The best such constant is the variance within items (or users) over the variance between them. A like has at most .25
within, and shares that differ by a standard deviation of about .2 have .04 between: 6. A rating of five stars has about
1 within and .25 between: 4. Five is between the two; from 2 to 10, no figure on ML-100K moves by .01. Shares of a rare label
are smoothed more (`genre.evaluation.labels.smoothing`)."""
FAST = (
    *("item_mean", "running_user_share", "prompt_share", "additive", "bias_only"),
    *("popularity", "transitions", "item_neighbours", "text_neighbours"),
    *("majority", "mean"),
)
"""Baselines that are counts, means and products, of log and texts."""
SLOW = ("ease", "ease_text", "tfidf_linear")
"""Baselines that are fitted for a while."""
TRAINED = ("self_attentive",)
"""Baselines that train for minutes, so that they are evaluated only where they are named."""
_GROUPS = {"none": (), "fast": FAST, "all": (*FAST, *SLOW)}
BIAS_ROUNDS = 10
_EDGE = 1e-6
_HISTORIES = 1024

Blocks: TypeAlias = Callable[[], Iterator[Block]]


def chosen_baselines(which: str) -> frozenset[str]:
    """Return the names that a choice of baselines stands for.

    Args:
        which: `none`, `fast` (counts and means), `all` (but those that train for minutes) or names, several with commas:
            `all,self_attentive`.

    Raises:
        InputError: There is no baseline of a name.
    """
    words = [word.strip() for word in which.split(",")]
    names = {name for word in words for name in _GROUPS.get(word, (word,))}
    if unknown := sorted(names - {*FAST, *SLOW, *TRAINED}):
        expected = f"none, fast, all or names with commas: {', '.join((*FAST, *SLOW, *TRAINED))}"
        raise InputError("no such baseline", got=", ".join(unknown) or repr(which), expected=expected)
    return frozenset(names)


def feedback_baselines(
    log: Interactions,
    split: Split,
    label: npt.NDArray[np.float64],
    targets: Targets,
    binary: bool,
    *,
    window: int | None = None,
    rule: WindowRule = "sliding",
) -> dict[str, Floats]:
    """Return a score per target of each baseline for a feedback task.

    Args:
        log: The log.
        split: A split of this log.
        label: float64[n], one per event of `log.frame`, NaN where unknown.
        targets: Events to score, of the validation or test part; an item's mean holds every training label.
        binary: Whether labels are 0 and 1, so that scores are probabilities.
        window: Events of a user that a model reads at once; None if unknown.
        rule: Its rule for longer histories.

    Returns:
        float64 scores by name: `item_mean`, `running_user_share` (of values: their running mean), with a window `prompt_share`,
        `additive`, and for values `bias_only`.

    Raises:
        DataError: No training event has a label.
    """
    known = (np.asarray(split.part) == TRAIN) & ~np.isnan(label)
    if not known.any():
        raise DataError("no training event has a label", got="NaN only", expected="labels in the training part")
    overall = float(label[known].mean())
    histories = Histories(log, split)
    prior = smoothing(overall) if binary else SMOOTHING
    item = item_mean(log, label, known, prior)[targets.item]
    user = running_mean(histories, label, targets.event, overall, prior)
    scores = {"item_mean": item, "running_user_share": user}
    if window:
        scores["prompt_share"] = prompt_share(log, histories, split, label, targets, window, overall, prior, rule)
    if binary:
        return scores | {"additive": _sigmoid(_logit(item) + _logit(user) - _logit(np.array(overall)))}
    return scores | {
        "additive": item + user - overall,
        "bias_only": bias_only(log, histories, label, known, targets),
    }


def item_mean(log: Interactions, label: Floats, known: npt.NDArray[np.bool_], prior: float = SMOOTHING) -> Floats:
    """Return float64[N]: (Σ y + k μ) / (n + k) over an item's training labels, k the prior; μ, the overall mean, without any."""
    sums, counts = _item_sums(log, label, known)
    return (sums + prior * label[known].mean()) / (counts + prior)


def running_mean(histories: Histories, label: Floats, events: Integers, overall: float, prior: float = SMOOTHING) -> Floats:
    """Return float64[m]: (Σ y + k μ) / (n + k) over the labels of an event's history, k the prior; μ without any."""
    sums, counts = histories.sums(label, events)
    return (sums + prior * overall) / (counts + prior)


def prompt_share(
    log: Interactions,
    histories: Histories,
    split: Split,
    label: Floats,
    targets: Targets,
    window: int,
    overall: float,
    prior: float = SMOOTHING,
    rule: WindowRule = "sliding",
) -> Floats:
    """Return float64[m]: (Σ y + k μ) / (n + k) over the labels of the events that one row of a model shows before a target.

    It is the rule that a prompt alone suffices for: how much of what it lists was liked. `window` is the most events of a row,
    laid out as for an adapter by its rule (`genre.data.sequences.windows`); the other arguments are as of `running_mean`.
    """
    sums, counts = np.zeros(len(log)), np.zeros(len(log))
    known = ~np.isnan(label)
    values = np.where(known, label, 0.0)
    for part in np.unique(np.asarray(split.part)[targets.event]):
        for row in evaluation_windows(log, split, int(part), max_events=window, rule=rule):
            if len(row.branches):
                sums[row.branches], counts[row.branches] = values[row.events].sum(), known[row.events].sum()
                continue
            wanted = np.flatnonzero(row.targets)
            group = histories.group[row.events]
            before = (wanted[:, None] > np.arange(len(group))) & (group[wanted][:, None] != group)
            sums[row.events[wanted]] = before @ values[row.events]
            counts[row.events[wanted]] = before @ known[row.events].astype(np.float64)
    share: Floats = (sums + prior * overall) / (counts + prior)
    return share[targets.event]


def bias_only(log: Interactions, histories: Histories, label: Floats, known: npt.NDArray[np.bool_], targets: Targets) -> Floats:
    """Return μ + b_i + b_u, damped means fitted in turn on the training labels (Koren, Bell, Volinsky 2009, eq. 4).

    b_i = Σ (y - μ - b_u) / (n_i + 5) and b_u likewise, ten rounds. Then b_i is fixed, and a target's b_u is taken from
    its history: Σ (y - μ - b_i) / (n + 5).
    """
    overall = label[known].mean()
    users, items = log.user_codes[known], log.item_codes[known]
    sizes = np.bincount(users, minlength=len(log.user_ids)) + SMOOTHING
    item, user = np.zeros(log.catalogue.size), np.zeros(len(log.user_ids))
    for _ in range(BIAS_ROUNDS):
        rest = np.where(known, label - overall - user[log.user_codes], np.nan)
        sums, counts = _item_sums(log, rest, known)
        item = sums / (counts + SMOOTHING)
        user = np.bincount(users, weights=label[known] - overall - item[items], minlength=len(user)) / sizes
    sums, counts = histories.sums(label - overall - item[log.item_codes], targets.event)
    return overall + item[targets.item] + sums / (counts + SMOOTHING)


def ranking_baselines(
    log: Interactions,
    split: Split,
    targets: Targets,
    *,
    seen: Seen = "masked",
    texts: Callable[[], Floats] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Blocks]:
    """Return, by name, a function that yields the blocks of a next-item baseline for `rank_in_blocks`.

    `popularity` scores an item by its number of training events; for the others see `genre.evaluation.item_models` and
    `genre.evaluation.ease`. Each is fitted, and its settings are chosen on validation, when its blocks are first asked for.

    Args:
        log: The log.
        split: A split of this log.
        targets: What is ranked.
        seen: How the settings' validation targets are ranked.
        texts: Gives (N, r) text vectors of length one; without them there are no neighbours by text.
        report: Called if the catalogue is larger than EASE can hold.
    """

    @cache
    def of_ease() -> EaseScorer:
        model = ease(log, split, seen=seen)
        if model.left_out:
            known = f"the {len(model.items):,} items with the most training events"
            report(f"ease knows {known}, to bound its memory; the other {model.left_out:,} score 0")
        return model

    @cache
    def of_text() -> FadedModel:
        assert texts is not None
        return text_neighbours(log, split, texts(), seen=seen)

    models: dict[str, Callable[[], EaseScorer | FadedModel | EaseText]] = {
        "transitions": cache(lambda: transitions(log, split)),
        "item_neighbours": cache(lambda: item_neighbours(log, split, seen=seen)),
        "ease": of_ease,
    }
    if texts is not None:
        models |= {"text_neighbours": of_text, "ease_text": cache(lambda: EaseText(of_ease(), of_text(), seen=seen))}
    named: dict[str, Blocks] = {"popularity": lambda: popularity_blocks(log, split, targets)}
    return named | {name: partial(_blocks, model, targets) for name, model in models.items()}


def _blocks(model: Callable[[], EaseScorer | FadedModel | EaseText], targets: Targets) -> Iterator[Block]:
    return model().blocks(targets)


def popularity_blocks(log: Interactions, split: Split, targets: Targets) -> Iterator[Block]:
    """Yield the same scores, each item's number of training events, for every target."""
    counts = np.bincount(log.item_codes[np.asarray(split.part) == TRAIN], minlength=log.catalogue.size)
    row = counts.astype(np.float32)
    for rows in block_rows(len(targets), block_size(len(row))):
        yield rows, np.broadcast_to(row, (rows.stop - rows.start, len(row)))


def popularity_ranks(log: Interactions, split: Split, targets: Targets, *, seen: Seen = "masked") -> tuple[Integers, Floats]:
    """Return int64[N] training events of each item, and float64[n] what `rank_in_blocks` makes of them, without a score block."""
    counts = np.bincount(log.item_codes[np.asarray(split.part) == TRAIN], minlength=log.catalogue.size)
    own, ordered = counts[targets.item], np.sort(counts)
    low, high = np.searchsorted(ordered, own, "left"), np.searchsorted(ordered, own, "right")
    better, equal = len(counts) - high, high - low - 1
    if seen == "masked":
        histories = Histories(log, split)
        for rows in block_rows(len(targets), _HISTORIES):
            pair_rows, events = histories.pairs(targets.event[rows])
            row, item = np.unique(np.stack([pair_rows, log.item_codes[events]]), axis=1)
            other = item != targets.item[rows][row]
            row, passed = row[other], counts[item[other]]
            size = rows.stop - rows.start
            better[rows] -= np.bincount(row[passed > own[rows][row]], minlength=size)
            equal[rows] -= np.bincount(row[passed == own[rows][row]], minlength=size)
    return counts, 1 + better + equal / 2


def _item_sums(log: Interactions, label: Floats, known: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    items = log.item_codes[known]
    sums: Floats = np.bincount(items, weights=label[known], minlength=log.catalogue.size).astype(np.float64)
    return sums, np.bincount(items, minlength=log.catalogue.size).astype(np.float64)


def _logit(share: Floats) -> Floats:
    inside = np.clip(share, _EDGE, 1 - _EDGE)
    return np.log(inside) - np.log1p(-inside)


def _sigmoid(value: Floats) -> Floats:
    return 1 / (1 + np.exp(-value))
