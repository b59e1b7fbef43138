"""Properties of a log, or of labelled texts, that spoil an evaluation, for `genre data describe`.

Owns: the warnings and their thresholds. Ignores their display, and faults of single rows (`genre.data.build`).

    hazards(log)   ->  [Hazard("ties", 0.7594, "75.9% of events … in hash order", "the order … is not known", "--order COLUMN …")]
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import polars as pl

from genre.data.order import HASH
from genre.data.schema import FEEDBACK, DatasetInfo
from genre.data.splits import Events
from genre.data.suspects import Twins, bursts, twins

TIES = 0.01
"""Share of events, or of users' last events, from which ties are worth a warning."""

SORTED = 0.6
"""Share of neighbours within equal times whose ids ascend (or descend) from which the file looks sorted; chance gives half."""

PAIRS = 30
"""Fewest such neighbours that say anything; of few ones the share must also be three standard errors from half."""

REPEATS = 0.05
"""Share of users whose last item they had before."""

HEAVY = 0.1
"""Share of the events that one user has, if that is also `TIMES_MEDIAN` times what the median user has."""
TIMES_MEDIAN = 10

COPIES = 0.01
"""Share of texts that another group has too."""


class Log(Events, Protocol):
    """What a log has beside the arrays of `Events`."""

    frame: pl.DataFrame
    info: DatasetInfo

    @property
    def undecided(self) -> np.ndarray:
        """Mask of the events that only a hash puts in order, bool[n]."""

    @property
    def tie_rule(self) -> str:
        """The order of equal times in words."""


@dataclass(frozen=True)
class Hazard:
    """A property that spoils an evaluation.

    Attributes:
        kind: ties, sorted_ties, repeats, heavy_user, twins, bursts, constant_feedback; of texts copies, constant_label.
        value: The share or the number that the line is about.
        found: The number, in words.
        why: What it does to an evaluation.
        todo: What helps.
    """

    kind: str
    value: float
    found: str
    why: str
    todo: str

    def to_json(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


def hazards(log: Log) -> list[Hazard]:
    """Return what spoils an evaluation on a log, the gravest first; none for most logs."""
    copies = twins(log)
    found = [_ties(log), _sorted_ties(log), _repeats(log), _heavy_user(log), _twins(log, copies), _bursts(log, copies)]
    return [each for each in (*found, *_constant(log)) if each is not None]


def _last(log: Log) -> np.ndarray:
    """The last event of every user, int64[U]."""
    return log.user_offsets[1:] - 1


def _ties(log: Log) -> Hazard | None:
    tied = log.undecided
    events, last = float(tied.mean()), float(tied[_last(log)].mean())
    if max(events, last) < TIES:
        return None
    found = f"{events:.1%} of events, and the last one of {last:.1%} of users, stand in hash order among others of the same time"
    looks = _sorted_share(log)
    if looks is not None:
        found += f" (the file has {_direction(looks)})"
    why = "which came last is not known, so a next item there is drawn by lot"
    todo = "name what orders them with --order COLUMN" + ("" if looks is not None else " (file, if it has the true order)")
    return Hazard("ties", round(events, 6), found, why, f"{todo}, and read the figures without ties that `genre evaluate` adds")


def _sorted_ties(log: Log) -> Hazard | None:
    """Equal times in the order of the file, or of a column, that look sorted by item."""
    if log.info.order == HASH or not log.info.timed:
        return None
    share = _sorted_share(log, ordered=True)
    if share is None:
        return None
    found = f"of events with equal times, the order that was named ({log.info.order}) has {_direction(share)}"
    why = "that is the order of a table, not of what users did, and it gives the next item away"
    return Hazard("sorted_ties", round(max(share, 1 - share), 6), found, why, "import again with --order hash, or another column")


def _direction(share: float) -> str:
    return f"{max(share, 1 - share):.0%} of them in {'ascending' if share > 0.5 else 'descending'} order of item_id"


def _sorted_share(log: Log, *, ordered: bool = False) -> float | None:
    """Return the share of ascending ids among neighbours of one user and time; None if it is near a half.

    Args:
        log: The log.
        ordered: Neighbours in the log's own order, not in that of the source.
    """
    order = np.arange(len(log.rows)) if ordered else np.lexsort((log.rows, log.times_us, log.user_codes))
    users, times, items = log.user_codes[order], log.times_us[order], log.item_codes[order]
    near = (users[1:] == users[:-1]) & (times[1:] == times[:-1]) & (items[1:] != items[:-1])
    if (shown := log.impressions) is not None:
        near &= np.diff(shown[order]) != 0
    pairs = int(near.sum())
    if pairs < PAIRS:
        return None
    shares = [float((ranks[items[1:]] > ranks[items[:-1]])[near].mean()) for ranks in _id_ranks(log)]
    share = max(shares, key=lambda each: abs(each - 0.5))
    far = max(SORTED - 0.5, 3 * 0.5 / np.sqrt(pairs))
    return share if abs(share - 0.5) >= far else None


def _id_ranks(log: Log) -> list[np.ndarray]:
    """The place of each item in the order of ids as texts and, if all are whole numbers, as numbers."""
    ids = pl.Series(log.catalogue.item_ids)
    keys = [ids]
    if (numbers := ids.cast(pl.Int64, strict=False)).null_count() == 0:
        keys.append(numbers)
    return [key.rank("ordinal").to_numpy() for key in keys]


def repeated_share(log: Log) -> float:
    """Return the share of users, of those with several events, whose last item is one they had before, siblings aside."""
    last = _last(log)
    last = last[np.diff(log.user_offsets) > 1]
    if not len(last):
        return 0.0
    user, item = log.user_codes, log.item_codes
    final = np.full(len(log.user_offsets) - 1, -1, dtype=np.int64)
    final[user[last]] = item[last]
    earlier = item == final[user]
    earlier[_last(log)] = False
    if (shown := log.impressions) is not None:
        earlier &= shown != shown[_last(log)][user]
    return float(np.isin(user[last], user[earlier]).mean())


def _repeats(log: Log) -> Hazard | None:
    """Last events whose item their user had before, siblings of one impression aside."""
    share = repeated_share(log)
    if share < REPEATS:
        return None
    found = f"the last item of {share:.1%} of users is one that they had before"
    why = "with `seen: masked` the ranking leaves out seen items other than this one, which makes it easy"
    todo = "use `seen: kept`, or leave repeated events out, and compare with a list of the user's own items"
    return Hazard("repeats", round(share, 6), found, why, todo)


def _heavy_user(log: Log) -> Hazard | None:
    counts = np.diff(log.user_offsets)
    share, median = counts.max() / len(log.user_codes), float(np.median(counts))
    if share < HEAVY or counts.max() < TIMES_MEDIAN * median:
        return None
    user = log.user_ids[int(counts.argmax())]
    found = f"user {user} has {counts.max():,} events, {share:.1%} of all (the median user has {median:,.0f})"
    why = "a bot, a test account or a default id; it decides popularity and means over events"
    return Hazard("heavy_user", round(float(share), 6), found, why, "leave the user out, or import again with the true ids")


def _twins(log: Log, groups: list[Twins]) -> Hazard | None:
    if not groups:
        return None
    total, first = sum(len(group.users) for group in groups), groups[0]
    named = ", ".join(log.user_ids[code] for code in first.users[:3])
    same = f"the {len(first.users):,} like {named} have the same {first.events:,} events"
    found = f"{total:,} users share their history with others: {same}"
    why = "fake profiles and copied logs look like that, and one user's test item stands in another's training events"
    return Hazard("twins", float(total), found + _began(log, first.users), why, "look at them, and leave all but one out")


def _bursts(log: Log, copies: list[Twins]) -> Hazard | None:
    known = [code for group in copies for code in group.users]
    groups = [group for group in bursts(log) if not np.isin(group.users, known).all()]  # those are told of already
    if not groups:
        return None
    users = np.unique(np.concatenate([group.users for group in groups]))
    more = f", and {len(groups) - 1:,} more" if len(groups) > 1 else ""
    named = ", ".join(log.user_ids[code] for code in groups[0].users[:3])
    found = f"{len(users):,} new users push items: {groups[0]} (such as {named}){more}"
    why = "fake profiles look like that, and a model that is trained on them recommends the item"
    todo = "look at these users; a campaign looks like that too, but fakes should be left out"
    return Hazard("bursts", float(len(users)), found, why, todo)


def _began(log: Log, users: np.ndarray) -> str:
    """The span of the users' first events, in words; nothing where there are no times."""
    if not log.info.timed:
        return ""
    first = log.times_us[log.user_offsets[users]]
    hours = (int(first.max()) - int(first.min())) / 3.6e9
    day = datetime.fromtimestamp(int(first.min()) / 1e6, UTC).date()
    if hours < 1:
        return f", begun within {60 * hours:.0f} minutes on {day}"
    return f", begun within {f'{hours:,.1f} hours' if hours < 48 else f'{hours / 24:,.0f} days'} from {day}"


def _constant(log: Log) -> list[Hazard]:
    why = "nothing can be learnt from it, it costs a token per event, and AUC has no value"
    todo = "find the events with other values, or train with `sequence.feedback: none`"
    return [
        Hazard("constant_feedback", 1.0, found, why, todo)
        for name in FEEDBACK
        if name in log.frame.columns and (found := _one_value(log.frame[name], "events"))
    ]


def _one_value(series: pl.Series, unit: str) -> str:
    """A line if all of at least two values are equal."""
    filled = series.drop_nulls()
    if len(filled) < 2 or filled.n_unique() > 1:
        return ""
    value = f"{filled[0]:g}" if filled.dtype.is_numeric() else str(filled[0])
    return f"{series.name} is {value} in all {len(filled):,} {unit}"


def text_hazards(groups: pl.Series, texts: pl.Series, labels: pl.DataFrame) -> list[Hazard]:
    """Return what spoils an evaluation on labelled texts: texts that several groups have, labels with one value.

    Args:
        groups: The group of each text.
        texts: Each text, all its columns in one.
        labels: Its labels.
    """
    why, todo = "nothing can be learnt, and AUC has no value", "find the texts with other values"
    constant = [_one_value(label, "texts") for label in labels]
    found = [Hazard("constant_label", 1.0, line, why, todo) for line in constant if line]
    table = pl.DataFrame({"group": groups, "text": texts}).filter(pl.col("text").str.contains(r"\S"))
    several = table.filter(pl.col("group").n_unique().over("text") > 1).height
    share = several / max(table.height, 1)
    if share >= COPIES:
        line = f"{several:,} texts ({share:.1%}) are word for word in several groups"
        todo = "leave copies out, or give them one group with --map group_id=THEIRS"
        found.append(Hazard("copies", round(share, 6), line, "a split may have them on both sides", todo))
    return found
