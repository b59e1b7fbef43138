"""The registry that a command of `genre registry` works on.

Owns: opening it, with the key of `--key`. Ignores: what is done with it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from genre.registry import Registry

DEFAULT = "registry/"
KeyOption = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", envvar="GENRE_SIGN_KEY", help="The private key that signs.")
]


def open_registry(url: str, key: Path | None = None) -> "Registry":
    """Open a registry, whose changes a key signs; errors as of `Registry`."""
    from genre.registry import Registry

    return Registry(url, sign_key=key)
