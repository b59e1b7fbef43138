"""Growth of cost with events per user, candidates, adapters, catalogue and log, with fitted exponents.

    python benchmarks/scaling.py --json build/bench/scaling.json [--only events,candidates,…] [--quick]

Parts: events, candidates, adapters, catalogue, log. Each measures the median seconds of one call at growing sizes (after a
warm-up) and fits seconds ∝ size^exponent over the upper half of the sizes by least squares in logarithms: about 1 is linear.
Logs and catalogues are synthetic (Zipf); the base is real.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import torch

import genre
from genre.data.sequences.batches import collate, plan_batches
from genre.data.sequences.layout import FeedbackVocabulary, Layout
from genre.data.sequences.rows import RowBuilder
from genre.data.sequences.windows import training_windows
from genre.data.splits import SplitConfig, split
from genre.engine import Engine, Request
from genre.jobs.loading import open_log
from genre.modules.heads.gaussian_process import View
from genre.modules.heads.heads import CatalogueHead
from genre.modules.heads.spec import HeadSpec
from inference_engine import Shelf
from suite import keep_figures

DEPTH = 4


def measure(sizes: list[int], make: Callable[[int], Callable[[], object]], rounds: int = 5) -> dict[str, Any]:
    """Median seconds at each size, and the exponent."""
    seconds = []
    for size in sizes:
        call = make(size)
        call()
        taken = []
        for _ in range(rounds):
            begun = time.perf_counter()
            call()
            taken.append(time.perf_counter() - begun)
        seconds.append(median(taken))
    return {"sizes": sizes, "seconds": seconds, "exponent": exponent(sizes, seconds)}


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of log seconds over log size, on the upper half of the sizes."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0])


def events(shelf: Shelf, quick: bool) -> dict[str, Any]:
    """One candidate, histories of growing length."""
    ref, _ = shelf.add("one")
    items = shelf.log.catalogue.item_ids
    sizes = [25, 50, 99] if quick else [12, 25, 50, 75, 99]

    def make(size: int) -> Callable[[], object]:
        history = [{"item_id": items[place % len(items)], "rating": 1 + place % 5} for place in range(size)]
        request = Request(ref, history=history, candidates=items[:1])
        return lambda: engine.score([request])

    with Engine(shelf.base, shelf.registry, lanes=2) as engine:
        return measure(sizes, make)


def candidates(shelf: Shelf, quick: bool) -> dict[str, Any]:
    """A growing number of candidates on a history of 30 events."""
    ref, _ = shelf.add("one")
    items = shelf.log.catalogue.item_ids
    history = [{"item_id": item, "rating": 4} for item in items[:30]]
    sizes = [16, 64, 256] if quick else [1, 4, 16, 64, 256, 1024, 1600]

    def make(size: int) -> Callable[[], object]:
        request = Request(ref, history=history, candidates=items[:size])
        return lambda: engine.score([request])

    with Engine(shelf.base, shelf.registry, lanes=2) as engine:
        return measure(sizes, make)


def adapters(shelf: Shelf, quick: bool) -> dict[str, Any]:
    """A batch of 32 requests over a growing number of distinct adapters, all resident."""
    most = 16 if quick else 32
    refs = [shelf.add(f"a{number}")[0] for number in range(most)]
    items = shelf.log.catalogue.item_ids
    history = [{"item_id": item, "rating": 4} for item in items[:30]]

    def make(size: int) -> Callable[[], object]:
        requests = [Request(refs[place % size], history=history[: 15 + place % 15], candidates=items[:2]) for place in range(32)]
        return lambda: engine.score(requests)

    with Engine(shelf.base, shelf.registry, lanes=most) as engine:
        for ref in refs:
            engine.load(ref)
        return measure([size for size in (1, 2, 4, 8, 16, 32) if size <= most], make)


@torch.inference_mode()
def catalogue(quick: bool) -> dict[str, Any]:
    """Top 10 of a growing catalogue for 32 users in one batch, by the catalogue head."""
    width = 576
    head = CatalogueHead(HeadSpec(kind="catalogue", width=width, fuse=True))
    head.eval()
    sizes = [1_000, 10_000, 100_000] if quick else [1_000, 10_000, 100_000, 1_000_000]
    rows = torch.arange(32)

    def make(size: int) -> Callable[[], object]:
        tables = (torch.randn(size, head.spec.size + 1), torch.zeros(size, width))
        history, seen = torch.randint(0, size, (32, 50)), torch.full((32,), 50)
        view = View(tables, history, torch.ones_like(history), rows, seen, torch.zeros(32, dtype=torch.long))
        hidden = torch.randn(32, width)
        return lambda: head(hidden, view).topk(10, dim=1)

    found = measure(sizes, make)
    return found | {"milliseconds_per_user": [1000 * value / 32 for value in found["seconds"]]}


def log_size(quick: bool) -> dict[str, Any]:
    """A growing log from a Parquet file to planned training batches, and the peak memory of that process."""
    sizes = [10_000, 100_000, 1_000_000] if quick else [10_000, 100_000, 1_000_000, 10_000_000]
    found = []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "log.parquet"
            write_log(file, size)
            command = [sys.executable, __file__, "--worker", str(file)]
            found.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]))
    seconds = [row["seconds"] for row in found]
    return {
        "sizes": sizes,
        "seconds": seconds,
        "peak_bytes": [r["peak_bytes"] for r in found],
        "exponent": exponent(sizes, seconds),
    }


def write_log(file: Path, size: int) -> None:
    """A synthetic log: Zipf users and items, ratings from 1 to 5."""
    draw = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user_id": (draw.zipf(1.2, size) % max(size // 80, 10)).astype(str),
            "item_id": (draw.zipf(1.3, size) % 100_000).astype(str),
            "timestamp": draw.integers(1_500_000_000, 1_600_000_000, size),
            "rating": draw.integers(1, 6, size).astype(np.float64),
        }
    )
    frame.write_parquet(file)


def worker(file: Path) -> None:
    """Read, order, split, cut into windows, lay out a first batch, plan all batches; print seconds and peak memory."""
    begun = time.perf_counter()
    log = genre.Interactions.from_frame(pl.read_parquet(file), name="synthetic")
    chosen = split(log, SplitConfig(kind="temporal", valid=0.1, test=0.1))
    windows, _ = training_windows(log, chosen.part == 0, max_events=100, min_events=2, shift=0.5)
    layout = Layout(
        tokenize=lambda text: [1],
        start=(0,),
        item="token",
        text=("title",),
        instruction="",
        max_item_tokens=8,
        feedback=FeedbackVocabulary.fit("rating", log.column("rating")),
        max_events=100,
        soft_feedback=True,
    )
    builder = RowBuilder(log, layout)
    lengths = np.array([1 + 2 * len(window.events) for window in windows])
    batches = list(plan_batches(lengths, 8192, np.random.default_rng(0).permutation(len(lengths))))
    collate([builder.row(windows[place]) for place in batches[0]], {})
    seconds = time.perf_counter() - begun
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "batches": len(batches)}))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parts = ("events", "candidates", "adapters", "catalogue", "log")
    parser.add_argument("--json", type=Path, default=Path("build/bench/scaling.json"))
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(parts))
    parser.add_argument("--quick", action="store_true", help="fewer and smaller sizes")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker)
        return
    options.json.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    for part in options.only:
        with tempfile.TemporaryDirectory() as folder:
            if part == "catalogue":
                found = catalogue(options.quick)
            elif part == "log":
                found = log_size(options.quick)
            else:
                shelf = Shelf(Path(folder), open_log("data/ml-100k"), genre.Base.load("smollm2-135m", depth=DEPTH))
                found = {"events": events, "candidates": candidates, "adapters": adapters}[part](shelf, options.quick)
        result[part] = found
        keep_figures(options.json, result)
        print(f"{part}: {json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
