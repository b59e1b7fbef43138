"""A request file through engines in several processes: Ray Data over its chunks, one engine per actor.

Owns: the index of chunks, what an actor does, the order of answers. Ignores: how Ray runs, where results go.

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
from genre.jobs.score.local import Answers, Scorer, first_known, open_engine, open_users
from genre.jobs.score.ray_runtime import told
from genre.jobs.score.requests import Line, RequestFile, chunks, read_row
from genre.registry import Registry

ATTEMPTS, RESTARTS = 5, 10
"""Of a block, and of a worker: Ray would start one that is killed at every start again without end."""
BLOCK_CHUNKS, MOST_BLOCKS = 4, 5_000
_ADAPTER = re.compile(rb'"adapter"\s*:\s*"([^"\\]+)"')


@dataclass(frozen=True)
class Chunk:
    """Rows that stand together in a file.

    Attributes:
        begin: The byte at which they begin.
        number: The number of their first line.
        rows: How many they are.
    """

    begin: int
    number: int
    rows: int


@dataclass(frozen=True)
class Plan:
    """What an actor needs to know, and the chunks.

    Attributes:
        source: The request file.
        registry, data, base, lanes: As in `genre score`; paths are absolute.
        workers: Actors.
        threads: Of each actor.
        refs: References of the file's first rows, in order; the base is that of the first which means something.
        meant: What the file's references mean in this job, for every actor and attempt: exact references.
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
    meant: dict[str, str]
    index: tuple[Chunk, ...]

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
        meant: dict[str, str] | None = None,
    ) -> "Plan":
        """Look through a file once, for where its chunks begin and which references it has.

        Args:
            source: The file, plain.
            lines: Those of it that are to be scored.
            refs: References of its first rows.
            registry: As in `genre score`.
            data: As in `genre score`.
            base: As in `genre score`.
            lanes: As in `genre score`.
            workers: Actors; by default one per GPU, or else one for every two cores.
            meant: What references mean already, from an earlier run.

        Raises:
            NotFoundError: No reference means anything.
            InputError: Too many workers for this machine.
        """
        store, exact = Registry(registry), dict(meant or {})
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
            with contextlib.suppress(RegistryError):  # what means nothing fails in its own rows
                exact[ref] = store.resolve(ref).ref
        return cls(
            str(Path(source).absolute()), _absolute(registry), data and _absolute(data), base and _absolute(base), lanes,
            workers=number, threads=_threads(cores, number), refs=tuple(refs), meant=exact, index=tuple(index),
        )  # fmt: skip

    @property
    def cpus(self) -> int:
        """Threads of all actors."""
        return self.workers * self.threads

    @property
    def rows(self) -> int:
        """Rows in all chunks."""
        return sum(chunk.rows for chunk in self.index)


class Actor:
    """Scores chunks in a process of its own, with an engine that it opens for the first one."""

    def __init__(self, plan: Plan) -> None:
        import torch

        torch.set_num_threads(plan.threads)
        self.plan = plan
        self.scorer: Scorer | None = None

    def __call__(self, batch: Any) -> Any:
        """Answer a table of chunks; what keeps this engine from answering at all is told in `failure`."""
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
            engine = open_engine(plan.registry, plan.refs, open_users(plan.data), base=plan.base, lanes=plan.lanes)
            self.scorer = Scorer(engine, plan.meant)
        with RequestFile(plan.source) as file:
            return self.scorer.answer(map(read_row, islice(file.lines(chunk.begin, chunk.number), chunk.rows)))


def answers(plan: Plan) -> Iterator[Answers]:
    """The answers to all chunks, in order. Needs `ray_here`.

    Raises:
        InputError, JobError: An engine cannot be opened, or the file changed under the job.
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
    gpus = min(1.0, _gpus() / plan.workers)
    with ray.data.DataContext.current(context):
        found = ray.data.from_arrow([table.slice(at, size) for at in range(0, len(table), size)]).map_batches(
            Actor, batch_size=1, batch_format="pyarrow", compute=ray.data.ActorPoolStrategy(size=plan.workers),
            fn_constructor_args=(plan,), num_cpus=plan.threads, max_task_retries=ATTEMPTS, max_restarts=RESTARTS,
            **({"num_gpus": gpus} if gpus else {}),
        )  # fmt: skip
        left = iter(plan.index)
        for row in told(found.iter_rows()):
            if row["failure"]:
                raise (InputError if row["code"] == 2 else JobError)(row["failure"])
            chunk = next(left, None)
            if chunk is None or (chunk.begin, chunk.rows) != (row["begin"], row["rows"]):
                raise JobError("the input changed while it was read", got=plan.source, expected="a file that stays as it is")
            yield Answers(row["text"], row["rows"], row["errors"])
        if next(left, None) is not None:
            raise JobError("Ray ended before the last row was answered")


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _threads(cores: int, workers: int) -> int:
    """Each worker's share of the cores, within what the environment allows."""
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores // workers, int(allowed) if allowed.isdigit() else cores))


def _absolute(place: str) -> str:
    return str(Path(place).absolute()) if Path(place).exists() else place
