"""`genre registry list`, `show`, `diff`, `verify` and `history`: what a registry holds.

Owns: arguments, and the rows that people read. Ignores: changes; the library is imported inside each command.

    genre registry list
    genre registry show like@production
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genre.cli.options import JsonOption, NameArgument, OnlyNameArgument, RefArgument, RegistryOption
from genre.cli.output import check_file, format_size, show_metrics, show_rows, write_result
from genre.cli.registry.opening import DEFAULT, open_registry
from genre.cli.shell.completion import complete_names
from genre.errors import InputError, JobError, RegistryError, visible
from genre.files import write_text

if TYPE_CHECKING:
    from genre.registry import Listed, Manifest, Registry, Version
    from genre.registry.records import BaselineRecord


def list_(
    name: Annotated[
        str | None, typer.Argument(help="Only this name, one row per version.", autocompletion=complete_names)
    ] = None,
    registry: RegistryOption = DEFAULT,
    json_file: JsonOption = None,
) -> None:
    """List names with their versions, aliases, metric, date and size."""
    check_file(json_file, "--json")
    opened = open_registry(registry)
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
        show_rows(["version", "aliases", "kind", "created", "size", "metrics"], fields)
    if json_file is not None:
        write_result(json_file, [_as_json(row, _manifest(opened, row)) for row in rows])


def show(
    ref: RefArgument,
    audit_page: Annotated[
        Path | None,
        typer.Option("--audit-page", metavar="FILE", help="Write the page of its last audit of privacy to this file."),
    ] = None,
    registry: RegistryOption = DEFAULT,
    json_file: JsonOption = None,
) -> None:
    """Show a version's tasks, data, metrics beside the baselines, protocol, cost, lineage and last audit of privacy."""
    check_file(json_file, "--json")
    check_file(audit_page, "--audit-page")
    opened = open_registry(registry)
    version = opened.resolve(ref)
    record, audited = opened.baselines(version), opened.audit_of(version)
    if audit_page is not None and audited is None:
        todo = f"genre audit {version.ref} --data DIR --privacy makes one"
        raise InputError("no audit of its privacy is recorded", got=version.ref, expected="a version that was audited", todo=todo)
    named = [alias for alias, held in opened.aliases(version.name).items() if held == version.version]
    show_rows([version.ref, ""], [("aliases", ", ".join(named) or "none"), *_described(opened, version)])
    _show_figures(version.manifest, record)
    if audited is not None:
        for line in audited.lines:
            typer.echo(visible(f"privacy, audited {audited.created.partition('T')[0]}: {line}"))
        if audit_page is not None:
            write_text(audit_page, audited.page)
    if json_file is not None:
        baselines = None if record is None else record.model_dump(mode="json")
        audit = None if audited is None else audited.model_dump(mode="json", exclude={"page"})
        raw = version.manifest.raw()
        write_result(json_file, {"aliases": named, "manifest": raw, "baselines": baselines, "audit": audit})


def diff(a: RefArgument, b: RefArgument, registry: RegistryOption = DEFAULT) -> None:
    """Show the manifest fields in which two versions differ."""
    show_rows(["field", a, b], [(field, *values) for field, values in open_registry(registry).diff(a, b).items()])


def verify(
    name: OnlyNameArgument = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="FILE", help="Also list what does not continue this checkpoint.")
    ] = None,
    registry: RegistryOption = DEFAULT,
) -> None:
    """Re-hash everything and list what is damaged, missing or unknown, or has a wrong signature."""
    opened = open_registry(registry)
    problems = opened.verify(name, since=checkpoint)
    for problem in problems:
        typer.echo(visible(str(problem)))
    if problems and not opened.store.known() and checkpoint is None:
        raise InputError(
            f"{registry} is no registry", got=f"a folder {opened.store.content()}", todo="name the registry's folder"
        )
    count = len(opened.store.versions(name)) if name else sum(map(len, opened.store.listing().values()))
    versions = f"{count:,} version{'s' if count != 1 else ''}"
    if problems:
        got = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {versions}"
        what, todo = "the registry is damaged", "restore it from a copy"
        if opened.trust.require:
            what, todo = f"{what} or not signed", "restore what is damaged from a copy, sign what may be trusted"
        raise JobError(what, got=got, todo=todo)
    typer.echo(f"{versions}, all intact" if count else f"no versions: the registry at {registry}, {opened.store.content()}")


def history(name: NameArgument, registry: RegistryOption = DEFAULT) -> None:
    """List all alias moves, oldest first."""
    name, at, alias = name.partition("@")
    opened = open_registry(registry)
    moves = opened.history(name, alias if at else None)
    if not moves and at:
        opened.resolve(f"{name}@{alias}")  # raises, for there is no such alias
    rows = [(m.n, m.created, m.actor, m.action, m.alias, m.previous or "", m.version, "; ".join(m.checks)) for m in moves]
    show_rows(["n", "created", "by", "action", "alias", "from", "to", "checks"], rows)


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
    show_rows(["name", "kind", "versions", "aliases", "metric", "created", "size"], table)


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


def _described(opened: "Registry", version: "Version") -> Iterator[tuple[str, object]]:
    """What a manifest holds, in rows that people read."""
    from genre.registry.card import describe_data, describe_task
    from genre.registry.lookup import flatten
    from genre.registry.signatures import signatures_of
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
    try:
        signatures = signatures_of(opened.store, version)
    except InputError as error:  # without the extra sign
        yield ("signatures", f"not checked: {error}")
    else:
        yield from (("signature by" if problem is None else "wrong signature by", key) for key, problem in signatures)


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
        typer.echo(visible(f"note: {note}"))
    for task, words in manifest.protocol.items():
        typer.echo(visible(f"protocol of {task}: {words}"))
