"""The command line: parse, wire, exit codes.

Owns: commands and options, one-line errors, JSON files. Ignores: arithmetic. Libraries that take long to import are
imported in the commands that need them.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from genre import cli_base, cli_data, cli_recipe, cli_registry
from genre._version import __version__
from genre.errors import GenreError, InputError

app = typer.Typer(
    name="genre",
    help="One frozen base LLM, one small adapter per recommendation task.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_data.app, name="data", help="Prepare, import and describe data sets.")
app.add_typer(cli_base.app, name="base", help="Prepare and list bases.")
app.add_typer(cli_recipe.app, name="recipe", help="Write and check recipes.")
app.add_typer(cli_registry.app, name="registry", help="Look at and change a registry.")

RegistryOption = Annotated[str, typer.Option("--registry", help="A registry: a folder or any fsspec URL.")]
DataOption = Annotated[str, typer.Option("--data", help="A data set folder, or the name of one that comes as a package.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the result there as JSON.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"genre {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """One frozen base LLM, one small adapter per recommendation task."""


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a key: a.b=c; may be repeated.")] = None,
    registry: RegistryOption = "registry",
    out: Annotated[Path | None, typer.Option(help="The run folder; by default runs/NAME/N.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")] = False,
    alias: Annotated[str, typer.Option(help="The alias that the new version gets beside `latest`.")] = "candidate",
    json_file: JsonOption = None,
) -> None:
    """Train a recipe's adapter, evaluate it beside the baselines, publish it."""
    from genre.progress import Reporter
    from genre.recipe import Recipe

    wanted = Recipe.read(recipe, overrides or [])
    if resume and out is not None and not (out / "checkpoints" / "last.pt").exists():
        raise InputError("there is nothing to resume", got=out, expected="checkpoints/last.pt", todo="train without --resume")
    from genre import jobs
    from genre.registry import Registry

    store = Registry(registry)
    run = jobs.train(wanted, registry=store, folder=out, resume=resume, reporter=Reporter.for_terminal())
    _show_figures({name: {"adapter": own, "baselines": run.baselines[name]} for name, own in run.metrics.items()})
    result = {
        "run": str(run.root),
        "metrics": run.metrics,
        "baselines": run.baselines,
        "cost": run.manifest.cost.model_dump(),
    }
    if run.files is None:
        print(f"a full fine-tune is compared, not published; run folder {run.root}")
    else:
        published = store.publish(run, alias=alias)
        result |= {"ref": published.ref, "digest": published.digest}
        print(f"published {published.ref} as {alias}; run folder {run.root}")
    _write(json_file, result)


@app.command()
def evaluate(
    ref: Annotated[str, typer.Argument(help="name, name@alias or name:version.")],
    data: DataOption,
    registry: RegistryOption = "registry",
    part: Annotated[str, typer.Option(help="valid or test.")] = "test",
    json_file: JsonOption = None,
) -> None:
    """Evaluate a published version under its own protocol, beside the baselines."""
    if part not in ("valid", "test"):
        raise InputError("--part", got=part, expected="valid or test")
    from genre import jobs
    from genre.progress import Reporter
    from genre.registry import Registry

    found = jobs.evaluate(Registry(registry), ref, jobs.open_log(data), part=part, reporter=Reporter.for_terminal())
    for name, line in found["protocol"].items():
        print(f"{name}: {line}")
    _show_figures(found["tasks"])
    _write(json_file, found)


@app.command()
def recommend(
    ref: Annotated[str, typer.Argument(help="name, name@alias or name:version.")],
    data: DataOption,
    user: Annotated[str | None, typer.Option("--user", help="A user of the data set.")] = None,
    all_users: Annotated[bool, typer.Option("--all-users", help="Every user, one JSON line each, to --output.")] = False,
    output: Annotated[Path | None, typer.Option(help="The JSON lines file of --all-users.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many.")] = 10,
    task: Annotated[str | None, typer.Option(help="Which task of a joint adapter.")] = None,
    registry: RegistryOption = "registry",
    json_file: JsonOption = None,
) -> None:
    """Recommend for one user, or for all of them."""
    if (user is None) == (not all_users):
        raise InputError(
            "name one user or all", got="both" if user else "neither", expected="--user ID or --all-users --output F"
        )
    if all_users and output is None:
        raise InputError("--all-users needs --output F", todo="name a JSON lines file")
    from genre import jobs
    from genre.engine import Request
    from genre.interactions import Interactions

    log: Interactions = jobs.open_log(data)
    if user is not None:
        log.user_code(user)
    engine = jobs.open_engine(registry, [ref], log)
    if user is not None:
        response = engine.score([Request(ref, user_id=user, k=k, task=task)])[0]
        if response.error is not None:
            raise InputError(response.error)
        titles = dict(zip(log.catalogue.item_ids, log.catalogue.titles(), strict=True))
        _show_list(ref, response, titles)
        _write(json_file, response.to_json())
        return
    assert output is not None
    requests = (Request(ref, user_id=one, k=k, task=task, id=one) for one in log.user_ids)
    written, failed = jobs.stream(engine, requests, len(log.user_ids), output)
    print(f"{written} rows in {output}, {failed} of them errors")


@app.command()
def score(
    data: DataOption,
    source: Annotated[Path, typer.Option("--input", help="JSON lines of requests.")],
    output: Annotated[Path, typer.Option(help="JSON lines of results.")],
    registry: RegistryOption = "registry",
    engine: Annotated[str, typer.Option(help="local.")] = "local",
    lanes: Annotated[int, typer.Option(min=1, help="Adapters that are resident at once.")] = 16,
) -> None:
    """Score a file of requests; a bad row gives an error row, nothing is dropped."""
    if engine != "local":
        raise InputError("--engine", got=engine, expected="local")
    if not source.is_file():
        raise InputError("no such input file", got=source, expected="JSON lines of requests")
    from genre import jobs

    requests = jobs.read_requests(source)
    refs = [request.adapter for request in requests if not isinstance(request, str)]
    if not refs:
        raise InputError("no row of the input is a request", got=source, expected='{"adapter": …, "history": […], "k": 10}')
    running = jobs.open_engine(registry, list(dict.fromkeys(refs)), jobs.open_log(data), lanes=lanes)
    written, failed = jobs.stream(running, requests, len(requests), output)
    print(f"{written} rows in {output}, {failed} of them errors")


def _show_figures(tasks: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    for name, found in tasks.items():
        metrics = list(found["adapter"])
        table = Table(title=f"task {name}", title_justify="left")
        table.add_column("")
        for metric in metrics:
            table.add_column(metric, justify="right")
        for label, figures in [("adapter", found["adapter"]), *found["baselines"].items()]:
            table.add_row(label, *(_figure(figures.get(metric)) for metric in metrics))
        counts = {figure["n"] for figure in found["adapter"].values()}
        table.caption = f"95 % user-bootstrap intervals; n = {', '.join(f'{count:,}' for count in sorted(counts))}"
        Console(width=None if sys.stdout.isatty() else 160).print(table)


def _figure(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "–"
    if figure.get("interval") is None:
        return f"{figure['value']:.4f}"
    low, high = figure["interval"]
    return f"{figure['value']:.4f} [{low:.3f}, {high:.3f}]"


def _show_list(ref: str, response: Any, titles: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{ref} ({response.digest[:12]})", title_justify="left")
    table.add_column("#", justify="right")
    table.add_column("item")
    table.add_column("title")
    table.add_column("score", justify="right")
    for place, item in enumerate(response.results, 1):
        table.add_row(str(place), item.item_id, titles.get(item.item_id, ""), f"{item.score:.4f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _write(path: Path | None, value: Any) -> None:
    if path is None:
        return
    from genre.jobs import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; errors are one line on standard error and exit code 1 (failed job) or 2 (wrong input)."""
    try:
        app(arguments, standalone_mode=False)
    except GenreError as error:
        print(f"genre: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("genre: interrupted", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"genre: {error.filename or 'the system'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            return _usage(error)
        raise
    return 0


def _usage(error: Any) -> int:
    if hasattr(error, "exit_code") and not hasattr(error, "format_message"):
        return int(error.exit_code)
    print(f"genre: {error.format_message()}; see genre --help", file=sys.stderr)
    return 2
