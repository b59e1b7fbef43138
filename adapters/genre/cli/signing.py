"""`genre registry keygen`, `sign` and `checkpoint`, and the option `--trust` of every command that opens a registry.

Owns: arguments, what is printed, and that a policy holds for the time of a command, in the processes that it starts too. Ignores:
signatures.

    genre registry keygen release.key
    genre registry sign like@production --key release.key
    genre serve --trust trust.yaml
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from genre.cli.options import RegistryOption, ref_argument
from genre.cli.output import check_file

TRUST_VARIABLE = "GENRE_TRUST"
TrustOption = Annotated[
    Path | None,
    typer.Option("--trust", metavar="FILE", envvar=TRUST_VARIABLE, help="A policy: the keys whose signatures versions need."),
]
KeyOption = Annotated[
    Path | None, typer.Option("--key", metavar="FILE", envvar="GENRE_SIGN_KEY", help="The private key that signs.")
]


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
    registry: RegistryOption = "registry/",
) -> None:
    """Sign versions and their encoders, after re-hashing them; with name@alias also what the alias names."""
    from genre.registry import Registry

    opened = Registry(registry, sign_key=key)
    for ref in refs:
        for line in opened.sign(ref):
            typer.echo(f"signed {line}")


def checkpoint(
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="A file, to be kept where the registry's writers cannot write.")
    ],
    key: KeyOption = None,
    registry: RegistryOption = "registry/",
) -> None:
    """Write what the registry holds now to a file, with which verify --checkpoint tells a rollback of the whole store."""
    from genre.registry import Registry

    check_file(out, "--out")
    opened = Registry(registry, sign_key=key)
    written, signer = opened.checkpoint(out), opened.author.signer
    typer.echo(f"wrote {written}, " + (f"signed by {signer.key}" if signer else "not signed: there is no key"))


def add_trust(app: typer.Typer) -> None:
    """Give every command of a program that opens a registry, those of its groups included, the option `--trust`."""
    for command in app.registered_commands:
        assert command.callback is not None
        if "registry" in inspect.signature(command.callback).parameters:
            command.callback = _with_trust(command.callback)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        add_trust(group.typer_instance)


def _with_trust(function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function, eval_str=True)
    own = inspect.Parameter("trust", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=TrustOption)

    @functools.wraps(function)
    def command(*, trust: Path | None, **given: Any) -> Any:
        with _policy(trust):
            return function(**given)

    command.__signature__ = signature.replace(parameters=[*signature.parameters.values(), own])  # type: ignore[attr-defined]
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
