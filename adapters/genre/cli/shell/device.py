"""`--device`, of every command that runs a base.

Owns: which commands these are, the option. Ignores: what devices there are (`genre.modules.base.devices`).

    add_device(app)      # genre train like.yaml --device cuda:1
"""

from typing import Annotated, Any

import typer

from genre.cli.shell.options import Command, add_options

DeviceOption = Annotated[
    str | None,
    typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1 or auto (all of them); by default cuda if there is one."),
]
RUNNING = frozenset(
    f"genre {name}"
    for name in (
        *("train", "evaluate", "recommend", "score", "merge", "tune", "crossval", "compare", "federated", "bench", "refresh"),
        *("explain", "audit", "serve", "registry verify", "registry export"),
    )
)
"""The commands that run a base."""


def add_device(app: typer.Typer) -> None:
    """Give the commands of a program that run a base the option `--device`."""
    add_options(app, _on_device, {"device": (DeviceOption, None)}, only=RUNNING)


def _on_device(function: Command, path: str) -> Command:
    def command(*, device: str | None, **given: Any) -> Any:
        if device is None:
            return function(**given)
        from genre.modules.base.devices import default_device

        with default_device(device):
            return function(**given)

    return command
