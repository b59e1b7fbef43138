"""Quality and cost of adapters against the full fine-tune of the same base at the same depth.

    python benchmarks/adapter_vs_full.py [--json FILE] [--tasks like,next_item] [--seeds 0] [--quick] [--jobs 1]

Ways: the full fine-tune; LoRA of ranks 2, 8, 32; rank 8 on an int8 and an nf4 base; one joint adapter for all tasks of
recipes/multitask.yaml; the two rank-8 adapters merged; heads alone. Every way gets the same epochs at each learning rate of its
grid, of which the full fine-tune's is the longest; the best on validation is kept (of the joint adapter, by the mean over the
tasks). The encoder that all ways share is fitted by a next-item run of rank 8, the full fine-tune's too. With several seeds the
first one chooses the rate and the figures are means over all. Each run is a process of its own
(for its peak memory) and is kept beside the JSON file, so an interrupted benchmark goes on. With `--jobs 2` two run at a time,
each with half of the threads: seconds are then those of that many threads. Differences from the full fine-tune are paired over
the same users; `at_most_worse` is how far below it a way can be, as a share of it, by the lower end of the interval.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch

import genre
from genre.data.splits import PARTS
from genre.engine.versions import read_adapter
from genre.evaluation.protocol import protocol_line
from genre.files import write_text
from genre.jobs.encoders import find_encoder
from genre.jobs.loading import load_base, open_log, restore
from genre.jobs.publish import adapter_manifest, write_adapter
from genre.jobs.tuning.bench import VARIANTS as ONE_TASK
from genre.progress import Reporter
from genre.registry import Registry
from genre.registry.manifest import Cost
from genre.training import fit
from genre.training.assembly import assemble
from genre.training.prediction import predict
from seeds import drawn, interval
from suite import keep_figures

ROOT = Path(__file__).parent.parent
TASKS = {"like": "auc", "next_item": "ndcg@10"}
JOINT = "joint"
WAYS = {**ONE_TASK, JOINT: ONE_TASK["lora_8"]}
FULL_RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)  # at first three; the best was the largest of them, then of five
USUAL_RATES = (5e-4, 1e-3, 2e-3)


class Run(NamedTuple):
    """One training."""

    task: str
    """JOINT for the adapter of all tasks."""
    way: str
    rate: float
    seed: int

    def folder(self, runs: Path) -> Path:
        """The folder of this run."""
        return runs / f"{self.task}-{self.way}-{self.rate:g}-{self.seed}"


def recipe_of(each: Run, options: argparse.Namespace) -> genre.Recipe:
    """The recipe of one run."""
    common = [
        f"base.depth={options.depth}",
        f"train.epochs={options.epochs}",
        f"train.learning_rate={each.rate}",
        f"train.seed={each.seed}",
        "train.tracker=none",
        "train.dropout=0.1",
        "train.early_stop=null",
        "data.max_events=60",
        # What every way would get alike is left out, so that what trains is compared.
        "encoder.taste=0",
        "encoder.factors=0",
        "train.average=0",
    ]
    if options.limit:
        common.append(f"data.limit={options.limit}")
    if each.way == JOINT:
        return genre.Recipe.read(ROOT / "recipes" / "multitask.yaml", [*common, *WAYS[each.way]])
    split = '{"kind": "temporal", "valid": 0.1, "test": 0.1}'
    common += [f"data.split={split}", "data.hold_out=[]", *WAYS[each.way]]
    return genre.Recipe.read(ROOT / "recipes" / f"{each.task}.yaml", common)


def worker(each: Run, folder: Path, options: argparse.Namespace) -> None:
    """Train one way at one rate; write its validation value, cost, and test predictions."""
    log = open_log("data/ml-100k")
    recipe = recipe_of(each, options)
    base = genre.Base.load(recipe.base.name, quantization=recipe.base.quantization, depth=recipe.base.depth)
    Path("/proc/self/clear_refs").write_text("5")
    held = _status("VmRSS")
    registry, say = Registry(folder.parent / "registry"), Reporter.for_terminal()
    assembly = assemble(recipe, log, base, find_encoder(recipe, log, base, registry, say))
    fitted = fit(assembly, folder, reporter=say)
    peak = _status("VmHWM")
    tasks = options.tasks if each.task == JOINT else [each.task]
    names = {task: f"{task}.{TASKS[task]}" for task in tasks}
    kept = max((row for row in fitted.state.history if names[tasks[0]] in row), key=lambda row: row[names[tasks[0]]])
    full = each.way == "full"
    trained = dict(assembly.base.model.named_parameters()) if full else dict(assembly.model.lora_parameters())
    heads = sum(value.numel() for value in assembly.model.heads.parameters())
    result = {
        "task": each.task,
        "way": each.way,
        "learning_rate": each.rate,
        "seed": each.seed,
        "validation": {task: kept[name] for task, name in names.items()},
        "seconds": fitted.state.seconds,
        "threads": torch.get_num_threads(),
        "tokens_per_second": fitted.state.tokens / fitted.state.seconds,
        "peak_memory_beyond_base": peak - held,
        "trained_parameters": sum(v.numel() for v in trained.values()),
        "head_parameters": heads,
        "bytes": 4 * (sum(v.numel() for v in trained.values()) + heads),
        "epochs": options.epochs,
    }
    found = predict_test(assembly.model, assembly.builder, assembly.split, recipe.data.max_events)
    _keep(folder, result, {task: found[task] for task in tasks})
    if each.way == "lora_8" and assembly.shared is not None:
        write_adapter(folder / "version", assembly)
        draft = adapter_manifest(assembly, encoder=assembly.shared.digest, cost=Cost(), metrics={})
        write_text(folder / "draft.json", draft.model_dump_json())


def predict_test(model: Any, builder: Any, split: Any, max_events: int) -> dict[str, Any]:
    """Predictions on the test part, by task."""
    return predict(model, builder, split, PARTS["test"], max_events=max_events)


def _keep(folder: Path, result: dict[str, Any], found: dict[str, Any]) -> None:
    for task, (targets, scores, _) in found.items():
        label = np.zeros(0) if targets.label is None else targets.label
        np.savez(folder / f"test-{task}.npz", event=targets.event, user=targets.user, label=label, scores=scores)
    write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key}")


def grid(options: argparse.Namespace) -> dict[tuple[str, str], list[Run]]:
    """Return the first seed's runs of each task and way, one per rate; the joint adapter's are the same for all tasks."""
    found = {}
    for task in options.tasks:
        for way in options.ways:
            rates = (1e-3,) if options.quick else options.full_rates if way == "full" else USUAL_RATES
            found[task, way] = [Run(JOINT if way == JOINT else task, way, rate, options.seeds[0]) for rate in rates]
    return found


def run_all(wanted: Iterable[Run], options: argparse.Namespace, runs: Path) -> None:
    """Run what has not run yet, a few at a time."""
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    with ThreadPoolExecutor(options.jobs) as pool:
        for done in [pool.submit(run, each, options, runs, threads) for each in dict.fromkeys(wanted)]:
            done.result()


def run(each: Run, options: argparse.Namespace, runs: Path, threads: int) -> None:
    """One run in a process of its own, unless it is there already."""
    folder = each.folder(runs)
    if not (folder / "result.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, __file__, "--worker", *map(str, each), str(folder), "--depth", str(options.depth)]
        command += ["--epochs", str(options.epochs), "--limit", str(options.limit), "--tasks", ",".join(options.tasks)]
        begun = time.perf_counter()
        with (folder / "output.txt").open("w") as output:
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=True, env=environment)
        print(f"{folder.name}: {time.perf_counter() - begun:.0f} s", flush=True)


def same_budget(options: argparse.Namespace, runs: Path) -> None:
    """Refuse to go on with runs of another depth, number of epochs or limit."""
    note, budget = runs / "budget.json", {key: getattr(options, key) for key in ("depth", "epochs", "limit")}
    held = json.loads(note.read_text()) if note.exists() else budget
    if held != budget:
        sys.exit(f"{runs} holds runs of {held}, not {budget}; name another --json or delete it")
    write_text(note, json.dumps(budget) + "\n")


def result_of(folder: Path) -> dict[str, Any]:
    """Read the result of a run."""
    return dict(json.loads((folder / "result.json").read_text()))


def encoder_first(options: argparse.Namespace, runs: Path) -> None:
    """Fit the behaviour encoder that every way shares, by a next-item run on the same training events."""
    if (runs / "encoder" / "done").exists():
        return
    recipe = recipe_of(Run("next_item", "lora_8", 1e-3, options.seeds[0]), options)
    log = open_log("data/ml-100k")
    genre.train(recipe, log=log, registry=Registry(runs / "registry"), folder=runs / "encoder", reporter=Reporter.for_terminal())
    (runs / "encoder" / "done").write_text("")


def merged(tasks: list[str], chosen: dict[tuple[str, str], list[Path]], runs: Path) -> None:
    """Merge the two rank-8 adapters by SVD and store its test predictions as one more way."""
    from genre.jobs.merge.gate import MergeOptions
    from genre.jobs.merge.job import merge_versions
    from genre.registry.manifest import Manifest

    parents = [chosen[task, "lora_8"][0].name for task in tasks]
    folders = {task: runs / f"{task}-merged" for task in tasks}
    chosen |= {(task, "merged"): [folder] for task, folder in folders.items()}
    if all((folder / "result.json").exists() and result_of(folder).get("parents") == parents for folder in folders.values()):
        return
    registry, log = Registry(runs / "registry"), open_log("data/ml-100k")
    refs = []
    for task in tasks:
        folder = chosen[task, "lora_8"][0]
        draft = Manifest.model_validate_json((folder / "draft.json").read_text())
        refs.append(registry.publish(folder / "version", draft).ref)
    made = merge_versions(registry, refs, MergeOptions("merged", method="svd", floor=0.0), log)
    base = load_base(made.version.manifest)
    loaded = read_adapter(registry, made.version.ref, base)
    model, builder, split = restore(loaded, log, base)
    found = predict_test(model, builder, split, loaded.layout.max_events)
    for task, folder in folders.items():
        folder.mkdir(exist_ok=True)
        cost = made.version.manifest.cost
        result = {
            "task": task,
            "way": "merged",
            "parents": parents,
            "learning_rate": 0,
            "validation": {task: made.report["gate"]["tasks"][task]["merged"]},
            "seconds": made.report["seconds"],
            "trained_parameters": cost.lora_params,
            "head_parameters": cost.head_params,
            "bytes": 4 * (cost.lora_params + cost.head_params),
        }
        _keep(folder, result, {task: found[task]})
    model.release()


def summary(task: str, ways: dict[str, list[Path]]) -> dict[str, Any]:
    """Summarize each way: figure with interval, cost, paired difference from the full fine-tune; means over the seeds."""
    name, table, drawn_of, costs = TASKS[task], {}, {}, ("seconds", "tokens_per_second", "peak_memory_beyond_base")
    reference = np.load(ways["full"][0] / f"test-{task}.npz")
    label = reference["label"] if len(reference["label"]) else None
    for way, folders in ways.items():
        held = [np.load(folder / f"test-{task}.npz") for folder in folders]
        if not all(np.array_equal(each["event"], reference["event"]) for each in held):
            raise RuntimeError(f"{way} scored other targets than the full fine-tune")
        drawn_of[way] = drawn(name, reference["user"], label, [each["scores"] for each in held])
        difference = interval(drawn_of[way] - drawn_of["full"])
        worse = interval(1 - drawn_of[way] / drawn_of["full"])["interval"][1]
        results = [result_of(folder) for folder in folders]
        table[way] = results[0] | {key: mean(each[key] for each in results) for key in costs if key in results[0]}
        table[way] |= {
            "test": {"metric": name, "n": len(reference["event"])} | interval(drawn_of[way]),
            "seeds": len(folders),
            "minus_full": difference,
            "at_most_worse": worse,
        }
    return table


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=Path("build/bench/adapter_vs_full.json"))
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=list(TASKS))
    parser.add_argument("--ways", type=lambda text: text.split(","), default=list(WAYS))
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--limit", type=int, default=0, help="train on the latest so many events only; 0: all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, the threads shared out among them")
    parser.add_argument("--quick", action="store_true", help="one epoch, 20,000 events, one learning rate for each way")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0])
    parser.add_argument("--full-rates", type=lambda text: [float(rate) for rate in text.split(",")], default=FULL_RATES)
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        task, way, rate, seed, folder = options.worker
        worker(Run(task, way, float(rate), int(seed)), Path(folder), options)
        return
    if options.quick:
        options.epochs = 1
        options.limit = 20_000
    runs = options.json.parent / f"{options.json.stem}-runs{'-quick' if options.quick else ''}"
    runs.mkdir(parents=True, exist_ok=True)
    same_budget(options, runs)
    encoder_first(options, runs)
    plan, chosen = grid(options), {}
    run_all((each for several in plan.values() for each in several), options, runs)
    for key, several in plan.items():
        best = max(several, key=lambda each: mean(result_of(each.folder(runs))["validation"].values()))
        chosen[key] = [best._replace(seed=seed) for seed in options.seeds]
    run_all((each for several in chosen.values() for each in several), options, runs)
    folders = {key: [each.folder(runs) for each in several] for key, several in chosen.items()}
    if "lora_8" in options.ways and len(options.tasks) > 1 and len(options.seeds) == 1:
        merged(options.tasks, folders, runs)
    log, recipes = open_log("data/ml-100k"), [recipe_of(Run(task, "lora_8", 1e-3, 0), options) for task in options.tasks]
    lines = [protocol_line(recipe, log, recipe.tasks[0]) for recipe in recipes]
    result = {
        "depth": options.depth,
        "epochs": options.epochs,
        "limit": options.limit,
        "seeds": options.seeds,
        "learning_rates": {way: len(plan[options.tasks[0], way]) for way in options.ways},
        "protocol": f"{max(lines, key=len)}; chosen on validation",  # that of a ranking, if one is among them, adds its rules
        "tasks": {
            task: summary(task, {way: found for (owner, way), found in folders.items() if owner == task})
            for task in options.tasks
        },
    }
    keep_figures(options.json, result)
    for task, table in result["tasks"].items():
        print(f"\n{task}")
        for way, row in table.items():
            low, high = row["test"]["interval"]
            worse = "" if way == "full" else f", at most {row['at_most_worse']:.2%} below full"
            print(
                f"  {way:12} {row['test']['value']:.4f} [{low:.4f}, {high:.4f}] {row['trained_parameters']:>12,} trained{worse}"
            )


if __name__ == "__main__":
    main()
