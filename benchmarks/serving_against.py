"""The service of this checkout against that of another one, alternating: throughput, tail, and time of a core for each call.

    python benchmarks/serving_against.py CHECKOUT --world DIR [--rounds 12] [--calls 96] [--json build/bench/serving_against.json]

Both services run over the same world (`serving.py --world DIR` keeps one) at the same time, and are asked in turns, after a
warm-up. The throughput of a round is that of 16 clients, each of which sends its next call of three rows after an answer; the
tail is that of calls sent by the clock at 60 % of the slower one's throughput. Both decide; times of a core, which depend less on
what else runs on the machine, are told beside them.
"""

import argparse
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from serving import calls_of, closed_loop, open_loop
from serving_load import Server
from serving_world import World, reopen
from sides import check_checkout
from suite import keep_figures

BAR = 0.97


def core_seconds(server: Server) -> float:
    """Seconds of a core that a service has used."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(checkout: Path, world: World, folder: Path) -> Server:
    """A service of the code in a checkout."""
    return Server(folder, world.arguments("--follow", "0"), variables={"PYTHONPATH": str(checkout / "adapters")})


def compare(other: Path, world: World, folder: Path, rounds: int, count: int) -> dict[str, Any]:
    """Ratios of this checkout to another one, where more is better: the median of rounds, with all of them."""
    calls = calls_of(world)
    here = Path(__file__).resolve().parent.parent
    rates: dict[str, list[float]] = {"this": [], "other": []}
    cores: dict[str, list[float]] = {"this": [], "other": []}
    tails: dict[str, list[float]] = {"this": [], "other": []}
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(start(place, world, folder)) for name, place in (("this", here), ("other", other.resolve()))
        }
        for server in servers.values():
            closed_loop(server.address, calls, 2 * len(calls))
        for number in range(rounds):
            for name in list(servers) if number % 2 else list(servers)[::-1]:
                used = core_seconds(servers[name])
                rates[name].append(count / closed_loop(servers[name].address, calls, count))
                cores[name].append((core_seconds(servers[name]) - used) / count)
        rate = 0.6 * min(median(own) for own in rates.values())
        times = np.cumsum(np.random.default_rng(0).exponential(1 / rate, count))
        for number in range(rounds):
            for name in list(servers) if number % 2 else list(servers)[::-1]:
                tails[name] += open_loop(servers[name].address, calls, times)
    pairs = list(zip(rates["this"], rates["other"], strict=True))
    tail = {name: 1000 * float(np.quantile(own, 0.99)) for name, own in tails.items()}
    return {
        "ratios": {
            "throughput": median(one / two for one, two in pairs),
            "p99": tail["other"] / tail["this"],
        },
        "calls_per_core_second": median(cores["other"]) / median(cores["this"]),
        "calls_per_s": {name: median(own) for name, own in rates.items()},
        "core_ms_per_call": {name: 1000 * median(own) for name, own in cores.items()},
        "p99_ms": tail,
        "rounds": [round(one / two, 3) for one, two in pairs],
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkout", type=Path, help="a worktree of another commit")
    parser.add_argument("--world", type=Path, required=True, help="what `serving.py --world` keeps")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--calls", type=int, default=96, help="calls of a round")
    parser.add_argument("--json", type=Path, default=Path("build/bench/serving_against.json"))
    options = parser.parse_args()
    check_checkout(parser, options.checkout)
    world = reopen(options.world)
    if world is None:
        parser.error(f"there is no world in {options.world}: run serving.py with --world first")
    with tempfile.TemporaryDirectory() as place:
        found = compare(options.checkout, world, Path(place), options.rounds, options.calls)
    print(found)
    missed = [name for name, ratio in found["ratios"].items() if ratio < BAR]
    keep_figures(options.json, found | {"missed": missed})
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
