"""Request files: the lines of a plain file, of gzip or of standard input, in chunks of bounded size.

Owns: which bytes are a row, the error row of a line that cannot be read. Ignores: engines, answers.

    with RequestFile("requests.jsonl.gz") as file:
        for chunk in chunks(file.lines()):
            rows = [read_row(line) for line in chunk]       # requests, and error rows where a line cannot be read

A row is a line that is not blank. Memory is bounded by the longest line and the size of a chunk, whatever the file's size.
"""

import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeVar

from genre.errors import InputError, RequestError

if TYPE_CHECKING:
    from genre.engine.requests import Request

STANDARD = "-"
LINE_BYTES = 64 * 2**20
CHUNK_ROWS, LARGEST_CHUNK = 64, 512
CHUNK_BYTES = 8 * 2**20

T = TypeVar("T")
Row: TypeAlias = "Request | dict[str, Any]"
"""A request, or the error row of a line that cannot be read."""


@dataclass(frozen=True)
class Line:
    """A line that is not blank.

    Attributes:
        number: Its line number, from 1; blank lines count.
        begin: Its first byte's offset in the (decompressed) file.
        raw: Its bytes; only the first `LINE_BYTES` + 1 if it is too long.
        share: The share of the file up to its end, 0 to 1, approximate for gzip; None if the file's size is unknown.
    """

    number: int
    begin: int
    raw: bytes
    share: float | None = None


class RequestFile:
    """An open request file.

    Args:
        source: A path, or `-` for standard input. Content that is gzip is decompressed, whatever its name.

    Attributes:
        compressed: True for gzip.

    Raises:
        InputError: There is no such file, or it cannot be read.
    """

    def __init__(self, source: str | Path) -> None:
        self.name = "standard input" if str(source) == STANDARD else str(source)
        if str(source) != STANDARD:
            _check_there(Path(source))
        self._raw: Any = sys.stdin.buffer if str(source) == STANDARD else Path(source).open("rb")  # noqa: SIM115
        regular = os.path.isfile(source) and str(source) != STANDARD
        self._size = os.path.getsize(source) if regular else 0
        if not hasattr(self._raw, "peek"):
            self._raw = io.BufferedReader(self._raw)
        self.compressed = self._raw.peek(2)[:2] == b"\x1f\x8b"
        self._file: BinaryIO = gzip.GzipFile(fileobj=self._raw) if self.compressed else self._raw  # type: ignore[assignment]

    def __enter__(self) -> "RequestFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._raw is not sys.stdin.buffer:
            self._file.close()
            self._raw.close()

    def need_plain(self) -> None:
        """Check that several processes can each read a part of it.

        Raises:
            InputError: It is gzip, standard input or a pipe.
        """
        if self.compressed or not self._size:
            kind = "gzip" if self.compressed else "a stream"
            what, todo = "each worker reads a part of the input", "decompress or save it first, or use --engine local"
            raise InputError(what, got=f"{self.name}, {kind}", expected="a plain file", todo=todo)

    def lines(self, begin: int = 0, number: int = 1) -> Iterator[Line]:
        """Yield the lines that are not blank, in a plain file from a byte on, at which line `number` begins.

        Raises:
            InputError: The file is damaged; the lines before the damage have been yielded.
        """
        if begin:
            self._file.seek(begin)
        while True:
            raw = self._read_line(number)
            if not raw:
                return
            size = len(raw)
            while size > LINE_BYTES and not raw.endswith(b"\n"):
                rest = self._read_line(number)
                size += len(rest)
                if not rest or rest.endswith(b"\n"):
                    break
            if raw.strip():
                yield Line(number, begin, raw, self._share())
            begin, number = begin + size, number + 1

    def _share(self) -> float | None:
        return min(self._raw.tell() / self._size, 1.0) if self._size else None

    def _read_line(self, number: int) -> bytes:
        try:
            return self._file.readline(LINE_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            what, todo = f"the input is damaged in line {number}", "fetch or compress the file again"
            raise InputError(what, got=f"{self.name}: {error}", expected="complete gzip", todo=todo) from None


def chunks(lines: Iterable[T], *, grow: bool = False, done: int = 0) -> Iterator[list[T]]:
    """Lists of `CHUNK_ROWS` lines or requests, fewer where lines hold more than `CHUNK_BYTES`.

    Lines before damage are yielded first. With `grow` each list is twice as long as the one before, up to `LARGEST_CHUNK`: rows
    that are scored together are padded to those of about their length. After so many rows `done` that are not among the lines,
    the lists are those that would follow them: a resumed job scores the same rows together.
    """
    chunk: list[T] = []
    sizes, size = _chunk_sizes(grow, done), 0
    rows = next(sizes)
    try:
        for line in lines:
            chunk.append(line)
            size += len(line.raw) if isinstance(line, Line) else 0
            if len(chunk) == rows or size >= CHUNK_BYTES:
                yield chunk
                chunk = []
                rows, size = next(sizes), 0
    except InputError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def _chunk_sizes(grow: bool, done: int) -> Iterator[int]:
    """Rows of each list after so many rows, without end."""
    rows = CHUNK_ROWS
    while True:
        if done < rows:
            yield rows - done
        done = max(0, done - rows)
        if grow:
            rows = min(2 * rows, max(rows, LARGEST_CHUNK))


def read_row(line: Line) -> Row:
    """Read the request of a line, or make its error row, with the id and adapter where it has them."""
    from genre.engine.requests import Request, refused

    row: Any = None
    try:
        if len(line.raw) > LINE_BYTES:
            raise RequestError("too long", got="more bytes", expected=f"at most {LINE_BYTES:,}")
        row = json.loads(line.raw.decode("utf-8-sig" if line.number == 1 else "utf-8"))
        return Request.from_json(row)
    except RequestError as error:
        return refused(row, f"line {line.number}: {error}").to_json()
    except UnicodeDecodeError as error:
        return {"id": None, "error": f"line {line.number} is not UTF-8: {error.reason}"}
    except (ValueError, RecursionError):
        return {"id": None, "error": f"line {line.number} is not JSON: got {_shown(line.raw)}"}


def _shown(raw: bytes) -> str:
    """The first characters of a line, in a message."""
    text = raw.decode("utf-8", errors="replace").strip()
    return repr(text[:40] + ("…" if len(text) > 40 else "")) if text.isprintable() else "bytes that are no text"


def is_object(line: Line) -> bool:
    """Return whether a line holds a JSON object, be it a request or not."""
    try:
        return isinstance(json.loads(line.raw.decode("utf-8-sig" if line.number == 1 else "utf-8")), dict)
    except (ValueError, RecursionError):
        return False


def _check_there(path: Path) -> None:
    if path.is_dir():
        raise InputError("the input is a folder", got=path, expected="JSON lines of requests")
    if not path.exists():
        raise InputError("no such input file", got=path, expected="JSON lines of requests, or - for standard input")
    if not os.access(path, os.R_OK):
        raise InputError("the input cannot be read", got=path, expected="a file that you may read")
