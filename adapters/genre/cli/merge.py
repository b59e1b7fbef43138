"""`genre merge`: one adapter out of several.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the command.

    genre merge like rating --method svd --as taste --data ml-100k
"""

from typing import Annotated, Any

import typer

from genre.cli.options import AliasOption, BaseOption, DataOption, JsonOption, RegistryOption, ref_argument
from genre.cli.output import check_file, console, format_value, make_table, plain, write_result
from genre.cli.shell.given import refuse_unused
from genre.errors import InputError, visible


def merge(
    refs: Annotated[list[str], ref_argument("The parents: name, name@alias or name:version.", "REF REF …")],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="The merged adapter's name in the registry.")],
    data: DataOption,
    method: Annotated[str, typer.Option(help="linear, ties, dare_ties or svd.")] = "svd",
    weights: Annotated[
        str | None, typer.Option(metavar="W,W…|search", help="One per parent, or `search` on validation; equal by default.")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="svd: the result's; by default the parents' largest.")] = None,
    density: Annotated[float, typer.Option(help="ties, dare_ties: the share of values to keep.")] = 0.5,
    floor: Annotated[float, typer.Option(help="The share of each parent's metric to reach on validation.")] = 0.95,
    seed: Annotated[int, typer.Option(help="dare_ties: of the random drops.")] = 0,
    alias: AliasOption = "candidate",
    registry: RegistryOption = "registry",
    base: BaseOption = None,
    json_file: JsonOption = None,
) -> None:
    """Merge adapters into one that serves all their tasks; refused if a task loses too much."""
    given = _weights(weights)
    if len(refs) < 2:
        raise InputError("a merge needs at least two adapters", got=", ".join(refs), expected="two or more, such as like rating")
    check_file(json_file, "--json")
    from genre.jobs.loading import open_data
    from genre.jobs.merge.gate import MergeOptions
    from genre.jobs.merge.job import merge_versions
    from genre.jobs.merge.methods import METHODS
    from genre.progress import Reporter
    from genre.registry import Registry

    if method not in METHODS:
        raise InputError("no such method", got=f"--method {method}", expected=", ".join(METHODS))
    foreign = {"svd": ["--density", "--seed"], "linear": ["--rank", "--density", "--seed"], "ties": ["--rank", "--seed"]}
    refuse_unused(foreign.get(method, ["--rank"]), got=f"--method {method}", expected="an option of that method")
    options = MergeOptions(
        name, method=method, weights=given, rank=rank, density=density, floor=floor, seed=seed, aliases=(alias,)
    )
    store = Registry(registry)
    opened = open_data(data, store.resolve(refs[0]).manifest.reads)
    merged = merge_versions(store, refs, options, opened, base=base, reporter=Reporter.for_terminal())
    show(merged.report)
    print(f"published {merged.version.ref} as {alias} and latest")
    write_result(json_file, merged.report)


def show(report: dict[str, Any]) -> None:
    """Print the transfer matrix, a row per update and a column per task; then the gate, a line per task."""
    tasks, metrics = report["transfer"]["tasks"], report["transfer"]["metric"]
    columns = {"update": "left"} | {f"{task} {metric}": "right" for task, metric in metrics.items()}
    table = make_table("test part, each task's own head on the update of …", columns)
    for source in dict.fromkeys(source for row in tasks.values() for source in row):
        table.add_row(plain(source), *(format_value(tasks[task].get(source, {}).get(metrics[task])) for task in metrics))
    console().print(table)
    for task, row in report["gate"]["tasks"].items():
        ratio = f"{row['merged']:.4f}, the parent's {row['parent']:.4f} ({row['ratio']:.1%})"
        print(visible(f"validation {task}.{row['metric']}: {ratio}"))
    print(f"{report['method']}, weights {', '.join(f'{weight:g}' for weight in report['weights'])}, rank {report['rank']}")


def _weights(text: str | None) -> Any:
    if text is None or text == "search":
        return text
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError("--weights cannot be read", got=text, expected="numbers such as 0.5,0.5, or search") from None
