"""Utility under user-level differential privacy: test metrics over epsilon, with intervals, beside the same task without privacy.

    python benchmarks/privacy.py like --json build/bench/privacy_like.json [--epsilon 1,2,4,8,none] [--set train.epochs=2 …]
    python benchmarks/privacy.py next_item --json build/bench/privacy_next.json
    python benchmarks/privacy.py beauty --data DIR --epsilon 8,none --json build/bench/privacy_beauty.json
    python benchmarks/privacy.py cost --json build/bench/privacy_cost.json      # seconds and memory of a step, with and without

`none` trains as the recipe without `train.privacy` does, with all that is fitted to events. Splits are by user in both, so both
train and test on the same events; baselines are left out. Each result is cached beside the JSON file, for the same task, data and
overrides.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import genre
from genre.progress import Reporter

BASE = {"name": "smollm2-135m", "depth": 1}
ML = {"item": "token", "text": ["title", "genres"], "feedback": "rating", "instruction": "{age} {gender} {occupation}:"}
PRIVACY = {"feedback_values": [1, 2, 3, 4, 5]}
RECIPES: dict[str, dict[str, Any]] = {
    "like": {
        "name": "like",
        "data": {"path": "ml-100k", "split": {"kind": "user_ratio", "valid": 0.1, "test": 0.1}, "max_events": 200},
        "sequence": ML,
        "encoder": {"use": "fit", "whiten": True},
        "tasks": [{"name": "like", "kind": "feedback", "label": "rating > 3", "metrics": ["auc", "gauc", "log_loss"]}],
        "train": {"epochs": 2, "learning_rate": 1e-3, "batch_tokens": 4096, "tracker": "none"},
        "privacy": {**PRIVACY, "users": 94, "statistics": 0.4},
    },
    "next_item": {
        "name": "next_item",
        "data": {"path": "ml-100k", "split": {"kind": "last_n", "n": 1}, "max_events": 100},
        "sequence": ML,
        "encoder": {"use": "fit", "whiten": True, "neighbours": 100},
        "tasks": [{"name": "next_item", "kind": "next_item"}],
        "train": {"epochs": 2, "learning_rate": 1e-3, "batch_tokens": 4096, "tracker": "none"},
        "privacy": {**PRIVACY, "users": 94, "statistics": 0.4},
    },
    "beauty": {
        "name": "beauty",
        "data": {"path": "", "split": {"kind": "last_n", "n": 1}, "max_events": 50},
        "sequence": {"item": "token", "text": ["title"], "feedback": "none", "instruction": ""},
        "encoder": {"use": "fit", "whiten": True, "neighbours": 100},
        "tasks": [{"name": "next_item", "kind": "next_item"}],
        "adapter": {"kind": "head_only"},
        "train": {
            "epochs": 2,
            "learning_rate": 1e-3,
            "batch_tokens": 4096,
            "tracker": "none",
            "sampled": {"above": 1000, "negatives": 512},
        },
        "privacy": {"users": 2000, "statistics": 0, "item_map": 0.95, "ngrams": 100},
    },
}


def recipe_of(name: str, epsilon: str, data: str | None, overrides: list[str], folder: Path) -> genre.Recipe:
    """The recipe of one point of a curve."""
    raw = json.loads(json.dumps(RECIPES[name]))
    private = raw.pop("privacy")
    raw["base"] = dict(BASE)
    raw["data"]["path"] = data or raw["data"]["path"]
    if epsilon != "none":
        raw["train"]["privacy"] = {"epsilon": float(epsilon), **private}
    file = folder / "recipe.json"  # JSON is YAML
    file.write_text(json.dumps(raw))
    kept = [each for each in overrides if epsilon != "none" or not each.startswith("train.privacy")]
    return genre.Recipe.read(file, kept)


def measure(name: str, epsilon: str, data: str | None, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Train one point and return its figures."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    recipe = recipe_of(name, epsilon, data, overrides, folder)
    begun = time.perf_counter()
    run = genre.train(
        recipe, folder=folder / "run", baselines="none", reporter=Reporter(lambda line: print(line, file=sys.stderr))
    )
    notes: Any = run.manifest.notes.get("privacy")
    found = {"epsilon": epsilon, "metrics": run.metrics, "seconds": round(time.perf_counter() - begun)}
    if notes:
        found |= {"spent": notes["spent"], "delta": notes["delta"], "mechanisms": notes["mechanisms"]}
    return found


def cost(json_file: Path) -> None:
    """Seconds and peak memory of some steps of the recipe `next_item`, each side in a process of its own, alternating."""
    found: dict[str, list[dict[str, float]]] = {"none": [], "8": []}
    for _ in range(3):
        for epsilon in found:
            done = subprocess.run(
                [sys.executable, __file__, "steps", "--epsilon", epsilon], check=True, capture_output=True, text=True
            )
            found[epsilon].append(json.loads(done.stdout.splitlines()[-1]))
    speed = [one["tokens_per_s"] / two["tokens_per_s"] for one, two in zip(found["8"], found["none"], strict=True)]
    memory = [one["peak"] / two["peak"] for one, two in zip(found["8"], found["none"], strict=True)]
    step = [one["growth"] / two["growth"] for one, two in zip(found["8"], found["none"], strict=True)]
    report = {"speed": sorted(speed), "memory": sorted(memory), "step_memory": sorted(step), "runs": found}
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps(report, indent=1))
    print(json.dumps({key: report[key] for key in ("speed", "memory", "step_memory")}))


def steps(epsilon: str, count: int = 4) -> None:
    """Take some steps and print tokens per second and peak memory."""
    import tempfile

    import torch

    from genre.distributed import Processes
    from genre.jobs.train import wire
    from genre.training import Loop

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        overrides = ["base.depth=4", "train.privacy.users=20", "encoder.learned=0", "encoder.collaborative=0"]
        recipe = recipe_of("next_item", epsilon, None, overrides, Path(scratch))
        assembly = wire(recipe, None, None, None, Reporter.silent(), Processes.current())
        loop = Loop(assembly, Path(scratch), Reporter.silent())
        batches = loop.plan(0)
        loop.set_training()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        tokens, begun = 0, 0.0
        for index in range(count):
            if index == 1:
                begun = time.process_time()
            loop.state.batch = index
            done = loop.step(batches[index], 0.5)
            tokens += done.tokens if index else 0
        seconds = time.process_time() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"tokens_per_s": tokens / seconds, "peak": peak, "growth": max(peak - before, 1)}))


def main() -> None:
    """Measure a curve and write it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=[*RECIPES, "cost", "steps"])
    parser.add_argument("--epsilon", default="1,2,4,8,none")
    parser.add_argument("--data")
    parser.add_argument("--json", type=Path, default=Path("build/bench/privacy.json"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args()
    if given.what == "cost":
        return cost(given.json)
    if given.what == "steps":
        return steps(given.epsilon)
    points = []
    for epsilon in given.epsilon.split(","):
        kept = given.json.with_suffix("") / f"{epsilon}.json"
        asked = {"recipe": given.what, "data": given.data, "overrides": given.overrides}
        found = json.loads(kept.read_text()) if kept.exists() else {}
        if any(found.get(key) != value for key, value in asked.items()):
            found = asked | measure(given.what, epsilon, given.data, given.overrides, given.json.with_suffix("") / epsilon)
            kept.write_text(json.dumps(found, indent=1))
        points.append(found)
        for task, metrics in points[-1]["metrics"].items():
            shown = ", ".join(f"{key} {value['value']:.4f} {value.get('interval')}" for key, value in list(metrics.items())[:3])
            print(f"epsilon {epsilon}: {task} {shown}; {points[-1]['seconds']} s", flush=True)
    given.json.write_text(json.dumps(points, indent=1))


if __name__ == "__main__":
    main()
