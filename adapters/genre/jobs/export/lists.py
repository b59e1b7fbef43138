"""Lists of a version as a file: the best items of each user, with scores and soft labels for a student.

Owns: the columns, soft labels. Ignores: how scores come about, what learns from them.

    user_id  rank  item_id  title             score   label       # .parquet, a row per user and item
    196      1     50       Star Wars (1977)  5.21    0.083

    {"user_id": "196", "digest": "3f09…", "items": ["50", …], "scores": [5.21, …], "labels": [0.083, …]}      # .jsonl

The label of a next-item task is the list's softmax at a temperature T, exp(s_i / T) / Σ_j exp(s_j / T) over the list, so that a
user's labels sum to one. Of other tasks it is the score, a probability or a value.
"""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl

from genre.data.interactions import Interactions
from genre.engine import Engine
from genre.engine.frames import recommend_frame
from genre.errors import InputError, RegistryError
from genre.files import atomic, check_writable, disk_errors
from genre.jobs.export.histories import Before, cut_log
from genre.jobs.loading import load_base
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.registry import Registry, Version

SUFFIXES = (".parquet", ".jsonl")
TOP = 100
_KEY = "genre"


def export_lists(
    registry: Registry,
    ref: str,
    out: str | Path,
    data: Interactions,
    *,
    base: Base | None = None,
    top: int = TOP,
    task: str | None = None,
    temperature: float = 1.0,
    before: Before | None = None,
    reporter: Reporter | None = None,
) -> pl.DataFrame:
    """Write each user's best items with scores and soft labels, as Parquet or JSON lines.

    Args:
        registry: Holds the version.
        ref: The version, of any task over a log.
        out: A new file, .parquet or .jsonl.
        data: The log with the users.
        base: Its base, with nothing attached; by default found by the name in the manifest.
        top: Items for each user; fewer where fewer are left.
        task: The task of a joint adapter.
        temperature: Of the soft labels of a next-item task: larger is flatter.
        before: Histories end before this part of the version's split, `valid` or `test`, so that a student may be measured there.
        reporter: Receives progress; by default bars in a notebook, nothing in a script.

    Returns:
        user_id, rank, item_id, title, score, label: a row per user and item, best first.

    Raises:
        RegistryError: The version recommends no items, or has no such task.
        InputError: `out` exists, cannot be made or has another suffix, `top` or `temperature` does not fit.
        RequestError: A user cannot be answered.
    """
    reporter = reporter or Reporter.here()
    target, version = Path(out), registry.resolve(ref)
    row = check_lists(version, target, task=task, top=top, temperature=temperature)
    ranks, name = row["kind"] == "next_item", str(row["name"])
    log = cut_log(data, version.manifest, name, before)
    with Engine(base or load_base(version.manifest), registry, lanes=1, host=0, data=log) as engine:
        found = recommend_frame(engine.score, log, version.ref, None, top, {"task": name}, reporter=reporter)
    label = soft_labels(temperature) if ranks else pl.col("score")
    lists = found.select("user_id", "rank", "item_id", "title", "score", label.alias("label"))
    if few := len(log.user_ids) - lists["user_id"].n_unique():
        reporter.line(f"{few:,} users have no list: nothing is left to recommend to them")
    about = {"schema": 1, "version": version.ref, "digest": version.digest, "task": name, "top": top, "data": log.digest}
    about |= {"temperature": temperature if ranks else None, "before": before}
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target) as aside:
            if target.suffix.lower() == ".parquet":
                lists.write_parquet(aside, compression="zstd", metadata={_KEY: json.dumps(about)})
            else:
                _as_lines(lists, version.digest).write_ndjson(aside)
    return lists


def soft_labels(temperature: float) -> pl.Expr:
    """The softmax of each user's scores at a temperature, an expression over rows of lists."""
    powers = ((pl.col("score") - pl.col("score").max()) / temperature).exp()
    return (powers / powers.sum()).over("user_id")


def check_lists(version: Version, target: Path, *, task: str | None, top: int, temperature: float) -> dict[str, Any]:
    """Check what is asked for before any work, as `export_lists` does; return the task's row of the manifest."""
    if target.suffix.lower() not in SUFFIXES:
        raise InputError("lists are a file", got=target, expected=f"a name that ends in {' or '.join(SUFFIXES)}")
    if target.exists():
        raise InputError(f"{target} exists already", got="a file or folder", expected="a new file", todo="name another")
    check_writable(target, str(target))
    if top < 1:
        raise InputError("too few items of a list", got=top, expected="1 or more")
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError("the temperature does not fit", got=temperature, expected="a number above 0")
    row = _task_of(version, task)
    if temperature != 1 and row["kind"] != "next_item":
        got = f"task {row['name']!r} of kind {row['kind']}, whose label is its score"
        raise InputError("a temperature is for next-item tasks", got=got, todo="leave the temperature out")
    return row


def _task_of(version: Version, task: str | None) -> dict[str, Any]:
    """The task that is asked for, or the only one."""
    manifest = version.manifest
    rows = {str(row["name"]): row for row in manifest.tasks}
    if not manifest.answers or manifest.reads == "texts":
        got = "an adapter of labelled texts" if manifest.answers else f"kind {manifest.kind} without tasks"
        raise RegistryError(f"{version.ref} recommends no items", got=got, expected="an adapter of a log")
    if task is None and len(rows) > 1:
        raise RegistryError(
            f"{version.ref} has several tasks", got="no task", expected=", ".join(rows), todo="name one with --task"
        )
    if task is not None and task not in rows:
        raise RegistryError(f"{version.ref} has no such task", got=task, expected=", ".join(rows))
    return rows[task or next(iter(rows))]


def _as_lines(lists: pl.DataFrame, digest: str) -> pl.DataFrame:
    columns = [pl.col("item_id").alias("items"), pl.col("score").alias("scores"), pl.col("label").alias("labels")]
    grouped = lists.group_by("user_id", maintain_order=True).agg(columns)
    return grouped.select("user_id", pl.lit(digest).alias("digest"), "items", "scores", "labels")
