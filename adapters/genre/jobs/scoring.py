"""Files of requests through an engine: read, score block by block, write."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from genre.errors import RegistryError
from genre.files import atomic
from genre.interactions import Interactions
from genre.jobs.places import load_base
from genre.progress import Reporter
from genre.registry import Registry


def open_engine(
    registry: str | Path, refs: list[str], log: Interactions | None, *, base: str | None = None, lanes: int = 16
) -> Any:
    """An engine on the base of the first reference that means something; the others fail in their own rows.

    Raises:
        NotFoundError: No reference means anything.
        BaseModelError, ManifestError: That base cannot be found, or is another one now.
    """
    from genre.engine import Engine

    store = Registry(registry)
    errors: list[RegistryError] = []
    for ref in refs:
        try:
            manifest = store.resolve(ref).manifest
        except RegistryError as error:
            errors.append(error)
        else:
            return Engine(load_base(manifest, base), store, lanes=lanes, data=log)
    raise errors[0]


def read_requests(path: Path) -> list[Any]:
    """Requests of a JSON lines file; a row that cannot be read is its error row, with its id where it has one."""
    from genre.engine import Request
    from genre.errors import RequestError

    rows: list[Any] = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            row: Any = None
            try:
                row = json.loads(line)
                rows.append(Request.from_json(row))
            except RequestError as error:
                rows.append({"id": row.get("id") if isinstance(row, dict) else None, "error": f"line {number}: {error}"})
            except (ValueError, RecursionError) as error:
                rows.append({"id": None, "error": f"line {number} is no JSON: {error}"})
    return rows


def stream(
    engine: Any,
    requests: Iterable[Any],
    total: int,
    output: Path,
    *,
    at_once: int = 64,
    reporter: Reporter | None = None,
) -> tuple[int, int]:
    """Score requests block by block into a JSON lines file that appears when it is whole.

    Returns:
        Rows written, and how many of them are errors.
    """
    written = failed = 0
    say = reporter or Reporter.for_terminal()
    output.parent.mkdir(parents=True, exist_ok=True)
    with (
        atomic(output) as aside,
        aside.open("w", encoding="utf-8", errors="backslashreplace") as file,
        say.bar("scoring", total) as bar,
    ):
        for block in batched(requests, at_once):
            good = [request for request in block if not isinstance(request, dict)]
            answers = iter(engine.score(good))
            for request in block:
                row = request if isinstance(request, dict) else next(answers).to_json()
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                written, failed = written + 1, failed + ("error" in row)
            bar.advance(len(block))
    return written, failed


def batched(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of at most `size` values."""
    values = iter(values)
    while block := list(islice(values, size)):
        yield block
