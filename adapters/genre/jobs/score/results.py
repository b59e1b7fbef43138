"""Files of results: JSON lines that grow aside and appear when they are whole.

Owns: the unfinished file, what goes on after a kill, standard output. Ignores: what the rows say.

    with Results.open(Path("out.jsonl"), resume=True) as results:     # out.jsonl.part grows, out.jsonl appears at the end
        rows = results.after(rows, lambda row: row.id)                # those that are not there yet
        results.write(b'{"id": "1", …}' + end, rows=1, errors=0)

A killed job leaves `out.jsonl.part`; what follows its last whole line is cut away before it goes on. Where a job has settings
that its rows do not show, they stand in `out.jsonl.part.json` until the output is whole.
"""

import contextlib
import fcntl
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from genre.errors import DiskError, InputError, JobError
from genre.files import atomic, check_writable

STANDARD = "-"
T = TypeVar("T")


class Results:
    """Where answers go.

    Attributes:
        rows, errors: Rows that are written, those of an earlier run too, and how many of them are errors.
        earlier: Rows of an earlier run.
        meant: What each reference meant in the earlier rows: a digest.
        whole: The output was whole already; there is nothing left to do.
    """

    def __init__(self, path: Path | None, stream: BinaryIO | None = None, *, owned: bool = False) -> None:
        self.path, self.rows, self.errors, self.whole = path, 0, 0, False
        self.meant: dict[str, str] = {}
        self.part = None if path is None else path.with_name(path.name + ".part")
        self._settings_file = None if path is None else path.with_name(path.name + ".part.json")
        self._file: Any = stream
        self._owned = owned
        self._last: Any = None
        self.earlier = 0
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
            resume: Go on after the last whole row of an unfinished output; begin where there is none.
            stream: What standard output is.
            settings: Options by name, with values as JSON has them, that an unfinished output must have been written with.

        Raises:
            InputError: The output, or an unfinished one, is there already or is of other settings; or it cannot be one.
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
        if self.part is None or self.whole:
            if self._owned:
                self._file.close()
            return
        if kind is None:
            os.replace(self.part, self.path or "")
            self._forget_settings()
        elif self.rows == 0:
            self.part.unlink(missing_ok=True)
            self._forget_settings()
            for folder in self._made:
                with contextlib.suppress(OSError):  # another process has put something there
                    folder.rmdir()
        self._file.close()

    def __str__(self) -> str:
        return "standard output" if self.path is None else str(self.path)

    @property
    def kept(self) -> str | None:
        """What an unfinished job has done, and how to go on; None if nothing is left of it."""
        if self.part is None or self.rows == 0 or self.whole:
            return None
        return f"{self.rows} rows are in {self.part}; go on with --resume"

    def after(self, rows: Iterable[T], id_of: Callable[[T], Any]) -> Iterator[T]:
        """The rows that the output does not have yet; none if it is whole.

        Args:
            rows: All rows, in order.
            id_of: The id that a row's answer has.

        Raises:
            InputError: The output is of other rows.
        """
        rest = iter(rows)
        head = itertools.islice(rest, self.rows)
        last, number = None, 0
        for number, last in enumerate(head, 1):  # noqa: B007
            pass
        if number < self.rows:
            raise self._foreign(f"{number} rows", f"{self.rows}" if self.whole else f"at least {self.rows}")
        if last is not None and id_of(last) != self._last:
            raise self._foreign(f"id {id_of(last)!r} in row {number}", f"id {self._last!r}")
        if self.whole and next(rest, None) is not None:
            raise self._foreign(f"more than {self.rows} rows", f"{self.rows}")
        return rest

    def write(self, text: bytes, *, rows: int, errors: int) -> None:
        """Write whole lines.

        Raises:
            DiskError: The disk takes no more; what was written before stays.
            JobError: Nobody reads standard output any more.
        """
        try:
            left = memoryview(text)
            while left:
                left = left[self._file.write(left) :]
        except BrokenPipeError:
            raise JobError("nobody reads standard output any more", got=f"{self.rows} rows written") from None
        except OSError as error:
            raise DiskError(
                f"{self} cannot be written", got=error.strerror or str(error), todo=self.kept or "free some space"
            ) from None
        self.rows, self.errors = self.rows + rows, self.errors + errors

    def _foreign(self, got: str, expected: str) -> InputError:
        which = f"output {self.path}" if self.whole else f"unfinished output {self.part}"
        todo = "remove it to begin anew, or name another output"
        return InputError(f"the {which} is of another input", got=got, expected=expected, todo=todo)

    def _begin(self, resume: bool, settings: Mapping[str, Any] | None) -> None:
        assert self.path is not None and self.part is not None
        _check_place(self.path)
        if self.path.exists():
            if not resume:
                raise InputError("the file exists", got=self.path, expected="a new file", todo="name another with --output")
            with self.path.open("rb") as file:
                self._count(file)
            self.whole, self.earlier = True, self.rows
            self._forget_settings()  # of a job that was killed just after its output had appeared
            return
        if self.part.exists() and not resume:
            raise InputError(
                "an unfinished output is there", got=self.part, expected="a new file",
                todo="go on with --resume, remove it, or name another with --output",
            )  # fmt: skip
        try:
            self._made = [folder for folder in self.path.absolute().parents if not folder.exists()]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.part.open("ab+", buffering=0)
        except OSError as error:
            raise DiskError(f"{self} cannot be written", got=error.strerror, todo="choose another place") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with self.part.open("rb") as file:
                size = self._count(file)
            self._keep_settings(settings)
            self._file.truncate(size)
        except BlockingIOError:
            self._file.close()
            raise InputError("another process writes the output", got=self.part, todo="wait for it, or name another") from None
        except (InputError, DiskError):
            self._file.close()
            if os.path.getsize(self.part) == 0:
                self.part.unlink()
            raise
        self.earlier = self.rows

    def _keep_settings(self, settings: Mapping[str, Any] | None) -> None:
        """Write the settings of an output that begins; check those of one that goes on."""
        assert self._settings_file is not None
        if not self.rows:
            self._forget_settings()
            if settings is not None:
                with atomic(self._settings_file) as place:
                    place.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
            return
        todo = f"give the same, or remove {self.part} to begin anew"
        kept = self._kept_settings()
        if (kept is None) != (settings is None):
            got = "one without settings" if kept is None else f"one with {', '.join(kept)}"
            raise InputError(f"{self.part} was written by another command", got=got, todo=f"remove {self.part} to begin anew")
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
        """Read what is there; the bytes of its whole lines."""
        size = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                self._last = row["id"]
            except (ValueError, TypeError, KeyError):
                raise InputError(
                    "the output that is there holds other things", got=f"{file.name}, line {self.rows + 1}",
                    expected="rows of results", todo="name another with --output",
                ) from None  # fmt: skip
            size, self.rows = size + len(line), self.rows + 1
            self.errors += "error" in row
            if row.get("digest"):
                self.meant[row["adapter"]] = row["digest"]
        return size


def _standard_output() -> Results:
    """Standard output as it is now, whatever is done to the descriptor later; unbuffered where it is one."""
    try:
        return Results(None, os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0), owned=True)
    except OSError:
        return Results(None, sys.stdout.buffer)


def _check_place(path: Path) -> None:
    """Refuse what cannot be an output, before anything is loaded."""
    if path.is_dir():
        raise InputError("--output is a folder", got=path, expected="a file to write")
    if path.suffix in (".gz", ".zip", ".zst", ".bz2", ".xz"):
        raise InputError("--output is not compressed", got=path, expected="a .jsonl file", todo="or pipe --output - into gzip")
    check_writable(path, "--output")
