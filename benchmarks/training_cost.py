"""Training costs of an adapter: against the full fine-tune, against PEFT's layers in the same loop, and four at once.

The part `cost` of benchmarks/training.py.

`like` with token items, 2,048 tokens a step, optimizer included. Throughput alternates between the ways, step by step, in one
process, on the base as `Base.load` gives it. `peft` is PEFT's layers as PEFT has them. `bare` is the floor: the base forward and
backward without any adapter, so `bare_vs_peft` bounds what any layer can reach. `bfloat16` is the adapter on a base
of that precision.
The allocator keeps freed memory while ways alternate, so that none of them pays another's page faults.
Four at once do the same steps as the four runs one after the other, on one base in memory; their ratio comes with an interval.
Peak memory is that of a process of its own for each way, less what the process held once the base was loaded (for four at once:
the whole process against four whole processes).
"""

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import genre
from genre.jobs.loading import open_log
from genre.modules.base.quiet import quiet
from genre.progress import Reporter
from genre.training import Loop
from genre.training.assembly import Assembly, assemble
from genre.training.optimization import Optimization
from genre.training.parts import SharedEncoder
from genre.training.runtime import RandomStream
from genre.training.simultaneous import Group, Member

RECIPES = Path(__file__).parent.parent / "recipes"
KINDS = {
    "lora": "lora",
    "full": "full",
    "peft": "head_only",
    "bare": "head_only",
    "bfloat16": "lora",
    "together": "lora",
}


def prepared(kind: str, depth: int, log: genre.Interactions, base: genre.Base, *, number: int = 0) -> Assembly:
    """The `like` recipe wired on a bare base, with an encoder that does not train."""
    overrides = [
        "train.tracker=none",
        "train.batch_tokens=2048",
        f"base.depth={depth}",
        "encoder.use=fit",
        f"name=like{number}",
        f"train.seed={number}",
        *(["train.learning_rate=1e-5"] if kind == "full" else []),
    ]
    first = assemble(genre.Recipe.read(RECIPES / "like.yaml", [*overrides, "adapter.kind=head_only"]), log, base)
    first.model.release()
    assert first.shared is not None
    shared = SharedEncoder(first.shared.encoder.eval().requires_grad_(False), first.shared.vocabulary, "shared")
    recipe = genre.Recipe.read(RECIPES / "like.yaml", [*overrides, f"adapter.kind={KINDS[kind]}"])
    return assemble(recipe, log, base, shared, bare=kind == "together")


class Way:
    """One way of training, a step at a time; the number of real tokens of each step."""

    def __init__(
        self, kind: str, depth: int, folder: Path, log: genre.Interactions, base: genre.Base, *, number: int = 0
    ) -> None:
        self.assembly = prepared(kind, depth, log, base, number=number)
        added = inject_peft(base) if kind == "peft" else {}
        if kind == "bare":  # the gradient goes through the whole base, as an adapter's does, and nothing of it trains
            base.embedding.register_forward_hook(lambda module, given, output: output.requires_grad_())
        self.loop = Loop(self.assembly, folder, Reporter.silent())
        if added:
            self.loop.parameters |= added
            self.loop.optimization = Optimization(
                self.loop.accelerator, self.loop.processes, list(self.loop.parameters.values()), self.loop.train
            )
        self.queue = self.loop.plan(0)

    def step(self) -> int:
        """One optimizer step; its tokens."""
        if not self.queue:
            self.queue = self.loop.plan(1)
        self.loop.model.train()
        return self.loop.step(self.queue.pop(0), 0.1).tokens


class AtOnce:
    """Several adapters on one base, a round (a step of each) at a time."""

    def __init__(self, depth: int, folder: Path, log: genre.Interactions, adapters: int) -> None:
        base = genre.Base.load("smollm2-135m", depth=depth)
        members = [
            Member(prepared("together", depth, log, base, number=number), folder / str(number), RandomStream(base.device))
            for number in range(adapters)
        ]
        self.group = Group(members, Reporter.silent())
        self.attachment = ExitStack()  # for as long as the process lives
        self.attachment.enter_context(self.group.attached())

    def step(self) -> int:
        """A step of each adapter; their tokens."""
        before = self.group.used
        self.group.take(self.group.next_steps())
        return self.group.used - before


def inject_peft(base: genre.Base) -> dict[str, torch.nn.Parameter]:
    """Put PEFT's own LoRA layers, of the recipe's rank, on the base's linears."""
    with quiet():
        from peft import LoraConfig, inject_adapter_in_model

        names = [n for n, module in base.model.named_modules() if isinstance(module, torch.nn.Linear) and "lm_head" not in n]
        inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, target_modules=names), base.model)
    return {name: value for name, value in base.model.named_parameters() if "lora_" in name}


def own_base(kind: str, depth: int) -> genre.Base:
    """SmolLM2-135M as a way of training loads it."""
    return genre.Base.load("smollm2-135m", depth=depth, dtype=torch.bfloat16 if kind == "bfloat16" else None)


def throughput(depth: int, rounds: int, log: genre.Interactions, folder: Path) -> dict[str, Any]:
    """Tokens per second of each way, alternating step by step after a warm-up; every second turn in the other order."""
    ways = {
        kind: Way(kind, depth, folder / kind, log, own_base(kind, depth)) for kind in ("lora", "full", "peft", "bare", "bfloat16")
    }
    rates: dict[str, list[float]] = {kind: [] for kind in ways}
    for turn in range(rounds + 2):
        for kind, way in in_turn(ways, turn):
            begun = time.perf_counter()
            tokens = way.step()
            if turn >= 2:
                rates[kind].append(tokens / (time.perf_counter() - begun))
    lora = ways["lora"].assembly
    trained = sum(value.numel() for _, value in lora.model.lora_parameters())
    whole = sum(value.numel() for value in lora.base.model.parameters() if value is not None) - trained
    return {
        "tokens_per_second": {kind: median(values) for kind, values in rates.items()},
        "lora_parameters": trained,
        "base_parameters": whole,
        "ratios": {
            "adapter_vs_full_throughput": _ratio(rates["lora"], rates["full"]),
            "fused_vs_peft_throughput": _ratio(rates["lora"], rates["peft"]),
            "bare_vs_peft_throughput": _ratio(rates["bare"], rates["peft"]),
            "bfloat16_vs_float32_throughput": _ratio(rates["bfloat16"], rates["lora"]),
        },
        "counts": {"lora_share_of_base": trained / whole},
    }


def in_turn(ways: dict[str, Any], turn: int) -> list[tuple[str, Any]]:
    """Return the ways, reversed every second turn, so that a machine that slows down affects all of them alike."""
    return list(ways.items())[:: -1 if turn % 2 else 1]


def _ratio(a: list[float], b: list[float]) -> float:
    return median(x / y for x, y in zip(a, b, strict=True))


def at_once(depth: int, rounds: int, log: genre.Interactions, folder: Path, adapters: int = 4) -> dict[str, Any]:
    """Tokens per second of several adapters at once, against the same steps of the same runs, one after the other."""
    ways: dict[str, list[Way] | list[AtOnce]] = {
        "solo": [
            Way("lora", depth, folder / f"solo-{n}", log, genre.Base.load("smollm2-135m", depth=depth), number=n)
            for n in range(adapters)
        ],
        "at_once": [AtOnce(depth, folder, log, adapters)],
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 2):
        for name, some in in_turn(ways, turn):
            begun = time.perf_counter()
            tokens = sum(way.step() for way in some)
            if turn >= 2:
                rates[name].append(tokens / (time.perf_counter() - begun))
    return {
        "tokens_per_second": {name: median(values) for name, values in rates.items()},
        "ratios": {"together_4_vs_one_after_the_other": _ratio(rates["at_once"], rates["solo"])},
        "interval": _interval(rates["at_once"], rates["solo"]),
    }


def _interval(a: list[float], b: list[float]) -> list[float]:
    """95 % interval of the median ratio, by 10,000 draws of rounds with replacement."""
    ratios = np.array(a) / np.array(b)
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    return [float(value) for value in np.percentile(np.median(drawn, axis=1), [2.5, 97.5])]


def memory(kind: str, depth: int) -> dict[str, int]:
    """Peak memory of a fresh process over some steps: in all, and beyond the loaded base."""
    command = [sys.executable, __file__, kind, str(depth)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def worker(kind: str, depth: int) -> None:
    """Print the peak for `memory` to read."""
    log = open_log("data/ml-100k")
    with tempfile.TemporaryDirectory() as folder:
        if kind == "together":
            step, held = AtOnce(depth, Path(folder), log, 4).step, 0
        else:
            base = own_base(kind, depth)
            Path("/proc/self/clear_refs").write_text("5")
            held = _status("VmRSS")
            step = Way(kind, depth, Path(folder), log, base).step
        for _ in range(4):
            step()
        peak = _status("VmHWM")
    print(json.dumps({"peak": peak, "beyond_base": peak - held}))


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key}")


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, where there is glibc."""
    trim_threshold, mmap_max = -1, -4
    if hasattr(ctypes.CDLL(None), "mallopt"):
        ctypes.CDLL(None).mallopt(trim_threshold, 2**31 - 1)
        ctypes.CDLL(None).mallopt(mmap_max, 0)


def cost(depth: int, rounds: int) -> dict[str, Any]:
    """Measure all of it: ratios, counts, and their inputs."""
    log = open_log("data/ml-100k")
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        group = at_once(depth, rounds, log, Path(folder) / "group")
        alone = throughput(depth, rounds, log, Path(folder) / "alone")
    peaks = {kind: memory(kind, depth) for kind in ("lora", "full", "together", "bfloat16")}
    return {
        "depth": depth,
        "tokens_per_step": 2048,
        "rounds": rounds,
        "ratios": alone.pop("ratios") | group.pop("ratios"),
        "counts": alone.pop("counts")
        | {
            "adapter_vs_full_memory": peaks["lora"]["beyond_base"] / peaks["full"]["beyond_base"],
            "together_4_vs_side_by_side_memory": peaks["together"]["peak"] / (4 * peaks["lora"]["peak"]),
        },
        "alone": alone,
        "together": group,
        "peak_bytes": peaks,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="One way's peak memory, in a process of its own; benchmarks/training.py runs all."
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("depth", type=int)
    options = parser.parse_args()
    worker(options.kind, options.depth)
