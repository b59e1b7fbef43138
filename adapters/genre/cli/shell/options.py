"""Options that every command of a program takes beside its own.

Owns: their place in the signature that typer reads. Ignores: what they are.

    add_options(app, _with_verbosity, {"quiet": (QuietOption, False)})
"""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import typer

Command = Callable[..., Any]


def add_options(
    app: typer.Typer,
    wrap: Callable[[Command, str], Command],
    options: Mapping[str, tuple[Any, object]],
    *,
    beside: str | None = None,
    only: Collection[str] | None = None,
    path: str = "genre",
) -> None:
    """Give the commands of a program, those of its groups included, further options.

    Args:
        app: The program, whose commands are replaced.
        wrap: Makes of a command and its name, such as `genre train`, the one that takes the options too, by keyword.
        options: Each option's type and default, by its parameter's name.
        beside: The parameter of the commands that get them; None gives them to all.
        only: The names of the commands that get them; None gives them to all.
        path: The program's name.
    """
    for command in app.registered_commands:
        function = command.callback
        assert function is not None
        signature = inspect.signature(function, eval_str=True)
        full_name = f"{path} {command.name or function.__name__}"
        if (beside is not None and beside not in signature.parameters) or (only is not None and full_name not in only):
            continue
        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in options.items()
        ]
        wrapped: Any = functools.wraps(function)(wrap(function, full_name))
        wrapped.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *more])
        command.callback = wrapped
    for group in app.registered_groups:
        assert group.typer_instance is not None
        add_options(group.typer_instance, wrap, options, beside=beside, only=only, path=f"{path} {group.name}")
