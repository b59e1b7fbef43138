"""`genre train`, `genre evaluate`: train recipes and publish the results, evaluate a published version.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the commands.

    genre train recipes/next_item.yaml recipes/like.yaml
    genre evaluate like@candidate --data ml-100k
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genre.cli.options import (
    AliasOption,
    BaseOption,
    DataOption,
    JsonOption,
    PartOption,
    QuantizationOption,
    RefArgument,
    RegistryOption,
    SeenOption,
    SetOption,
    check_choice,
    check_seen,
)
from genre.cli.output import check_file, show_metrics, write_result
from genre.distributed import Processes, process_count, process_rank
from genre.errors import InputError

if TYPE_CHECKING:
    from genre.jobs.train import Run
    from genre.recipe import Recipe
    from genre.registry import Registry, Version


def train(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="A recipe file; several train at once on one base.")],
    overrides: SetOption = None,
    registry: RegistryOption = "registry",
    out: Annotated[Path | None, typer.Option(help="The run folder, or the folder of several; by default runs/NAME/N.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run folder's last checkpoint.")] = False,
    alias: AliasOption = "candidate",
    tokens: Annotated[
        int | None, typer.Option("--tokens-at-once", help="Several recipes: most tokens in one pass of the base.")
    ] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Take one step, print the cost of the run, keep nothing.")] = False,
    baselines: Annotated[
        str, typer.Option("--baselines", help="Evaluated after publishing: none, fast (those without a fit) or all.")
    ] = "all",
    json_file: JsonOption = None,
) -> None:
    """Train a recipe's adapter, evaluate it beside the baselines, publish it; or several recipes at once."""
    from genre.recipe import Recipe

    wanted = [Recipe.read(recipe, overrides or []) for recipe in recipes]
    from genre.registry.names import check_name

    check_name(alias, "alias")
    check_choice("baselines", baselines, ("none", "fast", "all"))
    _check_options(wanted, out, resume, dry, tokens)
    check_file(json_file, "--json")
    from genre.jobs.dry_run import dry_run
    from genre.jobs.train import train as run_training
    from genre.jobs.train_several import train_together
    from genre.progress import Reporter
    from genre.registry import Registry

    store, reporter = Registry(registry), Reporter.for_terminal()
    if dry:
        from genre.cli.dry import show_dry_run, to_json

        expected = dry_run(wanted, registry=store, folder=out, reporter=reporter, tokens=tokens)
        show_dry_run(expected, registry, alias)
        write_result(json_file, to_json(expected, registry))
        return
    for recipe in wanted:
        if recipe.adapter.publishable:  # which is not published
            store.check_writable(recipe.name)
    publisher = _Publisher(store, alias)
    options: dict[str, Any] = {"registry": store, "folder": out, "resume": resume, "reporter": reporter}
    options |= {"baselines": baselines, "on_evaluated": publisher.publish}
    if len(wanted) == 1:
        run = run_training(wanted[0], **options)
        Processes.current().leave()
        if process_rank() > 0:  # the first process shows, writes and publishes
            return
        publisher.show(run)
        write_result(json_file, publisher.found[run.manifest.name])
        return
    try:
        train_together(wanted, tokens=tokens, on_run=publisher.show, **options)
    finally:
        if publisher.found:
            write_result(json_file, {"runs": publisher.found})


def _check_options(recipes: list["Recipe"], out: Path | None, resume: bool, dry: bool, tokens: int | None) -> None:
    if process_count() > 1 and len(recipes) > 1:
        got, todo = f"{process_count()} processes", "launch them one by one"
        raise InputError("several recipes train in one process", got=got, todo=todo)
    if dry and resume:
        raise InputError("--dry-run and --resume exclude each other", got="both", expected="one of the two")
    if resume and len(recipes) == 1:
        _check_resumable(recipes[0], out)
    if out is not None and out.is_file():
        raise InputError("--out is a file", got=out, expected="a folder, or a new name")
    if out is not None and not (resume or dry) and (out / "checkpoints" / "last.pt").exists():
        todo = "--resume continues it; name another --out for a new one"
        raise InputError("--out holds a run", got=out, expected="a new folder", todo=todo)
    if tokens is not None and (tokens < 1 or len(recipes) == 1):
        got = str(tokens) if tokens < 1 else "one recipe"
        raise InputError("--tokens-at-once is wrong", got=got, expected="1 or more, and several recipes")


def _check_resumable(recipe: "Recipe", out: Path | None) -> None:
    """Refuse before anything is written when there is no checkpoint to resume from."""
    runs = Path("runs") / recipe.name
    numbers = [int(path.name) for path in runs.glob("*") if path.name.isdigit()]
    folder = out or runs / str(max(numbers, default=1))
    if not (folder / "checkpoints" / "last.pt").is_file():
        raise InputError("there is nothing to resume", got=folder, expected="checkpoints/last.pt", todo="train without --resume")


class _Publisher:
    """Publishes runs before their baselines are computed, and adds the baselines' figures after.

    Attributes:
        found: The entry for `--json` of each run that has ended, by name.
    """

    def __init__(self, store: "Registry", alias: str) -> None:
        self.store = store
        self.alias = alias
        self.found: dict[str, dict[str, Any]] = {}
        self._published: dict[str, Version] = {}

    def publish(self, run: "Run") -> None:
        """Publish a run that was just evaluated; a full fine-tune is not published."""
        if run.files is None:
            print(f"a full fine-tune is for comparison and is not published; run folder {run.root}", flush=True)
            return
        published = self._published[run.manifest.name] = self.store.publish(run, alias=self.alias)
        print(f"published {published.ref} as {self.alias} and latest; run folder {run.root}", flush=True)

    def show(self, run: "Run") -> None:
        """Record the baselines of a run that has ended beside its version, and show its metrics."""
        name = run.manifest.name
        result = {
            "run": str(run.root),
            "metrics": run.metrics,
            "baselines": run.baselines,
            "untied": run.manifest.notes.get("untied", {}),
            "cost": run.manifest.cost.model_dump(),
        }
        if (published := self._published.get(name)) is not None:
            if any(run.baselines.values()):
                self.store.record_baselines(published, run.baselines, notes=run.notes)
            result |= {"ref": published.ref, "digest": published.digest}
        self.found[name] = result
        show_metrics({task: {"adapter": own, "baselines": run.baselines[task]} for task, own in run.metrics.items()})


def evaluate(
    ref: RefArgument,
    data: DataOption,
    registry: RegistryOption = "registry",
    part: PartOption = "test",
    base: BaseOption = None,
    quantization: QuantizationOption = None,
    seen: SeenOption = None,
    json_file: JsonOption = None,
) -> None:
    """Evaluate a published version under its own protocol, beside the baselines; --json also writes reliability plots."""
    check_choice("part", part, ("valid", "test"))
    check_choice("quantization", quantization, ("none", "int8", "nf4"))
    chosen = check_seen(seen)
    check_file(json_file, "--json")
    from genre.jobs.evaluate import draw_reliability
    from genre.jobs.evaluate import evaluate as run_evaluation
    from genre.jobs.loading import load_base, open_data
    from genre.progress import Reporter
    from genre.registry import Registry

    store = Registry(registry)
    manifest = store.resolve(ref).manifest
    opened = open_data(data, manifest.reads)
    loaded = load_base(manifest, base, quantization=quantization)
    found = run_evaluation(store, ref, opened, loaded, part=part, seen=chosen, reporter=Reporter.for_terminal())
    show_metrics(found["tasks"])
    show_metrics({f"{name}, {task['cold']['items']}": task["cold"] for name, task in found["tasks"].items() if "cold" in task})
    show_metrics(
        {f"{name}, {task['untied']['targets']}": task["untied"] for name, task in found["tasks"].items() if "untied" in task}
    )
    for name, line in found["protocol"].items():
        print(f"protocol of {name}: {line}")
    write_result(json_file, found)
    for name, plot in draw_reliability(found, json_file).items() if json_file is not None else ():
        print(f"reliability of {name}: {plot}")
