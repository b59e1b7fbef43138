"""The command line: parse, wire, exit codes.

Owns: commands and options, one-line errors, JSON files. Ignores: arithmetic. Libraries that take long to import are
imported in the commands that need them.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genre._version import __version__
from genre.cli import base as cli_base
from genre.cli import bench as cli_bench
from genre.cli import data as cli_data
from genre.cli import explain as cli_explain
from genre.cli import merge as cli_merge
from genre.cli import recipe as cli_recipe
from genre.cli import recommend as cli_recommend
from genre.cli import refresh as cli_refresh
from genre.cli import registry as cli_registry
from genre.cli import score as cli_score
from genre.cli import serve as cli_serve
from genre.cli import tune as cli_tune
from genre.cli.output import check_file, show_figures, write_result
from genre.distributed import Processes, process_count, process_rank
from genre.errors import GenreError, InputError

if TYPE_CHECKING:
    from genre.jobs.train import Run
    from genre.recipe import Recipe
    from genre.registry import Registry

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

RegistryOption = Annotated[str, typer.Option("--registry", metavar="DIR", help="A registry: a folder or any fsspec URL.")]
DataOption = Annotated[
    str, typer.Option("--data", metavar="DIR", help="A data set folder, or the name of one that comes as a package.")
]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result there as JSON.")]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="Where the version's base is: a folder or a hub id; found by its name by default.")
]
RefArgument = Annotated[str, typer.Argument(metavar="REF", help="name, name@alias or name:version.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"genre {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """One frozen base LLM, one small adapter per recommendation task."""
    if process_count() > 1 and context.invoked_subcommand != "train":
        raise InputError(
            "only genre train runs in several processes", got=f"genre {context.invoked_subcommand}", expected="one process"
        )


@app.command()
def train(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="A recipe file; several train at once on one base.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: train.epochs=1; may be repeated.")
    ] = None,
    registry: RegistryOption = "registry",
    out: Annotated[Path | None, typer.Option(help="The run folder, or the folder of several; by default runs/NAME/N.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")] = False,
    alias: Annotated[str, typer.Option(help="The alias that the new version gets beside `latest`.")] = "candidate",
    tokens: Annotated[
        int | None, typer.Option("--tokens-at-once", help="Of several recipes: most tokens of one pass of the base.")
    ] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Take one step, say what the run would take, keep nothing.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Train a recipe's adapter, evaluate it beside the baselines, publish it; or several recipes at once."""
    from genre.progress import Reporter
    from genre.recipe import Recipe

    wanted = [Recipe.read(recipe, overrides or []) for recipe in recipes]
    from genre.registry.names import check_name

    check_name(alias, "alias")
    if process_count() > 1 and len(wanted) > 1:
        raise InputError(
            "several recipes train in one process", got=f"{process_count()} processes", todo="launch them one by one"
        )
    if dry and resume:
        raise InputError("--dry-run begins anew and keeps nothing", got="--resume beside it", expected="one of the two")
    if resume and len(wanted) == 1:
        _check_resumable(wanted[0], out)
    if out is not None and out.is_file():
        raise InputError("--out is a file", got=out, expected="a folder, or a new name")
    if out is not None and not (resume or dry) and (out / "checkpoints" / "last.pt").exists():
        todo = "--resume goes on with it; name another --out for a new one"
        raise InputError("--out holds a run", got=out, expected="a new folder", todo=todo)
    if tokens is not None and (tokens < 1 or len(wanted) == 1):
        got = tokens if tokens < 1 else "one recipe"
        raise InputError("--tokens-at-once is wrong", got=got, expected="1 or more, and several recipes")
    check_file(json_file, "--json")
    from genre.jobs.dry_run import dry_run
    from genre.jobs.train import train as run_training
    from genre.jobs.train_several import train_together
    from genre.registry import Registry

    store, say = Registry(registry), Reporter.for_terminal()
    if dry:
        from genre.cli.dry import show_dry_run, to_json

        expected = dry_run(wanted, registry=store, folder=out, reporter=say, tokens=tokens)
        show_dry_run(expected, registry, alias)
        write_result(json_file, to_json(expected, registry))
        return
    for recipe in wanted:
        if recipe.adapter.kind != "full":  # which is not published
            store.check_writable(recipe.name)
    if len(wanted) == 1:
        run = run_training(wanted[0], registry=store, folder=out, resume=resume, reporter=say)
        Processes.current().leave()
        if process_rank() > 0:  # the first process shows, writes and publishes
            return
        write_result(json_file, _hand_over(run, store, alias))
        return
    found: dict[str, Any] = {}
    try:
        train_together(
            wanted, registry=store, folder=out, resume=resume, reporter=say, tokens=tokens,
            on_run=lambda run: found.update({run.manifest.name: _hand_over(run, store, alias)}),
        )  # fmt: skip
    finally:
        if found:
            write_result(json_file, {"runs": found})


def _hand_over(run: "Run", store: "Registry", alias: str) -> dict[str, Any]:
    """Show a run's figures and publish it; what `--json` gets."""
    show_figures({name: {"adapter": own, "baselines": run.baselines[name]} for name, own in run.metrics.items()})
    result = {
        "run": str(run.root),
        "metrics": run.metrics,
        "baselines": run.baselines,
        "cost": run.manifest.cost.model_dump(),
    }
    if run.files is None:
        print(f"a full fine-tune is compared, not published; run folder {run.root}")
        return result
    published = store.publish(run, alias=alias)
    print(f"published {published.ref} as {alias} and latest; run folder {run.root}")
    return result | {"ref": published.ref, "digest": published.digest}


@app.command()
def evaluate(
    ref: RefArgument,
    data: DataOption,
    registry: RegistryOption = "registry",
    part: Annotated[str, typer.Option(help="valid or test.")] = "test",
    base: BaseOption = None,
    quantization: Annotated[str | None, typer.Option(help="none, int8 or nf4, if not the one it was trained on.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Evaluate a published version under its own protocol, beside the baselines; --json leaves reliability plots beside it."""
    if part not in ("valid", "test"):
        raise InputError("no such part", got=f"--part {part}", expected="valid or test")
    if quantization not in (None, "none", "int8", "nf4"):
        raise InputError("no such quantization", got=f"--quantization {quantization}", expected="none, int8 or nf4")
    check_file(json_file, "--json")
    from genre.jobs.evaluate import draw_reliability
    from genre.jobs.evaluate import evaluate as run_evaluation
    from genre.jobs.loading import load_base, open_data
    from genre.progress import Reporter
    from genre.registry import Registry

    store = Registry(registry)
    manifest = store.resolve(ref).manifest
    measured = open_data(data, manifest.reads)
    loaded = load_base(manifest, base, quantization=quantization)
    found = run_evaluation(store, ref, measured, loaded, part=part, reporter=Reporter.for_terminal())
    show_figures(found["tasks"])
    show_figures({f"{name}, {task['cold']['items']}": task["cold"] for name, task in found["tasks"].items() if "cold" in task})
    for name, line in found["protocol"].items():
        print(f"protocol of {name}: {line}")
    write_result(json_file, found)
    for name, plot in draw_reliability(found, json_file).items() if json_file is not None else ():
        print(f"reliability of {name}: {plot}")


app.command()(cli_recommend.recommend)
app.command()(cli_score.score)


app.command()(cli_merge.merge)
app.command()(cli_tune.tune)
app.command()(cli_tune.crossval)
app.command()(cli_tune.compare)
app.command()(cli_bench.bench)
app.command()(cli_refresh.refresh)
app.command()(cli_explain.explain)
app.command()(cli_serve.serve)


def _check_resumable(recipe: "Recipe", out: Path | None) -> None:
    """Refuse before anything is written when there is no checkpoint to go on from."""
    runs = Path("runs") / recipe.name
    numbers = [int(path.name) for path in runs.glob("*") if path.name.isdigit()]
    folder = out or runs / str(max(numbers, default=1))
    if not (folder / "checkpoints" / "last.pt").is_file():
        raise InputError("there is nothing to resume", got=folder, expected="checkpoints/last.pt", todo="train without --resume")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; errors are one line on standard error and exit code 1 (failed job) or 2 (wrong input)."""
    try:
        app(arguments, prog_name="genre", standalone_mode=False)
    except GenreError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 1)
    except OSError as error:
        return _fail(f"{error.filename or 'the system'}: {error.strerror or error}", 1)
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            return _usage(error)
        if "no space left on device" in str(error).lower():  # libraries wrap what the system said
            return _fail("the disk is full; free some space or choose another folder", 1)
        raise
    return 0


def _fail(message: str, code: int) -> int:
    which = f"rank {process_rank()}: " if process_rank() else ""
    print(f"genre: {which}" + " ".join(message.split()), file=sys.stderr)
    return code


def _usage(error: Any) -> int:
    """What the parser refused, and where to read on; a group without a command has shown its help already."""
    if not hasattr(error, "format_message"):
        return int(getattr(error, "exit_code", 1))
    message = error.format_message().strip().rstrip(".").replace("Input should be", "expected")
    if not message:
        return 2
    context = error.ctx
    commands = getattr(getattr(context, "command", None), "commands", None)
    message, _, hint = message.partition(". ")
    known = f": expected {', '.join(commands)}" if commands and message.startswith("No such command") else ""
    known += f"; {hint[0].lower()}{hint[1:]}" if hint else ""
    where = context.command_path if context is not None else "genre"
    return _fail(f"{message[0].lower()}{message[1:]}{known}; see {where} --help", 2)
