"""Users who come back: the history cache against none, alternating; its memory, and vLLM's prefix cache on the same work.

    python benchmarks/returning.py [--only alone_4,sessions] [--against CHECKOUT] [--json build/bench/returning.json]

batch_30, alone_30    32 users (one user) with 99 events, each with one event more in every call; 30 layers. Ten candidates a row.
batch_4, alone_4      the same on 4 layers.
sessions              ML-100K's users at the times of the log: a visit whenever one comes after 30 seconds; 8 rows a call, four
                      adapters, one of which is swapped every 10 calls; a cache of a tenth of the users' states; 4 layers.
bursts                the same with users by Zipf's law who come in bursts.
sessions_30, bursts_30  both on 30 layers.
strangers             users who come once, 4 layers: what the cache costs where it cannot help.
warm_4                one user with 99 events, 4 layers, no cache on either side: this checkout beside that of `--against`.
memory                20,000 calls on a base of two layers: resident memory against the bound, and whether it grows.
storage               AUC and scores of a trained adapter with states in bfloat16 and int8 (`make demo` leaves the registry).
vllm                  text items on 10 layers, 16 users with a history of about 420 tokens, each with one event more in every
                      call: our engine with its cache against vLLM's CPU build with prefix caching (installed as peers.py does).

Each side is a process of its own (returning_side.py); a call goes to one after the other, the first by turns, and the seconds are
those of `Engine.score`; `cpu_ratio` is that of processor seconds. Scores are compared at every call. `--against` gives the side
without a cache the code of another checkout. `ratios.X` are requests/s with the cache against without. Exit code 1 if an aim is
missed.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import genre
from bench_report import BARS, CEILINGS
from genre.files import write_json
from genre.jobs.loading import open_log
from inference_engine import Shelf
from returning_storage import storage_loss
from returning_traffic import (
    Call,
    Writer,
    bursts,
    repeated,
    returning,
    sessions,
    strangers,
    tokens_of_users,
    with_swaps,
)
from sides import Side, check_checkout
from suite import held, keep_figures
from tiny_world import tiny_base

HERE = Path(__file__).resolve().parent
EVENTS = 99
WHOLE = 2**33
"""Bytes of a cache that nothing leaves."""
ADAPTERS = 4
BOUND = 2**28
CALLS = 20_000
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Case:
    """A case that compares two sides.

    Attributes:
        depth: Layers.
        share: The cache's bytes as a share of the users' states; None for a cache that nothing leaves, 0 for none.
        warm: Calls before any is counted.
    """

    depth: int
    share: float | None = None
    warm: int = 0


CASES = {
    "batch_30": Case(30, warm=1),
    "alone_30": Case(30, warm=1),
    "batch_4": Case(4, warm=1),
    "alone_4": Case(4, warm=2),
    "sessions": Case(4, share=0.1),
    "bursts": Case(4, share=0.1),
    "sessions_30": Case(30, share=0.1),
    "bursts_30": Case(30, share=0.1),
    "strangers": Case(4, share=0.1, warm=2),
    "warm_4": Case(4, share=0.0, warm=2),
}
PARTS = (*CASES, "memory", "storage", "vllm")
USUAL = [*(part for part in CASES if part != "warm_4"), "memory"]


def side(job: dict[str, Any], checkout: Path | None = None) -> Side:
    """A process that answers calls."""
    return Side([str(HERE / "returning_side.py"), json.dumps(job)], checkout)


def ask(one: Side, call: Call) -> dict[str, Any]:
    """The answer to a call: seconds, scores, counters of the cache, resident bytes."""
    return one.ask({"rows": call.rows, "swaps": call.swaps})


class Worlds:
    """Registries of adapters with random weights, one for each base, made unless a folder has them."""

    def __init__(self, folder: Path, log: genre.Interactions) -> None:
        self.folder = folder
        self.log = log

    def job(self, depth: int) -> dict[str, Any]:
        """What a side is told: registry, base, depth, names with their first versions; `next` are those to swap the first to."""
        folder = self.folder / f"depth-{depth}"
        kept = folder / "job.json"
        if not kept.exists():
            shelf = Shelf(folder, self.log, genre.Base.load("smollm2-135m", depth=depth))
            names = {f"a{number}": shelf.add(f"a{number}")[0] for number in range(ADAPTERS)}
            later = [names["a0"], shelf.add("a0")[0]]
            job = {"base": "smollm2-135m", "depth": depth, "names": names, "next": later}
            write_json(kept, job)
        return json.loads(kept.read_text()) | {"registry": str(folder / "registry")}


def traffic(part: str, writer: Writer, log: genre.Interactions, job: dict[str, Any], scale: float) -> list[Call]:
    """The calls of a case."""
    kind, deep = part.partition("_")[0], part.endswith("_30")
    visits = int(scale * (320 if deep else 1600))
    if kind == "batch":
        return returning(writer, 32, EVENTS, 1 + max(2, int(scale * (3 if deep else 8))))
    if kind in ("alone", "warm"):
        return returning(writer, 1, EVENTS, 2 + max(4, int(scale * (12 if deep else 60))))
    if kind == "strangers":
        return strangers(writer, 2 + max(4, int(scale * 60)), 8, EVENTS)
    found = sessions(writer, log, visits, 8) if kind == "sessions" else bursts(writer, visits, 8, users=max(8, visits // 8))
    return with_swaps(found, "a0", job["next"])


def compare(part: str, worlds: Worlds, options: argparse.Namespace) -> dict[str, Any]:
    """Ask both sides every call of a case."""
    case = CASES[part]
    job = worlds.job(case.depth)
    writer = Writer(worlds.log, list(job["names"]), wander=0.1 if case.share else 0.0)
    calls = traffic(part, writer, worlds.log, job, options.scale)
    seconds: dict[str, list[float]] = {"none": [], "cache": []}
    cpu = {"none": 0.0, "cache": 0.0}
    off = 0.0
    with side({**job, "cache": 0}, options.against) as plain:
        states = tokens_of_users(calls) * plain.read()["token_bytes"]
        bound = WHOLE if case.share is None else int(case.share * states)
        with side({**job, "cache": bound, "storage": options.storage}) as cached:
            cached.read()
            sides = {"none": plain, "cache": cached}
            for call in calls[: case.warm]:  # the cache has to read everybody once, the other side to have worked before
                ask(plain, Call(call.rows[:1]))
                ask(cached, call)
            with held(options.lock):
                for number, call in enumerate(calls[case.warm :]):
                    answers = {name: ask(sides[name], call) for name in sorted(sides, reverse=bool(number % 2))}
                    off = max(off, _difference(answers["none"]["scores"], answers["cache"]["scores"]))
                    for name, answer in answers.items():
                        seconds[name].append(answer["seconds"])
                        cpu[name] += answer["cpu"]
            counters = answers["cache"]["counters"]
    pairs = [one / two for one, two in zip(seconds["none"], seconds["cache"], strict=True)]
    # Calls of a case are alike where the users are; else the whole stream counts, not the median call.
    alike = not case.share or part == "strangers"
    ratio = median(pairs) if alike else sum(seconds["none"]) / sum(seconds["cache"])
    rows = sum(len(call.rows) for call in calls[case.warm :])
    found: dict[str, Any] = {"depth": case.depth, "calls": len(pairs), "rows": rows, "repeated": repeated(calls)}
    if counters is not None:
        found["hit_rate"] = counters["hits"] / (counters["hits"] + counters["misses"])
        found["cache_bytes"] = bound if case.share is not None else counters["device_bytes"]
    return found | {
        "requests_per_s": {name: rows / sum(own) for name, own in seconds.items()},
        "ms_per_call": {name: 1000 * median(own) for name, own in seconds.items()},
        "max_abs_difference": off,
        "counters": counters,
        "cpu_ratio": cpu["none"] / cpu["cache"],
        "load_average": os.getloadavg()[0],
        "ratio": ratio,
    }


def _difference(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> float:
    """The largest difference of two sides' scores."""
    worst = max(abs(a - b) for mine, theirs in zip(one, other, strict=True) for a, b in zip(mine, theirs, strict=True))
    if worst > TOLERANCE:
        raise RuntimeError(f"the sides' scores differ by {worst:.2g}; expected at most {TOLERANCE:g}")
    return worst


def memory(log: genre.Interactions, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Resident memory of a cache that is full beyond that of a side without one, against the bound; its growth over calls."""
    base = tiny_base(folder / "base")
    shelf = Shelf(folder / "world", log, genre.Base.load(str(base)))
    job = {"registry": str(folder / "world" / "registry"), "base": str(base), "depth": None, "names": {"a0": shelf.add("a0")[0]}}
    writer = Writer(log, ["a0"], candidates=2)
    calls = max(400, int(options.scale * CALLS))
    users = [writer.history(100) for _ in range(4000)]
    grown: dict[str, list[int]] = {"none": [], "cache": []}
    full: list[int] = []
    for name, cache, most in (("none", 0, calls // 4), ("cache", BOUND, calls)):
        with side({**job, "cache": cache, "storage": options.storage}) as one:
            one.read()
            for number in range(most):
                some = [int(code) for code in writer.draw.integers(len(users), size=4)]
                lengths = writer.draw.integers(10, 100, size=4)
                rows = [writer.row(f"user-{code}", users[code][:length]) for code, length in zip(some, lengths, strict=True)]
                answer = ask(one, Call(rows))
                if number % (calls // 20) == calls // 20 - 1:
                    grown[name].append(answer["rss"])
                    if cache and answer["counters"]["evictions"]:
                        full.append(answer["rss"])
                    print(f"memory: {name}, {number + 1:,} calls, {answer['rss'] / 2**20:,.0f} MiB", flush=True)
    counters = answer["counters"]
    if len(full) < 2:
        raise RuntimeError(f"the cache was not full for long after {calls:,} calls: take a larger --scale")
    beyond = full[-1] - grown["none"][-1]
    return {
        "bound": BOUND,
        "calls": calls,
        "beyond_no_cache": beyond,
        "counted": counters["device_bytes"],
        "evictions": counters["evictions"],
        "memory": beyond / BOUND,
        "growth": full[-1] / full[0] - 1,
    }


def against_vllm(options: argparse.Namespace) -> dict[str, Any]:
    """The part `returning` of peers.py."""
    import peers

    told = argparse.Namespace(
        folder=options.folder, depth=10, prepare=False, peers=["vllm"], rounds=max(2, int(8 * options.scale)), lock=options.lock
    )
    found = peers.measure("returning", peers.prepare(told), told)
    if errors := found.pop("errors"):
        raise RuntimeError(f"vLLM: {errors['vllm']}")
    return found | {"ratio": found.pop("ratios")["returning_vs_vllm"]}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=Path("build/bench/returning.json"))
    parser.add_argument("--only", type=lambda text: text.split(","), default=USUAL)
    parser.add_argument("--against", type=Path, help="a checkout whose code has the side without a cache")
    parser.add_argument("--storage", default="auto", help="auto, float32, bfloat16 or int8")
    parser.add_argument("--scale", type=float, default=1.0, help="so many of the calls")
    parser.add_argument("--world", type=Path, help="keep the adapters of the cases here, so that the next run need not make them")
    parser.add_argument("--lock", type=Path, help="hold this file's flock while calls are timed")
    parser.add_argument("--prepare", action="store_true", help="only make them")
    parser.add_argument("--registry", type=Path, default=Path("build/demo/registry"), help="with like@production, for storage")
    parser.add_argument("--folder", type=Path, default=HERE.parent / "build" / "peers", help="for vLLM's environment")
    options = parser.parse_args()
    if unknown := sorted(set(options.only) - set(PARTS)):
        parser.error(f"no such part: {', '.join(unknown)}; expected {', '.join(PARTS)}")
    if "warm_4" in options.only and options.against is None:
        parser.error("warm_4 compares two checkouts: name the other one with --against")
    if options.against is not None:
        check_checkout(parser, options.against)
    result: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {"ratios": {}, "counts": {}}
    with tempfile.TemporaryDirectory() as folder:
        worlds = Worlds(options.world or Path(folder), open_log("data/ml-100k"))
        for depth in sorted({CASES[part].depth for part in options.only if part in CASES}):
            worlds.job(depth)
        if options.prepare:
            return
        for part in (each for each in PARTS if each in options.only):
            begun = time.perf_counter()
            found = measure(part, worlds, Path(folder), options)
            if "ratio" in found:
                result["ratios"][name_of(part)] = found["ratio"]
            elif part == "memory":
                result["counts"] |= {f"returning_{name}": found[name] for name in ("memory", "growth")}
            result[part] = found | {"took_seconds": round(time.perf_counter() - begun, 1)}
            keep_figures(options.json, result)
            print(f"{part}: {json.dumps(result[part])}", flush=True)
    missed = missed_aims(result)
    print(json.dumps({"ratios": result["ratios"], "counts": result["counts"], "missed": missed}, indent=2))
    sys.exit(bool(missed))


def measure(part: str, worlds: Worlds, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure one part."""
    if part == "memory":
        return memory(worlds.log, folder, options)
    if part == "storage":
        return storage_loss(worlds.log, options.registry)
    if part == "vllm":
        return against_vllm(options)
    return compare(part, worlds, options)


def name_of(part: str) -> str:
    """The name of a part's ratio."""
    return "returning_vs_vllm" if part == "vllm" else f"returning_{part}"


def missed_aims(result: dict[str, Any]) -> list[str]:
    """The figures that miss what is aimed at."""
    low = [name for name, value in result["ratios"].items() if value < BARS[name]]
    return low + [name for name, value in result["counts"].items() if value > CEILINGS[name]]


if __name__ == "__main__":
    main()
