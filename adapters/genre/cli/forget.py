"""`genre data forget`: take users out of a data set and a served log, and name the versions that were trained on them.

Owns: arguments, the order, and printing. Ignores: everything else; the library is imported inside the command.

    genre data forget 196 --data data/shop
    genre data forget 196 242 --data data/shop --served-log served.sqlite --dry-run
"""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genre.cli.options import JsonOption, RegistryOption, data_option
from genre.cli.output import check_file, counted, show_rows, write_result
from genre.cli.shell.given import refuse_unused
from genre.errors import InputError

if TYPE_CHECKING:
    from genre.data.forgetting import Forgotten
    from genre.jobs.forget.versions import TrainedVersion


def forget(
    users: Annotated[list[str], typer.Argument(metavar="USER", help="A user_id; several are forgotten together.")],
    data: Annotated[str | None, data_option("The data set folder; it is changed as a whole or not at all.")] = None,
    served_log: Annotated[
        Path | None,
        typer.Option("--served-log", metavar="FILE", help="A served log that forgets them too; no service may have it."),
    ] = None,
    drop_items: Annotated[
        bool, typer.Option("--drop-items", help="Remove items that only they had, though a table of items describes them.")
    ] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Name the versions, count what would go, change nothing.")] = False,
    registry: RegistryOption = "registry",
    json_file: JsonOption = None,
) -> None:
    """Remove users' events for good, and name every version that was trained on them."""
    check_file(json_file, "--json")
    if data is None and served_log is None:
        raise InputError("nothing is named that could forget", got="no --data", expected="--data DIR, or --served-log FILE")
    if data is None:
        refuse_unused(["--drop-items", "--registry"], got="no --data", expected="a data set that forgets")
    wanted, done = list(dict.fromkeys(users)), "would go" if dry else "removed"
    result: dict[str, Any] = {"dry_run": dry, "data": None, "served_lists": None, "versions": []}
    versions: list[TrainedVersion] = []
    if data is not None:
        from genre.data.forgetting import foresee_forgetting, forget_users
        from genre.data.interactions import Interactions
        from genre.jobs.forget.versions import versions_of
        from genre.registry import Registry

        if not Path(data).is_dir():
            raise InputError("--data is no folder", got=data, expected="a data set folder, not the name of a packaged data set")
        found = foresee_forgetting(Path(data), wanted, drop_items=drop_items)  # refuses before anything is changed
        versions = versions_of(Registry(registry), Interactions.read(data), wanted)
    if served_log is not None:
        from genre.serving.forgotten import forget_served

        result["served_lists"] = forget_served(served_log, wanted, dry=dry)
        print(f"{served_log}: {counted(result['served_lists'], 'list')} {done}")
    if data is not None:
        found = found if dry else forget_users(Path(data), wanted, drop_items=drop_items)
        result |= {"data": asdict(found), "versions": [asdict(each) for each in versions]}
        print(f"{data}: {counted(found.events, 'event')} of {counted(found.users, 'user')} {done}")
        _show_items(found, done)
        _show_versions(versions, wanted, data)
    write_result(json_file, result)


def _show_items(found: "Forgotten", done: str) -> None:
    if found.items:
        print(f"{counted(found.items, 'item')} of nobody else {done} too")
    if found.kept_items:
        print(f"{counted(found.kept_items, 'item')} of nobody else kept, as a table of items describes it: see --drop-items")
    for path in found.left:
        print(f"left by an interrupted import, and may hold their events: {path}")


def _show_versions(versions: "list[TrainedVersion]", users: list[str], data: str) -> None:
    if not versions:
        print("no version of the registry was trained on them")
        return
    rows = [(each.ref, ", ".join(each.aliases), each.known, each.why, _rate(each)) for each in versions]
    show_rows(["version", "aliases", "trained on them", "known from", "by mistake"], rows)
    first = next((each for each in versions if each.aliases), versions[0])
    name = first.ref.partition(":")[0]
    target = f"{name}@{first.aliases[0]}" if first.aliases else first.ref
    without = " ".join(f"--without {shlex.quote(user)}" for user in users)
    again = f"genre refresh {target} {without} --data {shlex.quote(data)}"
    print(f"train them again: {again}; then genre registry delete {first.ref}")


def _rate(each: "TrainedVersion") -> str:
    return "" if each.false_positives is None else f"{each.false_positives:.1g}"
