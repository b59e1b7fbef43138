"""Cleaning a whole store, and deleting one version.

Owns: what is garbage; what keeps a version from being deleted. Kept is every version that an alias names or ever named, and
everything those name as encoder or parent, and so on. The rest goes, with unfinished publishes that no living writer owns.
Ignores: what is damaged (see `verification`); how a store keeps writers and gc apart.

Garbage goes in two steps: it is marked, and what is still garbage on a second look, after the grace time, is given up and
deleted. Where a lock shuts writers out both are one.
"""

import contextlib
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from genre.errors import ConflictError, InputError, IntegrityError, NotFoundError, RegistryError
from genre.registry.entries import Move
from genre.registry.journal import Journal
from genre.registry.lookup import open_version, require_version
from genre.registry.manifest import Version
from genre.registry.names import is_digest, shorten
from genre.registry.stores.store import Store
from genre.registry.trust.actor import Author


@dataclass(frozen=True)
class Garbage:
    """The removed versions, as `name:version`, and unfinished publishes, as paths; with `dry_run` they are still there.

    `marked` are garbage too, and still there: their grace time is not over, or a writer is at work that may need them.
    """

    versions: tuple[str, ...]
    unfinished: tuple[str, ...]
    freed_bytes: int
    dry_run: bool
    marked: tuple[str, ...] = ()


@dataclass(frozen=True)
class Deleted:
    """A deleted version.

    Attributes:
        ref: The version, as `name:version`.
        freed_bytes: The size of its files.
        formerly: Aliases that named it once, and cannot be rolled back to it any more.
    """

    ref: str
    freed_bytes: int
    formerly: tuple[str, ...]


def collect_garbage(store: Store, *, dry_run: bool = False, grace: float | None = None) -> Garbage:
    """Remove versions that nothing names, and unfinished publishes; `dry_run` only reports them.

    Args:
        store: The store.
        dry_run: Mark and remove nothing.
        grace: Seconds for which garbage stays; by default the store's (none where a lock shuts writers out, else an hour).

    Raises:
        InputError: The grace time is negative.
        IntegrityError: A manifest or journal is damaged, so it is not known what it names; nothing is removed.
    """
    grace = store.grace_s if grace is None else grace
    if not 0 <= grace < float("inf"):
        raise InputError("not a grace time", got=grace, expected="seconds from 0")
    with store.cleaning() as alone:
        garbage = _look(store)
        if dry_run:
            gone = garbage.paths
        else:
            for path in garbage.paths:
                store.mark(path)
            settled = store.settled(garbage.paths, grace)
            if settled and not alone:
                garbage = _look(store)
            for path in set(store.marked()) - set(garbage.paths):
                store.keep(*path.split("/"))
            gone = _bury(store, garbage, settled)
            for path in gone:
                _remove(store, path, garbage)
    versions = tuple(garbage.versions[path].ref for path in gone if path in garbage.versions)
    unfinished = tuple(path for path in gone if path in garbage.unfinished)
    marked = tuple(garbage.name(path) for path in garbage.paths if path not in set(gone))
    return Garbage(versions, unfinished, sum(map(garbage.size, gone)), dry_run, marked)


def delete(store: Store, name: str, version: str, author: Author | None = None) -> Deleted:
    """Delete a version that nothing names: no alias, and no version as its encoder or parent; it may be damaged itself.

    The journal records it where an alias named it once, so that `verify` does not miss it. One that is gone already, though the
    history names it, is recorded too.

    Raises:
        NotFoundError: There is no such version.
        RegistryError: Something names it; the message says what.
        ConflictError: A writer is at work that may need it.
        IntegrityError: Another manifest or a journal is damaged, so it is not known what it names.
    """
    with store.cleaning() as alone:
        there, moves = store.has(name, version), _moves(store, name, version)
        if not there and (not moves or moves[-1].action == "delete"):
            require_version(store, name, version)
        _require_unnamed(store, name, version)
        if there:
            _give_up(store, name, version, alone=alone)
            moves = _moves(store, name, version)
        if moves and moves[-1].action != "delete":
            Journal(store, name, author).append_deletion(version, digest=moves[-1].digest)
        freed = sum(store.files(name, version).values())
        if there:
            store.remove(name, version)
    formerly = sorted({move.alias for move in moves if move.action != "delete"})
    return Deleted(f"{name}:{version}", freed, tuple(formerly))


def _moves(store: Store, name: str, version: str) -> list[Move]:
    return [move for move in Journal(store, name).history() if move.version == version]


def _require_unnamed(store: Store, name: str, version: str) -> None:
    aliases = [alias for alias, target in Journal(store, name).aliases().targets.items() if target.version == version]
    users = _users(store, name, version)
    if aliases or users:
        raise _named(store, name, version, sorted(aliases), users)


def _give_up(store: Store, name: str, version: str, *, alone: bool) -> None:
    """Bury one version, in the steps of gc; it stays as it was if anything is at work that may need it, or names it by now."""
    path = f"{name}/{version}"
    store.mark(path)
    try:
        settled = store.settled([path], 0.0)
        if settled and not alone:
            _require_unnamed(store, name, version)
        if not settled or not store.bury(path, settled[path]):
            todo = "delete it again when the writer has finished"
            raise ConflictError(f"{name}:{version} was not deleted: a writer is at work that may need it", todo=todo)
    except RegistryError:
        store.keep(name, version)
        raise


def _users(store: Store, name: str, version: str) -> list[str]:
    """The versions that need this one or came from it, as `the encoder of like:0123456789ab`."""
    found = []
    for each, versions in store.listing().items():
        for other in versions:
            if (each, other) == (name, version):
                continue
            manifest = open_version(store, each, other).manifest
            if manifest.encoder is not None and _may_mean(manifest.encoder, name, version):
                found.append(f"the encoder of {each}:{other}")
            if any(_may_mean(parent, name, version) for parent in manifest.parents):
                found.append(f"a parent of {each}:{other}")
    return found


def _may_mean(reference: str, name: str, version: str) -> bool:
    """Return whether a reference may mean a version; by its 12 digits, since the version itself may be damaged."""
    of, _, digits = ("", "", reference) if is_digest(reference) else reference.partition(":")
    return of in ("", name) and shorten(digits) == version


def _named(store: Store, name: str, version: str, aliases: list[str], users: list[str]) -> RegistryError:
    got = [*(f"the alias {name}@{alias}" for alias in aliases), *users]
    others = [other for other in store.versions(name) if other != version]
    todo = f"delete {users[0].rpartition(' ')[2]} first" if users else ""
    if aliases and others:
        todo = f"move the alias first: genre registry promote {name}:{others[-1]} {aliases[0]}"
    elif aliases:
        todo = f"it is the only version of {name}: publish another one, to which the alias can move"
    more = f" and {len(got) - 5} more" if len(got) > 5 else ""
    what = f"{name}:{version} is in use and was not deleted"
    return RegistryError(what, got=", ".join(got[:5]) + more, expected="a version that nothing names", todo=todo)


@dataclass(frozen=True)
class _Found:
    """What is garbage at one look.

    Attributes:
        versions: The versions by path.
        sizes: Their sizes in bytes.
        unfinished: The unfinished publishes by path, and their sizes in bytes.
    """

    versions: dict[str, Version]
    sizes: dict[str, int]
    unfinished: dict[str, int]

    @property
    def paths(self) -> list[str]:
        return [*self.versions, *self.unfinished]

    def size(self, path: str) -> int:
        return self.sizes[path] if path in self.sizes else self.unfinished[path]

    def name(self, path: str) -> str:
        return self.versions[path].ref if path in self.versions else path


def _look(store: Store) -> _Found:
    everything = []
    for name, versions in store.listing().items():
        for version in versions:
            with contextlib.suppress(NotFoundError):  # another gc has just removed it
                everything.append(open_version(store, name, version))
    kept = _reachable(store, everything)
    garbage = {_path(version): version for version in everything if version.ref not in kept}
    sizes = {path: sum(store.files(version.name, version.version).values()) for path, version in garbage.items()}
    return _Found(garbage, sizes, store.unfinished())


def _bury(store: Store, garbage: _Found, settled: dict[str, int]) -> list[str]:
    """Give up what is settled, users before what they name: whatever a version that stays names stays too."""
    by_reference = {key: path for path, version in garbage.versions.items() for key in (version.digest, version.ref)}
    users: dict[str, set[str]] = {path: set() for path in garbage.versions}
    for path, version in garbage.versions.items():
        for reference in map(_key, version.manifest.references):
            if reference in by_reference:
                users[by_reference[reference]].add(path)
    gone: set[str] = set()
    try:
        for path in (*TopologicalSorter(users).static_order(), *garbage.unfinished):
            if path in settled and users.get(path, set()) <= gone and store.bury(path, settled[path]):
                gone.add(path)
    except CycleError as error:
        raise IntegrityError("versions name each other in a circle", got=", ".join(error.args[1])) from None
    return [path for path in garbage.paths if path in gone]


def _remove(store: Store, path: str, garbage: _Found) -> None:
    if path in garbage.versions:
        store.remove(garbage.versions[path].name, garbage.versions[path].version)
    else:
        store.remove_unfinished(path)


def _path(version: Version) -> str:
    return f"{version.name}/{version.version}"


def _reachable(store: Store, everything: list[Version]) -> set[str]:
    """The references of all versions that an alias ever named, and of what those name."""
    by_reference = {key: version for version in everything for key in (version.digest, version.ref)}
    pending = [
        f"{name}:{version}"
        for name in {version.name for version in everything}
        for move in Journal(store, name).history()
        for version in (move.version, move.previous)
    ]
    kept: set[str] = set()
    while pending:
        version = by_reference.get(_key(pending.pop()))
        if version is not None and version.ref not in kept:
            kept.add(version.ref)
            pending += version.manifest.references
    return kept


def _key(reference: str) -> str:
    """A reference as versions are looked up by: a digest, or a name and 12 digits."""
    name, colon, digits = reference.partition(":")
    return f"{name}:{shorten(digits)}" if colon else reference
