"""`genre explain`: the events of a user's history that a score comes from.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the command.

    genre explain like@production --data ml-100k --user 196 --item 50 -k 5
"""

import math
from typing import TYPE_CHECKING, Annotated

import typer

from genre.cli.options import BaseOption, DataOption, JsonOption, RefArgument, RegistryOption, TaskOption
from genre.cli.output import check_file, console, make_table, plain, write_result
from genre.errors import InputError, visible

if TYPE_CHECKING:
    from genre.engine.explain import Explanation


def explain(
    ref: RefArgument,
    data: DataOption,
    user: Annotated[str, typer.Option("--user", metavar="ID", help="A user of the data set.")],
    item: Annotated[str, typer.Option("--item", metavar="TITLE", help="The item whose score is explained: its id or title.")],
    k: Annotated[int, typer.Option("-k", help="The number of events to show, those with the largest share first.")] = 5,
    method: Annotated[
        str, typer.Option(help="leave_one_out: a row per event; gradient: one pass, to first order.")
    ] = "leave_one_out",
    task: TaskOption = None,
    registry: RegistryOption = "registry",
    base: BaseOption = None,
    json_file: JsonOption = None,
) -> None:
    """Attribute an item's score to the events of a user's history."""
    if k < 1:
        raise InputError("-k is too small", got=k, expected="1 or more")
    check_file(json_file, "--json")
    from genre.data.catalogue import Titles
    from genre.engine import Request
    from genre.engine.explain import check_method, explain
    from genre.jobs.loading import open_log
    from genre.jobs.score.local import open_engine

    check_method(method)
    log = open_log(data)
    log.user_code(user)
    item = Titles(log.catalogue).find(item)
    engine = open_engine(registry, [ref], log, base=base)
    asked = Request(ref, user_id=user, k=1, task=task)
    found = explain(engine, asked, item, method=method)
    loaded, *_ = engine.read_by(asked)
    show(found, user, k, ranking=loaded.tasks[found.task].kind == "next_item")
    write_result(json_file, found.to_json())


def show(found: "Explanation", user: str, k: int, *, ranking: bool = False) -> None:
    """Print the score, then a table of the k events with the largest shares; the rest is summed up.

    Args:
        found: The explanation.
        user: The user's id.
        k: The number of events to show.
        ranking: The scores are logits of a ranking, of which only differences say something.
    """
    name = f"{found.title} ({found.item_id})" if found.title != found.item_id else found.item_id
    print(visible(f"{found.adapter} ({found.digest[:12]}), task {found.task}: user {user}, item {name}"))
    print(f"score {found.score:.4f}; without any history {found.without_history:.4f}")
    if ranking:
        factor = math.exp(min(found.score - found.without_history, 700.0))
        print(f"scores of a ranking are logits: the history multiplies this item's weight among all items by {factor:.3g}")
    print(visible(found.sentence))
    columns = {"place": "right", "item": "left", "title": "left"}
    columns |= {name: "right" for name in (found.column, "effect", "share") if name is not None}
    table = make_table(f"shares by {found.method.replace('_', ' ')}", columns)
    table.columns[2].no_wrap = False
    for event in found.events[:k]:
        feedback = () if found.column is None else (_format(event.feedback),)
        fields = (str(event.place), event.item_id, event.title, *feedback)
        table.add_row(*map(plain, (*fields, f"{event.effect:+.4f}", f"{event.share:+.1%}")))
    console().print(table)
    if rest := found.events[k:]:
        count = f"{len(rest)} more event{'s' if len(rest) > 1 else ''}"
        print(f"{count} with {sum(abs(event.share) for event in rest):.1%} of the absolute shares")
    if found.older:
        print(f"{found.older} older event{'s' if found.older > 1 else ''} before those that the adapter reads")


def _format(feedback: object) -> str:
    if feedback is None:
        return "–"
    return f"{feedback:g}" if isinstance(feedback, float) else str(feedback)
