"""Result files: JSON lines that grow in a file beside the output, which appears when it is complete.

Owns: the unfinished file, resuming it after a kill, standard output. Ignores: the content of rows.

    with Results.open(Path("out.jsonl"), resume=True) as results:     # out.jsonl.part grows, out.jsonl appears at the end
        rows = results.after(rows, lambda row: row.id)                # the rows that are still missing
        results.write(b'{"id": "1", …}' + end, rows=1, errors=0)

A killed job leaves `out.jsonl.part`; anything after its last complete line is cut off before it is resumed. Settings of the job
that its rows do not show are in `out.jsonl.part.json` until the output is complete, and `out.jsonl.part.lock` keeps others out.
"""

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from filelock import FileLock

from genre.errors import DiskError, InputError, JobError
from genre.files import check_writable, write_text
from genre.jobs.folders import hold

STANDARD = "-"
T = TypeVar("T")


class Results:
    """An output for answers.

    Attributes:
        rows, errors: Rows written, including an earlier run's, and how many of them are errors.
        earlier: Rows of an earlier run.
        digests: The digest of each reference in the earlier rows.
        complete: The output was complete already; there is nothing left to do.
    """

    def __init__(self, path: Path | None, stream: BinaryIO | None = None, *, owned: bool = False) -> None:
        self.path = path
        self.rows = 0
        self.errors = 0
        self.earlier = 0
        self.complete = False
        self.digests: dict[str, str] = {}
        self.part = None if path is None else path.with_name(path.name + ".part")
        self._settings_file = None if path is None else path.with_name(path.name + ".part.json")
        self._lock: FileLock | None = None
        self._file: Any = stream
        self._owned = owned
        self._last: Any = None
        self._made: list[Path] = []

    @classmethod
    def open(
        cls,
        target: str | Path,
        *,
        resume: bool = False,
        stream: BinaryIO | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> "Results":
        """Open an output.

        Args:
            target: A path, or `-` for standard output.
            resume: Continue after the last complete row of an unfinished output; begin if there is none.
            stream: Stands in for standard output.
            settings: Options by name, as JSON values, that an unfinished output must have been written with.

        Raises:
            InputError: The output, or an unfinished one, exists or has other settings; or the target cannot be an output.
            DiskError: It cannot be written.
        """
        if str(target) == STANDARD:
            if resume:
                raise InputError("--resume needs a file", got="--output -", expected="--output FILE")
            return cls(None, stream) if stream else _standard_output()
        results = cls(Path(target))
        results._begin(resume, settings)
        return results

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.part is None or self.complete:
            if self._owned:
                self._file.close()
            return
        if kind is None:
            os.replace(self.part, self.path or "")
            self._forget_settings()
        elif self.rows == 0:
            self.part.unlink(missing_ok=True)
            self._forget_settings()
        self._close()
        if kind is not None and self.rows == 0:
            for folder in self._made:
                with contextlib.suppress(OSError):  # another process has put something there
                    folder.rmdir()

    def __str__(self) -> str:
        return "standard output" if self.path is None else str(self.path)

    @property
    def kept(self) -> str | None:
        """A message on what an unfinished job has written, and how to resume it; None if there is nothing to resume."""
        if self.part is None or self.rows == 0 or self.complete:
            return None
        return f"{self.rows} rows are in {self.part}; --resume continues"

    def after(self, rows: Iterable[T], id_of: Callable[[T], Any]) -> Iterator[T]:
        """Skip the rows that the output has already; none are left if it is complete.

        Args:
            rows: All rows, in order.
            id_of: Returns the id of a row's answer.

        Raises:
            InputError: The output is of other rows.
        """
        rest = iter(rows)
        head = itertools.islice(rest, self.rows)
        last, number = None, 0
        for number, last in enumerate(head, 1):  # noqa: B007
            pass
        if number < self.rows:
            raise self._foreign(f"{number} rows", f"{self.rows}" if self.complete else f"at least {self.rows}")
        if last is not None and id_of(last) != self._last:
            raise self._foreign(f"id {id_of(last)!r} in row {number}", f"id {self._last!r}")
        if self.complete and next(rest, None) is not None:
            raise self._foreign(f"more than {self.rows} rows", f"{self.rows}")
        return rest

    def write(self, text: bytes, *, rows: int, errors: int) -> None:
        """Write complete lines.

        Raises:
            DiskError: The disk is full; earlier rows stay.
            JobError: The reader of standard output is gone.
        """
        try:
            left = memoryview(text)
            while left:
                left = left[self._file.write(left) :]
        except BrokenPipeError:
            raise JobError("standard output was closed by its reader", got=f"{self.rows} rows written") from None
        except OSError as error:
            todo = self.kept or "free some space"
            raise DiskError(f"{self} cannot be written", got=error.strerror or str(error), todo=todo) from None
        self.rows += rows
        self.errors += errors

    def _foreign(self, got: str, expected: str) -> InputError:
        which = f"output {self.path}" if self.complete else f"unfinished output {self.part}"
        todo = "remove it to start over, or name another output"
        return InputError(f"the {which} is of another input", got=got, expected=expected, todo=todo)

    def _begin(self, resume: bool, settings: Mapping[str, Any] | None) -> None:
        assert self.path is not None and self.part is not None
        _check_place(self.path)
        if self.path.exists():
            if not resume:
                raise InputError("the file exists", got=self.path, expected="a new file", todo="name another with --output")
            with self.path.open("rb") as file:
                self._count(file)
            self.complete = True
            self.earlier = self.rows
            self._forget_settings()  # of a job that was killed just after its output had appeared
            return
        if self.part.exists() and os.path.getsize(self.part) and not resume:
            what, todo = "there is an unfinished output", "continue with --resume, remove it, or name another with --output"
            raise InputError(what, got=self.part, expected="a new file", todo=todo)
        try:
            self._made = [folder for folder in self.path.absolute().parents if not folder.exists()]
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiskError(f"{self} cannot be written", got=error.strerror, todo="choose another folder") from None
        busy = InputError("another process writes the output", got=self.part, todo="wait for it, or name another")
        self._lock = hold(self.part.with_name(self.part.name + ".lock"), busy)
        try:
            self._file = self.part.open("ab+", buffering=0)
            with self.part.open("rb") as file:
                size = self._count(file)
            self._keep_settings(settings)
            self._file.truncate(size)
        except BaseException as error:  # Ctrl-C too
            if self.part.exists() and os.path.getsize(self.part) == 0:
                self.part.unlink()
                self._forget_settings()
            self._close()
            if isinstance(error, OSError):
                raise DiskError(f"{self} cannot be written", got=error.strerror, todo="choose another folder") from None
            raise
        self.earlier = self.rows

    def _close(self) -> None:
        """Close the unfinished file and release its lock, whose file is removed first, while no other process can hold it."""
        if self._file is not None:
            self._file.close()
        if self._lock is not None:
            Path(self._lock.lock_file).unlink(missing_ok=True)
            self._lock.release()

    def _keep_settings(self, settings: Mapping[str, Any] | None) -> None:
        """Write the settings of a new output; check those of a resumed one."""
        assert self._settings_file is not None
        if not self.rows:
            self._forget_settings()
            if settings is not None:
                write_text(self._settings_file, json.dumps(settings, ensure_ascii=False))
            return
        todo = f"use the same, or remove {self.part} to start over"
        kept = self._kept_settings()
        if (kept is None) != (settings is None):
            got = "one without settings" if kept is None else f"one with {', '.join(kept)}"
            raise InputError(f"{self.part} was written by another command", got=got, todo=f"remove {self.part} to start over")
        for name, value in (settings or {}).items():
            if (earlier := (kept or {}).get(name)) != value:
                got, expected = (f"{name} {json.dumps(one, ensure_ascii=False)}" for one in (value, earlier))
                raise InputError(f"{self.part} was written with other settings", got=got, expected=expected, todo=todo)

    def _kept_settings(self) -> dict[str, Any] | None:
        assert self._settings_file is not None
        try:
            kept = json.loads(self._settings_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return kept if isinstance(kept, dict) else None

    def _forget_settings(self) -> None:
        if self._settings_file is not None:
            self._settings_file.unlink(missing_ok=True)

    def _count(self, file: BinaryIO) -> int:
        """Read the earlier rows; return the size of the complete lines in bytes."""
        size = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                number, digest, adapter = row["id"], row.get("digest"), row.get("adapter")
                if digest and not (isinstance(digest, str) and isinstance(adapter, str)):
                    raise TypeError("not a reference")
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
                got = f"{file.name}, line {self.rows + 1}"
                what, todo = "the existing output is not a result file", "name another with --output"
                raise InputError(what, got=got, expected="rows of results", todo=todo) from None
            size += len(line)
            self._last = number
            self.rows += 1
            self.errors += "error" in row
            if digest:
                self.digests[adapter] = digest
        return size


def _standard_output() -> Results:
    """Standard output as it is now, whatever happens to the descriptor later; unbuffered where it has one."""
    try:
        return Results(None, os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0), owned=True)
    except OSError:
        return Results(None, sys.stdout.buffer)


def _check_place(path: Path) -> None:
    """Refuse a path that cannot be an output, before anything is loaded."""
    if path.is_dir():
        raise InputError("--output is a folder", got=path, expected="a file to write")
    if path.suffix in (".gz", ".zip", ".zst", ".bz2", ".xz"):
        raise InputError("--output is not compressed", got=path, expected="a .jsonl file", todo="or pipe --output - into gzip")
    if path.suffix.lower() in (".xlsx", ".xls", ".ods", ".pkl", ".pickle", ".feather"):
        todo = "name a .jsonl file, or of genre recommend --all-users a .parquet or .csv file"
        raise InputError("--output is of a kind that is not written", got=path.suffix, expected=".jsonl", todo=todo)
    check_writable(path, "--output")
