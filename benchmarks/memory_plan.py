"""The memory plan of `--dry-run` against what a run took, and the table of bases and GPUs.

    python benchmarks/memory_plan.py                    # planned and measured, ten settings of training and two of serving
    python benchmarks/memory_plan.py --table            # bases of several sizes on GPUs of several sizes, predicted

Planned: from `config.json` on PyTorch's `meta` device. Measured, on the CPU: the bytes of all tensors that live before a step,
found by the garbage collector, and by how much the CPU's allocator went up within the step, from PyTorch's profiler, which sees
what kernels take inside too. Random models of usual shapes, so that a step takes a second.
"""

import argparse
import gc
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import genre
from architectures import config_of, write_model
from builders import GOOD, LIKE, NEXT, publish_stirred, recipe, text_recipe
from fakes import browsing_log, planted_log, planted_texts
from genre.jobs.memory import plan_service
from genre.modules.base.planned import PlannedBase
from genre.modules.lora.layer import LoraLinear, attach, find_linears
from genre.progress import Reporter
from genre.training import Loop
from genre.training.assembly import assemble_any
from genre.training.memory_plan import plan_training

WIDE = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "vocab_size": 260,
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = WIDE | {"num_key_value_heads": 2}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "qwen3": ("Qwen3Config", GROUPED | {"head_dim": 32}),
    "gemma3": ("Gemma3TextConfig", GROUPED | {"head_dim": 32, "sliding_window": 32}),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 256, "n_layer": 6, "n_head": 8, "n_positions": 512, "vocab_size": 260, "bos_token_id": 0, "eos_token_id": 1},
    ),
    "modernbert": ("ModernBertConfig", WIDE | {"cls_token_id": 0, "sep_token_id": 1}),
}
TRAIN = {"batch_tokens": 2048, "epochs": 1}
VIEW = {"name": "view", "kind": "feedback", "label": "bought"}
SETTINGS: dict[str, tuple[str, Any, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", LIKE, {}, {}),
    "llama, checkpointed": ("llama", LIKE, {}, {"train": {"checkpoint_activations": True}}),
    "llama, rank 64, dropout": ("llama", LIKE, {}, {"adapter": {"rank": 64, "dropout": 0.1}}),
    "llama, next item": ("llama", NEXT, {}, {}),
    "llama, impressions (masks)": ("llama", VIEW, {}, {"sequence": {"instruction": ""}}),
    "llama, bfloat16": ("llama", LIKE, {"dtype": torch.bfloat16}, {"base": {"precision": "bfloat16"}}),
    "llama, int8": ("llama", LIKE, {"quantization": "int8"}, {"base": {"quantization": "int8"}}),
    "llama, nf4": ("llama", LIKE, {"quantization": "nf4"}, {"base": {"quantization": "nf4"}}),
    "llama, full fine-tune": ("llama", LIKE, {}, {"adapter": {"kind": "full"}}),
    "qwen3": ("qwen3", LIKE, {}, {}),
    "gemma3, averaged": ("gemma3", LIKE, {}, {"train": {"average": 0.9}}),
    "gpt2, text items": ("gpt2", LIKE, {}, {"sequence": {"item": "both"}}),
    "modernbert, texts": ("modernbert", GOOD, {}, {}),
}


SERVICES = {"serving 4 adapters": (4, 8), "serving 16 adapters of rank 32": (16, 32)}
"""Adapters and their rank."""


def qwen3(width: int, inner: int, layers: int, heads: int, *, tied: bool) -> dict[str, Any]:
    """A published size of Qwen 3; all have 8 key heads of 128 and 151,936 tokens."""
    shape = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads}
    return shape | {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": tied}


QWEN3 = {
    "0.6 B": qwen3(1024, 3072, 28, 16, tied=True),
    "1.7 B": qwen3(2048, 6144, 28, 16, tied=True),
    "4 B": qwen3(2560, 9728, 36, 32, tied=True),
    "8 B": qwen3(4096, 12288, 36, 32, tied=False),
    "32 B": qwen3(5120, 25600, 64, 64, tied=False),
}
PRECISIONS = {"none": "bfloat16", "int8": "int8", "nf4": "nf4"}
GPUS, ROOM = (8, 16, 24, 80), 0.9
"""Sizes of GPUs, and the share of one that tensors may take beside a context and what the allocator keeps."""


def live_bytes() -> int:
    """Bytes of all tensors that the garbage collector knows, shared memory once."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [each for each in gc.get_objects() if isinstance(each, torch.Tensor) and each.device.type == "cpu"]
        found += [each.grad for each in found if each.is_leaf and each.grad is not None]
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in found}
    return sum(storages.values())


def growth(work: Callable[[], object]) -> int:
    """By how many bytes some work raises what the CPU's allocator has given out, at the most."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    assert profiled.profiler is not None
    events = [each for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]"]
    now = most = 0
    for each in sorted(events, key=lambda each: each.start_ns()):
        now += each.nbytes()
        most = max(most, now)
    return most


def measured(assembly: Any, folder: Path) -> dict[str, int]:
    """Bytes before the second step, and what that step and an evaluation batch add."""
    with closing(Loop(assembly, folder, Reporter.silent())) as loop:
        batches = loop.plan(0)
        rows = max(batches, key=lambda rows: len(rows) * max(map(len, rows)))
        loop.set_training()
        loop.step(rows, 0.0)
        loop.best = {name: value.detach().clone() for name, value in loop.parameters.items()}
        before = live_bytes()
        step = growth(lambda: loop.step(rows, 0.0))
        return {"before": before, "step": step, "total": before + step}


def compare(name: str, folder: Path) -> dict[str, Any]:
    """The plan and the measurement of one setting."""
    base_name, task, options, sections = SETTINGS[name]
    where = folder / base_name
    if not where.is_dir():
        write_model(where, config_of(*BASES[base_name]), encoder=base_name == "modernbert")
    sections = {key: {**value} for key, value in sections.items()}
    sections["train"] = TRAIN | sections.get("train", {})
    if base_name == "modernbert":
        wanted, data = text_recipe(where, task, **sections), planted_texts()
    else:
        data = browsing_log(users=80) if task is VIEW else planted_log(users=60, items=400 if task is NEXT else 60, events=40)
        sections["data"] = {"max_events": 40}
        wanted = recipe(where, task, **sections)
    planned = assemble_any(wanted, data, PlannedBase.read(str(where), **options))
    plan = plan_training(planned)
    planned.model.release()
    del planned
    start = live_bytes()
    base = genre.Base.load(str(where), **options)
    assembly = assemble_any(wanted, data, base)
    try:
        found = measured(assembly, folder / "run" / name)
    finally:
        assembly.model.release()
    checkpoint = wanted.train.checkpoint_activations
    held = plan.total(checkpoint=checkpoint) - max((plan.checkpointed or 0) if checkpoint else plan.step, plan.evaluation)
    step = (plan.checkpointed if checkpoint else plan.step) or 0
    return {
        "setting": name,
        "planned": {"held": held, "step": step, "total": held + step},
        "measured": {"held": found["before"] - start, "step": found["step"], "total": found["total"] - start},
        "parts": plan.as_dict(),
    }


def compare_service(name: str, folder: Path) -> dict[str, Any]:
    """The plan and the measurement of an engine with resident adapters, all of them in one call."""
    count, rank = SERVICES[name]
    where, log = folder / "llama", planted_log(users=64, items=60, events=40)
    if not where.is_dir():
        write_model(where, config_of(*BASES["llama"]))
    registry = genre.Registry(folder / name)
    base = genre.Base.load(str(where))
    for number in range(count):
        wanted = recipe(
            where, LIKE, name=f"like{number}", sequence={"item": "text"}, encoder={"use": "none"}, adapter={"rank": rank}
        )
        publish_stirred(registry, wanted, log, base, folder / f"{name} {number}", seed=number)
    del base
    refs = [f"like{number}" for number in range(count)]
    plan = plan_service(registry, refs, base=str(where), data=log, lanes=16, batch_tokens=8192)
    start = live_bytes()
    base = genre.Base.load(str(where))
    with genre.Engine(base, registry, lanes=16, data=log, batch_tokens=8192) as engine:
        users = [f"u{number}" for number in range(64)]
        candidates = list(log.catalogue.item_ids[:40])
        asked = [genre.Request(refs[number % count], user_id=user, candidates=candidates) for number, user in enumerate(users)]
        engine.score(asked[:count])
        before = live_bytes()
        passing = growth(lambda: engine.score(asked))
    planned = {"held": plan.total - plan.passing, "step": plan.passing, "total": plan.total}
    found = {"held": before - start, "step": passing, "total": before + passing - start}
    return {"setting": name, "planned": planned, "measured": found, "parts": plan.as_dict()}


def plan_base(size: str, quantization: Any) -> dict[str, int]:
    """Bytes of training and serving a base of a size on CUDA, at rank 8 on all linears, with rows of 512 tokens."""
    base = PlannedBase.of(size, config_of("Qwen3Config", QWEN3[size]), quantization=quantization, device="cuda")
    weights, serving = base.weight_bytes, base.plan(16, 512, train=False).peak
    names = find_linears(base.model, "all-linear")
    layers = {name: LoraLinear(base.model.get_submodule(name), rank=8, scale=1.0) for name in names}
    attach(base.model, layers)
    adapter = sum(value.nbytes for layer in layers.values() for value in (layer.lora_A, layer.lora_B))
    given = 8 * 512 * base.hidden_size * base.dtype.itemsize
    held = weights + 4 * adapter  # its best values and two moments beside
    evaluation = base.plan(32, 512, train=False).peak + 4 * given
    steps = [base.plan(8, 512, train=True, checkpoint=checkpoint).peak + given for checkpoint in (False, True)]
    train, again = (held + max(step, evaluation) for step in steps)
    slots = 16 * adapter // 4 * base.dtype.itemsize
    return {"weights": weights, "train": train, "checkpointed": again, "serve": weights + serving + slots + 2 * given}


def show_table() -> list[dict[str, Any]]:
    """Print both tables of docs/scale.md."""
    found: list[dict[str, Any]] = []
    print("| base | weights in | weights | training | with checkpointed activations | serving |\n|---|---|---|---|---|---|")
    for size in QWEN3:
        for quantization, name in PRECISIONS.items():
            each = plan_base(size, quantization)
            found.append({"base": size, "weights in": name, **each})
            cells = " | ".join(f"{each[part] / 2**30:,.1f}" for part in ("weights", "train", "checkpointed", "serve"))
            print(f"| {size} | {name} | {cells} |", flush=True)
    print("\n| base | " + " | ".join(f"{gpu} GB" for gpu in GPUS) + " |\n|---" * 1 + "|---" * len(GPUS) + "|")
    for size in QWEN3:
        places: list[str] = []
        for gpu in GPUS:
            room = ROOM * gpu * 2**30
            fits = {
                what: next((each["weights in"] for each in found if each["base"] == size and each[what] <= room), None)
                for what in ("train", "checkpointed", "serve")
            }
            trains = fits["train"] or (f"{fits['checkpointed']}, checkpointed" if fits["checkpointed"] else None)
            places.append(
                "; ".join(filter(None, (trains and f"train {trains}", fits["serve"] and f"serve {fits['serve']}"))) or "–"
            )
        print(f"| {size} | " + " | ".join(places) + " |")
    return found


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[*SETTINGS, *SERVICES], help="some of the settings")
    parser.add_argument("--table", action="store_true", help="print the tables of bases and GPUs instead")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.manual_seed(0)
    if asked.table:
        found = show_table()
        if asked.json:
            asked.json.write_text(json.dumps(found, indent=2) + "\n")
        return
    found = []
    print(f"{'setting':30}{'held, MiB':>22}{'step, MiB':>22}{'total, MiB':>22}  planned / measured")
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.only or [*SETTINGS, *SERVICES]:
            each = (compare if name in SETTINGS else compare_service)(name, Path(folder))
            found.append(each)
            pairs = [(each["planned"][part] / 2**20, each["measured"][part] / 2**20) for part in ("held", "step", "total")]
            cells = "".join(f"{one:11.2f}{other:11.2f}" for one, other in pairs)
            print(f"{name:30}{cells}  {pairs[2][0] / pairs[2][1]:.3f}", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
