"""Sparse logs with item text: the adapter of `genre recipe new next_item` beside tuned baselines, last event out.

    python benchmarks/text_logs.py --data DATA --json build/bench/text_logs.json [--seeds 0,1,2] [--part test] [--controls]

DATA is a data set folder (`genre data import`). The protocol is that of the published tables on Amazon's logs: the last event of
each user is the test target, the one before validates, the whole catalogue is ranked, equal scores get mid-ranks; seen items
masked, and kept.

Every setting of a baseline and of the adapter is chosen on validation under the same mask; the baselines are the library's.
Beside the whole stand the users whose last item's id sorts before the one before it: where a log has days for times and lists
equal ones by id, their order is not a tie.

Intervals: users drawn again, the same draws for all methods; the mean over the seeds, so they leave out what other seeds would
have given. Ranks are cached beside the JSON file by method, seed and mask; `--fresh` starts over.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

import genre
from genre.cli.recipe.new import Wanted, for_events
from genre.data.splits import PARTS, split, training_events
from genre.distributed import Processes
from genre.evaluation.baselines import ranking_baselines
from genre.evaluation.ranking import Seen, rank_in_blocks
from genre.evaluation.targets import targets
from genre.jobs.evaluate import item_texts
from genre.jobs.loading import open_log
from genre.jobs.tuning.bench import make_random_base
from genre.modules.heads.heads import CatalogueHead
from genre.progress import Reporter
from genre.training import fit
from genre.training.assembly import Assembly, assemble
from genre.training.neighbours import add_neighbours
from genre.training.prediction import predict
from genre.training.self_attentive import self_attentive
from seeds import drawn, interval
from suite import keep_figures

MASKS: tuple[Seen, ...] = ("masked", "kept")
METRIC = "ndcg@10"
BASELINES = ("popularity", "transitions", "item_neighbours", "ease", "text_neighbours", "ease_text", "self_attentive")
CONTROLS = {
    "trained scores alone": [],
    "head only": ["adapter.kind=head_only"],
    "random base": [],
    "no base": ["adapter.kind=no_base"],
}
"""Overrides of what the trained scores, without item neighbours, are compared with."""
BY_SEED = ("adapter", "self_attentive", *CONTROLS)


class Ranks:
    """Every method's ranks of the targets, cached on disk."""

    def __init__(self, folder: Path, data: str, part: str, overrides: list[str]) -> None:
        self.folder = folder
        self.part = PARTS[part]
        self.overrides = overrides
        self.log = open_log(data)
        self.recipe = self._recipe(0)
        self.split = split(self.log, self.recipe.data.split)
        self.targets = targets(self.log, self.split, self.part)
        folder.mkdir(parents=True, exist_ok=True)

    def of(self, method: str, seed: int, seen: Seen) -> np.ndarray:
        """Ranks of one method, (n,) float64."""
        file = self._file(method, seed, seen)
        if not file.exists():
            begun = time.perf_counter()
            trained = method == "adapter" or method in CONTROLS
            made = self._trained(method, seed) if trained else {seen: self._baseline(method, seed, seen)}
            for mask, ranks in made.items():
                np.savez(self._file(method, seed, mask), ranks=ranks, seconds=time.perf_counter() - begun)
        return np.asarray(np.load(file)["ranks"])

    def seconds(self, method: str) -> float:
        """What the first seed's training (or fit) and evaluation took."""
        return float(np.load(self._file(method, 0, MASKS[0]))["seconds"])

    def _file(self, method: str, seed: int, seen: Seen) -> Path:
        return self.folder / f"{method}-{seed if method in BY_SEED else 0}-{seen}.npz"

    def _recipe(self, seed: int, method: str = "adapter") -> genre.Recipe:
        sections = for_events(Wanted("data", task="next_item"), self.log).sections
        sections["data"].pop("hold_out", None)  # nothing but this task is evaluated here
        sections |= {"train": sections["train"] | {"seed": seed}, "encoder": sections["encoder"] | {"use": "fit"}}
        path = self.folder / "recipe.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(genre.Recipe.parse(sections).dump(), encoding="utf-8")
        own = CONTROLS.get(method)
        recipe = genre.Recipe.read(path, self.overrides + ([] if own is None else ["encoder.neighbours=0", *own]))
        if method == "random base":
            name = make_random_base(recipe.base, self.folder / f"random-base-{seed}", seed=seed)
            recipe = recipe.with_values({"base.name": name})
        return recipe

    def _assembly(self, seed: int, method: str = "adapter") -> Assembly:
        recipe = self._recipe(seed, method)
        return assemble(recipe, self.log, genre.Base.load(recipe.base.name, depth=recipe.base.depth))

    def _trained(self, method: str, seed: int) -> dict[Seen, np.ndarray]:
        made = self._assembly(seed, method)
        run = self.folder / f"run-{method.replace(' ', '-')}-{seed}"
        fit(made, run, resume=(run / "checkpoints" / "last.pt").exists(), reporter=Reporter.for_terminal())
        (name,) = made.model.tasks
        found: dict[Seen, np.ndarray] = {}
        for seen in MASKS:
            if seen != made.model.tasks[name].seen:  # the weights of the item neighbours are chosen under the same mask
                made.model.tasks[name] = made.model.tasks[name].model_copy(update={"seen": seen})
                head = made.model.heads[name]
                assert isinstance(head, CatalogueHead)
                made.model.heads[name] = head.with_neighbours(None)
                print(*add_neighbours(made, Processes()), sep="\n")
            predicted = predict(made.model, made.builder, made.split, self.part, max_events=made.recipe.data.max_events)[name]
            assert np.array_equal(predicted[0].event, self.targets.event)
            found[seen] = predicted[1]
        made.model.release()
        return found

    def _texts(self) -> np.ndarray:
        made = self._assembly(0)
        made.model.release()
        assert made.model.soft is not None
        return item_texts(made.model.soft)

    def _baseline(self, method: str, seed: int, seen: Seen) -> np.ndarray:
        if method == "self_attentive":
            blocks = self_attentive(self.log, self.split, seen=seen, seed=seed).blocks(self.targets)
        else:
            blocks = ranking_baselines(self.log, self.split, self.targets, seen=seen, texts=self._texts)[method]()
        return rank_in_blocks(self.log, self.split, self.targets, blocks, seen=seen).ranks


def figures(ranks: Ranks, seeds: list[int], names: tuple[str, ...]) -> dict[str, Any]:
    """Every method's figure under each mask, whole and without ties, and the adapter's ratio to the best baseline."""
    ids = np.array(ranks.log.catalogue.item_ids)
    before = ids[ranks.log.item_codes[ranks.targets.event - 1]]
    scopes: dict[str, Any] = {"all": slice(None), "no tie": ids[ranks.targets.item] < before}
    if ranks.recipe.data.split.cold_items is not None:
        scopes["held out"] = training_events(ranks.log, ranks.split.part)[ranks.targets.item] == 0
    found: dict[str, Any] = {}
    for seen in MASKS:
        for scope, rows in scopes.items():
            users = ranks.targets.user[rows]
            every = {}
            for name in names:
                over = seeds if name in BY_SEED else [0]
                every[name] = drawn(METRIC, users, None, [ranks.of(name, seed, seen)[rows] for seed in over])
            best = max(names[1:], key=lambda name: every[name][0])
            found[f"{seen}, {scope}"] = {
                "n": len(users),
                "methods": {name: interval(values) for name, values in every.items()},
                "adapter_over_best": {"baseline": best, **interval(every["adapter"] / every[best])},
            }
    return found


def controls(ranks: Ranks, seeds: list[int]) -> dict[str, Any]:
    """The trained scores alone over each of their controls, seen items masked."""
    users = ranks.targets.user
    every = {name: drawn(METRIC, users, None, [ranks.of(name, seed, MASKS[0]) for seed in seeds]) for name in CONTROLS}
    alone, *others = CONTROLS
    entry = {
        "n": len(users),
        "methods": {name: interval(values) for name, values in every.items()},
        "alone_over": {name: interval(every[alone] / every[name]) for name in others},
    }
    return {f"{MASKS[0]}, controls": entry}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True)
    parser.add_argument("--json", type=Path, default=Path("build/bench/text_logs.json"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--part", choices=["valid", "test"], default="test")
    parser.add_argument("--without", default="", help="baselines to leave out, with commas")
    parser.add_argument("--controls", action="store_true", help="the trained scores beside their controls, instead of baselines")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--fresh", action="store_true")
    chosen = parser.parse_args()
    folder = chosen.json.with_suffix("") / Path(chosen.data).name / chosen.part
    if chosen.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    ranks = Ranks(folder, chosen.data, chosen.part, chosen.overrides)
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    names = ("adapter", *(name for name in BASELINES if name not in chosen.without.split(",")))
    found = controls(ranks, seeds) if chosen.controls else figures(ranks, seeds, names)
    for scope, entry in found.items():
        print(f"\n{scope}, {METRIC}, n = {entry['n']:,}")
        for name, value in sorted(entry["methods"].items(), key=lambda each: -each[1]["value"]):
            low, high = value["interval"]
            print(f"  {name:16} {value['value']:.4f} [{low:.4f}, {high:.4f}]  {ranks.seconds(name):,.0f} s")
        ratios = entry.get("alone_over") or {entry["adapter_over_best"]["baseline"]: entry["adapter_over_best"]}
        mine = "alone" if chosen.controls else "adapter"
        for name, ratio in ratios.items():
            low, high = ratio["interval"]
            print(f"  {mine} / {name}: {ratio['value']:.3f} [{low:.3f}, {high:.3f}]")
    keep_figures(chosen.json, {Path(chosen.data).name: found})


if __name__ == "__main__":
    main()
