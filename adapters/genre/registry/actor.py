"""The person or program that changes a registry, as journals and manifests record it.

Owns: the name and its form. Ignores: whether it is true; only a signature shows that.
"""

import getpass
import os

from genre.errors import InputError

ACTOR_VARIABLE = "GENRE_ACTOR"
UNKNOWN = "unknown"
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
