"""What a version folder holds, as modules: writing a run's result down and building it up again.

Owns: the files of adapter and encoder versions (design.md, section 4) and their manifests. Ignores: how versions are
stored, who asks for them.

    adapter   adapter_config.json  adapter_model.safetensors  heads.safetensors  heads.json  recipe.yaml  [catalogue.jsonl]
    encoder   encoder.safetensors  encoder.json  catalogue.jsonl
"""

import dataclasses
import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.torch import load, load_file, save_file
from torch import Tensor

from genre._version import __version__
from genre.data.catalogue import Catalogue
from genre.data.sequences.layout import FeedbackVocabulary, Layout
from genre.data.sequences.text_rows import TextLayout
from genre.errors import InputError, IntegrityError, ManifestError
from genre.modules.base.base import Base
from genre.modules.encoder import BehaviourEncoder
from genre.modules.heads.heads import Head, make_head
from genre.modules.heads.spec import HeadSpec
from genre.modules.lora.layer import from_peft, peft_config, to_peft
from genre.recipe import AdapterConfig
from genre.registry import Registry, Version
from genre.registry.manifest import BaseInfo, Cost, DataInfo, Manifest, check_fit
from genre.tasks import Task
from genre.training.assembly import Assembly, SharedEncoder

Low = dict[str, tuple[Tensor, Tensor, float]]
CATALOGUE, HEADS = "catalogue.jsonl", "heads.json"


@dataclass(frozen=True)
class Loaded:
    """An adapter version as modules, on no base yet.

    Attributes:
        low: For each adapted linear: A (rank, in), B (out, rank), scale.
        heads: One per task, on the base's device, in evaluation mode.
        reading: How events, or labelled texts, become rows.
        shared: The behaviour encoder it was trained with; None for text-only adapters.
        catalogue: The items it knows by id.
    """

    name: str
    version: str
    digest: str
    manifest: Manifest
    low: Low
    tasks: dict[str, Task]
    heads: dict[str, Head]
    reading: Layout | TextLayout
    shared: SharedEncoder | None
    catalogue: Catalogue

    @property
    def text_layout(self) -> TextLayout | None:
        """How it reads labelled texts; None if it reads a user's events."""
        return self.reading if isinstance(self.reading, TextLayout) else None

    @property
    def layout(self) -> Layout:
        """How it reads a user's events.

        Raises:
            InputError: It reads labelled texts.
        """
        if isinstance(self.reading, TextLayout):
            raise InputError(
                f"{self.name} reads labelled texts", got="a user's events", expected=f"texts with {', '.join(self.reading.text)}",
                todo='ask it with "texts": [{…}]',
            )  # fmt: skip
        return self.reading


def write_adapter(folder: Path, assembly: Assembly) -> None:
    """Write the adapter files of a trained assembly into an empty folder."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter, model = assembly.recipe.adapter, assembly.model
    if model.layers:
        save_file(to_peft(model.layers), folder / "adapter_model.safetensors", metadata={"format": "pt"})
        _write_json(folder / "adapter_config.json", _peft_config(adapter, assembly.base, model.layers))
    write_heads(folder, {name: head for name, head in model.heads.items() if isinstance(head, Head)})
    (folder / "recipe.yaml").write_text(assembly.recipe.dump(), encoding="utf-8")
    shared, items = assembly.shared, assembly.data.catalogue
    if items is None:
        return
    if shared is None or (shared.catalogue and any(item not in shared.catalogue for item in items.item_ids)):
        write_catalogue(folder, items, _item_columns(assembly))


def write_heads(folder: Path, heads: Mapping[str, Head]) -> None:
    """Write each task's head: its description, and its weights if it has any."""
    _write_json(folder / HEADS, {name: head.spec.model_dump(mode="json") for name, head in heads.items()})
    state = {
        f"{name}.{key}": value.detach().cpu().clone().contiguous()
        for name, head in heads.items()
        for key, value in head.state_dict().items()
    }
    if state:
        save_file(state, folder / "heads.safetensors", metadata={"format": "pt"})


def write_encoder(folder: Path, assembly: Assembly) -> None:
    """Write the encoder that an assembly fitted into an empty folder."""
    assert assembly.shared is not None
    folder.mkdir(parents=True, exist_ok=True)
    encoder, vocabulary = assembly.shared.encoder, assembly.shared.vocabulary
    save_file(encoder.payload(), folder / "encoder.safetensors", metadata={"format": "pt"})
    described: dict[str, Any] = {
        "spec": dataclasses.asdict(encoder.spec),
        "feedback": {"column": vocabulary.column, "values": list(vocabulary.values)},
    }
    if len(encoder.item_ids) < assembly.log.catalogue.size:  # the ids that its vectors are bound to, where some have none
        described["items"] = encoder.item_ids
    _write_json(folder / "encoder.json", described)
    write_catalogue(folder, assembly.log.catalogue, _item_columns(assembly))


def _item_columns(assembly: Assembly) -> tuple[str, ...]:
    """The item columns that an assembly reads, as text or as features."""
    spec = assembly.shared.encoder.spec if assembly.shared else None
    features = (*spec.text, *(name for name, _ in spec.dense)) if spec else ()
    return (*assembly.recipe.sequence.text, *features)


def write_catalogue(folder: Path, catalogue: Catalogue, columns: tuple[str, ...]) -> None:
    """The items' ids, titles and used columns, so that a version serves requests by id without the data set."""
    wanted = ["item_id", *dict.fromkeys(("title", *columns))]
    catalogue.frame.select([name for name in wanted if name in catalogue.frame.columns]).write_ndjson(folder / CATALOGUE)


def read_catalogue(folder: Path) -> Catalogue:
    """The catalogue that `write_catalogue` wrote.

    Raises:
        IntegrityError: It is missing or not JSON lines.
    """
    try:
        return Catalogue(pl.read_ndjson(folder / CATALOGUE, infer_schema_length=None))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise IntegrityError(f"{CATALOGUE} cannot be read", got=str(error).splitlines()[0]) from None


def adapter_manifest(
    assembly: Assembly,
    *,
    encoder: str | None,
    cost: Cost,
    metrics: dict[str, Any],
    parents: tuple[str, ...] = (),
    notes: dict[str, Any] | None = None,
) -> Manifest:
    """The manifest draft of a trained assembly."""
    recipe = assembly.recipe
    return Manifest.model_validate(
        {
            **_common(assembly), "name": recipe.name, "kind": "adapter",
            "tasks": [task.model_dump(mode="json") for task in recipe.tasks],
            "encoder": encoder, "metrics": metrics, "parents": parents, "cost": cost, "notes": notes or {},
            "protocol": {task.name: protocol(assembly, task) for task in recipe.tasks},
        }
    )  # fmt: skip


def encoder_manifest(assembly: Assembly, name: str, *, cost: Cost) -> Manifest:
    """The manifest draft of a fitted encoder."""
    return Manifest.model_validate({**_common(assembly), "name": name, "kind": "encoder", "cost": cost})


def protocol(assembly: Assembly, task: Task) -> str:
    """The evaluation protocol in a line: split, history, ranking, ties, windows; for labelled texts, what is cut."""
    config = {key: value for key, value in assembly.recipe.data.split.model_dump().items() if value not in (None, 0)}
    kind = config.pop("kind")
    if kind == "group":
        shares = f"valid {config.get('valid', 0)}, test {config.get('test')} of the groups, seed {config.get('seed', 0)}"
        return f"{kind} ({shares}): no group on two sides; texts of at most {assembly.recipe.sequence.max_tokens} tokens"
    how = "transductive history" if assembly.split.transductive else "prequential: all earlier events are history"
    window = f"windows of {assembly.recipe.data.max_events} events"
    ranking = f"; full catalogue, seen items {task.seen}, mid-rank for equal scores" if task.kind == "next_item" else ""
    said = ", ".join(f"{key} {value}" for key, value in config.items())
    return f"{kind} ({said}); {how}; equal seconds in hash order; {window}{ranking}"


def read_adapter(
    registry: Registry,
    ref: str | Version,
    base: Base,
    *,
    encoders: MutableMapping[str, SharedEncoder] | None = None,
    recheck: bool = True,
) -> Loaded:
    """Load a version, check that it fits the base, and build its modules.

    Args:
        registry: Where it is.
        ref: `name`, `name@alias` or `name:version`, or the version itself.
        base: The base that it is to run on; not touched.
        encoders: Encoders that are loaded already, by digest; a new one is added.
        recheck: Hash its files even if this registry has done so before; see `Registry.fetch`.

    Raises:
        ManifestError: Another base, depth, tokenizer, layout or encoder; the message names the field and both values.
        IntegrityError: The version is damaged.
    """
    version, said = registry.resolve(ref), ref if isinstance(ref, str) else ref.ref
    folder = registry.fetch(version, recheck=recheck)
    manifest = version.manifest
    if manifest.kind == "encoder":
        raise ManifestError(f"{said} is a behaviour encoder", got="encoder", expected="an adapter")
    _check(manifest, base)
    shared, catalogue = None, None
    if manifest.encoder is not None:
        shared = encoders.get(manifest.encoder) if encoders is not None else None
        if shared is None:
            shared = read_encoder(registry, manifest.encoder, base)
            if encoders is not None:
                encoders[manifest.encoder] = shared
        catalogue = shared.catalogue
    reading: Layout | TextLayout
    if manifest.reads == "texts":
        reading, catalogue = TextLayout.restore(base, manifest.sequence), Catalogue(pl.DataFrame(schema={"item_id": pl.String}))
    else:
        base.need_causal(f"{said}, which reads a user's events,")
        reading = Layout.restore(base.tokenizer, manifest.sequence)
        if shared is not None and shared.vocabulary != reading.feedback:
            theirs = f"{shared.vocabulary.values}, the encoder's"
            raise ManifestError("sequence.values", got=reading.feedback.values, expected=theirs)
    if catalogue is None or (folder / CATALOGUE).exists():  # its own, where it knows more items than its encoder
        catalogue = read_catalogue(folder)
    low: Low = {}
    if (folder / "adapter_model.safetensors").exists():
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        low = from_peft(config, _read_tensors(folder / "adapter_model.safetensors"))
    tasks = {str(row["name"]): Task.model_validate(row) for row in manifest.tasks}
    heads = read_heads(folder, tasks, base)
    return Loaded(version.name, version.version, version.digest, manifest, low, tasks, heads, reading, shared, catalogue)


def by_split(loaded: Loaded) -> list[Loaded]:
    """A version as one for each split that its tasks are evaluated under: itself, but for merged versions."""
    splits, data = loaded.manifest.notes.get("splits"), loaded.manifest.data
    if not isinstance(splits, dict) or data is None:
        return [loaded]
    groups: dict[str, list[str]] = {}
    for name in loaded.tasks:
        groups.setdefault(json.dumps(splits[name], sort_keys=True), []).append(name)
    found = []
    for text, names in groups.items():
        changed = data.model_copy(update={"split": {**(data.split or {}), "split": json.loads(text)}})
        found.append(
            dataclasses.replace(
                loaded, manifest=loaded.manifest.model_copy(update={"data": changed}),
                tasks={name: loaded.tasks[name] for name in names}, heads={name: loaded.heads[name] for name in names},
            )
        )  # fmt: skip
    return found


def read_encoder(registry: Registry, digest: str, base: Base) -> SharedEncoder:
    """Load a behaviour encoder by digest, frozen.

    Raises:
        ManifestError: It was fitted on another base.
    """
    version = registry.find(digest)
    _check(version.manifest, base)
    folder = registry.fetch(version)
    described = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    catalogue = read_catalogue(folder)
    bound = described.get("items", catalogue.item_ids)
    encoder = BehaviourEncoder.restore(described["spec"], bound, load_file(folder / "encoder.safetensors"))
    vocabulary = FeedbackVocabulary(described["feedback"]["column"], tuple(described["feedback"]["values"]))
    return SharedEncoder(encoder.to(base.device), vocabulary, digest, catalogue)


def _check(manifest: Manifest, base: Base) -> None:
    check_fit(
        manifest, base_fingerprint=base.fingerprint, depth=base.depth, tokenizer=base.tokenizer_digest,
        sequence=manifest.sequence, encoder=manifest.encoder,
    )  # fmt: skip


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """A file of a few megabytes as tensors of their own.

    safetensors 0.8 leaves two Python objects per tensor behind when it reads a mapped file (`load_file`, `safe_open`), which
    adds up in a service that swaps versions for weeks; from bytes it leaves nothing.
    """
    return load(file.read_bytes())


def read_heads(folder: Path, tasks: Mapping[str, Task], base: Base) -> dict[str, Head]:
    """Build the heads of a version from their descriptions and weights, frozen, in evaluation mode.

    Raises:
        ManifestError: Descriptions, weights, tasks and base do not go together; the message names the leaf and both values.
        IntegrityError: A file cannot be read.
    """
    file = folder / "heads.safetensors"
    state = _read_tensors(file) if file.exists() else {}
    described = _read_json(folder / HEADS) if (folder / HEADS).exists() else None
    heads: dict[str, Head] = {}
    for name, task in tasks.items():
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
        got = {key: tuple(value.shape) for key, value in own.items()}
        if described is None:
            spec = HeadSpec.from_tensors(task, got, base.hidden_size)
        else:
            spec = HeadSpec.read(task, described.get(name), base.hidden_size)
            spec.check_sizes(task, got)
        head = make_head(spec, base)
        expected = {key: tuple(value.shape) for key, value in head.state_dict().items()}
        if other := sorted(key for key in expected.keys() | got.keys() if expected.get(key) != got.get(key))[:3]:
            raise ManifestError(
                f"the head of task {name!r} was not written by this release of GENRE",
                got=", ".join(f"{key} {got.get(key, 'absent')}" for key in other),
                expected=", ".join(f"{key} {expected.get(key, 'absent')}" for key in other),
                todo="let the alias name another version, or train it again",
            )
        head.load_state_dict(own)
        heads[name] = head.to(base.device).eval().requires_grad_(False)
    return heads


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{file.name} cannot be read", got=str(error)) from None
    if not isinstance(value, dict):
        raise IntegrityError(f"{file.name} cannot be read", got=type(value).__name__, expected="an object")
    return value


def _common(assembly: Assembly) -> dict[str, Any]:
    base, recipe = assembly.base, assembly.recipe
    catalogue = assembly.data.catalogue
    return {
        "base": BaseInfo(
            name=Path(base.name).name if Path(base.name).expanduser().is_dir() else base.name,  # no path of this machine
            fingerprint=base.fingerprint, depth=base.depth, quantization=base.quantization,
        ),
        "tokenizer": base.tokenizer_digest, "sequence": assembly.builder.layout.describe(),
        "catalogue": None if catalogue is None else catalogue.digest,
        "data": DataInfo(
            digest=assembly.data.digest, rows=int(np.count_nonzero(assembly.usable)),
            time_span=assembly.data.time_span(assembly.usable),
            split={
                "split": recipe.data.split.model_dump(mode="json", exclude_none=True),
                "hold_out": [held.model_dump(mode="json", exclude_none=True) for held in recipe.data.hold_out],
            },
        ),
        "code_version": __version__,
    }  # fmt: skip


def _peft_config(adapter: AdapterConfig, base: Base, names: Any) -> dict[str, Any]:
    conv1d = any(type(layer.base).__name__ == "Conv1D" for layer in names.values())
    return peft_config(
        names, base=Path(base.name).name, rank=adapter.rank, alpha=adapter.alpha, dropout=adapter.dropout,
        rslora=adapter.kind == "rslora", conv1d=conv1d, encoder=base.bidirectional,
    )  # fmt: skip


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def count(tensors: dict[str, torch.nn.Parameter]) -> int:
    """Number of values in some parameters."""
    return sum(value.numel() for value in tensors.values())
