"""Records beside versions: what a version was measured against.

Owns: the record of a version's baselines, its form and its check. Ignores: how a store writes it. A version is published before
its baselines are computed and its digest is final then, so their figures stand in a file of their own, which is replaced as a
whole when they are computed again and removed with the version.

    like/baselines/a3f09c12be77.json
    {"baselines": {"like": {"additive": {"auc": {"interval": [0.71, 0.73], "n": 10011, "value": 0.72}}}}, "checksum": "…",
     "created": "2026-03-01T12:00:00Z", "notes": [], "part": "test", "schema": 1, "version": "a3f09c12be77"}
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genre.errors import IntegrityError, NotFoundError
from genre.registry.limits import MAX_MANIFEST_BYTES, parse_json
from genre.registry.lookup import keep
from genre.registry.manifest import MetricValue, Version, checksum_of, render, utc_now
from genre.registry.names import RECORDS
from genre.registry.stores.store import Store

Figures = dict[str, dict[str, dict[str, MetricValue]]]
"""By task, baseline and metric."""


class BaselineRecord(BaseModel):
    """The baselines of a version: on the same targets, by the same protocol, as its own metrics.

    Attributes:
        baselines: The figures.
        notes: What a baseline left out, in a line each.
        part: The part of the split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True)
    schema_: Literal[1] = Field(default=1, alias="schema")
    version: str
    part: str = "test"
    baselines: Figures = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    created: str = ""
    checksum: str = ""


def write_baselines(store: Store, version: Version, baselines: Mapping[str, Any], notes: Iterable[str]) -> None:
    """Write or replace the record of a version."""
    record = BaselineRecord(version=version.version, baselines=dict(baselines), notes=tuple(notes), created=utc_now())
    raw = record.model_dump(mode="json")
    raw["checksum"] = checksum_of(raw)
    with store.writing():
        keep(store, version.name, version.digest)
        store.put(version.name, RECORDS, f"{version.version}.json", render(raw))


def read_baselines(store: Store, name: str, version: str) -> BaselineRecord | None:
    """Read the record of a version; None if it has none.

    Raises:
        IntegrityError: It is damaged.
    """
    what = f"{RECORDS}/{version}.json of {name}"
    try:
        data = store.read(name, RECORDS, f"{version}.json", MAX_MANIFEST_BYTES)
    except NotFoundError:
        return None
    todo = f"remove it; genre train --resume on its run writes it again, and the version {name}:{version} does not need it"
    damaged = IntegrityError(f"{what} is damaged", got="other content than its checksum says", todo=todo)
    raw = parse_json(data, what, limit=MAX_MANIFEST_BYTES)
    if not isinstance(raw, dict) or checksum_of(raw) != raw.get("checksum") or render(raw) != data:
        raise damaged
    try:
        record = BaselineRecord.model_validate(raw)
    except ValidationError:
        raise damaged from None
    if record.version != version:
        raise damaged
    return record
