"""Records beside versions: what a version was measured against, and how its privacy was attacked.

Owns: the records of a version's baselines and of its last audit, their form and check. Ignores: how a store writes them. A
version is published before its baselines are computed and its digest is final then, so their figures stand in a file of their
own, which is replaced as a whole when they are computed again and removed with the version; an audit comes later still.

    like/baselines/a3f09c12be77.json
    {"baselines": {"like": {"additive": {"auc": {"interval": [0.71, 0.73], "n": 10011, "value": 0.72}}}}, "checksum": "…",
     "created": "2026-03-01T12:00:00Z", "notes": [], "part": "test", "schema": 1, "version": "a3f09c12be77"}
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from genre.errors import IntegrityError, NotFoundError
from genre.registry.limits import MAX_MANIFEST_BYTES, parse_json
from genre.registry.lookup import keep
from genre.registry.manifest import MetricValue, Version, checksum_of, render, utc_now
from genre.registry.names import AUDITS, RECORDS
from genre.registry.stores.store import Store

Figures = dict[str, dict[str, dict[str, MetricValue]]]
"""By task, baseline and metric."""

R = TypeVar("R", bound="_Record")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)
    schema_: Literal[1] = Field(default=1, alias="schema")
    version: str
    created: str = ""
    checksum: str = ""


class BaselineRecord(_Record):
    """The baselines of a version: on the same targets, by the same protocol, as its own metrics.

    Attributes:
        baselines: The figures.
        notes: What a baseline left out, in a line each.
        part: The part of the split.
    """

    part: str = "test"
    baselines: Figures = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


class AuditRecord(_Record):
    """The last audit of a version's privacy.

    Attributes:
        lines: The figures in lines for people.
        report: The report, as `audit.json` holds it.
        page: The page, HTML.
    """

    lines: tuple[str, ...]
    report: dict[str, JsonValue]
    page: str


def write_baselines(store: Store, version: Version, baselines: Mapping[str, Any], notes: Iterable[str]) -> None:
    """Write or replace the record of a version's baselines."""
    record = BaselineRecord(version=version.version, baselines=dict(baselines), notes=tuple(notes), created=utc_now())
    _write(store, version, RECORDS, record)


def write_audit(store: Store, version: Version, report: Mapping[str, Any], lines: Iterable[str], page: str) -> None:
    """Write or replace the record of a version's audit."""
    record = AuditRecord(version=version.version, report=dict(report), lines=tuple(lines), page=page, created=utc_now())
    _write(store, version, AUDITS, record)


def read_baselines(store: Store, name: str, version: str) -> BaselineRecord | None:
    """Read the record of a version's baselines; None if it has none.

    Raises:
        IntegrityError: It is damaged.
    """
    todo = f"remove it; genre train --resume on its run writes it again, and the version {name}:{version} does not need it"
    return _read(store, name, version, RECORDS, BaselineRecord, todo)


def read_audit(store: Store, name: str, version: str) -> AuditRecord | None:
    """Read the record of a version's last audit; None if it has none.

    Raises:
        IntegrityError: It is damaged.
    """
    todo = f"remove it; genre audit --privacy writes it again, and the version {name}:{version} does not need it"
    return _read(store, name, version, AUDITS, AuditRecord, todo)


def _write(store: Store, version: Version, folder: str, record: _Record) -> None:
    raw = record.model_dump(mode="json")
    raw["checksum"] = checksum_of(raw)
    with store.writing():
        keep(store, version.name, version.digest)
        store.put(version.name, folder, f"{version.version}.json", render(raw))


def _read(store: Store, name: str, version: str, folder: str, kind: type[R], todo: str) -> R | None:
    what = f"{folder}/{version}.json of {name}"
    try:
        data = store.read(name, folder, f"{version}.json", MAX_MANIFEST_BYTES)
    except NotFoundError:
        return None
    damaged = IntegrityError(f"{what} is damaged", got="other content than its checksum says", todo=todo)
    raw = parse_json(data, what, limit=MAX_MANIFEST_BYTES)
    if not isinstance(raw, dict) or checksum_of(raw) != raw.get("checksum") or render(raw) != data:
        raise damaged
    try:
        record = kind.model_validate(raw)
    except ValidationError:
        raise damaged from None
    if record.version != version:
        raise damaged
    return record
