"""The jobs that people ask for, wired: train, evaluate, recommend, score.

Owns: which registry, run folder, encoder and baselines go into a job, and what it leaves behind. Ignores: arithmetic,
command lines.

    run = train(Recipe.read("recipes/like.yaml"), registry=Registry("registry"))
    registry.publish(run, alias="production")
"""

import json
import os
import platform
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version as package_version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genre.assembly import Assembly, SharedEncoder, assemble, needs_encoder
from genre.base import Base
from genre.baselines import feedback_baselines, ranking_baselines
from genre.errors import BaseModelError, DataError, ManifestError, NotFoundError, RecipeError, RegistryError
from genre.evaluation import Targets, evaluate_feedback, evaluate_ranking
from genre.evaluation_ranking import rank_in_blocks
from genre.files import appearing_folder
from genre.interactions import Interactions
from genre.interactions_splits import PARTS, SplitConfig, split
from genre.lora import LoraLinear
from genre.metrics_bootstrap import RESAMPLES
from genre.model import Recommender, SoftTokens
from genre.prediction import predict
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.registry.manifest import Cost, Manifest
from genre.rows import RowBuilder
from genre.tasks import Task
from genre.training import Fitted, atomic, fit
from genre.versions import (
    Loaded,
    Low,
    adapter_manifest,
    by_split,
    count,
    encoder_manifest,
    read_adapter,
    read_encoder,
    write_adapter,
    write_encoder,
)

Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """A finished run, ready to be published.

    Attributes:
        root: The run folder.
        files: The files of the adapter version; None for a full fine-tune.
        manifest: Its manifest draft.
        metrics: For each task the test figures by metric, with intervals.
        baselines: For each task and baseline, the same.
        encoder: The encoder that was fitted and published with it: its reference, or None.
    """

    root: Path
    files: Path | None
    manifest: Manifest
    metrics: dict[str, Figures]
    baselines: dict[str, dict[str, Figures]]
    encoder: str | None

    @property
    def folder(self) -> Path:
        """The files to publish.

        Raises:
            RecipeError: The run is a full fine-tune, which is compared with adapters but never put beside them.
        """
        if self.files is None:
            raise RecipeError("a full fine-tune is not published", got="adapter.kind full", expected="lora, rslora or head_only")
        return self.files


def open_log(path: str) -> Interactions:
    """The log of a recipe: a data set folder, or a data set that comes as a package (prepared if need be).

    Raises:
        DataError: Neither.
    """
    from genre import sources

    if Path(path).is_dir():
        return Interactions.read(path)
    name = Path(path).name
    if name in sources.DATA:
        return Interactions.read(sources.prepare_data(name))
    raise DataError(
        "no data set folder", got=path, expected=f"a folder with interactions.parquet, or one of {', '.join(sources.DATA)}",
        todo="genre data prepare or genre data import makes one",
    )  # fmt: skip


def train(
    recipe: Recipe,
    *,
    log: Interactions | None = None,
    base: Base | None = None,
    registry: Registry | None = None,
    folder: Path | str | None = None,
    resume: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Train a recipe's adapter, evaluate it once on the test part beside the baselines, and leave a run folder.

    Args:
        recipe: What to train.
        log: Wins over the recipe's data path.
        base: Wins over the recipe's base; its depth and quantization are checked against the recipe's.
        registry: Where an encoder is looked for, and published if a new one is fitted; none fits a new one unpublished.
        folder: The run folder; by default `runs/<name>/<n>`.
        resume: Go on from the run folder's last checkpoint.
        reporter: Where progress goes.

    Raises:
        GenreError: See the error's message; a run that diverges or is interrupted keeps its last checkpoint.
    """
    say = reporter or Reporter.silent()
    log = log if log is not None else open_log(recipe.data.path)
    base = base or Base.load(recipe.base.name, quantization=recipe.base.quantization, depth=recipe.base.depth)
    _check_base(recipe, base)
    root = Path(folder) if folder is not None else _run_folder(recipe.name, resume)
    shared = _find_encoder(recipe, log, base, registry, say)
    assembly = assemble(recipe, log, base, shared)
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_text(root / "recipe.yaml", recipe.dump())
        write_text(root / "environment.json", json.dumps(environment(), indent=2) + "\n")
        fitted = fit(assembly, root, resume=resume, reporter=say)
        return _finish(fitted, root, registry, say)
    finally:
        assembly.model.release()


def evaluate(
    registry: Registry,
    ref: str,
    log: Interactions,
    base: Base | None = None,
    *,
    part: str = "test",
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Evaluate a published version under its own protocol, beside the baselines.

    Returns:
        `{"ref", "digest", "protocol", "tasks": {task: {"adapter": {metric: figure}, "baselines": {name: {metric: figure}}}}}`.

    Raises:
        ManifestError: The version does not fit the base.
    """
    say = reporter or Reporter.silent()
    manifest = registry.resolve(ref).manifest
    base = base or load_base(manifest)
    loaded = read_adapter(registry, ref, base)
    say.line(f"evaluating {ref} ({loaded.version}) on the {part} part")
    results: dict[str, tuple[Figures, dict[str, Figures]]] = {}
    for one in by_split(loaded):
        model, builder, chosen = restore(one, log, base)
        try:
            results |= measure(model, builder, chosen, part=PARTS[part], max_events=one.layout.max_events)
        finally:
            model.release()
    tasks = {name: {"adapter": own, "baselines": others} for name, (own, others) in results.items()}
    return {
        "ref": ref,
        "digest": loaded.digest,
        "part": part,
        "protocol": manifest.protocol,
        "quantization": base.quantization,
        "tasks": tasks,
    }


def restore(loaded: Loaded, log: Interactions, base: Base) -> tuple[Recommender, RowBuilder, Any]:
    """A published version as a model on a log, with the split it was trained under."""
    base.need_bare()
    config = SplitConfig.model_validate((loaded.manifest.data.split or {}).get("split")) if loaded.manifest.data else None
    if config is None:
        raise ManifestError("data.split", got=None, expected="the split that the version was trained under")
    soft = None
    if loaded.shared is not None:
        soft = SoftTokens(loaded.shared.encoder, loaded.shared.encoder.table(log.catalogue, base))
    model = Recommender(base, loaded.tasks.values(), dict(loaded.heads), soft)
    model.put(low_layers(base, loaded.low))
    return model.eval(), RowBuilder(log, loaded.layout), split(log, config)


@torch.no_grad()
def low_layers(base: Base, low: Low) -> dict[str, LoraLinear]:
    """A stored update as layers over the base's linears, ready for `Recommender.put`; the base is not touched."""
    layers: dict[str, LoraLinear] = {}
    for name, (a, b, scale) in low.items():
        layer = LoraLinear(base.model.get_submodule(name), rank=a.shape[0], scale=scale)
        layer.lora_A.copy_(a)
        layer.lora_B.copy_(b)
        layers[name] = layer
    return layers


def measure(
    model: Recommender, builder: RowBuilder, chosen: Any, *, part: int, max_events: int, batch_tokens: int = 16384
) -> dict[str, tuple[Figures, dict[str, Figures]]]:
    """Every task's figures on one part of a split, and the baselines' on the same targets."""
    found = predict(model, builder, chosen, part, max_events=max_events, batch_tokens=batch_tokens)
    results = {}
    for name, (targets, scores, top) in found.items():
        task = model.tasks[name]
        if not len(targets):
            continue
        own = figures_of(task, targets, scores, top, builder.log.catalogue.size)
        results[name] = (own, _baselines(task, builder, chosen, targets))
    return results


def figures_of(
    task: Task, targets: Targets, scores: np.ndarray, top: np.ndarray | None, size: int, *, resamples: int = RESAMPLES
) -> Figures:
    """A task's metrics of what `predict` found, in a catalogue of `size` items."""
    if task.kind == "next_item":
        return _plain(evaluate_ranking(task.metrics, targets, scores, top, size, resamples=resamples))
    return _plain(evaluate_feedback(task.metrics, targets, scores, resamples=resamples))


def _baselines(task: Task, builder: RowBuilder, chosen: Any, targets: Targets) -> dict[str, Figures]:
    log = builder.log
    if task.kind == "next_item":
        found = {}
        for name, blocks in ranking_baselines(log, chosen, targets).items():
            ranks, top = rank_in_blocks(log, chosen, targets, blocks(), seen=task.seen)
            found[name] = _plain(evaluate_ranking(task.metrics, targets, ranks, top, log.catalogue.size))
        return found
    if task.loss == "cross_entropy":
        return {}
    _, label = builder.supervise([task])[task.name]
    scores = feedback_baselines(log, chosen, label, targets, binary=task.is_binary)
    return {name: _plain(evaluate_feedback(task.metrics, targets, value)) for name, value in scores.items()}


def _finish(fitted: Fitted, root: Path, registry: Registry | None, say: Reporter) -> Run:
    assembly = fitted.assembly
    say.line("evaluating on the test part, beside the baselines")
    results = measure(
        assembly.model, assembly.builder, assembly.split, part=PARTS["test"], max_events=assembly.recipe.data.max_events
    )
    metrics = {name: own for name, (own, _) in results.items()}
    baselines = {name: others for name, (_, others) in results.items()}
    cost = Cost(
        seconds=round(fitted.state.seconds, 3), tokens=fitted.state.tokens, peak_memory_bytes=fitted.peak_memory_bytes,
        lora_params=count(_updated(assembly)),
        head_params=sum(value.numel() for value in assembly.model.heads.parameters()),
    )  # fmt: skip
    encoder = assembly.shared.digest if assembly.shared else None
    reference = None
    if assembly.fits_encoder:
        encoder, reference = _publish_encoder(assembly, root, registry, cost)
    folder = None if assembly.recipe.adapter.kind == "full" else root / "version"
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
        with appearing_folder(folder) as aside:
            write_adapter(aside, assembly)
    manifest = adapter_manifest(assembly, encoder=encoder, cost=cost, metrics=metrics)
    report = {
        "metrics": metrics, "baselines": baselines, "validation": fitted.state.history, "cost": cost.model_dump(),
        "skipped": assembly.skipped, "cut_texts": assembly.builder.cut,
    }  # fmt: skip
    write_text(root / "metrics.json", json.dumps(report, indent=2) + "\n")
    for reason, number in assembly.skipped.items():
        say.line(f"skipped: {number} {reason}")
    return Run(root, folder, manifest, metrics, baselines, reference)


def _updated(assembly: Assembly) -> dict[str, torch.nn.Parameter]:
    """What the run trained of the base: low-rank updates, or everything in a full fine-tune."""
    if assembly.recipe.adapter.kind == "full":
        return dict(assembly.base.model.named_parameters())
    return dict(assembly.model.lora_parameters())


def _publish_encoder(assembly: Assembly, root: Path, registry: Registry | None, cost: Cost) -> tuple[str, str]:
    folder = root / "encoder"
    shutil.rmtree(folder, ignore_errors=True)
    with appearing_folder(folder) as aside:
        write_encoder(aside, assembly)
    store = registry or Registry(root / "registry")
    name = encoder_name(assembly.log)
    published = store.publish(folder, encoder_manifest(assembly, name, cost=cost))
    return published.digest, published.ref


def encoder_name(log: Interactions) -> str:
    """What the behaviour encoder of a data set is called in a registry."""
    plain = "".join(letter if letter.isalnum() else "-" for letter in log.info.name.lower())[:50].strip("-")
    return f"encoder-{plain or 'log'}"


def _find_encoder(
    recipe: Recipe, log: Interactions, base: Base, registry: Registry | None, say: Reporter
) -> SharedEncoder | None:
    if not needs_encoder(recipe) or recipe.encoder.use == "fit":
        return None
    ref = encoder_name(log) if recipe.encoder.use == "auto" else recipe.encoder.use
    if registry is None:
        if recipe.encoder.use == "auto":
            return None
        raise RecipeError("encoder.use names a version, which needs a registry", got=ref, todo="give --registry DIR")
    try:
        version = registry.resolve(ref)
        shared = read_encoder(registry, version.digest, base)
        _check_leak(version.manifest, recipe, log)
    except (NotFoundError, ManifestError) as error:
        if recipe.encoder.use != "auto":
            raise
        say.line(f"fitting a new encoder: {error}")
        return None
    say.line(f"using the encoder {version.ref}")
    return shared


def _check_leak(encoder: Manifest, recipe: Recipe, log: Interactions) -> None:
    """Refuse an encoder that was fitted on events which this recipe validates or tests on.

    Raises:
        ManifestError: It was, or it cannot be told.
    """
    data = encoder.data
    held_out = split(log, recipe.data.split).part > 0
    if data is not None and data.digest == log.digest and data.split is not None:
        theirs = split(log, SplitConfig.model_validate(data.split["split"])).part == 0
        for held in data.split.get("hold_out") or []:  # type: ignore[union-attr]
            theirs &= split(log, SplitConfig.model_validate(held)).part == 0
        overlap = int((theirs & held_out).sum())
        if overlap:
            raise ManifestError(
                "the encoder was fitted on events that this recipe is evaluated on", got=f"{overlap} events", expected="none",
                todo="fit it with data.hold_out naming this recipe's split, or use encoder.use: fit",
            )  # fmt: skip
        return
    first = int(log.timestamps[held_out].min()) if held_out.any() else None
    if data is None or data.time_span is None or (first is not None and data.time_span[1] > first):
        raise ManifestError(
            "the encoder was fitted on another log that overlaps in time with this recipe's evaluation",
            got=None if data is None else data.time_span, expected=f"nothing later than {first}", todo="use encoder.use: fit",
        )  # fmt: skip


def load_base(manifest: Manifest, name: str | None = None, *, quantization: str | None = None) -> Base:
    """The base that a manifest names, at its depth.

    Args:
        manifest: Of a version.
        name: Where the base is, for versions whose base came from a folder or has moved.
        quantization: Another one than the version was trained on.

    Raises:
        BaseModelError: Nothing of that name can be found.
        ManifestError: The weights of that name are others.
    """
    wanted = manifest.base
    chosen: Any = quantization or wanted.quantization
    try:
        base = Base.load(name or wanted.name, quantization=chosen, depth=wanted.depth)
    except BaseModelError as error:
        if name is not None or not error.what.startswith("no base is called"):
            raise
        raise BaseModelError(error.what, expected=error.expected, todo="say where it is with --base") from None
    if base.fingerprint != wanted.fingerprint:
        raise ManifestError(
            "base.fingerprint", got=base.fingerprint, expected=wanted.fingerprint, todo="name the base it was trained on"
        )
    return base


def environment() -> dict[str, Any]:
    """Versions and machine, for the run folder and for reports."""
    packages = ("genre-adapters", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy", "polars")
    return {
        "python": platform.python_version(), "platform": platform.platform(), "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "packages": {name: package_version(name) for name in packages},
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def write_text(path: Path, text: str) -> None:
    """Write a file at once: aside, then renamed.

    Raises:
        DiskError: The disk is full or not writable.
    """
    with atomic(path) as aside:
        aside.write_text(text, encoding="utf-8")


def _run_folder(name: str, resume: bool) -> Path:
    parent = Path("runs") / name
    numbers = sorted(int(path.name) for path in parent.glob("*") if path.name.isdigit()) if parent.is_dir() else []
    if resume and numbers:
        return parent / str(numbers[-1])
    return parent / str((numbers[-1] if numbers else 0) + 1)


def _check_base(recipe: Recipe, base: Base) -> None:
    wanted = recipe.base.depth or base.full_depth
    for field, got, expected in (
        ("base.depth", base.depth, wanted),
        ("base.quantization", base.quantization, recipe.base.quantization),
    ):
        if got != expected:
            raise RecipeError(f"the base that was given differs from the recipe in {field}", got=got, expected=expected)


def _plain(figures: dict[str, Any]) -> Figures:
    """Figures as manifests hold them: no NaN."""
    found: Figures = {}
    for name, figure in figures.items():
        if np.isfinite(figure.value):
            entry = figure.as_dict()
            if None in entry["interval"]:
                entry["interval"] = None
            found[name] = entry
    return found


def open_engine(
    registry: str | Path, refs: list[str], log: Interactions | None, *, base: str | None = None, lanes: int = 16
) -> Any:
    """An engine on the base of the first reference that means something; the others fail in their own rows.

    Raises:
        NotFoundError: No reference means anything.
        BaseModelError, ManifestError: That base cannot be found, or is another one now.
    """
    from genre.engine import Engine

    store = Registry(registry)
    errors: list[RegistryError] = []
    for ref in refs:
        try:
            manifest = store.resolve(ref).manifest
        except RegistryError as error:
            errors.append(error)
        else:
            return Engine(load_base(manifest, base), store, lanes=lanes, data=log)
    raise errors[0]


def read_requests(path: Path) -> list[Any]:
    """Requests of a JSON lines file; a row that cannot be read is its error row, with its id where it has one."""
    from genre.engine import Request
    from genre.errors import RequestError

    rows: list[Any] = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row: Any = None
            try:
                row = json.loads(line)
                rows.append(Request.from_json(row))
            except RequestError as error:
                rows.append({"id": row.get("id") if isinstance(row, dict) else None, "error": f"line {number}: {error}"})
            except (ValueError, RecursionError) as error:
                rows.append({"id": None, "error": f"line {number} is no JSON: {error}"})
    return rows


def stream(
    engine: Any,
    requests: Iterable[Any],
    total: int,
    output: Path,
    *,
    at_once: int = 64,
    reporter: Reporter | None = None,
) -> tuple[int, int]:
    """Score requests block by block into a JSON lines file that appears when it is whole.

    Returns:
        Rows written, and how many of them are errors.
    """
    written = failed = 0
    say = reporter or Reporter.for_terminal()
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic(output) as aside, aside.open("w", encoding="utf-8") as file, say.bar("scoring", total) as bar:
        for block in batched(requests, at_once):
            good = [request for request in block if not isinstance(request, dict)]
            answers = iter(engine.score(good))
            for request in block:
                row = request if isinstance(request, dict) else next(answers).to_json()
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                written, failed = written + 1, failed + ("error" in row)
            bar.advance(len(block))
    return written, failed


def batched(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` values."""
    values = iter(values)
    while block := list(islice(values, size)):
        yield block
