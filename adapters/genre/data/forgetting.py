"""Forgetting users: their events leave a log, and everything of a data set folder that was about them.

Owns: which rows, items and words go, and that the folder changes as a whole or not at all. Ignores: versions that were trained on
them (`genre.jobs.forget`), logs of a service.

    rest = without_users(log, ["196"])              # as if the user had never been
    forget_users(Path("data/shop"), ["196"])        # the same, in the folder

What is left does not depend on the events that went: rows are numbered anew, and items that only they had and of which nothing
else is known go too.
"""

import glob
import gzip
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from filelock import FileLock

from genre.data.folder import MARKER, read_parquet
from genre.data.interactions import Interactions
from genre.data.schema import SUBSECOND, DatasetInfo
from genre.data.user_key import FILE as KEY
from genre.data.user_key import UserKey, read_key
from genre.errors import DataError, InputError
from genre.files import appearing_folder

NOTE = "events of users who asked for it were removed (genre data forget)"
TABLES = ("interactions", "items", "users")


@dataclass(frozen=True)
class Forgotten:
    """What went.

    Attributes:
        users: Users who were in the log.
        events: Their events.
        items: Items that went, since nobody else had them and nothing else is known of them.
        kept_items: Items that only they had and that stay, since a table of items describes them.
        left: Folders of interrupted imports beside the data set, which may hold their events still.
    """

    users: int
    events: int
    items: int
    kept_items: int
    left: tuple[str, ...] = ()


def without_users(log: Interactions, users: Iterable[str], *, drop_items: bool = False) -> Interactions:
    """Return a log as if some users, of whom some may be unknown, had never been in it.

    Args:
        log: The log.
        users: Their ids.
        drop_items: Leave out items that only they had, described or not; by default only those of which nothing is known.

    Raises:
        DataError: Nobody is left.
    """
    gone = np.isin(log.user_ids, list(users))
    if gone.all():
        raise DataError("nobody is left in the log", got="all of its users", expected="some that stay")
    kept = ~gone[log.user_codes]
    only = _only_theirs(log, gone)
    dropped = only if drop_items else only & ~_described(log)
    frame = log.frame.filter(pl.Series(kept))
    order = frame["row"].rank("dense").cast(pl.Int64) - 1
    frame = frame.with_columns(order.alias("row"))
    if SUBSECOND in frame.columns and not frame[SUBSECOND].fill_null(0).to_numpy().any():
        frame = frame.drop(SUBSECOND)
    theirs = None if log.users is None else log.users.filter(pl.Series(~gone))
    items = log.catalogue.frame.filter(pl.Series(~dropped))
    return Interactions.from_frame(frame, items, theirs, info=_cleaned(log.info), stored=True)


def forget_users(folder: Path, users: Sequence[str], *, drop_items: bool = False) -> Forgotten:
    """Take users out of a data set folder, and remember in its key that they were forgotten.

    The folder is made anew beside the old one and takes its place at the end: whoever reads it sees all of it or nothing.

    Raises:
        DataError: A user is not in the log and was not forgotten before; or nobody else is in it.
        InputError: A file of the folder that is no table of GENRE's names one of them.
        DiskError: The disk is full or not writable; the folder is as it was.
    """
    folder = folder.resolve()  # of a link, what it leads to
    with FileLock(folder.parent / f".{folder.name}.forget.lock"):  # of two at once the later one must not bring users back
        return _forget(folder, users, drop_items)


def foresee_forgetting(folder: Path, users: Sequence[str], *, drop_items: bool = False) -> Forgotten:
    """What `forget_users` would take out; arguments and errors as of that."""
    return _count(folder, *_read(folder, users, drop_items), users)


def _read(folder: Path, users: Sequence[str], drop_items: bool) -> tuple[Interactions, Interactions]:
    """The log of a folder, and what is left of it without some users; errors as of `forget_users`."""
    log = Interactions.read(folder)
    check_known(log, users)
    check_foreign(folder, log, users)
    return log, without_users(log, users, drop_items=drop_items)


def _forget(folder: Path, users: Sequence[str], drop_items: bool) -> Forgotten:
    log, rest = _read(folder, users, drop_items)
    key = (read_key(folder) or UserKey.new()).with_forgotten(users)
    tables = {"interactions": rest.frame, "items": rest.catalogue.frame} | ({} if rest.users is None else {"users": rest.users})
    with appearing_folder(folder, marker=MARKER) as aside:
        shutil.copytree(folder, aside, dirs_exist_ok=True, ignore_dangling_symlinks=True)
        for path in aside.rglob("*.parquet"):
            _without_rows(path, users)
        for name, table in tables.items():
            table.write_parquet(aside / f"{name}.parquet", compression="zstd")
        (aside / MARKER).write_text(rest.info.model_dump_json(indent=2) + "\n", encoding="utf-8")
        key.write(aside)
    return _count(folder, log, rest, users)


def _count(folder: Path, log: Interactions, rest: Interactions, users: Sequence[str]) -> Forgotten:
    gone = np.isin(log.user_ids, users)
    only, items = int(_only_theirs(log, gone).sum()), log.catalogue.size - rest.catalogue.size
    left = tuple(str(path) for path in sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*")) if path.is_dir())
    return Forgotten(int(gone.sum()), len(log) - len(rest), items, only - items, left)


def returned_users(log: Interactions) -> list[str]:
    """The users of a log of a data set folder who were forgotten there before, as after another import of its source."""
    key = log.info.users_key
    if key is None or not key.forgotten:
        return []
    return [user for user in log.user_ids if key.digest(user) in key.forgotten]


def check_known(log: Interactions, users: Sequence[str]) -> None:
    """Check that all users are in a log, or were forgotten before.

    Raises:
        DataError: One is neither.
    """
    key, there = log.info.users_key, set(log.user_ids)
    for user in users:
        if user not in there and (key is None or key.digest(user) not in key.forgotten):
            expected = f"one of the {len(there):,} users of the log, or one who was forgotten before"
            raise DataError("unknown user", got=repr(user), expected=expected, todo="check the user_id; nothing has been changed")


def check_foreign(folder: Path, log: Interactions, users: Sequence[str]) -> None:
    """Refuse a folder where a file that is not one of the log's tables names a user, since nobody knows what it is for.

    Raises:
        InputError: One does.
    """
    known = {folder / f"{name}.parquet" for name in TABLES} | {folder / MARKER, folder / KEY}
    items = set(log.catalogue.item_ids)
    for path in sorted(folder.rglob("*")):
        if path in known or not path.is_file():
            continue
        named = _named_in_table(path, set(users) - items) if path.suffix == ".parquet" else _named_in(path, users)
        if named:
            what, expected = f"{path} names a user who is to be forgotten", "only the data set's own tables"
            todo = "take it out of the folder, or the user out of it, and forget again; nothing has been changed"
            raise InputError(what, got="a file that is no table of the log", expected=expected, todo=todo)


def _named_in(path: Path, users: Sequence[str]) -> bool:
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    return any(re.search(rb"(?<!\w)" + re.escape(user.encode()) + rb"(?!\w)", data) for user in users)


def _named_in_table(path: Path, users: set[str]) -> bool:
    """Return whether a table names a user in another column than `user_id`, whose rows go."""
    table = read_parquet(path)
    texts = [name for name, kind in table.schema.items() if kind == pl.String and name != "user_id"]
    return any(table[name].is_in(list(users)).any() for name in texts)


def _without_rows(path: Path, users: Sequence[str]) -> None:
    table = read_parquet(path)
    if "user_id" in table.columns:
        table.filter(~pl.col("user_id").cast(pl.String).is_in(list(users))).write_parquet(path, compression="zstd")


def _only_theirs(log: Interactions, gone: np.ndarray) -> np.ndarray:
    """(N,) bool: items with events of the users who go, (U,) bool, and of nobody else."""
    theirs = gone[log.user_codes]
    counts = [np.bincount(log.item_codes[mask], minlength=log.catalogue.size) for mask in (theirs, ~theirs)]
    return (counts[0] > 0) & (counts[1] == 0)


def _described(log: Interactions) -> np.ndarray:
    """(N,) bool: items of which the catalogue knows more than the id."""
    items = log.catalogue.frame
    more = [items[name].is_not_null().to_numpy() for name in items.columns if name != "item_id"]
    return np.any(more, axis=0) if more else np.zeros(items.height, dtype=bool)


def _cleaned(info: DatasetInfo) -> DatasetInfo:
    """dataset.json without what the import said of rows, and without the hash of the source, which had the users' events."""
    return info.model_copy(update={"skipped": {}, "examples": (), "notes": (NOTE,), "checksum": ""})
