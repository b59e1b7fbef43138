"""The columns of a log and the facts kept beside it.

Owns: the names and types of columns, `DatasetInfo` (dataset.json), the count of skipped rows. Ignores files and events.

    {"name": "ml-100k", "source": "recbole 1.2.1", "roles": {"interactions": {"rating": "feedback"}},
     "skipped": {"bad rating": 3, "duplicate events": 1}}
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from genre.data.user_key import UserKey
from genre.errors import DataError

REQUIRED = ("user_id", "item_id", "timestamp")
"""Columns without which a log is refused."""

SUBSECOND = "subsecond_us"
"""The microseconds of a timestamp within its second, 0 to 999,999: a column of logs whose times have fractions."""

KEYS = (*REQUIRED, SUBSECOND, "row")
"""Columns of a frame that no recipe reads, in this order; event columns follow. Only logs with fractions have `SUBSECOND`."""

FEEDBACK = {"rating": pl.Float64, "click": pl.Int8, "behaviour": pl.String}
"""Feedback columns with their types; a cell of theirs is checked and never empty."""

RATING_LIMIT = 1e6
"""A rating beyond this, in either direction, is taken for a mistake."""

LAST_SECOND = 253_402_300_799
"""The last second of the year 9999; a later timestamp is taken for a mistake (milliseconds, most often)."""

PLACE = "place in the source"
"""The column that holds the rows' numbers in the source, from a reader that left lines out."""

MAX_BAD = 0.05
"""The share of bad rows up to which they are counted, reported and left out; above it the log is refused."""

ALIASES = {
    "user_id": (
        *("userid", "user", "uid", "username", "visitor", "visitorid", "customer", "customerid", "client", "clientid", "account"),
        *("accountid", "reviewerid", "sessionid"),
    ),
    "item_id": (
        *("itemid", "item", "iid", "movieid", "product", "productid", "sku", "article", "articleid", "contentid", "trackid"),
        *("movie", "filmid", "film", "songid", "asin", "parentasin", "newsid", "bookid", "adid", "videoid"),
    ),
    "timestamp": (
        *("time", "ts", "date", "datetime", "when", "unixreviewtime", "unixtimestamp", "unixtime", "eventtime", "eventdate"),
        *("createdat", "created", "orderdate", "purchasedate", "reviewdate"),
    ),
}
"""Usual names of the required columns elsewhere, as plain letters: hints for a message, never taken silently."""


class DatasetInfo(BaseModel):
    """The content of dataset.json.

    Attributes:
        name: The data set's name.
        source: The file or package it came from.
        checksum: `sha256:…` of the source.
        licence: The terms of use, in a line or two.
        roles: For interactions, items and users: column to role (feedback, impression, event; text, number, dense).
        skipped: Rows left out or repaired, by reason.
        examples: The first cases of what was skipped, with their rows.
        notes: What was kept but looks odd, a line each.
        format: The format that an import read; empty if nothing was imported.
        mapping: Our column to theirs, as the import was told.
        times: The reading of the times, in words (`genre.data.reading.time_reading`).
        order: What orders equal times: `hash`, `file`, or a column of events.
        timed: False if the source has no times, and all are 0.
        users_key: The key of the folder that the data came from, which is never part of dataset.json; None if it has none.
    """

    model_config = ConfigDict(frozen=True, extra="allow", arbitrary_types_allowed=True)

    name: str = "log"
    source: str = ""
    checksum: str = ""
    licence: str = ""
    roles: dict[str, dict[str, str]] = Field(default_factory=dict)
    skipped: dict[str, int] = Field(default_factory=dict)
    examples: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    format: str = ""
    mapping: dict[str, str] = Field(default_factory=dict)
    times: str = ""
    order: str = "hash"
    timed: bool = True
    users_key: UserKey | None = Field(default=None, exclude=True, repr=False)

    def after(self, report: "Report", roles: dict[str, dict[str, str]]) -> "DatasetInfo":
        """Return the same with what a report counted, and with other roles."""
        counts = self.skipped | {reason: self.skipped.get(reason, 0) + count for reason, count in report.counts.items()}
        update = {"roles": roles, "skipped": counts, "examples": (*self.examples, *report.examples)}
        notes = dict.fromkeys((*self.notes, *report.notes))
        update |= {"notes": tuple(notes), "times": report.times or self.times, "mapping": report.mapping | self.mapping}
        return self.model_copy(update=update)


_NAMED = 10

SHOWN = 3
"""Bad rows of one reason that are shown, not only counted."""


@dataclass
class Report:
    """Counts of what was skipped or repaired, by reason, with the first cases of each.

    Attributes:
        counts: Cases, by reason.
        examples: The first case of each reason, with the rows of the next ones.
        notes: Lines about what was kept but looks odd.
        times: The reading of the times, in words; empty where it is known already.
        mapping: Our column to theirs, where a reader renames by itself.
        lost: Rows that reading left out; they count as bad rows.
        worst: The first of these, and what was expected.
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    times: str = ""
    mapping: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    worst: tuple[str, str] | None = None

    def add(self, reason: str, count: int, example: str = "", rows: Sequence[int] = (), *, shown: int = 1) -> None:
        """Count `count` more of `reason`; `rows` are the rows of all of them, the `shown` ones of the example first."""
        if count:
            self.counts[reason] = self.counts.get(reason, 0) + count
            if example:
                self.examples.append(f"{reason}: {example}{_others(rows, shown)}")

    def note(self, line: str) -> None:
        """Keep a note about something odd; an empty text is ignored."""
        if line:
            self.notes.append(line)

    def lose(self, reason: str, lines: Sequence[int], examples: Sequence[str], expected: str) -> None:
        """Count lines of the source that are not a row; `examples` are the first of them."""
        self.add(reason, len(lines), "; ".join(examples), lines, shown=len(examples))
        self.lost += len(lines)
        self.worst = self.worst or (examples[0], expected)

    def check(self, bad: int, rows: int, worst: tuple[str, str] | None, max_bad: float) -> None:
        """Refuse a source with too many bad rows, those counted that reading left out.

        Args:
            bad: Bad rows among those that were read.
            rows: Rows that were read.
            worst: The first bad one, and what was expected.
            max_bad: The share that may be bad.

        Raises:
            DataError: More are, or all; or that is not a share.
        """
        if not 0 <= max_bad <= 1:
            raise DataError("the share of rows that may be bad, --max-bad", got=max_bad, expected="0 to 1")
        bad, rows = bad + self.lost, rows + self.lost
        first = self.worst or worst
        if first is not None and (bad > max_bad * rows or bad == rows):
            todo = f"repair them, or allow more than {max_bad:.0%} bad rows with --max-bad"
            raise DataError(f"{bad:,} of {rows:,} rows are not usable", got=first[0], expected=first[1], todo=todo)


def _others(rows: Sequence[int], shown: int) -> str:
    if len(rows) <= shown:
        return ""
    more = f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
    return f"; then {', '.join(str(row) for row in rows[shown:_NAMED])}{more}"


def event_columns(frame: pl.DataFrame) -> list[str]:
    """Return the columns that belong to an event: feedback first, then the rest in the frame's order."""
    known = [name for name in FEEDBACK if name in frame.columns]
    return known + [name for name in frame.columns if name not in KEYS and name not in FEEDBACK]


def roles_of(frame: pl.DataFrame, items: pl.DataFrame, users: pl.DataFrame | None) -> dict[str, dict[str, str]]:
    """Return the role of every column that is not a key."""
    named = {"impression_id": "impression"} | dict.fromkeys(FEEDBACK, "feedback")
    roles = {
        "interactions": {name: named.get(name, "event") for name in event_columns(frame)},
        "items": {c: _feature_role(items[c].dtype) for c in items.columns if c != "item_id"},
    }
    if users is not None:
        roles["users"] = {c: _feature_role(users[c].dtype) for c in users.columns if c != "user_id"}
    return roles


def _feature_role(dtype: pl.DataType) -> str:
    if isinstance(dtype, pl.List | pl.Array):
        return "dense" if dtype.inner.is_numeric() else "text"
    return "number" if dtype.is_numeric() else "text"
