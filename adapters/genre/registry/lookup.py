"""From a reference to a version: by name and alias, by digest, and along encoders and parents.

Owns: what a store holds, reading manifests out of it, and the messages that list what there is instead. Ignores: the versions'
other files.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from genre.errors import IntegrityError, ManifestError, NotFoundError, RegistryError
from genre.registry.entries import Target
from genre.registry.journal import Journal
from genre.registry.limits import MAX_MANIFEST_BYTES
from genre.registry.manifest import Manifest, Version, open_sealed
from genre.registry.names import MANIFEST, check_name, is_digest, parse_ref, shorten
from genre.registry.stores.store import Store
from genre.registry.trust.policy import NOBODY, Trust


@dataclass(frozen=True)
class Listed:
    """One row of a listing; made without opening the version."""

    name: str
    version: str
    aliases: tuple[str, ...]


def resolve(store: Store, ref: str | Version, trust: Trust = NOBODY) -> Version:
    """Find the version that a reference means now and read its manifest; see `Registry.resolve` for the errors."""
    if isinstance(ref, Version):
        return ref
    parsed = parse_ref(ref)
    return open_version(store, parsed.name, parsed.version or _target(store, parsed.name, str(parsed.alias), trust).pin)


def open_version(store: Store, name: str, version: str) -> Version:
    """Read the manifest of a version, given by 12 to 64 digits of its digest; see `Registry.resolve` for the errors."""
    short = shorten(version)
    require_version(store, name, short)
    return checked_version(store.read(name, short, MANIFEST, MAX_MANIFEST_BYTES), name, version)


def checked_version(data: bytes, name: str, version: str) -> Version:
    """Return the version of a stored manifest's bytes; IntegrityError if it is damaged, or of another digest than `version`."""
    short = shorten(version)
    manifest = open_sealed(data, name, short)
    if not manifest.digest.startswith(version):
        what, got = f"{name}:{short} is not the version that was named", f"a version with digest {manifest.digest}"
        todo = "check the digits if you typed them; otherwise another version was put in its place: restore it from a copy"
        raise IntegrityError(what, got=got, expected=f"digest {version}", todo=todo)
    return Version(name, short, manifest.digest, manifest)


def require_version(store: Store, name: str, version: str) -> None:
    """Raise NotFoundError unless the version is there."""
    if not store.has(name, version):
        expected = _some(versions_of(store, name))
        raise NotFoundError(f"no version {name}:{version}", got=f"the registry at {store.url}", expected=expected)


def keep(store: Store, name: str, version: str) -> Version:
    """Keep gc from a version, given by 12 to 64 digits, until the present `writing` ends.

    Raises:
        NotFoundError: It is not there, or has just been given up.
        IntegrityError: Its manifest is damaged, or of another digest.
    """
    short = shorten(version)
    if not store.keep(name, short):
        require_version(store, name, short)
        got, todo = "a version that gc or a delete has given up", "publish it again: its files are being removed"
        raise NotFoundError(f"{name}:{short} is gone", got=got, todo=todo)
    return open_version(store, name, version)


def keep_references(store: Store, draft: Manifest) -> None:
    """Keep gc from what a draft names; ManifestError if its encoder is not there. Parents may be gone."""
    encoder = check_encoder(store, draft)
    if encoder is not None and not store.keep(encoder.name, encoder.version):
        raise _no_encoder(draft)
    for parent in draft.parents:
        if (version := look_up(store, parent)) is not None:
            store.keep(version.name, version.version)


def versions_of(store: Store, name: str) -> list[str]:
    """Return all versions of a name, oldest first; NotFoundError if there is no such name."""
    if found := store.versions(check_name(name)):
        return found
    names = store.names()
    got = f"the registry at {store.url}" + ("" if names else f", {store.content()}")
    near = get_close_matches(name, names, n=1)
    todo = f"did you mean {near[0]}?" if near else None if names else "genre train publishes into it"
    raise NotFoundError(f"no adapter {name!r}", got=got, expected=_some(names) or None, todo=todo)


def list_versions(store: Store) -> list[Listed]:
    """Every version and the aliases that name it, without opening any."""
    rows = []
    for name, versions in store.listing().items():
        aliases: dict[str, tuple[str, ...]] = {}
        for alias, target in targets_of(store, name).items():
            aliases[target.version] = (*aliases.get(target.version, ()), alias)
        rows += [Listed(name, version, aliases.get(version, ())) for version in versions]
    return rows


def targets_of(store: Store, name: str) -> dict[str, Target]:
    """What each alias of a name names now, sorted by alias."""
    return dict(sorted(Journal(store, check_name(name)).aliases().targets.items()))


def find(store: Store, digest: str) -> Version:
    """Find a version by its digest, whatever its name; NotFoundError if no name has it, IntegrityError if it is damaged."""
    if not is_digest(digest):
        raise RegistryError("not a digest", got=repr(digest[:80]), expected="64 hex digits")
    failure: RegistryError | None = None
    for name in [name for name, versions in store.listing().items() if shorten(digest) in versions]:
        try:
            version = open_version(store, name, shorten(digest))
        except NotFoundError:  # removed just now
            continue
        except RegistryError as error:  # damaged here: it may stand under another name too
            failure = failure or error
            continue
        if version.digest == digest:
            return version
    if failure is not None:
        raise failure
    raise NotFoundError(f"no version with digest {digest}", got=f"the registry at {store.url}", todo="publish it first")


def look_up(store: Store, reference: str) -> Version | None:
    """Return the version of a digest or a reference; None if it is not here."""
    try:
        return find(store, reference) if is_digest(reference) else resolve(store, reference)
    except NotFoundError:
        return None


def check_encoder(store: Store, draft: Manifest) -> Version | None:
    """Return the encoder of a draft; ManifestError if it is not in the store, or is not an encoder."""
    if draft.encoder is None:
        return None
    try:
        found = find(store, draft.encoder)
    except NotFoundError:
        raise _no_encoder(draft) from None
    if (kind := found.manifest.kind) != "encoder":
        raise ManifestError(f"the encoder of {draft.name} is not an encoder", got=f"a version of kind {kind}", expected="encoder")
    return found


def _no_encoder(draft: Manifest) -> ManifestError:
    what, expected = f"{draft.name} needs an encoder that this registry does not have", "the digest of a published encoder"
    return ManifestError(what, got=f"encoder {draft.encoder}", expected=expected, todo="publish the encoder first")


def ancestors(store: Store, root: Version) -> list[tuple[int, str, Version | None]]:
    """A version, its encoder, its parents and theirs, depth first: (depth, reference, version or None where it is unknown)."""
    rows: list[tuple[int, str, Version | None]] = []
    pending: list[tuple[int, str, Version | None]] = [(0, root.ref, root)]
    visited: set[str] = set()
    while pending:
        depth, reference, version = pending.pop()
        rows.append((depth, reference, version))
        if version is not None and version.digest not in visited:
            visited.add(version.digest)
            pending += [(depth + 1, each, look_up(store, each)) for each in reversed(version.manifest.references)]
    return rows


def differences(a: Manifest, b: Manifest) -> dict[str, tuple[Any, Any]]:
    """The fields in which two manifests differ, by dotted name; None where a side has no such field.

    The provenance is left out: it follows from the others.
    """
    left, right = (flatten({key: value for key, value in each.raw().items() if key != "provenance"}) for each in (a, b))
    keys = sorted(left.keys() | right.keys())
    return {key: (left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)}


def _target(store: Store, name: str, alias: str, trust: Trust) -> Target:
    journal = Journal(store, name)
    if target := journal.target(alias, trust):
        return target
    aliases = journal.aliases()
    versions_of(store, name)
    expected = _some(f"{name}@{known}" for known in sorted(aliases.targets)) or f"{name}:VERSION"
    raise NotFoundError(f"no alias {name}@{alias}", got=f"the registry at {store.url}", expected=expected)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted name."""
    if not isinstance(value, dict) or (not value and prefix):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else key)
    return flat


def _some(items: Iterable[str]) -> str:
    items = list(items)
    return ", ".join(items[:8]) + (f" and {len(items) - 8} more" if len(items) > 8 else "")
