"""Products of matrices on this CPU: oneDNN's against torch's choice for float32, on the shapes of a small base.

    python benchmarks/products.py [--rounds 30]
    python benchmarks/products.py --memory 300

For each linear of a layer of SmolLM2-135M (576 wide, MLP 1,536) and each number of tokens: x Wᵀ, the gradient of x, and the four
products of an update of rank 8. The two ways alternate in one process, after a warm-up; figures are medians. `new` is what the
first product of a shape takes beyond the next ones; `bfloat16` the first product in that precision, by oneDNN, against float32 as
torch does it. With `--memory N` instead: how much a process has grown after N products of each linear, forward and backward,
of 1,000 to 2,048 tokens, as they come and filled up to counts that repeat; a process for each way.
"""

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from genre.modules.base.products import SETTING, even, library, times
from genre.modules.lora.products import to_update

SHAPES = {"q, o": (576, 576), "k, v": (576, 192), "gate, up": (576, 1536), "down": (1536, 576)}
TOKENS, RANK = (64, 512, 2048), 8
WAYS = ("torch", "onednn", "bfloat16")


def by(wanted: str, work: Callable[[], Any]) -> float:
    """Seconds of some work with a library."""
    os.environ[SETTING] = wanted
    library.cache_clear()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def compare(work: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Median milliseconds with torch's choice and with oneDNN."""
    taken: dict[str, list[float]] = {"torch": [], "onednn": []}
    for turn in range(rounds + 3):
        for name, found in taken.items():
            seconds = by(name, work)
            if turn >= 3:
                found.append(1e3 * seconds)
    return median(taken["torch"]), median(taken["onednn"])


def new_shape(weight: Tensor, tokens: int) -> float:
    """Milliseconds that oneDNN's first product of a shape takes beyond its second."""
    x = torch.randn(tokens + 40, weight.shape[1])
    beyond = []
    for size in range(tokens + 3, tokens + 33):
        first, second = (by("onednn", partial(times, x[:size], weight, tokens=2048)) for _ in range(2))
        beyond.append(1e3 * (first - second))
    return median(beyond)


def half(x: Tensor, weight: Tensor, rounds: int) -> float:
    """How many times as fast the product is in bfloat16."""
    exact, rough = (x, weight), (x.bfloat16(), weight.bfloat16())
    ratios = [by("torch", partial(times, *exact)) / by("torch", partial(times, *rough)) for _ in range(rounds + 3)]
    return median(ratios[3:])


@torch.no_grad()
def grow(way: str, evenly: bool, count: int) -> None:
    """Print by how many MiB this process grows."""
    os.environ[SETTING] = "onednn" if way == "onednn" else "torch"
    draw = random.Random(0)
    kind = torch.bfloat16 if way == "bfloat16" else torch.float32
    weights = [torch.randn(outputs, inputs).to(kind) for inputs, outputs in SHAPES.values()]
    before = resident()
    for _ in range(count):
        tokens = draw.randint(1000, 2048)
        tokens = even(tokens) if evenly else tokens
        for weight in weights:
            given = torch.zeros(tokens, weight.shape[1], dtype=kind)
            times(times(given, weight, tokens=2048), weight.t(), tokens=2048)
    print(f"{way}{', evenly' if evenly else ''}: {resident() - before} MiB", flush=True)


def resident() -> int:
    """MiB of this process that are in memory."""
    with open("/proc/self/statm") as facts:
        return int(facts.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


@torch.no_grad()
def main(rounds: int) -> None:
    """Measure and print."""
    torch.manual_seed(0)
    heads = ("product, torch / oneDNN", "gradient of x", f"update of rank {RANK}")
    print(f"{'linear':9} {'tokens':>6}  {''.join(f'{each:28}' for each in heads)}new       bfloat16")
    for name, (inputs, outputs) in SHAPES.items():
        for tokens in TOKENS:
            x, gradient = torch.randn(tokens, inputs), torch.randn(tokens, outputs)
            weight, a, b = torch.randn(outputs, inputs), torch.randn(RANK, inputs), torch.randn(outputs, RANK)
            parts = (
                partial(times, x, weight), partial(times, gradient, weight.t()), partial(to_update, x, gradient, a, b, 2.0),
            )  # fmt: skip
            figures = [compare(work, rounds) for work in parts]
            said = "".join(f"  {stock:7.2f} / {ours:6.2f} ms {stock / ours:5.2f}×" for stock, ours in figures)
            print(f"{name:9} {tokens:6,}{said}  {new_shape(weight, tokens):5.2f} ms  {half(x, weight, rounds):5.2f}×", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--memory", type=int, metavar="N")
    parser.add_argument("--way", choices=WAYS, help="one way's memory, in this process")
    parser.add_argument("--evenly", action="store_true")
    options = parser.parse_args()
    if options.way:
        grow(options.way, options.evenly, options.memory)
    elif options.memory:
        for way in WAYS:
            for also in ([], ["--evenly"]):
                subprocess.run([sys.executable, __file__, "--memory", str(options.memory), "--way", way, *also], check=True)
    else:
        main(options.rounds)
