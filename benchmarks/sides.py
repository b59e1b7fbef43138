"""A side of a comparison: a process with the code of a checkout, which answers lines of JSON one after the other.

Owns: which folder is a checkout, a side's start, a question and its answer, its end. Ignores: what is asked, which
side comes first.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def check_checkout(parser: argparse.ArgumentParser, folder: Path) -> None:
    """End with a message where a folder is no checkout: an installed genre would be compared with itself."""
    if not (folder / "adapters" / "genre").is_dir():
        parser.error(f"no checkout: got {folder}; expected a folder with adapters/genre, as git worktree add makes one")


class Side:
    """A Python process that answers.

    Args:
        arguments: Of Python: `-c` and code, or a script and what it takes. It prints a line of JSON for each line that it reads,
            one with `error` if it cannot go on.
        checkout: A folder with `adapters/genre`; None for this one.
    """

    def __init__(self, arguments: Sequence[str], checkout: Path | None = None) -> None:
        variables = os.environ | {"PYTHONPATH": str((checkout or ROOT).resolve() / "adapters")}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen([sys.executable, *arguments], env=variables, **pipes)

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

    def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a question.

        Raises:
            RuntimeError: It is an error, or the process has ended.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> dict[str, Any]:
        """The next line; raises as `ask` does."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended with exit code {self.process.wait()}")
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise RuntimeError(found["error"])
        return found
