"""`genre registry keygen`, `sign` and `checkpoint`.

Owns: arguments and what is printed. Ignores: signatures.

    genre registry keygen release.key
    genre registry sign like@production --key release.key
"""

from pathlib import Path
from typing import Annotated

import typer

from genre.cli.options import RegistryOption, ref_argument
from genre.cli.output import check_file
from genre.cli.registry.opening import DEFAULT, KeyOption, open_registry


def keygen(
    key: Annotated[Path, typer.Argument(metavar="KEY", help="A new file for the private key; KEY.pub gets the public one.")],
) -> None:
    """Make an Ed25519 key pair, as openssl genpkey -algorithm ed25519 does."""
    from genre.registry.trust.keys import Signer

    signer = Signer.generate(key)
    typer.echo(f"wrote {key}, which nobody else should read, and {key}.pub for trust policies")
    typer.echo(signer.key)


def sign(
    refs: Annotated[list[str], ref_argument("name, name@alias or name:version.", metavar="REF...")],
    key: KeyOption = None,
    registry: RegistryOption = DEFAULT,
) -> None:
    """Sign versions and their encoders, after re-hashing them; with name@alias also what the alias names."""
    opened = open_registry(registry, key)
    for ref in refs:
        for line in opened.sign(ref):
            typer.echo(f"signed {line}")


def checkpoint(
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="A file, to be kept where the registry's writers cannot write.")
    ],
    key: KeyOption = None,
    registry: RegistryOption = DEFAULT,
) -> None:
    """Write what the registry holds now to a file, with which verify --checkpoint tells a rollback of the whole store."""
    check_file(out, "--out")
    opened = open_registry(registry, key)
    written, signer = opened.checkpoint(out), opened.author.signer
    typer.echo(f"wrote {written}, " + (f"signed by {signer.key}" if signer else "not signed: there is no key"))
