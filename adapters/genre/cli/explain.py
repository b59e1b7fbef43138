"""`genre explain`: which of a user's events a score comes from.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the command.

    genre explain like@production --data ml-100k --user 196 --item 50 -k 5
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genre.cli.output import check_file, console
from genre.errors import InputError

if TYPE_CHECKING:
    from genre.engine.explain import Explanation


def explain(
    ref: Annotated[str, typer.Argument(metavar="REF", help="name, name@alias or name:version.")],
    data: Annotated[
        str, typer.Option("--data", metavar="DIR", help="A data set folder, or the name of one that comes as a package.")
    ],
    user: Annotated[str, typer.Option("--user", metavar="ID", help="A user of the data set.")],
    item: Annotated[str, typer.Option("--item", metavar="ID", help="The item whose score is explained.")],
    k: Annotated[int, typer.Option("-k", help="How many events to show, those with the largest share first.")] = 5,
    method: Annotated[
        str, typer.Option(help="leave_one_out: a row per event; gradient: one pass, to first order.")
    ] = "leave_one_out",
    task: Annotated[str | None, typer.Option(help="Which task of a joint adapter.")] = None,
    registry: Annotated[str, typer.Option("--registry", metavar="DIR", help="A folder or any fsspec URL.")] = "registry",
    base: Annotated[str | None, typer.Option("--base", help="Where the version's base is; found by its name by default.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write every event there as JSON.")] = None,
) -> None:
    """Say which events of a user's history an item's score comes from."""
    if k < 1:
        raise InputError("-k is too small", got=k, expected="1 or more")
    check_file(json_file, "--json")
    from genre.engine import Request
    from genre.engine.explain import check_method, explain
    from genre.files import write_text
    from genre.jobs.loading import open_log
    from genre.jobs.score.local import open_engine

    check_method(method)
    log = open_log(data)
    log.user_code(user)
    log.catalogue.code(item)
    engine = open_engine(registry, [ref], log, base=base)
    found = explain(engine, Request(ref, user_id=user, k=1, task=task), item, method=method)
    show(found, user, k)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_text(json_file, json.dumps(found.to_json(), indent=2, ensure_ascii=False) + "\n")


def show(found: "Explanation", user: str, k: int) -> None:
    """The score, then a table of the k events with the largest shares; what the table leaves out is counted."""
    from rich.markup import escape
    from rich.table import Table

    name = f"{found.title} ({found.item_id})" if found.title != found.item_id else found.item_id
    print(f"{found.adapter} ({found.digest[:12]}), task {found.task}: user {user}, item {name}")
    print(f"score {found.score:.4f}; without any history {found.without_history:.4f}")
    table = Table(title=f"shares by {found.method.replace('_', ' ')}", title_justify="left")
    table.add_column("place", justify="right", no_wrap=True)
    table.add_column("item", no_wrap=True)
    table.add_column("title")
    table.add_column(found.column, justify="right", no_wrap=True)
    table.add_column("effect", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    for event in found.events[:k]:
        cells = (
            str(event.place), event.item_id, event.title, _said(event.feedback), f"{event.effect:+.4f}", f"{event.share:+.1%}",
        )  # fmt: skip
        table.add_row(*(escape(cell) for cell in cells))
    console().print(table)
    if rest := found.events[k:]:
        count = f"{len(rest)} more event{'s' if len(rest) > 1 else ''}"
        print(f"{count} with {sum(abs(event.share) for event in rest):.1%} of the absolute shares")
    if found.older:
        print(f"{found.older} older event{'s' if found.older > 1 else ''} before those that the adapter reads")


def _said(feedback: object) -> str:
    if feedback is None:
        return "–"
    return f"{feedback:g}" if isinstance(feedback, float) else str(feedback)
