"""What a store can do, and the names of the files in it: versions and journal entries appear whole, once, and never half.

Owns: the operations that the registry needs. Ignores: how a folder (`local`) or an object store (`remote`) does them.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from genre.registry.names import is_digest, is_version


class Store(Protocol):
    """Versions and journals by name. Names are checked before they get here; a store joins nothing else to a path."""

    url: str
    grace_s: float
    """The seconds for which garbage stays unless the caller says otherwise."""

    def names(self) -> list[str]:
        """All names that have a version, sorted."""

    def listing(self) -> dict[str, list[str]]:
        """The same names with their visible versions, oldest first."""

    def versions(self, name: str) -> list[str]:
        """Visible versions of a name, oldest first."""

    def known(self) -> list[str]:
        """All names that have a version, a journal, or the head of a journal that was there once; sorted."""

    def has(self, name: str, version: str) -> bool:
        """Return whether the version is visible."""

    def read(self, name: str, version: str, file: str, limit: int) -> bytes:
        """Return at most `limit` + 1 bytes of a file of a version, or of the journal; NotFoundError if there is none."""

    def folder(self, name: str, version: str) -> Path | None:
        """The version's own folder if it is on this machine."""

    def files(self, name: str, version: str) -> dict[str, int]:
        """Names and sizes in bytes of all files of a version, those that do not belong there too."""

    def download(self, name: str, version: str, file: str, target: Path) -> None:
        """Copy a file to this machine."""

    def stage(self, name: str) -> AbstractContextManager[Path]:
        """Yield a fresh folder on this machine to prepare a version in; removed at the end if it is still there."""

    def commit(self, staged: Path, name: str, version: str) -> bool:
        """Make a staged version visible at once. False if it is there already."""

    def entries(self, name: str) -> list[int]:
        """Numbers of the journal, sorted."""

    def create_entry(self, name: str, number: int, data: bytes) -> bool:
        """Write entry `number` unless it exists; False if it does. Of two writers exactly one gets True."""

    def put(self, name: str, folder: str, file: str, data: bytes) -> None:
        """Write or replace a file beside versions, in the folder `RECORDS`, say; `read` with the same names finds it."""

    def check_writable(self, name: str) -> None:
        """Refuse a store that takes no new version of a name, if that can be found out without writing there."""

    def remove(self, name: str, version: str) -> None:
        """Delete a version; it becomes invisible first."""

    def unfinished(self) -> dict[str, int]:
        """Unfinished publishes that no living writer owns: paths under the root, sorted, and sizes in bytes."""

    def remove_unfinished(self, path: str) -> None:
        """Delete an unfinished publish."""

    def content(self) -> str:
        """What there is instead of versions, as the end of a sentence about a registry that has none."""

    def strays(self) -> list[str]:
        """Anything else that lies where only versions and journals belong, as paths under the root."""

    def keep(self, name: str, version: str) -> bool:
        """Keep gc from a version until the present `writing` ends; False if it is not there, or was given up."""

    def mark(self, path: str) -> None:
        """Mark garbage, a version (`<name>/<version>`) or a path of `unfinished`: the first of gc's two looks."""

    def marked(self) -> list[str]:
        """The visible versions that are marked, as paths."""

    def settled(self, paths: list[str], grace: float) -> dict[str, int]:
        """Those of the marked paths that have been garbage for `grace` seconds and that no writer at work may have missed."""

    def bury(self, path: str, mark: int) -> bool:
        """Give up what `settled` returned with this number, for good; False if a writer has kept it meanwhile."""

    def writing(self) -> AbstractContextManager[object]:
        """Held while something is added: gc waits for it."""

    def cleaning(self) -> AbstractContextManager[bool]:
        """Held while something is removed; True if it shuts writers out, False if they agree by marks alone."""


def is_entry(file: str) -> bool:
    """Return whether a file name is that of an entry of a journal or a version's log: a number from 1, no leading zeros."""
    number = file.removesuffix(".json")
    return file.endswith(".json") and number.isascii() and number.isdecimal() and number[0] != "0" and len(number) < 10


def is_record(file: str) -> bool:
    """Return whether a file name is that of a version's record."""
    return file.endswith(".json") and is_version(file.removesuffix(".json"))


def is_signature(file: str) -> bool:
    """Return whether a file name is that of a version's signature: its version, and the digits of the public key."""
    version, _, key = file.removesuffix(".json").partition("-")
    return file.endswith(".json") and is_version(version) and is_digest(key)
