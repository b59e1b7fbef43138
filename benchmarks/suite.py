"""The benchmarks that `run.py` runs, and the file that each of them leaves: figures with their origin."""

import fcntl
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SUITE: dict[str, dict[str, list[str]]] = {
    "training": {
        "quick": ["--only", "throughput,cost,processes", "--rounds", "3", "--cost-depth", "4", "--events", "4000"],
        "full": ["--minutes", "20"],
    },
    "inference": {"quick": ["--only", "lanes,tasks,candidates", "--rounds", "4", "--depth", "4"], "full": []},
    "returning": {"quick": ["--only", "batch_4,alone_4,strangers", "--scale", "0.2"], "full": []},
    "registry": {"quick": ["--scale", "0.05"], "full": []},
    "scaling": {"quick": ["--quick"], "full": []},
    "serving": {"quick": ["--scale", "0.02", "--depth", "2"], "full": []},
    "peers": {"full": []},
    "baselines": {"full": []},
    "cold_items": {"full": []},
    "ablation": {"full": []},
    "ads": {"full": []},
    "adapter_vs_full": {
        "quick": ["--quick", "--tasks", "like", "--ways", "full,lora_8,head_only"],
        "full": [],
    },
}


@contextmanager
def held(path: Path | None) -> Iterator[None]:
    """Hold a file's flock, as flock(1) does, which is had in the order of asking; nothing for None."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def commit() -> str:
    """Return the measured commit, with `-dirty` if the tree has changes."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def command() -> str:
    """Return the command line of this process as a reader would type it, without paths of this machine."""
    arguments, kept = sys.argv[1:], []
    while arguments:
        word = arguments.pop(0)
        if word.partition("=")[0] not in ("--json", "--world", "--folder", "--lock"):
            kept.append(Path(word).name if word.startswith("/") else word)
        elif "=" not in word:
            arguments = arguments[1:]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *kept])


def keep_figures(file: Path, result: dict[str, Any]) -> None:
    """Write a benchmark's figures with their origin: environment, commit, commands (several where parts are added)."""
    from genre.files import write_text
    from genre.jobs.folders import environment

    commands = [*dict.fromkeys([*result.get("commands", []), command()])]
    file.parent.mkdir(parents=True, exist_ok=True)
    origin = {"environment": environment(), "commit": commit(), "commands": commands}
    write_text(file, json.dumps(result | origin, indent=2) + "\n")
