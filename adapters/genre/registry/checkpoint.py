"""Checkpoints: what a whole store held at a time, to be kept elsewhere, so that a rollback of the store shows.

Owns: making one, its file, and the comparison. Ignores: what can be seen from the store alone (`verification`): whoever can write
to all of it can put all of it back to an earlier state, and only something outside tells. One real checkpoint:

    {"actor": "ann", "checksum": "…", "created": "2026-03-01T12:00:00Z", "schema": 1,
     "names": {"like": {"n": 3, "sha256": "9c1f…", "versions": {"0c4d5e6f7a8b": "0c4d5e6f7a8b…"}}},
     "signature": {"key": "ed25519:3b6a27bc…", "value": "…"}}

`sha256` is over the sha256 of each of the first `n` entries, a line each, so that it binds entries of earlier releases too, which
are not chained. `versions` are those that a history names and that were not deleted on purpose.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genre.errors import GenreError, InputError, IntegrityError, NotFoundError, RegistryError, TrustError, fault_of_file
from genre.files import disk_errors, write_text
from genre.registry.entries import Entry, unsigned
from genre.registry.journal import Journal
from genre.registry.limits import MAX_JSON_BYTES, parse_json
from genre.registry.lookup import open_version
from genre.registry.manifest import checksum_of, render, utc_now
from genre.registry.names import is_digest, is_name, is_version
from genre.registry.stores.store import Store
from genre.registry.trust.actor import Author
from genre.registry.trust.keys import is_key, is_signed
from genre.registry.trust.policy import Trust
from genre.registry.verification import Problem, needed_versions
from genre.validation import refusal

_KIND = "application/vnd.genre.checkpoint+json"
_WHAT = "the checkpoint"


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class _Name(_Form):
    n: int = Field(ge=1)
    sha256: str
    versions: dict[str, str]


class _Signature(_Form):
    key: str
    value: str


class Checkpoint(_Form):
    """A checkpoint: the heads of all journals at a time, by whom, and the signature over it if there was a key."""

    schema_: Literal[1] = Field(default=1, alias="schema")
    created: str
    actor: str
    names: dict[str, _Name]
    signature: _Signature | None = None
    checksum: str = ""


def write_checkpoint(path: Path, store: Store, author: Author) -> None:
    """Write a checkpoint of a store to a file, signed where the author has a key; the file's folder is made if missing.

    Raises:
        NotFoundError: The store has no journals.
        IntegrityError: A journal is damaged, or a manifest that an entry of an earlier release means.
        DiskError: The disk is full or not writable.
    """
    text = _make_checkpoint(store, author).decode()
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def _make_checkpoint(store: Store, author: Author) -> bytes:
    names: dict[str, Any] = {}
    for name in store.known():
        problems, entries = Journal(store, name).audit()
        for file, what in problems:
            todo = "genre registry verify shows more; a checkpoint of what is damaged would hide it"
            raise IntegrityError(f"{name}/{file} {what}", todo=todo)
        if entries:
            moves = needed_versions([entry.move for entry in entries]).items()
            versions = {version: move.digest or open_version(store, name, version).digest for version, move in moves}
            names[name] = {"n": len(entries), "sha256": _fold(entries), "versions": versions}
    raw: dict[str, Any] = {"schema": 1, "created": utc_now(), "actor": author.actor, "names": names, "signature": None}
    if not names:
        got, todo = f"the registry at {store.url}, {store.content()}", "genre train publishes into it"
        raise NotFoundError("there is nothing to make a checkpoint of", got=got, expected="names with aliases", todo=todo)
    if author.signer is not None:
        raw["signature"] = {"key": author.signer.key, "value": author.signer.sign(_KIND, unsigned(raw)).hex()}
    return render(raw | {"checksum": checksum_of(raw)})


def read_checkpoint(path: Path, trust: Trust) -> Checkpoint:
    """Read a checkpoint's file and check its signature: it must hold, and be there, by a trusted key, where keys are trusted.

    Raises:
        InputError: It cannot be read, or is no checkpoint.
        IntegrityError: It has changed since it was written.
        TrustError: It is not signed by a trusted key.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        got = f"{path}: {fault_of_file(error)}"
        raise InputError(f"{_WHAT} cannot be read", got=got, expected="what genre registry checkpoint wrote") from None
    raw = parse_json(data, _WHAT, limit=MAX_JSON_BYTES)
    try:
        found = Checkpoint.model_validate(raw)
    except ValidationError as error:
        raise refusal(error, _WHAT, list(Checkpoint.model_fields), InputError) from None
    if checksum_of(raw) != found.checksum:
        raise IntegrityError(f"{_WHAT} is damaged", got="other content than its checksum says", todo="take another copy of it")
    sound = all(is_name(name) and is_digest(each.sha256) for name, each in found.names.items())
    pins = [pin for each in found.names.values() for pin in each.versions.items()]
    if not sound or not all(is_version(version) and is_digest(digest) for version, digest in pins):
        raise InputError(f"{_WHAT} cannot be used", expected="what genre registry checkpoint writes")
    key = None if found.signature is None else found.signature.key
    if found.signature is not None and not _holds(found.signature, raw):
        raise IntegrityError(f"the signature of {_WHAT} does not fit its content", got=f"one by {key}")
    if trust.keys and key not in trust.keys:
        expected = f"a signature by {' or '.join(trust.keys)}"
        raise TrustError(f"{_WHAT} is not signed by a trusted key", got=key or "no signature", expected=expected)
    return found


def compare(store: Store, checkpoint: Checkpoint, name: str | None = None) -> list[Problem]:
    """List where a store, or one name of it, does not continue what a checkpoint saw."""
    found: list[Problem] = []
    for each, seen in checkpoint.names.items():
        if name in (None, each):
            try:
                found += _compare(store, each, seen, checkpoint.created)
            except GenreError as error:
                found.append(Problem(each, "", "", str(error)))
    return found


def _compare(store: Store, name: str, seen: _Name, created: str) -> Iterator[Problem]:
    entries = Journal(store, name).entries()
    if len(entries) < seen.n:
        what = f"was rolled back or cut: its journal has {len(entries)} entries, and had {seen.n} at the checkpoint of {created}"
        yield Problem(name, "", "", what)
    elif _fold(entries[: seen.n]) != seen.sha256:
        what = f"has another history: one of its first {seen.n} entries is not that of the checkpoint of {created}"
        yield Problem(name, "", "", what)
    later = [entry.move for entry in entries[seen.n :]]
    deleted = {move.version for move in later if move.action == "delete"}
    for version, digest in seen.versions.items():
        if version not in deleted:
            try:
                open_version(store, name, digest)
            except RegistryError as error:
                yield Problem(name, version, "", f"was there at the checkpoint of {created}: {error}")


def _fold(entries: Iterable[Entry]) -> str:
    return hashlib.sha256("".join(f"{entry.sha256}\n" for entry in entries).encode()).hexdigest()


def _holds(signature: _Signature, raw: dict[str, Any]) -> bool:
    try:
        value = bytes.fromhex(signature.value)
    except ValueError:
        return False
    return is_key(signature.key) and is_signed(signature.key, _KIND, unsigned(raw), value)
