"""The options that were typed, and the refusal of those that a command would not read.

Owns: telling an option that was typed from a default and from an environment variable. Ignores: which options go together.

    refuse_unused(["--profile"], got="--sizes", expected="a comparison of variants")

    --profile has no effect here: got --sizes; expected a comparison of variants; leave --profile out
"""

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

import typer

from genre.cli.shell.options import Command, add_options
from genre.errors import InputError

_TYPED: ContextVar[Mapping[str, str] | None] = ContextVar("typed", default=None)
"""The typed options of the command that runs, each with its name in messages: a switch has two spellings."""


def add_given(app: typer.Typer) -> None:
    """Let the commands of a program know which of their options were typed."""
    add_options(app, _with_given, {"context": (typer.Context, None)})


def _with_given(function: Command, path: str) -> Command:
    def command(*, context: typer.Context, **given: Any) -> Any:
        token = _TYPED.set(_typed(context))
        try:
            return function(**given)
        finally:
            _TYPED.reset(token)

    return command


def _typed(context: typer.Context) -> dict[str, str]:
    found = {}
    for parameter in context.command.params:
        source = context.get_parameter_source(str(parameter.name))
        if source is not None and source.name == "COMMANDLINE":
            found[parameter.opts[0]] = "/".join([parameter.opts[0], *parameter.secondary_opts])
    return found


def refuse_unused(options: Iterable[str], *, got: str, expected: str) -> None:
    """Refuse options that were typed although this call of a command does not read them.

    Args:
        options: By their first spelling, such as `--profile`.
        got: What makes them useless.
        expected: What they are for.

    Raises:
        InputError: One of them was typed.
    """
    typed = _TYPED.get() or {}
    for name in (typed[option] for option in options if option in typed):
        raise InputError(f"{name} has no effect here", got=got, expected=expected, todo=f"leave {name} out")
