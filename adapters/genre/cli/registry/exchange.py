"""`genre registry export`, `check-server` and `import`: adapters out to other software, and in from it.

Owns: arguments and printing. Ignores: the forms (`genre.registry.export`); the library is imported inside each command.

    genre registry export like@production --to vllm --out like
    genre registry check-server http://127.0.0.1:8000 --folder like
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from genre.cli.options import JsonOption, RefArgument, RegistryOption, TaskOption
from genre.cli.output import check_file, show_rows, write_result
from genre.cli.registry.computed_exports import (
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
from genre.cli.registry.opening import DEFAULT, open_registry
from genre.errors import InputError, RegistryError, visible


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
    opened = open_registry(registry)
    if (line := export_computed(to, opened, ref, out, base, given | {"--data": data, "--canaries": canaries})) is not None:
        typer.echo(line)
        return
    version = opened.resolve(ref)
    if base is None and (to not in ("peft", "hub-folder") or version.manifest.base.depth is not None):
        base = _prepared_base(version.manifest.base.name)
    written = opened.export(version, out, to=to, base=base, tar=tar, canaries=canaries, licence=licence)
    typer.echo(f"wrote {written}" + (f" and {written.name}.tar" if tar else ""))
    if canaries and (reason := untold(written)):
        typer.echo(f"no canaries: {reason}")


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
        show_rows([f"task {each['task']}", *each["words"]], [(name, *(f"{share:.4g}" for share in row)) for name, row in rows])
    typer.echo(f"{url} answers with the adapter: {len(canaries)} of {len(canaries)} canaries")
    if json_file is not None:
        write_result(json_file, canaries)


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

    folder = _prepared_base(base)
    if folder is None:
        raise RegistryError("no such base", got=base, expected="a base's folder, or the name of a prepared one")
    if depth is None and not is_own_export(source):
        depth = read_depth(folder)
    known = folder.resolve().name if Path(base).is_dir() else base  # no path of this machine
    info = BaseInfo(name=known, fingerprint=fingerprint(folder), depth=depth)
    version = open_registry(registry).import_peft(source, name, base=info, base_folder=folder)
    remarks = version.manifest.notes.get("remarks")
    for remark in remarks if isinstance(remarks, list) else []:
        typer.echo(visible(str(remark)))
    if not version.manifest.answers:
        typer.echo("it has no tasks, so nothing scores with it: it can be exported, and serve and score leave it out")
    typer.echo(f"published {version.ref}")


def _prepared_base(name: str) -> Path | None:
    """The folder of a base, given as a folder or by the name of a prepared one; None if there is none."""
    from genre.modules.base.packaged import prepared_base

    if Path(name).is_dir():
        return Path(name)
    try:
        return prepared_base(name)
    except InputError:
        return None
