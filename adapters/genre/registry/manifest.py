"""The manifest of a version, and the digest that follows from its content.

Owns: the schema of `manifest.json`, its canonical bytes, the digest, the check that a version fits what it is loaded on, and
the small values that the registry hands out. Ignores: where versions are stored and what the files hold.

`files` has the sha256 of every other file, so that a damaged one can be named. `checksum` is the sha256 of the canonical
manifest without `checksum`, so that a flipped bit in `created` or `cost`, which the digest leaves out, is found too. One real
example, shortened:

    {"base": {"depth": 8, "fingerprint": "5f1c…", "name": "smollm2-135m", "quantization": "none"}, "kind": "adapter",
     "metrics": {"like": {"auc": {"interval": [0.752, 0.768], "n": 10011, "value": 0.761}}}, "name": "like",
     "protocol": {"like": "prequential"}, "schema": 1, "tasks": [{"head": "binary", "name": "like"}],
     "version": "a3f09c12be77", …}
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from genre import display
from genre.errors import IntegrityError, ManifestError, RegistryError
from genre.registry.limits import MAX_FILES, MAX_MANIFEST_BYTES, parse_json
from genre.registry.names import MANIFEST, check_name, is_digest, is_name, is_pin, shorten
from genre.registry.trust.provenance import builder_of, describe_build
from genre.validation import expected

if TYPE_CHECKING:
    from genre.data.dataset import DataKind  # polars takes a while to import

SHOWN_METRICS = 3
"""Metrics in the short form of a version."""

NOT_IN_DIGEST = frozenset({"digest", "version", "created", "cost", "provenance", "checksum"})


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True, serialize_by_alias=True)


class BaseInfo(_Frozen):
    """The base that a version was trained on; `depth` None means all layers."""

    name: str
    fingerprint: str
    depth: int | None = Field(default=None, ge=1)
    quantization: str = "none"


class DataInfo(_Frozen):
    """The data a version was trained and evaluated on; `name` is the data set's, `time_span` the first and last second."""

    name: str | None = None
    digest: str
    rows: int = Field(ge=0)
    time_span: tuple[int, int] | None = None
    split: dict[str, JsonValue] | None = None


class MetricValue(_Frozen):
    """A metric's value, its confidence interval, and the number of values that it averages."""

    value: float
    interval: tuple[float, float] | None = None
    n: int | None = Field(default=None, ge=0)


class Cost(_Frozen):
    """The cost of training a version, and its size; publishing fills in `bytes`, of all its files."""

    seconds: float = 0.0
    tokens: int = 0
    peak_memory_bytes: int = 0
    lora_params: int = 0
    head_params: int = 0
    bytes: int = 0


class Manifest(_Frozen):
    """The description of a version: what it is for, what it was trained on, how good it is.

    `version`, `digest`, `created`, `files`, `provenance` and `checksum` are empty in a draft; publishing fills them in. `tasks`
    are the recipe's rows (a bare name is short for `{"name": name}`). `parents` are digests or `name:version`. `provenance`
    has SLSA's form (see `trust.provenance`); a draft that was published before keeps its builder.
    """

    schema_: Literal[1] = Field(default=1, alias="schema")
    name: str
    kind: Literal["adapter", "encoder", "merged"] = "adapter"
    version: str = ""
    digest: str = ""
    tasks: tuple[dict[str, JsonValue], ...] = ()
    base: BaseInfo
    tokenizer: str | None = None
    sequence: dict[str, JsonValue] = Field(default_factory=dict)
    encoder: str | None = None
    catalogue: str | None = None
    data: DataInfo | None = None
    metrics: dict[str, dict[str, MetricValue]] = Field(default_factory=dict)
    protocol: dict[str, str] = Field(default_factory=dict)
    parents: tuple[str, ...] = ()
    created: str = ""
    code_version: str = ""
    cost: Cost = Field(default_factory=Cost)
    notes: dict[str, JsonValue] = Field(default_factory=dict)
    files: dict[str, str] = Field(default_factory=dict, max_length=MAX_FILES)
    provenance: dict[str, JsonValue] | None = None
    checksum: str = ""

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        try:
            return check_name(value)
        except RegistryError as error:
            raise ValueError(str(error)) from None

    @field_validator("tasks", mode="before")
    @classmethod
    def _tasks(cls, value: Any) -> Any:
        rows = [{"name": row} if isinstance(row, str) else row for row in value] if isinstance(value, list | tuple) else value
        if isinstance(rows, list) and not all(isinstance(row, dict) and isinstance(row.get("name"), str) for row in rows):
            raise ValueError("every task needs a name")
        return rows

    @field_validator("encoder")
    @classmethod
    def _encoder(cls, value: str | None) -> str | None:
        if value is not None and not is_digest(value):
            raise ValueError(f"got {value[:80]!r}; expected the encoder's digest (64 hex digits) or null")
        return value

    @field_validator("parents")
    @classmethod
    def _parents(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for parent in value:
            name, _, version = parent.partition(":")
            if not is_digest(parent) and not (is_name(name) and is_pin(version)):
                raise ValueError(f"got {parent[:80]!r}; expected a digest or name:version")
        return value

    @property
    def withholds_figures(self) -> bool:
        """True for a version of a private run that publishes no figure of its users' own events (`train.privacy.metrics`)."""
        table = self.notes.get("privacy")
        if not isinstance(table, dict):
            return False
        public = table.get("public")
        return not isinstance(public, dict) or "metrics" not in public

    @property
    def reads(self) -> "DataKind":
        """The kind of data that the version reads: labelled texts, or the events of a log."""
        return "texts" if "pool" in self.sequence else "log"

    @property
    def answers(self) -> bool:
        """True if requests can be scored with the version: it has tasks, and says how rows become prompts."""
        return self.kind != "encoder" and bool(self.tasks) and bool(self.sequence)

    @property
    def references(self) -> list[str]:
        """The versions that this one needs or came from: its encoder's digest, then its parents."""
        return [reference for reference in (self.encoder, *self.parents) if reference]

    @classmethod
    def parse(cls, raw: object, what: str = MANIFEST) -> Self:
        """Validate a decoded manifest; the ManifestError names the field that is missing, unknown or wrong."""
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "(all)"
            got = None if isinstance(first["input"], dict | list) else repr(first["input"])[:80]
            raise ManifestError(f"{what}: field {field}", got=got, expected=expected(first)[:300]) from None

    def raw(self) -> dict[str, Any]:
        """The manifest as JSON values, with the published field names."""
        return self.model_dump(mode="json")


def canonical(value: object) -> bytes:
    """Encode with sorted keys, no spaces, UTF-8, no NaN: the only bytes that are ever hashed."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:  # also UnicodeEncodeError (a lone surrogate)
        raise ManifestError("the manifest cannot be written as JSON", got=str(error)[:200]) from None


def render(raw: Mapping[str, Any]) -> bytes:
    """The bytes of `manifest.json`: as `canonical`, but indented for people."""
    return (json.dumps(raw, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def digest_of(raw: Mapping[str, Any]) -> str:
    r"""The digest of a version: sha256 over the sorted file hashes, then the canonical manifest.

    The file hashes are lines as `sha256sum` prints them (hash, two spaces, file name, newline), sorted by file name;
    the manifest is without `digest`, `version`, `created`, `cost`, `provenance` and `checksum`.
    """
    running = hashlib.sha256()
    for file, sha256 in sorted(raw["files"].items()):
        running.update(f"{sha256}  {file}\n".encode())
    running.update(canonical({key: value for key, value in raw.items() if key not in NOT_IN_DIGEST}))
    return running.hexdigest()


def checksum_of(raw: Mapping[str, Any]) -> str:
    """The sha256 of the canonical manifest without `checksum`."""
    return hashlib.sha256(canonical({key: value for key, value in raw.items() if key != "checksum"})).hexdigest()


def utc_now() -> str:
    """The time as written into manifests and journals: UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seal(draft: Manifest, files: dict[str, str], *, size_bytes: int, actor: str) -> tuple[Manifest, bytes]:
    """Fill in the time, files, provenance, digest, version and checksum; return the manifest and the bytes of its file."""
    raw = draft.raw() | {"files": files, "created": utc_now()}
    raw["cost"] = raw["cost"] | {"bytes": size_bytes}
    raw["provenance"] = describe_build(raw, builder_of(raw["provenance"]) or actor)
    raw["digest"] = digest_of(raw)
    raw["version"] = shorten(raw["digest"])
    raw["checksum"] = checksum_of(raw)
    data = render(raw)
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError("the manifest is too long", got=f"{len(data):,} bytes", expected=f"at most {MAX_MANIFEST_BYTES:,}")
    return Manifest.parse(raw), data


def open_sealed(data: bytes, name: str, version: str) -> Manifest:
    """Read a stored manifest and check that not one bit of it has changed.

    Hashes are taken over the parsed JSON, not over the model, so that a later schema does not disturb older versions.

    Raises:
        IntegrityError: It is truncated, changed, or of another version than its path says.
    """
    what = f"{MANIFEST} of {name}:{version}"
    raw = parse_json(data, what, limit=MAX_MANIFEST_BYTES)
    if not isinstance(raw, dict) or not isinstance(raw.get("files"), dict):
        raise IntegrityError(f"{what} is damaged", got="no list of files")
    try:
        manifest = Manifest.parse(raw, what)
        intact = render(raw) == data and checksum_of(raw) == manifest.checksum and digest_of(raw) == manifest.digest
    except (ManifestError, ValueError) as error:
        raise IntegrityError(f"{what} is damaged", got=str(error)) from None
    if not intact:
        raise IntegrityError(f"{what} is damaged", got="other content than its checksum and digest say")
    if (manifest.name, manifest.version) != (name, version) or shorten(manifest.digest) != version:
        got = f"{manifest.name}:{manifest.version} with digest {manifest.digest}"
        raise IntegrityError(f"{what} is of another version", got=got, expected=f"{name}:{version}")
    return manifest


def check_fit(
    manifest: Manifest,
    *,
    base_fingerprint: str | EllipsisType = ...,
    depth: int | EllipsisType | None = ...,
    tokenizer: str | EllipsisType | None = ...,
    sequence: Mapping[str, Any] | EllipsisType = ...,
    encoder: str | EllipsisType | None = ...,
) -> None:
    """Check that a version was made for what it is about to be loaded on; what is left out is not compared.

    Quantization may differ. A null `tokenizer` or `encoder` in the manifest means that the version does not depend on
    one; a null `depth` means all layers and must be met.

    Raises:
        ManifestError: Something differs; the message names the field and both values.
    """
    pairs: list[tuple[str, Any, Any]] = [("base.fingerprint", base_fingerprint, manifest.base.fingerprint)]
    pairs.append(("base.depth", depth, manifest.base.depth))
    if not isinstance(sequence, EllipsisType):
        keys = sorted(manifest.sequence.keys() | sequence.keys())
        pairs += [(f"sequence.{key}", sequence.get(key), manifest.sequence.get(key)) for key in keys]
    if manifest.tokenizer is not None:
        pairs.append(("tokenizer", tokenizer, manifest.tokenizer))
    if manifest.encoder is not None:
        pairs.append(("encoder", encoder, manifest.encoder))
    for field, got, wanted in pairs:
        if got is not ... and canonical(got) != canonical(wanted):
            raise ManifestError(
                f"{manifest.name}:{manifest.version} does not fit: {field} differs",
                got=json.dumps(got, ensure_ascii=False),
                expected=json.dumps(wanted, ensure_ascii=False),
                todo="load it on what it was trained on, or train it again",
            )


@dataclass(frozen=True)
class Version:
    """A published version."""

    name: str
    version: str
    digest: str
    manifest: Manifest

    def __repr__(self) -> str:
        figures = [
            f"{task}.{name} {found.value:.4f}" for task, own in self.manifest.metrics.items() for name, found in own.items()
        ]
        return f"Version({', '.join([self.ref, self.manifest.kind, *figures[:SHOWN_METRICS]])})"

    def _repr_html_(self) -> str:
        title = f"{self.ref}, {self.manifest.kind} on {self.manifest.base.name}"
        tasks = {task: {name: each.model_dump() for name, each in own.items()} for task, own in self.manifest.metrics.items()}
        rows = [row for task, own in tasks.items() for row in display.figure_rows(task, self.name, own)]
        return display.table(
            title, display.FIGURES, rows, note=" ".join(f"{t}: {line}." for t, line in self.manifest.protocol.items())
        )

    @property
    def ref(self) -> str:
        """`name:version`, the reference that people type."""
        return f"{self.name}:{self.version}"

    @property
    def exact(self) -> str:
        """`name:digest`, the reference that means this content and no other: what programs remember."""
        return f"{self.name}:{self.digest}"


class Publishable(Protocol):
    """A finished run, which can be published as a folder can."""

    @property
    def folder(self) -> Path:
        """The folder that holds the files of the version."""

    @property
    def manifest(self) -> Manifest:
        """The draft of its manifest."""
