"""Scoring a request file with several engines: Ray Data over its chunks, one engine per actor.

Owns: the index of chunks, the work of an actor, the order of answers. Ignores: how Ray runs, where results go.

    plan = Plan.make("requests.jsonl", file.lines(), ["like"], registry="registry", data="data/ml-100k", workers=2)
    with ray_here(plan.cpus) as reporter:
        write_all(results, answers(plan), reporter, total=plan.rows)

The unit of work is a chunk of at most 64 rows, the same as in one process, which the actor that scores it reads from the file.
Answers come back in the order of the file, and this process writes them. Chunks go to actors in blocks; the answers of a block
arrive together or not at all, so a block whose actor was killed is scored again and no row is there twice.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from genre.errors import GenreError, InputError, JobError, RegistryError
from genre.jobs.score.local import Answers, Scorer, engine_for, first_known, open_users
from genre.jobs.score.ray_runtime import rows_of
from genre.jobs.score.requests import Line, RequestFile, chunks, read_row
from genre.modules.base.precision import MEASURED, measured
from genre.registry import Registry

ATTEMPTS, RESTARTS = 5, 10
"""Of a block, and of a worker: Ray would restart one that is killed at every start without end."""
BLOCK_CHUNKS, MOST_BLOCKS = 4, 5_000
_ADAPTER = re.compile(rb'"adapter"\s*:\s*"([^"\\]+)"')


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a file.

    Attributes:
        begin: The byte at which they begin.
        number: The number of their first line.
        rows: Their count.
    """

    begin: int
    number: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of the actors, and the chunks.

    Attributes:
        source: The request file.
        registry, data, base, lanes, precision: As in `genre score`; paths are absolute.
        workers: The number of actors.
        threads: Per actor.
        refs: References of the file's first rows, in order; the base is that of the first which exists. Where those rows are
            all wrong, those of the rest.
        exact: The version of each reference in this job, for every actor and attempt, as an exact reference.
        exclude_seen: As in `Scorer`.
        index: The chunks, in order.
    """

    source: str
    registry: str
    data: str | None
    base: str | None
    lanes: int
    workers: int
    threads: int
    refs: tuple[str, ...]
    exact: dict[str, str]
    index: tuple[Chunk, ...]
    exclude_seen: bool | None = None
    precision: str = "auto"

    @classmethod
    def make(
        cls,
        source: str | Path,
        lines: Iterable[Line],
        refs: Sequence[str],
        *,
        registry: str,
        data: str | None = None,
        base: str | None = None,
        lanes: int = 16,
        workers: int | None = None,
        exact: dict[str, str] | None = None,
        exclude_seen: bool | None = None,
        precision: str = "auto",
    ) -> "Plan":
        """Read a file once to index its chunks and collect its references.

        Args:
            source: The file, plain.
            lines: The lines to score.
            refs: References of its first rows.
            registry: As in `genre score`.
            data: As in `genre score`.
            base: As in `genre score`.
            lanes: As in `genre score`.
            workers: The number of actors; by default one per GPU, or else one for every two cores.
            exact: Versions of references that an earlier run has used.
            exclude_seen: As in `Scorer`.
            precision: As in `load_base`; all workers compute in the same one.

        Raises:
            NotFoundError: No reference exists.
            InputError: Too many workers for this machine.
        """
        store, exact = Registry(registry), dict(exact or {})
        if precision == MEASURED:
            measured()  # once, before the workers look for it
        if refs:
            first_known(store, refs)
        cores = len(os.sched_getaffinity(0))
        number = workers or _gpus() or max(1, cores // 2)
        if number > max(cores, _gpus()):
            raise InputError("--workers is too large", got=number, expected=f"at most {max(cores, _gpus())}, the cores here")
        index: list[Chunk] = []
        named: dict[str, None] = {}
        for chunk in chunks(lines):
            index.append(Chunk(chunk[0].begin, chunk[0].number, len(chunk)))
            named |= dict.fromkeys(ref.decode("utf-8", "replace") for line in chunk for ref in _ADAPTER.findall(line.raw))
        for ref in named.keys() - exact.keys():
            with contextlib.suppress(RegistryError):  # a reference that does not exist fails in its own rows
                exact[ref] = store.resolve(ref).exact
        paths: dict[str, Any] = {"registry": registry, "data": data, "base": base}
        return cls(
            source=str(Path(source).absolute()),
            **{name: str(Path(path).absolute()) if path and Path(path).exists() else path for name, path in paths.items()},
            lanes=lanes,
            workers=number,
            threads=_threads(cores, number),
            refs=tuple(refs) or tuple(ref for ref in named if ref in exact),
            exact=exact,
            index=tuple(index),
            exclude_seen=exclude_seen,
            precision=precision,
        )

    @property
    def cpus(self) -> int:
        """The threads of all actors."""
        return self.workers * self.threads

    @property
    def rows(self) -> int:
        """The rows of all chunks."""
        return sum(chunk.rows for chunk in self.index)


class Actor:
    """Scores chunks in a process of its own, with an engine that it opens for the first one."""

    def __init__(self, plan: Plan) -> None:
        import torch

        torch.set_num_threads(plan.threads)
        self.plan = plan
        self.scorer: Scorer | None = None

    def __call__(self, batch: Any) -> Any:
        """Answer a table of chunks; the error of an engine that cannot answer at all is in `failure`."""
        import pyarrow as pa

        found: dict[str, list[Any]] = {name: [] for name in ("begin", "text", "rows", "errors", "failure", "code")}
        for chunk in (Chunk(**row) for row in batch.to_pylist()):
            answers, failure, code = Answers(b"", 0, 0), "", 0
            try:
                answers = self._answer(chunk)
            except GenreError as error:
                failure, code = str(error), error.exit_code
            values = (chunk.begin, answers.text, answers.rows, answers.errors, failure, code)
            for column, value in zip(found.values(), values, strict=True):
                column.append(value)
        return pa.table({**found, "text": pa.array(found["text"], pa.large_binary())})

    def _answer(self, chunk: Chunk) -> Answers:
        plan = self.plan
        if self.scorer is None:
            engine = engine_for(
                plan.registry, plan.refs, open_users(plan.data), base=plan.base, lanes=plan.lanes, precision=plan.precision
            )
            self.scorer = Scorer(engine, plan.exact, exclude_seen=plan.exclude_seen)
        with RequestFile(plan.source) as file:
            return self.scorer.answer(map(read_row, islice(file.lines(chunk.begin, chunk.number), chunk.rows)))


def answers(plan: Plan) -> Iterator[Answers]:
    """Yield the answers to all chunks, in order. Needs `ray_here`.

    Raises:
        InputError, JobError: An engine cannot be opened, or the file changed meanwhile.
    """
    import pyarrow as pa
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = None  # the answers of a block are one object
    context.execution_options.preserve_order = True
    size = max(BLOCK_CHUNKS, math.ceil(len(plan.index) / MOST_BLOCKS))
    if len(plan.index) < BLOCK_CHUNKS * plan.workers:
        size = 1
    columns = {name: [getattr(chunk, name) for chunk in plan.index] for name in Chunk.__dataclass_fields__}
    table = pa.table(columns)
    actors: dict[str, Any] = {"compute": ray.data.ActorPoolStrategy(size=plan.workers), "num_cpus": plan.threads}
    actors |= {"max_task_retries": ATTEMPTS, "max_restarts": RESTARTS, "fn_constructor_args": (plan,)}
    if gpus := min(1.0, _gpus() / plan.workers):
        actors["num_gpus"] = gpus
    with ray.data.DataContext.current(context):
        blocks = ray.data.from_arrow([table.slice(at, size) for at in range(0, len(table), size)])
        found = blocks.map_batches(Actor, batch_size=1, batch_format="pyarrow", **actors)
        left = iter(plan.index)
        for row in rows_of(found.iter_rows()):
            if row["failure"]:
                raise (InputError if row["code"] == 2 else JobError)(row["failure"])
            chunk = next(left, None)
            if chunk is None or (chunk.begin, chunk.rows) != (row["begin"], row["rows"]):
                raise JobError("the input changed while it was read", got=plan.source, expected="a file that stays as it is")
            yield Answers(row["text"], row["rows"], row["errors"])
        if next(left, None) is not None:
            raise JobError("Ray ended before the last row was scored")


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _threads(cores: int, workers: int) -> int:
    """Each worker's share of the cores, within what the environment allows."""
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores // workers, int(allowed) if allowed.isdigit() else cores))
