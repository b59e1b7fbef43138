"""Items that training hardly knows: an adapter that reads their text beside id-only baselines, on ML-100K.

    python benchmarks/cold_items.py --json build/bench/cold_items.json [--part test] [--set encoder.dropout=0.3 …]

A fifth of the items is held out of training, so that nothing is learnt from their events; with the items that have one to
four training events they are the cold items. Targets are the events of the part on cold items. Each is ranked twice, seen items
masked: among the cold items alone (`cold`), and in the whole catalogue (`full`).

A scorer that knows nothing of cold items gives them one score. Mid-ranks would call that zero, so here a tie's gain is its
expectation over random orders, for every method alike; `random` is that of a constant score. Rivals choose their settings on all
validation targets. `text_neighbours` is not an id-only baseline: it measures the similarity of texts by the base's untrained
vectors.
Intervals: users drawn again, the same draws for all methods. Each method's result is cached beside the JSON file.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import genre
from genre.data.splits import PARTS, split, training_events
from genre.evaluation.baselines import popularity_blocks
from genre.evaluation.ease import ease
from genre.evaluation.history import Histories
from genre.evaluation.metrics.bootstrap import RESAMPLES, user_draws
from genre.evaluation.ranking import Block, block_rows
from genre.evaluation.targets import Targets, targets
from genre.jobs.loading import open_log
from genre.modules.text_vectors import text_vectors
from genre.progress import Reporter
from genre.training import fit
from genre.training.assembly import assemble
from genre.training.prediction import outputs
from rivals.common import protocol, recent
from rivals.factors import als, bpr
from rivals.neighbours import item_knn, sequence_knn
from suite import keep_figures

RECIPE = Path(__file__).parent / "recipes" / "cold_items.yaml"
FEWER_THAN, CUT = 5, 10
ID_ONLY = ("random", "popularity", "ease", "item_knn", "sequence_knn", "als", "bpr")
METHODS = ("adapter", *ID_ONLY, "text_neighbours")
SCOPES = {"cold": "among cold items only", "full": "in the full catalogue"}
SLICES = {"all": "fewer than 5 training events", "held_out": "no training event", "rare": "1 to 4 training events"}


class Cold:
    """The cold targets of one part and the methods' predictions for them, cached on disk."""

    def __init__(self, folder: Path, recipe: genre.Recipe, log: genre.Interactions, part: str) -> None:
        self.run = folder / "run"
        self.folder = folder / part
        self.recipe = recipe
        self.log = log
        self.part = PARTS[part]
        self.split = split(log, recipe.data.split)
        self.events = training_events(log, self.split.part)
        self.cold = self.events < FEWER_THAN
        self.all = targets(log, self.split, self.part)
        self.targets: Targets = self.all.take(self.cold[self.all.item])
        self.histories = Histories(log, self.split)
        self.folder.mkdir(parents=True, exist_ok=True)

    def of(self, method: str) -> dict[str, np.ndarray]:
        """For each scope (n, 2) int64: how many other candidates are better, and how many equal."""
        file = self.folder / f"{method}.npz"
        if not file.exists():
            begun, found = time.perf_counter(), {scope: np.full((len(self.targets), 2), -1) for scope in SCOPES}
            blocks, settings = self._adapter() if method == "adapter" else self._rival(method)
            for rows, scores in blocks:
                for scope, counts in self._counted(np.arange(len(self.targets))[rows], scores).items():
                    found[scope][rows] = counts
            assert all((counts >= 0).all() for counts in found.values()), f"{method} has not scored every target"
            described = json.dumps({**settings, "seconds": round(time.perf_counter() - begun, 1)})
            aside = file.with_name(f".{file.name}")
            with aside.open("wb") as stream:
                np.savez(stream, settings=described, **found)
            aside.rename(file)
        held = np.load(file)
        return {scope: held[scope] for scope in SCOPES} | {"settings": json.loads(str(held["settings"]))}

    def _counted(self, rows: np.ndarray, given: np.ndarray) -> dict[str, np.ndarray]:
        scores, own = np.array(given, dtype=np.float32), self.targets.item[rows]
        mine = scores[np.arange(len(rows)), own]
        pairs, events = self.histories.pairs(self.targets.event[rows])
        scores[pairs, self.log.item_codes[events]] = np.nan  # compares as neither better nor equal
        scores[np.arange(len(rows)), own] = np.nan
        found = {}
        for scope, candidates in (("cold", scores[:, self.cold]), ("full", scores)):
            found[scope] = np.stack([(candidates > mine[:, None]).sum(1), (candidates == mine[:, None]).sum(1)], 1)
        return found

    def _rival(self, name: str) -> tuple[Iterator[Block], dict[str, Any]]:
        if name == "random":
            zeros = np.zeros((1, self.log.catalogue.size), dtype=np.float32)
            blocks = block_rows(len(self.targets))
            return ((rows, np.repeat(zeros, rows.stop - rows.start, 0)) for rows in blocks), {}
        if name == "popularity":
            return popularity_blocks(self.log, self.split, self.targets), {}
        if name == "ease":
            fitted = ease(self.log, self.split)
            return fitted.blocks(self.targets), {"ridge": fitted.ridge}
        if name == "text_neighbours":
            return self._text_neighbours(), {"decay": 0.9}
        ranker = {"item_knn": item_knn, "sequence_knn": sequence_knn, "als": als, "bpr": bpr}[name](self.log, self.split)
        return ranker.blocks(self.targets), ranker.settings

    def _text_neighbours(self) -> Iterator[Block]:
        """Σ over the history of 0.9^age · cosine of the base's text vectors, standardized."""
        base = genre.Base.load(self.recipe.base.name, depth=self.recipe.base.depth)
        vectors = text_vectors(self.log.catalogue.texts(list(self.recipe.sequence.text)), base).numpy()
        vectors = (vectors - vectors.mean(0)) / (vectors.std(0) + 1e-6)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        for rows in block_rows(len(self.targets)):
            history = recent(self.log, self.histories, self.targets.event[rows], 10**9, 0.9)
            yield rows, ((history @ vectors) @ vectors.T).astype(np.float32)

    def _adapter(self) -> tuple[Iterator[Block], dict[str, Any]]:
        recipe, folder = self.recipe, self.run  # trained once, whichever part is read
        assembly = assemble(recipe, self.log, genre.Base.load(recipe.base.name, depth=recipe.base.depth))
        resume = (folder / "checkpoints" / "last.pt").exists()
        fitted = fit(assembly, folder, resume=resume, reporter=Reporter.for_terminal())
        place = np.full(len(self.log), -1)
        place[self.targets.event] = np.arange(len(self.targets))

        def blocks() -> Iterator[Block]:
            for _, events, scores in outputs(
                assembly.model,
                assembly.builder,
                assembly.split,
                self.part,
                max_events=recipe.data.max_events,
            ):
                kept = place[events] >= 0
                yield place[events[kept]], scores[kept]
            assembly.model.release()

        trained = sum(value.numel() for value in assembly.model.trainable().values())
        return blocks(), {
            "seconds_of_training": round(fitted.state.seconds, 1),
            "trained_parameters": trained,
            "validation": fitted.state.history[-1:],
        }


def gains(counts: np.ndarray) -> np.ndarray:
    """(n,) expected gain 1 / log2(1 + rank), rank at most 10, over the orders of b better and e equal others, [n, 2] of both."""
    total = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(CUT) + 2))])
    better, last = np.minimum(counts[:, 0], CUT), np.minimum(counts.sum(1) + 1, CUT)
    return (total[last] - total[better]) / (counts[:, 1] + 1)


def figures(cold: Cold, methods: list[str]) -> dict[str, Any]:
    """Compute NDCG@10 per scope, slice and method, the adapter's paired difference and its ratio to the best id-only one."""
    events = cold.events[cold.targets.item]
    masks = {"all": events >= 0, "held_out": events == 0, "rare": events > 0}
    table: dict[str, Any] = {}
    for scope in SCOPES:
        for name, mask in masks.items():
            if not mask.any():
                continue
            users, codes = np.unique(cold.targets.user[mask], return_inverse=True)
            weights = np.concatenate([np.ones((1, len(users))), *user_draws(len(users), RESAMPLES, 0, block=100)])
            size = weights @ np.bincount(codes, minlength=len(users))
            drawn = {
                method: weights @ np.bincount(codes, gains(cold.of(method)[scope][mask]), minlength=len(users)) / size
                for method in methods
            }
            entry: dict[str, Any] = {"n": int(mask.sum()), "users": len(users), "targets": SLICES[name]}
            entry["ranked"] = f"{SCOPES[scope]} ({cold.cold.sum() if scope == 'cold' else len(cold.cold):,} items)"
            entry["methods"] = {method: {"ndcg@10": _interval(values)} for method, values in drawn.items()}
            for method in methods[1:]:
                entry["methods"][method]["adapter_better_by"] = _interval(drawn["adapter"] - drawn[method])
            best = max((method for method in methods if method in ID_ONLY), key=lambda method: drawn[method][0])
            entry["against_best"] = {"baseline": best, "ratio": _interval(drawn["adapter"] / drawn[best])}
            table[f"{scope}/{name}"] = entry
    return table


def _interval(values: np.ndarray) -> dict[str, Any]:
    known = values[1:][np.isfinite(values[1:])]
    return {"value": float(values[0]), "interval": [float(value) for value in np.quantile(known, [0.025, 0.975])]}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=Path("build/bench/cold_items.json"))
    parser.add_argument("--part", choices=["valid", "test"], default="test", help="valid: look before the declared run")
    parser.add_argument("--skip", type=lambda text: text.split(","), default=[], help="methods to leave out")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="of the recipe")
    parser.add_argument("--fresh", action="store_true", help="do not go on from an interrupted run")
    options = parser.parse_args()
    folder = options.json.parent / f"{options.json.stem}-runs"
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    recipe = genre.Recipe.read(RECIPE, options.overrides)
    cold = Cold(folder, recipe, open_log(recipe.data.path), options.part)
    methods = [method for method in METHODS if method not in options.skip]
    for method in methods:
        print(f"{method}: {cold.of(method)['settings']}", flush=True)
    result = {
        "part": options.part,
        "recipe": recipe.model_dump(mode="json"),
        "protocol": f"{protocol(recipe.data.split)}; all earlier events are history; seen items masked; "
        f"{cold.log.tie_rule}; the expected gain of ties",
        "items": {"cold": int(cold.cold.sum()), "held_out": int((cold.events == 0).sum()), "all": len(cold.cold)},
        "settings": {method: cold.of(method)["settings"] for method in methods},
        "results": figures(cold, methods),
    }
    keep_figures(options.json, result)
    for entry in result["results"].values():
        print(f"\n{entry['targets']}, ranked {entry['ranked']}: {entry['n']} targets of {entry['users']} users")
        for method, found in entry["methods"].items():
            print(f"  {method:16} NDCG@10 {found['ndcg@10']['value']:.4f}")
        print(f"  against {entry['against_best']['baseline']}: {entry['against_best']['ratio']['value']:.2f} times")


if __name__ == "__main__":
    main()
