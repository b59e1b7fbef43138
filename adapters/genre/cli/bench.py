"""`genre bench`: one recipe trained in several ways, each beside the full fine-tune.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the command.

    genre bench recipes/like.yaml
    genre bench recipes/like.yaml --profile full --set data.limit=20000
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from genre.cli.output import check_file, console, write_result
from genre.errors import InputError

MIB = 2**20
TOLD = {"better": "better", "worse": "worse", "equal": "equal", "cannot be told": "not distinguishable"}


def bench(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key for all ways; may be repeated.")
    ] = None,
    profile: Annotated[str, typer.Option(help="quick: full, lora_8, head_only; full: all ways, more rates.")] = "quick",
    ways: Annotated[
        list[str] | None, typer.Option("--way", metavar="WAY", help="Only this way to train; may be repeated.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For the runs; it goes on where it stopped. By default runs/NAME/bench.")
    ] = None,
    registry: Annotated[str, typer.Option("--registry", metavar="DIR", help="Where encoders are.")] = "registry",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there as JSON.")] = None,
) -> None:
    """Price an adapter: train a recipe as several variants and compare each with the full fine-tune."""
    from genre.recipe import Recipe

    wanted = Recipe.read(recipe, overrides or [])
    if profile not in ("quick", "full"):
        raise InputError("no such profile", got=f"--profile {profile}", expected="quick or full")
    check_file(json_file, "--json")
    if out is not None and out.is_file():
        raise InputError("--out is a file", got=out, expected="a folder, or a new name")
    from genre.jobs.tuning.bench import bench as run_bench
    from genre.progress import Reporter
    from genre.registry import Registry

    folder = out or Path("runs") / wanted.name / "bench"
    chosen: Any = profile
    store, reporter = Registry(registry), Reporter.for_terminal()
    found = run_bench(wanted, folder, store, profile=chosen, variants=ways, reporter=reporter)
    _show(found)
    print(f"rates chosen on validation; test figures of one seed; {folder}/bench.json has every figure")
    write_result(json_file, found)


def _show(found: dict[str, Any]) -> None:
    """What each way costs; then, for each task, what it gives."""
    from rich.table import Table

    cost = Table(title=f"{found['recipe']}: cost of each variant", title_justify="left")
    for column in ("way", "learning rate", "trained parameters", "MiB a task", "seconds", "tokens/s", "peak MiB"):
        cost.add_column(column, justify="left" if column == "way" else "right", no_wrap=True)
    for way, row in found["ways"].items():
        memory = row["peak_memory_bytes"]
        cost.add_row(
            way, f"{row['learning_rate']:g}", f"{row['trained_parameters']:,}", f"{row['bytes'] / MIB:.1f}",
            f"{row['seconds']:.0f}", f"{row['tokens_per_second']:,.0f}", f"{memory / MIB:,.0f}" if memory else "–",
        )  # fmt: skip
    console().print(cost)
    first = next(iter(found["ways"].values()))
    for task in first["test"]:
        _show_task(task, found["ways"])
    if edges := [way for way, row in found["ways"].items() if row["edge"]]:
        print(f"best at the lowest or highest learning rate tried, so another may be better still: {', '.join(edges)}")
    for name, error in found["errors"].items():
        print(f"{name} failed: {error}")


def _show_task(task: str, ways: dict[str, Any]) -> None:
    from rich.table import Table

    figures = next(iter(ways.values()))["test"][task]
    compared = next((row["minus_full"][task] for row in ways.values() if task in row.get("minus_full", {})), None)
    metric = compared["metric"] if compared else next(iter(figures))
    table = Table(title=f"task {task}, test part, n {figures[metric]['n']:,}", title_justify="left")
    for column in ("way", f"{metric}, 95 % interval", "minus full, 95 % interval", "beside full"):
        table.add_column(column, justify="left" if column in ("way", "beside full") else "right", no_wrap=True)
    for way, row in ways.items():
        figure, other = row["test"][task][metric], row.get("minus_full", {}).get(task)
        low, high = figure["interval"] or (None, None)
        shown = f"{figure['value']:.4f}" + ("" if low is None else f" [{low:.4f}, {high:.4f}]")
        difference, said = "–", ""
        if other is not None and other["interval"] is not None:
            difference = f"{other['difference']:+.4f} [{other['interval'][0]:+.4f}, {other['interval'][1]:+.4f}]"
            said = TOLD[other["outcome"]] + (", at most 1 % worse" if other["near"] and other["outcome"] != "better" else "")
        table.add_row(way, shown, difference, said)
    console().print(table)
