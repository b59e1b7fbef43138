"""The parts of gpu.py, each in a process of its own, which writes what it has found as soon as it has found it.

    python benchmarks/gpu_parts.py "training nf4" --device cuda --base FOLDER --out part.json

An error of ours (no bitsandbytes, a folder that is no base) ends the part with one line. A way that the device cannot carry out,
or has no memory for, has its reason in the place of its figures, and the others go on.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import genre
from architectures import config_of, write_model
from builders import LIKE, publish_stirred, recipe
from fakes import planted_log
from genre.errors import GenreError, first_line
from genre.jobs.memory import plan_run, plan_service
from genre.modules.base.quiet import quiet
from genre.modules.lora.layer import find_linears, linear_shape
from genre.modules.lora.slots import AdapterSlots
from genre.progress import Reporter
from genre.training import Loop
from genre.training.assembly import assemble
from genre.training.optimization import Optimization
from memory_plan import GROUPED, growth, live_bytes, qwen3

ROOT = Path(__file__).parent.parent
KINDS: dict[str, Any] = {"plain": "none", "int8": "int8", "nf4": "nf4"}
BEFORE, ROUNDS, ADAPTERS, RANK = 2, 6, 16, 8
Keep = Callable[[dict[str, Any]], None]
"""Writes what a part has found so far."""


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", help="machine, base, tests, or training or serving with a precision")
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()

    def keep(found: dict[str, Any]) -> None:
        aside = asked.out.with_suffix(".part")
        aside.write_text(json.dumps(found))
        aside.replace(asked.out)

    what, _, kind = asked.part.partition(" ")
    try:
        if what == "machine":
            keep(describe(asked.device))
        elif what == "base":
            make_base(asked.base, asked.device)
            keep({})
        elif what == "tests":
            keep(run_tests())
        else:
            {"training": run_training, "serving": run_serving}[what](asked.base, asked.device, KINDS[kind], keep)
    except GenreError as error:
        sys.exit(str(error))


def describe(device: str) -> dict[str, Any]:
    """The machine and the versions."""
    import peft
    import transformers

    found: dict[str, Any] = {"name": "cpu", "genre": genre.__version__, "torch": torch.__version__}
    found |= {"transformers": transformers.__version__, "peft": peft.__version__}
    if device == "cuda":
        about = torch.cuda.get_device_properties(0)
        found |= {"name": about.name, "memory_bytes": about.total_memory, "capability": f"{about.major}.{about.minor}"}
        found["cuda"] = torch.version.cuda
    return found


def make_base(folder: Path, device: str) -> None:
    """Write a random model with a byte tokenizer: of Qwen3-0.6B's shape but for its vocabulary, or tiny on a CPU."""
    words = {"vocab_size": 260, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "max_position_embeddings": 4096}
    tiny = GROUPED | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 8}
    shape = qwen3(1024, 3072, 28, 16, tied=True) if device == "cuda" else tiny
    write_model(folder, config_of("Qwen3Config", shape | words))


def run_tests() -> dict[str, Any]:
    """The tests marked `gpu`; without a GPU they skip themselves."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short", "tests/test_gpu.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    lines = [line for line in (done.stdout or done.stderr).splitlines() if line.strip()]
    return {"exit_code": done.returncode, "summary": lines[-1] if lines else "", "tail": lines[-40:] if done.returncode else []}


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a way has found, or why it cannot be carried out here; errors of ours are those of the whole part."""
    try:
        return work()
    except torch.OutOfMemoryError:
        return {"why_not": "out of memory"}
    except GenreError:
        raise
    except (RuntimeError, NotImplementedError, ImportError) as error:
        return {"why_not": first_line(error)}


def run_training(where: Path, device: str, kind: str, keep: Keep) -> None:
    """Steps of each way, one way after the other."""
    log = planted_log(users=400 if device == "cuda" else 20, items=200, events=60)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ("adapter", "peft", "full") if kind == "none" else ("adapter", "peft"):
            found[way] = train_steps(way, where, device, kind, log, Path(folder) / way)
            keep(found)


def train_steps(way: str, where: Path, device: str, kind: str, log: Any, folder: Path) -> dict[str, Any]:
    """Tokens per second, the memory that was used, and for our own ways the planned one."""
    adapter = {"adapter": {"rank": RANK}, "peft": {"kind": "head_only"}, "full": {"kind": "full"}}[way]
    tokens = 8192 if device == "cuda" else 512
    sections = {"base": {"name": str(where), "quantization": kind}, "adapter": adapter, "train": {"batch_tokens": tokens}}
    wanted = recipe(where, LIKE, **sections, data={"max_events": 60})
    planned = None
    if way != "peft":  # whose layers are no part of the plan; no batch is evaluated here
        planned = replace(plan_run(wanted, data=log, device=device), evaluation=0).total()
    start = reset(device)
    return {"planned_bytes": planned} | attempt(lambda: _steps(way, wanted, device, log, folder, start))


def _steps(way: str, wanted: genre.Recipe, device: str, log: Any, folder: Path, start: int) -> dict[str, Any]:
    base = genre.Base.load(wanted.base.name, quantization=wanted.base.quantization, device=device)
    assembly = assemble(wanted, log, base)
    added = put_peft(base) if way == "peft" else {}
    try:
        with closing(Loop(assembly, folder, Reporter.silent())) as loop:
            if added:
                loop.parameters |= added
                values = list(loop.parameters.values())
                loop.optimization = Optimization(loop.accelerator, loop.processes, values, loop.train)
            rows = max(loop.plan(0), key=lambda rows: len(rows) * max(map(len, rows)))
            loop.set_training()
            seconds = []
            for _ in range(BEFORE + ROUNDS):
                wait(device)
                begun = time.perf_counter()
                step = loop.step(rows, 0.1)
                wait(device)
                seconds.append(time.perf_counter() - begun)
                loop.best = loop.best or {name: value.detach().clone() for name, value in loop.parameters.items()}
            used = memory_used(device, start, lambda: loop.step(rows, 0.1))
    finally:
        assembly.model.release()
    return {"tokens_per_second": step.tokens / median(seconds[BEFORE:]), "loss": step.loss, "used_bytes": used}


def put_peft(base: genre.Base) -> dict[str, torch.nn.Parameter]:
    """PEFT's own layers on the base's linears."""
    with quiet():
        from peft import LoraConfig, inject_adapter_in_model

        targets = find_linears(base.model, "all-linear")
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets), base.model)
    return {name: value for name, value in base.model.named_parameters() if "lora_" in name}


def reset(device: str) -> int:
    """Begin to measure memory; what is there already."""
    if device == "cpu":
        return live_bytes()
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def memory_used(device: str, start: int, work: Callable[[], object]) -> int:
    """The most bytes since `reset`, some more work included."""
    if device == "cpu":
        held = live_bytes()
        return held - start + growth(work)
    work()
    return torch.cuda.max_memory_allocated() - start


def wait(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def run_serving(where: Path, device: str, kind: str, keep: Keep) -> None:
    """Mixed products against PEFT's, then a service's memory."""
    found: dict[str, Any] = {"products": attempt(lambda: compare_products(where, device, kind))}
    keep(found)
    found["service"] = attempt(lambda: serve_memory(where, device, kind))
    keep(found)


@torch.no_grad()
def compare_products(where: Path, device: str, kind: str) -> dict[str, Any]:
    """Seconds of a batch in which every row has another adapter, and by how much the states differ from PEFT's."""
    ours, theirs = (genre.Base.load(str(where), quantization=kind, device=device) for _ in range(2))
    names = find_linears(ours.model, "all-linear")
    shapes = {name: linear_shape(ours.model.get_submodule(name)) for name in names}
    draw = torch.Generator().manual_seed(0)
    adapters = [
        {
            name: (torch.randn(RANK, i, generator=draw) / i**0.5, torch.randn(o, RANK, generator=draw) / 8, 1.0)
            for name, (i, o) in shapes.items()
        }
        for _ in range(ADAPTERS)
    ]
    slots = AdapterSlots(ours.model, names, slots=ADAPTERS, dtype=ours.dtype)
    places = [slots.write(low) for low in adapters]
    peft = peft_with(theirs, adapters, names)
    tokens = 128 if device == "cuda" else 16
    ids = torch.randint(3, 250, (ADAPTERS, tokens), generator=draw).to(device)
    embeds = ours.embedding(ids)

    def by_slots(grouped: bool | None) -> torch.Tensor:
        slots.routing.grouped = grouped
        slots.route(places)
        hidden = ours.hidden(embeds)
        slots.clear()
        return hidden

    def by_peft() -> torch.Tensor:
        given: dict[str, Any] = {"adapter_names": [f"a{i}" for i in range(ADAPTERS)], "use_cache": False}
        return peft(inputs_embeds=embeds, **given, output_hidden_states=True, logits_to_keep=1).hidden_states[-1]

    ways = {
        "gathered": lambda: by_slots(False),
        "in groups": lambda: by_slots(True),
        "chosen": lambda: by_slots(None),
        "peft": by_peft,
        "bare base": lambda: ours.hidden(embeds),
    }
    states, found = {}, {}
    for name, way in ways.items():
        found[name] = attempt(lambda name=name, way=way: states.update({name: way().float()}) or {})
    seconds: dict[str, list[float]] = {name: [] for name in states}
    for turn in range(BEFORE + ROUNDS):
        for name in list(states)[:: -1 if turn % 2 else 1]:
            wait(device)
            begun = time.perf_counter()
            ways[name]()
            wait(device)
            seconds[name].append(time.perf_counter() - begun)
    slots.detach()
    for name, own in seconds.items():
        found[name] = {"seconds": median(own[BEFORE:])}
        if name not in ("peft", "bare base") and "peft" in states:
            differ = (states[name] - states["peft"]).norm() / states["peft"].norm()
            found[name]["relative_difference_to_peft"] = float(differ)
    return found


def peft_with(base: genre.Base, adapters: list[dict[str, Any]], names: list[str]) -> Any:
    """PEFT's model with the same adapters, `a0`, `a1` and so on."""
    with quiet():
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names, task_type="CAUSAL_LM")
        model = get_peft_model(base.model, config, adapter_name="a0")
        for number in range(1, len(adapters)):
            model.add_adapter(f"a{number}", config)
    for number, low in enumerate(adapters):
        for name, (a, b, _) in low.items():
            layer = model.base_model.model.get_submodule(name)
            layer.lora_A[f"a{number}"].weight.data.copy_(a)
            layer.lora_B[f"a{number}"].weight.data.copy_(b)
    return model.eval()


def serve_memory(where: Path, device: str, kind: str) -> dict[str, Any]:
    """An engine's planned memory, what it used, and its rows per second.

    The base that the versions are made on is gone before the measurement begins: a service does not publish.
    """
    log = planted_log(users=64, items=60, events=40)
    with tempfile.TemporaryDirectory() as folder:
        registry = genre.Registry(Path(folder) / "registry")
        publish_some(registry, where, device, kind, log, Path(folder))
        refs = [f"like{number}" for number in range(4)]
        tokens = 8192 if device == "cuda" else 1024
        plan = plan_service(registry, refs, base=str(where), data=log, batch_tokens=tokens, device=device)
        start = reset(device)
        base = genre.Base.load(str(where), quantization=kind, device=device)
        with genre.Engine(base, registry, data=log, batch_tokens=tokens) as engine:
            items = list(log.catalogue.item_ids[: 40 if device == "cuda" else 5])
            asked = [genre.Request(refs[n % 4], user_id=f"u{n}", candidates=items) for n in range(64 if device == "cuda" else 8)]
            engine.score(asked)
            wait(device)
            begun = time.perf_counter()
            failed = [answer.error for answer in engine.score(asked) if answer.error is not None]
            wait(device)
            seconds = time.perf_counter() - begun
            used = memory_used(device, start, lambda: engine.score(asked))
    return {"planned_bytes": plan.total, "used_bytes": used, "rows_per_second": len(asked) / seconds, "failed": failed}


def publish_some(registry: genre.Registry, where: Path, device: str, kind: Any, log: Any, folder: Path) -> None:
    """Publish four versions with random weights on a base that is dropped again."""
    base = genre.Base.load(str(where), quantization=kind, device=device)
    section = {"base": {"name": str(where), "quantization": kind}, "sequence": {"item": "text"}, "encoder": {"use": "none"}}
    for number in range(4):
        wanted = recipe(where, LIKE, name=f"like{number}", adapter={"rank": RANK}, **section)
        publish_stirred(registry, wanted, log, base, folder / str(number), seed=number)


if __name__ == "__main__":
    main()
