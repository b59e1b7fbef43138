"""One entry of a journal: its fields, its bytes, and the rule by which it follows from the entry before.

Owns: the form of an entry. Ignores: where it is stored. One real entry:

    {"action": "promote", "actor": "ann", "alias": "production", "before": "51ab…", "checks": ["like.auc 0.761 >= 0.7"],
     "checksum": "…", "created": "2026-03-01T12:00:00Z", "digest": "0c4d5e6f7a8b…", "id": "…", "n": 3, "name": "like",
     "previous": "a3f09c12be77", "signature": null,
     "state": {"latest": {"digest": "0c4d…", "n": 2, "version": "0c4d5e6f7a8b"}, "production": {"digest": "0c4d…", "n": 3,
     "version": "0c4d5e6f7a8b"}}, "version": "0c4d5e6f7a8b"}

Entries of earlier releases have no `actor`, `before`, `digest`, `name` and `signature`: they name a version by 12 digits and are
not chained. The next entry is, and binds what their aliases name.
"""

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from genre.errors import IntegrityError, ManifestError
from genre.registry.limits import MAX_ENTRY_BYTES, parse_json
from genre.registry.manifest import canonical, checksum_of, render
from genre.registry.names import ALIASES, is_digest, is_name, is_version, shorten
from genre.registry.trust.keys import Signer, is_key, is_signed

Action = Literal["publish", "promote", "rollback", "sign", "delete"]
NO_ALIAS = ""
"""The alias of an entry that moves none."""

_KIND = "application/vnd.genre.entry+json"
_FORMER = {"n", "alias", "version", "previous", "created", "action", "checks", "state", "id", "checksum"}
_FIELDS = _FORMER | {"actor", "before", "digest", "name", "signature"}


@dataclass(frozen=True)
class Move:
    """One alias move, or the deletion of a version.

    Attributes:
        n: The number of its entry.
        alias: The alias; empty for a deletion.
        version: The version that it names from then on, or that was deleted.
        previous: The version that the alias named before.
        created: The time, in UTC.
        action: `publish`, `promote`, `rollback`, `sign` (the alias stays where it is) or `delete`.
        checks: What was compared to allow it.
        digest: The whole digest of the version; None in entries of earlier releases.
        actor: The mover; None in entries of earlier releases.
    """

    n: int
    alias: str
    version: str
    previous: str | None
    created: str
    action: str
    checks: tuple[str, ...] = ()
    digest: str | None = None
    actor: str | None = None


@dataclass(frozen=True)
class Target:
    """The version that an alias names, the number of the entry that moved it there, and the digest that it is bound to."""

    version: str
    n: int
    digest: str | None = None

    @property
    def pin(self) -> str:
        """The digest, or the 12 digits of an entry that has no more: those mean what stands in the store."""
        return self.digest or self.version

    def means(self, pin: str) -> bool:
        """Return whether a version, by 12 digits or a digest, is this one; where one side has fewer digits, those decide."""
        return self.pin.startswith(pin) or pin.startswith(self.pin)


@dataclass(frozen=True)
class Aliases:
    """The targets of a name's aliases after entry `n` (0: no entry yet)."""

    n: int
    targets: dict[str, Target]

    def version(self, alias: str) -> str | None:
        """The version that an alias names; None if there is no such alias."""
        return self.targets[alias].version if alias in self.targets else None


NOTHING = Aliases(0, {})


@dataclass(frozen=True)
class Entry:
    """An entry as it was read.

    Attributes:
        move: What it says.
        after: The aliases from then on.
        before: The sha256 of the entry before, empty for the first; None in entries of earlier releases.
        sha256: Of its own bytes.
        raw: Its fields.
    """

    move: Move
    after: Aliases
    before: str | None
    sha256: str
    raw: dict[str, Any] = field(repr=False)


def apply(targets: Mapping[str, Target], move: Move) -> dict[str, Target]:
    """Return the targets after a move."""
    if move.alias == NO_ALIAS:
        return dict(targets)
    return {**targets, move.alias: Target(move.version, move.n, move.digest)}


def follows(entry: Entry, before: Entry | None) -> str | None:
    """Return the reason why an entry does not follow from the one before it (None: it is the first); None if it does."""
    if entry.before is None and before is not None and before.before is not None:
        return "is not chained, but the entry before it is"
    if entry.before is not None and entry.before != ("" if before is None else before.sha256):
        return "was written after another entry than the one before it"
    earlier = apply({} if before is None else before.after.targets, entry.move)
    later = entry.after.targets
    same = earlier.keys() == later.keys() and all(_continues(later[alias], target) for alias, target in earlier.items())
    return None if same else "does not follow from the entry before"


def _continues(later: Target, earlier: Target) -> bool:
    """Return whether a target is the same one; an unbound one may have been bound meanwhile."""
    digests = earlier.digest in (None, later.digest)
    return (later.version, later.n) == (earlier.version, earlier.n) and digests


def signed_by(entry: Entry) -> str | None:
    """Return the public key whose signature over an entry is good; None if it has none, or a wrong one."""
    found = entry.raw.get("signature")
    if found is None or not is_signed(found["key"], _KIND, unsigned(entry.raw), bytes.fromhex(found["value"])):
        return None
    return str(found["key"])


def unsigned(raw: Mapping[str, Any]) -> bytes:
    """Return the bytes that the signature inside an entry or a checkpoint is over."""
    return canonical({key: value for key, value in raw.items() if key not in ("signature", "checksum")})


def encode(move: Move, name: str, state: Mapping[str, Target], before: str, signer: Signer | None) -> bytes:
    """Return the bytes of an entry."""
    raw: dict[str, Any] = {**vars(move), "checks": list(move.checks), "name": name, "before": before, "signature": None}
    raw |= {"state": {alias: vars(target) for alias, target in state.items()}, "id": uuid.uuid4().hex}
    if signer is not None:
        raw["signature"] = {"key": signer.key, "value": signer.sign(_KIND, unsigned(raw)).hex()}
    return render(raw | {"checksum": checksum_of(raw)})


def decode(data: bytes, name: str, number: int) -> Entry:
    """Read the bytes of an entry.

    Raises:
        IntegrityError: It is damaged, of another name or of another number.
    """
    what = f"{ALIASES}/{number}.json of {name}"
    raw = parse_json(data, what, limit=MAX_ENTRY_BYTES)
    damaged = IntegrityError(f"{what} is damaged", got="other content than its checksum says", todo="restore it from a copy")
    try:
        whole = isinstance(raw, dict) and (raw.keys() == _FIELDS or raw.keys() == _FORMER)
        if not whole or checksum_of(raw) != raw["checksum"] or render(raw) != data:
            raise damaged
        targets = {alias: _target(target) for alias, target in raw["state"].items()}
        fields = {key: raw[key] for key in ("n", "alias", "version", "previous", "created", "action")}
        move = Move(**fields, checks=tuple(raw["checks"]), digest=raw.get("digest"), actor=raw.get("actor"))
        if move.action not in get_args(Action) or not all(isinstance(text, str) for text in _texts(move)):
            raise damaged
        named = all(is_name(alias) and _is_sound(target) for alias, target in targets.items())
        if (
            move.n != number
            or raw.get("name", name) != name
            or not named
            or not _is_sound(Target(move.version, number, move.digest))
        ):
            raise damaged
        if apply(targets, move) != targets or (move.alias == NO_ALIAS) != (move.action == "delete"):
            raise damaged
        if not _is_signature(raw.get("signature")):
            raise damaged
        before = raw.get("before")
        if before is not None and before != "" and not is_digest(before):
            raise damaged
    except (ManifestError, KeyError, TypeError, AttributeError, ValueError):
        raise damaged from None
    return Entry(move, Aliases(number, targets), before, hashlib.sha256(data).hexdigest(), raw)


def _texts(move: Move) -> Iterator[object]:
    """What an entry shows to people."""
    yield from (move.created, *move.checks)
    yield from (text for text in (move.previous, move.actor) if text is not None)


def _is_signature(value: Any) -> bool:
    return value is None or (
        value.keys() == {"key", "value"} and is_key(value["key"]) and len(bytes.fromhex(value["value"])) == 64
    )


def _target(raw: Mapping[str, Any]) -> Target:
    return Target(raw["version"], raw["n"], raw.get("digest"))


def _is_sound(target: Target) -> bool:
    bound = target.digest is None or (is_digest(target.digest) and shorten(target.digest) == target.version)
    return is_version(target.version) and bound
