"""Cleaning a whole store, and deleting one version.

Owns: what is garbage; what keeps a version from being deleted. Kept is every version that an alias names or ever named, and
everything those name as encoder or parent, and so on. The rest goes, with unfinished publishes that no living writer owns.
Ignores: what is damaged (see `verification`).
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from genre.errors import IntegrityError, RegistryError
from genre.registry.journal import Journal
from genre.registry.lookup import open_version, require_version
from genre.registry.manifest import Version
from genre.registry.names import is_digest, shorten
from genre.registry.store import Store
from genre.registry.trust.actor import Author

GRACE_S = 3600.0
"""The age from which garbage goes on a remote store, which has no lock to keep writers out meanwhile."""


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


def delete(store: Store, name: str, version: str, author: Author | None = None) -> Deleted:
    """Delete a version that nothing names: no alias, and no version as its encoder or parent; it may be damaged itself.

    The journal records it where an alias named it once, so that `verify` does not miss it. One that is gone already, though the
    history names it, is recorded too.

    Raises:
        NotFoundError: There is no such version.
        RegistryError: Something names it; the message says what.
        IntegrityError: Another manifest or a journal is damaged, so it is not known what it names.
    """
    ref = f"{name}:{version}"
    with store.cleaning():
        journal = Journal(store, name, author)
        moves = [move for move in journal.history() if move.version == version]
        if not moves or moves[-1].action == "delete" or store.has(name, version):
            require_version(store, name, version)
        aliases = [alias for alias, target in journal.aliases().targets.items() if target.version == version]
        users = _users(store, name, version)
        if aliases or users:
            raise _named(store, name, version, sorted(aliases), users)
        formerly = sorted({move.alias for move in moves if move.action != "delete"})
        if moves and moves[-1].action != "delete":
            journal.append_deletion(version, digest=moves[-1].digest)
        freed = sum(store.files(name, version).values())
        if store.has(name, version):
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
        reference = pending.pop()
        name, colon, digits = reference.partition(":")
        version = by_reference.get(f"{name}:{shorten(digits)}" if colon else reference)
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
