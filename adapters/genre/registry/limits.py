"""The sizes that the registry accepts, checked before anything is allocated.

Owns: the limits, opening plain files and parsing JSON under them. Ignores: what the JSON means.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

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
MAX_HEADER_BYTES = 32 * 2**20
MAX_TENSORS = 100_000
MAX_TENSOR_NAME = 512
MAX_DIMENSIONS = 4
MAX_RANK = 1024


def open_plain(path: Path) -> BinaryIO:
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


def parse_json(data: bytes, what: str, *, limit: int = MAX_JSON_BYTES) -> Any:
    """Parse JSON that may come from anywhere; `what` is its name in a message.

    Raises:
        IntegrityError: More bytes than `limit`, too deep, not UTF-8, not JSON, a key twice, or a number that is not finite.
    """
    if len(data) > limit:
        raise IntegrityError(f"{what} is too long", got=f"{len(data):,} bytes", expected=f"at most {limit:,}")
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
