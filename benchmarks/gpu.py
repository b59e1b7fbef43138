"""Everything that needs a GPU, on a machine with one GPU, PyTorch and no network, in ten minutes at most.

    make gpu                                            # writes build/gpu/report.json and report.md
    python benchmarks/gpu.py --device cpu --out DIR     # the same parts on a CPU with a tiny model, to try the script

    tests       the tests marked `gpu`
    training    tokens per second and memory of a step: the adapter, PEFT's layers in the same loop, the full fine-tune (where the
                base is not quantized), and the planned memory beside what was used; in bfloat16 (float32 on a CPU), int8 and nf4
    serving     16 adapters in one batch by slots, gathered and in groups, against PEFT's `adapter_names`; a service's planned
                memory beside what an engine used; in the same precisions

The base is random, of the shape of Qwen3-0.6B; `--base FOLDER` takes another. Each part is a process of its own with its own time
limit, and fails alone. "Used" is the most that PyTorch's allocator had given out (torch.cuda.max_memory_allocated); on a CPU the
tensors that live and what a profiled step adds.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import genre
from architectures import config_of, write_model
from builders import LIKE, publish_stirred, recipe
from fakes import planted_log
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
KINDS = {"plain": "none", "int8": "int8", "nf4": "nf4"}
LIMITS = {"tests": 150, **{f"{what} {kind}": 75 for what in ("training", "serving") for kind in KINDS}}
"""Seconds of each part; all together end at `WHOLE`."""
WHOLE = 590
BEFORE, ROUNDS, ADAPTERS, RANK = 2, 6, 16, 8


def main() -> None:
    """Run all parts, or one of them for `main` itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--base", type=Path, help="a transformers folder; by default a random model is made")
    parser.add_argument("--only", nargs="*", choices=LIMITS, help="some of the parts")
    parser.add_argument("--part", choices=LIMITS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device: got a machine without one; expected one GPU; --device cpu tries the script")
    if asked.part is not None:
        what, _, kind = asked.part.partition(" ")
        found = {"tests": run_tests, "training": run_training, "serving": run_serving}[what](
            asked.base, asked.device, KINDS.get(kind)
        )
        asked.out.write_text(json.dumps(found))
        return
    asked.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    report: dict[str, Any] = {"device": describe(asked.device), "parts": {}}
    with tempfile.TemporaryDirectory() as scratch:
        base = asked.base or make_base(Path(scratch) / "base", asked.device)
        slack = 4 if asked.device == "cpu" else 1  # nobody waits for a machine that is lent
        for name in asked.only or LIMITS:
            limit = min(slack * LIMITS[name], slack * WHOLE - (time.monotonic() - begun))
            report["parts"][name] = run_part(name, limit, base, asked.device, Path(scratch))
            (asked.out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
            (asked.out / "report.md").write_text(markdown(report))
            print(f"{name}: {report['parts'][name]['state']}, {report['parts'][name]['seconds']:.0f} s", flush=True)
    print(f"{asked.out / 'report.json'}, {asked.out / 'report.md'}")


def describe(device: str) -> dict[str, Any]:
    """The machine and the versions."""
    import peft
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    if device == "cpu":
        return {"name": "cpu", **versions}
    about = torch.cuda.get_device_properties(0)
    capability = f"{about.major}.{about.minor}"
    return {
        "name": about.name,
        "memory_bytes": about.total_memory,
        "capability": capability,
        "cuda": torch.version.cuda,
        **versions,
    }


def make_base(folder: Path, device: str) -> Path:
    """A random model with a byte tokenizer: of Qwen3-0.6B's shape but for its vocabulary, or tiny on a CPU."""
    words = {"vocab_size": 260, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "max_position_embeddings": 4096}
    tiny = GROUPED | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 8}
    return write_model(
        folder, config_of("Qwen3Config", (qwen3(1024, 3072, 28, 16, tied=True) if device == "cuda" else tiny) | words)
    )


def run_part(name: str, limit: float, base: Path, device: str, scratch: Path) -> dict[str, Any]:
    """One part in a process of its own."""
    if limit <= 1:
        return {"state": "left out: the time was up", "seconds": 0.0}
    out = scratch / f"{name}.json"
    command = [sys.executable, __file__, "--part", name, "--device", device, "--base", str(base), "--out", str(out)]
    begun = time.monotonic()
    with (scratch / f"{name}.log").open("w+") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # and what it has started itself
            child.wait()
            return {"state": f"stopped after {limit:.0f} s", "seconds": time.monotonic() - begun}
        log.seek(0)
        lines = log.read().strip().splitlines()
    seconds = time.monotonic() - begun
    if code != 0:
        return {"state": "failed", "seconds": seconds, "error": lines[-15:]}
    return {"state": "done", "seconds": seconds, "result": json.loads(out.read_text())}


def run_tests(base: Path, device: str, kind: str | None) -> dict[str, Any]:
    """The tests marked `gpu`; without a GPU they skip themselves."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short", "tests/test_gpu.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    return {"exit_code": done.returncode, "summary": lines[-1] if lines else "", "tail": lines[-40:] if done.returncode else []}


def run_training(base: Path, device: str, kind: str | None) -> dict[str, Any]:
    """Steps of each way, one way after the other."""
    log = planted_log(users=400 if device == "cuda" else 20, items=200, events=60)
    ways = ("adapter", "peft", "full") if kind == "none" else ("adapter", "peft")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for way in ways:
            found[way] = train_steps(way, base, device, kind or "none", log, Path(folder) / way)
            if device == "cuda":
                torch.cuda.empty_cache()
    found["peft_ratio"] = found["adapter"]["tokens_per_second"] / found["peft"]["tokens_per_second"]
    return found


def train_steps(way: str, where: Path, device: str, kind: str, log: Any, folder: Path) -> dict[str, Any]:
    """Tokens per second, the memory that was used, and for our own ways the planned one."""
    adapter = {"adapter": {"rank": RANK}, "peft": {"kind": "head_only"}, "full": {"kind": "full"}}[way]
    tokens = 8192 if device == "cuda" else 512
    sections = {"base": {"name": str(where), "quantization": kind}, "adapter": adapter, "train": {"batch_tokens": tokens}}
    wanted = recipe(where, LIKE, **sections, data={"max_events": 60})
    plan = plan_run(wanted, data=log, device=device).total() if way != "peft" else None
    start = reset(device)
    base = genre.Base.load(str(where), quantization=kind, device=device)
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
    return {
        "tokens_per_second": step.tokens / median(seconds[BEFORE:]),
        "loss": step.loss,
        "planned_bytes": plan,
        "used_bytes": used,
    }


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


def run_serving(base: Path, device: str, kind: str | None) -> dict[str, Any]:
    """Mixed products against PEFT's, then a service's memory."""
    return {"products": compare_products(base, device, kind or "none"), "service": serve_memory(base, device, kind or "none")}


@torch.no_grad()
def compare_products(where: Path, device: str, kind: str) -> dict[str, Any]:
    """Seconds of a batch in which every row has another adapter, and by how much the states differ."""
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
    }
    states = {name: way().float() for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(BEFORE + ROUNDS):
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            wait(device)
            begun = time.perf_counter()
            ways[name]()
            wait(device)
            seconds[name].append(time.perf_counter() - begun)
    slots.detach()
    norm = float(states["peft"].norm())
    differ = {name: float((found - states["peft"]).norm()) / norm for name, found in states.items() if name != "peft"}
    return {"seconds": {name: median(own[BEFORE:]) for name, own in seconds.items()}, "relative_difference_to_peft": differ}


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
    """An engine's planned memory, what it used, and its rows per second."""
    log = planted_log(users=64, items=60, events=40)
    with tempfile.TemporaryDirectory() as folder:
        registry = genre.Registry(Path(folder) / "registry")
        start = reset(device)
        base = genre.Base.load(str(where), quantization=kind, device=device)
        section = {"base": {"name": str(where), "quantization": kind}, "sequence": {"item": "text"}, "encoder": {"use": "none"}}
        for number in range(4):
            wanted = recipe(where, LIKE, name=f"like{number}", adapter={"rank": RANK}, **section)
            publish_stirred(registry, wanted, log, base, Path(folder) / str(number), seed=number)
        refs = [f"like{number}" for number in range(4)]
        tokens = 8192 if device == "cuda" else 1024
        plan = plan_service(registry, refs, base=str(where), data=log, batch_tokens=tokens, device=device)
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


def markdown(report: dict[str, Any]) -> str:
    """The report as people read it."""
    device = report["device"]
    lines = [f"# On {device['name']}", "", ", ".join(f"{name} {value}" for name, value in device.items() if name != "name"), ""]
    lines += ["| part | state | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {part['state']} | {part['seconds']:.0f} |" for name, part in report["parts"].items()]
    done = {name: part["result"] for name, part in report["parts"].items() if part["state"] == "done"}
    if "tests" in done:
        lines += ["", f"Tests: {done['tests']['summary']}"]
    rows = [
        (name, way, own)
        for name, part in done.items()
        if name.startswith("training")
        for way, own in part.items()
        if way != "peft_ratio"
    ]
    if rows:
        lines += ["", "| training | tokens per second | memory used, MiB | planned, MiB |", "|---|---|---|---|"]
        for name, way, own in rows:
            cells = f"{own['tokens_per_second']:,.0f} | {_size(own['used_bytes'])} | {_size(own['planned_bytes'])}"
            lines.append(f"| {name.removeprefix('training ')}, {way} | {cells} |")
    served = {name.removeprefix("serving "): part for name, part in done.items() if name.startswith("serving")}
    if served:
        lines += ["", f"| {ADAPTERS} adapters in a batch | seconds | difference to PEFT |", "|---|---|---|"]
        for name, part in served.items():
            for way, seconds in part["products"]["seconds"].items():
                differ = part["products"]["relative_difference_to_peft"].get(way)
                lines.append(f"| {name}, {way} | {seconds:.4f} | {'–' if differ is None else f'{differ:.1e}'} |")
        lines += ["", "| service | rows per second | memory used, MiB | planned, MiB |", "|---|---|---|---|"]
        for name, part in served.items():
            own = part["service"]
            cells = f"{own['rows_per_second']:,.1f} | {_size(own['used_bytes'])} | {_size(own['planned_bytes'])}"
            lines.append(f"| {name} | {cells} |")
    for name, part in report["parts"].items():
        if "error" in part:
            lines += ["", f"## {name} failed", "", "```", *part["error"], "```"]
    return "\n".join(lines) + "\n"


def _size(count: int | None) -> str:
    return "–" if count is None else f"{count / 2**20:,.0f}"


if __name__ == "__main__":
    main()
