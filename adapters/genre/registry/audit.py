"""Looking at everything: what `verify` finds.

Owns: the order of the checks and how a finding is named. Ignores: repairing; nothing is changed here.

    like:a3f09c12be77/heads.safetensors has changed: got sha256 5d4f…; expected 77ab…
    like/aliases/3.json is missing
"""

from typing import TYPE_CHECKING

from genre.errors import NotFoundError, RegistryError
from genre.registry.integrity import check_stored, find_damage
from genre.registry.journal import Journal
from genre.registry.names import MANIFEST, is_digest
from genre.registry.values import Problem

if TYPE_CHECKING:
    from genre.registry.core import Registry


def audit(registry: "Registry", name: str | None) -> list[Problem]:
    """Re-hash all versions of one name or of all, follow the journals, and list what does not belong."""
    strays = [path for path in registry.store.strays() if name in (None, path.split("/")[0])]
    found = [Problem(path, "", "", "does not belong here") for path in strays]
    for each, versions in registry.store.listing().items():
        if name in (None, each):
            for version in versions:
                found += _audit_version(registry, each, version)
            found += _audit_journal(registry, each, set(versions))
    return found


def _audit_version(registry: "Registry", name: str, version: str) -> list[Problem]:
    try:
        opened = registry.open_version(name, version)
        manifest, local = opened.manifest, registry.store.folder(name, version)
        if local is None:
            extra = sorted(registry.store.files(name, version).keys() - manifest.files.keys() - {MANIFEST})
            found = [Problem(name, version, file, "is not in the manifest") for file in extra]
            registry.fetch(opened)
        else:
            found = [Problem(name, version, file, what) for file, what in find_damage(local, manifest)]
            if not found:
                check_stored(local, manifest)
    except (RegistryError, OSError) as error:
        return [Problem(name, version, "", str(error))]
    if manifest.encoder is not None and not _has(registry, manifest.encoder):
        found.append(Problem(name, version, "", f"names an encoder that is not here: {manifest.encoder}"))
    return found


def _audit_journal(registry: "Registry", name: str, versions: set[str]) -> list[Problem]:
    journal = Journal(registry.store, name)
    found = [Problem(name, "", file, what) for file, what in journal.problems()]
    if found:
        return found
    held = journal.state().aliases.items()
    gone = [(alias, each.version) for alias, each in held if each.version not in versions]
    return [Problem(name, version, "", f"is missing but {alias} names it") for alias, version in gone]


def _has(registry: "Registry", digest: str) -> bool:
    try:
        return is_digest(digest) and registry.find(digest) is not None
    except NotFoundError:
        return False
