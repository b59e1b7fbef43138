"""Codes of a catalogue's items by each method: use of the levels, collisions, and how they fit what users do next.

    python benchmarks/codes.py --data data/scientific --json build/bench/codes.json [--features text collaborative]

Codes are fitted to the training events of a last-event-out split. `next` is how much more often than by chance the item of a test
event has the first code (two codes) of the event before it: where codes follow behaviour, the next item's is easier to tell.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

import genre
from genre.data.interactions import Interactions
from genre.jobs.loading import open_log
from genre.modules.codes.fitting import fit_codes
from genre.modules.codes.use import collisions, levels
from genre.recipe import CodesConfig
from genre.training.assembly import feedback_column, fit_vocabulary, training_split
from genre.training.parts import make_encoder
from suite import keep_figures

SHAPE: Any = {"levels": 3, "size": 256}
METHODS = {
    "k-means": CodesConfig(**SHAPE, balanced=False),
    "k-means, balanced": CodesConfig(**SHAPE),
    "RQ-VAE": CodesConfig(**SHAPE, method="rqvae", balanced=False),
    "RQ-VAE, balanced": CodesConfig(**SHAPE, method="rqvae"),
}


def lift(codes: np.ndarray, length: int, log: Interactions) -> float:
    """How much more often than by chance the last two items of a user share their first codes."""
    _, prefix = np.unique(codes[:, :length], axis=0, return_inverse=True)
    ends = log.user_offsets[1:][np.diff(log.user_offsets) >= 3]
    before, last = prefix[log.item_codes[ends - 2]], prefix[log.item_codes[ends - 1]]
    chance = np.bincount(before, minlength=prefix.max() + 1) @ np.bincount(last, minlength=prefix.max() + 1) / len(ends) ** 2
    return float((before == last).mean() / chance)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True)
    parser.add_argument("--features", nargs="+", default=["text", "collaborative"])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--json", type=Path, default=Path("build/bench/codes.json"))
    chosen = parser.parse_args()
    log = open_log(chosen.data)
    raw: dict[str, Any] = {"name": "codes", "data": {"path": chosen.data, "split": {"kind": "last_n"}}}
    recipe = genre.Recipe.parse(raw | {"tasks": [{"name": "next_item", "kind": "next_item"}], "encoder": {"factors": 64}})
    base = genre.Base.load("smollm2-135m", depth=chosen.depth)
    _, train = training_split(recipe, log)
    encoder = make_encoder(recipe, log, base, train, fit_vocabulary(feedback_column(recipe, log), log, train)).encoder
    encoder.table(log.catalogue, base, fit=True)
    every = encoder.code_features(log.catalogue, encoder.standardized(log.catalogue, base), encoder.rows_of(log.catalogue))
    features = {name: every[name] for name in chosen.features}
    found: dict[str, Any] = {}
    for name, config in METHODS.items():
        begun = time.process_time()
        made = fit_codes(config, features, width=base.hidden_size, scale=1.0)
        seconds, codes = time.process_time() - begun, made.codes.numpy()
        same = collisions(codes)
        found[name] = {
            "cpu_s": seconds,
            "perplexity": [each["perplexity"] for each in levels(codes, made.sizes)[:-1]],
            "collisions": same["share"],
            "most": same["most"],
            "next": [lift(codes, length, log) for length in (1, 2)],
        }
        print(f"{name:18}", found[name], flush=True)
    keep_figures(chosen.json, {"items": log.catalogue.size, "features": chosen.features, "methods": found})


if __name__ == "__main__":
    main()
