"""Events of users with items: the log.

Owns: the log as arrays in the contract's order, a data set folder in and out, a user's history. Ignores prompts and tensors.

    log = Interactions.read("data/ml-100k")
    log.history("196")[0]  ->  {"item_id": "655", "timestamp": 881250949, "rating": 3.0}

**Order:** (user_id, time to the microsecond, sha256(user_id, the byte 0x1f, item_id), row), where the data set names no other
order of equal times. See `genre.data.order`.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl

from genre import display
from genre.data.build import build, ranks_of, times_of
from genre.data.catalogue import Catalogue, hash_frame
from genre.data.dataset import DataKind, Dataset
from genre.data.describe import coverage, distribution, quantiles, span
from genre.data.folder import MARKER, read_info, read_parquet, write_folder
from genre.data.hazards import hazards
from genre.data.order import HASH, tie_rule, tied_events, undecided_events
from genre.data.schema import MAX_BAD, SUBSECOND, DatasetInfo, Report, event_columns, roles_of
from genre.data.splits import Split, SplitConfig, split
from genre.errors import DataError, InputError
from genre.tasks import Task

SHOWN_ROWS = 5
"""Rows that a notebook shows of a log or of texts."""

__all__ = ["MARKER", "DatasetInfo", "Interactions", "Split", "SplitConfig", "need_log", "split"]


class Interactions(Dataset):
    """A log: events in the contract's order, users contiguous. Immutable; make one with `read` or `from_frame`.

    Attributes:
        frame: user_id, item_id, timestamp (int64 seconds), subsecond_us (int32, only where times have
            fractions), row (int64), then feedback and other event columns.
        catalogue: Every item of the log is in it.
        users: One row per user of `user_ids`, in that order; None if there is no such table.
        info: The content of dataset.json.
        user_ids: The users, sorted.
        user_codes: int32[n], indices into `user_ids`, ascending.
        item_codes: int32[n], rows of the catalogue.
        user_offsets: int64[U + 1]; user u's events are those from `user_offsets[u]` to `user_offsets[u + 1]`.
    """

    kind: ClassVar[DataKind] = "log"
    unit: ClassVar[str] = "events"
    owner: ClassVar[str] = "users"
    catalogue: Catalogue

    def __init__(
        self,
        frame: pl.DataFrame,
        catalogue: Catalogue,
        users: pl.DataFrame | None,
        user_ids: list[str],
        user_codes: np.ndarray,
        item_codes: np.ndarray,
        info: DatasetInfo,
    ) -> None:
        self.frame = frame
        self.catalogue = catalogue
        self.users = users
        self.info = info
        self.user_ids = user_ids
        self.user_codes = user_codes
        self.item_codes = item_codes
        self.user_offsets = np.searchsorted(user_codes, np.arange(len(user_ids) + 1)).astype(np.int64)
        self.user_offsets[-1] = frame.height
        for array in (self.user_codes, self.item_codes, self.user_offsets):
            array.setflags(write=False)

    def __repr__(self) -> str:
        return f"Interactions({self._headline()})"

    def _repr_html_(self) -> str:
        first = self.frame.head(SHOWN_ROWS)
        rows = first.with_columns(
            pl.Series("item", [self.catalogue.titles()[code] for code in self.item_codes[:SHOWN_ROWS]])
        ).rows()
        return display.table(self._headline(), [*first.columns, "item"], rows, note=f"The first {first.height} events in order.")

    def _headline(self) -> str:
        return f"{self.info.name}: {len(self):,} events, {len(self.user_ids):,} users, {self.catalogue.size:,} items"

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        items: Any = None,
        users: Any = None,
        mapping: Mapping[str, str] | None = None,
        name: str = "log",
        *,
        info: DatasetInfo | None = None,
        time_unit: str = "s",
        max_bad: float = MAX_BAD,
        item_columns: list[str] | None = None,
        guess_numbers: bool = False,
        stored: bool = False,
        order: str | None = None,
        missing: Sequence[tuple[str, str]] = (),
        report: Report | None = None,
    ) -> "Interactions":
        """Check a polars or pandas frame of events and bring it into the contract's order.

        A row with an unusable id, timestamp, rating, click, behaviour or impression_id is counted in `info.skipped` and
        left out, its first case named in `info.examples`; so is an event that equals another in everything but its row.

        Args:
            frame: user_id, item_id, timestamp (seconds, dates or ISO texts), feedback and other columns. `row` is the
                position in the source file, numbered here when missing.
            items: item_id and any columns; without it, usual item columns of the log (a title, genres) are taken.
            users: user_id and any columns.
            mapping: Our column to theirs, for all three frames.
            name: The data set's name.
            info: The rest of dataset.json; wins over `name`.
            time_unit: Of numeric timestamps: s, ms, us or ns; or the form of strftime that all times have, such as `%d/%m/%Y`.
            max_bad: The share of bad rows above which the log is refused.
            item_columns: Columns of the log that describe items; None looks for usual names.
            guess_numbers: Take columns of texts that are all numbers for numbers, as tables from text files need.
            stored: The frames are those of a data set folder: times are seconds, ids are as they are.
            order: What orders equal times: `hash`, `file` (the row) or a column of numbers. With one of the latter two the log
                needs no timestamp. None takes `info.order`.
            missing: Columns with values that mean "not known", ("rating", "-1"): such cells are empty, and events without their
                feedback are left out, and are not bad rows.
            report: Rows that reading the source has left out already.

        Raises:
            DataError: If a column is missing, the log is empty, or too many rows are bad.
        """
        report, info = report or Report(), info or DatasetInfo(name=name)
        theirs = {theirs: ours for ours, theirs in (mapping or {}).items()}
        order = info.order if order is None else theirs.get(order, order)
        timed = info.timed and (order == HASH or "timestamp" in (mapping or {}) or "timestamp" in frame)
        built = build(
            frame,
            items,
            users,
            report,
            mapping=mapping or {},
            time_unit=time_unit,
            max_bad=max_bad,
            item_columns=item_columns,
            guess_numbers=guess_numbers,
            stored=stored,
            order=order,
            timed=timed,
            missing=[(theirs.get(column, column), value) for column, value in missing],
        )
        roles = roles_of(built.frame, built.catalogue.frame, built.users)
        kept = {table: columns for table, columns in info.roles.items() if table not in ("interactions", "items", "users")}
        info = info.model_copy(update={"order": order, "timed": timed})
        return cls(*built, info.after(report, roles | kept))

    @classmethod
    def read(cls, path: str | Path, *, max_bad: float = MAX_BAD) -> "Interactions":
        """Read a data set folder: interactions.parquet, items.parquet, and users.parquet and dataset.json if there.

        Raises:
            DataError: If a file is missing or damaged, or the log is not usable.
        """
        path = Path(path)
        if (path / "texts.parquet").is_file():
            expected, todo = "a folder with interactions.parquet", "name a log, or use a recipe for texts"
            raise DataError(f"{path} holds labelled texts, no log", got="texts.parquet", expected=expected, todo=todo)
        if not (path / "interactions.parquet").is_file():
            got = "no interactions.parquet" if path.is_dir() else "a file" if path.is_file() else "no such folder"
            todo = "make one with `genre data prepare` or `genre data import`"
            todo = f"make one of it with `genre data import {path} --out DIR`" if path.is_file() else todo
            raise DataError(f"{path} is not a data set folder", got=got, expected="a folder with interactions.parquet", todo=todo)
        events, items, users = (
            read_parquet(file) if (file := path / f"{name}.parquet").is_file() else None
            for name in ("interactions", "items", "users")
        )
        return cls.from_frame(events, items, users, info=read_info(path), max_bad=max_bad, stored=True)

    def write(self, path: str | Path, extra: Mapping[str, pl.DataFrame] | None = None) -> Path:
        """Write the data set folder: see `write_folder`.

        Args:
            path: The folder.
            extra: More tables to put beside the log, by name (such as a knowledge graph, "kg").
        """
        users = {} if self.users is None else {"users": self.users}
        tables = {"interactions": self.frame, "items": self.catalogue.frame, **users, **(extra or {})}
        return write_folder(path, tables, self.info)

    @cached_property
    def timestamps(self) -> np.ndarray:
        """Seconds since 1970, int64[n]."""
        return self.frame["timestamp"].to_numpy()

    @cached_property
    def times_us(self) -> np.ndarray:
        """Microseconds since 1970, int64[n]: what order, ties and splits by time go by."""
        return times_of(self.frame)

    @cached_property
    def ranks(self) -> np.ndarray | None:
        """Numbers that order equal times, (n,); None where hashes do."""
        return ranks_of(self.frame, self.info.order)

    @cached_property
    def undecided(self) -> np.ndarray:
        """Mask of the events, bool[n], that only a hash puts before or after others of their user."""
        known = (self.times_us,) if self.ranks is None else (self.times_us, self.ranks)
        return undecided_events(self.user_codes, self.impressions, *known)

    @property
    def tie_rule(self) -> str:
        """The order of equal times in words, for a protocol."""
        return tie_rule(self.info.order, timed=self.info.timed, whole_seconds=SUBSECOND not in self.frame.columns)

    @cached_property
    def rows(self) -> np.ndarray:
        """Positions in the source file, int64[n]."""
        return self.frame["row"].to_numpy()

    @property
    def own_columns(self) -> list[str]:
        """Feedback columns, then any others that belong to an event."""
        return event_columns(self.frame)

    event_columns = own_columns

    @cached_property
    def impressions(self) -> np.ndarray | None:
        """The impression of each event, int64[n]: equal numbers for one user's equal `impression_id`.

        None if the log has no such column.
        """
        if "impression_id" not in self.frame.columns:
            return None
        named = pl.DataFrame({"user": self.user_codes, "impression": self.frame["impression_id"]})
        return named.select(pl.struct("user", "impression").rank("dense").cast(pl.Int64) - 1).to_series().to_numpy()

    @cached_property
    def labels(self) -> Mapping[str, np.ndarray]:
        """The event columns by name, each made when it is asked for."""
        return _EventColumns(self)

    def labels_of(self, task: Task) -> np.ndarray:
        """Return a task's label of every event: float with NaN, or class codes with -1; for next-item tasks the item's code.

        Raises:
            DataError: A column is missing or does not fit the task.
        """
        if task.kind != "next_item":
            return super().labels_of(task)
        codes = self.item_codes.astype(np.int64)
        return codes if task.label is None else np.where(np.nan_to_num(task.labels(self.labels)) > 0, codes, -1)

    def split(self, config: SplitConfig) -> Split:
        """Return the parts of the log: see `genre.data.splits.split`."""
        return split(self, config)

    def limit(self, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
        """Return the newest `count` of some events."""
        ranks = self.rows if self.ranks is None else self.ranks
        return rows[np.lexsort((self.rows[rows], ranks[rows], self.times_us[rows]))[-count:]]

    def owners(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the user codes and the item codes of some events."""
        return self.user_codes[rows], self.item_codes[rows]

    def time_span(self, mask: np.ndarray) -> tuple[int, int] | None:
        """Return the first and the last second among the events of a mask; None for a log without times."""
        if not self.info.timed:
            return None
        times = self.timestamps[mask]
        return int(times.min()), int(times.max())

    def name_row(self, row: int) -> str:
        """Name an event by its row in the source file, its user and its item."""
        user, item = self.user_ids[self.user_codes[row]], self.catalogue.item_ids[self.item_codes[row]]
        return f"row {self.rows[row]} (user {user}, item {item})"

    @cached_property
    def _codes(self) -> dict[str, int]:
        return {user: code for code, user in enumerate(self.user_ids)}

    def user_code(self, user_id: str) -> int:
        """Return the user's code, 0 to U - 1.

        Raises:
            DataError: If the log has no event of this user.
        """
        if user_id not in self._codes:
            expected = f"one of the {len(self.user_ids):,} users of the log"  # no id: it may be somebody's name
            raise DataError("unknown user", got=repr(user_id), expected=expected, todo="give a known user_id, or a history")
        return self._codes[user_id]

    def history(self, user_id: str) -> list[dict[str, Any]]:
        """Return the user's events in order: item_id, timestamp and the event columns of each.

        Raises:
            DataError: If the log has no event of this user.
        """
        code = self.user_code(user_id)
        start, stop = self.user_offsets[code : code + 2].tolist()
        return self._told[start:stop].to_dicts()

    @cached_property
    def _told(self) -> pl.DataFrame:
        """The columns that a history tells, without a copy: choosing them anew takes polars longer than the rows do."""
        return self.frame.drop("user_id", "row", SUBSECOND, strict=False)

    def select(self, mask: np.ndarray) -> "Interactions":
        """Return the events where `mask` (bool[n]) holds: the same catalogue, only the users that keep an event.

        User codes are counted anew.

        Raises:
            DataError: If no event is left, or the mask has another length.
        """
        mask = np.asarray(mask)
        self.check_mask(mask)
        kept, codes = np.unique(self.user_codes[mask], return_inverse=True)
        return Interactions(
            self.frame.filter(pl.Series(mask)),
            self.catalogue,
            None if self.users is None else self.users[kept],
            [self.user_ids[code] for code in kept],
            codes.astype(np.int32),
            self.item_codes[mask],
            self.info,
        )

    @cached_property
    def digest(self) -> str:
        """sha256 of the content: events in order, items, users. dataset.json does not count."""
        parts = [hash_frame(self.frame), self.catalogue.digest, "" if self.users is None else hash_frame(self.users)]
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Return the log in figures, ready for JSON.

        `ties` is the share of events that share their time (without times: their rank) with another event of the same user;
        `density` is events / (users x items used); `sparsity` is 1 - density; text coverage is the share of items with a
        value, per column; `warnings` are those of `genre.data.hazards`.
        """
        events_per_user, events_per_item = np.diff(self.user_offsets), np.bincount(self.item_codes, minlength=self.catalogue.size)
        used = int((events_per_item > 0).sum())
        density = len(self) / (len(events_per_user) * used)
        items, users = self.catalogue.frame, self.users
        shown = self.frame.get_column("impression_id", default=None)
        tied = tied_events(self.user_codes, self.times_us)
        return {
            "name": self.info.name,
            "source": self.info.source,
            "licence": self.info.licence,
            "events": len(self),
            "users": len(events_per_user),
            "items": self.catalogue.size,
            "items_without_events": self.catalogue.size - used,
            "time_span": span(self.frame["timestamp"]) if self.info.timed else None,
            "order": self.tie_rule,
            "ties": round(float(tied.size if self.info.timed else self.undecided.sum()) / len(self), 6),
            "density": round(density, 6),
            "sparsity": round(1 - density, 6),
            "events_per_user": quantiles(events_per_user),
            "events_per_item": quantiles(events_per_item[events_per_item > 0]),
            "feedback": {name: distribution(self.frame[name]) for name in self.event_columns if name != "impression_id"},
            "impressions": None if shown is None else shown.n_unique(),
            "item_columns": {name: coverage(items[name]) for name in items.columns[1:]},
            "user_columns": {} if users is None else {name: coverage(users[name]) for name in users.columns[1:]},
            "skipped": self.info.skipped,
            "examples": list(self.info.examples),
            "notes": list(self.info.notes),
            "warnings": [each.to_json() for each in hazards(self)],
        }


class _EventColumns(Mapping[str, np.ndarray]):
    """A log's event columns by name, each made when it is asked for."""

    def __init__(self, log: Interactions) -> None:
        self.log = log

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.log.event_columns:
            raise KeyError(name)
        return self.log.column(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.log.event_columns)

    def __len__(self) -> int:
        return len(self.log.event_columns)


def need_log(data: Dataset) -> Interactions:
    """Return the data as a log.

    Raises:
        InputError: They are labelled texts.
    """
    if isinstance(data, Interactions):
        return data
    raise InputError("this needs a log", got="labelled texts", expected="a folder with interactions.parquet")
