"""`genre registry promote`, `rollback`, `gc` and `delete`: aliases move, versions go.

Owns: arguments and printing. Ignores: what is allowed; the library is imported inside each command.

    genre registry promote like:a3f09c12be77 production --floor auc=0.7 --not-worse
"""

from typing import TYPE_CHECKING, Annotated

import typer

from genre.cli.options import BaseOption, NameArgument, RefArgument, RegistryOption, data_option, parse_number, ref_argument
from genre.cli.output import format_size
from genre.cli.registry.opening import DEFAULT, KeyOption, open_registry
from genre.cli.registry.recheck import measure
from genre.cli.shell.given import refuse_unused
from genre.errors import InputError, visible

if TYPE_CHECKING:
    from genre.registry import Move


def promote(
    ref: RefArgument,
    alias: Annotated[str, typer.Argument(help="latest, candidate, production or any name")] = "production",
    floor: Annotated[list[str] | None, typer.Option(help="A bound such as auc=0.7 or like.auc=0.7; repeatable.")] = None,
    not_worse: Annotated[bool, typer.Option("--not-worse", help="Refuse a version that is worse than the current one.")] = False,
    recheck: Annotated[bool, typer.Option("--recheck", help="Measure again on --data; do not believe the manifest.")] = False,
    data: Annotated[str | None, data_option("What --recheck measures on: a data set folder, or a packaged name.")] = None,
    base: BaseOption = None,
    key: KeyOption = None,
    registry: RegistryOption = DEFAULT,
) -> None:
    """Point an alias at a version, if it is good enough."""
    if not recheck:
        refuse_unused(["--data", "--base"], got="no --recheck", expected="figures that are measured again")
    opened = open_registry(registry, key)
    version = opened.resolve(ref)
    if recheck and not (floor or not_worse):
        raise InputError("--recheck has nothing to hold the figures against", expected="--floor or --not-worse")
    floors = dict(parse_number("--floor", text, "METRIC=NUMBER, such as auc=0.7") for text in floor or ())
    before = opened.aliases(version.name).get(alias)
    measured, checks = measure(opened, version, alias, data, base, not_worse) if recheck else ({}, [])
    moved = opened.promote(version, alias, floor=floors, not_worse=not_worse, measured=measured, checks=checks)
    if before == version.version:
        typer.echo(f"{version.name}@{alias} names {version.version} already; nothing was moved")
    else:
        _show_move(version.name, moved)


def rollback(name: NameArgument, key: KeyOption = None, registry: RegistryOption = DEFAULT) -> None:
    """Point an alias (by default production) at its previous version."""
    name, at, alias = name.partition("@")
    _show_move(name, open_registry(registry, key).rollback(name, alias if at else "production"))


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed; remove nothing.")] = False,
    grace: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="How long garbage stays; by default 3600 on an object store, 0 in a folder."),
    ] = None,
    registry: RegistryOption = DEFAULT,
) -> None:
    """Remove versions that no alias, history or other version refers to, and unfinished publishes.

    On an object store the first gc marks them, and one after the grace time removes those that are still unused.
    """
    found = open_registry(registry).gc(dry_run, grace=grace)
    for item in (*found.versions, *found.unfinished, *(f"{item} (stays for now)" for item in found.marked)):
        typer.echo(item)
    count = f"{len(found.versions)} versions and {len(found.unfinished)} unfinished publishes"
    typer.echo(f"{'would free' if dry_run else 'freed'} {found.freed_bytes:,} bytes: {count}")
    if found.marked:
        typer.echo("the rest goes with a later gc: its grace time is not over, or a writer is at work that may need it")


def delete(
    ref: Annotated[str, ref_argument("The version, as name:version.")],
    key: KeyOption = None,
    registry: RegistryOption = DEFAULT,
) -> None:
    """Delete a version for good; refused while an alias names it, or a version has it as its encoder or parent."""
    deleted = open_registry(registry, key).delete(ref)
    typer.echo(f"deleted {deleted.ref}, {format_size(deleted.freed_bytes)}")
    for alias in deleted.formerly:
        typer.echo(f"{deleted.ref.partition(':')[0]}@{alias} named it once and can no longer be rolled back to it")


def _show_move(name: str, move: "Move") -> None:
    for check in move.checks:
        typer.echo(visible(f"checked {check}"))
    typer.echo(f"{name}@{move.alias}: {move.previous or 'nothing'} → {move.version} ({move.action}, entry {move.n})")
