"""Verifying a whole store, or all of one name.

Owns: the order of the checks and the names of the findings. Ignores: repairing; how a file or an entry is checked. It reads the
store and nothing else, so that a whole copy on this machine does not hide what is missing there.

    like:a3f09c12be77/heads.safetensors has changed: got sha256 5d4f…; expected 77ab…
    like/aliases/3.json is missing
    like:0c4d5e6f7a8b is missing but production names it
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from genre.errors import RegistryError
from genre.registry.entries import NOTHING, Move
from genre.registry.integrity import check_stored, find_damage
from genre.registry.journal import Journal
from genre.registry.lookup import look_up, open_version
from genre.registry.manifest import Version
from genre.registry.names import AUDITS, MANIFEST, RECORDS, SIGNATURES
from genre.registry.records import read_audit, read_baselines
from genre.registry.signatures import check_signed, find_wrong_signatures
from genre.registry.stores.store import Store, is_record, is_signature
from genre.registry.trust.policy import Trust


@dataclass(frozen=True)
class Problem:
    """A finding of `verify`. `version` and `file` are empty where they do not apply."""

    name: str
    version: str
    file: str
    what: str

    def __str__(self) -> str:
        """One line: the path, then the problem."""
        path = self.name + (f":{self.version}" if self.version else "") + (f"/{self.file}" if self.file else "")
        repeated = self.what.startswith((f"{path} ", f"{path}@"))  # an error that names the place itself
        return self.what if repeated else f"{path} {self.what}"


def verify(store: Store, name: str | None, check: Callable[[Version], object] | None, trust: Trust) -> list[Problem]:
    """Re-hash all versions of one name or of all, follow the journals, and list what is missing and what does not belong.

    `check` checks a version of a remote store, file by file, as it is there now; without it nothing is hashed. Signatures are
    checked wherever they are; what a policy requires and lacks is listed too.
    """
    strays = [path for path in store.strays() if name in (None, path.split("/")[0])]
    found = [Problem(path, "", "", "does not belong here") for path in strays]
    listing = store.listing()
    find_encoder = functools.cache(lambda digest: look_up(store, digest))  # many versions share an encoder
    for each in store.known():
        if name in (None, each):
            digests: dict[str, str | None] = {}
            for version in listing.get(each, ()):
                digest, problems = _verify_version(store, each, version, check, trust, find_encoder)
                if not problems or store.has(each, version):  # gc has not just removed it
                    digests[version] = digest
                    found += problems
            found += _verify_journal(store, each, digests, trust)
            found += _verify_beside(store, each, digests)
    return found


def _verify_version(
    store: Store,
    name: str,
    version: str,
    check: Callable[[Version], object] | None,
    trust: Trust,
    find_encoder: Callable[[str], Version | None],
) -> tuple[str | None, list[Problem]]:
    """The digest of a version, None where its manifest is damaged, and what is wrong with it."""
    digest: str | None = None
    found: list[Problem] = []
    try:
        opened = open_version(store, name, version)
        digest, manifest, local = opened.digest, opened.manifest, store.folder(name, version)
        present = store.files(name, version).keys()
        found = [
            Problem(name, version, file, "is not in the manifest")
            for file in sorted(present - manifest.files.keys() - {MANIFEST})
        ]
        if check is None:
            found += [Problem(name, version, file, "is missing") for file in sorted(manifest.files.keys() - present)]
        elif local is None:
            check(opened)
        else:
            found = [Problem(name, version, file, what) for file, what in find_damage(local, manifest)]
            if not found:
                check_stored(local, manifest)
        if manifest.encoder is not None and find_encoder(manifest.encoder) is None:
            found.append(Problem(name, version, "", f"names an encoder that is not here: {manifest.encoder}"))
        found += [Problem(name, "", file, what) for file, what in find_wrong_signatures(store, opened)]
        if trust.require:
            check_signed(store, opened, trust)
    except (RegistryError, OSError) as error:
        return digest, [*found, Problem(name, version, "", str(error))]
    return digest, found


def _verify_journal(store: Store, name: str, digests: Mapping[str, str | None], trust: Trust) -> list[Problem]:
    journal = Journal(store, name)
    problems, entries = journal.audit()
    found = [Problem(name, "", file, what) for file, what in problems]
    moves, aliases = [entry.move for entry in entries], entries[-1].after if entries else NOTHING
    for alias in sorted(aliases.targets) if trust.require else ():
        try:
            journal.target(alias, trust)
        except RegistryError as error:
            found.append(Problem(name, "", "", str(error)))
    if moves and not digests:
        found.append(Problem(name, "", "", "has a journal, but all of its versions are gone"))
    for version, move in needed_versions(moves).items():
        holders = sorted(alias for alias, target in aliases.targets.items() if target.version == version)
        if version not in digests:
            found.append(Problem(name, version, "", _missing(name, move, holders)))
        elif move.digest is not None and digests[version] not in (None, move.digest):
            what = f"is not the version that {move.alias} was moved to: got digest {digests[version]}; expected {move.digest}"
            found.append(Problem(name, version, "", what))
    return found


def needed_versions(moves: list[Move]) -> dict[str, Move]:
    """Return the versions that a history names and that were not deleted on purpose since, with the last move of each."""
    needed: dict[str, Move] = {}
    for move in moves:
        if move.action == "delete":
            needed.pop(move.version, None)
        else:
            needed[move.version] = move
    return needed


def _missing(name: str, move: Move, holders: list[str]) -> str:
    if holders:
        return f"is missing but {', '.join(holders)} names it"
    todo = f"if it was deleted on purpose, genre registry delete {name}:{move.version} records that"
    return f"is missing but the history of {move.alias} names it; restore it from a copy, or {todo}"


def _verify_beside(store: Store, name: str, digests: Mapping[str, str | None]) -> list[Problem]:
    """What lies beside the versions: their records, and nothing of versions that are gone."""
    owners = {
        f"{folder}/{file}": file.removesuffix(".json")
        for folder in (RECORDS, AUDITS)
        for file in store.files(name, folder)
        if is_record(file)
    }
    signatures = [file for file in store.files(name, SIGNATURES) if is_signature(file)]
    owners |= {f"{SIGNATURES}/{file}": file.partition("-")[0] for file in signatures}
    orphans = sorted(file for file, version in owners.items() if version not in digests)
    found = [Problem(name, "", file, "belongs to no version") for file in orphans]
    for version in digests:
        for read in (read_baselines, read_audit):
            try:
                read(store, name, version)
            except RegistryError as error:
                found.append(Problem(name, version, "", str(error)))
    return found
