"""`genre tune`, `genre crossval`, `genre compare`: hyperparameter search, folds by user, a paired test.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the commands.

    genre tune recipes/like.yaml --trials 20 --search train.learning_rate=log:1e-4:3e-3 --search adapter.rank=2,4,8,16
    genre crossval recipes/like.yaml --folds 5
    genre compare like@candidate like@production --data ml-100k
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genre.cli.options import (
    JsonOption,
    PartOption,
    RecipeArgument,
    RegistryOption,
    SetOption,
    check_choice,
    data_option,
    ref_argument,
)
from genre.cli.output import check_file, console, make_table, plain, show_table, write_result
from genre.errors import DiskError, InputError, IntegrityError, visible

if TYPE_CHECKING:
    from genre.data.dataset import DataKind
    from genre.jobs.compare import Compared
    from genre.jobs.predictions import Scored, Sources


def tune(
    recipe: RecipeArgument,
    trials: Annotated[int | None, typer.Option("--trials", metavar="N", help="Number of trials; optional for a grid.")] = None,
    overrides: SetOption = None,
    search: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUES", help="A,B,C, LOW:HIGH, LOW:HIGH:STEP or log:LOW:HIGH of any key; repeatable."),
    ] = None,
    space: Annotated[Path | None, typer.Option(metavar="FILE", help="A YAML file of such keys and values.")] = None,
    sampler: Annotated[str, typer.Option(help="tpe, random or grid.")] = "tpe",
    pruner: Annotated[str, typer.Option(help="median or none.")] = "median",
    seed: Annotated[int, typer.Option(help="Of the sampler; the recipe's own seed stays.")] = 0,
    study: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The study's folder, resumed if it exists; by default runs/NAME/tune.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="No trial begins after this time.")] = None,
    registry: RegistryOption = "registry",
    json_file: JsonOption = None,
) -> None:
    """Search a recipe's keys for the best validation; the test part is never read."""
    from genre.recipe import Recipe

    wanted = Recipe.read(recipe, overrides or [])
    check_file(json_file, "--json")
    if space is not None and not space.is_file():
        raise InputError("no such search space", got=space, expected="a YAML file")
    from genre.jobs.tuning import Search, read_space
    from genre.jobs.tuning import tune as run
    from genre.progress import Reporter
    from genre.registry import Registry

    how = Search(sampler, pruner, seed)  # type: ignore[arg-type]
    varied, folder = read_space(wanted, search or [], space, grid=sampler == "grid"), study or Path("runs") / wanted.name / "tune"
    store, reporter = Registry(registry), Reporter.for_terminal()
    found = run(wanted, varied, how, folder, trials=trials, timeout_s=timeout, registry=store, reporter=reporter)
    _show_study(found)
    write_result(json_file, found)


def crossval(
    recipe: RecipeArgument,
    folds: Annotated[int, typer.Option("--folds", metavar="K", help="The number of folds of users.")],
    overrides: SetOption = None,
    seed: Annotated[int, typer.Option(help="Draws the folds.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The job's folder, resumed if it exists; by default runs/NAME/crossval-K.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Train and test a recipe once per fold of users, each on users that it was not trained on."""
    from genre.recipe import Recipe

    wanted = Recipe.read(recipe, overrides or [])
    check_file(json_file, "--json")
    from genre.jobs.tuning.crossval import crossval as run
    from genre.progress import Reporter

    folder = out or Path("runs") / wanted.name / f"crossval-{folds}"
    found = run(wanted, folder, folds=folds, seed=seed, reporter=Reporter.for_terminal())
    show_table(found["tasks"], "adapter", _spread, _spread)
    print(f"mean ± deviation over {folds} folds of users, seed {seed}; {folder}/summary.json has every fold")
    write_result(json_file, found)


def compare(
    first: Annotated[str, ref_argument("A version (name, name@alias, name:version), or a run folder.", "A")],
    second: Annotated[str | None, ref_argument("Another; or give --baseline.", "B")] = None,
    data: Annotated[str | None, data_option("The data set; two run folders with predictions need none.")] = None,
    baseline: Annotated[str | None, typer.Option(help="Instead of B: additive, ease, self_attentive (minutes) …")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task of both.")] = None,
    metrics: Annotated[list[str] | None, typer.Option("--metric", help="Only this metric; repeatable.")] = None,
    part: PartOption = "test",
    resamples: Annotated[int, typer.Option(help="The number of bootstrap draws.")] = 2000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    base: Annotated[
        list[str] | None,
        typer.Option("--base", help="A's base and, if repeated, B's; by default found by name."),
    ] = None,
    registry: RegistryOption = "registry",
    json_file: JsonOption = None,
) -> None:
    """Test whether A is better than B: a paired bootstrap over users on the same targets."""
    if (second is None) == (baseline is None):
        got = "neither" if second is None else "both"
        raise InputError("name what to compare with", got=got, expected="a second version, or --baseline NAME")
    if len(base or []) > (most := 2 if baseline is None else 1):
        expected = "A's base and B's" if most == 2 else "A's base alone, beside --baseline"
        raise InputError("too many bases", got=f"{len(base or [])} times --base", expected=expected)
    check_choice("part", part, ("valid", "test"))
    check_file(json_file, "--json")
    from genre.jobs.compare import check_draws, pairs
    from genre.jobs.compare import compare as run
    from genre.jobs.predictions import Sources, with_baseline
    from genre.progress import Reporter

    check_draws(resamples, seed)
    reporter = Reporter.for_terminal()
    sources = Sources(registry, data, part=part, reporter=reporter)
    bases = [*(base or []), *(base or [])[-1:], None, None]
    ours = sources.read(first, bases[0], task)
    if baseline is not None:
        kind: DataKind = "texts" if any(each.task.kind == "text" for each in ours.values()) else "log"
        chosen = with_baseline(ours, baseline, sources.open("a baseline", kind), reporter)
    else:
        assert second is not None
        chosen = pairs(ours, sources.read(second, bases[1], task))
    with reporter.phase(f"comparing by {resamples:,} draws of the users", at_once=False):
        rows = {a.task.name: run(a, b, metrics=metrics, resamples=resamples, seed=seed) for a, b in chosen}
    _show_compared(rows)
    for name in ours.keys() - rows.keys():
        print(f"note: task {name} has nothing to compare with")
    for a, b in chosen:
        if a.window is not None and b.window is not None and a.window != b.window:
            print(f"note: {a.name} reads at most {a.window} events of a user, {b.name} {b.window}")
    if baseline is not None:
        _record(sources, first, [other for _, other in chosen])
    write_result(json_file, _as_json(chosen, rows, resamples, seed))


def _record(sources: "Sources", ref: str, found: list["Scored"]) -> None:
    """Record a baseline's figures beside a version's others; that the registry cannot be written to is no failure."""
    try:
        line = sources.record(ref, found)
    except (DiskError, IntegrityError) as error:
        line = f"note: the baseline was not recorded: {error}"
    if line is not None:
        print(line)


def _show_study(found: dict[str, Any]) -> None:
    """Print the number of trials per state, the best point, and the next command."""
    from genre.jobs.tuning.search import describe_point

    counts = ", ".join(f"{count} {state}" for state, count in found["counts"].items() if count)
    print(f"{len(found['trials'])} trials: {counts or 'none'}; {found['study']}")
    best = found["best"]
    if best is not None:
        point = describe_point(best["parameters"])
        print(f"best {found['objective']} on validation {best['value']:.4f}, trial {best['trial']}: {point}")
        print(f"next: genre train {found['best_recipe']}")


def _spread(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "–"
    return f"{entry['mean']:.4f}" + ("" if entry["deviation"] is None else f" ± {entry['deviation']:.4f}")


def _show_compared(rows: dict[str, list["Compared"]]) -> None:
    """Print a table per task, a row per metric; then the verdicts, a line per metric."""
    for name, compared in rows.items():
        a, b = compared[0].first, compared[0].second
        columns = ("n", "users", "first", "second", "difference, 95 % interval", "p(first at least as good)")
        table = make_table(f"task {name}: {a} beside {b}", {"metric": "left"} | dict.fromkeys(columns, "right"))
        for each in compared:
            shown = ("–", "–") if each.interval is None else (_difference(each), f"{each.at_least:.3f}")
            table.add_row(plain(each.metric), f"{each.n:,}", f"{each.users:,}", _number(each.a), _number(each.b), *shown)
        console().print(table)
        for each in compared:
            print(visible(f"{name}.{each.metric}: {each.verdict()}"))


def _difference(each: "Compared") -> str:
    assert each.interval is not None
    return f"{each.difference:+.4f} [{each.interval[0]:+.4f}, {each.interval[1]:+.4f}]"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _as_json(
    chosen: list[tuple["Scored", "Scored"]], rows: dict[str, list["Compared"]], resamples: int, seed: int
) -> dict[str, Any]:
    tasks = {name: [each.as_dict() | {"verdict": each.verdict()} for each in compared] for name, compared in rows.items()}
    about = {"first": chosen[0][0].name, "second": chosen[0][1].name, "resamples": resamples, "seed": seed}
    return about | {"under": {a.task.name: dict(a.under) for a, _ in chosen}, "tasks": tasks}
