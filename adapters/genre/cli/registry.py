"""`genre registry …`: look at versions, move aliases, exchange adapters, clean up.

Owns: arguments and printing. Ignores: everything else; the library is imported inside each command.

    genre registry promote like:a3f09c12be77 production --floor auc=0.7 --not-worse
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genre.cli.options import RefArgument, RegistryOption, parse_number
from genre.cli.output import console
from genre.errors import JobError, RegistryError

if TYPE_CHECKING:
    from genre.registry import Manifest, Move, Registry

app = typer.Typer(no_args_is_help=True, help="Versions, aliases, integrity, exchange with PEFT.")

DEFAULT = "registry/"


@app.command("list")
def list_(
    name: Annotated[str | None, typer.Argument(help="Only this name, one row per version.")] = None,
    registry: RegistryOption = DEFAULT,
) -> None:
    """List names with their versions and aliases."""
    opened = _open(registry)
    rows = opened.list()
    if name is None and not rows:
        typer.echo(f"the registry at {registry} is empty; genre train publishes into it")
    elif name is None:
        summary: dict[str, tuple[int, list[str]]] = {}
        for row in rows:
            count, aliases = summary.get(row.name, (0, []))
            summary[row.name] = (count + 1, aliases + [f"{alias} → {row.version}" for alias in row.aliases])
        _table(["name", "versions", "aliases"], [(key, count, ", ".join(sorted(a))) for key, (count, a) in summary.items()])
    else:
        _versions(opened, name, rows)


def _versions(opened: "Registry", name: str, rows: list[Any]) -> None:
    opened.versions(name)
    mine = [(row, opened.resolve(f"{row.name}:{row.version}").manifest) for row in rows if row.name == name]
    fields = [(row.version, ", ".join(row.aliases), m.kind, m.created, _metrics(m)) for row, m in mine]
    _table(["version", "aliases", "kind", "created", "metrics"], fields)


@app.command()
def show(ref: RefArgument, registry: RegistryOption = DEFAULT) -> None:
    """Show a version's tasks, data, metrics with intervals, cost and lineage."""
    from genre.registry.card import format_metric

    opened = _open(registry)
    version = opened.resolve(ref)
    manifest = version.manifest
    named = [alias for alias, held in opened.aliases(version.name).items() if held == version.version]
    rows: list[tuple[object, ...]] = [("aliases", ", ".join(named) or "none")]
    rows += [(field, getattr(manifest, field)) for field in ("kind", "digest", "created", "code_version")]
    for section, values in (("base", manifest.base), ("data", manifest.data), ("cost", manifest.cost)):
        rows += [(f"{section} {field}", value) for field, value in values or () if value is not None]
    rows += [(field, value) for field in ("tokenizer", "encoder", "catalogue") if (value := getattr(manifest, field))]
    rows += [(f"sequence {key}", value) for key, value in manifest.sequence.items()]
    rows += [("task", ", ".join(f"{key}={value}" for key, value in task.items())) for task in manifest.tasks]
    rows += [(f"{t} {m}", format_metric(v)) for t, values in manifest.metrics.items() for m, v in values.items()]
    rows += [(f"protocol {task}", words) for task, words in manifest.protocol.items()]
    for depth, text, found in opened.lineage(version)[1:]:
        rows.append(("  " * (depth - 1) + "from", f"{found.ref} ({found.manifest.kind})" if found else f"{text} (not here)"))
    rows += [(f"note {key}", value) for key, value in manifest.notes.items()]
    _table([version.ref, ""], rows)


@app.command()
def diff(a: RefArgument, b: RefArgument, registry: RegistryOption = DEFAULT) -> None:
    """Show the manifest fields in which two versions differ."""
    _table(["field", a, b], [(field, *values) for field, values in _open(registry).diff(a, b).items()])


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="Only this name.")] = None, registry: RegistryOption = DEFAULT
) -> None:
    """Re-hash everything and list what is damaged."""
    opened = _open(registry)
    problems = opened.verify(name)
    for problem in problems:
        typer.echo(str(problem))
    count = len(opened.versions(name)) if name else sum(map(len, opened.store.listing().values()))
    if problems:
        got = f"{len(problems)} problems in {count:,} versions"
        raise JobError("the registry is damaged", got=got, todo="restore it from a copy")
    typer.echo(f"{count:,} versions, all intact")


@app.command()
def promote(
    ref: RefArgument,
    alias: Annotated[str, typer.Argument(help="latest, candidate, production or any name")] = "production",
    floor: Annotated[list[str] | None, typer.Option(help="A bound such as auc=0.7 or like.auc=0.7; repeatable.")] = None,
    not_worse: Annotated[bool, typer.Option("--not-worse", help="Refuse a version that is worse than the current one.")] = False,
    registry: RegistryOption = DEFAULT,
) -> None:
    """Point an alias at a version, if it is good enough."""
    opened = _open(registry)
    version = opened.resolve(ref)
    floors = dict(parse_number("--floor", text, "METRIC=NUMBER, such as auc=0.7") for text in floor or ())
    _show_move(version.name, opened.promote(version, alias, floor=floors, not_worse=not_worse))


@app.command()
def rollback(
    name: Annotated[str, typer.Argument(help="The adapter's name, or name@alias.")], registry: RegistryOption = DEFAULT
) -> None:
    """Point an alias (by default production) at its previous version."""
    name, _, alias = name.partition("@")
    _show_move(name, _open(registry).rollback(name, alias or "production"))


@app.command()
def history(
    name: Annotated[str, typer.Argument(help="The adapter's name, or name@alias.")], registry: RegistryOption = DEFAULT
) -> None:
    """List all alias moves, oldest first."""
    name, _, alias = name.partition("@")
    moves = _open(registry).history(name, alias or None)
    rows = [(m.n, m.created, m.action, m.alias, m.previous or "", m.version, "; ".join(m.checks)) for m in moves]
    _table(["n", "created", "action", "alias", "from", "to", "checks"], rows)


@app.command()
def export(
    ref: RefArgument,
    out: Annotated[Path, typer.Option(help="A new folder.")],
    to: Annotated[str, typer.Option(help="The format: peft, merged or vllm.")] = "peft",
    base: Annotated[Path | None, typer.Option(help="The base's folder; a prepared base is found by its name.")] = None,
    tar: Annotated[bool, typer.Option("--tar", help="Also write OUT.tar.")] = False,
    registry: RegistryOption = DEFAULT,
) -> None:
    """Write a folder for stock PEFT (with the cut base where depth is set), the adapter merged into its base, or vLLM's files."""
    opened = _open(registry)
    manifest = opened.resolve(ref).manifest
    if base is None and (to in ("merged", "vllm") or manifest.base.depth is not None):
        base = _prepared_base(manifest.base.name)
    written = opened.export(ref, out, to=to, base=base, tar=tar)
    typer.echo(f"wrote {written}" + (f" and {written.name}.tar" if tar else ""))


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="A PEFT folder, a tar or a zip.")],
    name: Annotated[str, typer.Option("--as", help="Its name in the registry.")],
    base: Annotated[str, typer.Option(help="The base that it was trained on: a prepared base's name, or a folder.")],
    depth: Annotated[int | None, typer.Option(min=1, help="The number of layers that it was trained on; by default all.")] = None,
    registry: RegistryOption = DEFAULT,
) -> None:
    """Publish a PEFT LoRA adapter from elsewhere, checked against its base, or a folder of our own export with all its files."""
    from genre.modules.base.fingerprint import fingerprint
    from genre.modules.base.source import read_depth
    from genre.registry import BaseInfo
    from genre.registry.export.foreign import is_own_export

    folder = Path(base) if Path(base).is_dir() else _prepared_base(base)
    if folder is None:
        raise RegistryError("no such base", got=base, expected="a base's folder, or the name of a prepared one")
    if depth is None and not is_own_export(source):
        depth = read_depth(folder)
    info = BaseInfo(name=base, fingerprint=fingerprint(folder), depth=depth)
    version = _open(registry).import_peft(source, name, base=info, base_folder=folder)
    remarks = version.manifest.notes.get("remarks")
    for remark in remarks if isinstance(remarks, list) else []:
        typer.echo(remark)
    if not version.manifest.answers:
        typer.echo("it has no tasks, so nothing scores with it: it can be exported, and serve and score leave it out")
    typer.echo(f"published {version.ref}")


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed; remove nothing.")] = False,
    registry: RegistryOption = DEFAULT,
) -> None:
    """Remove versions that no alias, history or other version refers to, and unfinished publishes."""
    found = _open(registry).gc(dry_run)
    for item in (*found.versions, *found.unfinished):
        typer.echo(item)
    count = f"{len(found.versions)} versions and {len(found.unfinished)} unfinished publishes"
    typer.echo(f"{'would free' if dry_run else 'freed'} {found.freed_bytes:,} bytes: {count}")


def _open(url: str) -> "Registry":
    from genre.registry import Registry

    return Registry(url)


def _prepared_base(name: str) -> Path | None:
    from genre.errors import InputError
    from genre.modules.base.packaged import prepared_base

    if Path(name).is_dir():
        return Path(name)
    try:
        return prepared_base(name)
    except InputError:
        return None


def _show_move(name: str, move: "Move") -> None:
    for check in move.checks:
        typer.echo(f"checked {check}")
    typer.echo(f"{name}@{move.alias}: {move.previous or 'nothing'} → {move.version} ({move.action}, entry {move.n})")


def _metrics(manifest: "Manifest") -> str:
    """The deciding metric of each task, where the manifest names it; `show` has them all."""
    listed = {str(task["name"]): task.get("metrics") for task in manifest.tasks}
    first = {name: metrics[0] for name, metrics in listed.items() if isinstance(metrics, list) and metrics}
    rows = [
        f"{task}.{metric} {value.value:.4f}"
        for task, values in manifest.metrics.items()
        for metric, value in values.items()
        if first.get(task, metric) == metric
    ]
    return ", ".join(rows)


def _table(columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    from rich.table import Table

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")  # a digest that is cut cannot be copied
    for row in rows:
        table.add_row(*(_format(value) for value in row))
    console().print(table)


def _format(value: object) -> str:
    from rich.markup import escape

    return "" if value is None else escape(f"{value:,}" if isinstance(value, int) and value > 9999 else str(value))
