"""The person or program that changes a registry, as journals and manifests record it.

Owns: the name and its form, and the key that goes with it. Ignores: whether the name is true; only a signature shows that.
"""

import getpass
import os
from dataclasses import dataclass, field
from pathlib import Path

from genre.errors import InputError
from genre.registry.trust.keys import SIGN_VARIABLE, Signer
from genre.registry.trust.provenance import UNKNOWN

ACTOR_VARIABLE = "GENRE_ACTOR"
LONGEST = 200


def current_actor() -> str:
    """Return the name in the environment variable GENRE_ACTOR, or else that of the user of this process.

    Raises:
        InputError: The variable holds what cannot be shown on one line.
    """
    if given := os.environ.get(ACTOR_VARIABLE):
        return check_actor(given)
    try:
        return check_actor(getpass.getuser())
    except (OSError, KeyError, ImportError, InputError):  # a container's user may have no name
        return UNKNOWN


def check_actor(text: str) -> str:
    """Return `text` if it can stand for an actor; InputError otherwise."""
    if not text.strip() or len(text) > LONGEST or not text.isprintable():
        raise InputError("not a usable actor", got=repr(text[:80]), expected=f"1 to {LONGEST} printable characters on one line")
    return text


@dataclass(frozen=True)
class Author:
    """Who writes: a name, the key that signs if there is one, and the public keys whose entries are built on unchecked."""

    actor: str = field(default_factory=current_actor)
    signer: Signer | None = None
    trusted: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The trusted keys, and the author's own."""
        return self.trusted if self.signer is None else (*self.trusted, self.signer.key)


def current_signer() -> Signer | None:
    """Return the key in the file that GENRE_SIGN_KEY names, None without it; errors as of `Signer.read`."""
    given = os.environ.get(SIGN_VARIABLE)
    return Signer.read(Path(given)) if given else None
