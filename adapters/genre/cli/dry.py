"""`genre train --dry-run`: the plan and cost of a training job, as lines and as JSON.

Owns: the form. Ignores: how it is computed and measured.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from genre.cli.output import console, format_size

if TYPE_CHECKING:
    from genre.jobs.dry_run import Cost, DryRun, Expected

MEASURED = ("memory_bytes.step", "memory_bytes.process", "step.seconds")
ESTIMATED = ("memory_bytes.evaluation", "memory_bytes.peak", "training_seconds", "evaluation_seconds")
"""Keys of a cost in the JSON form; all others are computed from counts and shapes."""


def show_dry_run(found: "DryRun", registry: str, alias: str) -> None:
    """Print it, a block per recipe and one per group that trains at once."""
    name, depth, full_depth, quantization, precision = found.base
    print(f"base {name}: {depth} of {full_depth} layers, quantization {quantization}, {precision}")
    for each in found.recipes:
        print(f"\n{each.recipe.name}")
        for label, text in _plan_lines(each):
            print(f"  {label:<10}{text}")
    for cost in found.costs:
        several = len(cost.recipes) > 1
        print(f"\n{', '.join(cost.recipes)}{' at once' if several else ''}")
        for label, text in _cost_lines(cost, "round" if several else "step"):
            print(f"  {label:<10}{text}")
    versions = ", ".join(f"{name}/" for name in found.published) or "nothing"
    print(f"\nregistry {registry} would get {versions}" + (f" as {alias} and latest" if found.published else ""))
    console().print("a dry run: nothing was kept", highlight=False)


def to_json(found: "DryRun", registry: str) -> dict[str, Any]:
    """The same for `--json`."""
    recipes = {}
    for each in found.recipes:
        plan = asdict(each) | {"recipe": each.recipe.model_dump(mode="json")}
        plan["parameters"]["trained"] = each.parameters.trained
        recipes[each.recipe.name] = plan
    costs = [
        {
            "recipes": list(cost.recipes),
            "memory_bytes": asdict(cost.memory) | {"peak": cost.memory.peak},
            "step": {"seconds": cost.step_seconds, "padded_tokens": cost.step_tokens},
            "training_seconds": cost.training_seconds,
            "evaluation_seconds": cost.evaluation_seconds,
            "measured": list(MEASURED),
            "estimated": list(ESTIMATED),
        }
        for cost in found.costs
    ]
    base = dict(zip(("name", "depth", "full_depth", "quantization", "precision"), found.base, strict=True))
    registered = {"folder": registry, "names": list(found.published)}
    return {"dry_run": True, "base": base, "recipes": recipes, "costs": costs, "registry": registered}


def _plan_lines(each: "Expected") -> list[tuple[str, str]]:
    own, epoch = each.parameters, each.epoch
    parts = {"LoRA": own.lora, "heads": own.heads, "encoder": own.encoder, "base": own.full}
    kinds = ", ".join(f"{label} {count:,}" for label, count in parts.items() if count)
    share = f"{own.trained:,} ({own.trained / own.base:.2%} of the base's {own.base:,})"
    version = "" if each.version_bytes is None else f", a version of {format_size(each.version_bytes)}"
    copies = 5 if each.recipe.train.average else 4  # weights, the best ones, their average and two moments, in single precision
    checkpoint = format_size(4 * copies * own.trained)
    size = f"{epoch.rows:,} rows, {epoch.tokens:,} tokens ({epoch.padded_tokens:,} with padding), {epoch.steps:,} steps"
    return [
        ("data", f"{each.data}: {each.events:,} events or texts, of which {each.training_events:,} train"),
        ("trains", f"{kinds}: {share}, kind {each.recipe.adapter.kind}"),
        ("encoder", "none" if each.encoder is None else each.encoder),
        ("epoch", f"{size}; computed"),
        ("writes", f"{each.run}/ (checkpoints of {checkpoint}{version})"),
    ]


def _cost_lines(cost: "Cost", unit: str) -> list[tuple[str, str]]:
    memory = cost.memory
    held = {"base": memory.base, "trained": memory.trained, "copies": memory.kept, "optimizer": memory.optimizer}
    training, evaluation = _clock(cost.training_seconds), _clock(cost.evaluation_seconds)
    return [
        ("tensors", ", ".join(f"{name} {format_size(count)}" for name, count in held.items()) + "; computed"),
        ("peak", f"{format_size(memory.peak)} of tensors; an evaluation batch takes {format_size(memory.evaluation)}; predicted"),
        ("memory", f"a {unit} added {format_size(memory.step)} to the peak, which is {format_size(memory.process)}; measured"),
        (unit, f"{cost.step_seconds:.3g} s for {cost.step_tokens:,} tokens; measured"),
        ("time", f"{training} of training, {evaluation} of evaluation at the measured pace; without metrics and early stop"),
    ]


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
