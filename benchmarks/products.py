"""Products of float32 matrices on this CPU: oneDNN's against torch's choice, on the shapes of a small base.

    python benchmarks/products.py [--rounds 30]

For each linear of a layer of SmolLM2-135M (576 wide, MLP 1,536) and each number of tokens: x Wᵀ, the gradient of x, and the four
products of an update of rank 8. The two ways alternate in one process, after a warm-up; figures are medians. `new` is what the
first product of a shape takes beyond the next ones.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from genre.lora_products import to_update
from genre.products import SETTING, library, times

SHAPES = {"q, o": (576, 576), "k, v": (576, 192), "gate, up": (576, 1536), "down": (1536, 576)}
TOKENS, RANK = (64, 512, 2048), 8


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
        first, second = (by("onednn", partial(times, x[:size], weight)) for _ in range(2))
        beyond.append(1e3 * (first - second))
    return median(beyond)


@torch.no_grad()
def main(rounds: int) -> None:
    """Measure and print."""
    torch.manual_seed(0)
    print(f"{'linear':9} {'tokens':>6}  product, torch / oneDNN     gradient of x               update of rank {RANK}     new")
    for name, (inputs, outputs) in SHAPES.items():
        for tokens in TOKENS:
            x, gradient = torch.randn(tokens, inputs), torch.randn(tokens, outputs)
            weight, a, b = torch.randn(outputs, inputs), torch.randn(RANK, inputs), torch.randn(outputs, RANK)
            parts = (
                partial(times, x, weight), partial(times, gradient, weight.t()), partial(to_update, x, gradient, a, b, 2.0),
            )  # fmt: skip
            figures = [compare(work, rounds) for work in parts]
            said = "".join(f"  {stock:7.2f} / {ours:6.2f} ms {stock / ours:5.2f}×" for stock, ours in figures)
            print(f"{name:9} {tokens:6,}{said}  {new_shape(weight, tokens):5.2f} ms", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    main(parser.parse_args().rounds)
