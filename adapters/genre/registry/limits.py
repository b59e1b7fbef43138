"""The sizes that the registry accepts, checked before anything is allocated.

Owns: the limits, opening plain files and parsing JSON under them. Ignores: what the JSON means.
"""

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from genre.errors import IntegrityError

MAX_FILES = 64
MAX_FILE_BYTES = 16 * 2**30
MAX_TOTAL_BYTES = 32 * 2**30
MAX_MANIFEST_BYTES = 4 * 2**20
MAX_CONFIG_BYTES = 4 * 2**20
MAX_ENTRY_BYTES = 2**20
MAX_JSON_BYTES = 256 * 2**20
MAX_TEXT_BYTES = 4 * 2**20
MAX_YAML_BYTES = 256 * 2**10
MAX_JSON_DEPTH = 24
MAX_JSON_NODES = 2**21
MAX_JSON_CONTAINERS = 2**19
"""Lists and objects in JSON at most: they take many times as long as other values."""
BYTES_A_NODE = 16
"""A kind of file of so many bytes at most has one value for each of these at most."""
MAX_COLUMNS = 4096
MAX_MOVES = 100_000
MAX_HEADER_BYTES = 32 * 2**20
MAX_TENSORS = 100_000
MAX_TENSOR_NAME = 512
MAX_DIMENSIONS = 4
MAX_RANK = 1024
MAX_PIECES = 1000
HOLLOW_BYTES = 64 * 2**20
"""Larger files must be written for the most part: a file of holes takes no room and hours to hash."""


def open_plain(path: Path) -> BufferedReader:
    """Open a file that is neither a link nor a pipe nor a device, none of which is waited for.

    Raises:
        IntegrityError: It is one of these.
        OSError: It cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise IntegrityError(f"{path.name} is not a plain file", expected="no link, no pipe, no device") from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise IntegrityError(f"{path.name} is not a plain file", expected="no link, no folder, no pipe, no device")
    return open(descriptor, "rb")


def check_written(path: Path, state: os.stat_result) -> None:
    """Refuse a large file that is mostly holes, which would be read as zeros for hours; IntegrityError then."""
    size = state.st_size
    if size <= HOLLOW_BYTES or state.st_blocks * 512 >= size // 8:
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        written = _written(descriptor, size)
    finally:
        os.close(descriptor)
    if written < size // 8:
        got = f"{size:,} bytes, of which {written:,} were written"
        raise IntegrityError(f"{path.name} is mostly holes", got=got, expected="a file that was written")


def _written(descriptor: int, size: int) -> int:
    """Bytes of a file that are no hole; of more than a few pieces all that is left counts."""
    written, at = 0, 0
    for _ in range(MAX_PIECES):
        try:
            begin = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError:  # no data from here on, or a disk that does not tell
            return written
        at = os.lseek(descriptor, begin, os.SEEK_HOLE)
        written += at - begin
        if at >= size:
            return written
    return written + size - at


def parse_json(data: bytes, what: str, *, limit: int = MAX_JSON_BYTES) -> Any:
    """Parse JSON that may come from anywhere; `what` is its name in a message.

    Raises:
        IntegrityError: More bytes than `limit`, too many values, too deep, not UTF-8, not JSON, a key twice, or a number that is
            not finite.
    """
    if len(data) > limit:
        raise IntegrityError(f"{what} is too long", got=f"{len(data):,} bytes", expected=f"at most {limit:,}")
    most = min(MAX_JSON_NODES, limit // BYTES_A_NODE)
    if len(data) > min(most, MAX_JSON_CONTAINERS):  # a value takes a byte at least, and some sixty in memory
        containers = data.count(b"[") + data.count(b"{")
        for unit, found, bound in (
            ("values", containers + data.count(b","), most),
            ("lists and objects", containers, MAX_JSON_CONTAINERS),
        ):
            if found > bound:
                raise IntegrityError(f"{what} has too many {unit}", got=f"about {found:,}", expected=f"at most {bound:,}")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        if data.count(b"[") + data.count(b"{") > MAX_JSON_DEPTH:
            _check_depth(value, MAX_JSON_DEPTH)
    except RecursionError:
        raise IntegrityError(f"{what} is nested too deep", expected=f"at most {MAX_JSON_DEPTH} levels") from None
    except ValueError as error:  # also UnicodeDecodeError and JSONDecodeError
        raise IntegrityError(f"{what} is not JSON", got=str(error)[:200], todo="it is truncated or damaged") from None
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has a key twice")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _check_depth(value: Any, left: int) -> None:
    """Raise RecursionError if containers are nested in more than `left` others."""
    for inner in value.values() if isinstance(value, dict) else value:
        if isinstance(inner, dict | list):
            if not left:
                raise RecursionError
            _check_depth(inner, left - 1)
