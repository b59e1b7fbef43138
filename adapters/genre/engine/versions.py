"""A version folder as modules: reading adapters and encoders that have been published.

Owns: the files of adapter and encoder versions, checks against the base (`genre.jobs.publish` writes them). Ignores: how versions
are stored, who asks for them.

    adapter   adapter_config.json  adapter_model.safetensors  heads.safetensors  heads.json  recipe.yaml  [catalogue.jsonl]
    encoder   encoder.safetensors  encoder.json  catalogue.jsonl
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor

from genre.data.catalogue import Catalogue
from genre.data.sequences.layout import FeedbackVocabulary, Layout
from genre.data.sequences.text_rows import TextLayout
from genre.errors import InputError, IntegrityError, ManifestError, first_line
from genre.modules.base.base import Base
from genre.modules.codes.item_codes import CodeSpec
from genre.modules.encoder import BehaviourEncoder
from genre.modules.heads.heads import Head, make_head
from genre.modules.heads.spec import HeadSpec
from genre.modules.lora.layer import from_peft
from genre.registry import Registry, Version
from genre.registry.manifest import Manifest, check_fit
from genre.tasks import Task
from genre.training.parts import SharedEncoder
from genre.validation import expected

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
        """The layout of labelled texts; None if it reads a user's events."""
        return self.reading if isinstance(self.reading, TextLayout) else None

    @property
    def layout(self) -> Layout:
        """The layout of a user's events.

        Raises:
            InputError: It reads labelled texts.
        """
        if isinstance(self.reading, TextLayout):
            columns, todo = ", ".join(self.reading.text), 'ask it with "texts": [{…}]'
            raise InputError(
                f"{self.name} reads labelled texts", got="a user's events", expected=f"texts with {columns}", todo=todo
            )
        return self.reading


def read_catalogue(folder: Path) -> Catalogue:
    """The catalogue that `write_catalogue` wrote.

    Raises:
        IntegrityError: It is missing or not JSON lines.
    """
    try:
        return Catalogue(pl.read_ndjson(folder / CATALOGUE, infer_schema_length=None))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise IntegrityError(f"{CATALOGUE} cannot be read", got=first_line(error)) from None


UNFORESEEN = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, RecursionError)
"""Errors of Python and torch over content that has another form than was published; OSError passes, it is the disk's."""


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Turn any error over the content of a version into a ManifestError: nobody has checked what its publisher wrote."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (*UNFORESEEN, SafetensorError, pl.exceptions.PolarsError) as error:
        got = f"{type(error).__name__}: {first_line(error)}"
        todo = "it was damaged before it was published, or by another release; train it again"
        raise ManifestError(f"{what} cannot be read", got=got, expected="what genre train publishes", todo=todo) from error


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
    version = registry.resolve(ref)
    with readable(version.ref):
        return _read_version(registry, ref, version, base, encoders, recheck=recheck)


def _read_version(
    registry: Registry,
    ref: str | Version,
    version: Version,
    base: Base,
    encoders: MutableMapping[str, SharedEncoder] | None,
    *,
    recheck: bool,
) -> Loaded:
    name = ref if isinstance(ref, str) else ref.ref
    folder = registry.fetch(version, recheck=recheck)
    manifest = version.manifest
    need_answers(manifest, name)
    depth = None if manifest.base.depth is None and base.depth == base.full_depth else base.depth
    check_fit(manifest, base_fingerprint=base.fingerprint, depth=depth, tokenizer=base.tokenizer_digest)
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
        base.need_causal(f"{name}, which reads a user's events,")
        reading = Layout.restore(base.tokenizer, manifest.sequence)
        if shared is not None and reading.feedback is not None and shared.vocabulary != reading.feedback:
            expected = f"{shared.vocabulary and shared.vocabulary.values}, the encoder's"
            raise ManifestError("sequence.values", got=reading.feedback.values, expected=expected)
    if catalogue is None or (folder / CATALOGUE).exists():  # its own, where it knows more items than its encoder
        catalogue = read_catalogue(folder)
    low = read_low(folder, base)
    tasks = {str(row["name"]): _read_task(row, name) for row in manifest.tasks}
    heads = read_heads(folder, tasks, base)
    _check_neighbours(heads, shared)
    _check_codes(heads, shared)
    return Loaded(version.name, version.version, version.digest, manifest, low, tasks, heads, reading, shared, catalogue)


def _check_neighbours(heads: Mapping[str, Head], shared: SharedEncoder | None) -> None:
    """Refuse item neighbours of other items than the encoder's: their numbers are looked up in its tables."""
    for name, head in heads.items():
        neighbours = getattr(head, "neighbours", None)
        if neighbours is None:
            continue
        known, (rows, _) = 0 if shared is None else len(shared.encoder.item_ids), neighbours.items.shape
        if rows != known:
            raise ManifestError(f"{name}.neighbours.items", got=f"{rows} rows", expected=f"{known}, the items of the encoder")
        if rows and not 0 <= int(neighbours.items.min()) <= int(neighbours.items.max()) < rows:
            got = f"{int(neighbours.items.min())} to {int(neighbours.items.max())}"
            raise ManifestError(f"{name}.neighbours.items", got=got, expected=f"rows from 0 to {rows - 1}")


def _check_codes(heads: Mapping[str, Head], shared: SharedEncoder | None) -> None:
    """Refuse a head that generates items by codes which its encoder does not have."""
    for name, head in heads.items():
        if head.generates and (shared is None or shared.encoder.codes is None):
            got = "no encoder" if shared is None else "an encoder without codes"
            raise ManifestError(f"task {name!r} generates items", got=got, expected="an encoder with codes")


def read_low(folder: Path, base: Base) -> Low:
    """Read the low-rank update of a version, under the names of the base's own linears; empty if it has none.

    An update of another class of the same model counts too, of the body alone or of one with a head.

    Raises:
        ManifestError: A weight has no partner or a name that is not LoRA's.
    """
    if not (folder / "adapter_model.safetensors").exists():
        return {}
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    low = from_peft(config, _read_tensors(folder / "adapter_model.safetensors"))
    prefix, known = f"{base.model.base_model_prefix}.", {name for name, _ in base.model.named_modules()}
    found: Low = {}
    for name, update in low.items():
        others = (name, name.removeprefix(prefix), prefix + name)
        found[next((other for other in others if other in known), name)] = update
    return found


def _read_task(row: Mapping[str, Any], name: str) -> Task:
    try:
        return Task.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or str(row["name"])
        raise ManifestError(f"{name}: task {row['name']!r} cannot be read", got=field, expected=expected(first)[:200]) from None


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
        manifest = loaded.manifest.model_copy(update={"data": changed})
        tasks, heads = {name: loaded.tasks[name] for name in names}, {name: loaded.heads[name] for name in names}
        found.append(dataclasses.replace(loaded, manifest=manifest, tasks=tasks, heads=heads))
    return found


def need_answers(manifest: Manifest, name: str) -> None:
    """Raise `ManifestError` unless a version is an adapter with tasks to score."""
    if manifest.kind == "encoder":
        raise ManifestError(f"{name} is a behaviour encoder", got="encoder", expected="an adapter")
    if not manifest.answers:
        expected = "an adapter with tasks and their layout, as genre train publishes"
        got = "an imported adapter, a low-rank update alone" if manifest.notes.get("imported") else "no tasks"
        raise ManifestError(f"{name} has no tasks to score", got=got, expected=expected, todo="it can be exported, not scored")


def read_encoder(registry: Registry, digest: str, base: Base) -> SharedEncoder:
    """Load a behaviour encoder by digest, frozen.

    Raises:
        ManifestError: It was fitted on another base.
    """
    version = registry.find(digest)
    with readable(version.ref):
        return _read_encoder(registry, version, base)


def read_code_spec(registry: Registry, version: Version) -> CodeSpec | None:
    """The shape of a published encoder's codes, without its weights; None if it has none (ManifestError: it cannot be read)."""
    described = _read_json(registry.fetch(version) / "encoder.json").get("spec", {})
    return None if described.get("codes") is None else CodeSpec.read(described["codes"])


def _read_encoder(registry: Registry, version: Version, base: Base) -> SharedEncoder:
    check_fit(version.manifest, base_fingerprint=base.fingerprint, depth=base.depth, tokenizer=base.tokenizer_digest)
    if version.manifest.kind != "encoder":
        todo = "genre registry list shows encoders, which are called encoder-…; encoder.use: auto finds the right one"
        raise ManifestError(f"{version.ref} is no behaviour encoder", got=version.manifest.kind, expected="an encoder", todo=todo)
    folder = registry.fetch(version)
    described = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
    catalogue = read_catalogue(folder)
    bound = described.get("items", catalogue.item_ids)
    encoder = BehaviourEncoder.restore(described["spec"], bound, load_file(folder / "encoder.safetensors"), catalogue.item_ids)
    fitted, spec = described["feedback"], encoder.spec
    vocabulary = None if fitted is None else FeedbackVocabulary(fitted["column"], tuple(fitted["values"]))
    sizes = (spec.width, spec.feedback)
    if sizes != (wanted := (base.hidden_size, 0 if vocabulary is None else vocabulary.size)):
        raise ManifestError("encoder.json: width and feedback codes", got=sizes, expected=wanted)
    return SharedEncoder(encoder.to(base.device), vocabulary, version.digest, catalogue)


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
                todo="point the alias at another version, or train it again",
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
