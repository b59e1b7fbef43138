"""Two processes against one: the same steps, the same figures, and tokens per second.

Owns: the part `processes` of benchmarks/training.py. `like` with token items and dropout 0 on two processes over gloo, a thread
each, against one process with one thread and with two; a short run of real data, by the commands that users type.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "recipes" / "accelerate" / "cpu.yaml"
LAUNCH = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(CONFIG)]
WAYS: dict[str, tuple[list[str], int]] = {"one_thread": ([], 1), "two_threads": ([], 2), "two_processes": (LAUNCH, 1)}


def train(way: str, depth: int, events: int, folder: Path) -> dict[str, Any]:
    """One epoch on the latest `events` events, evaluated on 2,000."""
    launcher, threads = WAYS[way]
    settings = {
        "train.epochs": 1,
        "train.tracker": "none",
        "train.dropout": 0.0,
        "encoder.dropout": 0.0,
        "encoder.use": "fit",
        "base.depth": depth,
        "data.path": "ml-100k",
        "data.limit": events,
        "data.split.valid": 0.02,
        "data.split.test": 0.02,
    }
    command = [sys.executable, *launcher, "-m", "genre", "train", str(ROOT / "recipes" / "like.yaml"), "--out", way]
    command += [
        "--registry",
        f"registry-{way}",
        *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{way} failed: {done.stderr[-1000:]}")
    found = json.loads((folder / way / "metrics.json").read_text())
    lines = [json.loads(line) for line in (folder / way / "log.jsonl").read_text().splitlines()]
    return {
        "tokens_per_second": found["cost"]["tokens"] / found["cost"]["seconds"],
        "steps": found["validation"][-1]["step"],
        "losses": [line["loss"] for line in lines if "loss" in line],
        "auc": found["metrics"]["like"]["auc"]["value"],
        "n": found["metrics"]["like"]["auc"]["n"],
    }


def processes(depth: int, events: int, folder: Path) -> dict[str, Any]:
    """Run each way once: throughput, and the largest difference of a step's loss and of the test AUC."""
    found = {way: train(way, depth, events, folder) for way in WAYS}
    losses = {way: figures.pop("losses") for way, figures in found.items()}
    if len(losses["one_thread"]) != len(losses["two_processes"]):
        raise RuntimeError("one and two processes took different numbers of steps")
    pairs = zip(losses["one_thread"], losses["two_processes"], strict=True)
    rates = {way: figures["tokens_per_second"] for way, figures in found.items()}
    return {
        "ways": found,
        "ratios": {
            "two_processes_vs_one_thread": rates["two_processes"] / rates["one_thread"],
            "two_processes_vs_two_threads": rates["two_processes"] / rates["two_threads"],
        },
        "counts": {
            "two_processes_loss_difference": max(abs(one - two) / one for one, two in pairs),
            "two_processes_auc_difference": abs(found["one_thread"]["auc"] - found["two_processes"]["auc"]),
        },
    }
