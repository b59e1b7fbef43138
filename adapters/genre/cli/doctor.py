"""`genre doctor`: one page to paste into an issue.

Owns: arguments and printing. Ignores: everything else; the library is imported inside the command.

    genre doctor --registry s3://models/registry
"""

from typing import Any

from genre.cli.options import JsonOption, RegistryOption
from genre.cli.output import check_file, format_size, write_result
from genre.errors import JobError


def doctor(registry: RegistryOption = "registry", json_file: JsonOption = None) -> None:
    """Check the installation: versions, machine, GPU, caches, registry, missing packages; no secrets are shown."""
    check_file(json_file, "--json")
    from genre.jobs.doctor import examine

    found = examine(registry)
    show(found)
    write_result(json_file, found)
    if found["problems"]:
        count = f"{len(found['problems'])} problem{'s' if len(found['problems']) > 1 else ''}"
        raise JobError(f"{count} found", todo="they are listed at the end of the page")


def show(found: dict[str, Any]) -> None:
    """Print the sections, a line per fact, in plain text."""
    for section in ("versions", "machine", "paths", "variables"):
        _section(section, found[section])
    _section("packages", {"required": _packages(found["packages"])} | {k: _packages(v) for k, v in found["extras"].items()})
    registry = found["registry"]
    _section("registry", {key: registry[key] for key in ("url", "names", "versions")})
    print("  its manifests and journals were read; genre registry verify hashes the weights too")
    print("problems")
    for problem in found["problems"] or ["none"]:
        print(f"  {problem}")


def _section(name: str, facts: dict[str, Any]) -> None:
    print(name)
    width = max(map(len, facts), default=0)
    for key, value in facts.items():
        shown = format_size(value) if key.endswith("_bytes") else value
        print(f"  {key.removesuffix('_bytes').replace('_', ' ') if key.islower() else key:<{width}}  {shown}")
    if not facts:
        print("  none set")


def _packages(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {there}" for name, there in versions.items())
