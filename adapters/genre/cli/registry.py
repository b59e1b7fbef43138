"""`genre registry …`: look at versions, move aliases, exchange adapters, clean up.

Owns: arguments and printing. Ignores: everything else; the library is imported inside each command.

    genre registry promote like:a3f09c12be77 production --floor auc=0.7 --not-worse
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genre.cli.export import (
    BeforeOption,
    ExportDataOption,
    LicenseOption,
    RankOption,
    TemperatureOption,
    TopOption,
    UsersOption,
    check_options,
    export_computed,
)
from genre.cli.options import (
    BaseOption,
    JsonOption,
    NameArgument,
    OnlyNameArgument,
    RefArgument,
    RegistryOption,
    TaskOption,
    data_option,
    parse_number,
    ref_argument,
)
from genre.cli.output import check_file, console, format_size, show_metrics, write_result
from genre.cli.recheck import measure
from genre.cli.shell.completion import complete_names
from genre.cli.signing import KeyOption, checkpoint, keygen, sign
from genre.errors import InputError, JobError, RegistryError

if TYPE_CHECKING:
    from genre.registry import Listed, Manifest, Move, Registry, Version
    from genre.registry.records import BaselineRecord

app = typer.Typer(no_args_is_help=True, help="Versions, aliases, integrity, signatures, exchange with PEFT.")

DEFAULT = "registry/"


@app.command("list")
def list_(
    name: Annotated[
        str | None, typer.Argument(help="Only this name, one row per version.", autocompletion=complete_names)
    ] = None,
    registry: RegistryOption = DEFAULT,
    json_file: JsonOption = None,
) -> None:
    """List names with their versions, aliases, metric, date and size."""
    check_file(json_file, "--json")
    opened = _open(registry)
    if name is not None:
        opened.versions(name)
    rows = [row for row in opened.list() if name in (None, row.name)]
    if not rows:
        typer.echo(f"the registry at {registry}, {opened.store.content()}: genre train publishes into it")
    elif name is None:
        _names(opened, rows)
    else:
        manifests = [(row, _manifest(opened, row)) for row in rows]
        fields = [(row.version, ", ".join(row.aliases), *_facts(m)) for row, m in manifests]
        _table(["version", "aliases", "kind", "created", "size", "metrics"], fields)
    if json_file is not None:
        write_result(json_file, [_as_json(row, _manifest(opened, row)) for row in rows])


def _names(opened: "Registry", rows: "list[Listed]") -> None:
    """A row per name: the metric, date and size are those of production, or else of the latest version."""
    table = []
    for key, own in itertools.groupby(rows, lambda row: row.name):
        versions = list(own)
        moved = sorted(f"{alias} → {row.version}" for row in versions for alias in row.aliases)
        by_alias = {alias: row for row in versions for alias in row.aliases}
        shown = by_alias.get("production") or by_alias.get("latest") or versions[-1]
        kind, created, size, metrics = _facts(_manifest(opened, shown))
        table.append((key, kind, len(versions), ", ".join(moved), metrics, created, size))
    _table(["name", "kind", "versions", "aliases", "metric", "created", "size"], table)


def _manifest(opened: "Registry", row: "Listed") -> "Manifest | None":
    """The manifest of a version; None where it is damaged, which must not hide the other versions."""
    try:
        return opened.open_version(row.name, row.version).manifest
    except RegistryError:
        return None


def _facts(manifest: "Manifest | None") -> tuple[str, str, str, str]:
    if manifest is None:
        return "damaged", "", "", "see genre registry verify"
    return manifest.kind, manifest.created.partition("T")[0], format_size(manifest.cost.bytes), _metrics(manifest)


def _as_json(row: "Listed", manifest: "Manifest | None") -> dict[str, Any]:
    about: dict[str, Any] = {"name": row.name, "version": row.version, "ref": f"{row.name}:{row.version}"}
    about |= {"aliases": list(row.aliases), "damaged": manifest is None}
    if manifest is None:
        return about
    raw = manifest.raw()
    size = {"bytes": manifest.cost.bytes}
    return about | {key: raw[key] for key in ("kind", "digest", "created", "data", "metrics")} | size


@app.command()
def show(ref: RefArgument, registry: RegistryOption = DEFAULT, json_file: JsonOption = None) -> None:
    """Show a version's tasks, data, metrics beside the baselines, protocol, cost and lineage."""
    check_file(json_file, "--json")
    opened = _open(registry)
    version = opened.resolve(ref)
    record = opened.baselines(version)
    named = [alias for alias, held in opened.aliases(version.name).items() if held == version.version]
    _table([version.ref, ""], [("aliases", ", ".join(named) or "none"), *_described(opened, version)])
    _show_figures(version.manifest, record)
    if json_file is not None:
        baselines = None if record is None else record.model_dump(mode="json")
        write_result(json_file, {"aliases": named, "manifest": version.manifest.raw(), "baselines": baselines})


def _described(opened: "Registry", version: "Version") -> Iterator[tuple[str, object]]:
    """What a manifest holds, in rows that people read."""
    from genre.registry.card import describe_data, describe_task
    from genre.registry.lookup import flatten
    from genre.registry.signatures import signers_of
    from genre.registry.trust.provenance import builder_of

    manifest, base, cost = version.manifest, version.manifest.base, version.manifest.cost
    yield from ((field, getattr(manifest, field)) for field in ("kind", "digest", "created"))
    yield from ((f"task {task['name']}", describe_task(task)) for task in manifest.tasks)
    layers = "all layers" if base.depth is None else f"the first {base.depth} layers"
    yield ("base", f"{base.name}, {layers}, quantization {base.quantization}")
    if manifest.data is not None:
        yield from ((field if field == "data set" else f"data {field}", value) for field, value in describe_data(manifest.data))
    for depth, text, found in opened.lineage(version)[1:]:
        yield ("  " * (depth - 1) + "from", f"{found.ref} ({found.manifest.kind})" if found else f"{text} (not here)")
    yield ("trained", f"{cost.seconds:,.0f} s, {cost.tokens:,} tokens, peak memory {format_size(cost.peak_memory_bytes)}")
    yield ("size", f"{format_size(cost.bytes)}: {cost.lora_params:,} LoRA parameters, {cost.head_params:,} of heads")
    yield from ((f"sequence {key}", _plain(value)) for key, value in flatten(manifest.sequence).items() if value is not None)
    yield from ((f"note {key}", _plain(value)) for key, value in flatten(manifest.notes).items() if value is not None)
    yield from (("fingerprint of " + field, value) for field in ("tokenizer", "catalogue") if (value := getattr(manifest, field)))
    yield ("code version", manifest.code_version)
    yield ("made by", builder_of(manifest.provenance) or "")
    yield from (("signature by", key) for key in signers_of(opened.store, version))


def _plain(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _show_figures(manifest: "Manifest", record: "BaselineRecord | None") -> None:
    """The metrics of each task beside its baselines, then the protocols."""
    known = {} if record is None else record.baselines
    tasks = {
        task: {
            "adapter": {name: value.model_dump() for name, value in metrics.items()},
            "baselines": {
                baseline: {name: value.model_dump() for name, value in figures.items()}
                for baseline, figures in known.get(task, {}).items()
            },
        }
        for task, metrics in manifest.metrics.items()
    }
    show_metrics(tasks)
    if tasks and not known:
        typer.echo("no baselines are recorded; genre evaluate computes them")
    for note in () if record is None else record.notes:
        typer.echo(f"note: {note}")
    for task, words in manifest.protocol.items():
        typer.echo(f"protocol of {task}: {words}")


@app.command()
def diff(a: RefArgument, b: RefArgument, registry: RegistryOption = DEFAULT) -> None:
    """Show the manifest fields in which two versions differ."""
    _table(["field", a, b], [(field, *values) for field, values in _open(registry).diff(a, b).items()])


@app.command()
def verify(
    name: OnlyNameArgument = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="FILE", help="Also list what does not continue this checkpoint.")
    ] = None,
    registry: RegistryOption = DEFAULT,
) -> None:
    """Re-hash everything and list what is damaged, missing or unknown, or has a wrong signature."""
    opened = _open(registry)
    problems = opened.verify(name, since=checkpoint)
    for problem in problems:
        typer.echo(str(problem))
    count = len(opened.store.versions(name)) if name else sum(map(len, opened.store.listing().values()))
    if problems and not count:
        raise InputError(
            f"{registry} is no registry", got=f"a folder {opened.store.content()}", todo="name the registry's folder"
        )
    if problems:
        got = f"{len(problems)} problems in {count:,} versions"
        raise JobError("the registry is damaged", got=got, todo="restore it from a copy")
    typer.echo(
        f"{count:,} versions, all intact" if count else f"no versions: the registry at {registry}, {opened.store.content()}"
    )


@app.command()
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
    opened = _open(registry, key)
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


@app.command()
def rollback(name: NameArgument, key: KeyOption = None, registry: RegistryOption = DEFAULT) -> None:
    """Point an alias (by default production) at its previous version."""
    name, _, alias = name.partition("@")
    _show_move(name, _open(registry, key).rollback(name, alias or "production"))


@app.command()
def history(name: NameArgument, registry: RegistryOption = DEFAULT) -> None:
    """List all alias moves, oldest first."""
    name, _, alias = name.partition("@")
    moves = _open(registry).history(name, alias or None)
    rows = [(m.n, m.created, m.actor, m.action, m.alias, m.previous or "", m.version, "; ".join(m.checks)) for m in moves]
    _table(["n", "created", "by", "action", "alias", "from", "to", "checks"], rows)


@app.command()
def export(
    ref: RefArgument,
    out: Annotated[str, typer.Option(help="A new folder; of lists a file, .parquet or .jsonl; of mlflow its URI.")],
    to: Annotated[str, typer.Option(help="peft, hub-folder, merged, vllm, sglang, gguf, vectors, lists or mlflow.")] = "peft",
    base: Annotated[Path | None, typer.Option(help="The base's folder; a prepared base is found by its name.")] = None,
    tar: Annotated[bool, typer.Option("--tar", help="Also write OUT.tar.")] = False,
    canaries: Annotated[
        bool, typer.Option("--canaries/--no-canaries", help="Run two prompts, by which check-server tells adapter from base.")
    ] = True,
    data: ExportDataOption = None,
    users: UsersOption = False,
    task: TaskOption = None,
    rank: RankOption = None,
    before: BeforeOption = None,
    top: TopOption = None,
    temperature: TemperatureOption = None,
    licence: LicenseOption = None,
    registry: RegistryOption = DEFAULT,
) -> None:
    """Write a folder for stock PEFT (with the cut base where depth is set), the adapter merged into its base, a server's files.

    Or a folder for a model hub; vectors whose dot product is a next-item score; lists of users' best items; a model in MLflow.
    """
    from genre.registry.export.check import untold

    given: dict[str, Any] = {"--tar": tar, "--users": users, "--task": task, "--rank": rank, "--before": before}
    given |= {"--top": top, "--temperature": temperature, "--license": licence}
    check_options(to, given)
    opened = _open(registry)
    if (line := export_computed(to, opened, ref, out, base, given | {"--data": data})) is not None:
        typer.echo(line)
        return
    manifest = opened.resolve(ref).manifest
    if base is None and (to not in ("peft", "hub-folder") or manifest.base.depth is not None):
        base = _prepared_base(manifest.base.name)
    written = opened.export(ref, out, to=to, base=base, tar=tar, canaries=canaries, licence=licence)
    typer.echo(f"wrote {written}" + (f" and {written.name}.tar" if tar else ""))
    if canaries and (reason := untold(written)):
        typer.echo(f"no canaries: {reason}")


@app.command("check-server")
def check_server(
    url: Annotated[str, typer.Argument(help="The server, such as http://127.0.0.1:8000.")],
    folder: Annotated[Path, typer.Option(help="The exported folder that it serves.")] = Path("."),
    model: Annotated[str | None, typer.Option(help="The server's name for the adapter; by default the adapter's own.")] = None,
    server: Annotated[str | None, typer.Option(help="vllm, sglang or llama.cpp; by default that of the folder.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0.0, help="Largest difference of a probability; by default the folder's.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Ask a server an export's canaries; refuse one that takes the adapter's name and answers with the base."""
    from genre.registry.export.check import ask_canaries

    check_file(json_file, "--json")
    canaries = ask_canaries(url, folder, model=model, server=server, tolerance=tolerance)
    for each in canaries:
        rows = (("server", each["answer"]), ("adapter", each["adapter"]), ("base", each["base"]))
        _table([f"task {each['task']}", *each["words"]], [(name, *(f"{share:.4f}" for share in row)) for name, row in rows])
    typer.echo(f"{url} answers with the adapter: {len(canaries)} of {len(canaries)} canaries")
    if json_file is not None:
        write_result(json_file, canaries)


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
    known = folder.resolve().name if Path(base).is_dir() else base  # no path of this machine
    info = BaseInfo(name=known, fingerprint=fingerprint(folder), depth=depth)
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
    grace: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="How long garbage stays; by default 3600 on an object store, 0 in a folder."),
    ] = None,
    registry: RegistryOption = DEFAULT,
) -> None:
    """Remove versions that no alias, history or other version refers to, and unfinished publishes.

    On an object store the first gc marks them, and one after the grace time removes those that are still unused.
    """
    found = _open(registry).gc(dry_run, grace=grace)
    for item in (*found.versions, *found.unfinished, *(f"{item} (stays for now)" for item in found.marked)):
        typer.echo(item)
    count = f"{len(found.versions)} versions and {len(found.unfinished)} unfinished publishes"
    typer.echo(f"{'would free' if dry_run else 'freed'} {found.freed_bytes:,} bytes: {count}")
    if found.marked:
        typer.echo("the rest goes with a later gc: its grace time is not over, or a writer is at work that may need it")


@app.command()
def delete(
    ref: Annotated[str, ref_argument("The version, as name:version.")],
    key: KeyOption = None,
    registry: RegistryOption = DEFAULT,
) -> None:
    """Delete a version for good; refused while an alias names it, or a version has it as its encoder or parent."""
    deleted = _open(registry, key).delete(ref)
    typer.echo(f"deleted {deleted.ref}, {format_size(deleted.freed_bytes)}")
    for alias in deleted.formerly:
        typer.echo(f"{deleted.ref.partition(':')[0]}@{alias} named it once and can no longer be rolled back to it")


for each in (keygen, sign, checkpoint):
    app.command()(each)


def _open(url: str, key: Path | None = None) -> "Registry":
    from genre.registry import Registry

    return Registry(url, sign_key=key)


def _prepared_base(name: str) -> Path | None:
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
