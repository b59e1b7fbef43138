"""Gathered against grouped low-rank products, for 16 rows of 128 tokens over 1, 4 and 16 distinct adapters.

    python benchmarks/lanes_products.py [--rounds 60]

gathered   every row picks its adapter's matrices: one batched product over rows (what the engine does)
grouped    rows of one adapter stand together and are one longer row: one batched product over adapters; possible without a
           loop only where every adapter of the batch has equally many rows
Both products of all seven linears of one layer of the embedded base, rank 8, with the groups q, k, v and gate, up sharing the
first. Prints how many times longer gathered takes, and its share of the layer's own products.
"""

import argparse
import time
from statistics import median

import torch

ROWS, TOKENS, RANK = 16, 128, 8
GROUPS = (((576,), (576, 192, 192)), ((576,), (576,)), ((576,), (1536, 1536)), ((1536,), (576,)))


@torch.inference_mode()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    torch.manual_seed(0)
    layers = []
    for (inside,), outsides in GROUPS:
        a = torch.randn(ROWS + 1, len(outsides) * RANK, inside) / inside**0.5
        layers.append((torch.randn(ROWS, TOKENS, inside), a, [torch.randn(ROWS + 1, RANK, out) for out in outsides]))
    weights = [[torch.randn(out, x.shape[-1]) for out in outs] for (x, _, _), (_, outs) in zip(layers, GROUPS, strict=True)]

    def base() -> None:
        for (x, _, _), own in zip(layers, weights, strict=True):
            for weight in own:
                torch.nn.functional.linear(x, weight)

    def products(slots: torch.Tensor, rows: int) -> None:
        for x, a, bs in layers:
            first = torch.bmm(a[slots], x.view(len(slots), rows * TOKENS, -1).transpose(1, 2))
            for member, b in enumerate(bs):
                torch.bmm(first[:, member * RANK : (member + 1) * RANK].transpose(1, 2), b[slots])

    for distinct in (1, 4, 16):
        one = torch.arange(distinct)
        every = one.repeat_interleave(ROWS // distinct)
        ways = {
            "gathered": lambda slots=every: products(slots, 1),
            "grouped": lambda slots=one: products(slots, ROWS // len(slots)),
            "base": base,
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(options.rounds + 5):
            first, second = ("gathered", "grouped") if turn % 2 else ("grouped", "gathered")
            for name in ("base", first, "base", second):  # each of the two finds the same cold cache
                begun = time.perf_counter()
                ways[name]()
                if turn >= 5:
                    seconds[name].append(time.perf_counter() - begun)
        ratio = median(a / b for a, b in zip(seconds["gathered"], seconds["grouped"], strict=True))
        share = median(seconds["gathered"]) / median(seconds["base"])
        print(
            f"{distinct:2} adapters: gathered takes {ratio:.2f} times as long as grouped, {share:.3f} of the layer's own products"
        )


if __name__ == "__main__":
    main()
