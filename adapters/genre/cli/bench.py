"""`genre bench`: one recipe trained as several variants, each beside the full fine-tune; or on ever more users.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the command.

    genre bench recipes/like.yaml
    genre bench recipes/like.yaml --profile full --set data.limit=20000
    genre bench recipes/next_item.yaml --sizes 100,1000,all --cold 0.2
"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genre.cli.options import JsonOption, RecipeArgument, RegistryOption, SetOption, check_choice
from genre.cli.output import check_file, console, make_table, write_result
from genre.cli.shell.given import refuse_unused
from genre.errors import InputError

if TYPE_CHECKING:
    from genre.recipe import Recipe

MIB = 2**20
OUTCOMES = {"better": "better", "worse": "worse", "equal": "equal", "cannot be told": "no significant difference"}


def bench(
    recipe: RecipeArgument,
    overrides: SetOption = None,
    profile: Annotated[
        str, typer.Option(help="quick: full, lora_8, head_only; controls: what base, weights and adapter add; full: all.")
    ] = "quick",
    ways: Annotated[list[str] | None, typer.Option("--way", metavar="WAY", help="Only this variant; repeatable.")] = None,
    sizes: Annotated[
        str | None,
        typer.Option(metavar="N,N,all", help="A learning curve instead: trained on so many users, beside baselines on the same."),
    ] = None,
    cold: Annotated[
        float | None, typer.Option(metavar="SHARE", help="The same, with this share of the items held out of training.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="For the runs; resumed if it exists. By default runs/NAME/bench or curve.")
    ] = None,
    registry: RegistryOption = "registry",
    json_file: JsonOption = None,
) -> None:
    """Price an adapter: train a recipe as several variants and compare each with the full fine-tune."""
    from genre.recipe import Recipe

    wanted = Recipe.read(recipe, overrides or [])
    check_choice("profile", profile, ("quick", "controls", "full"))
    check_file(json_file, "--json")
    if out is not None and out.is_file():
        raise InputError("--out is a file", got=out, expected="a folder, or a new name")
    if sizes is not None or cold is not None:
        curve = "--sizes" if sizes is not None else "--cold"
        refuse_unused(["--profile", "--registry"], got=curve, expected="a comparison of variants")
        typed = ["genre", "bench", str(recipe), *(word for each in overrides or [] for word in ("--set", each))]
        typed += [] if sizes is None else ["--sizes", sizes]
        _curve(wanted, sizes, cold, ways, out, json_file, shlex.join(typed + ([] if cold is None else ["--cold", f"{cold:g}"])))
        return
    from genre.jobs.tuning.bench import bench as run_bench
    from genre.progress import Reporter
    from genre.registry import Registry

    folder = out or Path("runs") / wanted.name / "bench"
    chosen: Any = profile
    store, reporter = Registry(registry), Reporter.for_terminal()
    found = run_bench(wanted, folder, store, profile=chosen, variants=ways, reporter=reporter)
    _show(found)
    print(f"rates chosen on validation; test metrics of one seed; {folder}/bench.json has all of them")
    write_result(json_file, found)


def _curve(
    recipe: "Recipe",
    sizes: str | None,
    cold: float | None,
    ways: list[str] | None,
    out: Path | None,
    json_file: Path | None,
    command: str,
) -> None:
    """Measure a learning curve, print its table and conclusion, and write its page, which names the command."""
    if ways:
        todo = "leave it out: a curve has the recipe's adapter and its controls"
        raise InputError("--way and --sizes exclude each other", got=f"--way {ways[0]}", todo=todo)
    from genre.jobs.report.curves import SCOPES, differences, table, write_curve
    from genre.jobs.tuning.curves import learning_curve
    from genre.progress import Reporter

    folder = out or Path("runs") / recipe.name / "curve"
    chosen = _read_sizes("all" if sizes is None else sizes)
    found = learning_curve(recipe, folder, sizes=chosen, cold=cold, reporter=Reporter.for_terminal())
    page = write_curve(found, folder, command)
    for name, scope in found["scopes"].items():
        rows = table(scope)
        title = f"{found['recipe']}, {found['metric']}, {SCOPES[name]}, n {scope['points'][0]['n']:,}"
        shown = make_table(title, {"": "left"} | dict.fromkeys(rows[0][1:], "right"))
        for row in [*rows[1:], *differences(scope)]:
            shown.add_row(*row)
        console().print(shown)
        print(f"{SCOPES[name]}: {scope['conclusion']}")
    print(f"one seed; the plot, light and dark: {page}")
    write_result(json_file, found)


def _read_sizes(text: str) -> list[int | None]:
    """Read `100,1000,all`: numbers of users, None for all."""
    words = [word.strip() for word in text.split(",")]
    if bad := [word for word in words if word != "all" and not (word.isascii() and word.isdigit() and int(word))]:
        raise InputError(
            "--sizes cannot be read", got=bad[0] or repr(text), expected="numbers of users and all, such as 100,1000,all"
        )
    return [None if word == "all" else int(word) for word in words]


def _show(found: dict[str, Any]) -> None:
    """Print the cost of each variant; then, for each task, its metric beside the full fine-tune's."""
    names = ("learning rate", "trained parameters", "MiB a task", "seconds", "tokens/s", "peak MiB")
    cost = make_table(f"{found['recipe']}: cost of each variant", {"way": "left"} | dict.fromkeys(names, "right"))
    for way, row in found["ways"].items():
        sizes = f"{row['learning_rate']:g}", f"{row['trained_parameters']:,}", f"{row['bytes'] / MIB:.1f}"
        memory = row["peak_memory_bytes"]
        speed = f"{row['seconds']:.0f}", f"{row['tokens_per_second']:,.0f}", f"{memory / MIB:,.0f}" if memory else "–"
        cost.add_row(way, *sizes, *speed)
    console().print(cost)
    first = next(iter(found["ways"].values()))
    for task in first["test"]:
        _show_task(task, found["ways"])
    if found["adds"]:
        _show_adds(found["adds"])
    if edges := [way for way, row in found["ways"].items() if row["edge"]]:
        print(f"best at the lowest or highest learning rate tried, so another may be better still: {', '.join(edges)}")
    for name, error in found["errors"].items():
        print(f"{name} failed: {error}")


def _show_adds(adds: dict[str, Any]) -> None:
    """Print what the parts of a recommender add, each a paired difference."""
    table = make_table(
        "what each part adds", {"part": "left", "metric": "left", "difference, 95 % interval": "right", "": "left"}
    )
    for what, tasks in adds.items():
        for task, each in tasks.items():
            low, high = each["interval"] or (float("nan"), float("nan"))
            shown = f"{each['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
            table.add_row(what, f"{task} {each['metric']}", shown, OUTCOMES[each["outcome"]])
    console().print(table)


def _show_task(task: str, ways: dict[str, Any]) -> None:
    metrics = next(iter(ways.values()))["test"][task]
    compared = next((row["minus_full"][task] for row in ways.values() if task in row.get("minus_full", {})), None)
    metric = compared["metric"] if compared else next(iter(metrics))
    columns = {"way": "left", f"{metric}, 95 % interval": "right", "minus full, 95 % interval": "right", "beside full": "left"}
    table = make_table(f"task {task}, test part, n {metrics[metric]['n']:,}", columns)
    for way, row in ways.items():
        entry, other = row["test"][task][metric], row.get("minus_full", {}).get(task)
        low, high = entry["interval"] or (None, None)
        shown = f"{entry['value']:.4f}" + ("" if low is None else f" [{low:.4f}, {high:.4f}]")
        difference, outcome = "–", ""
        if other is not None and other["interval"] is not None:
            difference = f"{other['difference']:+.4f} [{other['interval'][0]:+.4f}, {other['interval'][1]:+.4f}]"
            near = ", at most 1 % worse" if other["near"] and other["outcome"] != "better" else ""
            outcome = OUTCOMES[other["outcome"]] + near
        table.add_row(way, shown, difference, outcome)
    console().print(table)
