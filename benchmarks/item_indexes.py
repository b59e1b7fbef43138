"""Approximate indexes over the vectors of a dense head: memory, time for one user, and what of the exact top 10 they find.

    python benchmarks/item_indexes.py --items 4000,100000,1000000 --json build/bench/item_indexes.json

The vectors are generated, in clusters, of the 193 dimensions that a head over the whole catalogue has by default (128 of keys,
64 of the co-occurrence term, one bias). One thread, one user at a time, the median of `--users` of them; an inverted index looks
into twice as many lists until it finds 95 %. What generating items by their codes takes: `python benchmarks/generate.py --scale`.
It needs the extra `vectors`.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genre.engine.planning import best
from suite import keep_figures

WIDTH = 193
K = 10
MOST_HNSW = 1_000_000
"""Items above which no graph is built, for the time that it takes."""
CLUSTERED = 1000
FOUND = 0.95


def vectors_of(items: int, users: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of items and of users, (n, WIDTH) float32, around the same centres."""
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(CLUSTERED, WIDTH)).astype(np.float32)
    made = [centres[draw.integers(0, CLUSTERED, count)] for count in (items, users)]
    first, second = (each + draw.normal(size=each.shape).astype(np.float32) for each in made)
    return first, second


def indexes(vectors: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Builders of each index over some items."""
    import faiss

    def graph() -> Any:
        made = faiss.IndexHNSWFlat(WIDTH, 32, faiss.METRIC_INNER_PRODUCT)
        made.hnsw.efSearch = 64
        made.add(vectors)
        return made

    def inverted() -> Any:
        lists = int(4 * len(vectors) ** 0.5)
        made = faiss.IndexIVFFlat(faiss.IndexFlatIP(WIDTH), WIDTH, lists, faiss.METRIC_INNER_PRODUCT)
        made.train(vectors[:: max(1, len(vectors) // (64 * lists))])
        made.add(vectors)
        return made

    return {"ivf": inverted} | ({"hnsw": graph} if len(vectors) <= MOST_HNSW else {})


def searched(index: Any, queries: np.ndarray, exact: list[np.ndarray]) -> tuple[float, float]:
    """Ms of one user's search, the median, and the share of the exact top that searches find."""
    times, shares = [], []
    for query, wanted in zip(queries, exact, strict=True):
        begun = time.perf_counter()
        _, own = index.search(query[None], K)
        times.append(time.perf_counter() - begun)
        shares.append(np.isin(wanted, own[0]).mean())
    return 1000 * float(np.median(times)), float(np.mean(shares))


def measured(items: int, users: int) -> dict[str, Any]:
    """Bytes, seconds of building, ms a user and recall of each way."""
    import faiss

    faiss.omp_set_num_threads(1)
    vectors, queries = vectors_of(items, users)
    table, exact, times = torch.from_numpy(vectors), [], []
    for query in queries:
        begun = time.perf_counter()
        exact.append(best((table @ torch.from_numpy(query)).numpy(), K))
        times.append(time.perf_counter() - begun)
    found: dict[str, Any] = {"exact": {"bytes": vectors.nbytes, "ms": 1000 * float(np.median(times)), "recall": 1.0}}
    for name, build in indexes(vectors).items():
        begun = time.perf_counter()
        index = build()
        built = time.perf_counter() - begun
        own, share = searched(index, queries, exact)
        while name == "ivf" and share < FOUND and index.nprobe < index.nlist:
            index.nprobe *= 2
            own, share = searched(index, queries, exact)
        size = len(faiss.serialize_index(index))
        found[name] = {"bytes": size, "build_s": built, "ms": own, "recall": share}
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", default="4000,100000,1000000", help="numbers of items, with commas")
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--json", type=Path, default=Path("build/bench/item_indexes.json"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    every: dict[str, Any] = {}
    for items in map(int, chosen.items.split(",")):
        found = every[f"{items:,}"] = measured(items, chosen.users)
        for name, figures in found.items():
            print(f"{items:>9,} {name:6}", {key: round(value, 3) for key, value in figures.items()}, flush=True)
    keep_figures(chosen.json, {"items": every})


if __name__ == "__main__":
    main()
