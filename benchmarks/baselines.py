"""Adapters beside strong baselines on ML-100K: the same splits, masks and ties, each seed's test part read once.

    python benchmarks/baselines.py --json build/bench/baselines.json [--tasks next_item,like,rating] [--seeds 0,1,2] [--part test]

next_item   last_n 5, full catalogue, seen items masked: NDCG@10 and more, against popularity, EASE, item and sequence
            neighbours, ALS, BPR, a two-layer self-attentive model, PureSVD of a fading history, and the self-attentive
            model with the adapter's averaging of weights and linear term
like        rating > 3, temporal 80/10/10, prequential: AUC, against item mean, running share, additive, boosted trees
rating      u1 (rows 0-19,999), transductive: RMSE, against item mean, running mean, additive, bias-only, boosted trees;
            once settings are chosen on a tenth of the training rows, all methods learn from all of them, as published
            u1 figures do

Settings of the rivals and of the recipes were chosen on validation parts; the self-attentive model has one, and stops there.
Figures are means over the seeds; an interval is the user bootstrap of that mean, with the same users drawn for every method and
seed, so it leaves out what other seeds would have given; differences are paired. Each method's result per seed is cached
beside the JSON file, so an interrupted run continues; `--fresh` starts over.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import genre
from genre.data.splits import PARTS, Split, split
from genre.evaluation.baselines import feedback_baselines, ranking_baselines
from genre.evaluation.metrics.by_name import metric
from genre.evaluation.protocol import protocol_line
from genre.evaluation.ranking import rank_in_blocks
from genre.evaluation.targets import Targets, targets
from genre.jobs.loading import open_log
from genre.progress import Reporter
from genre.training import fit
from genre.training.assembly import assemble
from genre.training.prediction import predict
from genre.training.self_attentive import self_attentive
from rivals.factors import als, bpr
from rivals.fused import fused
from rivals.linear import recent_svd
from rivals.neighbours import item_knn, sequence_knn
from rivals.trees import boosted_trees
from seeds import drawn, interval
from suite import keep_figures

RECIPES = Path(__file__).parent / "recipes"
METRICS = {"next_item": ("ndcg@10", "hr@10", "mrr@10"), "like": ("auc", "gauc", "log_loss"), "rating": ("rmse", "mae")}
RANKERS: dict[str, Callable[..., Any]] = {
    "item_knn": item_knn,
    "sequence_knn": sequence_knn,
    "als": als,
    "bpr": bpr,
    "recent_svd": recent_svd,
}
NETWORKS = ("self_attentive", "self_attentive_fused")
REFIT = ("rating",)
BY_SEED = ("adapter", *NETWORKS, "boosted_trees")
AVERAGES = (0.99, 0.998)
"""Decays of the averages of the fused network's weights."""
OWN_TERM = ("self_attentive_fused",)
"""Has what the adapter adds to itself, so it is reported beside the others and is none of the baselines that are to be beaten."""


class Scores:
    """Predictions of methods for one task's targets, cached on disk by method and seed."""

    def __init__(self, folder: Path, task: str, log: genre.Interactions, part: str) -> None:
        self.folder = folder / f"{task}-{part}"
        self.log = log
        self.part = PARTS[part]
        chosen = genre.Recipe.read(RECIPES / f"{task}.yaml").data.split
        whole = chosen.model_copy(update={"valid": 0.0}) if task in REFIT and part == "test" else chosen
        self.overrides = [f"data.split={whole.model_dump_json(exclude_none=True)}"]
        self.recipe = genre.Recipe.read(RECIPES / f"{task}.yaml", self.overrides)
        self.task = self.recipe.tasks[0]
        self.split: Split = split(log, self.recipe.data.split)
        self.choose: Split = self.split if whole is chosen else split(log, chosen)
        self.label = None if task == "next_item" else self.task.labels({n: log.column(n) for n in log.event_columns})
        self.targets: Targets = targets(log, self.split, self.part, self.label)
        self.folder.mkdir(parents=True, exist_ok=True)

    def of(self, name: str, seed: int) -> np.ndarray:
        """Ranks (next_item) or scores of a method, (n,) float64."""
        file = self.folder / f"{name}-{seed if name in BY_SEED else 0}.npz"
        if not file.exists():
            begun = time.perf_counter()
            values, settings = self._make(name, seed)
            aside = file.with_name(f".{file.name}")
            with aside.open("wb") as stream:
                np.savez(stream, values=values, settings=json.dumps(settings), seconds=time.perf_counter() - begun)
            aside.rename(file)
        return np.asarray(np.load(file)["values"])

    def described(self, name: str) -> dict[str, Any]:
        """Settings and seconds of a method's first seed."""
        held = np.load(sorted(self.folder.glob(f"{name}-*.npz"))[0])
        return {"settings": json.loads(str(held["settings"])), "seconds": round(float(held["seconds"]), 1)}

    def _make(self, name: str, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        if name == "adapter":
            return self._adapter(seed)
        if self.task.kind == "next_item":
            settings = {}
            if name in RANKERS or name in NETWORKS:
                ranker = self._network(name, seed) if name in NETWORKS else RANKERS[name](self.log, self.split)
                blocks, settings = ranker.blocks(self.targets), ranker.settings
            else:
                blocks = ranking_baselines(self.log, self.split, self.targets)[name]()
            return rank_in_blocks(self.log, self.split, self.targets, blocks, seen=self.task.seen).ranks, settings
        assert self.label is not None
        binary = self.task.is_binary
        if name == "boosted_trees":
            found = boosted_trees(self.log, self.split, self.label, self.targets, binary=binary, seed=seed, choose=self.choose)
            return found, {"seed": seed}
        return feedback_baselines(self.log, self.split, self.label, self.targets, binary=binary)[name], {}

    def _network(self, name: str, seed: int) -> Any:
        if name not in OWN_TERM:
            return self_attentive(self.log, self.split, seed=seed)
        return fused(self_attentive(self.log, self.split, averages=AVERAGES, seed=seed), self.log, self.split)

    def _adapter(self, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
        recipe = genre.Recipe.read(RECIPES / f"{self.task.name}.yaml", [*self.overrides, f"train.seed={seed}"])
        folder = self.folder / f"run-{seed}"
        assembly = assemble(recipe, self.log, genre.Base.load(recipe.base.name, depth=recipe.base.depth))
        resume = (folder / "checkpoints" / "last.pt").exists()
        fitted = fit(assembly, folder, resume=resume, reporter=Reporter.for_terminal())
        every = predict(assembly.model, assembly.builder, assembly.split, self.part, max_events=recipe.data.max_events)
        found = every[self.task.name]
        if not np.array_equal(found[0].event, self.targets.event):
            raise RuntimeError("the adapter scored other targets than the baselines")
        trained = sum(value.numel() for value in assembly.model.trainable().values())
        assembly.model.release()
        settings = {"seed": seed, "seconds_of_training": fitted.state.seconds, "trained_parameters": trained}
        return found[1], settings | {"validation": fitted.state.history[-1] if fitted.state.history else {}}


def methods(scores: Scores) -> list[str]:
    """Names of the methods compared with the adapter."""
    if scores.task.kind == "next_item":
        return ["adapter", "popularity", "ease", *RANKERS, *NETWORKS]
    plain = ["item_mean", "running_user_share", "additive"]
    return ["adapter", *plain, *([] if scores.task.is_binary else ["bias_only"]), "boosted_trees"]


def figures(scores: Scores, names: list[str], seeds: list[int]) -> dict[str, Any]:
    """Compute each method's figures and the adapter's paired difference, on one set of user draws."""
    table: dict[str, Any] = {}
    for number, name in enumerate(METRICS[scores.task.name]):
        better = 1 if metric(name).direction == "higher" else -1
        found: dict[str, np.ndarray] = {}
        for method in names:
            over = seeds if method in BY_SEED else [0]
            found[method] = drawn(name, scores.targets.user, scores.targets.label, [scores.of(method, seed) for seed in over])
            entry = table.setdefault(method, {"metrics": {}, "seeds": over} | scores.described(method))
            entry["metrics"][name] = interval(found[method])
        for method in names[1:]:
            difference = interval(better * (found["adapter"] - found[method]))
            separated = difference["interval"][0] > 0 or difference["interval"][1] < 0
            table[method].setdefault("adapter_better_by", {})[name] = difference | {"separated": separated}
        if number == 0 and len(names) > 1:
            others = [method for method in names[1:] if method not in OWN_TERM]
            best = max(others, key=lambda method: better * found[method][0])
            ratio = found["adapter"] / found[best]
            table["adapter"]["against_best"] = {"baseline": best, "metric": name, "ratio": interval(ratio)}
    return table


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=Path("build/bench/baselines.json"))
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=list(METRICS))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--part", choices=["valid", "test"], default="test", help="valid: look before the declared run")
    parser.add_argument("--skip", type=lambda text: text.split(","), default=[], help="methods to leave out")
    parser.add_argument("--fresh", action="store_true", help="do not go on from an interrupted run")
    options = parser.parse_args()
    folder = options.json.parent / "baselines-runs"
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    log = open_log("data/ml-100k")
    result: dict[str, Any] = {"part": options.part, "seeds": options.seeds, "tasks": {}}
    for task in options.tasks:
        scores = Scores(folder, task, log, options.part)
        names = [name for name in methods(scores) if name not in options.skip]
        for name in names:
            for seed in options.seeds if name in BY_SEED else [0]:
                scores.of(name, seed)
                print(f"{task}: {name}, seed {seed}: done", flush=True)
        result["tasks"][task] = {
            "protocol": protocol_line(scores.recipe, log, scores.task),
            "n": len(scores.targets),
            "users": len(np.unique(scores.targets.user)),
            "methods": figures(scores, names, options.seeds),
        }
        keep_figures(options.json, result)
    for task, found in result["tasks"].items():
        print(f"\n{task} ({found['n']} targets of {found['users']} users, {options.part} part)")
        for method, entry in found["methods"].items():
            shown = "  ".join(f"{name} {figure['value']:.4f}" for name, figure in entry["metrics"].items())
            print(f"  {method:20} {shown}")


if __name__ == "__main__":
    main()
