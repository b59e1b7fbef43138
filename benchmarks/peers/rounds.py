"""A process that answers "run one round" on its standard input; the standard library alone, since every environment runs it.

The driver starts `python peft.py JOB PART`, which opens the part, gives its answers, warms up, and then prints one line a round:

    {"answers": [-2.13, 0.48, …], "versions": {"peft": "0.21.2", …}}
    ← go
    {"seconds": 1.31, "work": 16}

What libraries print goes to standard error. A part that cannot run prints {"error": "the exception's line"} and ends.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

WARM_UP = 2


@dataclass
class Part:
    """One measured task of a peer.

    Attributes:
        answers: Log-odds of the last label word against the first, to be compared before anything is timed.
        go: One round; returns how much was done (rows, candidates, targets). It may return (work, seconds) if only a part of
            it is to be counted.
    """

    answers: Callable[[], list[float]]
    go: Callable[[], float | tuple[float, float]]


def serve(parts: dict[str, Callable[[dict[str, Any]], Part]], packages: tuple[str, ...]) -> None:
    """Open the part that the command line names, and answer rounds until standard input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(**values: Any) -> None:
        replies.write(json.dumps(values) + "\n")
        replies.flush()

    try:
        job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        if sys.argv[2] not in parts:
            raise ValueError(f"no part {sys.argv[2]!r}; expected {', '.join(parts)}")
        part = parts[sys.argv[2]](job)
        answers = part.answers()
        for _ in range(WARM_UP):
            part.go()
        send(answers=answers, versions=versions(packages))
        for _ in sys.stdin:
            begun = time.perf_counter()
            done = part.go()
            work, seconds = done if isinstance(done, tuple) else (done, time.perf_counter() - begun)
            send(seconds=seconds, work=work)
    except Exception as error:
        send(error=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")
        raise


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Installed versions by name."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
