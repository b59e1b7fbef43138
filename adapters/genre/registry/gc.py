"""Removing what nothing names.

Owns: what is garbage. Kept is every version that an alias names or ever named, and everything those name as encoder or
parent, and so on. The rest goes, with unfinished publishes that no living writer owns. Ignores: age on a local store,
where a lock keeps writers out meanwhile; a remote store has no lock, so what is younger than an hour stays.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from genre.errors import IntegrityError
from genre.registry.journal import Journal
from genre.registry.values import Version, references

if TYPE_CHECKING:
    from genre.registry.core import Registry

GRACE_S = 3600.0


@dataclass(frozen=True)
class Garbage:
    """What was removed, or would be: versions as `name:version`, unfinished publishes as paths under the root."""

    versions: tuple[str, ...]
    unfinished: tuple[str, ...]
    freed_bytes: int
    dry_run: bool


def collect(registry: "Registry", *, dry_run: bool = False) -> Garbage:
    """Remove garbage.

    Args:
        registry: Where.
        dry_run: Say what would go and remove nothing.

    Raises:
        IntegrityError: A manifest or journal is damaged, so it is not known what it names; nothing is removed.
    """
    store = registry.store
    with store.cleaning():
        everything = {
            (name, version): registry.open_version(name, version)
            for name, versions in store.listing().items()
            for version in versions
        }
        kept = _reachable(registry, everything)
        local = any(store.folder(*place) is not None for place in everything)
        doomed = [place for place, version in everything.items() if place not in kept and (local or _old(version))]
        unfinished = store.litter()
        freed = sum(sum(store.files(*place).values()) for place in doomed) + sum(map(store.litter_bytes, unfinished))
        if not dry_run:
            for place in doomed:
                store.remove(*place)
            for path in unfinished:
                store.remove_litter(path)
    return Garbage(tuple(f"{name}:{version}" for name, version in doomed), tuple(unfinished), freed, dry_run)


def _reachable(registry: "Registry", everything: "dict[tuple[str, str], Version]") -> set[tuple[str, str]]:
    by_reference = {version.digest: place for place, version in everything.items()}
    by_reference |= {version.ref: place for place, version in everything.items()}
    pending: list[tuple[str, str]] = []
    for name in {name for name, _ in everything}:
        for move in Journal(registry.store, name).moves():
            pending += [(name, version) for version in (move.version, move.previous) if version is not None]
    kept: set[tuple[str, str]] = set()
    while pending:
        place = pending.pop()
        if place in kept or place not in everything:
            continue
        kept.add(place)
        named = references(everything[place].manifest)
        pending += [by_reference[reference] for reference in named if reference in by_reference]
    return kept


def _old(version: "Version") -> bool:
    try:
        created = datetime.strptime(version.manifest.created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        raise IntegrityError(f"{version.ref} has no time", got=version.manifest.created) from None
    return (datetime.now(UTC) - created).total_seconds() > GRACE_S
