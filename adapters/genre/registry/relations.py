"""What versions have to do with each other: in which fields they differ, and what a version came from.

Owns: comparing manifests, walking encoders and parents. Ignores: files, aliases.
"""

from typing import TYPE_CHECKING, Any

from genre.errors import NotFoundError
from genre.registry.manifest import Manifest
from genre.registry.names import is_digest
from genre.registry.values import Version, references

if TYPE_CHECKING:
    from genre.registry.core import Registry


def differences(a: Manifest, b: Manifest) -> dict[str, tuple[Any, Any]]:
    """The fields in which two manifests differ, by dotted name; None where a side has no such field."""
    left, right = _flatten(a.raw()), _flatten(b.raw())
    keys = sorted(left.keys() | right.keys())
    return {key: (left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)}


def ancestors(registry: "Registry", root: Version) -> list[tuple[int, str, Version | None]]:
    """A version, its encoder, its parents and theirs, depth first: (depth, reference, version or None where it is unknown)."""
    rows: list[tuple[int, str, Version | None]] = []
    pending: list[tuple[int, str, Version | None]] = [(0, root.ref, root)]
    seen: set[str] = set()
    while pending:
        depth, text, version = pending.pop()
        rows.append((depth, text, version))
        if version is not None and version.digest not in seen:
            seen.add(version.digest)
            pending += [(depth + 1, each, _find(registry, each)) for each in reversed(references(version.manifest))]
    return rows


def _find(registry: "Registry", reference: str) -> Version | None:
    try:
        return registry.find(reference) if is_digest(reference) else registry.resolve(reference)
    except NotFoundError:
        return None


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or (not value and prefix):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{key}" if prefix else key)
    return flat
