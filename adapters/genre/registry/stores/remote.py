"""A store behind any fsspec URL: files first, the manifest last, alias entries by conditional create.

Owns: the remote implementation of `store.Store`. Ignores: what the files mean; caching (see `cache`); how gc and writers agree
(`tombstones`).

A version is visible once its `manifest.json` is there, and that is written last. What gc has given up is published again under
the next generation, in a folder of its own.

    s3://bucket/registry/like/a3f09c12be77/heads.safetensors, …, manifest.json
    s3://bucket/registry/like/a3f09c12be77/.marks/1.json                       # what gc and writers decided about it, if anything
    s3://bucket/registry/like/a3f09c12be77/.gen-1/heads.safetensors, …, manifest.json
    s3://bucket/registry/like/baselines/.gen-1/a3f09c12be77.json               # what lies beside it goes with its generation
    s3://bucket/registry/like/aliases/1.json
    s3://bucket/registry/.writers/5d41402abc4b2a76b9719d911017c592             # a writer at work
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genre.errors import NotFoundError
from genre.registry.names import ALIASES, AUDITS, HEAD, HEADS, MANIFEST, RECORDS, SHORT, SIGNATURES, is_name, is_version
from genre.registry.stores.objects import PROBE, Objects, time_of
from genre.registry.stores.store import is_entry, is_record, is_signature
from genre.registry.stores.tombstones import MARKS, WRITERS, Tombstones, is_mark

_GENERATION = re.compile(r"\.gen-(0|[1-9][0-9]{0,8})", re.ASCII)
_BESIDE = {RECORDS: is_record, AUDITS: is_record, SIGNATURES: is_signature}
"""The folders of files beside versions; their names begin with that of the version."""


@dataclass(frozen=True)
class _Part:
    """A file of a version, in its generation's folder."""

    version: str
    generation: int
    file: str


class RemoteStore:
    """A store on an fsspec file system; `options` go to it unchanged. `single_writer` is described at `Registry`."""

    grace_s = 3600.0

    def __init__(self, url: str, options: dict[str, Any], *, single_writer: bool = False) -> None:
        self.objects = Objects(url, options, single_writer=single_writer)
        self.url = self.objects.url
        self.tombstones = Tombstones(self.objects)

    def names(self) -> list[str]:
        return list(self.listing())

    def listing(self) -> dict[str, list[str]]:
        """See `Store`; one recursive listing."""
        versions: dict[str, list[str]] = {}
        for path in self._visible(self.objects.find()):
            name, version = path.split("/")
            versions.setdefault(name, []).append(version)
        return dict(sorted(versions.items()))

    def versions(self, name: str) -> list[str]:
        """See `Store`; the order is that of the manifests' times."""
        return [path.split("/")[1] for path in self._visible(self.objects.find(name))]

    def known(self) -> list[str]:
        found = self.objects.find()
        heads = {path.split("/")[1] for path in found if _is_head(path)}
        journals = {path.split("/")[0] for path in found if _is_journal_file(path)}
        return sorted(heads | journals | {path.split("/")[0] for path in self._visible(found)})

    def has(self, name: str, version: str) -> bool:
        path = f"{name}/{version}"
        return self.objects.exists(f"{path}/{MANIFEST}") or self._generation(path) is not None

    def read(self, name: str, version: str, file: str, limit: int) -> bytes:
        data = self.objects.read(self._beside(name, version, file), limit)
        if data is None and is_version(version):
            data = self.objects.read(f"{self._folder(name, version)}/{file}", limit)
        if data is None:
            raise NotFoundError(f"{file} is missing", got=self.objects.path(name, version))
        return data

    def folder(self, name: str, version: str) -> Path | None:
        return None

    def files(self, name: str, version: str) -> dict[str, int]:
        """See `Store`; files in folders below count, with their path."""
        if version in _BESIDE:
            return self._files_beside(name, version)
        path = f"{name}/{version}"
        found = self.objects.find(path)
        generation = self._visible_generation(found, path) or 0
        return {part.file: int(info["size"]) for part, info in _parts(found) if part.generation == generation}

    def download(self, name: str, version: str, file: str, target: Path) -> None:
        found = self.objects.download(f"{name}/{version}/{file}", target)
        if not found and not self.objects.download(f"{self._folder(name, version)}/{file}", target):
            raise NotFoundError(f"{file} is missing", got=self.objects.path(name, version))

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="genre-publish-") as folder:
            yield Path(folder)

    def commit(self, staged: Path, name: str, version: str) -> bool:
        """See `Store`. Two writers of one version write the same bytes but for the manifest, where one wins."""
        folder = _folder(f"{name}/{version}", self.tombstones.renew(f"{name}/{version}"))
        if self.objects.exists(f"{folder}/{MANIFEST}"):
            return False
        for path in sorted(staged.iterdir()):
            if path.name != MANIFEST:
                self.objects.upload(path, f"{folder}/{path.name}")
        return self.objects.create(f"{folder}/{MANIFEST}", (staged / MANIFEST).read_bytes())

    def entries(self, name: str) -> list[int]:
        files = [path.rpartition("/")[2] for path in self.objects.find(name, ALIASES)]
        return sorted(int(file[:-5]) for file in files if is_entry(file))

    def create_entry(self, name: str, number: int, data: bytes) -> bool:
        return self.objects.create(f"{name}/{ALIASES}/{number}.json", data)

    def put(self, name: str, folder: str, file: str, data: bytes) -> None:
        self.objects.put(self._beside(name, folder, file), data)

    def check_writable(self, name: str) -> None:
        """See `Store`: nothing is known before a write."""

    def remove(self, name: str, version: str) -> None:
        """See `Store`; its generation must be buried, so that nobody writes there any more."""
        path = f"{name}/{version}"
        life = self.tombstones.life(path)
        buried = life.generation + (life.action == "bury")
        found = {f"{_folder(path, part.generation)}/{part.file}": part for part, _ in _parts(self.objects.find(path))}
        doomed = {file: part.file == MANIFEST for file, part in found.items() if part.generation < buried}
        parts = {file: _part_beside(file) for file in self.objects.find(name)}
        beside = [file for file, part in parts.items() if part and part.version == path and part.generation < buried]
        # Invisible first; and what is interrupted is found again by files that are left.
        for file in (*(file for file in doomed if doomed[file]), *beside, *(file for file in doomed if not doomed[file])):
            self.objects.remove(file)

    def unfinished(self) -> dict[str, int]:
        """See `Store`: versions with files but no manifest, and what is left of generations before the visible one."""
        found = self.objects.find()
        visible = {path: generation for path, (generation, _) in self._visible(found).items()}
        sizes: dict[str, int] = {}
        for part, info in _parts(found):
            if part.version not in visible:
                sizes[part.version] = sizes.get(part.version, 0) + int(info["size"])
            elif part.generation < visible[part.version]:
                left = f"{part.version}/.gen-{part.generation}"
                sizes[left] = sizes.get(left, 0) + int(info["size"])
        return dict(sorted(sizes.items()))

    def remove_unfinished(self, path: str) -> None:
        name, version, *_ = path.split("/")
        self.remove(name, version)

    def content(self) -> str:
        return "which holds other files but no version" if self.objects.find() else "which is empty"

    def strays(self) -> list[str]:
        found = self.objects.find()
        known = {_place(part) for part, _ in _parts(found) if "/" not in part.file}
        kinds = (_is_journal_file, _part_beside, _is_head, _is_own)
        return sorted(path for path in found.keys() - known if not any(of_kind(path) for of_kind in kinds))

    def keep(self, name: str, version: str) -> bool:
        path = f"{name}/{version}"
        life = self.tombstones.keep(path)
        return life.action != "bury" and self.objects.exists(f"{_folder(path, life.generation)}/{MANIFEST}")

    def mark(self, path: str) -> None:
        if not self._is_left(path):
            self.objects.check_writers()
            self.tombstones.mark(path)

    def marked(self) -> list[str]:
        found = self.objects.find()
        logs = {path.rpartition(f"/{MARKS}/")[0] for path in found if is_mark(path)}
        return [path for path in self._visible(found) if path in logs and self.tombstones.life(path).action == "mark"]

    def settled(self, paths: list[str], grace: float) -> dict[str, int]:
        left = dict.fromkeys((path for path in paths if self._is_left(path)), 0)
        rest = [path for path in paths if path not in left]
        return left | (self.tombstones.settled(rest, grace) if rest else {})

    def bury(self, path: str, mark: int) -> bool:
        return self._is_left(path) or self.tombstones.bury(path, mark)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        self.objects.check_writers()
        with self.tombstones.writing():
            yield

    def cleaning(self) -> AbstractContextManager[bool]:
        """See `Store`: there is no lock."""
        return nullcontext(False)

    @staticmethod
    def _is_left(path: str) -> bool:
        """Return whether a path of `unfinished` is of a generation that was buried before."""
        return path.count("/") > 1

    def _visible(self, found: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, float]]:
        """The newest generation that has a manifest and that one's time, by `<name>/<version>`, oldest first."""
        newest: dict[str, tuple[int, float]] = {}
        for part, info in _parts(found):
            if part.file == MANIFEST:
                newest[part.version] = max((part.generation, time_of(info)), newest.get(part.version, (-1, 0.0)))
        return dict(sorted(newest.items(), key=lambda row: (row[1][1], row[0])))

    def _visible_generation(self, found: Mapping[str, Mapping[str, Any]], path: str) -> int | None:
        return self._visible(found).get(path, (None, 0.0))[0]

    def _generation(self, path: str) -> int | None:
        return self._visible_generation(self.objects.find(path), path)

    def _beside(self, name: str, folder: str, file: str) -> str:
        """The path of a file; what lies beside a version is that of its generation."""
        generation = 0
        if folder in _BESIDE and name != HEADS and _BESIDE[folder](file):
            generation = self._generation(f"{name}/{file[:SHORT]}") or 0
        return f"{_folder(f'{name}/{folder}', generation)}/{file}"

    def _files_beside(self, name: str, folder: str) -> dict[str, int]:
        """The files in a folder beside versions, without those of generations that were given up."""
        found = self.objects.find(name)
        visible = self._visible(found)
        sizes = {}
        for path, info in found.items():
            part = _part_beside(path)
            if path.startswith(f"{name}/{folder}/") and (
                part is None or part.generation == visible.get(part.version, (0, 0.0))[0]
            ):
                sizes[path.removeprefix(f"{name}/{folder}/") if part is None else part.file] = int(info["size"])
        return sizes

    def _folder(self, name: str, version: str) -> str:
        path = f"{name}/{version}"
        return _folder(path, self._generation(path) or 0)


def _folder(path: str, generation: int) -> str:
    return f"{path}/.gen-{generation}" if generation else path


def _place(part: _Part) -> str:
    return f"{_folder(part.version, part.generation)}/{part.file}"


def _parts(found: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[_Part, Mapping[str, Any]]]:
    """The files of versions among objects; those of gc are none."""
    for path, info in found.items():
        name, _, rest = path.partition("/")
        version, _, file = rest.partition("/")
        if not (is_name(name) and is_version(version) and file) or is_mark(path):
            continue
        folder, _, inner = file.partition("/")
        match = _GENERATION.fullmatch(folder)
        if match and inner:
            yield _Part(f"{name}/{version}", int(match[1]), inner), info
        else:
            yield _Part(f"{name}/{version}", 0, file), info


def _is_journal_file(path: str) -> bool:
    parts = path.split("/")
    return len(parts) == 3 and is_name(parts[0]) and parts[1] == ALIASES and is_entry(parts[2])


def _part_beside(path: str) -> _Part | None:
    """The version and generation that a file lies beside; None if the path is of something else."""
    name, _, rest = path.partition("/")
    folder, _, file = rest.partition("/")
    inner, slash, last = file.partition("/")
    match = _GENERATION.fullmatch(inner) if slash else None
    if not (is_name(name) and folder in _BESIDE and (match or not slash)):
        return None
    file = last if match else file
    return _Part(f"{name}/{file[:SHORT]}", int(match[1]) if match else 0, file) if _BESIDE[folder](file) else None


def _is_head(path: str) -> bool:
    parts = path.split("/")
    return len(parts) == 3 and parts[0] == HEADS and is_name(parts[1]) and parts[2] == HEAD


def _is_own(path: str) -> bool:
    """Return whether an object is one that gc and writers agree by."""
    return is_mark(path) or path.startswith((f"{WRITERS}/", PROBE))
