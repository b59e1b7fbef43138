"""Files out of a pinned package.

Owns: fetching one wheel by pip without its dependencies, its checksum, taking chosen members out of it. Nothing is
installed and no code of the package runs. Ignores the content of members.

    with fetched_wheel(DATA["ml-100k"], aside, print) as wheel:
        extract(wheel, ["recbole/dataset_example/ml-100k/ml-100k.inter"], aside)
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from genre.data.schema import DatasetInfo
from genre.errors import DiskError, DownloadError

OnStep = Callable[[str], None]
"""A callback for each step of a long job, in words."""


@dataclass(frozen=True)
class Source:
    """A data set or a base that comes in a package.

    Attributes:
        name: GENRE's name of it.
        kind: `data` or `base`.
        what: A description in a line.
        package: The distribution on the package index.
        version: Its version.
        sha256: Of its wheel.
        megabytes: Size of its wheel.
        members: Names, or beginnings of names, of the wheel's files that are needed.
        licence: The terms of the package and of its content.
        format: Raised when the conversion changes, so that a folder in the cache from an older one is not taken for it.
    """

    name: str
    kind: str
    what: str
    package: str
    version: str
    sha256: str
    megabytes: int
    members: tuple[str, ...]
    licence: str
    format: int = 1

    @property
    def origin(self) -> str:
        """The package and its version."""
        return f"{self.package} {self.version} (package index)"

    def info(self, **more: Any) -> DatasetInfo:
        """Return dataset.json's content for a data set that comes from here."""
        checksum = f"sha256:{self.sha256}"
        return DatasetInfo(name=self.name, source=self.origin, checksum=checksum, licence=self.licence, **more)


@contextmanager
def fetched_wheel(source: Source, parent: Path, on_step: OnStep) -> Iterator[Path]:
    """Download the source's wheel into a temporary folder in `parent` and check it; it is gone after the block.

    Args:
        source: What to fetch.
        parent: Where; the folder's name begins with the source's, so that a later run finds what this one left.
        on_step: Called with each step.

    Raises:
        DownloadError: If pip is missing or fails, or the wheel is not the pinned one.
        DiskError: If the disk is full.
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{source.name}.", suffix=".tmp", dir=parent))
    try:
        on_step(f"downloading {source.package} {source.version} ({source.megabytes} MB)")
        _download(source, folder)
        wheels = sorted(folder.glob("*.whl"))
        if len(wheels) != 1:
            got, todo = f"{len(wheels)} wheels", "run the command again"
            raise DownloadError(f"pip left no wheel of {source.package}", got=got, expected="one", todo=todo)
        on_step("checking its sha256")
        check_sha256(wheels[0], source)
        yield wheels[0]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _download(source: Source, folder: Path) -> None:
    wanted = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", wanted, "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--quiet", "--dest", str(folder)]
    scratch = folder / "pip"
    scratch.mkdir()  # pip's own temporary files go there, so that an interrupted run leaves none elsewhere
    environment = os.environ | {"TMPDIR": str(scratch), "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 0:
        return
    if "No space left on device" in done.stderr:
        todo = "free some space, or move the cache with GENRE_CACHE"
        raise DiskError(f"cannot download {wanted}", got="no space left on device", expected="room for the wheel", todo=todo)
    if "No module named pip" in done.stderr:
        got, todo = f"none beside {sys.executable}", "python -m ensurepip, then run the command again"
        raise DownloadError("pip is missing", got=got, expected="pip to fetch packages with", todo=todo)
    lines = done.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
    got = errors[-1][:300] if errors else f"exit code {done.returncode}"
    todo = "check the network and run the command again"
    raise DownloadError(f"pip cannot download {wanted}", got=got, expected="a package index that has it", todo=todo)


def check_sha256(path: Path, source: Source) -> None:
    """Compare a file with the pinned checksum.

    Raises:
        DownloadError: If they differ; the message holds both.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        got, expected = f"sha256 {found} ({path.stat().st_size:,} bytes)", f"sha256 {source.sha256}"
        todo = "run the command again; if it stays so, the download is cut off or the index serves another file"
        raise DownloadError(f"{path.name} is not the pinned file", got=got, expected=expected, todo=todo)


def extract(wheel: Path, members: Iterable[str], folder: Path) -> list[Path]:
    """Write the members that have one of the names, or begin with one that ends in "/", into `folder`.

    A member keeps the part of its path after the name's last folder; nothing is written outside `folder`.

    Raises:
        DownloadError: If the wheel is damaged, or has no such member, or a member's path leads out.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return [
                _extract_one(archive, name, name.removeprefix(wanted.rpartition("/")[0]), folder)
                for wanted in members
                for name in _find_members(archive, wanted)
            ]
    except zipfile.BadZipFile as error:
        todo = "run the command again"
        raise DownloadError(f"{wheel.name} is damaged", got=error, expected="a whole wheel", todo=todo) from error


def _find_members(archive: zipfile.ZipFile, wanted: str) -> list[str]:
    names = [name for name in archive.namelist() if not name.endswith("/")]
    found = [name for name in names if name == wanted or (wanted.endswith("/") and name.startswith(wanted))]
    if not found:
        raise DownloadError("the wheel lacks a file", got="no such member", expected=wanted)
    return found


def _extract_one(archive: zipfile.ZipFile, name: str, relative: str, folder: Path) -> Path:
    parts = PurePosixPath(relative.lstrip("/")).parts
    if ".." in parts or not parts:
        raise DownloadError("a member's path leads out of the wheel", got=name, expected="a path inside")
    target = folder.joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    return target
