"""What is served, for the page and for operators.

Owns: the answer of `/v1/adapters`. Ignores: how it came about.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from genre.registry.names import PRODUCTION
from genre.serving.served import Served
from genre.serving.service import Service


def overview(service: Service) -> dict[str, Any]:
    """Base, data set and every public reference."""
    base, data = service.engine.base, service.engine.data
    counts = service.metrics.counts()
    mounted = None
    if data is not None:
        sizes = {"users": len(data.user_ids), "items": data.catalogue.size, "events": len(data)}
        mounted = {"name": data.info.name, **sizes}
    shown = sorted((served for served in service.fleet.all() if served.public), key=lambda served: served.ref)
    return {
        "base": {
            "name": Path(base.name).name,
            "depth": base.depth,
            "quantization": base.quantization,
            "fingerprint": base.fingerprint,
        },
        "data": mounted,
        "admin": service.settings.token is not None,
        "adapters": [_adapter(service, served, counts) for served in shown],
    }


def _adapter(service: Service, served: Served, counts: Counter[tuple[str, str]]) -> dict[str, Any]:
    manifest = served.version.manifest
    canary = service.canaries.get(served.name) if served.alias == PRODUCTION else None
    shown = service.moves.of(served.name)
    return {
        "ref": served.ref,
        "name": served.name,
        "version": served.version.version,
        "digest": served.version.digest,
        "created": manifest.created,
        "kind": manifest.kind,
        "resident": service.engine.resident().get(served.ref) == served.version.digest,
        "aliases": shown.aliases,
        "tasks": [{key: task.get(key) for key in ("name", "kind", "label", "head")} for task in manifest.tasks],
        "feedback": {"column": manifest.sequence.get("feedback"), "values": manifest.sequence.get("values")},
        "metrics": {
            task: {name: value.model_dump(mode="json") for name, value in values.items()}
            for task, values in manifest.metrics.items()
        },
        "history": [{**vars(move), "checks": list(move.checks)} for move in shown.latest],
        "versions": [
            {"version": version, "rows": rows} for (name, version), rows in sorted(counts.items()) if name == served.name
        ],
        "canary": None if canary is None else canary.describe(),
    }
