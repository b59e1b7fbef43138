"""The option `--trust` of every command that opens a registry.

Owns: that a policy holds for the time of a command, in the processes that it starts too. Ignores: signatures.

    genre serve --trust trust.yaml
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from genre.cli.shell.options import Command, add_options

TRUST_VARIABLE = "GENRE_TRUST"
TrustOption = Annotated[
    Path | None,
    typer.Option("--trust", metavar="FILE", envvar=TRUST_VARIABLE, help="A policy: the keys whose signatures versions need."),
]


def add_trust(app: typer.Typer) -> None:
    """Give every command of a program that opens a registry, those of its groups included, the option `--trust`."""
    add_options(app, _with_trust, {"trust": (TrustOption, None)}, beside="registry")


def _with_trust(function: Command, path: str) -> Command:
    def command(*, trust: Path | None, **given: Any) -> Any:
        with _policy(trust):
            return function(**given)

    return command


@contextmanager
def _policy(file: Path | None) -> Iterator[None]:
    """A block in which registries are opened under a policy; the environment says so to the processes of a job too."""
    if file is None:
        yield
        return
    before = os.environ.get(TRUST_VARIABLE)
    os.environ[TRUST_VARIABLE] = str(file.absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ[TRUST_VARIABLE]
        else:
            os.environ[TRUST_VARIABLE] = before
