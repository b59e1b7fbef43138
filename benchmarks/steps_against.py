"""A training step of `like` and a call of the engine of this checkout against those of another one, alternating, on a CPU.

    python benchmarks/steps_against.py CHECKOUT [--rounds 8] [--registry build/demo/registry] [--json FILE]

Each side is a process with the code of its own checkout. A round is steps on the same batches by each side (recipes/like.yaml,
four layers), or the same calls (32 users of `like`, 20 candidates each); who goes first changes from round to round. The ratio is
the other side's time over this one's, the median of rounds; beside it the one of a core's time, which depends less on what else
runs. The losses and scores of the first round must be the same. `make demo` leaves a registry.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import median
from typing import Any

from sides import ROOT, Side, check_checkout
from suite import keep_figures

BAR, TOLERANCE = 0.98, 1e-4
STEPS, CALLS, ROWS, CANDIDATES = 2, 2, 32, 20
SIDE = """
import json, os, sys, tempfile, time
from pathlib import Path
job = json.loads(sys.argv[1])
replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
import torch
import genre
from genre.jobs.loading import load_base, open_base, open_log
from genre.progress import Reporter
from genre.training import Loop
from genre.training.assembly import assemble
log, registry = open_log(job["data"]), genre.Registry(job["registry"])
recipe = genre.Recipe.read(job["recipe"], ["data.path=" + job["data"], "train.tracker=none", "encoder.use=fit"])
loop = Loop(assemble(recipe, log, open_base(recipe.base)), Path(tempfile.mkdtemp()) / "run", Reporter.silent())
loop.set_training()
batches = iter([rows for epoch in range(8) for rows in loop.plan(epoch)])
engine = genre.Engine(load_base(registry.resolve("like@production").manifest), registry, data=log)
users, items = log.user_ids, log.catalogue.item_ids

def step(turn):
    return [float(loop.step(next(batches), 0.1).loss) for _ in range(job["steps"])]

def call(turn):
    found = []
    for number in range(job["calls"]):
        first = (turn * job["calls"] + number) * job["rows"]
        asked = [
            genre.Request("like@production", user_id=users[n % len(users)], candidates=list(items[n : n + job["candidates"]]))
            for n in range(first, first + job["rows"])
        ]
        answers = engine.score(asked)
        assert all(answer.error is None for answer in answers), [answer.error for answer in answers]
        found += [each.score for answer in answers for each in answer.results]
    return found

for line in sys.stdin:
    asked = json.loads(line)
    begun, used = time.perf_counter(), time.process_time()
    values = {"step": step, "call": call}[asked["what"]](asked["turn"])
    found = {"seconds": time.perf_counter() - begun, "core": time.process_time() - used, "values": values}
    print(json.dumps(found), file=replies, flush=True)
engine.close()
loop.close()
loop.assembly.model.release()
"""


def compare(sides: dict[str, Side], what: str, rounds: int) -> dict[str, Any]:
    """The seconds of both sides, their ratios, and the largest difference of what they computed in the first round."""
    clock: dict[str, list[float]] = {name: [] for name in sides}
    core: dict[str, list[float]] = {name: [] for name in sides}
    first: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            answer = sides[name].ask({"what": what, "turn": turn})
            if turn:
                clock[name].append(answer["seconds"])
                core[name].append(answer["core"])
            else:  # the first one prepares kernels
                first[name] = answer["values"]
    return {
        "seconds": {name: round(median(own), 4) for name, own in clock.items()},
        "ratio": round(median(b / a for a, b in zip(clock["this"], clock["other"], strict=True)), 3),
        "ratio_by_core": round(median(b / a for a, b in zip(core["this"], core["other"], strict=True)), 3),
        "largest_difference": max(abs(a - b) for a, b in zip(first["this"], first["other"], strict=True)),
    }


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkout", type=Path, help="a worktree of another commit")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--registry", type=Path, default=Path("build/demo/registry"))
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--json", type=Path, default=Path("build/bench/steps_against.json"))
    options = parser.parse_args()
    check_checkout(parser, options.checkout)
    job = {"registry": str(options.registry.resolve()), "data": options.data, "recipe": str(ROOT / "recipes" / "like.yaml")}
    job |= {"steps": STEPS, "calls": CALLS, "rows": ROWS, "candidates": CANDIDATES}
    arguments = ["-c", SIDE, json.dumps(job)]
    with Side(arguments) as this, Side(arguments, options.checkout) as other:
        sides = {"this": this, "other": other}
        found: dict[str, Any] = {what: compare(sides, what, options.rounds) for what in ("step", "call")}
    found["load_average"] = os.getloadavg()[0]
    print(json.dumps(found, indent=2))
    keep_figures(options.json, found)
    parts = [found[what] for what in ("step", "call")]
    sys.exit(any(each["ratio"] < BAR or each["largest_difference"] > TOLERANCE for each in parts))


if __name__ == "__main__":
    main()
