"""One recipe trained in several ways: what does an adapter give and cost, beside the full fine-tune of the same base?

Owns: the ways, a process for each run, the choice of a learning rate, the paired differences. Ignores: how it is shown.

    found = bench(recipe, Path("runs/like/bench"), Registry("registry"), ways=["full", "lora_8", "head_only"])
    found["ways"]["lora_8"]["minus_full"]      # {"metric": "auc", "difference": 0.0025, "interval": [0.0009, 0.0042], …}

Every way gets the same epochs at each of as many learning rates, the full fine-tune one more. The rate is chosen on the
validation part; the test part decides nothing. An encoder is fitted first, by a run of its own, and all ways use it as it is.
Runs are processes of their own, so that each peak of memory is its own; finished ones are kept, so an interrupted comparison
goes on.
"""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from genre.errors import GenreError, InputError, InterruptedJobError, JobError
from genre.evaluation.metrics import metric
from genre.evaluation.metrics.bootstrap import MIN_USERS
from genre.jobs.encoders import find_encoder
from genre.jobs.inputs import check_data, environment, open_base, open_data, open_log, write_text
from genre.jobs.train import train
from genre.jobs.tuning.compare import Compared, compare
from genre.jobs.tuning.scored import from_run
from genre.jobs.tuning.trials import Objective
from genre.modules.base.source import find
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.training.assembly import needs_encoder

Profile = Literal["quick", "full"]

WAYS: dict[str, list[str]] = {
    "full": ["adapter.kind=full"],
    "lora_2": ["adapter.kind=lora", "adapter.rank=2", "adapter.alpha=4"],
    "lora_8": ["adapter.kind=lora", "adapter.rank=8", "adapter.alpha=16"],
    "lora_32": ["adapter.kind=lora", "adapter.rank=32", "adapter.alpha=64"],
    "lora_8_int8": ["adapter.kind=lora", "adapter.rank=8", "adapter.alpha=16", "base.quantization=int8", "base.precision=auto"],
    "lora_8_nf4": ["adapter.kind=lora", "adapter.rank=8", "adapter.alpha=16", "base.quantization=nf4", "base.precision=auto"],
    "head_only": ["adapter.kind=head_only"],
}
PROFILES: dict[Profile, list[str]] = {"quick": ["full", "lora_8", "head_only"], "full": list(WAYS)}
FACTORS: dict[Profile, tuple[float, ...]] = {"quick": (1.0,), "full": (0.5, 1.0, 2.0)}
FULL_FACTORS: dict[Profile, tuple[float, ...]] = {"quick": (0.3, 1.0), "full": (0.1, 0.3, 1.0, 3.0)}
"""What a full fine-tune wants lies between a tenth of an adapter's learning rate, in long runs, and three times it, in short
ones: it gets one rate more than the others, since a grid that stops too early makes any adapter look good."""
ENCODER = "encoder"
MARGIN = 0.01


def recipe_of(file: Path, way: str, factor: float) -> Recipe:
    """The recipe of one way at so many times its learning rate."""
    rate = Recipe.read(file).train.learning_rate * factor
    return Recipe.read(file, [*WAYS[way], f"train.learning_rate={rate:g}"])


def bench(
    recipe: Recipe,
    folder: Path,
    registry: Registry,
    *,
    profile: Profile = "quick",
    ways: Sequence[str] | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train a recipe in several ways and compare each with the full fine-tune, if that is among them.

    Args:
        recipe: What all ways share.
        folder: For the runs; one that holds finished ones of this recipe goes on.
        registry: Where an encoder is looked for, and published if one has to be fitted; nothing else is published.
        profile: One learning rate or three; two or four for the full fine-tune.
        ways: Names of `WAYS`; the profile's by default.
        reporter: Where progress goes; runs speak for themselves.

    Returns:
        JSON values; ways that failed are in `errors`.

    Raises:
        InputError: There is no such way, no such data or base, nothing to validate on; the folder holds runs of another recipe.
        InterruptedJobError: Interrupted; the message says how to go on.
        JobError: No way could be trained.
    """
    say, chosen = reporter or Reporter.silent(), list(dict.fromkeys(ways or PROFILES[profile]))
    if unknown := [way for way in chosen if way not in WAYS]:
        raise InputError("no such way to train", got=", ".join(unknown), expected=", ".join(WAYS))
    own, text = folder / "recipe.yaml", recipe.dump()
    if own.exists() and own.read_text(encoding="utf-8") != text:
        raise InputError("the folder holds runs of another recipe", got=folder, expected="the same recipe, or another --out")
    data = open_data(recipe.data.path, recipe.reads)  # what is wrong is told here, once, before anything runs
    check_data(recipe, data)
    find(recipe.base.name)
    objective = Objective(recipe, data)
    del data
    folder.mkdir(parents=True, exist_ok=True)
    write_text(own, text)
    factors = {way: (FULL_FACTORS if way == "full" else FACTORS)[profile] for way in chosen}
    plan = {way: {f"{way}-{factor:g}": recipe_of(own, way, factor) for factor in factors[way]} for way in chosen}
    runs = [(name, each) for several in plan.values() for name, each in several.items()]
    errors: dict[str, str] = {}
    if needs_encoder(recipe):
        say.line("an encoder for all ways")
        if error := run(recipe, folder / ENCODER, registry):
            raise JobError("the encoder could not be fitted", got=error)
    for number, (name, each) in enumerate(runs, start=1):
        say.line(f"{name}: learning rate {each.train.learning_rate:g}, run {number} of {len(runs)}")
        if error := run(each, folder / name, registry):
            errors[name] = error
            say.line(f"{name} failed: {error}")
    best = {way: _best(objective, folder, [name for name in several if name not in errors]) for way, several in plan.items()}
    kept = {way: place for way, place in best.items() if place is not None}
    if not kept:
        raise JobError("no way could be trained", got="; ".join(f"{name}: {error}" for name, error in errors.items()))
    found = {
        "recipe": recipe.name, "profile": profile, "seed": recipe.train.seed, "epochs": recipe.train.epochs,
        "learning_rates": {way: len(each) for way, each in factors.items()}, "environment": environment(), "errors": errors,
        "ways": {way: _row(objective, place, kept.get("full"), way, list(plan[way])) for way, place in kept.items()},
    }  # fmt: skip
    write_text(folder / "bench.json", json.dumps(found, indent=2) + "\n")
    return found


def run(recipe: Recipe, folder: Path, registry: Registry) -> str | None:
    """One run in a process of its own, unless it is finished; the error's line if it failed."""
    if (folder / "metrics.json").exists() or (folder / "found").exists():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    wanted, error = folder / "wanted.yaml", folder / "error.txt"
    write_text(wanted, recipe.dump())
    error.unlink(missing_ok=True)
    command = [sys.executable, "-m", "genre.jobs.tuning.variants", str(wanted), str(folder), registry.url]
    try:
        code = subprocess.run(command).returncode
    except KeyboardInterrupt:
        code = -2
    said = error.read_text(encoding="utf-8") if error.exists() else f"its process ended with exit code {code}"
    if code == -2 or said.startswith("interrupted"):
        raise InterruptedJobError(f"interrupted in {folder}", got="Ctrl-C", todo="the same command goes on from there")
    return said if code else None


def work(wanted: Path, folder: Path, registry: Registry) -> None:
    """What the process of a run does; a run called `encoder` only sees to it that there is one."""
    recipe, say = Recipe.read(wanted), Reporter.for_terminal()
    base = open_base(recipe.base)
    log = open_log(recipe.data.path) if folder.name == ENCODER else None
    if log is not None and find_encoder(recipe, log, base, registry, Reporter.silent()) is not None:
        write_text(folder / "found", "")
        return
    resume = (folder / "checkpoints" / "last.pt").exists()
    train(recipe, log=log, base=base, registry=registry, folder=folder, resume=resume, reporter=say)


def _best(objective: Objective, folder: Path, names: Sequence[str]) -> Path | None:
    """The run of one way that is best on validation."""
    sign = 1 if objective.maximize else -1

    def worth(place: Path) -> float:
        value = _validated(objective, place)
        return -math.inf if value is None else sign * value

    return max((folder / name for name in names), key=worth, default=None)


def _validated(objective: Objective, place: Path) -> float | None:
    """A run's best value on the validation part; None where it could not be computed."""
    pick = max if objective.maximize else min
    return pick((float(row[objective.name]) for row in _report(place)["validation"] if objective.name in row), default=None)


def _report(place: Path) -> dict[str, Any]:
    return dict(json.loads((place / "metrics.json").read_text(encoding="utf-8")))


def _row(objective: Objective, place: Path, full: Path | None, way: str, runs: Sequence[str]) -> dict[str, Any]:
    """A way's figures on the test part, what it cost, and its paired differences from the full fine-tune.

    `edge` says that its best run, of several from the lowest rate to the highest, has one of these two.
    """
    report = _report(place)
    cost = report["cost"]
    trained = cost["lora_params"] + cost["head_params"]
    row = {
        "run": place.name, "edge": len(runs) > 1 and place.name in (runs[0], runs[-1]),
        "learning_rate": Recipe.read(place / "recipe.yaml").train.learning_rate, "objective": objective.name,
        "validation": _validated(objective, place), "trained_parameters": trained, "bytes": 4 * trained,
        "seconds": cost["seconds"],
        "tokens_per_second": cost["tokens"] / max(cost["seconds"], 1e-9), "peak_memory_bytes": cost["peak_memory_bytes"],
        "test": report["metrics"],
    }  # fmt: skip
    if full is None or way == "full":
        return row
    ours, theirs = from_run(place), from_run(full)
    compared = {
        task: compare(replace(ours[task], name=way), replace(theirs[task], name="full"))[0] for task in ours if task in theirs
    }
    return row | {"minus_full": {task: each.as_dict() | {"near": near(each)} for task, each in compared.items()}}


def near(found: Compared) -> bool:
    """Whether the first is at most 1 % worse than the second, as far as the interval says."""
    if found.interval is None or found.b is None or found.users < MIN_USERS:
        return False
    worst = found.interval[0] if metric(found.metric).direction == "higher" else -found.interval[1]
    return worst >= -MARGIN * abs(found.b)


if __name__ == "__main__":
    place = Path(sys.argv[2])
    try:
        work(Path(sys.argv[1]), place, Registry(sys.argv[3]))
    except GenreError as problem:
        write_text(place / "error.txt", str(problem))
        sys.exit(1)
