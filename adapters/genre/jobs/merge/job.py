"""The merge job: one adapter for several parents' tasks, published only if it is about as good as each of them.

Owns: which versions can be merged, the order of the job, the merged version's files and manifest. Ignores: the arithmetic
(`merge.methods`), metrics and bounds (`merge.gate`), command lines.

    merged = merge_versions(Registry("registry"), ["like", "rating"], MergeOptions("taste", method="svd"), log)
    merged.version.ref, merged.report["gate"]["tasks"]["like"]["ratio"]      # ("taste:3c1f…", 0.993)

Weights and the gate are decided on the validation part; the test part is read once, for the report, when the gate is passed.
"""

import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from genre._version import __version__
from genre.data.dataset import Dataset
from genre.data.interactions import Interactions
from genre.data.splits import SplitConfig
from genre.engine.versions import Loaded, Low, read_adapter
from genre.errors import InputError, ManifestError
from genre.jobs.encoders import count_leak, hold_out_option
from genre.jobs.evaluate import Metrics
from genre.jobs.loading import load_base, lora_layers
from genre.jobs.merge.gate import MERGED, Evaluator, MergeOptions, check_gate
from genre.jobs.merge.methods import check_arguments
from genre.jobs.publish import base_name, write_catalogue, write_heads
from genre.modules.base.base import Base
from genre.modules.lora.layer import peft_config, to_peft
from genre.progress import Reporter
from genre.registry import Cost, DataInfo, Manifest, Registry, Version
from genre.registry.lookup import look_up
from genre.registry.manifest import canonical
from genre.registry.names import check_name


@dataclass(frozen=True)
class Merged:
    """A published merge: the version, and a report (JSON values) of its settings and metrics."""

    version: Version
    report: dict[str, Any]


def merge_versions(
    registry: Registry,
    refs: Sequence[str],
    options: MergeOptions,
    data: Dataset,
    *,
    base: Base | str | None = None,
    reporter: Reporter | None = None,
) -> Merged:
    """Merge published adapters and publish the result if it passes the gate.

    Args:
        registry: Holds the parents, and gets the merged version.
        refs: The parents.
        options: See `MergeOptions`.
        data: The data for weights, gate and report, each task under its parent's split: a log, or labelled texts for adapters
            that read those.
        base: The parents' base, or its folder or hub id; by default found by the name in the first parent's manifest.
        reporter: Receives progress.

    Raises:
        ManifestError: The parents differ in base, depth, tokenizer, encoder or layout, share a task, or have other ranks.
        QualityError: A task's metric on validation is below the floor; nothing is published.
        InputError: An option is out of range.
    """
    begun, reporter = time.perf_counter(), reporter or Reporter.silent()
    fixed = None if options.weights == "search" else options.weights or (1 / max(len(refs), 1),) * len(refs)
    _check_options(options, fixed or (1.0,) * len(refs), len(refs))
    versions = [registry.resolve(ref) for ref in refs]
    check_mergeable(versions, registry, data)
    registry.check_writable(options.name)
    base = base if isinstance(base, Base) else load_base(versions[0].manifest, base)
    encoders: dict[str, Any] = {}
    parents = [read_adapter(registry, version.ref, base, encoders=encoders) for version in versions]
    for parent in parents:
        if parent.manifest.data is not None and parent.manifest.data.digest != data.digest:
            reporter.line(f"{parent.name}:{parent.version} was trained on other data than it is evaluated on here")
    evaluator = Evaluator(parents, data, base, options, reporter)
    found, search = evaluator.search() if fixed is None else (tuple(fixed), None)
    low = evaluator.merged(found)
    gate = evaluator.gate(low)
    check_gate(gate, options)
    matrix = evaluator.transfer(low)
    rank = next(iter(low.values()))[0].shape[0] if low else None
    settings: dict[str, Any] = {
        "method": options.method,
        "weights": list(found),
        "density": options.density,
        "seed": options.seed,
    }
    settings |= {"rank": rank, "parents": [version.ref for version in versions]}
    with tempfile.TemporaryDirectory() as scratch:
        _write_files(Path(scratch), parents, low, data, base)
        cost = _cost(parents, low, time.perf_counter() - begun)
        notes = {"merge": settings | {"floor": options.floor, "validation": gate}, "splits": evaluator.splits}
        draft = _manifest(options.name, parents, data, base, {name: row[MERGED] for name, row in matrix.items()}, notes, cost)
        version = registry.publish(scratch, draft, alias=options.aliases)
    report = {
        **{"ref": version.ref, "digest": version.digest, **settings},
        "gate": {"part": "valid", "floor": options.floor, "tasks": gate},
        "transfer": {"part": "test", "metric": evaluator.deciding, "tasks": matrix},
        "search": search,
        "seconds": round(time.perf_counter() - begun, 3),
    }
    return Merged(version, report)


def check_mergeable(versions: Sequence[Version], registry: Registry | None = None, data: Dataset | None = None) -> None:
    """Check that versions can be merged: one base, depth, tokenizer, encoder and layout, and every task from one parent.

    Args:
        versions: The parents.
        registry: Holds their encoders; with it the message names the command that gives them one.
        data: What they were trained on.

    Raises:
        ManifestError: They cannot; the message names the field and both values.
    """
    first, owners = versions[0], dict[str, Version]()
    for version in versions:
        if version.manifest.kind == "encoder" or not version.manifest.tasks:
            got, expected = f"a version of kind {version.manifest.kind}", "an adapter with tasks"
            raise ManifestError(f"{version.ref} has no tasks to merge", got=got, expected=expected)
        if "privacy" in version.manifest.notes:
            what, todo = (
                f"{version.ref} is private: the gate of a merge reads its users' events without noise",
                "train one joint recipe",
            )
            raise ManifestError(what, got="notes.privacy", expected="versions without it", todo=todo)
        for field, got, wanted in _conditions(version.manifest, first.manifest):
            if canonical(got) != canonical(wanted):
                what = f"{version.ref} cannot be merged with {first.ref}: {field} differs"
                shown = [json.dumps(value, ensure_ascii=False) for value in (got, wanted)]
                todo = "merge adapters that were trained on the same base, encoder and layout"
                if field == "encoder" and registry is not None:
                    todo = _one_encoder(version, first, registry, data)
                raise ManifestError(what, got=shown[0], expected=shown[1], todo=todo)
        for task in version.manifest.tasks:
            owner = owners.setdefault(str(task["name"]), version)
            if owner.digest != version.digest:
                what, todo = f"two parents have a task {task['name']!r}", "train one of them under another task name"
                got = f"{owner.ref} and {version.ref}"
                raise ManifestError(what, got=got, expected="each task from one parent", todo=todo)


def _one_encoder(version: Version, first: Version, registry: Registry, data: Dataset | None) -> str:
    """The command after which two versions have one encoder."""
    todo = "train one of them again with --set encoder.use=REF, the other's encoder"
    for kept, again in ((first, version), (version, first)):
        used, own = kept.manifest.data, again.manifest.data
        encoder = kept.manifest.encoder and look_up(registry.store, kept.manifest.encoder)
        if not encoder or used is None or own is None or not isinstance(data, Interactions) or not own.split:
            continue
        fitted = encoder.manifest.data
        if fitted is None or not fitted.split or {fitted.digest, own.digest} != {data.digest}:
            continue
        evaluated = SplitConfig.model_validate(own.split["split"])
        if not count_leak(fitted.split, evaluated, data):
            return f"train {again.name} again with --set encoder.use={encoder.ref}, and merge that"
        option = hold_out_option([evaluated])
        todo = f"train {kept.name} again with --set encoder.use=fit {option}, then {again.name}, which shares its encoder then"
    return todo


def _conditions(other: Manifest, first: Manifest) -> Iterator[tuple[str, Any, Any]]:
    yield "base.fingerprint", other.base.fingerprint, first.base.fingerprint
    yield "base.depth", other.base.depth, first.base.depth
    yield "tokenizer", other.tokenizer, first.tokenizer
    yield "encoder", other.encoder, first.encoder
    for key in sorted(other.sequence.keys() | first.sequence.keys()):
        yield f"sequence.{key}", other.sequence.get(key), first.sequence.get(key)


def _check_options(options: MergeOptions, weights: Sequence[float], count: int) -> None:
    check_name(options.name)
    check_arguments(count, weights, method=options.method, rank=options.rank, density=options.density)
    if not (math.isfinite(options.floor) and options.floor >= 0):
        raise InputError("floor", got=options.floor, expected="a share such as 0.95; 0 accepts everything")


def _heads(parents: Sequence[Loaded]) -> dict[str, Any]:
    return {name: head for parent in parents for name, head in parent.heads.items()}


def _write_files(folder: Path, parents: Sequence[Loaded], low: Low, data: Dataset, base: Base) -> None:
    if low:
        layers = lora_layers(base, low)
        rank = next(iter(layers.values())).rank
        conv1d = any(type(layer.base).__name__ == "Conv1D" for layer in layers.values())
        config = peft_config(layers, base=base_name(base), rank=rank, alpha=rank, conv1d=conv1d, encoder=base.bidirectional)
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_file(to_peft(layers), folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_heads(folder, _heads(parents))
    if parents[0].shared is None and data.catalogue is not None:
        write_catalogue(folder, data.catalogue, parents[0].layout.text)


def _cost(parents: Sequence[Loaded], low: Low, seconds: float) -> Cost:
    return Cost(
        seconds=round(seconds, 3),
        lora_params=sum(a.numel() + b.numel() for a, b, _ in low.values()),
        head_params=sum(value.numel() for head in _heads(parents).values() for value in head.parameters()),
    )


def _manifest(
    name: str,
    parents: Sequence[Loaded],
    data: Dataset,
    base: Base,
    metrics: Mapping[str, Metrics],
    notes: Mapping[str, Any],
    cost: Cost,
) -> Manifest:
    manifests = [parent.manifest for parent in parents]
    first = manifests[0]
    shared = {"tokenizer": first.tokenizer, "sequence": first.sequence, "encoder": first.encoder}
    return Manifest.model_validate(
        {
            **{"name": name, "kind": MERGED, "metrics": metrics, "notes": notes, "cost": cost, **shared},
            "base": first.base.model_copy(update={"quantization": base.quantization}),
            "tasks": list({str(task["name"]): task for manifest in manifests for task in manifest.tasks}.values()),
            "catalogue": None if data.catalogue is None else data.catalogue.digest,
            "data": _data(manifests, data),
            "protocol": {task: line for manifest in manifests for task, line in manifest.protocol.items()},
            "parents": list(dict.fromkeys(parent.digest for parent in parents)),
            "code_version": __version__,
        }
    )


def _data(manifests: Sequence[Manifest], data: Dataset) -> DataInfo:
    """The data of the evaluation; rows are the most that a parent trained on, the time span covers all of them."""
    known = [manifest.data for manifest in manifests if manifest.data is not None]
    spans = [each.time_span for each in known if each.time_span is not None]
    held: list[Any] = []
    for each in known:
        found: Any = (each.split or {}).get("hold_out") or []
        held += [config for config in found if config not in held]
    span = (min(first for first, _ in spans), max(last for _, last in spans)) if spans else None
    split = {"split": (known[0].split or {}).get("split"), "hold_out": held}
    return DataInfo(name=data.info.name, digest=data.digest, rows=max(each.rows for each in known), time_span=span, split=split)
