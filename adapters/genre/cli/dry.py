"""`genre train --dry-run`: what a training job would take, as lines and as JSON.

Owns: the form. Ignores: how it is found out.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from genre.cli.output import console

if TYPE_CHECKING:
    from genre.jobs.dry_run import DryRun, Expected
    from genre.training.dry_run import Cost


def show_dry_run(found: "DryRun", registry: str, alias: str) -> None:
    """Print it, a block per recipe and one per group that trains at once."""
    name, depth, full_depth, quantization, precision = found.base
    print(f"base {name}: {depth} of {full_depth} layers, quantization {quantization}, {precision}")
    for each in found.recipes:
        print(f"\n{each.recipe.name}")
        for label, text in _lines(each):
            print(f"  {label:<10}{text}")
    for names, cost in found.costs:
        print(f"\n{', '.join(names)}{' at once' if len(names) > 1 else ''}")
        for label, text in _cost_lines(cost, "round" if len(names) > 1 else "step"):
            print(f"  {label:<10}{text}")
    versions = ", ".join(f"{name}/" for name in found.published) or "nothing"
    print(f"\nregistry {registry} would get {versions}" + (f" as {alias} and latest" if found.published else ""))
    console().print("a dry run: nothing was kept", highlight=False)


def to_json(found: "DryRun", registry: str) -> dict[str, Any]:
    """The same for `--json`."""
    return {
        "dry_run": True,
        "base": dict(zip(("name", "depth", "full_depth", "quantization", "precision"), found.base, strict=True)),
        "recipes": {
            each.recipe.name: {
                "recipe": each.recipe.model_dump(mode="json"), "data": each.data[0], "events": each.data[1],
                "training_events": each.data[2],
                "parameters": asdict(each.parameters) | {"trained": each.parameters.trained},
                "epoch": {
                    "rows": each.plan.rows, "tokens": each.plan.tokens, "padded_tokens": each.plan.padded,
                    "steps": each.plan.steps,
                },
                "epochs": each.plan.epochs, "encoder": each.encoder, "run": str(each.folder), "version_bytes": each.version_bytes,
            } for each in found.recipes
        },
        "costs": [
            {
                "recipes": list(names),
                "memory_bytes": asdict(cost.memory) | {"peak": cost.memory.peak, "process": cost.peak_bytes},
                "step": {"seconds": cost.step_seconds, "padded_tokens": cost.tokens},
                "training_seconds": cost.training_seconds, "evaluation_seconds": cost.evaluation_seconds,
            } for names, cost in found.costs
        ],
        "registry": {"folder": registry, "names": list(found.published)},
    }  # fmt: skip


def _lines(each: "Expected") -> list[tuple[str, str]]:
    own, plan = each.parameters, each.plan
    data, events, training = each.data
    parts = {"LoRA": own.lora, "heads": own.heads, "encoder": own.encoder, "base": own.full}
    kinds = ", ".join(f"{label} {count:,}" for label, count in parts.items() if count)
    kind = each.recipe.adapter.kind
    left = "" if each.version_bytes is None else f", a version of {_size(each.version_bytes)}"
    copies = 5 if each.recipe.train.average else 4  # weights, the best ones, their average and two moments, in single precision
    checkpoint = _size(4 * copies * own.trained)
    return [
        ("data", f"{data}: {events:,} events or texts, of which {training:,} train"),
        ("trains", f"{kinds}: {own.trained:,} ({own.trained / own.base:.2%} of the base's {own.base:,}), kind {kind}"),
        ("encoder", "none" if each.encoder is None else each.encoder),
        ("epoch", f"{plan.rows:,} rows, {plan.tokens:,} tokens ({plan.padded:,} with padding), {plan.steps:,} steps"),
        ("writes", f"{each.folder}/ (checkpoints of {checkpoint}{left})"),
    ]


def _cost_lines(cost: "Cost", unit: str) -> list[tuple[str, str]]:
    memory = cost.memory
    parts = {
        "base": memory.base, "trained": memory.trained, "copies": memory.kept, "optimizer": memory.optimizer,
        f"a {unit}": memory.step, "or an evaluation batch": memory.evaluation,
    }  # fmt: skip
    return [
        ("memory", f"{_size(memory.peak)} of tensors: " + ", ".join(f"{name} {_size(n)}" for name, n in parts.items())),
        ("process", f"{_size(cost.peak_bytes)} at most so far, Python and its libraries and all"),
        (unit, f"{cost.step_seconds:.3g} s for {cost.tokens:,} tokens, measured"),
        ("time", f"{_clock(cost.training_seconds)} of training, {_clock(cost.evaluation_seconds)} of evaluation at that pace, "
                 "without metrics and intervals; an early stop makes it shorter"),
    ]  # fmt: skip


def _size(count: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 2**10:,.0f} KiB"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
