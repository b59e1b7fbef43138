"""The command line: every command registered, one-line errors, exit codes.

Owns: the program `genre`. Ignores: the commands' options and output, which are in the modules beside this
one; those import slow libraries inside the commands.
"""

import re
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from genre._version import __version__
from genre.cli import (
    audit,
    base,
    bench,
    data,
    doctor,
    evaluate,
    explain,
    federated,
    merge,
    recommend,
    refresh,
    report,
    score,
    serve,
    train,
    tune,
)
from genre.cli.recipe import check as recipe
from genre.cli.registry import commands as registry
from genre.cli.shell.completion import whole_words
from genre.cli.shell.device import add_device
from genre.cli.shell.given import add_given
from genre.cli.shell.verbosity import add_verbosity
from genre.cli.trust import add_trust
from genre.distributed import process_count, process_rank
from genre.errors import GenreError, InputError

app = typer.Typer(
    name="genre",
    help="One frozen base LLM, one small adapter per recommendation task.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data", help="Prepare, import and describe data sets.")
app.add_typer(base.app, name="base", help="Prepare and list bases.")
app.add_typer(recipe.app, name="recipe", help="Write and check recipes.")
app.add_typer(registry.app, name="registry", help="Look at and change a registry.")


def _version(asked: bool) -> None:
    if asked:
        print(f"genre {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """One frozen base LLM, one small adapter per recommendation task."""
    command = context.invoked_subcommand
    if process_count() > 1 and command != "train":
        raise InputError("only genre train runs in several processes", got=f"genre {command}", expected="one process")


COMMANDS: tuple[Callable[..., None], ...] = (
    *(train.train, evaluate.evaluate, recommend.recommend, score.score, merge.merge, tune.tune, tune.crossval, tune.compare),
    *(federated.federated, bench.bench, refresh.refresh, explain.explain, report.report, audit.audit, doctor.doctor, serve.serve),
)
for each in COMMANDS:
    app.command()(each)
add_trust(app)
add_device(app)
add_verbosity(app)
add_given(app)


_INTERRUPTED = 130
"""Typer's exit code after a KeyboardInterrupt, which without standalone_mode it returns."""


def run(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Raises:
        KeyboardInterrupt: Ctrl-C.
    """
    try:
        with whole_words():
            code = app(arguments, prog_name="genre", standalone_mode=False)
    except GenreError as error:
        return _fail(str(error), error.exit_code)
    except typer.Abort:  # Ctrl-C or the end of the input while a question is asked
        raise KeyboardInterrupt from None
    except OSError as error:
        return _fail(f"{error.filename or 'the system'}: {error.strerror or error}", 1)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            return _usage(error)
        if "no space left on device" in str(error).lower():  # libraries wrap the system's message
            return _fail("the disk is full; free some space or choose another folder", 1)
        raise
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    rank = f"rank {process_rank()}: " if process_rank() else ""
    print(f"genre: {rank}" + " ".join(message.split()), file=sys.stderr)
    return code


def _recipe_key(option: str, context: Any) -> str:
    """A hint where an unknown option is a key of the recipe that the command reads; else nothing."""
    if not any("--set" in parameter.opts for parameter in context.command.params):
        return ""
    from genre.recipe import Recipe

    wanted = option.lstrip("-").replace("-", "_")
    for section, field in Recipe.model_fields.items():
        for key in getattr(field.annotation, "model_fields", {}):
            if wanted in (key, "".join(word[0] for word in key.split("_") if "_" in key)):
                return f"; it is a key of the recipe: --set {section}.{key}=VALUE"
    return ""


def _usage(error: Any) -> int:
    """Report what the parser refused, and where to read on; a group without a command has shown its help already."""
    if not hasattr(error, "format_message"):
        return int(getattr(error, "exit_code", 1))
    message = error.format_message().strip().rstrip(".").replace("Input should be", "expected")
    message = re.sub(r"^Got unexpected extra arguments?(?:\(s\))? \((.*)\)$", r"Unexpected argument: got \1", message)
    message = message.partition(", unable to parse")[0]
    if not message:
        return 2
    context = error.ctx
    commands = getattr(getattr(context, "command", None), "commands", None)
    message, _, hint = message.partition(". ")
    known = f": expected {', '.join(commands)}" if commands and message.startswith("No such command") else ""
    known += f"; {hint[0].lower()}{hint[1:]}" if hint else ""
    path = context.command_path if context is not None else "genre"
    if option := getattr(error, "option_name", None):
        message = message.partition(" (Possible options")[0]
        near = [each for each in getattr(error, "possibilities", None) or () if each != "--help"]
        known += _recipe_key(str(option), context) or (f"; did you mean {near[0]}?" if near else "")
    return _fail(f"{message[0].lower()}{message[1:]}{known}; see {path} --help", 2)
