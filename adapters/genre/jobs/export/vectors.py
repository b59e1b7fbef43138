"""Vectors of a version as a folder: items and users, Parquet and .npy, with ids, titles, digest and metric.

Owns: the files, and the proof that products are the engine's scores. Ignores: how vectors come about (`genre.engine.vectors`),
indexes.

    exported/
        vectors.json                    # version, digest, task, metric, blocks of dimensions, loss, check, sha256 of the files
        items.parquet  items.npy        # item_id, title, vector: (N, d) float32
        users.parquet  users.npy        # user_id, vector, seen: with users=True
        client.py  README.md            # reads the folder, refuses an index of another version
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from genre.data.interactions import Interactions
from genre.engine import Engine, Request
from genre.engine.vectors import CALL, Space, product_task, vector_space
from genre.engine.vectors import ITEMS as NEIGHBOURS
from genre.errors import InputError, JobError
from genre.files import appearing_folder, check_writable, refuse_foreign
from genre.jobs.export.histories import Before, cut_log
from genre.jobs.loading import load_base
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.registry import Registry
from genre.registry.export import vector_client
from genre.registry.export.vector_client import ABOUT, ITEMS, USERS, Vectors, sha256_of

METRIC = "dot"
CHECKED = 32
"""Histories whose scores are compared with the engine's."""
COMPARED = 1000
"""The engine's best items of each of them that are compared."""
CLOSE = 1e-3
"""The largest difference of an exact vector's product from the engine's score, relative to scores above 1."""
_KEY = "genre"
_TEXTS: dict[str, dict[str, Any]] = {
    ITEMS: {"item_id": pl.String, "title": pl.String},
    USERS: {"user_id": pl.String, "seen": pl.List(pl.String)},
}


def export_vectors(
    registry: Registry,
    ref: str,
    out: str | Path,
    *,
    base: Base | None = None,
    data: Interactions | None = None,
    users: bool = False,
    task: str | None = None,
    rank: int | None = None,
    before: Before | None = None,
    reporter: Reporter | None = None,
) -> Vectors:
    """Write the vectors of a next-item version, whose dot product is the score, as a folder.

    Args:
        registry: Holds the version.
        ref: The version.
        out: A new folder.
        base: Its base, with nothing attached; by default found by the name in the manifest.
        data: A log, whose catalogue replaces the version's own; needed for users.
        users: Write the users' vectors too.
        task: The next-item task of a joint adapter.
        rank: Dimensions of item neighbours; by default exact, a dimension per item.
        before: Users' histories end before this part of the version's split, `valid` or `test`.
        reporter: Receives progress; by default bars in a notebook, nothing in a script.

    Returns:
        What was written.

    Raises:
        RegistryError: The version's score is no dot product; the message says what works.
        InputError: Users without data, a rank that does not fit, or `out` holds other files or cannot be made.
        JobError: Products are not the engine's scores.
    """
    reporter = reporter or Reporter.here()
    if data is None and (users or before is not None):
        todo = "name the log with --data" if users else "leave out --before"
        raise InputError("vectors of users need their histories", got="no data", expected="a log", todo=todo)
    version = registry.resolve(ref)
    name = product_task(version, task)
    refuse_foreign(Path(out), None)
    check_writable(Path(out), str(out))
    log = None if data is None else cut_log(data, version.manifest, name, before)
    with Engine(base or load_base(version.manifest), registry, lanes=1, host=0, data=log) as engine:
        space = vector_space(engine, version.ref, task=name, rank=rank)
        checked = _check(engine, space, log)
        items = pl.DataFrame({"item_id": space.catalogue.item_ids, "title": space.catalogue.titles()}, schema=_TEXTS[ITEMS])
        people, vectors = _users(engine, space, log, reporter) if users and log is not None else (None, None)
    about = _describe(space, items, people, log, before) | {"check": checked}
    with appearing_folder(Path(out)) as folder:
        _write(folder, ITEMS, items, space.items, about)
        if people is not None and vectors is not None:
            _write(folder, USERS, people, vectors, about)
        shutil.copyfile(vector_client.__file__, folder / "client.py")
        (folder / "README.md").write_text(_card(about), encoding="utf-8")
        about["files"] = {file.name: sha256_of(file) for file in sorted(folder.iterdir()) if file.suffix in (".npy", ".parquet")}
        (folder / ABOUT).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return Vectors.read(out)


def user_vectors(engine: Engine, vectors: Vectors, requests: Sequence[Request]) -> np.ndarray:
    """Make the vectors of histories as they are now, for an index of exported items.

    Args:
        engine: Serves on the version's base; need not have been the one that exported.
        vectors: The export that the index was built from.
        requests: n histories, or users of the engine's data set; their `adapter` is not looked at.

    Returns:
        (n, d) float32.

    Raises:
        StaleIndexError: The export is of another version than its reference names now.
        GenreError: The engine has other items, the version is gone, or a history cannot be read.
    """
    about, rank = vectors.about, vectors.about["rank"]
    catalogue = engine.catalogue_of(engine.read_by(Request(about["version"], history=[]))[0])
    if catalogue.item_ids != list(vectors.item_ids):
        got, expected = f"{catalogue.size:,} items", f"the {len(vectors.item_ids):,} of the export"
        raise InputError("the engine has another catalogue", got=got, expected=expected, todo="export again")
    basis = None if rank is None else vectors.items[:, -rank:]  # item neighbours are the last block
    space = vector_space(engine, about["version"], task=about["task"], basis=basis)
    vectors.check(space.digest)
    return space.users(engine, requests)


def _users(engine: Engine, space: Space, log: Interactions, reporter: Reporter) -> tuple[pl.DataFrame, np.ndarray]:
    """Every user's id and seen items, and (U, d) vectors."""
    ids, parts = log.user_ids, []
    with reporter.bar("vectors of users", len(ids)) as bar:
        for start in range(0, len(ids), CALL):
            some = ids[start : start + CALL]
            parts.append(space.users(engine, [Request(space.ref, user_id=user) for user in some]))
            bar.advance(len(some))
    masked = space.task.seen == "masked"
    item_ids = np.array(log.catalogue.item_ids, dtype=object)
    events = np.split(log.item_codes, log.user_offsets[1:-1])
    seen = [item_ids[np.unique(own)].tolist() if masked else [] for own in events]
    return pl.DataFrame({"user_id": ids, "seen": seen}, schema=_TEXTS[USERS]), np.concatenate(parts)


def _check(engine: Engine, space: Space, log: Interactions | None) -> dict[str, Any]:
    """Compare products with the engine's scores for some histories.

    Raises:
        JobError: They differ where no rank was asked for.
    """
    requests, item_ids = _sample(engine, space, log), space.catalogue.item_ids
    products = space.users(engine, requests) @ space.items.T
    most = min(len(item_ids), COMPARED)
    answers = engine.score([replace(request, k=most, exclude_seen=False, task=space.task.name) for request in requests])
    number = {item: code for code, item in enumerate(item_ids)}
    largest, shared = 0.0, []
    for product, answer in zip(products, answers, strict=True):
        if answer.error is not None:
            raise JobError("vectors cannot be checked against the engine", got=answer.error)
        codes = np.array([number[item.item_id] for item in answer.results], dtype=np.int64)  # type: ignore[union-attr]
        scores = np.array([item.score for item in answer.results])
        largest = max(largest, float(np.abs(product[codes] - scores).max() / max(np.abs(scores).max(), 1.0)))
        shared.append(len(set(np.argsort(-product)[:10].tolist()) & set(codes[:10].tolist())) / min(10, most))
    if space.lost is None and largest > CLOSE:
        got, expected = f"a relative difference of {largest:.1e}", f"at most {CLOSE}"
        raise JobError(f"products of {space.ref} are not the engine's scores", got=got, expected=expected)
    return {"histories": len(requests), "largest_difference": largest, "overlap@10": float(np.mean(shared))}


def _sample(engine: Engine, space: Space, log: Interactions | None) -> list[Request]:
    """Some users of the log, or histories of one item each."""
    known = space.catalogue.item_ids if log is None else log.user_ids
    chosen = [known[at] for at in np.linspace(0, len(known) - 1, min(CHECKED, len(known))).astype(np.int64)]
    if log is not None:
        return [Request(space.ref, user_id=user) for user in chosen]
    column = engine.read_by(Request(space.ref, history=[]))[0].layout.feedback_column
    more = {} if column is None else {column: None}
    return [Request(space.ref, history=[{"item_id": item, **more}]) for item in chosen]


def _describe(
    space: Space, items: pl.DataFrame, people: pl.DataFrame | None, log: Interactions | None, before: Before | None
) -> dict[str, Any]:
    return {
        "schema": 1,
        "version": space.ref,
        "digest": space.digest,
        "task": space.task.name,
        "metric": METRIC,
        "dimensions": space.items.shape[1],
        "blocks": space.blocks,
        "items": len(items),
        "users": None if people is None else len(people),
        "seen": space.task.seen,
        "data": None if log is None else log.digest,
        "before": before,
        "rank": None if space.lost is None else space.blocks[NEIGHBOURS],
        "lost": space.lost,
    }


def _write(folder: Path, name: str, frame: pl.DataFrame, vectors: np.ndarray, about: dict[str, Any]) -> None:
    np.save(folder / f"{name}.npy", vectors)
    rows = frame.insert_column(1 + (name == ITEMS), pl.Series("vector", vectors, dtype=pl.Array(pl.Float32, vectors.shape[1])))
    rows.write_parquet(folder / f"{name}.parquet", compression="zstd", metadata={_KEY: json.dumps(about)})


def _card(about: dict[str, Any]) -> str:
    blocks, check = ", ".join(f"{name} {size}" for name, size in about["blocks"].items()), about["check"]
    users = "" if about["users"] is None else f" and {about['users']:,} users"
    lost = ""
    if about["lost"] is not None:
        lost = f"\nItem neighbours have rank {about['rank']}, which loses {about['lost']:.1%} of their matrix (Frobenius norm).\n"
    return f"""# Vectors of {about["version"]}

{about["items"]:,} items{users}, {about["dimensions"]} dimensions ({blocks}), metric {about["metric"]}: the dot product of a user
and an item is the score of task `{about["task"]}`. Do not normalize.
{lost}
Digest {about["digest"]}. Checked on {check["histories"]} histories: largest relative difference from the engine's scores
{check["largest_difference"]:.1e}, {check["overlap@10"]:.1%} of the best 10 items the same.

`client.py` reads this folder; keep `digest` beside an index of the items, and it refuses an index of another version.
"""
