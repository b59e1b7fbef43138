"""A published version, or a trained model, on a part of a split: every task's figures beside its baselines'."""

from typing import Any

import numpy as np
import torch

from genre.base import Base
from genre.baselines import feedback_baselines, ranking_baselines
from genre.baselines_text import text_baselines
from genre.errors import InputError, ManifestError
from genre.evaluation import Targets, evaluate_feedback, evaluate_ranking
from genre.evaluation_ranking import rank_in_blocks
from genre.interactions import Interactions
from genre.interactions_splits import PARTS, SplitConfig, split
from genre.jobs.places import load_base
from genre.lora import LoraLinear
from genre.metrics_bootstrap import RESAMPLES
from genre.model import Recommender, SoftTokens
from genre.prediction import Predicted, predict
from genre.progress import Reporter
from genre.registry import Registry
from genre.rows import RowBuilder
from genre.tasks import Task
from genre.text_rows import Builder, TextRows
from genre.texts import Texts
from genre.versions import (
    Loaded,
    Low,
    by_split,
    read_adapter,
)

Figures = dict[str, dict[str, Any]]


def evaluate(
    registry: Registry,
    ref: str,
    log: Interactions | Texts,
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
            results |= measure(model, builder, chosen, part=PARTS[part], max_events=one.reading.max_events)
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


def restore(loaded: Loaded, log: Interactions | Texts, base: Base) -> tuple[Recommender, Builder, Any]:
    """A published version as a model on a log (or on labelled texts), with the split it was trained under."""
    config = SplitConfig.model_validate((loaded.manifest.data.split or {}).get("split")) if loaded.manifest.data else None
    if config is None:
        raise ManifestError("data.split", got=None, expected="the split that the version was trained under")
    if isinstance(log, Texts):
        return *_stand_on_texts(loaded, log, base), log.split(config)
    return *stand(loaded, log, base), split(log, config)


def _stand_on_texts(loaded: Loaded, texts: Texts, base: Base) -> tuple[Recommender, TextRows]:
    base.need_bare()
    if loaded.text_layout is None:
        raise InputError(f"{loaded.name} reads a log", got="labelled texts", expected="a folder with interactions.parquet")
    model = Recommender(base, loaded.tasks.values(), dict(loaded.heads), None)
    model.put(low_layers(base, loaded.low))
    return model.eval(), TextRows(texts, loaded.text_layout)


def stand(loaded: Loaded, log: Interactions, base: Base) -> tuple[Recommender, RowBuilder]:
    """A published version as a model that scores events of a log; the base carries it until `release`.

    Raises:
        InputError: The version reads labelled texts.
    """
    base.need_bare()
    layout = loaded.layout
    soft = None
    if loaded.shared is not None:
        soft = SoftTokens(loaded.shared.encoder, loaded.shared.encoder.table(log.catalogue, base))
    model = Recommender(base, loaded.tasks.values(), dict(loaded.heads), soft)
    model.put(low_layers(base, loaded.low))
    return model.eval(), RowBuilder(log, layout)


@torch.no_grad()
def low_layers(base: Base, low: Low, *, dropout: float = 0.0) -> dict[str, LoraLinear]:
    """A stored update as layers over the base's linears, ready for `Recommender.put`; the base is not touched."""
    layers: dict[str, LoraLinear] = {}
    for name, (a, b, scale) in low.items():
        layer = LoraLinear(base.model.get_submodule(name), rank=a.shape[0], scale=scale, dropout=dropout)
        layer.lora_A.copy_(a)
        layer.lora_B.copy_(b)
        layers[name] = layer
    return layers


def measure(
    model: Recommender, builder: Builder, chosen: Any, *, part: int, max_events: int, batch_tokens: int = 16384
) -> dict[str, tuple[Figures, dict[str, Figures]]]:
    """Every task's figures on one part of a split, and the baselines' on the same targets."""
    return judge(predict(model, builder, chosen, part, max_events=max_events, batch_tokens=batch_tokens), model, builder, chosen)


def judge(found: Predicted, model: Recommender, builder: Builder, chosen: Any) -> dict[str, tuple[Figures, dict[str, Figures]]]:
    """Every task's figures of what was predicted, and the baselines' on the same targets."""
    results = {}
    for name, (targets, scores, top) in found.items():
        task = model.tasks[name]
        if not len(targets):
            continue
        own = figures_of(task, targets, scores, top, builder.catalogue_size)
        results[name] = (own, _baselines(task, builder, chosen, targets))
    return results


def figures_of(
    task: Task, targets: Targets, scores: np.ndarray, top: np.ndarray | None, size: int, *, resamples: int = RESAMPLES
) -> Figures:
    """A task's metrics of what `predict` found, in a catalogue of `size` items."""
    if task.kind == "next_item":
        return _plain(evaluate_ranking(task.metrics, targets, scores, top, size, resamples=resamples))
    return _plain(evaluate_feedback(task.metrics, targets, scores, resamples=resamples))


def _baselines(task: Task, builder: Builder, chosen: Any, targets: Targets) -> dict[str, Figures]:
    if isinstance(builder, TextRows):
        scores = text_baselines(builder, chosen, task, targets)
        return {name: _plain(evaluate_feedback(task.metrics, targets, value)) for name, value in scores.items()}
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
