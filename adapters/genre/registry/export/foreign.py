"""Adapters in: those that others trained with PEFT, and folders of our own export.

Owns: which adapters are taken, what their files mean, what a person should know of them. Ignores: torch. What PEFT saves is the
two files of an adapter, for a name other than `default` in a folder of that name:

    adapter_config.json  adapter_model.safetensors            # the config is written anew, the tensors are renamed
    mine/adapter_config.json  mine/adapter_model.safetensors

A folder of our own export has a manifest beside them, whose files come back as they were.
"""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from genre.errors import IntegrityError, ManifestError, NotFoundError
from genre.modules.base.fingerprint import fingerprint
from genre.registry.card import is_rendered, stored_part
from genre.registry.export.archive import extract, is_archive
from genre.registry.export.hub import STORED_CARD
from genre.registry.export.peft import CUT_BASE, ENCODER_FOLDER, name_base, paths_in_base
from genre.registry.integrity import CARD, check_file_name, copy_plain, find_damage
from genre.registry.limits import MAX_MANIFEST_BYTES, parse_json
from genre.registry.manifest import BaseInfo, Manifest, check_fit, open_sealed
from genre.registry.names import MANIFEST
from genre.registry.weights.base import count_layers, layer_of, read_weights
from genre.registry.weights.lora import ADAPTER, CONFIG, PREFIX, Adapter, LoraModule, Patterns, read_adapter
from genre.registry.weights.modules import Linears, after_states
from genre.registry.weights.tensors import read_array, write_weights

_CONFIG_FIELDS = ("peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "bias")
_ANEW = f"export it again, --to peft or hub-folder, or remove {MANIFEST} to import the low-rank update alone"
_SEALED = {"schema", "kind", "name", "version", "digest", "files", "checksum"}


@contextmanager
def prepare_import(
    source: Path, name: str, base: BaseInfo, base_folder: Path, fields: Mapping[str, Any]
) -> Iterator[tuple[Path, Manifest, tuple[Path, Manifest] | None]]:
    """Yield what an adapter from elsewhere comes in as; see `Registry.import_peft`.

    Yields:
        A temporary folder, the draft of its version, and the folder and manifest of the encoder that came along, if any.
    """
    with _opened(source) as (folder, others), tempfile.TemporaryDirectory(prefix="genre-import-") as temporary:
        target = Path(temporary)
        if (sealed := _read_sealed(folder)) is not None:
            draft = _take_back(folder, target, sealed, name, base, base_folder, fields)
            with tempfile.TemporaryDirectory(prefix="genre-import-") as aside:
                yield target, draft, _take_encoder(folder / ENCODER_FOLDER, Path(aside), sealed)
        else:
            yield target, _take(folder, target, name, base, base_folder, fields, others), None


def is_own_export(source: Path) -> bool:
    """Return whether a folder or an archive is of our own export; raises as `Registry.import_peft` where it cannot be read."""
    with _opened(source) as (folder, _):
        return _read_sealed(folder) is not None


def _take(
    folder: Path, target: Path, name: str, base: BaseInfo, base_folder: Path, fields: Mapping[str, Any], others: list[str]
) -> Manifest:
    """Write the files of an adapter from elsewhere anew; its draft."""
    from genre.modules.base.source import reads_both_ways

    adapter = read_adapter(folder, foreign=True)
    linears = Linears(read_weights(base_folder))
    if base.fingerprint != (found := fingerprint(base_folder)):
        raise ManifestError("the base's folder holds another base", got=f"fingerprint {found}", expected=base.fingerprint)
    encoder = reads_both_ways(base_folder)
    dropped = set(after_states([module.path for module in adapter.modules])) if encoder else set()
    modules = [module for module in adapter.modules if module.path not in dropped]
    kept = Adapter(adapter.config, modules, adapter.whole)
    paths = paths_in_base(kept, linears, base.depth)
    remarks = [*_dropped(dropped), *_carried(kept, folder / ADAPTER, linears), *_ambiguous(kept), *_beyond_layers(paths)]
    names = {module.path: linears.in_body(paths[module.path]) if encoder else paths[module.path] for module in modules}
    weights = {
        f"{PREFIX}{names[module.path]}.lora_{side}.weight": (folder / ADAPTER, tensor)
        for module in modules
        for side, tensor in (("A", module.a), ("B", module.b))
    }
    write_weights(target / ADAPTER, weights)
    config = _clean_config(kept, names, base.name, encoder) | {"fan_in_fan_out": any(map(linears.swapped, paths.values()))}
    (target / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    notes: dict[str, Any] = {"imported": True, "base_layers": count_layers(linears.weights)}
    notes |= {"not_imported": others[:100]} if others else {}
    notes |= {**({"remarks": remarks[:100]} if remarks else {}), **fields.get("notes", {})}
    draft = {"name": name, "kind": "adapter", "base": base.model_dump()} | dict(fields) | {"notes": notes}
    return Manifest.parse(draft)


def _take_back(
    folder: Path, target: Path, sealed: Manifest, name: str, base: BaseInfo, base_folder: Path, fields: Mapping[str, Any]
) -> Manifest:
    """Copy the files of our own export; the draft of the version that it was, under its new name.

    Raises:
        ManifestError: It is for another base, or another depth of it.
        IntegrityError: A file is missing or has changed since.
    """
    check_fit(sealed, base_fingerprint=fingerprint(base_folder))
    if base.depth is not None:
        check_fit(sealed, depth=base.depth)
    for file in sealed.files:
        if (folder / file).exists():
            copy_plain(folder / file, target / check_file_name(file))
    card = target / CARD
    if (folder / STORED_CARD).is_file() and card.is_file():  # a hub's card has another head
        card.unlink()
        copy_plain(folder / STORED_CARD, card)
    elif card.is_file():  # an export tells more in it
        card.write_bytes(stored_part(card.read_bytes().decode("utf-8", "replace")).encode())
    named = CUT_BASE  # in the config of an export with the cut base
    for original in (Path(sealed.base.name).name, sealed.base.name):
        if CONFIG in {file for file, _ in find_damage(target, sealed)} and (target / CONFIG).is_file():
            name_base(target / CONFIG, named, original)
            named = original
    if damage := find_damage(target, sealed):
        what = f"{MANIFEST} is of {sealed.name}:{sealed.version}, but {'; '.join(' '.join(row) for row in damage[:3])}"
        raise IntegrityError(what, todo=_ANEW)
    if name != sealed.name and is_rendered(card.read_text(encoding="utf-8"), sealed):
        card.unlink()  # publishing writes it under the new name
    empty = {"version": "", "digest": "", "created": "", "checksum": "", "files": {}}
    return Manifest.parse(sealed.raw() | empty | {"name": name} | dict(fields))


def _take_encoder(folder: Path, target: Path, adapter: Manifest) -> tuple[Path, Manifest] | None:
    """Copy the encoder of our own export; None if it has none.

    Raises:
        IntegrityError: It is another one, or a file has changed.
    """
    if adapter.encoder is None or (sealed := _read_sealed(folder)) is None:
        return None
    for file in (*sealed.files, MANIFEST):
        if (folder / file).exists():
            copy_plain(folder / file, target / check_file_name(file))
    if sealed.digest != adapter.encoder or (damage := find_damage(target, sealed)):
        got = sealed.digest if sealed.digest != adapter.encoder else "; ".join(" ".join(row) for row in damage[:3])
        expected = f"encoder {adapter.encoder}, as it was"
        raise IntegrityError(f"{folder.name}/ is not the encoder of {adapter.name}", got=got, expected=expected)
    return target, sealed


def _read_sealed(folder: Path) -> Manifest | None:
    """The manifest of our own export; None if there is none, or some other tool's."""
    file = folder / MANIFEST
    if not file.is_file() or file.is_symlink() or file.stat().st_size > MAX_MANIFEST_BYTES:
        return None
    data = file.read_bytes()
    try:
        raw = parse_json(data, MANIFEST, limit=MAX_MANIFEST_BYTES)
    except IntegrityError as error:  # taken for another tool's, its tasks would be lost without a word
        raise IntegrityError(f"{MANIFEST} cannot be read", got=str(error), todo=_ANEW) from None
    if not isinstance(raw, dict) or not raw.keys() >= _SEALED:
        return None
    return open_sealed(data, str(raw["name"]), str(raw["version"]))


# --- what a person should know -----------------------------------------------------------------------------------------------


def _dropped(paths: Iterable[str]) -> Iterator[str]:
    """Name the modules that an encoder runs without."""
    for path in sorted(paths):
        yield f"LoRA of {path} is left out: an encoder runs here without its pooler and its language-model head"


def _carried(adapter: Adapter, file: Path, linears: Linears) -> Iterator[str]:
    """Compare the matrices that lie beside an update with the base's: PEFT saves those that LoRA is on, trained or not.

    Raises:
        IntegrityError: One is not the base's own.
    """
    for path, tensor in adapter.whole.items():
        found = _find_whole(path, linears)
        if found is None or not _equal(file, tensor, linears.weights[found]):
            got = "another shape" if found and linears.weights[found][1].shape != tensor.shape else "other values"
            raise IntegrityError(
                f"the adapter carries its own {path}, which would replace whole modules of the shared base",
                got=got if found else "no such module in the base",
                expected="lora_A and lora_B alone, or the base's own weights beside them",
                todo="train it again without it, or merge it into its base with PEFT (merge_and_unload) and name the merged "
                "folder as a recipe's base",
            )
        yield f"{path} lies beside the update and equals the base's: it is left out"


def _find_whole(path: str, linears: Linears) -> str | None:
    try:
        return linears.weight_of(linears.find(path))
    except ManifestError:
        return None


def _equal(file: Path, tensor: Any, other: tuple[Path, Any]) -> bool:
    return tensor.shape == other[1].shape and np.array_equal(read_array(file, tensor), read_array(*other))


def _ambiguous(adapter: Adapter) -> Iterator[str]:
    """Name the patterns that give one module two values: PEFT takes the first, and saves them in another order."""
    groups: dict[tuple[str, ...], list[LoraModule]] = {}
    paths = [module.path for module in adapter.modules]
    patterns = {field: Patterns(adapter.config.get(field), paths) for field in ("rank_pattern", "alpha_pattern")}
    for module in adapter.modules:
        for field, known in patterns.items():
            found = known.matching(module.path)
            if len(set(found.values())) > 1:
                values = [f"{key!r} gives {value}" for key, value in found.items()]
                groups.setdefault((field, *values), []).append(module)
    for (field, *values), modules in groups.items():
        more = f" and {len(modules) - 1} more" if len(modules) > 1 else ""
        both = f"{field} has several keys for {modules[0].path}{more}: {', '.join(values)}"
        if field == "rank_pattern":
            first = next(iter(patterns[field].matching(modules[0].path).values()))
            ranks = sorted({module.rank for module in modules})
            refused = "" if ranks == [first] else f", stock PEFT takes {first} and refuses the folder"
            yield f"{both}; rank {', '.join(map(str, ranks))} is imported, which the tensors have{refused}"
        else:
            taken = f"alpha {modules[0].alpha:g}, the first in the file, is imported, as stock PEFT loads it"
            yield f"{both}; {taken}, but PEFT sorts keys when it saves: if it was trained with another, keep that key alone"


def _beyond_layers(paths: Mapping[str, str]) -> Iterator[str]:
    """Name the modules that an engine has no adapter slots for."""
    for path in sorted(path for path in paths.values() if layer_of(path) is None):
        yield (
            f"LoRA of {path}, outside the layers: an engine adapts linears in layers only and refuses it; "
            "export it (--to peft, or --to merged for a base with it), or train it again without that module"
        )


# --- files -------------------------------------------------------------------------------------------------------------------


def _clean_config(adapter: Adapter, names: Mapping[str, str], base: str, encoder: bool) -> dict[str, Any]:
    """The config's fields that give the weights their meaning, with whole module names for patterns."""
    config, modules = adapter.config, adapter.modules
    kept = {field: config[field] for field in _CONFIG_FIELDS if field in config}
    task = config.get("task_type") if config.get("task_type") == "SEQ_2_SEQ_LM" else "CAUSAL_LM"
    return kept | {
        "task_type": "FEATURE_EXTRACTION" if encoder else task,
        "rank_pattern": {names[module.path]: module.rank for module in modules if module.rank != config["r"]},
        "alpha_pattern": {names[m.path]: m.alpha for m in modules if m.alpha != float(config["lora_alpha"])},
        "target_modules": sorted(names.values()),
        "base_model_name_or_path": base,
        "inference_mode": True,
    }


@contextmanager
def _opened(source: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder with the adapter's files, and the names of the others."""
    if source.is_dir():
        folder = _adapter_folder(source)
        yield folder, sorted(entry.name[:80] for entry in folder.iterdir() if entry.name not in (CONFIG, ADAPTER))
        return
    if not source.is_file():
        raise NotFoundError("nothing to import", got=source, expected="a PEFT folder, a tar or a zip")
    if not is_archive(source):
        raise IntegrityError(f"{source.name} is not an archive", expected="a PEFT folder, a tar or a zip")
    with tempfile.TemporaryDirectory(prefix="genre-import-") as temporary:
        others = extract(source, (CONFIG, ADAPTER, MANIFEST), Path(temporary), marker=CONFIG)
        if (sealed := _read_sealed(Path(temporary))) is not None:
            extract(source, {*sealed.files, STORED_CARD} - {CONFIG, ADAPTER}, Path(temporary), marker=CONFIG)
            _extract_encoder(source, Path(temporary) / ENCODER_FOLDER)
        yield Path(temporary), [name[:80] for name in others]


def _extract_encoder(source: Path, folder: Path) -> None:
    folder.mkdir()
    extract(source, (MANIFEST,), folder, marker=CONFIG, inside=ENCODER_FOLDER)
    if (sealed := _read_sealed(folder)) is not None:
        extract(source, sealed.files, folder, marker=CONFIG, inside=ENCODER_FOLDER)


def _adapter_folder(folder: Path) -> Path:
    """The folder itself, or its one folder with an adapter: PEFT saves each in one of its name, but for `default`."""
    if (folder / CONFIG).exists():
        return folder
    found = sorted(entry for entry in folder.iterdir() if entry.is_dir() and (entry / CONFIG).is_file())
    if len(found) > 1:
        got = ", ".join(entry.name for entry in found[:8])
        raise IntegrityError(f"{folder.name} holds several adapters", got=got, expected="one", todo="name one of its folders")
    return found[0] if found else folder
