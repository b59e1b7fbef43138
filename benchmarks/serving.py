"""The HTTP service on loopback, bounded in count and time: throughput, tail, soak, restarts, stops, document, hostile bodies.

    python benchmarks/serving.py --json build/bench/serving.json [--only throughput,latency,…] [--scale 1.0]
        [--base smollm2-135m|tiny] [--depth 4] [--data ml-100k|tiny] [--world DIR]

The served registry is made first, which takes minutes; `--world` keeps it in a folder for the next run, so that sections can be
run one at a time.

throughput  calls of three rows (three tasks) from 16 clients against the engine in this process with the same rows, as many at a
            time as are under way there; alternating.
latency     calls at 70 % of that throughput, sent by the clock, whether or not answers arrive: Poisson and even arrivals.
soak        20,000 calls from 16 clients while an operator swaps, promotes, rolls back; 1 % of the bodies are malformed. Before
            them 3,000 calls of the same kind, under the same moves, bring every cache to its bound; memory growth is the median
            over the last eighth of the 20,000 against the median over the first.
restart     kill -9 under load, start again: seconds until ready, aliases and digests before and after.
stop        SIGTERM under load: calls that were sent and not answered.
document    schemathesis on the OpenAPI document.
hostile     10,000 random and hostile calls; an audit hook records every file that the process opens meanwhile.
others      2,000 heavy and hostile calls beside a client with small ones (`serving_others.py`): how late its answers are.

Exit code 1 when a count misses its aim. Ratios need a quiet machine and decide nothing here.
"""

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from genre.engine import Request
from serving_hostile import audit_code, foreign, hostile_call, malformed
from serving_load import TOKEN, Client, Lost, Refused, Server, run_clients
from serving_others import others
from serving_world import World, body, keep, make, reopen
from suite import keep_figures

CLIENTS, ROWS, WARM_UP = 16, 3, 3000
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
Found = dict[str, dict[str, Any]]


def calls_of(world: World) -> list[tuple[list[int], bytes]]:
    """Calls of three rows: indices into the world's rows, and the body."""
    places = range(len(world.rows))
    return [
        (list(part), body([world.rows[i] for i in part])) for start in places[::ROWS] if (part := places[start : start + ROWS])
    ]


def closed_loop(address: tuple[str, int], calls: list[tuple[list[int], bytes]], count: int) -> float:
    """Time `count` calls from 16 clients, each of which sends the next one after an answer."""
    left = iter(range(count))

    async def work(client: Client, _: int) -> None:
        for number in left:
            status, _answer = await client.call("/v1/score", calls[number % len(calls)][1])
            assert status == 200, status

    return run_clients(address, CLIENTS, work)


def throughput(world: World, folder: Path, scale: float) -> Found:
    """HTTP against direct calls, round by round."""
    calls, count, rounds = calls_of(world), max(32, int(400 * scale)), max(2, int(6 * scale))
    flat = [Request.from_json(world.rows[place]) for number in range(count) for place in calls[number % len(calls)][0]]
    ratios, rates, at_once = [], [], CLIENTS * ROWS
    with Server(folder, world.arguments("--follow", "0")) as server, world.engine() as engine:
        closed_loop(server.address, calls, len(calls))
        engine.score(flat[: len(world.rows)])
        for _ in range(rounds):
            http = closed_loop(server.address, calls, count)
            begun = time.perf_counter()
            for start in range(0, len(flat), at_once):
                engine.score(flat[start : start + at_once])
            ratios.append((time.perf_counter() - begun) / http)
            rates.append(count / http)
    return {
        "ratios": {"http_vs_direct": median(ratios)},
        "counts": {"throughput_calls": count * rounds},
        "rates": {"calls_per_s": median(rates), "rows_per_s": ROWS * median(rates)},
    }


def open_loop(address: tuple[str, int], calls: list[tuple[list[int], bytes]], times: np.ndarray) -> list[float]:
    """Send a call at each of these seconds; latencies count from the time it was due, so that a stall is not hidden."""
    taken: list[float] = []

    async def main() -> None:
        free: deque[Client] = deque()
        begun = time.perf_counter()

        async def one(number: int, due: float) -> None:
            client = free.popleft() if free else Client(address)  # in turn, so that none idles until it is closed
            status, _ = await client.call("/v1/score", calls[number % len(calls)][1])
            assert status == 200, status
            taken.append(time.perf_counter() - begun - due)
            free.append(client)

        tasks = []
        for number, due in enumerate(times):
            await asyncio.sleep(max(0.0, due - (time.perf_counter() - begun)))
            tasks.append(asyncio.ensure_future(one(number, float(due))))
        await asyncio.gather(*tasks)
        for client in free:
            client.close()

    asyncio.run(main())
    return taken


def latency(world: World, folder: Path, scale: float) -> Found:
    """Tail latency at 70 % of the service's throughput."""
    calls, count = calls_of(world), max(50, int(2000 * scale))
    found: Found = {"ratios": {}, "counts": {"latency_calls": count}, "ms": {}}
    with Server(folder, world.arguments("--follow", "0")) as server:
        closed_loop(server.address, calls, len(calls))
        most = max(32, int(400 * scale))
        rate = 0.7 * most / closed_loop(server.address, calls, most)
        gaps = {"": np.random.default_rng(0).exponential(1 / rate, count), "_evenly_spaced": np.full(count, 1 / rate)}
        for name, gap in gaps.items():
            middle, tail = 1000 * np.quantile(open_loop(server.address, calls, np.cumsum(gap)), [0.5, 0.99])
            found["ratios"][f"p99_vs_median{name}"] = float(tail / middle)
            found["ms"] |= {f"p50{name}": float(middle), f"p99{name}": float(tail)}
    return found


def soak(world: World, folder: Path, scale: float) -> Found:
    """Calls from 16 clients while versions move."""
    count, calls, rng = int(20_000 * scale), calls_of(world), random.Random(0)
    bad = {number for number in range(WARM_UP + count) if rng.random() < 0.01}
    left, tally, examples, memory = iter(range(WARM_UP + count)), Counter[str](), [], []

    async def work(client: Client, _: int) -> None:
        for number in left:
            if number in bad:
                status, answer = await client.call("/v1/score", malformed(number, calls[number % len(calls)][1]))
                tally["malformed"] += 1
                tally["malformed_not_4xx"] += not (400 <= status < 500 and _clear(answer))
            else:
                places, sent = calls[number % len(calls)]
                status, answer = await client.call("/v1/score", sent)
                while status == 429:
                    tally["refused_429"] += 1
                    await asyncio.sleep(0.05)
                    status, answer = await client.call("/v1/score", sent)
                if status == 200:
                    for place, row in zip(places, json.loads(answer)["responses"], strict=True):
                        if (what := world.wrong(place, row)) is not None:
                            tally["wrong"] += 1
                            examples.append(what)
                else:
                    tally["unanswered"] += 1
            tally["server_errors"] += status >= 500
            if number >= WARM_UP and number % 10 == 0:
                memory.append(server.resident_bytes())

    async def operate(client: Client) -> None:
        for turn in range(10**9):
            name = ("like", "rating", "next_item")[turn % 3]
            for path, sent in (
                ("promote", {"ref": f"{name}@candidate"}),
                ("load", {"ref": f"{name}:{world.versions[name][1][:12]}"}),
                ("rollback", {"name": name}),
                ("unload", {"ref": f"{name}:{world.versions[name][1][:12]}"}),
            ):
                status, _ = await client.call(f"/v1/admin/{path}", json.dumps(sent).encode(), headers=ADMIN)
                tally["moves"] += status == 200
                tally["moves_failed"] += status != 200
                tally["server_errors"] += status >= 500
                await asyncio.sleep(0.05)

    with Server(folder, world.arguments("--canary", "like=0.2")) as server:
        seconds = run_clients(server.address, CLIENTS, work, operate)
    eighth = max(1, len(memory) // 8)
    names = ("wrong", "server_errors", "malformed", "malformed_not_4xx", "unanswered", "refused_429", "moves", "moves_failed")
    return {
        "counts": {"soak_warm_up": WARM_UP, "soak_calls": count, **{name: tally[name] for name in names}},
        "ratios": {"memory_growth": median(memory[-eighth:]) / median(memory[:eighth]) - 1},
        "seconds": {"soak": seconds},
        "memory_mib": {"soak_by_eighths": [round(median(memory[i * eighth : (i + 1) * eighth]) / 2**20, 1) for i in range(8)]},
        "examples": {"wrong": examples[:5]},
    }


def _clear(answer: bytes) -> bool:
    found = json.loads(answer)
    return set(found) == {"error", "code", "request_id"} and 10 < len(found["error"]) < 700


def under_load(server: Server, calls: list[tuple[list[int], bytes]], seconds: float, how: int) -> Counter[str]:
    """Send from 16 clients until nobody listens any more; the signal comes after some seconds."""
    tally = Counter[str]()

    async def work(client: Client, number: int) -> None:
        with contextlib.suppress(Refused):
            while True:
                number += 1
                try:
                    status, _ = await client.call("/v1/score", calls[number % len(calls)][1])
                    tally["answered"] += status == 200
                    tally["other"] += status != 200
                except Lost:
                    tally["lost"] += 1

    timer = threading.Timer(seconds, server.process.send_signal, [how])
    timer.start()
    run_clients(server.address, CLIENTS, work)
    timer.join()
    tally["exit_not_0"] += server.wait() != 0
    return tally


def restart(world: World, folder: Path, scale: float) -> Found:
    """Kill under load and compare what a fresh process serves."""
    times, changed, ready = max(1, round(5 * scale)), 0, []
    with Server(folder, world.arguments()) as server:
        before = _served(server)
        under_load(server, calls_of(world), 0.5, signal.SIGKILL)
    for _ in range(times):
        with Server(folder, world.arguments()) as server:
            ready.append(server.ready_s)
            changed += _served(server) != before
            under_load(server, calls_of(world), 0.5, signal.SIGKILL)
    late = sum(seconds > 15 for seconds in ready)
    return {
        "counts": {"restarts": times, "restarts_over_15_s": late, "restarts_with_other_aliases": changed},
        "seconds": {"restart_to_ready_max": max(ready)},
    }


def _served(server: Server) -> list[Any]:
    return [(one["ref"], one["digest"], one["aliases"]) for one in server.get("/v1/adapters")["adapters"]]


def stop(world: World, folder: Path, scale: float) -> Found:
    """SIGTERM under load."""
    times, tally = max(1, round(10 * scale)), Counter[str]()
    for _ in range(times):
        with Server(folder, world.arguments()) as server:
            tally += under_load(server, calls_of(world), 1.0, signal.SIGTERM)
    names = ("answered", "lost", "other", "exit_not_0")
    return {"counts": {"stops": times, **{f"stop_{name}": tally[name] for name in names}}}


def document(world: World, folder: Path, scale: float) -> Found:
    """Exercise every operation of the document with valid and invalid input."""
    import schemathesis
    from hypothesis import HealthCheck, given, settings
    from hypothesis.errors import Unsatisfiable

    tally, most = Counter[str](), max(5, int(200 * scale))
    with Server(folder, world.arguments()) as server:
        schema = schemathesis.openapi.from_dict(server.get("/openapi.json"))
        url = f"http://{server.address[0]}:{server.address[1]}"
        for found in schema.get_all_operations():
            for mode in schemathesis.GenerationMode:

                @settings(
                    max_examples=most, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
                )
                @given(case=found.ok().as_strategy(mode))
                def check(case: Any) -> None:
                    answer = case.call(base_url=url, headers=ADMIN if "admin" in case.operation.path else {})
                    tally["cases"] += 1
                    tally["server_errors"] += answer.status_code >= 500

                with contextlib.suppress(Unsatisfiable):  # without parameters nothing can be wrong
                    check()
    return {"counts": {"document_cases": tally["cases"], "document_server_errors": tally["server_errors"]}}


def hostile(world: World, folder: Path, scale: float) -> Found:
    """Hostile calls, and the files that the process opens meanwhile."""
    count, calls = int(10_000 * scale), calls_of(world)
    opened, left, tally = folder / "opened.txt", iter(range(count)), Counter[str]()
    errors: list[str] = []
    with Server(folder, world.arguments(), before=audit_code(opened)) as server:
        closed_loop(server.address, calls, len(calls))  # what is imported at first use is imported now
        begin = opened.stat().st_size

        async def work(client: Client, _: int) -> None:
            for number in left:
                try:
                    status, answer = await asyncio.wait_for(client.send(hostile_call(number, world.rows)), 60)
                    if status >= 500:
                        tally["server_errors"] += 1
                        errors.append(f"call {number}: {status} {answer[:200].decode(errors='replace')}")
                    tally["answered"] += 1
                except Lost:  # bytes that are not HTTP may be answered by a closed connection
                    tally["closed"] += 1
                except (Refused, TimeoutError):
                    tally["gone"] += 1
                    client.close()

        run_clients(server.address, CLIENTS, work)
        good = closed_loop(server.address, calls, len(calls)) > 0
        strays = foreign(opened.read_bytes()[begin:].decode(), [world.registry, world.data], server.process.pid)
    return {
        "counts": {
            "hostile": count,
            "hostile_server_errors": tally["server_errors"],
            "hostile_gone": tally["gone"],
            "hostile_closed": tally["closed"],
            "files_outside": len(strays),
            "audit_saw": begin > 0,
            "alive_after": good,
        },
        "examples": {"files_outside": sorted(strays)[:10], "server_errors": errors[:10]},
    }


SECTIONS: dict[str, Callable[[World, Path, float], Found]] = {
    "throughput": throughput,
    "latency": latency,
    "soak": soak,
    "restart": restart,
    "stop": stop,
    "document": document,
    "hostile": hostile,
    "others": others,
}
NONE = (
    "wrong",
    "server_errors",
    "malformed_not_4xx",
    "unanswered",
    "moves_failed",
    "restarts_over_15_s",
    "restarts_with_other_aliases",
    "stop_lost",
    "stop_other",
    "stop_exit_not_0",
    "document_server_errors",
    "hostile_server_errors",
    "hostile_gone",
    "files_outside",
    "others_late",
    "others_not_200",
    "others_server_errors",
    "others_gone",
    "others_operator_locked_out",
)


def world_of(options: argparse.Namespace, place: Path) -> World:
    """Make the served world, or open the one that an earlier run kept."""
    folder: Path = options.world or place
    folder.mkdir(parents=True, exist_ok=True)
    world = reopen(folder) or make(folder, options.data, options.base, options.depth)
    if options.world is not None:
        keep(folder, world)
    return world


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=Path("build/bench/serving.json"))
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(SECTIONS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the counts")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--data", default="ml-100k")
    parser.add_argument("--world", type=Path, help="keep what is served there, or take it from there")
    options = parser.parse_args()
    if unknown := sorted(set(options.only) - set(SECTIONS)):
        parser.error(f"no such section: {', '.join(unknown)}; expected {', '.join(SECTIONS)}")
    result: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {"ratios": {}, "counts": {}}
    result["scale"] = options.scale
    with tempfile.TemporaryDirectory() as place:
        world = world_of(options, Path(place))
        for name in options.only:
            found = SECTIONS[name](world, Path(place), options.scale)
            print(name, json.dumps(found), flush=True)
            for kind, figures in found.items():
                result.setdefault(kind, {}).update(figures)
    missed = [name for name in NONE if result["counts"].get(name, 0)]
    result["missed"] = missed
    keep_figures(options.json, result)
    print(f"missed: {', '.join(missed)}" if missed else "every count is as it should be")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
