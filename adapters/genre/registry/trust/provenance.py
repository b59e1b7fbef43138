"""Where a version comes from, in the form of SLSA's provenance and in-toto's statement.

Owns: both forms. Ignores: whether it is true; a signature says who vouches for it. All of it but the builder and the time follows
from fields that the digest covers, so it adds no second truth: a stored one that says something else is refused.

    {"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://slsa.dev/provenance/v1",
     "subject": [{"name": "like:a3f09c12be77", "digest": {"sha256": "a3f09c12be77…"}}, {"name": "heads.safetensors", …}, …],
     "predicate": {"buildDefinition": {"buildType": "urn:genre:adapter:v1", "externalParameters": {"recipe": {"sha256": "…"}, …},
                                       "resolvedDependencies": [{"name": "data", "digest": {"sha256": "…"}}, …]},
                   "runDetails": {"builder": {"id": "ann", "version": {"genre": "0.1.0"}}, "metadata": {"finishedOn": "2026-…"},
                                  "byproducts": [{"name": "like", "annotations": {"metrics": {…}, "protocol": "…"}}]}}}

See https://slsa.dev/spec/v1.0/provenance and https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from genre.registry.names import WITHHELD, is_digest

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
RECIPE = "recipe.yaml"
UNKNOWN = "unknown"
"""The builder of a version of an earlier release, and the user of a process without a name."""


def describe_build(raw: Mapping[str, Any], actor: str) -> dict[str, Any]:
    """Return SLSA's predicate for a manifest as JSON values: the recipe, what went in, by whom and what came out."""
    parameters = {"kind": raw["kind"], "tasks": [task["name"] for task in raw["tasks"]]}
    if RECIPE in raw["files"]:
        parameters["recipe"] = {"sha256": raw["files"][RECIPE]}
    byproducts = [
        {"name": task, "annotations": {"metrics": metrics, "protocol": raw["protocol"].get(task, "")}}
        for task, metrics in sorted(raw["metrics"].items())
    ]
    return {
        "buildDefinition": {
            "buildType": f"urn:genre:{raw['kind']}:v1",
            "externalParameters": parameters,
            "resolvedDependencies": list(_dependencies(raw)),
        },
        "runDetails": {
            "builder": {"id": actor, "version": {"genre": raw["code_version"]}},
            "metadata": {"finishedOn": raw["created"]},
            "byproducts": byproducts,
        },
    }


def builder_of(provenance: Mapping[str, Any] | None) -> str | None:
    """Return who made a version, as its provenance says; None where it says nothing."""
    try:
        found = (provenance or {})["runDetails"]["builder"]["id"]
    except (KeyError, TypeError):
        return None
    return found if isinstance(found, str) and found.isprintable() and len(found) <= 200 else None


def state_provenance(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return in-toto's statement about a sealed manifest: the version and its files as subjects, its provenance as predicate."""
    subjects = [{"name": f"{raw['name']}:{raw['version']}", "digest": {"sha256": raw["digest"]}}]
    subjects += [{"name": file, "digest": {"sha256": sha256}} for file, sha256 in sorted(raw["files"].items())]
    predicate = describe_build(raw, builder_of(raw.get("provenance")) or UNKNOWN)
    return {"_type": STATEMENT, "subject": subjects, "predicateType": PREDICATE, "predicate": predicate}


def _dependencies(raw: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    base, data = raw["base"], raw["data"]
    yield {
        "name": "base",
        "digest": {"sha256": base["fingerprint"]},
        "annotations": {"name": base["name"], "depth": base["depth"]},
    }
    if data is not None:
        about = {key: data[key] for key in ("name", "rows", "split")}
        digest = {} if data["digest"] == WITHHELD else {"digest": {"sha256": data["digest"]}}
        yield {"name": "data", **digest, "annotations": about}
    for field in ("tokenizer", "catalogue", "encoder"):
        if raw[field] is not None:
            yield {"name": field, "digest": {"sha256": raw[field]}}
    for parent in raw["parents"]:
        yield {"name": "parent", "digest": {"sha256": parent}} if is_digest(parent) else {"name": "parent", "uri": parent}
