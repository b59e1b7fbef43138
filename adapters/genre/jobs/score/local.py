"""Scoring with one engine: requests answered chunk by chunk, written as they are done.

Owns: the path from rows to lines of results, the engine for a set of references. Ignores: sources of requests, outputs.

    engine = open_engine("registry", ["like@production"], log)
    with Results.open(Path("out.jsonl")) as results:
        write_all(results, map(Scorer(engine).answer, chunks(requests, grow=True)), Reporter.for_terminal(), total=943)
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from genre.data.interactions import Interactions
from genre.errors import GenreError, InputError, InterruptedJobError, NotFoundError, RegistryError
from genre.jobs.loading import load_base, open_data
from genre.jobs.score.requests import Line, Row, is_object, read_row
from genre.jobs.score.results import Results
from genre.progress import Reporter
from genre.registry import Registry
from genre.registry.names import shorten

LOOK_ROWS = 1_000
LOOK_BYTES = 64 * 2**20
BATCH_TOKENS, CPU_BATCH_TOKENS = 8192, 4096
"""Padded tokens of a forward pass; of one on a CPU fewer, so that its tensors stay in the processor's cache."""


@dataclass(frozen=True)
class Answers:
    """The answers to some rows, as complete lines in order; `share` is the share of the input up to their end, if known."""

    text: bytes
    rows: int
    errors: int
    share: float | None = None


class Scorer:
    """Answers rows with one engine.

    Args:
        engine: The engine.
        exact: The version to use for a reference, as an exact reference. Others are resolved at their first use.
        exclude_seen: For requests that say nothing about it; None leaves it to their tasks.
    """

    def __init__(self, engine: Any, exact: Mapping[str, str] | None = None, *, exclude_seen: bool | None = None) -> None:
        self.engine = engine
        self.exclude_seen = exclude_seen
        self._exact = dict(exact or {})
        self._lost: dict[str, str] = {}

    def answer(self, rows: Iterable[Row]) -> Answers:
        """Answer each row in one line: a result, or an error of its own."""
        rows = [self._filled(row) for row in rows]
        for ref in {row.adapter for row in rows if not isinstance(row, dict)} & self._exact.keys():
            version = self._exact.pop(ref)
            try:
                self.engine.swap(ref, version)
            except GenreError as error:  # the alias may name another version by now, which must not answer instead
                self._lost[ref] = str(error)
        good = [row for row in rows if not isinstance(row, dict) and row.adapter not in self._lost]
        answers = iter(self.engine.score(good))
        found = [self._refused(row) or next(answers).to_json() for row in rows]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        return Answers(text.encode("utf-8", "backslashreplace"), len(found), sum("error" in row for row in found))

    def _filled(self, row: Row) -> Row:
        if self.exclude_seen is None or isinstance(row, dict) or row.exclude_seen is not None or row.texts is not None:
            return row
        return replace(row, exclude_seen=self.exclude_seen)

    def _refused(self, row: Row) -> dict[str, Any] | None:
        if isinstance(row, dict):
            return row
        lost = self._lost.get(row.adapter)
        return None if lost is None else {"id": row.id, "adapter": row.adapter, "error": lost}

    def answer_lines(self, chunk: Sequence[Line]) -> Answers:
        """Answer the lines of a request file."""
        return replace(self.answer(map(read_row, chunk)), share=chunk[-1].share)


def open_users(data: str | None) -> Interactions | None:
    """Open the log in which a `user_id` is looked up; None without one, and for labelled texts, which are in the rows.

    Raises:
        DataError: There is no such data set.
    """
    log = None if data is None else open_data(data)
    return log if isinstance(log, Interactions) else None


class LateEngine:
    """An engine that is opened for the first request, where the first rows of a file name no adapter.

    Args:
        open_for: Opens an engine for some references.
    """

    def __init__(self, open_for: Callable[[Sequence[str]], Any]) -> None:
        self._open_for = open_for
        self._engine: Any = None

    def score(self, requests: Sequence[Any]) -> list[Any]:
        """Score as `Engine.score` does; without a known reference each request gets an error response."""
        from genre.engine.requests import refused

        if self._engine is None and requests:
            try:
                self._engine = self._open_for([request.adapter for request in requests])
            except RegistryError as error:
                return [refused(request, error) for request in requests]
        return self._engine.score(requests) if requests else []

    def swap(self, name: str, ref: str) -> str:
        """Swap as `Engine.swap` does."""
        if self._engine is None:
            self._engine = self._open_for([ref])
        digest: str = self._engine.swap(name, ref)
        return digest


def engine_for(
    registry: str | Path,
    refs: Sequence[str],
    log: Interactions | None,
    *,
    base: str | None = None,
    lanes: int = 16,
    precision: str = "auto",
) -> Any:
    """Open an engine for a request file, at its first request if `refs`, the references of its first rows, are none.

    Raises as `open_engine` does.
    """
    open_for = partial(open_engine, registry, log=log, base=base, lanes=lanes, precision=precision)
    return open_for(refs) if refs else LateEngine(open_for)


def open_engine(
    registry: str | Path,
    refs: Iterable[str],
    log: Interactions | None,
    *,
    base: str | None = None,
    lanes: int = 16,
    precision: str = "auto",
) -> Any:
    """Open an engine on the base of the first reference that can be scored; the others fail in their own rows.

    The precision is as `load_base` takes it.

    Raises:
        NotFoundError: None of them exists.
        BaseModelError, ManifestError: That base cannot be found, or has changed.
    """
    from genre.engine import Engine

    store = Registry(registry)
    loaded = load_base(first_known(store, refs), base, precision=precision)
    batch_tokens = CPU_BATCH_TOKENS if loaded.device.type == "cpu" else BATCH_TOKENS
    return Engine(loaded, store, lanes=lanes, data=log, batch_tokens=batch_tokens)


def first_known(store: Registry, refs: Iterable[str]) -> Any:
    """The manifest of the first reference that exists and has tasks.

    Raises:
        NotFoundError: None exists.
        InputError: None of those that do has tasks.
    """
    errors: list[RegistryError] = []
    without: list[str] = []
    for ref in refs:
        try:
            manifest = store.resolve(ref).manifest
        except RegistryError as error:
            errors.append(error)
            continue
        if manifest.answers:
            return manifest
        without.append(ref)
    if without:
        raise InputError("no tasks to score", got=", ".join(without[:8]), expected="an adapter that genre train published")
    raise errors[0]


def look_ahead(lines: Iterator[Line], name: str) -> tuple[list[str], Iterator[Line]]:
    """Collect the references of the first rows, none where each of them is wrong; return them, and all lines again.

    Args:
        lines: The lines of a request file.
        name: The file's name, for the message.

    Raises:
        InputError: None of the first 1,000 rows (fewer if they are very long) is a JSON object, or the file is damaged among
            them.
    """
    head: list[Line] = []
    size = 0
    refs: dict[str, None] = {}
    first: Row | None = None
    objects = False
    for line in lines:  # not in chunks: what they hold back when they meet damage would be lost here
        head.append(line)
        size += len(line.raw)
        row = read_row(line)
        if not isinstance(row, dict):
            refs[row.adapter] = None
        objects = objects or bool(refs) or is_object(line)
        first = first or row
        if len(head) >= LOOK_ROWS or size > LOOK_BYTES:
            break
    if not objects:
        got = f"{name}: {first['error'] if isinstance(first, dict) else 'no rows'}"
        expected = '{"adapter": …, "history": […], "k": 10} or "texts"'
        raise InputError("no row of the input is a request", got=got, expected=expected)
    return list(refs), chain(head, lines)


def exact_refs(store: Registry, results: Results) -> dict[str, str]:
    """The versions that an earlier run used for its references, as exact references.

    Raises:
        NotFoundError: One of them is no longer in the registry.
    """
    exact = {ref: f"{ref.partition('@')[0].partition(':')[0]}:{digest}" for ref, digest in results.digests.items()}
    for ref in exact.values():
        try:
            store.resolve(ref)
        except NotFoundError as error:
            name, _, digest = ref.partition(":")
            todo = f"remove {results.part} to start over"
            what = f"the unfinished output was written with {name}:{shorten(digest)}"
            raise NotFoundError(what, got=str(error), todo=todo) from None
    return exact


def row_id(line: Line) -> Any:
    """The id of a line's answer."""
    row = read_row(line)
    return row["id"] if isinstance(row, dict) else row.id


def write_all(results: Results, answers: Iterable[Answers], reporter: Reporter, *, total: int | None = None) -> None:
    """Write answers as they come; report what is kept if the job ends early.

    Args:
        results: The output.
        answers: In the order of the rows.
        reporter: Receives progress.
        total: Rows in all, including an earlier run's, if known.

    Raises:
        InterruptedJobError: Ctrl-C.
        GenreError: Raised by the answers or the output.
    """
    if results.earlier:
        reporter.line(f"continuing after {results.earlier} rows")
    each = Answers(b"", 0, 0)
    try:
        with reporter.bar("scoring", total, share=lambda: each.share, done=results.earlier) as bar:
            for each in answers:
                results.write(each.text, rows=each.rows, errors=each.errors)
                bar.advance(each.rows)
    except KeyboardInterrupt:
        raise InterruptedJobError("interrupted", todo=results.kept or "no row is written; the same command starts over") from None
    except GenreError as error:
        if results.kept and results.kept not in str(error):
            reporter.line(results.kept)
        raise
