"""Ablation of item features: the encoder with and without each, on ML-100K, a small budget per arm.

    python benchmarks/ablation.py --json build/bench/ablation.json [--arms full,no_text] [--set train.epochs=4 …]

full               text (the base's embedding of title, year, genres), learned and collaborative vectors, the knowledge graph's
no_…               full without one of them; …_only is one of them alone
with_image         full, and a list-of-float column as an image model would give, here drawn at random: the cost of noise

Arms differ in the encoder alone: same seed, rows, budget. NDCG@10 on the validation part (nothing is tested here), seen items
masked, with user-bootstrap intervals, and the paired difference from the full arm. Each arm is kept beside the JSON file once
it is done, and the table is written again after each: an interrupted run goes on with the next; `--fresh` begins anew.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import genre
from genre.data.splits import VALID
from genre.evaluation.metrics.bootstrap import bootstrap, paired_bootstrap
from genre.jobs.loading import open_log
from genre.progress import Reporter
from genre.training import fit
from genre.training.assembly import assemble
from genre.training.prediction import predict
from suite import keep_figures

RECIPE = Path(__file__).parent / "recipes" / "ablation.yaml"
IMAGE, IMAGE_SIZE = "image", 64
OFF = {
    "text": "encoder.text=false",
    "learned": "encoder.learned=0",
    "collaborative": "encoder.collaborative=0",
    "kg": "encoder.dense=[]",
}
ARMS: dict[str, list[str]] = {
    "full": [],
    **{f"no_{name}": [change] for name, change in OFF.items()},
    "text_only": [change for name, change in OFF.items() if name != "text"],
    "with_image": [f"encoder.dense=[kg, {IMAGE}]"],
    "learned_only": [change for name, change in OFF.items() if name != "learned"],
}


def with_image(log: genre.Interactions) -> genre.Interactions:
    """Add a column of random vectors to the log's items."""
    drawn = np.random.default_rng(0).normal(size=(log.catalogue.size, IMAGE_SIZE)).astype(np.float32)
    column = pl.Series(IMAGE, drawn.tolist(), dtype=pl.List(pl.Float32))
    frame = log.catalogue.frame.with_columns(column)
    return genre.Interactions.from_frame(log.frame, items=frame, users=log.users, info=log.info)


def train(arm: str, log: genre.Interactions, overrides: list[str], folder: Path) -> dict[str, np.ndarray]:
    """Return the validation ranks of an arm, (n,), with the targets' users; cached on disk."""
    file = folder / f"{arm}.npz"
    if not file.exists():
        recipe = genre.Recipe.read(RECIPE, [*overrides, *ARMS[arm]])
        begun = time.perf_counter(), time.process_time()
        assembly = assemble(recipe, log, genre.Base.load(recipe.base.name, depth=recipe.base.depth))
        resume = (folder / arm / "checkpoints" / "last.pt").exists()
        fitted = fit(assembly, folder / arm, resume=resume, reporter=Reporter.for_terminal())
        found = predict(assembly.model, assembly.builder, assembly.split, VALID, max_events=recipe.data.max_events)
        targets, ranks, _ = found["next_item"]
        assembly.model.release()
        notes = {
            "sources": assembly.shared.encoder.spec.sources if assembly.shared else {},
            "tokens": fitted.state.tokens,
            "seconds": round(time.perf_counter() - begun[0], 1),
            "cpu_seconds": round(time.process_time() - begun[1], 1),
        }
        aside = file.with_name(f".{file.name}")
        with aside.open("wb") as stream:
            np.savez(stream, ranks=ranks, users=targets.user, events=targets.event, notes=json.dumps(notes))
        aside.rename(file)
        shutil.rmtree(folder / arm, ignore_errors=True)
    return dict(np.load(file))


def table(arms: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Each arm's NDCG@10 and its paired difference from the full one."""
    found: dict[str, Any] = {}
    for arm, one in arms.items():
        entry = {"ndcg@10": bootstrap("ndcg@10", one["users"], None, one["ranks"]).as_dict(), **json.loads(str(one["notes"]))}
        if arm != "full" and "full" in arms:
            full = arms["full"]
            if not np.array_equal(full["events"], one["events"]):
                raise RuntimeError(f"{arm} has other targets than full")
            entry["against_full"] = paired_bootstrap("ndcg@10", one["users"], None, one["ranks"], full["ranks"]).as_dict()
        found[arm] = entry
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=Path("build/bench/ablation.json"))
    parser.add_argument("--arms", type=lambda text: text.split(","), default=list(ARMS))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="of every arm's recipe")
    parser.add_argument("--fresh", action="store_true", help="do not go on from an interrupted run")
    options = parser.parse_args()
    if unknown := [arm for arm in options.arms if arm not in ARMS]:
        parser.error(f"no such arm: {unknown[0]}; expected {', '.join(ARMS)}")
    folder = options.json.parent / f"{options.json.stem}-runs"
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    recipe = genre.Recipe.read(RECIPE, options.overrides)
    log = with_image(open_log(recipe.data.path))
    arms: dict[str, dict[str, np.ndarray]] = {}
    for arm in options.arms:
        arms[arm] = train(arm, log, options.overrides, folder)
        result = {"part": "valid", "recipe": recipe.model_dump(mode="json"), "arms": table(arms)}
        keep_figures(options.json, result)
        shown = result["arms"][arm]
        print(f"{arm:16} NDCG@10 {shown['ndcg@10']['value']:.4f}  against full {shown.get('against_full')}", flush=True)


if __name__ == "__main__":
    main()
