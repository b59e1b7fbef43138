"""Structured logs: one JSON object a line.

Owns: the form of a line, where lines go, uvicorn's own messages in the same form. Ignores: what is worth logging.

    {"time": "2026-03-01T12:00:00.123Z", "level": "info", "event": "call", "request_id": "5b0c…", "route": "/v1/score",
     "status": 200, "ms": 12.3, "rows": 3, "errors": 0, "digests": ["9f2c…"]}

JSON escapes line ends and everything beyond ASCII, so that nobody can write a line of their own through a value.
"""

import json
import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO


class Log:
    """Writes events to one stream; a closed or full stream never fails a request.

    Args:
        stream: Standard error by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self._lock = threading.Lock()

    def write(self, event: str, *, level: str = "info", **fields: Any) -> None:
        """Write one line; fields that are None are left out."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        given = {key: value for key, value in fields.items() if value is not None}
        line = json.dumps({"time": now, "level": level, "event": event, **given}, default=str)
        with self._lock:
            try:
                self.stream.write(line + "\n")
                self.stream.flush()
            except (OSError, ValueError):
                pass

    def failure(self, event: str, error: BaseException, **fields: Any) -> None:
        """Write one line with the origin of an unexpected error: files and lines, no values."""
        frames = traceback.extract_tb(error.__traceback__)[-6:]
        where = [f"{frame.name} ({frame.filename.rpartition('/')[2]}:{frame.lineno})" for frame in frames]
        self.write(event, level="error", error=f"{type(error).__name__}: {error}"[:500], where=where, **fields)


class _Handler(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log

    def emit(self, record: logging.LogRecord) -> None:
        self.log.write("server", level=record.levelname.lower(), message=record.getMessage()[:500])


@contextmanager
def server_messages(log: Log) -> Iterator[None]:
    """Write warnings and errors of uvicorn and asyncio to this log within the block."""
    handler, before = _Handler(log), []
    for logger in map(logging.getLogger, ("uvicorn.error", "asyncio")):
        before.append((logger, logger.level, logger.propagate))
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, level, propagate in before:
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
