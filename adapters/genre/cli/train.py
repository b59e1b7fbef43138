"""`genre train`: train recipes and publish the results.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the commands.

    genre train recipes/next_item.yaml recipes/like.yaml
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genre.cli.memory import training_lines
from genre.cli.options import (
    AliasOption,
    BaselinesOption,
    JsonOption,
    PrecisionOption,
    RegistryOption,
    SetOption,
    check_choice,
    check_precision,
)
from genre.cli.output import check_file, console, format_size, show_metrics, write_result
from genre.cli.shell.given import refuse_unused
from genre.distributed import Processes, process_count, process_rank
from genre.errors import InputError

if TYPE_CHECKING:
    from genre.jobs.dry_run import Cost, DryRun, Expected
    from genre.jobs.train import Run
    from genre.recipe import Recipe
    from genre.registry import Registry, Version

_MEASURED = ("memory_bytes.step", "memory_bytes.process", "step.seconds")
_ESTIMATED = ("memory_bytes.evaluation", "memory_bytes.peak", "training_seconds", "evaluation_seconds")
"""Keys of a cost in the JSON form; all others are computed from counts and shapes."""


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
    precision: PrecisionOption = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Take one step, print the cost of the run, keep nothing.")] = False,
    plan: Annotated[
        str | None,
        typer.Option(
            "--plan",
            metavar="DEVICE",
            help="Print the memory on cpu or cuda, by part, from config.json alone; load no weights. With --dry-run: beside it.",
        ),
    ] = None,
    baselines: BaselinesOption = "all",
    json_file: JsonOption = None,
) -> None:
    """Train a recipe's adapter, evaluate it beside the baselines, publish it; or several recipes at once."""
    from genre.recipe import Recipe

    chosen = [] if precision is None else [f"base.precision={check_precision(precision)}"]
    wanted = [Recipe.read(recipe, [*(overrides or []), *chosen]) for recipe in recipes]
    from genre.evaluation.baselines import chosen_baselines
    from genre.registry.names import check_name

    check_name(alias, "alias")
    chosen_baselines(baselines)
    check_choice("plan", plan, ("cpu", "cuda"))
    if plan is not None and not dry:
        unused = ["--resume", "--tokens-at-once", "--device"]
        refuse_unused(unused, got=f"--plan {plan}", expected="a run or a dry run; a plan is of each recipe by itself")
    _check_options(wanted, out, resume, dry, tokens)
    check_file(json_file, "--json")
    if plan is not None and not dry:
        write_result(json_file, _show_plan(wanted, registry, plan))
        return
    from genre.jobs.dry_run import dry_run
    from genre.jobs.train import train as run_training
    from genre.jobs.train_several import train_together
    from genre.progress import Reporter
    from genre.registry import Registry

    store, reporter = Registry(registry), Reporter.for_terminal()
    if dry:
        place: Any = plan
        expected = dry_run(wanted, registry=store, folder=out, reporter=reporter, tokens=tokens, device=place)
        _show_dry_run(expected, registry, alias)
        write_result(json_file, _dry_run_json(expected, registry))
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


def _show_plan(recipes: list["Recipe"], registry: str, device: Any) -> dict[str, Any]:
    """Print the memory of each recipe by itself; return it for `--json`."""
    from genre.jobs.memory import plan_run
    from genre.registry import Registry

    found: dict[str, Any] = {}
    for recipe in recipes:
        planned = plan_run(recipe, registry=Registry(registry), device=device)
        print(recipe.name)
        for label, text in training_lines(planned, device, checkpoint=recipe.train.checkpoint_activations):
            print(f"  {label:<10}{text}")
        found[recipe.name] = planned.as_dict()
    return {"device": device, "memory_bytes": found}


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
    for folder in () if out is None or dry else [out] if len(recipes) == 1 else [out / recipe.name for recipe in recipes]:
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "environment.json").exists():
            expected = "a new folder, or one of a run"
            raise InputError("--out holds other files", got=folder, expected=expected, todo="name another --out")
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


def _show_dry_run(found: "DryRun", registry: str, alias: str) -> None:
    """Print the plan and cost of a training job, a block per recipe and one per group that trains at once."""
    name, depth, full_depth, quantization, precision = found.base
    print(f"base {name}: {depth} of {full_depth} layers, quantization {quantization}, {precision}")
    for each in found.recipes:
        print(f"\n{each.recipe.name}")
        memory = found.memory.get(each.recipe.name)
        checkpoint = each.recipe.train.checkpoint_activations
        planned = [] if memory is None else training_lines(memory, found.device, checkpoint=checkpoint)
        for label, text in [*_plan_lines(each), *planned]:
            print(f"  {label:<10}{text}")
    for cost in found.costs:
        several = len(cost.recipes) > 1
        print(f"\n{', '.join(cost.recipes)}{' at once' if several else ''}")
        for label, text in _cost_lines(cost, "round" if several else "step"):
            print(f"  {label:<10}{text}")
    versions = ", ".join(f"{name}/" for name in found.published) or "nothing"
    print(f"\nregistry {registry} would get {versions}" + (f" as {alias} and latest" if found.published else ""))
    console().print("a dry run: nothing was kept", highlight=False)


def _dry_run_json(found: "DryRun", registry: str) -> dict[str, Any]:
    """The same for `--json`."""
    recipes = {}
    for each in found.recipes:
        plan = asdict(each) | {"recipe": each.recipe.model_dump(mode="json")}
        plan["parameters"]["trained"] = each.parameters.trained
        memory = found.memory.get(each.recipe.name)
        plan["memory_bytes"] = None if memory is None else memory.as_dict() | {"device": found.device}
        recipes[each.recipe.name] = plan
    costs = [
        {
            "recipes": list(cost.recipes),
            "memory_bytes": asdict(cost.memory) | {"peak": cost.memory.peak},
            "step": {"seconds": cost.step_seconds, "padded_tokens": cost.step_tokens},
            "training_seconds": cost.training_seconds,
            "evaluation_seconds": cost.evaluation_seconds,
            "measured": list(_MEASURED),
            "estimated": list(_ESTIMATED),
        }
        for cost in found.costs
    ]
    base = dict(zip(("name", "depth", "full_depth", "quantization", "precision"), found.base, strict=True))
    registered = {"folder": registry, "names": list(found.published)}
    return {"dry_run": True, "base": base, "recipes": recipes, "costs": costs, "registry": registered}


def _plan_lines(each: "Expected") -> list[tuple[str, str]]:
    own, epoch = each.parameters, each.epoch
    parts = {"LoRA": own.lora, "heads": own.heads, "encoder": own.encoder, "base": own.full}
    kinds = ", ".join(f"{label} {count:,}" for label, count in parts.items() if count)
    share = f"{own.trained:,} ({own.trained / own.base:.2%} of the base's {own.base:,})"
    version = "" if each.version_bytes is None else f", a version of {format_size(each.version_bytes)}"
    copies = 5 if each.recipe.train.average else 4  # weights, the best ones, their average and two moments, in single precision
    checkpoint = format_size(4 * copies * own.trained)
    size = f"{epoch.rows:,} rows, {epoch.tokens:,} tokens ({epoch.padded_tokens:,} with padding), {epoch.steps:,} steps"
    return [
        ("data", f"{each.data}: {each.events:,} events or texts, of which {each.training_events:,} train"),
        ("trains", f"{kinds}: {share}, kind {each.recipe.adapter.kind}"),
        ("encoder", "none" if each.encoder is None else each.encoder),
        ("epoch", f"{size}; computed"),
        *([] if each.privacy is None else [("privacy", each.privacy.removeprefix("privacy: "))]),
        ("writes", f"{each.run}/ (checkpoints of {checkpoint}{version})"),
    ]


def _cost_lines(cost: "Cost", unit: str) -> list[tuple[str, str]]:
    memory = cost.memory
    held = {"base": memory.base, "trained": memory.trained, "copies": memory.kept, "optimizer": memory.optimizer}
    training, evaluation = _clock(cost.training_seconds), _clock(cost.evaluation_seconds)
    return [
        ("tensors", ", ".join(f"{name} {format_size(count)}" for name, count in held.items()) + "; computed"),
        ("peak", f"{format_size(memory.peak)} of tensors; an evaluation batch takes {format_size(memory.evaluation)}; predicted"),
        ("memory", f"a {unit} added {format_size(memory.step)} to the peak, which is {format_size(memory.process)}; measured"),
        (unit, f"{cost.step_seconds:.3g} s for {cost.step_tokens:,} tokens; measured"),
        ("time", f"{training} of training, {evaluation} of evaluation at the measured pace; without metrics and early stop"),
    ]


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
