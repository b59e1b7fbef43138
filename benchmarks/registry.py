"""Guarantees of the registry, counted: kills, races, damage, sealed hostile versions, listing, export.

    python benchmarks/registry.py --json build/bench/registry.json [--only kills|moves|damage|sealed|list|export] [--scale 1.0]

Exit code 1 when a bar is missed.
"""

import argparse
import collections
import json
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from genre.errors import ConflictError, GenreError
from genre.registry import Registry
from genre.registry.journal import Journal
from registry_hostile import clean, draft, offer, write_adapter, write_base
from registry_watch import sealed
from suite import keep_figures

Counts = dict[str, Any]
WIDE = 65_536  # inputs and outputs of the adapted linear where a publish should take a while (1 MB)


def kills(root: Path, scale: float) -> Counts:
    """200 publishes from 4 processes, half of them killed at random points.

    A publish that was to be killed but finished first counts as neither; another takes its place.
    """
    half, registry, rng = int(100 * scale), Registry(root / "registry"), random.Random(0)
    usual = statistics.median(_time_publish(registry, write_adapter(root / f"w{seed}", seed, WIDE)) for seed in range(8))
    running: dict[int, float | None] = {}
    count = collections.Counter[str]()
    while count["killed"] < half or count["undisturbed"] < half or running:
        while len(running) < 4 and count["killed"] + count["undisturbed"] + len(running) < 2 * half:
            number, doomed = count["started"], sum(deadline is not None for deadline in running.values())
            count["started"] += 1
            folder = write_adapter(root / f"a{number}", 1000 + number, WIDE)
            wanted = count["killed"] + doomed < half and (rng.random() < 0.5 or count["undisturbed"] + len(running) >= half)
            # Up to four at a time on few cores take longer than one.
            deadline = time.perf_counter() + rng.uniform(0, 2 * usual) if wanted else None
            running[_fork(lambda n=number, f=folder: _publish(registry, f, root / f"done{n}"))] = deadline
        for pid, deadline in list(running.items()):
            if deadline is not None and time.perf_counter() > deadline:
                os.kill(pid, signal.SIGKILL)
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                del running[pid]
                outcome = "killed" if os.WIFSIGNALED(status) else "too late" if deadline is not None else "undisturbed"
                count[outcome] += 1
                count["failed"] += not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status) != 0
        time.sleep(0.0002)
    done = [root / f"done{number}" for number in range(count["started"])]
    finished = {path.read_text() for path in done if path.exists()}
    visible = {f"like:{version}" for version in registry.versions("like")}
    problems = registry.verify()
    unfinished = len(registry.gc().unfinished)
    left = [path for path in _tree(root / "registry") if ".tmp" in path]
    numbers = [move.n for move in registry.history("like")]
    gapless = numbers == list(range(1, len(numbers) + 1))
    return {
        "publishes": count["killed"] + count["undisturbed"],
        "killed": count["killed"],
        "killer_too_late": count["too late"],
        "failed": count["failed"],
        "finished": len(finished),
        "visible": len(visible),
        "finished_but_not_visible": len(finished - visible),
        "visible_and_whole_but_killed_before_the_answer": len(visible - finished),
        "problems": len(problems),
        "unfinished_swept_by_gc": unfinished,
        "unfinished_after_gc": len(left),
        "journal_gapless": gapless,
        "ok": not (problems or finished - visible or left or count["failed"]) and gapless and count["killed"] == half,
    }


def moves(root: Path, scale: float) -> Counts:
    """1,000 alias moves from 8 processes; each is conditional on the state read before, and a loser retries."""
    total, registry = int(1000 * scale) // 8 * 8, Registry(root / "registry")
    versions = [registry.publish(write_adapter(root / "a", seed), draft(), alias=()).version for seed in range(16)]
    start = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(8) as pool:
        jobs = [(registry.url, versions[worker::8], total // 8) for worker in range(8)]
        results = pool.starmap(_move, jobs)
    won = [n for numbers, _ in results for n in numbers]
    history = registry.history("like")
    numbers = [move.n for move in history]
    chain = all(b.previous == a.version for a, b in zip(history, history[1:], strict=False))
    return {
        "moves": total,
        "won": len(won),
        "unique_winners": len(set(won)),
        "conflicts_told": sum(lost for _, lost in results),
        "journal_entries": len(numbers),
        "gapless": numbers == list(range(1, total + 1)),
        "chained": chain,
        "problems": len(registry.verify()),
        "seconds": round(time.perf_counter() - start, 2),
        "ok": sorted(won) == numbers == list(range(1, total + 1)) and chain and not registry.verify(),
    }


def damage(root: Path, scale: float) -> Counts:
    """500 damaged or hostile folders and archives: each must be refused, leaving nothing behind and touching nothing outside."""
    total, inner = int(500 * scale), root / "inner"
    registry, base = Registry(inner / "registry"), write_base(inner / "base")
    tempfile.tempdir = str(inner / "temporary")  # archives are unpacked there: it must be empty again after each
    (inner / "temporary").mkdir()
    count, kinds = collections.Counter[str](), collections.Counter[str]()
    wrong, stray = [], set[str]()
    for seed in range(total):
        work = inner / "work"
        work.mkdir()
        what, call = offer(seed, registry, base, work)
        before = _tree(root)
        try:
            call()
            outcome = "loaded"
        except GenreError:
            outcome = "refused"
        except Exception as error:  # whatever is not a refusal is a crash
            outcome = f"crashed with {type(error).__name__}: {error}"[:200]
        count[outcome.split(" ")[0]] += 1
        wrong += [f"{seed} {what}: {outcome}"] if outcome != "refused" else []
        stray |= _tree(root) - before - {"inner/registry", "inner/registry/.lock"}
        kinds[what.split(" ")[0]] += 1
        clean(work)
    tempfile.tempdir = None
    return {
        "cases": total,
        "refused": count["refused"],
        "crashed": count["crashed"],
        "loaded": count["loaded"],
        "files_left_anywhere": len(stray),
        "kinds": dict(kinds),
        "wrong": wrong[:20],
        "stray": sorted(stray)[:20],
        "ok": count["refused"] == total and not stray,
    }


def list_(root: Path, scale: float) -> Counts:
    """`list` with 10,000 versions: copies of one version under different folder names, each name with a journal."""
    total, registry = int(10_000 * scale), Registry(root / "registry")
    good = registry.fetch(registry.publish(write_adapter(root / "a", 0), draft(), alias=()))
    for number in range(total - 1):
        name, version = f"n{number % 100}", f"{number:012x}"
        folder = root / "registry" / name / version
        folder.mkdir(parents=True)
        for file in os.listdir(good):
            os.link(good / file, folder / file)
        if number < 100:
            Journal(registry.store, name).append("latest", version, "publish")
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        rows = registry.list()
        seconds.append(time.perf_counter() - started)
    named = sum(bool(row.aliases) for row in rows)
    return {
        "versions": len(rows),
        "with_alias": named,
        "seconds_median": round(statistics.median(seconds), 3),
        "seconds_max": round(max(seconds), 3),
        "ok": len(rows) == total and max(seconds) < 1,
    }


def export(root: Path, scale: float) -> Counts:
    """Last hidden states of an exported adapter in stock PEFT against weights merged by hand, on a tiny random Llama."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file, save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from genre.modules.base.fingerprint import fingerprint
    from genre.registry import BaseInfo, Manifest

    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    LlamaForCausalLM(LlamaConfig(num_hidden_layers=4, **sizes)).save_pretrained(root / "base")
    info = BaseInfo(name="tiny", fingerprint=fingerprint(root / "base"), depth=3)
    linears = {"self_attn.q_proj": (32, 32), "self_attn.v_proj": (32, 16), "mlp.down_proj": (48, 32)}
    weights = {}
    for layer in range(3):
        for path, (inputs, outputs) in linears.items():
            key = f"base_model.model.model.layers.{layer}.{path}"
            weights |= {
                f"{key}.lora_A.weight": torch.randn(4, inputs) / 4,
                f"{key}.lora_B.weight": torch.randn(outputs, 4) / 4,
            }
    (root / "a").mkdir()
    save_file(weights, root / "a" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": [*linears]}
    (root / "a" / "adapter_config.json").write_text(json.dumps(config))
    registry = Registry(root / "registry")
    registry.publish(root / "a", Manifest(name="like", base=info))
    out = registry.export("like", root / "out", base=root / "base")
    tokens = torch.randint(0, 64, (3, 20))
    merged = LlamaForCausalLM.from_pretrained(root / "base").eval()
    merged.model.layers = merged.model.layers[:3]
    with torch.no_grad():
        for name in [name for name in load_file(out / "adapter_model.safetensors") if "lora_A" in name]:
            linear = merged.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            linear.weight += 2.0 * weights[name.replace("lora_A", "lora_B")] @ weights[name]
        ours = merged.model(tokens).last_hidden_state
        bare = LlamaForCausalLM.from_pretrained(out / "base").eval()
        before = bare.model(tokens).last_hidden_state
        stock = PeftModel.from_pretrained(bare, out).eval().base_model.model.model(tokens).last_hidden_state
    worst, effect = float((ours - stock).abs().max()), float((before - stock).abs().max())
    return {"max_difference": worst, "effect_of_the_adapter": effect, "ok": worst <= 1e-4 < effect}


def _time_publish(registry: Registry, folder: Path) -> float:
    started = time.perf_counter()
    registry.publish(folder, draft("warm"))
    return time.perf_counter() - started


def _fork(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def _publish(registry: Registry, folder: Path, done: Path) -> None:
    version = registry.publish(folder, draft())
    aside = done.with_suffix(".tmp")
    aside.write_text(version.ref)
    aside.rename(done)


def _move(url: str, versions: list[str], count: int) -> tuple[list[int], int]:
    """Move an alias between two versions of one's own: an alias that names a version already is not moved."""
    registry, won, lost = Registry(url), [], 0
    while len(won) < count:
        try:
            won.append(registry.promote(f"like:{versions[len(won) % 2]}", "production").n)
        except ConflictError:
            lost += 1
    return won, lost


def _tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


BARS = {"kills": kills, "moves": moves, "damage": damage, "sealed": sealed, "list": list_, "export": export}


def main() -> int:
    """Run the requested parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=BARS)
    parser.add_argument("--scale", type=float, default=1.0, help="a share of the full counts")
    options = parser.parse_args()
    results = {}
    for name in [options.only] if options.only else BARS:
        root = Path(tempfile.mkdtemp(prefix="genre-bars-"))
        try:
            results[name] = BARS[name](root, options.scale)
        finally:
            shutil.rmtree(root, ignore_errors=True)
        print(name, json.dumps(results[name]), flush=True)
    if options.json:
        keep_figures(options.json, results)
    return 0 if all(counts["ok"] for counts in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
