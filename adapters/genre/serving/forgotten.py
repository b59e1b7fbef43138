"""Forgetting users in a served log: what was shown to them goes, and the bytes go with it.

Owns: deleting and making the file anew. Ignores: how the log is written (`genre.serving.served`).

    forget_served(Path("served.sqlite"), ["196"])      # 12 lists
"""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from genre.data.importers.served import SCHEMA
from genre.errors import DiskError
from genre.serving.locks import lock_beside, unusable
from genre.serving.served import OPTION


def forget_served(path: Path, users: Sequence[str], *, dry: bool = False) -> int:
    """Delete what was shown to some users, rewards included, and return how many lists that were; with `dry` count them only.

    SQLite keeps deleted rows in free pages and in its write-ahead log: the file is made anew, and that log is emptied.

    Raises:
        InputError: It is no served log, or a service has it.
        DiskError: The disk is full or not writable; nothing is deleted then, or it is and the file is not made anew yet.
    """
    if not path.is_file():
        raise unusable(OPTION, path, "the file of genre serve --served-log")
    lock = lock_beside(path, OPTION)
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            if connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA:
                raise unusable(OPTION, path, "a served log of this version")
            return _count(connection, users) if dry else _forget(connection, users)
    except sqlite3.OperationalError as error:
        raise DiskError(f"the served log {path} cannot be written", got=str(error), expected="a disk with room") from None
    except sqlite3.DatabaseError as error:
        raise unusable(OPTION, path, "a served log", str(error)) from None
    finally:
        lock.release()


def _count(connection: sqlite3.Connection, users: Sequence[str]) -> int:
    theirs = "SELECT count(*) FROM impressions WHERE user = ?"
    return sum(connection.execute(theirs, (user,)).fetchone()[0] for user in users)


def _forget(connection: sqlite3.Connection, users: Sequence[str]) -> int:
    connection.execute("PRAGMA secure_delete=ON")
    found = 0
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        for user in users:
            theirs = "SELECT impression FROM impressions WHERE user = ?"
            connection.execute(f"DELETE FROM shown WHERE impression IN ({theirs})", (user,))
            found += connection.execute("DELETE FROM impressions WHERE user = ?", (user,)).rowcount
    connection.execute("VACUUM")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return found
