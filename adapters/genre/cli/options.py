"""Options and arguments that several commands share.

Owns: their spelling and help, the environment variables that are their defaults, the check of an option with a few values.
Ignores: what commands do with them.

    def evaluate(ref: RefArgument, data: DataOption, registry: RegistryOption = "registry") -> None: ...
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import typer

from genre.cli.shell.completion import REGISTRY_VARIABLE, complete_data, complete_names, complete_refs, complete_tasks
from genre.errors import InputError

DATA_VARIABLE = "GENRE_DATA"
_SIZE = re.compile(r"(?P<number>[0-9]{1,15}(\.[0-9]+)?) ?(((?P<prefix>[kKMGT])(?P<binary>i)?)?B)?")


def data_option(help: str) -> Any:
    """The option `--data`, with the words of one command."""
    return typer.Option("--data", metavar="DIR", help=help, envvar=DATA_VARIABLE, autocompletion=complete_data)


def ref_argument(help: str, metavar: str = "REF") -> Any:
    """An argument that is a reference, with the words of one command."""
    return typer.Argument(metavar=metavar, help=help, autocompletion=complete_refs)


RefArgument = Annotated[str, ref_argument("name, name@alias or name:version.")]
NameArgument = Annotated[str, typer.Argument(help="The adapter's name, or name@alias.", autocompletion=complete_refs)]
OnlyNameArgument = Annotated[str | None, typer.Argument(help="Only this name.", autocompletion=complete_names)]
RecipeArgument = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: train.epochs=1; repeatable.")
]
DataOption = Annotated[str, data_option("A data set folder, or the name of a packaged data set.")]
RegistryOption = Annotated[
    str, typer.Option("--registry", metavar="DIR", help="A registry: a folder or any fsspec URL.", envvar=REGISTRY_VARIABLE)
]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="The version's base: a folder or a hub id; by default found by its name.")
]
AliasOption = Annotated[str, typer.Option("--alias", help="The new version's alias, beside `latest`.")]
PartOption = Annotated[str, typer.Option("--part", help="valid or test.")]
TaskOption = Annotated[str | None, typer.Option("--task", help="The task of a joint adapter.", autocompletion=complete_tasks)]
LanesOption = Annotated[int, typer.Option("--lanes", help="Adapters in memory at once.")]
QuantizationOption = Annotated[
    str | None, typer.Option("--quantization", help="none, int8 or nf4; by default the one that the version was trained on.")
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="float32, bfloat16, or auto: what this machine is faster in, as measured; by default bfloat16 on CUDA only.",
    ),
]
SeenOption = Annotated[
    str | None,
    typer.Option("--seen", help="masked or kept: items of the history among what is ranked; by default as the task says."),
]
BaselinesOption = Annotated[
    str,
    typer.Option("--baselines", help="none, fast (no fit), all or names, with commas: all,self_attentive (trains for minutes)."),
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Exit with 1 if a row failed; all rows are written all the same.")]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result to this file as JSON.")]


def check_choice(option: str, value: str | None, known: tuple[str, ...]) -> None:
    """Check an option that takes one of a few values, or None.

    Raises:
        InputError: It takes no such value.
    """
    if value is not None and value not in known:
        expected = f"{', '.join(known[:-1])} or {known[-1]}"
        raise InputError(f"no such {option}", got=f"--{option} {value}", expected=expected)


def check_precision(precision: str | None) -> str:
    """Return the precision that `--precision` means, as a recipe names it.

    Raises:
        InputError: It takes no such value.
    """
    check_choice("precision", precision, ("auto", "float32", "bfloat16"))
    return {None: "auto", "auto": "measured"}.get(precision) or str(precision)


def parse_number(option: str, text: str, form: str) -> tuple[str, float]:
    """Return (name, number) of a "name=number" text; `form` is the one expected, with an example.

    Raises:
        InputError: The text has another form.
    """
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise InputError(f"{option} cannot be read", got=repr(text), expected=form) from None


def parse_size(option: str, text: str) -> int:
    """Return the bytes of a text such as 2GiB, 500MB or 0.

    Raises:
        InputError: The text has another form.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InputError(f"{option} cannot be read", got=repr(text), expected="bytes, or a size such as 512MiB, 2GiB or 10GB")
    power = " KMGT".index((found["prefix"] or " ").upper())
    return int(float(found["number"]) * (1024 if found["binary"] else 1000) ** power)


def check_seen(seen: str | None) -> Literal["masked", "kept"] | None:
    """Return the value of `--seen`; None leaves it to the task.

    Raises:
        InputError: It takes no such value.
    """
    check_choice("seen", seen, ("masked", "kept"))
    return cast(Literal["masked", "kept"] | None, seen)


def excludes_seen(seen: str | None) -> bool | None:
    """Return what `--seen` means for a request; raises as `check_seen` does."""
    return None if check_seen(seen) is None else seen == "masked"


def check_lanes(lanes: int) -> None:
    """Check the number of adapters in memory.

    Raises:
        InputError: It is less than 1.
    """
    if lanes < 1:
        raise InputError("--lanes is too small", got=lanes, expected="1 or more")
