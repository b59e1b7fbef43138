"""The key of a data set folder: a secret by which its owner can test who trained a version, and nobody else.

Owns: the file `users.key`, digests of user ids, and the digests of users who were forgotten. Ignores: what is published
(`genre.registry.users`), and how a user is forgotten (`genre.data.forgetting`).

    8f0c…                               32 random bytes, as hex digits
    5b1e3c0a9d7748f2a6e0c4d18b92f317    a user who was forgotten: 16 bytes of HMAC-SHA256(key, user_id)
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from genre.errors import DataError
from genre.files import atomic, disk_errors

FILE = "users.key"
SECRET_BYTES, DIGEST_BYTES = 32, 16


@dataclass(frozen=True)
class UserKey:
    """A key, and who was forgotten.

    Attributes:
        secret: 32 bytes.
        forgotten: Digests of users who were forgotten.
        folder: Where it is to be written once a version needs it; None for a key that lies in its folder.
    """

    secret: bytes = field(repr=False)
    forgotten: frozenset[bytes] = frozenset()
    folder: Path | None = field(default=None, compare=False)

    @classmethod
    def new(cls) -> Self:
        """Draw a key."""
        return cls(secrets.token_bytes(SECRET_BYTES))

    @property
    def name(self) -> str:
        """16 hex digits that tell keys apart, and give nothing of the secret away."""
        return hashlib.sha256(b"genre users.key" + self.secret).hexdigest()[:16]

    def digest(self, user: str) -> bytes:
        """The digest of a user: HMAC-SHA256 of the id, cut to 16 bytes."""
        return hmac.digest(self.secret, user.encode(), "sha256")[:DIGEST_BYTES]

    def with_forgotten(self, users: Iterable[str]) -> Self:
        """The same key, by which these users were forgotten too."""
        return replace(self, forgotten=self.forgotten | {self.digest(user) for user in users})

    def kept(self) -> "UserKey":
        """The key of the folder: this one, written there now if the folder has none yet.

        Raises:
            DataError: The folder's key is damaged, or may not be read.
            DiskError: The disk is full or not writable.
        """
        if self.folder is None:
            return self
        if (there := read_key(self.folder)) is not None:
            return there
        path, aside = self.folder / FILE, self.folder / f".{FILE}.{secrets.token_hex(8)}"
        with disk_errors(path):
            try:
                self.write(self.folder, aside.name)
                os.link(aside, path)  # whole, and of several that train at once by one alone
            except FileExistsError:
                return read_key(self.folder) or self
            finally:
                aside.unlink(missing_ok=True)
        return replace(self, folder=None)

    def write(self, folder: Path, name: str = FILE) -> None:
        """Write the key into a folder, readable by its owner alone.

        Raises:
            DiskError: The disk is full or not writable.
        """
        with atomic(folder / name) as aside:
            lines = [self.secret.hex(), *sorted(digest.hex() for digest in self.forgotten)]
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w", encoding="ascii") as file:
                file.write("\n".join(lines) + "\n")


def read_key(folder: Path, *, needed: bool = True) -> UserKey | None:
    """Read the key of a data set folder; None if it has none.

    Args:
        folder: The folder.
        needed: False gives None too where another user of this machine owns the key, as for a service that only reads the log.

    Raises:
        DataError: The file is damaged, or may not be read.
    """
    path = folder / FILE
    try:
        secret, *forgotten = (bytes.fromhex(line) for line in path.read_text(encoding="ascii").split())
    except FileNotFoundError:
        return None
    except PermissionError:
        if needed:
            raise _unreadable(path, "no permission", "become its owner, who made the folder or trained on it first") from None
        return None
    except (OSError, ValueError):
        raise _damaged(path) from None
    if len(secret) != SECRET_BYTES or any(len(digest) != DIGEST_BYTES for digest in forgotten):
        raise _damaged(path)
    return UserKey(secret, frozenset(forgotten))


def new_key(folder: Path) -> UserKey | None:
    """A key for a data set folder, not written yet; None if it has one, maybe another user's, or cannot be written."""
    if (folder / FILE).exists() or not os.access(folder, os.W_OK):
        return None
    return replace(UserKey.new(), folder=folder)


def _damaged(path: Path) -> DataError:
    todo = "restore it from a copy; without it nobody can tell who trained the versions of this data set"
    return _unreadable(path, "other content", todo)


def _unreadable(path: Path, got: str, todo: str) -> DataError:
    return DataError(f"{path} cannot be read", got=got, expected=f"{2 * SECRET_BYTES} hex digits", todo=todo)
