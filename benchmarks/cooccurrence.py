"""The co-occurrence term of a next-item adapter on the validation part: a table of factors against a map of item vectors.

    python benchmarks/baselines.py --tasks next_item      # trains the adapters that this one reads
    python benchmarks/cooccurrence.py [--seed 1]

For each form, the best of the interpolation weights that training tries, and the size of the factors that a map gives to random
unit vectors relative to those of warm items: a bound for items whose text is unlike any other.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch

import genre
from genre.data.splits import VALID
from genre.evaluation.history import Histories
from genre.evaluation.metrics.ranking import ndcg
from genre.evaluation.ranking import block_rows, rank_in_blocks
from genre.evaluation.targets import targets
from genre.jobs.loading import open_log
from genre.modules.collaborative import pure_svd
from genre.modules.heads.gaussian_process import ridge, to_unit
from genre.training import fit
from genre.training.assembly import assemble
from genre.training.cooccurrence import WEIGHTS
from genre.training.prediction import outputs
from rivals.common import recent

RECIPE = Path(__file__).parent / "recipes" / "next_item.yaml"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=Path, default=Path("build/bench/baselines-runs/next_item-test"))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    log = open_log("data/ml-100k")
    recipe = genre.Recipe.read(RECIPE, [f"train.seed={options.seed}", "encoder.taste=0"])
    made = assemble(recipe, log, genre.Base.load(recipe.base.name, depth=recipe.base.depth))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(options.runs / f"run-{options.seed}", Path(folder) / "run")
        fit(made, Path(folder) / "run", resume=True)
    found = targets(log, made.split, VALID)
    scores = np.empty((len(found), log.catalogue.size), dtype=np.float32)
    longest = recipe.data.max_events
    for _, events, part in outputs(made.model, made.builder, made.split, VALID, max_events=longest):
        scores[np.searchsorted(found.event, events)] = part
    assert made.model.soft is not None
    vectors = to_unit(made.model.soft.every())
    made.model.release()
    factors = torch.from_numpy(pure_svd(log, made.train_mask, dimensions=64))
    weight = torch.from_numpy(np.bincount(log.item_codes[made.train_mask], minlength=log.catalogue.size)).float()
    history = recent(log, Histories(log, made.split), found.event, longest, 0.95)
    draw = to_unit(torch.randn(2000, vectors.shape[1], generator=torch.Generator().manual_seed(0)))

    def quality(shown: np.ndarray) -> float:
        return ndcg(rank_in_blocks(log, made.split, found, ((rows, shown[rows]) for rows in block_rows(len(found)))).ranks, 10)

    def report(name: str, factors: np.ndarray, random: float | None = None) -> None:
        term = np.asarray((history @ factors) @ factors.T, dtype=np.float32)
        values = {blend: quality(scores + blend / term.std(1).mean() * term) for blend in WEIGHTS}
        best = max(values, key=values.__getitem__)
        note = "" if random is None else f", random vectors {random:.1f} times the warm items'"
        print(f"{name:28} {values[best]:.4f} at {best:g}{note}", flush=True)

    print(f"validation NDCG@10, {len(found)} targets, seed {options.seed}\n{'adapter alone':28} {quality(scores):.4f}")
    report("table of factors", factors.numpy())
    for strength in (1e-3, 1e-2, 1e-1):
        mapped = ridge(vectors, factors, weight, strength=strength)
        known = float(((vectors @ mapped).norm(dim=1) * weight).sum() / weight.sum())
        report(f"map, ridge {strength:g}", (vectors @ mapped).numpy(), float((draw @ mapped).norm(dim=1).mean()) / known)


if __name__ == "__main__":
    main()
