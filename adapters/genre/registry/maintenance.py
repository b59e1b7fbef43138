"""Verifying and cleaning a whole store, and deleting one version.

Owns: the order of the checks and the names of the findings; what is garbage; what keeps a version from being deleted. Kept is
every version that an alias names or ever named, and everything those name as encoder or parent, and so on. The rest goes, with
unfinished publishes that no living writer owns. Ignores: repairing.

    like:a3f09c12be77/heads.safetensors has changed: got sha256 5d4f…; expected 77ab…
    like/aliases/3.json is missing
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from genre.errors import IntegrityError, RegistryError
from genre.registry.integrity import check_stored, find_damage
from genre.registry.journal import Journal
from genre.registry.lookup import look_up, open_version, require_version
from genre.registry.manifest import Version
from genre.registry.names import MANIFEST
from genre.registry.records import read_baselines
from genre.registry.store import Store

GRACE_S = 3600.0
"""The age from which garbage goes on a remote store, which has no lock to keep writers out meanwhile."""


@dataclass(frozen=True)
class Problem:
    """A finding of `verify`. `version` and `file` are empty where they do not apply."""

    name: str
    version: str
    file: str
    what: str

    def __str__(self) -> str:
        """One line: the path, then the problem."""
        version = f":{self.version}" if self.version else ""
        return f"{self.name}{version}{'/' + self.file if self.file else ''} {self.what}"


@dataclass(frozen=True)
class Garbage:
    """The removed versions, as `name:version`, and unfinished publishes, as paths; with `dry_run` they are still there."""

    versions: tuple[str, ...]
    unfinished: tuple[str, ...]
    freed_bytes: int
    dry_run: bool


@dataclass(frozen=True)
class Deleted:
    """A deleted version.

    Attributes:
        ref: It, as `name:version`.
        freed_bytes: The size of its files.
        formerly: Aliases that named it once, and cannot be rolled back to it any more.
    """

    ref: str
    freed_bytes: int
    formerly: tuple[str, ...]


def verify(store: Store, name: str | None, fetch: Callable[[Version], Path] | None) -> list[Problem]:
    """Re-hash all versions of one name or of all, follow the journals, and list what does not belong.

    `fetch` checks a remote version by a copy on this machine; without it nothing is hashed.
    """
    strays = [path for path in store.strays() if name in (None, path.split("/")[0])]
    found = [Problem(path, "", "", "does not belong here") for path in strays]
    for each, versions in store.listing().items():
        if name in (None, each):
            for version in versions:
                found += _verify_version(store, each, version, fetch)
            found += _verify_journal(store, each, set(versions))
            found += _verify_records(store, each, versions)
    return found


def _verify_version(store: Store, name: str, version: str, fetch: Callable[[Version], Path] | None) -> list[Problem]:
    try:
        opened = open_version(store, name, version)
        manifest, local = opened.manifest, store.folder(name, version)
        if fetch is None:
            missing = sorted(manifest.files.keys() - store.files(name, version).keys())
            found = [Problem(name, version, file, "is missing") for file in missing]
        elif local is None:
            extra = sorted(store.files(name, version).keys() - manifest.files.keys() - {MANIFEST})
            found = [Problem(name, version, file, "is not in the manifest") for file in extra]
            fetch(opened)
        else:
            found = [Problem(name, version, file, what) for file, what in find_damage(local, manifest)]
            if not found:
                check_stored(local, manifest)
    except (RegistryError, OSError) as error:
        return [Problem(name, version, "", str(error))]
    if manifest.encoder is not None and look_up(store, manifest.encoder) is None:
        found.append(Problem(name, version, "", f"names an encoder that is not here: {manifest.encoder}"))
    return found


def _verify_journal(store: Store, name: str, versions: set[str]) -> list[Problem]:
    journal = Journal(store, name)
    found = [Problem(name, "", file, what) for file, what in journal.problems()]
    if found:
        return found
    targets = journal.aliases().targets.items()
    gone = [(alias, target.version) for alias, target in targets if target.version not in versions]
    return [Problem(name, version, "", f"is missing but {alias} names it") for alias, version in gone]


def _verify_records(store: Store, name: str, versions: list[str]) -> list[Problem]:
    found = []
    for version in versions:
        try:
            read_baselines(store, name, version)
        except RegistryError as error:
            found.append(Problem(name, version, "", str(error)))
    return found


def collect_garbage(store: Store, *, dry_run: bool = False) -> Garbage:
    """Remove versions that nothing names, and unfinished publishes; `dry_run` only reports them.

    Raises:
        IntegrityError: A manifest or journal is damaged, so it is not known what it names; nothing is removed.
    """
    with store.cleaning():
        everything = [open_version(store, name, version) for name, versions in store.listing().items() for version in versions]
        kept = _reachable(store, everything)
        local = any(store.folder(version.name, version.version) is not None for version in everything)
        doomed = [version for version in everything if version.ref not in kept and (local or _is_old(version))]
        unfinished = store.unfinished()
        freed = sum(unfinished.values())
        freed += sum(sum(store.files(version.name, version.version).values()) for version in doomed)
        if not dry_run:
            for version in doomed:
                store.remove(version.name, version.version)
            for path in unfinished:
                store.remove_unfinished(path)
    return Garbage(tuple(version.ref for version in doomed), tuple(unfinished), freed, dry_run)


def delete(store: Store, name: str, version: str) -> Deleted:
    """Delete a version that nothing names: no alias, and no version as its encoder or parent; it may be damaged itself.

    Raises:
        NotFoundError: There is no such version.
        RegistryError: Something names it; the message says what.
        IntegrityError: Another manifest or a journal is damaged, so it is not known what it names.
    """
    ref = f"{name}:{version}"
    with store.cleaning():
        require_version(store, name, version)
        journal = Journal(store, name)
        aliases = [alias for alias, target in journal.aliases().targets.items() if target.version == version]
        users = _users(store, name, version)
        if aliases or users:
            raise _named(store, name, version, sorted(aliases), users)
        formerly = sorted({move.alias for move in journal.history() if move.version == version})
        freed = sum(store.files(name, version).values())
        store.remove(name, version)
    return Deleted(ref, freed, tuple(formerly))


def _users(store: Store, name: str, version: str) -> list[str]:
    """The versions that need this one or came from it, as `the encoder of like:0123456789ab`."""
    found = []
    for each, versions in store.listing().items():
        for other in versions:
            if (each, other) == (name, version):
                continue
            manifest = open_version(store, each, other).manifest
            if manifest.encoder is not None and manifest.encoder[:12] == version:
                found.append(f"the encoder of {each}:{other}")
            if any(parent == f"{name}:{version}" or parent[:12] == version for parent in manifest.parents):
                found.append(f"a parent of {each}:{other}")
    return found


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
        version = by_reference.get(pending.pop())
        if version is not None and version.ref not in kept:
            kept.add(version.ref)
            pending += version.manifest.references
    return kept


def _is_old(version: Version) -> bool:
    try:
        created = datetime.strptime(version.manifest.created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise IntegrityError(f"{version.ref} has no time", got=version.manifest.created) from None
    return (datetime.now(UTC) - created).total_seconds() > GRACE_S
