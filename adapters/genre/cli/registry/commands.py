"""The commands of `genre registry`, in the order of its help.

Owns: their names. Ignores: what they do.
"""

import typer

from genre.cli.registry import changes, exchange, signing, versions

app = typer.Typer(no_args_is_help=True, help="Versions, aliases, integrity, signatures, exchange with PEFT.")

for name, command in (
    ("list", versions.list_),
    ("show", versions.show),
    ("diff", versions.diff),
    ("verify", versions.verify),
    ("promote", changes.promote),
    ("rollback", changes.rollback),
    ("history", versions.history),
    ("export", exchange.export),
    ("check-server", exchange.check_server),
    ("import", exchange.import_),
    ("gc", changes.gc),
    ("delete", changes.delete),
    ("keygen", signing.keygen),
    ("sign", signing.sign),
    ("checkpoint", signing.checkpoint),
):
    app.command(name)(command)
