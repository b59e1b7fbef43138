"""What a report of a fault needs to know of an installation: versions, machine, paths, the registry's health.

Owns: looking, and what counts as a problem. Ignores: printing. Nothing is changed and no secret is read: of a variable that holds
one only that it is set, of a URL no user, password or query; the user's home folder is `~`.

    examine("registry")["problems"]      # ["extra serve: no fastapi; pip install 'genre-adapters[serve]'"]
"""

import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from packaging.requirements import Requirement

from genre._version import __version__
from genre.errors import GenreError
from genre.files import cache_folder, check_writable
from genre.modules.base.packaged import BASES, prepared_base
from genre.modules.base.precision import measured, processor
from genre.registry import Registry
from genre.registry.trust.keys import SIGN_VARIABLE

PACKAGE = "genre-adapters"
SHOWN = (
    "CUDA_VISIBLE_DEVICES",
    "GENRE_ACTOR",
    "GENRE_CACHE",
    "GENRE_DATA",
    "GENRE_REGISTRY",
    "GENRE_SINGLE_WRITER",
    "GENRE_TRUST",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
)
SECRET = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GENRE_ADMIN_TOKEN", "HF_TOKEN", "WANDB_API_KEY")
DEVELOPERS = ("bench", "dev")
"""Extras that nobody misses who only uses the library."""
LEAST_DISK = 5 * 2**30
"""Free bytes below which a cache is too small for a base."""


def examine(registry: str) -> dict[str, Any]:
    """Look at this installation, this machine and a registry.

    Args:
        registry: A folder or a URL; its manifests and journals are read, its weights are not hashed.

    Returns:
        Sections by name, each a JSON object; `problems` is a list of lines, empty if all is well.
    """
    required, extras = _packages()
    cache = cache_folder()
    found: dict[str, Any] = {
        "versions": {"genre": __version__, "python": platform.python_version(), "platform": platform.platform()},
        "packages": required,
        "extras": extras,
        "machine": _machine(),
        "paths": _paths(cache),
        "variables": _variables(),
        "registry": _registry(registry),
    }
    found["problems"] = list(_problems(found, cache))
    return dict(_without_home(found))


def _packages() -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """The versions of what the library requires, and of what each extra does; `missing`, or what is wrong with them."""
    required: dict[str, str] = {}
    extras: dict[str, dict[str, str]] = {}
    try:
        wanted_by_us = requires(PACKAGE) or ()
    except PackageNotFoundError:  # the library runs from a folder
        return {PACKAGE: "missing"}, {}
    for text in wanted_by_us:
        wanted = Requirement(text)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", str(wanted.marker or ""))
        if extra is None:
            required[wanted.name] = _installed(wanted)
        elif extra[1] not in DEVELOPERS:
            extras.setdefault(extra[1], {})[wanted.name] = _installed(wanted)
    return dict(sorted(required.items())), dict(sorted(extras.items()))


def _installed(wanted: Requirement) -> str:
    try:
        there = version(wanted.name)
    except PackageNotFoundError:
        return "missing"
    return there if wanted.specifier.contains(there, prereleases=True) else f"{there}, which is not {wanted.specifier}"


def _machine() -> dict[str, Any]:
    found: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "faster precision": str(measured("cpu", keep=False)),
        "cuda": torch.version.cuda or "none: this torch is built without it",
    }
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        found[f"gpu_{index}"] = f"{about.name}, {about.total_memory / 2**30:.0f} GiB, capability {about.major}.{about.minor}"
    return found


def _paths(cache: Path) -> dict[str, Any]:
    there = next(path for path in (cache, *cache.absolute().parents) if path.exists())
    return {
        "working folder": str(Path.cwd()),
        "library": str(Path(__file__).parent.parent),
        "cache": str(cache),
        "cache_used_bytes": sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()),
        "cache_free_bytes": shutil.disk_usage(there).free,
        "bases": ", ".join(name for name in BASES if prepared_base(name) is not None) or "none prepared",
    }


def _variables() -> dict[str, str]:
    """The variables that change what happens; of those that hold a secret, that they are set."""
    shown = {name: _without_credentials(os.environ[name]) for name in SHOWN if name in os.environ}
    if key := os.environ.get(SIGN_VARIABLE):  # a path; somebody may have put the key itself there
        shown[SIGN_VARIABLE] = key if os.path.isfile(key) else "(set, but to no file)"
    return shown | {name: "(set)" for name in SECRET if name in os.environ}


def _registry(url: str) -> dict[str, Any]:
    """A registry's size and what is wrong with it, by its manifests and journals."""
    found: dict[str, Any] = {"url": _without_credentials(url), "names": 0, "versions": 0, "problems": []}
    try:
        registry = Registry(url)
        listing = registry.store.listing()
        found |= {"names": len(listing), "versions": sum(map(len, listing.values()))}
        found["problems"] = [str(problem) for problem in registry.verify(hashes=False)]
    except (GenreError, OSError) as error:
        found["problems"] = [_without_credentials(str(error))]
    return found


def _problems(found: dict[str, Any], cache: Path) -> Iterator[str]:
    for name, there in found["packages"].items():
        if not re.fullmatch(r"[\w.+!-]+", there) or there == "missing":
            yield f"package {name}: {there}; pip install --upgrade {PACKAGE}"
    for extra, packages in found["extras"].items():
        missing = [name for name, there in packages.items() if there == "missing"]
        if missing and next(iter(packages)) not in missing:  # without its first package, what else is there came for another
            yield f"extra {extra}: no {', '.join(missing)}; pip install '{PACKAGE}[{extra}]'"
    if torch.version.cuda and not torch.cuda.is_available():
        yield "this torch is built for CUDA but sees no GPU: a driver is missing or too old, or CUDA_VISIBLE_DEVICES hides it"
    try:
        check_writable(cache / "file", "the cache folder")
    except GenreError as error:
        yield str(error)
    if (free := found["paths"]["cache_free_bytes"]) < LEAST_DISK:
        yield f"the disk of the cache folder has {free / 2**30:.1f} GiB left; set GENRE_CACHE to a folder with more"
    yield from (f"registry: {problem}" for problem in found["registry"]["problems"])


def _without_credentials(text: str) -> str:
    """A path or URL without user, password and query."""
    if "://" not in text:
        return text
    parts = urlsplit(text)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def _without_home(value: Any) -> Any:
    """The same value, in its texts `~` for the user's home folder."""
    if isinstance(value, dict):
        return {key: _without_home(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_home(each) for each in value]
    home = str(Path.home())
    return re.sub(rf"{re.escape(home)}(?=/|$|\s)", "~", value) if isinstance(value, str) and len(home) > 1 else value
