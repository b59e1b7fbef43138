"""The answer of `/v1/adapters`: everything that is served, for the page and for operators."""

from collections import Counter
from pathlib import Path
from typing import Any

from genre.registry.names import PRODUCTION
from genre.serving.deployments import Deployment
from genre.serving.service import Service


def overview(service: Service) -> dict[str, Any]:
    """Base, data set and every public reference."""
    base, data = service.engine.base, service.engine.data
    counts = service.metrics.counts()
    mounted = None
    if data is not None:
        sizes = {"users": len(data.user_ids), "items": data.catalogue.size, "events": len(data)}
        mounted = {"name": data.info.name, **sizes}
    deployments = sorted(service.deployments.public(), key=lambda deployment: deployment.ref)
    return {
        "base": {
            "name": Path(base.name).name,
            "depth": base.depth,
            "quantization": base.quantization,
            "precision": base.precision,
            "fingerprint": base.fingerprint,
        },
        "data": mounted,
        "admin": service.settings.token is not None,
        "adapters": [_adapter(service, deployment, counts) for deployment in deployments],
    }


def _adapter(service: Service, deployment: Deployment, counts: Counter[tuple[str, str]]) -> dict[str, Any]:
    manifest = deployment.version.manifest
    canary = service.canaries.get(deployment.name) if deployment.alias == PRODUCTION else None
    journal = service.alias_history.of(deployment.name)
    return {
        "ref": deployment.ref,
        "name": deployment.name,
        "version": deployment.version.version,
        "digest": deployment.version.digest,
        "created": manifest.created,
        "kind": manifest.kind,
        "resident": service.engine.resident().get(deployment.ref) == deployment.version.digest,
        "aliases": journal.aliases,
        "tasks": [{key: task.get(key) for key in ("name", "kind", "label", "head")} for task in manifest.tasks],
        "feedback": {"column": manifest.sequence.get("feedback"), "values": manifest.sequence.get("values")},
        "data": None if manifest.data is None else manifest.data.name,
        "protocol": manifest.protocol,
        "baselines": service.baselines.of(deployment.version),
        "metrics": {
            task: {name: value.model_dump(mode="json") for name, value in values.items()}
            for task, values in manifest.metrics.items()
        },
        "history": [{**vars(move), "checks": list(move.checks)} for move in journal.latest],
        "versions": [
            {"version": version, "rows": rows} for (name, version), rows in sorted(counts.items()) if name == deployment.name
        ],
        "canary": None if canary is None else canary.describe(),
    }
