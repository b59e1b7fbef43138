"""`genre recommend --all-users` of this checkout against that of another one, alternating: users a second, and the same answers.

    python benchmarks/all_users.py CHECKOUT [--users 320] [--rounds 3] [--registry build/demo/registry] [--json FILE]

Each side is a process that runs the command of its own checkout, from the data to the file, as often as it is asked; imports are
done before. The users are every third one of ML-100K, or so, and each gets ten items of `next_item`. Beside users/s by the clock
are those by the time of a core, which depends less on what else runs. `make demo` leaves a registry.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import genre
from genre.jobs.loading import open_log
from sides import Side, check_checkout
from suite import keep_figures

BAR, TOLERANCE = 2.0, 1e-4
SIDE = """
import contextlib, json, os, sys, time
import torch
from genre.cli import main
for line in sys.stdin:
    begun, used = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(sys.stderr):
        code = main(json.loads(line)["arguments"])
    found = {"error": f"genre ended with exit code {code}"} if code else {}
    print(json.dumps(found | {"seconds": time.perf_counter() - begun, "core": time.process_time() - used}), flush=True)
"""


def some_users(log: genre.Interactions, count: int, folder: Path) -> Path:
    """A data set of so many users of a log, evenly spread."""
    chosen = np.linspace(0, len(log.user_ids) - 1, count).astype(int)
    log.select(np.isin(log.user_codes, chosen)).write(folder)
    return folder


def largest_difference(one: Path, other: Path) -> float:
    """Of the scores of two outputs, whose users and items have to be the same, but for items of equal score."""
    worst = 0.0
    for first, second in zip(one.read_text().splitlines(), other.read_text().splitlines(), strict=True):
        a, b = json.loads(first), json.loads(second)
        if a["id"] != b["id"] or len(a["results"]) != len(b["results"]):
            raise RuntimeError(f"the outputs differ at user {a['id']}")
        worst = max(worst, *(abs(x["score"] - y["score"]) for x, y in zip(a["results"], b["results"], strict=True)))
    return worst


def compare(other: Path, data: Path, registry: Path, folder: Path, rounds: int, users: int) -> dict[str, Any]:
    """Users/s of both sides and the ratio of this one to the other, the median of rounds."""
    clock: dict[str, list[float]] = {"this": [], "other": []}
    core: dict[str, list[float]] = {"this": [], "other": []}
    with Side(["-c", SIDE]) as this, Side(["-c", SIDE], other) as that:
        sides = {"this": this, "other": that}
        for turn in range(rounds):
            for name, side in sides.items():
                output = folder / f"{name}-{turn}.jsonl"
                arguments = ["recommend", "next_item@production", "--all-users", "--data", str(data), "--output", str(output)]
                answer = side.ask({"arguments": [*arguments, "--registry", str(registry)]})
                clock[name].append(answer["seconds"])
                core[name].append(answer["core"])
    found: dict[str, Any] = {
        "users_per_s": {name: round(users / median(own), 1) for name, own in clock.items()},
        "users_per_core_s": {name: round(users / median(own), 1) for name, own in core.items()},
        "ratios": {"all_users": median(b / a for a, b in zip(clock["this"], clock["other"], strict=True))},
        "ratio_by_core": median(core["other"]) / median(core["this"]),
        "max_abs_difference": largest_difference(folder / "this-0.jsonl", folder / "other-0.jsonl"),
        "load_average": os.getloadavg()[0],
    }
    return found


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkout", type=Path, help="a worktree of another commit")
    parser.add_argument("--users", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--registry", type=Path, default=Path("build/demo/registry"))
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--json", type=Path, default=Path("build/bench/all_users.json"))
    options = parser.parse_args()
    check_checkout(parser, options.checkout)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        data = some_users(open_log(options.data), options.users, Path(place) / "users")
        found = compare(options.checkout, data, options.registry, Path(place), options.rounds, options.users)
    found |= {"took_seconds": round(time.perf_counter() - begun, 1)}
    print(json.dumps(found, indent=2))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    keep_figures(options.json, found)
    sys.exit(found["ratios"]["all_users"] < BAR or found["max_abs_difference"] > TOLERANCE)


if __name__ == "__main__":
    main()
