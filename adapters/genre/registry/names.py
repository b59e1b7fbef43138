"""Names, versions, aliases and references, checked before they ever become a path.

Owns: the form of names and references. Ignores: whether anything by that name exists.

    >>> parse_ref("like@production")
    Ref(name='like', version=None, alias='production')
    >>> parse_ref("like:0123456789ab")
    Ref(name='like', version='0123456789ab', alias=None)
    >>> parse_ref("like")
    Ref(name='like', version=None, alias='latest')

A version is the first 12 digits of its digest, for people to type. Whatever is stored or remembered binds the whole digest,
and a reference may give more digits than 12, up to all 64: then those count too.
"""

import re
from dataclasses import dataclass

from genre.errors import RegistryError

ALIASES = "aliases"
RECORDS = "baselines"
AUDITS = "audits"
SIGNATURES = "signatures"
HEADS = ".heads"
HEAD = "head.json"
WITHHELD = "withheld"
"""The digest of data that a private version does not tell."""
MANIFEST = "manifest.json"
LATEST = "latest"
PRODUCTION = "production"
SHORT = 12
"""Hex digits of a digest that name a version, and its folder. Two versions of one name never have the same."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}", re.ASCII)
_HEX = re.compile(r"[0-9a-f]+", re.ASCII)
_DIGEST_DIGITS = 64


@dataclass(frozen=True)
class Ref:
    """A parsed reference: a name, and either a version (12 to 64 digits of a digest, as typed) or an alias."""

    name: str
    version: str | None
    alias: str | None


def is_name(text: str) -> bool:
    """Return whether `text` can name an adapter or an alias."""
    return _NAME.fullmatch(text) is not None and text != ALIASES


def is_version(text: str) -> bool:
    """Return whether `text` has the form of a version: the first 12 hex digits of a digest."""
    return len(text) == SHORT and _HEX.fullmatch(text) is not None


def is_pin(text: str) -> bool:
    """Return whether `text` names a version by its 12 digits, or binds more of its digest, up to all 64."""
    return SHORT <= len(text) <= _DIGEST_DIGITS and _HEX.fullmatch(text) is not None


def shorten(digest: str) -> str:
    """Return the version of a digest, or of a longer or equal beginning of one."""
    return digest[:SHORT]


def is_digest(text: str) -> bool:
    """Return whether `text` has the form of a digest: 64 hex digits."""
    return len(text) == _DIGEST_DIGITS and _HEX.fullmatch(text) is not None


def check_name(text: str, what: str = "name") -> str:
    """Return `text` if it can name an adapter or an alias; RegistryError otherwise."""
    if not is_name(text):
        expected = f"1 to 64 of a-z 0-9 _ . - that begin with a letter or digit, and not '{ALIASES}'"
        path = what == "name" and "/" in text
        todo = "it is a path: name an adapter, as genre registry list shows them" if path else None
        todo = todo if text else f"the {what} is missing, as in like@latest"
        raise RegistryError(f"not a usable {what}", got=repr(text[:80]), expected=expected, todo=todo)
    return text


def check_version(text: str) -> str:
    """Return `text` if it has the form of a version, or of a longer beginning of its digest; RegistryError otherwise."""
    if not is_pin(text):
        expected = f"{SHORT} hex digits, as `genre registry list` shows, or more of the digest"
        raise RegistryError("not a version", got=repr(text[:80]), expected=expected)
    return text


def parse_ref(text: str) -> Ref:
    """Read `name`, `name@alias` or `name:version`; `name` alone means `name@latest`. RegistryError for another form."""
    if ":" in text:
        name, version = text.split(":", 1)
        return Ref(check_name(name), check_version(version), None)
    name, at, alias = text.partition("@")
    return Ref(check_name(name), None, check_name(alias, "alias") if at else LATEST)
