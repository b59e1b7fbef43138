"""`--quiet` and `--verbose`, which every command takes.

Owns: the two options, what they change for the time of a command. Ignores: what commands print on standard output, which neither
changes.

    add_verbosity(app)      # genre train like.yaml --quiet: nothing on standard error but errors
"""

import functools
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Annotated, Any

import typer

from genre.cli.shell.loading import announced_import
from genre.distributed import process_rank
from genre.errors import GenreError, InputError
from genre.progress import Verbosity, never_silent, reporting

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress: results and errors only.")]
_IN_JSON = ("genre serve",)
"""Commands whose standard error is a log for programs."""

VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Progress with the time of day, libraries' logs, the traceback of an error.")
]


def add_verbosity(app: typer.Typer, path: str = "genre") -> None:
    """Give every command of a program, those of its groups included, the options `--quiet` and `--verbose`."""
    for command in app.registered_commands:
        assert command.callback is not None
        command.callback = _with_verbosity(command.callback, f"{path} {command.name or command.callback.__name__}")
    for group in app.registered_groups:
        assert group.typer_instance is not None
        add_verbosity(group.typer_instance, f"{path} {group.name}")


def _with_verbosity(function: Callable[..., Any], label: str) -> Callable[..., Any]:
    signature = inspect.signature(function, eval_str=True)
    own = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option)
        for name, option in (("quiet", QuietOption), ("verbose", VerboseOption))
    ]

    told = nullcontext if label in _IN_JSON else functools.partial(_told, label)

    @functools.wraps(function)
    def command(*, quiet: bool, verbose: bool, **given: Any) -> Any:
        if quiet and verbose:
            raise InputError("--quiet and --verbose exclude each other", got="both", expected="one of the two")
        if not verbose:
            with reporting(Verbosity.QUIET if quiet else Verbosity.NORMAL), told():
                return function(**given)
        with reporting(Verbosity.VERBOSE), _library_logs(), _tracebacks(), told():
            return function(**given)

    command.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *own])  # type: ignore[attr-defined]
    return command


@contextmanager
def _told(label: str) -> Iterator[None]:
    """A block without long silence: the slow import is announced, and a line comes where nothing else does."""
    with announced_import(), never_silent(label) if process_rank() == 0 else nullcontext():
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
