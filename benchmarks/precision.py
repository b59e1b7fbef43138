"""bfloat16 against float32 on this processor: products, requests, training steps, and what it costs in quality.

    python benchmarks/precision.py --json build/bench/precision.json [--only products,serving,training,run,loss,int8]

products    a linear of (rows x width) by (width x width), milliseconds of float32, bfloat16 and int8 by torch's own kernels.
serving     requests to `like` and `next_item` on the users of ML-100K, one and 32 at a time: requests/s, alternating, by engines
            in float32 by torch's own products, in float32 as engines are, and in bfloat16.
training    steps of recipes/like.yaml, alternating.
run         `genre train recipes/like.yaml` for one epoch, from the data to the published version, with `--precision float32` and
            with `auto`: seconds, seconds of a core, and the test AUC of both.
int8        `like` on a base by bitsandbytes, and on one with `Int8Linear`s: requests/s and the test AUC beside bfloat16's.
loss        the test metrics of the published versions, computed in both precisions: the paired difference over users.

`serving`, `loss` and `int8` need a registry with `like`, `rating` and `next_item`: `make demo` leaves one. Threads: torch's,
or OMP_NUM_THREADS.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

import genre
from genre.engine import Engine, Request
from genre.jobs.compare import compare
from genre.jobs.loading import load_base, open_base, open_log
from genre.jobs.predictions import from_version
from genre.modules.lora.layer import find_linears
from genre.modules.lora.split_linears import SplitLinear
from genre.progress import Reporter
from genre.registry import Registry
from genre.training import Loop
from genre.training.assembly import assemble
from suite import keep_figures

PARTS = ("products", "serving", "training", "run", "loss", "int8")
PRECISIONS = ("float32", "bfloat16")
RECIPE = Path(__file__).parent.parent / "recipes" / "like.yaml"
SHAPES = ((576, 576), (576, 1536), (1536, 576))
ROWS = (1, 8, 32, 128, 512, 2048)
REFS = ("like@production", "rating@production", "next_item@production")


def milliseconds(call: Callable[[], object], least_s: float = 0.1) -> float:
    """The shortest time of a call, over at least so many seconds, in milliseconds: whatever else runs adds to the others."""
    call()
    taken: list[float] = []
    until = time.perf_counter() + least_s
    while len(taken) < 3 or time.perf_counter() < until:
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return 1000 * min(taken)


@torch.inference_mode()
def products() -> dict[str, Any]:
    """Linears of the packaged base's shapes; `int8` quantizes each row first, multiplies by `torch._int_mm` and scales."""
    found = {}
    for inside, outside in SHAPES:
        weight = torch.randn(outside, inside) / inside**0.5
        half = weight.bfloat16()
        scale = weight.abs().amax(1) / 127
        whole = (weight / scale[:, None]).round().to(torch.int8).t()
        for rows in ROWS:
            x = torch.randn(rows, inside)
            x_half = x.bfloat16()

            def int8(x: torch.Tensor = x_half, whole: torch.Tensor = whole, scale: torch.Tensor = scale) -> torch.Tensor:
                own = x.abs().amax(1, keepdim=True).float() / 127
                rounded = (x / own).round().to(torch.int8)
                return (torch._int_mm(rounded, whole).float() * own * scale).bfloat16()

            times = [milliseconds(lambda x=x, w=weight: nn.functional.linear(x, w))]
            times += [milliseconds(lambda x=x_half, w=half: nn.functional.linear(x, w)), milliseconds(int8)]
            found[f"{rows} x {inside} -> {outside}"] = dict(zip(("float32", "bfloat16", "int8"), times, strict=True))
    return found


def alternate(ways: dict[str, Callable[[], object]], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of ways that take turns, and how many times as fast as the first each is."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            begun = time.perf_counter()
            way()
            if turn:  # the first builds kernels
                taken[name].append(time.perf_counter() - begun)
    first = taken[next(iter(ways))]
    ratios = {name: round(median(a / b for a, b in zip(first, own, strict=True)), 2) for name, own in taken.items()}
    return {name: median(own) for name, own in taken.items()}, ratios


def requests_of(log: genre.Interactions, ref: str, count: int, seed: int) -> list[Request]:
    """Requests for users of the log: ten items of the catalogue by next_item, 20 candidates by the others."""
    draw = np.random.default_rng(seed)
    users = [log.user_ids[int(code)] for code in draw.integers(len(log.user_ids), size=count)]
    if ref.startswith("next_item"):
        return [Request(ref, user_id=user, k=10) for user in users]
    items = log.catalogue.item_ids
    chosen = draw.integers(len(items), size=(count, 20))
    return [Request(ref, user_id=user, candidates=[items[int(i)] for i in own]) for user, own in zip(users, chosen, strict=True)]


def serving(log: genre.Interactions, registry: Registry, rounds: int) -> dict[str, Any]:
    """Requests a second of three kinds of engines."""
    manifest = registry.resolve(REFS[0]).manifest
    with patch("genre.modules.lora.split_linears.onednn_gain", lambda: 0.0):
        engines = {"torch's own": Engine(load_base(manifest, precision="float32"), registry, data=log)}
    engines |= {each: Engine(load_base(manifest, precision=each), registry, data=log) for each in PRECISIONS}
    found: dict[str, Any] = {"depth": manifest.base.depth}
    for ref in (REFS[0], REFS[2]):
        for count in (1, 32):
            turns = {name: iter(range(10_000)) for name in engines}

            def ask(name: str, ref: str = ref, count: int = count, turns: Any = turns) -> None:
                for answer in engines[name].score(requests_of(log, ref, count, next(turns[name]))):
                    if answer.error:
                        raise RuntimeError(answer.error)

            seconds, ratios = alternate({name: lambda n=name: ask(n) for name in engines}, rounds if count > 1 else 4 * rounds)
            rates = {name: round(count / own, 2) for name, own in seconds.items()}
            found[f"{ref.partition('@')[0]}, {count} at a time"] = {"requests_per_second": rates, "ratios": ratios}
    for engine in engines.values():
        engine.close()
    return found


def training(log: genre.Interactions, rounds: int) -> dict[str, Any]:
    """Steps of a recipe in both precisions."""
    ways: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for each in PRECISIONS:
            recipe = genre.Recipe.read(RECIPE, ["train.tracker=none", "encoder.use=fit", f"base.precision={each}"])
            loop = Loop(assemble(recipe, log, open_base(recipe.base)), Path(folder) / each, Reporter.silent())
            loop.set_training()
            batches = iter(loop.plan(0) + loop.plan(1))
            ways[each] = lambda loop=loop, batches=batches: loop.step(next(batches), 0.1)
        seconds, ratios = alternate(ways, 4 * rounds)
    return {"seconds_of_a_step": seconds, "ratios": ratios}


def whole_run(data: str) -> dict[str, Any]:
    """A recipe's training in float32 and as measured, each a process of its own."""
    found: dict[str, Any] = {}
    for each in ("float32", "auto"):
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            command = [sys.executable, "-m", "genre", "train", str(RECIPE), "--precision", each, "--quiet", "--json", str(result)]
            command += ["--registry", f"{folder}/registry", "--out", f"{folder}/run", "--baselines", "none"]
            settings = (f"data.path={data}", "train.epochs=1", "train.tracker=none", "encoder.use=fit")
            begun, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([*command, *(f"--set={setting}" for setting in settings)], check=True, stdout=subprocess.DEVNULL)
            seconds, now = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
            core = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
            auc = json.loads(result.read_text())["metrics"]["like"]["auc"]["value"]
            found[each] = {"seconds": round(seconds, 1), "core_seconds": round(core, 1), "auc": auc}
    ratio = found["float32"]["core_seconds"] / found["auto"]["core_seconds"]
    return found | {"ratio": found["float32"]["seconds"] / found["auto"]["seconds"], "ratio_by_core": ratio}


def loss(log: genre.Interactions, registry: Registry) -> dict[str, Any]:
    """The test metrics of published versions in both precisions, paired by user."""
    found: dict[str, Any] = {}
    scored: dict[str, list[Any]] = {ref: [] for ref in REFS}
    for each in PRECISIONS:
        base = load_base(registry.resolve(REFS[0]).manifest, precision=each)
        for ref in REFS:
            (own,) = from_version(registry, ref, log, base, part="test").values()
            scored[ref].append(replace(own, name=each))
    for ref, (exact, rough) in scored.items():
        found[ref.partition("@")[0]] = {
            one.metric: {"float32": one.b, "bfloat16": one.a, "difference": one.difference, "interval": one.interval}
            for one in compare(rough, exact)
        }
    return found


class Int8Linear(SplitLinear):
    """A linear with 8-bit weights, a scale for each output; inputs are rounded with a scale for each row."""

    def __init__(self, stock: nn.Linear) -> None:
        super().__init__(stock)
        self.scale = stock.weight.abs().amax(1).float() / 127
        self.whole = (stock.weight.float() / self.scale[:, None]).round().to(torch.int8).t()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(…, in) → (…, out)."""
        flat = x.reshape(-1, x.shape[-1])
        own = flat.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / 127
        found = torch._int_mm((flat / own).round_().to(torch.int8), self.whole).to(x.dtype)
        return found.mul_(own.to(x.dtype)).mul_(self.scale.to(x.dtype)).view(*x.shape[:-1], -1)


def int8(log: genre.Interactions, registry: Registry, rounds: int) -> dict[str, Any]:
    """Two kinds of 8-bit linears beside bfloat16, on `like`."""
    manifest = registry.resolve(REFS[0]).manifest
    bases = {"bfloat16": load_base(manifest, precision="bfloat16"), "bitsandbytes": load_base(manifest, quantization="int8")}
    for name in ("float32", "bfloat16"):
        base = bases[f"_int_mm on {name}"] = load_base(manifest, precision=name)
        for place in find_linears(base.model, "all-linear"):
            base.model.set_submodule(place, Int8Linear(base.model.get_submodule(place)))
    scored = {}
    for name, base in bases.items():
        scored[name] = replace(from_version(registry, REFS[0], log, base, part="test")["like"], name=name)
    found: dict[str, Any] = {}
    for name in bases:
        (auc,) = compare(scored[name], scored["bfloat16"], metrics=["auc"])
        found[name] = {"auc": auc.a, "difference": auc.difference, "interval": auc.interval}
    engines = {name: Engine(base, registry, data=log) for name, base in bases.items()}
    for count in (1, 32):
        taken: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(rounds + 1):
            asked = requests_of(log, REFS[0], count, turn)
            for name, engine in engines.items():
                begun = time.perf_counter()
                engine.score(asked)
                if turn:
                    taken[name].append(time.perf_counter() - begun)
        for name, own in taken.items():
            ratio = median(a / b for a, b in zip(taken["bfloat16"], own, strict=True))
            found[name][f"requests/s against bfloat16's, {count} at a time"] = round(ratio, 2)
    for engine in engines.values():
        engine.close()
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, default=Path("build/bench/precision.json"))
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PARTS), metavar="PART,PART")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--registry", type=Path, default=Path("build/demo/registry"))
    parser.add_argument("--data", default="ml-100k")
    options = parser.parse_args()
    if unknown := sorted(set(options.only) - set(PARTS)):
        parser.error(f"no such part: {', '.join(unknown)}; expected {', '.join(PARTS)}")
    options.json.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {}
    log = open_log(options.data)
    for part in (each for each in PARTS if each in options.only):
        if part == "products":
            result[part] = products()
        elif part == "run":
            result[part] = whole_run(options.data)
        elif part == "training":
            result[part] = training(log, options.rounds)
        else:
            registry = Registry(options.registry)
            measured = {"serving": serving, "int8": int8}.get(part)
            result[part] = loss(log, registry) if measured is None else measured(log, registry, options.rounds)
        keep_figures(options.json, result)
        print(f"{part}: {json.dumps(result[part], indent=2)}", flush=True)


if __name__ == "__main__":
    main()
