"""The files of a version: which are accepted, and whether each is what it should be.

Owns: the accepted file names and kinds, the check of every file's content, hashing, naming what is damaged, and sealing a copy
of somebody's folder as a version. Ignores: where folders come from and where they go. Nothing here, or anywhere in the
registry, executes or unpickles what a folder holds. A version folder of an adapter, in full:

    README.md  adapter_config.json  adapter_model.safetensors  heads.safetensors  heads.json  manifest.json
    recipe.yaml
"""

import hashlib
import itertools
import os
import re
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from genre.errors import IntegrityError, ManifestError
from genre.files import disk_errors
from genre.registry import limits
from genre.registry.card import render_card
from genre.registry.manifest import Manifest, seal
from genre.registry.names import MANIFEST
from genre.registry.weights.lora import ADAPTER, CONFIG, check_learned, read_adapter
from genre.registry.weights.tensors import FLOATS, read_header, scan

HEADS = "heads.safetensors"
ENCODER = "encoder.safetensors"
CARD = "README.md"
NEIGHBOURS = ".neighbours.items"
_INTEGERS = {HEADS: {NEIGHBOURS: "I32", ".terms.keys": "I64"}, ENCODER: {"codes.codes": "I64"}}
"""Tensors that hold rows, hashes and codes of items; all others are weights."""

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.(safetensors|json|jsonl|yaml|md|txt)", re.ASCII)


def check_file_name(name: str) -> str:
    """Return `name` if a version may have such a file: no folder, no leading dot, a known suffix; IntegrityError otherwise."""
    if _FILE.fullmatch(name) is None:
        expected = "letters, digits, - and _, then .safetensors .json .jsonl .yaml .md or .txt"
        raise IntegrityError("a file is not accepted in a version", got=repr(name[:80]), expected=expected)
    return name


def list_files(folder: Path) -> dict[str, int]:
    """Return the files of a version folder and their sizes in bytes; nothing is read.

    Raises:
        IntegrityError: A symlink, a folder, a pipe, a device, a file of holes, a name that is not accepted, or too many or too
            large files.
    """
    sizes: dict[str, int] = {}
    with os.scandir(folder) as entries:
        found = list(itertools.islice(entries, limits.MAX_FILES + 1))
    for entry in found:
        state = entry.stat(follow_symlinks=False)
        if not stat.S_ISREG(state.st_mode):
            raise IntegrityError(f"{entry.name!r} is not a plain file", expected="files only: no links, no folders")
        sizes[check_file_name(entry.name)] = state.st_size
        limits.check_written(folder / entry.name, state)
        if len(sizes) > limits.MAX_FILES:
            raise IntegrityError("a version has too many files", expected=f"at most {limits.MAX_FILES}")
    check_sizes(sizes)
    return sizes


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Check sizes in bytes, of each file by its kind and of all together; IntegrityError if one is too large."""
    for name, size in sizes.items():
        limit = _limit(name)
        if size > limit:
            raise IntegrityError(f"{name} is too large", got=f"{size:,} bytes", expected=f"at most {limit:,}")
    total = sum(sizes.values())
    if total > limits.MAX_TOTAL_BYTES:
        raise IntegrityError("a version is too large", got=f"{total:,} bytes", expected=f"at most {limits.MAX_TOTAL_BYTES:,}")


def check_content(folder: Path, kind: str) -> None:
    """Check every file of a folder by its content; `kind` is the manifest's.

    Raises:
        IntegrityError: A file is not what its name says, breaks a limit, or its weights are not usable (not finite, all
            zero, or not plain LoRA that fits its config).
    """
    sizes = list_files(folder)
    for name in sizes:
        if name != MANIFEST:
            _KINDS[name.rpartition(".")[2]][1](folder / name)
    if kind == "encoder":
        _require(sizes, kind, ENCODER)
        return
    if not {ADAPTER, HEADS} & sizes.keys():
        raise IntegrityError("a version has no weights", got=", ".join(sorted(sizes)), expected=f"{ADAPTER} or {HEADS}")
    if ADAPTER in sizes:
        _require(sizes, kind, CONFIG)
        _check_adapter(folder)


def prepare(folder: Path, staged: Path, draft: Manifest, actor: str) -> Manifest:
    """Fill the empty folder `staged` with a complete version: a copy of the files, the card, the manifest sealed by `actor`.

    Raises:
        IntegrityError: A file is not accepted, or the weights are not usable.
    """
    for name in list_files(folder):
        if name != MANIFEST:
            copy_plain(folder / name, staged / name)
    if not (staged / CARD).exists():
        (staged / CARD).write_text(render_card(draft), encoding="utf-8")
    check_content(staged, draft.kind)
    sizes = list_files(staged)
    hashes = {name: _hash(staged / name) for name in sorted(sizes)}
    sealed, data = seal(draft, hashes, size_bytes=sum(sizes.values()), actor=actor)
    (staged / MANIFEST).write_bytes(data)
    return sealed


def read_draft(folder: Path) -> Manifest:
    """Read the draft that lies in a folder as `manifest.json`, without the fields that publishing fills in.

    Raises:
        ManifestError: There is none, or a field is wrong.
        IntegrityError: It is not JSON.
    """
    try:
        with limits.open_plain(folder / MANIFEST) as file:
            data = file.read(limits.MAX_MANIFEST_BYTES + 1)
    except OSError:
        raise ManifestError(f"no {MANIFEST}", got=folder, expected="a draft in the folder, or the manifest argument") from None
    raw = limits.parse_json(data, MANIFEST, limit=limits.MAX_MANIFEST_BYTES)
    empty = {"version": "", "digest": "", "created": "", "checksum": "", "files": {}}
    return Manifest.parse(raw | empty if isinstance(raw, dict) else raw)


def find_damage(folder: Path, manifest: Manifest) -> list[tuple[str, str]]:
    """Re-hash a stored version; return a (file, problem) for every file that is missing, changed or not in the manifest.

    Kinds and sizes are looked at first, of all files: nothing is hashed where one of them is not acceptable.
    """
    found: list[tuple[str, str]] = []
    with os.scandir(folder) as entries:
        present = {entry.name for entry in itertools.islice(entries, 2 * limits.MAX_FILES)} - {MANIFEST}
    for name in sorted(present - manifest.files.keys())[: limits.MAX_FILES]:
        found.append((name[:80], "is not in the manifest"))
    sizes: dict[str, int] = {}
    for name in sorted(manifest.files):
        if _FILE.fullmatch(name) is None:  # a path would lead out of the folder
            found.append((repr(name[:80]), "is not accepted in a version"))
            continue
        if not os.path.lexists(folder / name):
            found.append((name[:80], "is missing"))
            continue
        state = os.lstat(folder / name)
        if not stat.S_ISREG(state.st_mode):
            found.append((name, "is not a plain file"))
            continue
        try:
            check_sizes(sizes | {name: state.st_size})
            limits.check_written(folder / name, state)
        except IntegrityError as error:
            return [*found, (name, f"is not acceptable: {error}")]
        sizes[name] = state.st_size
    for name in sizes:
        if (actual := _hash(folder / name)) != manifest.files[name]:
            found.append((name, f"has changed: got sha256 {actual}; expected {manifest.files[name]}"))
    return found


def check_stored(folder: Path, manifest: Manifest) -> None:
    """Check a stored version completely: hashes first, then content.

    Raises:
        IntegrityError: It is damaged or unsafe; the message names the file.
    """
    for name in manifest.files:
        check_file_name(name)
    damage = find_damage(folder, manifest)
    if damage:
        what = f"{manifest.name}:{manifest.version} is damaged: {'; '.join(' '.join(row) for row in damage[:5])}"
        raise IntegrityError(what, todo="restore it from a copy; it was not loaded")
    try:
        check_content(folder, manifest.kind)
    except IntegrityError as error:
        raise IntegrityError(f"{manifest.name}:{manifest.version} is not usable: {error}") from None


def _hash(path: Path) -> str:
    with limits.open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_plain(source: Path, target: Path) -> None:
    """Copy a file that is no link; the copy is what is checked and hashed, so a source that changes meanwhile does no harm."""
    try:
        opened = limits.open_plain(source)
    except OSError as error:
        raise IntegrityError(f"{source.name} cannot be read", got=error.strerror) from None
    with opened, disk_errors(target.parent), open(target, "wb") as file:
        shutil.copyfileobj(opened, file, 2**20)


def _limit(name: str) -> int:
    return limits.MAX_CONFIG_BYTES if name in (MANIFEST, CONFIG) else _KINDS[name.rpartition(".")[2]][0]


def _require(sizes: Mapping[str, int], kind: str, name: str) -> None:
    if name not in sizes:
        raise IntegrityError(f"{name} is missing from a version of kind {kind}", got=", ".join(sorted(sizes)) or "nothing")


def _check_adapter(folder: Path) -> None:
    modules = read_adapter(folder).modules
    if not modules:
        raise IntegrityError(f"{ADAPTER} holds no weights", expected="lora_A and lora_B of at least one module")
    check_learned(modules, scan(folder / ADAPTER, [tensor for module in modules for tensor in (module.a, module.b)]))


def _check_safetensors(path: Path) -> None:
    if path.name == ADAPTER:
        return  # read once, with its config, by _check_adapter
    header = read_header(path)
    for tensor in header.values():
        wanted = next((dtype for end, dtype in _INTEGERS.get(path.name, {}).items() if tensor.name.endswith(end)), None)
        if tensor.dtype not in (FLOATS if wanted is None else (wanted,)):
            expected = ", ".join(FLOATS) if wanted is None else wanted
            raise IntegrityError(f"{path.name} has a wrong dtype for tensor {tensor.name!r}", got=tensor.dtype, expected=expected)
    content = scan(path, header.values())
    for name, state in content.items():
        rows = header[name].shape[:1]
        if name.endswith(NEIGHBOURS) and path.name == HEADS and not 0 <= state.least <= state.most < max(rows, default=0):
            got = f"{state.least} to {state.most} in {name}"
            raise IntegrityError(
                f"{path.name} names rows that it does not have", got=got, expected=f"0 to {max(rows, default=0) - 1}"
            )
    groups: dict[str, list[bool]] = {}
    for name, state in content.items():
        if not state.finite:
            raise IntegrityError(f"{path.name} holds a weight that is not finite", got=f"nan or inf in {name}")
        group = name.partition(".")[0] if path.name == HEADS else "all"
        groups.setdefault(group, []).append(state.zero)
    for group, zeros in groups.items():
        if all(zeros):
            todo = "save the trained weights"
            raise IntegrityError(f"{path.name} has no learned weights", got=f"only zeros in {group}", todo=todo)
    if not groups:
        raise IntegrityError(f"{path.name} holds no tensors")


def _check_lines(path: Path) -> None:
    """Line by line, since a catalogue of a million items is one such file."""
    columns: set[str] = set()
    with open(path, "rb") as file:
        for number in itertools.count(1):
            line = file.readline(limits.MAX_CONFIG_BYTES + 1)
            if not line:
                return
            row = limits.parse_json(line, f"line {number} of {path.name}", limit=limits.MAX_CONFIG_BYTES)
            columns.update(row if isinstance(row, dict) else ())
            if len(columns) > limits.MAX_COLUMNS:
                got, expected = f"{len(columns):,} up to line {number}", f"at most {limits.MAX_COLUMNS:,}"
                raise IntegrityError(f"{path.name} has too many columns", got=got, expected=expected)


def _check_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path.name} is not text", got=str(error)[:120], expected="UTF-8") from None
    if "\0" in text:
        raise IntegrityError(f"{path.name} is not text", got="a NUL", expected="UTF-8")
    return text


def _check_yaml(path: Path) -> None:
    """Plain data only: no tag (they construct objects), no alias (they expand), no depth."""
    depth, deepest = 0, 0
    try:
        for event in yaml.parse(_check_text(path), Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
                raise IntegrityError(f"{path.name} is not plain data", got="a YAML tag or alias", expected="neither")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            deepest = max(deepest, depth)
            if deepest > limits.MAX_JSON_DEPTH:
                raise IntegrityError(f"{path.name} is nested too deep", expected=f"at most {limits.MAX_JSON_DEPTH} levels")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise IntegrityError(f"{path.name} is not YAML", got=str(error)[:200]) from None


_KINDS: dict[str, tuple[int, Callable[[Path], object]]] = {
    "safetensors": (limits.MAX_FILE_BYTES, _check_safetensors),
    "json": (limits.MAX_JSON_BYTES, lambda path: limits.parse_json(path.read_bytes(), path.name, limit=_limit(path.name))),
    "jsonl": (limits.MAX_FILE_BYTES, _check_lines),
    "yaml": (limits.MAX_YAML_BYTES, _check_yaml),
    "md": (limits.MAX_TEXT_BYTES, _check_text),
    "txt": (limits.MAX_TEXT_BYTES, _check_text),
}
"""The accepted files by suffix: their largest size in bytes, and the check of their content."""
