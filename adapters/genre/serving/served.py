"""The served log: what was shown to whom with which probability, and what came of it.

Owns: the file (SQLite), what is written together, repeats, age and size. Ignores: HTTP, policies; reading it as a data set is
`genre.data.importers.served`.

    log = ServedLog(Path("served.sqlite"))
    future = log.show([Impression(…)])                 # durable once the future is done
    log.reward([Reward(impression, "50", 1.0)])         # its result says for each whether it is new

One thread writes. Whatever waits is committed together, and a commit is on the disk before its futures are done, so what was
acknowledged outlives a kill and a power cut. A reward has the key (impression, item): sent again it is found, not counted twice.
"""

import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from genre.data.importers.served import SCHEMA
from genre.errors import DiskError, InputError
from genre.serving.locks import lock_beside, unusable

OPTION = "--served-log"
TOGETHER = 512
"""Writes that are committed together at most."""
CLEAN_S = 3600.0
DAY_S = 86_400.0
_TABLES = """
CREATE TABLE IF NOT EXISTS impressions (
    impression TEXT PRIMARY KEY, time REAL NOT NULL, adapter TEXT NOT NULL, digest TEXT NOT NULL, user TEXT, policy TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_time ON impressions (time);
CREATE TABLE IF NOT EXISTS shown (
    impression TEXT NOT NULL, position INTEGER NOT NULL, item TEXT NOT NULL, score REAL NOT NULL, propensity REAL NOT NULL,
    reward REAL, rewarded REAL, PRIMARY KEY (impression, item)
) WITHOUT ROWID;
"""

Outcome: TypeAlias = Literal["recorded", "repeated", "unknown", "not shown", "different"]


@dataclass(frozen=True)
class Impression:
    """A list that was shown.

    Attributes:
        impression: Its id, of this service's making.
        adapter, digest: The reference that was asked and the version that answered.
        user: The user's id, if the request named one.
        policy: How the list was chosen.
        items: Item ids, best first.
        scores, propensities: One per item.
    """

    impression: str
    adapter: str
    digest: str
    user: str | None
    policy: str
    items: Sequence[str]
    scores: Sequence[float]
    propensities: Sequence[float]


@dataclass(frozen=True)
class Reward:
    """The reward of one item of an impression, such as 1 for a click."""

    impression: str
    item: str
    reward: float


_Work: TypeAlias = "tuple[Sequence[Impression] | Sequence[Reward], Future[list[Outcome]]]"


class ServedLog:
    """The served log of one service.

    Args:
        path: Created if it does not exist.
        days: Impressions older than this are dropped, with their rewards; above 0, None keeps all.
        most_bytes: A larger file takes no more impressions (rewards it does), until old ones are dropped.

    Raises:
        InputError: It cannot be used: no such folder, no served log, or another service has it; or a bound is none.
    """

    def __init__(self, path: Path, *, days: float | None = 90.0, most_bytes: int = 2**31) -> None:
        if days is not None and not days > 0:  # true of NaN, which would drop nothing
            raise InputError("--served-days cannot be used", got=days, expected="days above 0, or 0 on the command line for all")
        if most_bytes < 1:
            raise InputError("--served-bytes cannot be used", got=most_bytes, expected="1 or more")
        self.path = path
        self.days = days
        self.most_bytes = most_bytes
        self._lock = lock_beside(path, OPTION)
        try:
            connection = _open(path)
        except BaseException:
            self._lock.release()
            raise
        self._closing = threading.Lock()
        self._closed = False
        self._queue: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, args=(connection,), name="genre-served-log", daemon=True)
        self._writer.start()

    def show(self, impressions: Sequence[Impression]) -> "Future[list[Outcome]]":
        """Write impressions; the future is done once they are on the disk.

        The future raises `DiskError` if they cannot be written, or if the file is full.
        """
        return self._put(impressions)

    def reward(self, rewards: Sequence[Reward]) -> "Future[list[Outcome]]":
        """Write rewards; the future is done once they are on the disk, and gives an outcome for each.

        `repeated`: the same was known; `different`: another reward was, which stays; `unknown`: there is no such impression (any
        more); `not shown`: the item was not in it. The future raises `DiskError` if they cannot be written.
        """
        return self._put(rewards)

    def close(self) -> None:
        """Write what waits, then release the file; what comes later is refused."""
        with self._closing:
            if not self._closed:
                self._queue.put(None)
            self._closed = True
        self._writer.join()
        self._lock.release()

    def _put(self, rows: Sequence[Impression] | Sequence[Reward]) -> "Future[list[Outcome]]":
        future: Future[list[Outcome]] = Future()
        with self._closing:
            if self._closed:
                future.set_exception(DiskError(f"the served log {self.path} is closed", expected="a service that runs"))
            else:
                self._queue.put((rows, future))
        return future

    def _write(self, connection: sqlite3.Connection) -> None:
        cleaned, more = -CLEAN_S, True
        while more:
            works = []
            while (work := self._queue.get()) is not None:
                works.append(work)
                if self._queue.empty() or len(works) >= TOGETHER:
                    break
            more = work is not None
            if self.days is not None and time.monotonic() - cleaned > CLEAN_S:
                cleaned = time.monotonic()
                _drop(connection, time.time() - self.days * DAY_S)
            self._commit(connection, works)
        connection.close()

    def _commit(self, connection: sqlite3.Connection, works: "list[_Work]") -> None:
        """Carry out some works in one transaction; if it fails, each in its own, so that only what fails is refused."""
        try:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                size = _size(connection)
                found = [[self._carry_out(connection, row, size) for row in rows] for rows, _ in works]
        except (sqlite3.Error, DiskError, ValueError, TypeError, OverflowError) as error:  # the thread outlives any row
            if len(works) > 1:
                for work in works:
                    self._commit(connection, [work])
            elif works:
                works[0][1].set_exception(error if isinstance(error, DiskError) else _not_written(self.path, error))
            return
        for (_, future), outcomes in zip(works, found, strict=True):
            future.set_result(outcomes)

    def _carry_out(self, connection: sqlite3.Connection, row: Impression | Reward, size: int) -> Outcome:
        if isinstance(row, Reward):
            return _reward(connection, row)
        if size > self.most_bytes:
            got, expected = f"{size:,} bytes", f"at most {self.most_bytes:,}"
            todo = "import it and move it away, or keep fewer days"
            raise DiskError(f"the served log {self.path} is full", got=got, expected=expected, todo=todo)
        _show(connection, row)
        return "recorded"


def _size(connection: sqlite3.Connection) -> int:
    """Bytes in use."""
    pages, free, each = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * each


def _show(connection: sqlite3.Connection, row: Impression) -> None:
    values = row.impression, time.time(), row.adapter, row.digest, row.user, row.policy
    connection.execute("INSERT INTO impressions VALUES (?, ?, ?, ?, ?, ?)", values)
    shown = zip(row.items, row.scores, row.propensities, strict=True)
    connection.executemany(
        "INSERT INTO shown VALUES (?, ?, ?, ?, ?, NULL, NULL)",
        [(row.impression, place, item, float(score), float(p)) for place, (item, score, p) in enumerate(shown, 1)],
    )


def _reward(connection: sqlite3.Connection, row: Reward) -> Outcome:
    key = row.impression, row.item
    known = connection.execute("SELECT reward FROM shown WHERE impression = ? AND item = ?", key).fetchone()
    if known is None:
        there = connection.execute("SELECT 1 FROM impressions WHERE impression = ?", key[:1]).fetchone()
        return "unknown" if there is None else "not shown"
    if known[0] is not None:
        return "repeated" if known[0] == row.reward else "different"
    update = "UPDATE shown SET reward = ?, rewarded = ? WHERE impression = ? AND item = ?"
    connection.execute(update, (row.reward, time.time(), *key))
    return "recorded"


def _drop(connection: sqlite3.Connection, before: float) -> None:
    """Drop the impressions from before a time; what cannot be dropped now is in an hour."""
    with contextlib.suppress(sqlite3.Error), connection:
        connection.execute("BEGIN IMMEDIATE")
        old = "SELECT impression FROM impressions WHERE time < ?"
        connection.execute(f"DELETE FROM shown WHERE impression IN ({old})", (before,))
        connection.execute("DELETE FROM impressions WHERE time < ?", (before,))


def _open(path: Path) -> sqlite3.Connection:
    """A connection, for the thread that writes, to a served log, made if there is none.

    Raises:
        InputError: It is none, or cannot be opened.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if version != SCHEMA and (version or tables):
            raise unusable(OPTION, path, "a served log of this version, or a new file")
        connection.executescript(_TABLES)
        connection.execute(f"PRAGMA user_version={SCHEMA}")
    except sqlite3.Error as error:
        raise unusable(OPTION, path, "a served log, or a new file in a folder that can be written", str(error)) from None
    return connection


def _not_written(path: Path, error: Exception) -> DiskError:
    expected = "room on a disk that can be written" if isinstance(error, sqlite3.Error) else "values that SQLite can hold"
    return DiskError(f"the served log {path} cannot be written", got=str(error), expected=expected)
