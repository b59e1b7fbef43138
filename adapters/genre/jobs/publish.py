"""From an assembly to a version: its files, and the draft of its manifest.

Owns: writing the files of adapter and encoder versions (read by `genre.engine.versions`). Ignores: how versions are stored, who
publishes.

    adapter   adapter_config.json  adapter_model.safetensors  heads.safetensors  heads.json  recipe.yaml  [catalogue.jsonl]
    encoder   encoder.safetensors  encoder.json  catalogue.jsonl
    both      [users.json]
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from genre._version import __version__
from genre.data.catalogue import Catalogue
from genre.data.interactions import Interactions
from genre.data.splits import VALID
from genre.engine.versions import CATALOGUE, HEADS
from genre.evaluation.protocol import protocol_line
from genre.modules.base.base import Base
from genre.modules.heads.heads import Head
from genre.modules.lora.layer import peft_config, to_peft
from genre.recipe import Recipe
from genre.registry.manifest import BaseInfo, Cost, DataInfo, Manifest
from genre.registry.names import WITHHELD
from genre.registry.users import UserSet
from genre.training.assembly import Assembly
from genre.training.private.table import public_budget


def write_adapter(folder: Path, assembly: Assembly) -> None:
    """Write the adapter files of a trained assembly into an empty folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model, base, adapter = assembly.model, assembly.base, assembly.recipe.adapter
    if model.layers:
        config = peft_config(
            model.layers,
            base=base_name(base),
            rank=adapter.rank,
            alpha=adapter.alpha,
            dropout=adapter.dropout,
            rslora=adapter.kind == "rslora",
            conv1d=any(type(layer.base).__name__ == "Conv1D" for layer in model.layers.values()),
            encoder=base.bidirectional,
        )
        save_file(to_peft(model.layers), folder / "adapter_model.safetensors", metadata={"format": "pt"})
        _write_json(folder / "adapter_config.json", config)
    write_heads(folder, {name: head for name, head in model.heads.items() if isinstance(head, Head)})
    (folder / "recipe.yaml").write_text(assembly.recipe.dump(), encoding="utf-8")
    write_users(folder, assembly)
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
        "spec": encoder.spec.describe(),
        "feedback": {"column": vocabulary.column, "values": list(vocabulary.values)} if vocabulary else None,
    }
    if len(encoder.item_ids) < assembly.log.catalogue.size:  # the ids that its vectors are bound to, where some have none
        described["items"] = encoder.item_ids
    _write_json(folder / "encoder.json", described)
    write_catalogue(folder, assembly.log.catalogue, _item_columns(assembly))
    write_users(folder, assembly)


def write_users(folder: Path, assembly: Assembly) -> None:
    """Write who trained or validated an assembly as a keyed set; nothing for texts, logs without a key and private runs.

    A private run promises to tell nobody who trained it, whatever else they know or come to know, such as a key.
    """
    log, key = assembly.data, assembly.data.info.users_key
    if not isinstance(log, Interactions) or key is None or assembly.recipe.train.privacy is not None:
        return
    used = assembly.train_mask | (assembly.split.part == VALID)
    UserSet.of((log.user_ids[code] for code in np.unique(log.user_codes[used])), key.kept()).write(folder)


def _item_columns(assembly: Assembly) -> tuple[str, ...]:
    """The item columns that an assembly reads, as text or as features."""
    spec = assembly.shared.encoder.spec if assembly.shared else None
    features = (*spec.text, *(name for name, _ in spec.dense)) if spec else ()
    return (*assembly.recipe.sequence.text, *features)


def write_catalogue(folder: Path, catalogue: Catalogue, columns: tuple[str, ...]) -> None:
    """The items' ids, titles and used columns, so that a version serves requests by id without the data set."""
    wanted = ["item_id", *dict.fromkeys(("title", *columns))]
    catalogue.frame.select([name for name in wanted if name in catalogue.frame.columns]).write_ndjson(folder / CATALOGUE)


def adapter_manifest(
    assembly: Assembly,
    *,
    encoder: str | None,
    cost: Cost,
    metrics: dict[str, Any],
    parents: tuple[str, ...] = (),
    notes: dict[str, Any] | None = None,
) -> Manifest:
    """The manifest draft of a trained assembly; its notes name a precision other than the device's own."""
    chosen = assembly.recipe.base.precision != "auto" and assembly.base.dtype == torch.bfloat16
    precision = {"precision": "bfloat16"} if chosen else {}
    return _manifest(
        assembly,
        kind="adapter",
        name=assembly.recipe.name,
        tasks=[task.model_dump(mode="json") for task in assembly.recipe.tasks],
        protocol={task.name: protocol_line(assembly.recipe, assembly.data, task) for task in assembly.recipe.tasks},
        encoder=encoder,
        cost=cost,
        metrics=metrics,
        parents=parents,
        notes=(notes or {}) | precision,
    )


def encoder_manifest(assembly: Assembly, name: str, *, cost: Cost) -> Manifest:
    """The manifest draft of a fitted encoder."""
    notes = {} if assembly.recipe.train.privacy is None else {"privacy": public_budget(assembly)}
    return _manifest(assembly, kind="encoder", name=name, cost=cost, notes=notes)


def used_splits(recipe: Recipe) -> dict[str, Any]:
    """A recipe's splits as manifests hold them: `split`, and those in `hold_out`."""
    own, *held = (each.model_dump(mode="json", exclude_none=True) for each in (recipe.data.split, *recipe.data.hold_out))
    return {"split": own, "hold_out": held}


def _manifest(assembly: Assembly, **fields: Any) -> Manifest:
    base, data, used = assembly.base, assembly.data, used_splits(assembly.recipe)
    rows, span = int(np.count_nonzero(assembly.train_mask)), data.time_span(assembly.train_mask)
    about = DataInfo(name=data.info.name, digest=data.digest, rows=rows, time_span=span, split=used)
    if assembly.recipe.train.privacy is not None:
        about = DataInfo(name=data.info.name, digest=WITHHELD, rows=0, split=used)
    described = {
        "base": BaseInfo(name=base_name(base), fingerprint=base.fingerprint, depth=base.depth, quantization=base.quantization),
        "tokenizer": base.tokenizer_digest,
        "sequence": assembly.builder.layout.describe(),
        "catalogue": None if data.catalogue is None else data.catalogue.digest,
        "data": about,
        "code_version": __version__,
    }
    return Manifest.model_validate(described | fields)


def base_name(base: Base) -> str:
    """The name of a base without a path of this machine: a folder's own name, or that of a package or on the hub."""
    return Path(base.name).name if Path(base.name).expanduser().is_dir() else base.name


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def count(tensors: dict[str, torch.nn.Parameter]) -> int:
    """Number of values in some parameters."""
    return sum(value.numel() for value in tensors.values())
