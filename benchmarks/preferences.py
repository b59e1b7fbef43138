"""Preferences and policy gradients after cross-entropy, on the validation part: does going on with them help?

    python benchmarks/preferences.py                                    # ML-100K, two layers, one seed
    python benchmarks/preferences.py --data data/scientific --seeds 0 1 2 --depth 4
    python benchmarks/preferences.py --only start dpo_policy            # some of the runs; the table is of those that exist
    python benchmarks/preferences.py --head generate                    # of adapters that generate items by their codes

Each run starts from the version of the same seed that cross-entropy trained (`train.start`), takes one epoch, so that validation
chooses nothing, and is ranked on the validation targets. `more` goes on with cross-entropy at the same rate: what another loss
adds is its difference to that. Ranks are kept in `--work`, and a run that is there is not made again.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import genre
from genre.data.splits import VALID
from genre.distributed import Processes
from genre.evaluation.metrics.by_name import metric
from genre.jobs.loading import open_log
from genre.jobs.train import Run, finish, wire
from genre.progress import Reporter
from genre.training import fit
from genre.training.prediction import predict
from seeds import drawn, interval
from suite import keep_figures

DPO: Any = {"loss": "softmax_dpo"}
GROUPS: Any = {"loss": "group_relative"}
VARIANTS: dict[str, dict[str, Any]] = {
    "more": {},
    "dpo_popularity": DPO | {"preference": {"source": "popularity"}},
    "dpo_batch": DPO | {"preference": {"source": "batch"}},
    "dpo_policy": DPO | {"preference": {"source": "policy"}},
    "group_kl_0.1": GROUPS | {"group": {"kl": 0.1}},
    "group_kl_0.01": GROUPS | {"group": {"kl": 0.01}},
}
NAMES = ("ndcg@10", "hr@10")


def recipe_of(options: argparse.Namespace, name: str, seed: int) -> genre.Recipe:
    """The recipe of the start, or of a run that goes on from it."""
    first = name == "start"
    task = {"name": "next_item", "kind": "next_item", "head": options.head} | ({} if first else VARIANTS[name])
    codes: dict[str, Any] = {"codes": {}} if options.head == "generate" else {}
    return genre.Recipe.parse(
        {
            "name": f"{name.replace('.', '-')}-{seed}",
            "data": {"path": options.data, "split": {"kind": "last_n", "n": options.last}, "max_events": 60},
            "base": {"name": "smollm2-135m", "depth": options.depth},
            "sequence": {"item": "token", "text": options.text, "feedback": "none", "instruction": "User:"},
            "encoder": {"use": "fit" if first else "auto", "factors": 64, "taste": 0} | codes,
            "tasks": [task],
            "train": {
                "epochs": options.epochs if first else 1,
                "learning_rate": 1e-3 if first else options.rate,
                "batch_tokens": 2048,
                "dropout": 0.2,
                "average": 0.98,
                "early_stop": None,
                "seed": seed,
                "tracker": "none",
                "start": None if first else f"start-{seed}",
            },
        }
    )


def ranks(options: argparse.Namespace, name: str, seed: int, log: Any, registry: genre.Registry) -> None:
    """Make one run, and keep the ranks of its validation targets; publish it if it is a start."""
    file = options.work / f"{name}-{seed}.npz"
    if file.exists():
        return
    begun, used = time.perf_counter(), time.process_time()
    assembly = wire(recipe_of(options, name, seed), log, None, registry, Reporter.silent(), Processes.current())
    try:
        folder = options.work / f"run-{name}-{seed}"
        fitted = fit(assembly, folder, resume=(folder / "checkpoints" / "last.pt").exists())
        targets, found, _ = predict(assembly.model, assembly.builder, assembly.split, VALID, max_events=60)["next_item"]
        if name == "start":
            run: Run = finish(fitted, folder, {}, registry, Reporter.silent())
            registry.publish(run)
    finally:
        assembly.model.release()
    np.savez(file, user=targets.user, ranks=found)
    spent = f"{time.perf_counter() - begun:.0f} s, of the processor {time.process_time() - used:.0f} s"
    print(f"{name}-{seed}: ndcg@10 {metric('ndcg@10').function(found):.4f}, {spent}", flush=True)


def table(options: argparse.Namespace) -> dict[str, Any]:
    """For each run that exists with all seeds, its metrics, and its differences to the start and to more of the same."""
    report: dict[str, Any] = {}
    for name in ("start", *VARIANTS):
        files = [options.work / f"{name}-{seed}.npz" for seed in options.seeds]
        if not all(file.exists() for file in files):
            continue
        kept = [np.load(file) for file in files]
        report[name] = {each: drawn(each, kept[0]["user"], None, [one["ranks"] for one in kept]) for each in NAMES}
    shown: dict[str, Any] = {}
    print(f"| run | {' | '.join(NAMES)} | against the start ({NAMES[0]}) | against more |\n|---|{'---|' * (len(NAMES) + 2)}")
    for name, own in report.items():
        row: dict[str, Any] = {each: interval(own[each]) for each in NAMES}
        for other in ("start", "more"):
            if other in report and other != name and name != "start":
                row[f"against {other}"] = interval(own[NAMES[0]] - report[other][NAMES[0]])
        shown[name] = row
        cells = [_cell(row.get(key), signed=key.startswith("against")) for key in (*NAMES, "against start", "against more")]
        print(f"| {name} | {' | '.join(cells)} |")
    return shown


def _cell(figure: Mapping[str, Any] | None, *, signed: bool) -> str:
    if figure is None:
        return ""
    sign = "+" if signed else ""
    low, high = figure["interval"]
    return f"{figure['value']:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def main() -> None:
    """Make the runs that are not there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="ml-100k", help="a data set folder, or ml-100k")
    parser.add_argument("--text", nargs="+", default=["title"], help="item columns of the encoder's text")
    parser.add_argument("--last", type=int, default=5, help="validation and test events of a user, each")
    parser.add_argument("--head", choices=["catalogue", "generate"], default="catalogue")
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4, help="of cross-entropy, before")
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate after the start")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=["start", *VARIANTS], default=["start", *VARIANTS])
    parser.add_argument("--work", type=Path, default=Path("build/bench/preferences"))
    options = parser.parse_args()
    options.work = options.work if options.head == "catalogue" else options.work / options.head
    options.work.mkdir(parents=True, exist_ok=True)
    log, registry = open_log(options.data), genre.Registry(options.work / "registry")
    for seed in options.seeds:
        for name in options.only:
            ranks(options, name, seed, log, registry)
    keep_figures(options.work / "preferences.json", {"runs": table(options)})


if __name__ == "__main__":
    main()
