"""One recipe trained as several variants: what does an adapter give and cost, beside the full fine-tune of the same base?

Owns: the variants, a process for each run, the choice of a learning rate, the paired differences. Ignores: printing.

    found = bench(recipe, Path("runs/like/bench"), Registry("registry"), variants=["full", "lora_8", "head_only"])
    found["ways"]["lora_8"]["minus_full"]      # {"metric": "auc", "difference": 0.0025, "interval": [0.0009, 0.0042], …}

Every variant trains the same epochs at each of as many learning rates, the full fine-tune at one more. The rate is chosen on the
validation part; the test part decides nothing. An encoder is fitted first, by a run of its own, and all variants share it.
Runs are processes of their own, so that each peak of memory is its own; finished ones are kept, so an interrupted comparison
can be resumed.
"""

import json
import math
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from genre.errors import GenreError, InputError, InterruptedJobError, JobError
from genre.evaluation.metrics import metric
from genre.evaluation.metrics.bootstrap import MIN_USERS
from genre.files import appearing_folder, write_json, write_text
from genre.jobs.compare import Compared, compare
from genre.jobs.encoders import find_encoder
from genre.jobs.folders import environment
from genre.jobs.loading import check_data, open_base, open_data, open_log
from genre.jobs.predictions import from_run
from genre.jobs.train import train
from genre.jobs.tuning.trials import Objective
from genre.modules.base.loading import cut_layers
from genre.modules.base.quiet import quiet
from genre.modules.base.source import find, is_encoder, read_config
from genre.progress import Reporter
from genre.recipe import BaseConfig, Recipe
from genre.registry import Registry
from genre.training.assembly import needs_encoder

Profile = Literal["quick", "full", "controls"]

VARIANTS: dict[str, list[str]] = {
    "full": ["adapter.kind=full"],
    "lora_2": ["adapter.kind=lora", "adapter.rank=2", "adapter.alpha=4"],
    "lora_8": ["adapter.kind=lora", "adapter.rank=8", "adapter.alpha=16"],
    "lora_32": ["adapter.kind=lora", "adapter.rank=32", "adapter.alpha=64"],
    "lora_8_int8": ["adapter.kind=lora", "adapter.rank=8", "adapter.alpha=16", "base.quantization=int8", "base.precision=auto"],
    "lora_8_nf4": ["adapter.kind=lora", "adapter.rank=8", "adapter.alpha=16", "base.quantization=nf4", "base.precision=auto"],
    "head_only": ["adapter.kind=head_only"],
    "random_base": ["adapter.kind=lora", "adapter.rank=8", "adapter.alpha=16"],
    "no_base": ["adapter.kind=no_base"],
}
CONTROLS = {
    "the base": ("lora_8", "no_base"),
    "its pretrained weights": ("lora_8", "random_base"),
    "the adapter": ("lora_8", "head_only"),
}
"""The part of a recommender that a pair of variants differs by: what the first has and the second lacks."""
PROFILES: dict[Profile, list[str]] = {
    "quick": ["full", "lora_8", "head_only"],
    "full": list(VARIANTS),
    "controls": ["lora_8", "head_only", "random_base", "no_base"],
}
FACTORS: dict[Profile, tuple[float, ...]] = {"quick": (1.0,), "controls": (1.0,), "full": (0.5, 1.0, 2.0)}
FULL_FACTORS: dict[Profile, tuple[float, ...]] = {"quick": (0.3, 1.0), "controls": (0.3, 1.0), "full": (0.1, 0.3, 1.0, 3.0)}
"""The best rate of a full fine-tune lies between a tenth of an adapter's, in long runs, and three times it, in short ones.
It gets one rate more than the others, since a grid that stops too early makes any adapter look good."""
ENCODER = "encoder"
RANDOM, RANDOM_ENCODER = "random-base", "encoder-random"
MARGIN = 0.01


def recipe_of(file: Path, variant: str, factor: float) -> Recipe:
    """The recipe of one variant, its learning rate multiplied by a factor."""
    rate = Recipe.read(file).train.learning_rate * factor
    return Recipe.read(file, [*VARIANTS[variant], f"train.learning_rate={rate:g}"])


def keep_recipe(recipe: Recipe, folder: Path) -> Path:
    """Write the recipe that all runs in a folder share, and return its file.

    Raises:
        InputError: The folder holds runs of another recipe.
    """
    file, text = folder / "recipe.yaml", recipe.dump()
    if file.exists() and file.read_text(encoding="utf-8") != text:
        expected = "the same recipe and options, or another --out"
        raise InputError("the folder holds runs of another recipe", got=folder, expected=expected)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, text)
    return file


def bench(
    recipe: Recipe,
    folder: Path,
    registry: Registry,
    *,
    profile: Profile = "quick",
    variants: Sequence[str] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train a recipe as several variants and compare each with the full fine-tune, if that is among them.

    Args:
        recipe: What all variants share.
        folder: For the runs; one with finished runs of this recipe is resumed.
        registry: Searched for an encoder, and gets one if it has to be fitted; nothing else is published.
        profile: One learning rate or three; two or four for the full fine-tune.
        variants: Names of `VARIANTS`; the profile's by default.
        reporter: Receives progress; the runs report their own.

    Returns:
        JSON values; variants that failed are in `errors`.

    Raises:
        InputError: There is no such variant, data or base, or nothing to validate on; the folder holds runs of another recipe.
        InterruptedJobError: Interrupted; the message says how to resume.
        JobError: No variant could be trained.
    """
    reporter, names = reporter or Reporter.silent(), list(dict.fromkeys(variants or PROFILES[profile]))
    if unknown := [name for name in names if name not in VARIANTS]:
        raise InputError("no such variant", got=", ".join(unknown), expected=", ".join(VARIANTS))
    data = open_data(recipe.data.path, recipe.reads)  # what is wrong is reported here, once, before anything runs
    check_data(recipe, data)
    find(recipe.base.name)
    objective = Objective(recipe, data)
    del data
    own = keep_recipe(recipe, folder)
    factors = {name: (FULL_FACTORS if name == "full" else FACTORS)[profile] for name in names}
    plan = {name: {f"{name}-{factor:g}": recipe_of(own, name, factor) for factor in factors[name]} for name in names}
    if "random_base" in plan:
        base = make_random_base(recipe.base, folder / RANDOM, seed=recipe.train.seed)
        plan["random_base"] = {run: each.with_values({"base.name": base}) for run, each in plan["random_base"].items()}
    errors = _run_all(recipe, plan, folder, registry, reporter)
    best = {name: _best(objective, folder, [each for each in runs if each not in errors]) for name, runs in plan.items()}
    kept = {name: run for name, run in best.items() if run is not None}
    if not kept:
        raise JobError("no variant could be trained", got="; ".join(f"{name}: {error}" for name, error in errors.items()))
    found = {"recipe": recipe.name, "profile": profile, "seed": recipe.train.seed, "epochs": recipe.train.epochs}
    found["learning_rates"] = {name: len(each) for name, each in factors.items()}
    found |= {"environment": environment(), "errors": errors}
    found["ways"] = {name: _row(objective, run, kept.get("full"), name, list(plan[name])) for name, run in kept.items()}
    found["adds"] = {what: _difference(kept[a], kept[b], a, b) for what, (a, b) in CONTROLS.items() if {a, b} <= kept.keys()}
    write_json(folder / "bench.json", found)
    return found


def make_random_base(wanted: BaseConfig, folder: Path, *, seed: int) -> str:
    """Write a base of the same shape, depth and tokenizer with random weights, unless the folder has one; return its path."""
    if (folder / "config.json").exists():
        return str(folder)
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    source = find(wanted.name)
    config, tokenizer = read_config(wanted.name, source)
    cut_layers(wanted.name, config, wanted.depth)
    kind: Any = AutoModel if is_encoder(config) else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]), quiet(), appearing_folder(folder) as aside:
        torch.default_generator.manual_seed(seed)  # the CPU's alone: the devices' are not put back
        kind.from_config(config, dtype=torch.float32).save_pretrained(aside)
        tokenizer.save_pretrained(aside)
    return str(folder)


def _run_all(
    recipe: Recipe, plan: dict[str, dict[str, Recipe]], folder: Path, registry: Registry, reporter: Reporter
) -> dict[str, str]:
    """Run the encoder, if one is needed, and then every run of a plan; the errors of those that failed."""
    if needs_encoder(recipe) and recipe.reads == "log":
        bases = {each.base.name: each for several in plan.values() for each in several.values()}
        for name, each in bases.items():
            own = name == recipe.base.name
            reporter.line("an encoder for all variants" if own else "an encoder for the base with random weights")
            wanted = recipe.with_values({"base.name": each.base.name})
            if error := run(wanted, folder / (ENCODER if own else RANDOM_ENCODER), registry):
                raise JobError("the encoder could not be fitted", got=error)
    errors: dict[str, str] = {}
    runs = [(name, each) for several in plan.values() for name, each in several.items()]
    for number, (name, each) in enumerate(runs, start=1):
        reporter.line(f"{name}: learning rate {each.train.learning_rate:g}, run {number} of {len(runs)}")
        if error := run(each, folder / name, registry):
            errors[name] = error
            reporter.line(f"{name} failed: {error}")
    return errors


def run(recipe: Recipe, folder: Path, registry: Registry, baselines: str = "all") -> str | None:
    """Train one run in a process of its own, unless it is finished; return the error's line if it failed."""
    wanted, error = folder / "wanted.yaml", folder / "error.txt"
    ended_well = (folder / "metrics.json").exists() and not error.exists()  # metrics are written before the baselines' are added
    if ended_well or (folder / "found").exists():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    write_text(wanted, recipe.dump())
    error.unlink(missing_ok=True)
    try:
        code = run_process([sys.executable, "-c", _PROCESS, str(wanted), str(folder), registry.url, baselines])
    except KeyboardInterrupt:
        code = _INTERRUPTED
    message = error.read_text(encoding="utf-8") if error.exists() else f"its process ended with exit code {code}"
    if code in (_INTERRUPTED, -signal.SIGINT) or message.startswith("interrupted"):
        raise InterruptedJobError(f"interrupted in {folder}", got="Ctrl-C", todo="the same command resumes from there")
    return message if code else None


_INTERRUPTED = 130
"""The exit code of a run's process after Ctrl-C."""
_PATIENCE_S = 60.0
"""Seconds that such a process has to end by itself."""
_PROCESS = f"""
import sys
try:
    from genre.jobs.tuning.bench import main
    code = main(sys.argv[1:])
except KeyboardInterrupt:
    code = {_INTERRUPTED}
sys.exit(code)
"""
"""The program of a run's process: Ctrl-C while it imports ends without a traceback."""


def run_process(command: list[str]) -> int:
    """Run a process to its end; after Ctrl-C it is told, if the terminal has not, and has a while to write its checkpoint."""
    with subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise


def main(arguments: Sequence[str]) -> int:
    """Do the work of a run's process and return its exit code; an error's line goes into `error.txt`."""
    wanted, folder, registry, baselines = arguments
    try:
        work(Path(wanted), Path(folder), Registry(registry), baselines)
    except GenreError as problem:
        write_text(Path(folder) / "error.txt", str(problem))
        return 1
    return 0


def work(wanted: Path, folder: Path, registry: Registry, baselines: str = "all") -> None:
    """Do the work of a run's process; a run called `encoder` only ensures that there is one."""
    recipe, reporter = Recipe.read(wanted), Reporter.for_terminal()
    base = open_base(recipe.base)
    log = open_log(recipe.data.path) if folder.name in (ENCODER, RANDOM_ENCODER) else None
    if log is not None and find_encoder(recipe, log, base, registry, Reporter.silent()) is not None:
        write_text(folder / "found", "")
        return
    resume = (folder / "checkpoints" / "last.pt").exists()
    options: dict[str, Any] = {"resume": resume, "reporter": reporter, "baselines": baselines}
    train(recipe, log=log, base=base, registry=registry, folder=folder, **options)


def _best(objective: Objective, folder: Path, names: Sequence[str]) -> Path | None:
    """The run of one variant that is best on validation."""
    sign = 1 if objective.maximize else -1

    def value(run: Path) -> float:
        found = _validated(objective, run)
        return -math.inf if found is None else sign * found

    return max((folder / name for name in names), key=value, default=None)


def _validated(objective: Objective, run: Path) -> float | None:
    """A run's best value on the validation part; None where it could not be computed."""
    pick = max if objective.maximize else min
    return pick((float(row[objective.name]) for row in _report(run)["validation"] if objective.name in row), default=None)


def _report(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "metrics.json").read_text(encoding="utf-8")))


def _row(objective: Objective, run: Path, full: Path | None, name: str, runs: Sequence[str]) -> dict[str, Any]:
    """A variant's test metrics, its cost, and its paired differences from the full fine-tune.

    `edge` is true if its best run has the lowest or the highest of several learning rates.
    """
    report = _report(run)
    cost = report["cost"]
    trained = cost["lora_params"] + cost["head_params"]
    row = {
        "run": run.name,
        "edge": len(runs) > 1 and run.name in (runs[0], runs[-1]),
        "learning_rate": Recipe.read(run / "recipe.yaml").train.learning_rate,
        **{"objective": objective.name, "validation": _validated(objective, run)},
        **{"trained_parameters": trained, "bytes": 4 * trained, "seconds": cost["seconds"]},
        "tokens_per_second": cost["tokens"] / max(cost["seconds"], 1e-9),
        **{"peak_memory_bytes": cost["peak_memory_bytes"], "test": report["metrics"]},
    }
    if full is None or name == "full":
        return row
    return row | {"minus_full": _difference(run, full, name, "full")}


def _difference(run: Path, other: Path, name: str, beside: str) -> dict[str, Any]:
    """The paired differences of one variant from another, by task."""
    ours, theirs = from_run(run), from_run(other)
    compared = {
        task: compare(replace(ours[task], name=name), replace(theirs[task], name=beside))[0] for task in ours if task in theirs
    }
    return {task: each.as_dict() | {"near": near(each)} for task, each in compared.items()}


def near(found: Compared) -> bool:
    """Return whether the whole interval has the first at most 1 % worse than the second."""
    if found.interval is None or found.b is None or found.users < MIN_USERS:
        return False
    worst = found.interval[0] if metric(found.metric).direction == "higher" else -found.interval[1]
    return worst >= -MARGIN * abs(found.b)
