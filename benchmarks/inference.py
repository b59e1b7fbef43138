"""Inference, side by side, alternating, fp32, on the embedded base: every figure of the engine in one JSON file.

    python benchmarks/inference.py --json build/bench/inference.json [--only lanes,branches,…]

Parts: memory, lanes, branches (see inference_products.py), tasks, candidates, many, swaps, int8 (inference_engine.py). Each
can run alone; a file that exists keeps the parts that are not run again. `ratios.<name>` are throughput ratios (higher is
better), `counts.<name>` the rest. `int8` needs a registry with a trained `like@production`: `make demo` leaves one.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import genre
from genre.jobs.loading import open_log
from inference_engine import Shelf, candidates, many, memory, quantized, swaps, tasks
from inference_products import branches, lanes
from suite import keep_figures

PARTS = ("memory", "lanes", "branches", "tasks", "candidates", "many", "swaps", "int8")
"""`memory` runs first: the growth of the process means nothing once other parts have left freed memory behind."""


def run(part: str, options: argparse.Namespace, log: genre.Interactions, folder: Path) -> dict[str, Any]:
    """Measure one part."""
    if part == "lanes":
        return lanes(options.depth, options.rounds)
    if part == "branches":
        return branches(3 * options.depth, max(2, options.rounds // 4))
    if part == "int8":
        return quantized(log, options.registry)
    if part == "tasks":
        depth = 3 * options.depth
        top = json.dumps(list(range(depth * 2 // 3, depth)))
        return {"depth": depth} | tasks(
            Shelf(folder, log, genre.Base.load("smollm2-135m", depth=depth), layers=top), max(3, options.rounds // 2)
        )
    shelf = Shelf(folder, log, genre.Base.load("smollm2-135m", depth=options.small))
    found: dict[str, Any] = {"depth": options.small}
    if part == "candidates":
        return found | candidates(shelf, max(2, options.rounds // 3))
    if part == "many":
        return found | many(shelf, 2 * options.rounds)
    if part == "swaps":
        return found | swaps(shelf, 60)
    return found | memory(shelf)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=Path("build/bench/inference.json"))
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), metavar="PART,PART")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--depth", type=int, default=10, help="layers for lanes; branches and tasks run on three times as many")
    parser.add_argument("--small", type=int, default=4, help="layers for candidates, many, swaps and memory")
    parser.add_argument("--registry", type=Path, default=Path("build/demo/registry"), help="with like@production, for int8")
    options = parser.parse_args()
    unknown = sorted(set(options.only) - set(PARTS))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; expected {', '.join(PARTS)}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {"ratios": {}, "counts": {}}
    log = open_log("data/ml-100k")
    for part in (each for each in PARTS if each in options.only):
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = run(part, options, log, Path(folder))
        result["ratios"] |= found.pop("ratios", {})
        result["counts"] |= found.pop("counts", {})
        result[part] = found | {"took_seconds": round(time.perf_counter() - begun, 1)}
        keep_figures(options.json, result)
        print(f"{part}: {json.dumps(found)}", flush=True)
    print(json.dumps({"ratios": result["ratios"], "counts": result["counts"]}, indent=2))


if __name__ == "__main__":
    main()
