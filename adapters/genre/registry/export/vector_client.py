"""Vectors of an exported version, and the check that an index holds those of the same version.

Needs this folder, numpy and polars, and nothing else. Whatever the index is, it holds the rows of `items` under their numbers,
and `digest` is kept beside it:

    vectors = Vectors.read(".")
    index = faiss.IndexFlatIP(vectors.dimensions)
    index.add(vectors.items)

    def search(query, count):                                # (d,) float32 in, (row, score) out, best first
        scores, rows = index.search(query[None], count)
        return zip(rows[0], scores[0])

    vectors.best("196", 10, search, digest=kept)             # [("50", 5.21), …]; StaleIndexError if kept is of another version

The metric is the dot product, and the product is the score, so a larger one is better and no vector may be normalized.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

ABOUT, ITEMS, USERS = "vectors.json", "items", "users"

Search = Callable[[np.ndarray, int], Iterable[tuple[int, float]]]
"""Finds the best `count` rows for a (d,) float32 query: their numbers and scores, best first; negative numbers are no rows."""


class VectorsError(ValueError):
    """A folder that is no export of vectors, or a user who is not in it."""


class StaleIndexError(VectorsError):
    """An index or a folder of another version than the one that is asked."""


@dataclass(frozen=True)
class Vectors:
    """The content of an exported folder.

    Attributes:
        about: What `vectors.json` says: version, digest, task, metric, blocks of dimensions, what is lost, what was checked.
        item_ids: N ids, in the order of `items`.
        titles: N titles.
        items: (N, d) float32.
        user_ids: U ids, in the order of `users`; empty where users were not exported.
        users: (U, d) float32.
        seen: For each user the ids that are not recommended again.
    """

    about: dict[str, Any]
    item_ids: Sequence[str]
    titles: Sequence[str]
    items: np.ndarray
    user_ids: Sequence[str]
    users: np.ndarray
    seen: Sequence[Sequence[str]]

    @classmethod
    def read(cls, folder: str | Path, *, digest: str | None = None) -> "Vectors":
        """Read an exported folder.

        Args:
            folder: The folder.
            digest: Of the version that is wanted; any if None.

        Raises:
            StaleIndexError: It is of another version.
            VectorsError: It is no such folder, or a file has changed since the export.
        """
        about = _read_about(Path(folder))
        for name, sha256 in about["files"].items():
            _check_file(Path(folder) / name, sha256)
        items = pl.read_parquet(Path(folder) / f"{ITEMS}.parquet", columns=["item_id", "title"])
        users = pl.DataFrame(schema={"user_id": pl.String, "seen": pl.List(pl.String)})
        vectors = np.zeros((0, about["dimensions"]), dtype=np.float32)
        if f"{USERS}.npy" in about["files"]:
            users = pl.read_parquet(Path(folder) / f"{USERS}.parquet", columns=["user_id", "seen"])
            vectors = np.load(Path(folder) / f"{USERS}.npy")
        found = cls(
            about,
            items["item_id"].to_list(),
            items["title"].to_list(),
            np.load(Path(folder) / f"{ITEMS}.npy"),
            users["user_id"].to_list(),
            vectors,
            users["seen"].to_list(),
        )
        if digest is not None:
            found.check(digest)
        return found

    @property
    def digest(self) -> str:
        """The digest of the version, to be kept beside an index of these items."""
        return str(self.about["digest"])

    @property
    def dimensions(self) -> int:
        """Dimensions of a vector."""
        return int(self.items.shape[1])

    def check(self, digest: str) -> None:
        """Check that something else, such as an index, is of the same version.

        Raises:
            StaleIndexError: It is of another one.
        """
        if digest != self.digest:
            todo = "build the index again from this folder, or ask with the vectors that it was built from"
            raise StaleIndexError(f"the index is of another version: got digest {digest}; expected {self.digest}; {todo}")

    def user(self, user_id: str) -> int:
        """The row of a user.

        Raises:
            VectorsError: The user has no vector here.
        """
        try:
            return self._rows[user_id]
        except KeyError:
            todo = "export with --users, or make the vector with genre.export.user_vectors"
            got = f"{user_id!r}; expected one of {len(self.user_ids):,} users"
            raise VectorsError(f"no vector of this user: got {got}; {todo}") from None

    def best(self, user_id: str, k: int, search: Search, *, digest: str) -> list[tuple[str, float]]:
        """The best k items of a user by an index, without those that the user has seen.

        Args:
            user_id: The user.
            k: Items; fewer where the index finds fewer.
            search: The index.
            digest: What was kept beside it.

        Raises:
            StaleIndexError: The index is of another version.
            VectorsError: The user has no vector here.
        """
        self.check(digest)
        row = self.user(user_id)
        return self.best_for(self.users[row], k, search, seen=self.seen[row])

    def best_for(self, query: np.ndarray, k: int, search: Search, *, seen: Iterable[str] = ()) -> list[tuple[str, float]]:
        """The best k items of a (d,) vector by an index, without some ids."""
        out = set(seen)
        count = min(k + len(out), len(self.item_ids))
        found = ((self.item_ids[int(row)], float(score)) for row, score in search(query, count) if row >= 0)
        return [one for one in found if one[0] not in out][:k]

    def exact(self, query: np.ndarray, count: int) -> list[tuple[int, float]]:
        """The best rows by all products: the search that every index is measured against."""
        scores = self.items @ query
        order = np.lexsort((np.arange(len(scores)), -scores))[:count]
        return [(int(row), float(scores[row])) for row in order]

    def recall(self, search: Search, k: int, *, users: Sequence[str] | None = None) -> float:
        """The mean share of the exact best k items that an index finds, over some users (all if None)."""
        rows = [self.user(one) for one in (self.user_ids if users is None else users)]
        found = [self.best_for(self.users[row], k, search, seen=self.seen[row]) for row in rows]
        right = [self.best_for(self.users[row], k, self.exact, seen=self.seen[row]) for row in rows]
        shares = [len({i for i, _ in a} & {i for i, _ in b}) / len(b) for a, b in zip(found, right, strict=True) if b]
        return float(np.mean(shares)) if shares else 1.0

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.user_ids)}


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if not isinstance(about, dict) or not {"digest", "dimensions", "files", "metric"} <= about.keys():
            raise ValueError("other content")
    except (OSError, ValueError) as error:
        got = getattr(error, "strerror", None) or str(error)
        raise VectorsError(f"{folder} is no export of vectors: got {ABOUT}: {got}; expected what --to vectors writes") from None
    return about


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _check_file(file: Path, sha256: str) -> None:
    if not file.is_file():
        raise VectorsError(f"{file.name} is missing: expected all files of the export; export again")
    if (found := sha256_of(file)) != sha256:
        got, expected = f"sha256 {found[:12]}…", f"{sha256[:12]}… as {ABOUT} says"
        raise VectorsError(f"{file.name} has changed since the export: got {got}; expected {expected}; export again")
