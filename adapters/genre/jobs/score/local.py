"""Requests through an engine: answered chunk by chunk, written as they are done.

Owns: the way from rows to lines of results, which engine answers them. Ignores: where requests come from, where results go.

    engine = open_engine("registry", ["like@production"], log)
    with Results.open(Path("out.jsonl")) as results:
        write_all(results, map(Scorer(engine).answer, batched(requests, CHUNK_ROWS)), Reporter.for_terminal(), total=943)
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from genre.data.interactions import Interactions
from genre.errors import GenreError, InputError, InterruptedJobError, NotFoundError, RegistryError
from genre.jobs.inputs import load_base, open_data
from genre.jobs.score.requests import Line, Row, read_row
from genre.jobs.score.results import Results
from genre.progress import Reporter
from genre.registry import Registry

T = TypeVar("T")
LOOK_ROWS = 1_000
LOOK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Answers:
    """The answers to some rows, as whole lines in their order; `share` of the input ends with them, if that is known."""

    text: bytes
    rows: int
    errors: int
    share: float | None = None


class Scorer:
    """Answers rows with one engine.

    Args:
        engine: The engine.
        meant: What references are to mean: exact references. Others mean what they mean at their first use.
    """

    def __init__(self, engine: Any, meant: Mapping[str, str] | None = None) -> None:
        self.engine = engine
        self._meant = dict(meant or {})
        self._lost: dict[str, str] = {}

    def answer(self, rows: Iterable[Row]) -> Answers:
        """One line for each row: an answer, or an error of its own."""
        rows = list(rows)
        for ref in {row.adapter for row in rows if not isinstance(row, dict)} & self._meant.keys():
            exact = self._meant.pop(ref)
            try:
                self.engine.swap(ref, exact)
            except GenreError as error:  # the alias may name another version by now, which would answer in its place
                self._lost[ref] = str(error)
        good = [row for row in rows if not isinstance(row, dict) and row.adapter not in self._lost]
        answers = iter(self.engine.score(good))
        found = [self._refused(row) or next(answers).to_json() for row in rows]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        return Answers(text.encode("utf-8", "backslashreplace"), len(found), sum("error" in row for row in found))

    def _refused(self, row: Row) -> dict[str, Any] | None:
        if isinstance(row, dict):
            return row
        lost = self._lost.get(row.adapter)
        return None if lost is None else {"id": row.id, "adapter": row.adapter, "error": lost}

    def answer_lines(self, chunk: Sequence[Line]) -> Answers:
        """The same for the lines of a request file."""
        return replace(self.answer(map(read_row, chunk)), share=chunk[-1].share)


def open_users(data: str | None) -> Interactions | None:
    """The log in which a `user_id` is looked up; None without one, and for labelled texts, which come with their rows.

    Raises:
        DataError: There is no such data set.
    """
    log = None if data is None else open_data(data)
    return log if isinstance(log, Interactions) else None


def open_engine(
    registry: str | Path, refs: Iterable[str], log: Interactions | None, *, base: str | None = None, lanes: int = 16
) -> Any:
    """An engine on the base of the first reference that means something; the others fail in their own rows.

    Raises:
        NotFoundError: No reference means anything.
        BaseModelError, ManifestError: That base cannot be found, or is another one now.
    """
    from genre.engine import Engine

    store = Registry(registry)
    return Engine(load_base(first_known(store, refs), base), store, lanes=lanes, data=log)


def first_known(store: Registry, refs: Iterable[str]) -> Any:
    """The manifest of the first reference that means something.

    Raises:
        NotFoundError: None does.
    """
    errors: list[RegistryError] = []
    for ref in refs:
        try:
            return store.resolve(ref).manifest
        except RegistryError as error:
            errors.append(error)
    raise errors[0]


def look_ahead(lines: Iterator[Line], name: str) -> tuple[list[str], Iterator[Line]]:
    """The references of the first rows, and all lines again.

    Args:
        lines: Of a request file.
        name: The file's, for the message.

    Raises:
        InputError: None of the first 1,000 rows (fewer if they are very long) is a request, or the file is damaged among them.
    """
    head: list[Line] = []
    size = 0
    refs: dict[str, None] = {}
    first: Row | None = None
    for line in lines:  # not in chunks: what they hold back when they meet damage would be lost here
        head.append(line)
        size += len(line.raw)
        row = read_row(line)
        if not isinstance(row, dict):
            refs[row.adapter] = None
        first = first or row
        if len(head) >= LOOK_ROWS or size > LOOK_BYTES:
            break
    if not refs:
        raise InputError(
            "no row of the input is a request", got=f"{name}: {first['error'] if isinstance(first, dict) else 'no rows'}",
            expected='{"adapter": …, "history": […], "k": 10} or "texts"',
        )  # fmt: skip
    return list(refs), chain(head, lines)


def exact_refs(store: Registry, results: Results) -> dict[str, str]:
    """What the references of an earlier run's rows mean in this one: the same versions.

    Raises:
        NotFoundError: One of them has left the registry.
    """
    exact = {ref: f"{ref.partition('@')[0].partition(':')[0]}:{digest[:12]}" for ref, digest in results.meant.items()}
    for ref in exact.values():
        try:
            store.resolve(ref)
        except NotFoundError as error:
            todo = f"remove {results.part} to begin anew"
            raise NotFoundError(f"the unfinished output was written with {ref}", got=str(error), todo=todo) from None
    return exact


def row_id(line: Line) -> Any:
    """The id that a line's answer has."""
    row = read_row(line)
    return row["id"] if isinstance(row, dict) else row.id


def write_all(
    results: Results,
    answers: Iterable[Answers],
    reporter: Reporter,
    *,
    total: int | None = None,
) -> None:
    """Write answers as they come; a job that ends early says what it leaves.

    Args:
        results: Where they go.
        answers: In the order of the rows.
        reporter: Where progress goes.
        total: Rows in all, those of an earlier run too, if known.

    Raises:
        InterruptedJobError: Ctrl-C.
        GenreError: What the answers or the output raised.
    """
    if results.earlier:
        reporter.line(f"going on after {results.earlier} rows")
    each = Answers(b"", 0, 0)
    try:
        with reporter.bar("scoring", total, share=lambda: each.share, done=results.earlier) as bar:
            for each in answers:
                results.write(each.text, rows=each.rows, errors=each.errors)
                bar.advance(each.rows)
    except KeyboardInterrupt:
        raise InterruptedJobError("interrupted", todo=results.kept) from None
    except GenreError as error:
        if results.kept and results.kept not in str(error):
            reporter.line(results.kept)
        raise


def batched(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size` values."""
    values = iter(values)
    while block := list(islice(values, size)):
        yield block
