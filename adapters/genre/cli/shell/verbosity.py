"""`--quiet` and `--verbose`, which every command takes.

Owns: the two options, what they change for the time of a command. Ignores: what commands print on standard output, which neither
changes.

    add_verbosity(app)      # genre train like.yaml --quiet: nothing on standard error but errors
"""

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from genre.cli.shell.loading import announced_import
from genre.cli.shell.options import Command, add_options
from genre.distributed import process_rank
from genre.errors import GenreError, InputError
from genre.progress import Verbosity, never_silent, reporting

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress: results and errors only.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Progress with the time of day, libraries' logs, the traceback of an error.")
]
_IN_JSON = ("genre serve",)
"""Commands whose standard error is a log for programs."""


def add_verbosity(app: typer.Typer) -> None:
    """Give every command of a program, those of its groups included, the options `--quiet` and `--verbose`."""
    add_options(app, _with_verbosity, {"quiet": (QuietOption, False), "verbose": (VerboseOption, False)})


def _with_verbosity(function: Command, path: str) -> Command:
    def command(*, quiet: bool, verbose: bool, **given: Any) -> Any:
        if quiet and verbose:
            raise InputError("--quiet and --verbose exclude each other", got="both", expected="one of the two")
        if not verbose:
            with reporting(Verbosity.QUIET if quiet else Verbosity.NORMAL), _without_silence(path):
                return function(**given)
        with reporting(Verbosity.VERBOSE), _library_logs(), _tracebacks(), _without_silence(path):
            return function(**given)

    return command


@contextmanager
def _without_silence(path: str) -> Iterator[None]:
    """A block in which the slow import is announced, and a line comes where nothing else does."""
    if path in _IN_JSON or process_rank() > 0:
        yield
        return
    with announced_import(), never_silent(path):
        yield


@contextmanager
def _library_logs() -> Iterator[None]:
    """A block in which libraries' log messages of level INFO and above go to standard error."""
    root, handler = logging.getLogger(), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S"))
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


@contextmanager
def _tracebacks() -> Iterator[None]:
    """A block whose errors are printed with their traceback, before the line that every error gets."""
    try:
        yield
    except GenreError:
        traceback.print_exc()
        raise
