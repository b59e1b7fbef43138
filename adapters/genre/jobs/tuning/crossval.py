"""Cross-validation by user: how well does a recipe do for users that it was not trained on?

Owns: the folds' recipes, the order of the job, mean and deviation over folds. Ignores: how one fold is trained.

The users are drawn into K folds. For each fold everything is fitted anew, the encoder and its item vectors too, on the training
part of the *other* folds' users and validated on their validation part; then the fold's users' test events are scored, with all
their earlier events as history (`data.splits.user_folds`). Every test event of the split is a target in exactly one fold.

    found = crossval(recipe, Path("runs/like/crossval-5"), folds=5)
    found["tasks"]["like"]["adapter"]["auc"]      # {"mean": 0.76, "deviation": 0.01, "folds": [0.75, …], "n": 10000}
"""

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from genre.data.interactions import Interactions
from genre.data.splits import TEST, Split
from genre.errors import DiskError, GenreError, InputError, InterruptedJobError, JobError, RecipeError
from genre.files import disk_errors, write_json, write_text
from genre.jobs.evaluate import Metrics, evaluate_model
from genre.jobs.folders import check_same, environment, working_folder
from genre.jobs.loading import open_base, open_log
from genre.modules.base.base import Base
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.training import fit
from genre.training.assembly import assemble, training_split

ABOUT = "crossval.json"
RESULT = "metrics.json"
MOST = 1000
"""More folds are most likely a typing error."""


def crossval(
    recipe: Recipe,
    folder: Path,
    *,
    folds: int,
    seed: int = 0,
    log: Interactions | None = None,
    base: Base | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train and test a recipe once per fold of users, beside the baselines on the same folds; nothing is published.

    Args:
        recipe: The recipe; its split says which events of a user train, validate and test.
        folder: The job's folder; finished folds there are kept, an interrupted one is resumed.
        folds: The number of folds.
        seed: Draws the folds.
        log: Takes precedence over the recipe's data path.
        base: Takes precedence over the recipe's base.
        reporter: Receives progress.

    Returns:
        JSON values: for each task, for the adapter and for each baseline, every metric's mean, deviation and values by fold.

    Raises:
        InputError: The folds cannot be drawn, the encoder is not fitted anew, or the folder is of another run.
        InterruptedJobError: Ctrl-C; the same call resumes.
        JobError: A fold diverged; those before it are kept.
    """
    reporter = reporter or Reporter.silent()
    log = log if log is not None else open_log(recipe.data.path)
    recipes = fold_recipes(recipe, folds, seed)
    splits = [training_split(each, log)[0] for each in recipes]
    base = base or open_base(recipe.base)
    with working_folder(folder, ABOUT):
        _begin(folder, _about(recipe, log, base, folds, seed))
        found = []
        for number, (one, split) in enumerate(zip(recipes, splits, strict=True), 1):
            root = folder / f"fold-{number}"
            if not (root / RESULT).is_file():
                reporter.line(f"fold {number} of {folds}: {_size(log, split)}")
                _fold(one, root, log, base, reporter, number)
            found.append(json.loads((root / RESULT).read_text(encoding="utf-8")))
            reporter.line(f"fold {number} of {folds}: {_line(found[-1]['metrics'])}")
        result = {"recipe": recipe.name, "folds": folds, "seed": seed, "folder": str(folder)}
        result["split"] = recipe.data.split.model_dump(exclude_none=True)
        result |= {"tasks": summary(found), "by_fold": found}
        write_json(folder / "summary.json", result)
    return result


def fold_recipes(recipe: Recipe, folds: int, seed: int) -> list[Recipe]:
    """A recipe per fold: the split with the fold, and an encoder of its own.

    Raises:
        InputError: Too few folds or too many, a split that has no folds by user, or an encoder that is not fitted anew.
    """
    for task in recipe.tasks:
        if task.kind == "text":
            got, expected = f"task {task.name!r} of kind text", "events of users"
            raise RecipeError("genre crossval works on logs of events", got=got, expected=expected)
    if not 2 <= folds <= MOST:
        raise InputError("folds", got=folds, expected=f"2 to {MOST:,}")
    if seed < 0:
        raise InputError("seed", got=seed, expected="0 or more")
    split, use = recipe.data.split, recipe.encoder.use
    if split.kind == "given":
        what, expected = "folds by user need histories without training events", "temporal, last_n or user_ratio"
        raise RecipeError(what, got="data.split.kind given", expected=expected, todo="change data.split")
    if split.folds is not None:
        raise RecipeError("the recipe's split has folds of its own", got=f"folds {split.folds}", expected="none")
    if use not in ("auto", "fit", "none"):
        what, todo = "every fold fits an encoder of its own, on the other folds' users", "add --set encoder.use=fit"
        raise RecipeError(what, got=f"encoder.use {use}", expected="auto or fit", todo=todo)
    shared = {"data.split.folds": folds, "data.split.fold_seed": seed, "encoder.use": "none" if use == "none" else "fit"}
    return [recipe.with_values({**shared, "data.split.fold": fold}) for fold in range(1, folds + 1)]


def summary(folds: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """For each task, the adapter and each baseline: every metric's mean, sample deviation and values (None where none)."""
    found = list(folds)
    tasks = dict.fromkeys(name for fold in found for name in fold["metrics"])
    return {
        task: {
            "adapter": _over([fold["metrics"].get(task, {}) for fold in found]),
            "baselines": {
                name: _over([fold["baselines"].get(task, {}).get(name, {}) for fold in found])
                for name in dict.fromkeys(name for fold in found for name in fold["baselines"].get(task, {}))
            },
        }
        for task in tasks
    }


def _over(folds: list[Metrics]) -> dict[str, dict[str, Any]]:
    result = {}
    for name in dict.fromkeys(name for metrics in folds for name in metrics):
        values = [metrics[name]["value"] if name in metrics else None for metrics in folds]
        known = [value for value in values if value is not None]
        mean = math.fsum(known) / len(known)
        spread = float(np.std(known, ddof=1)) if len(known) > 1 else None
        count = sum(metrics[name]["n"] for metrics in folds if name in metrics)
        result[name] = {"mean": mean, "deviation": spread, "folds": values, "n": count}
    return result


def _about(recipe: Recipe, log: Interactions, base: Base, folds: int, seed: int) -> dict[str, Any]:
    raw = recipe.model_dump(mode="json")
    del raw["data"]["path"], raw["base"]["name"]
    return {"recipe": raw, "folds": folds, "seed": seed, "data": log.digest, "base": base.fingerprint}


def _begin(folder: Path, about: Mapping[str, Any]) -> None:
    """Record what the folder is of, or check that it is of the same."""
    file = folder / ABOUT
    if not file.exists():
        write_json(file, about)
        write_json(folder / "environment.json", environment())
        return
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is damaged", got=str(error), expected="JSON", todo="name another --out") from None
    check_same("the cross-validation", stored, about, todo="name another --out, or resume with the options of its start")


def _fold(recipe: Recipe, root: Path, log: Interactions, base: Base, reporter: Reporter, number: int) -> None:
    """Train and test one fold, from its last checkpoint if it was interrupted."""
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    try:
        assembly = assemble(recipe, log, base)
        try:
            write_text(root / "recipe.yaml", recipe.dump())
            state = fit(assembly, root, resume=(root / "checkpoints" / "last.pt").is_file(), reporter=reporter).state
            most = recipe.data.max_events
            results = evaluate_model(assembly.model, assembly.builder, assembly.split, part=TEST, max_events=most)
        finally:
            assembly.model.release()
    except (KeyboardInterrupt, InterruptedJobError):
        todo = f"the same command resumes in {root.parent}"
        raise InterruptedJobError(f"interrupted in fold {number}", got="Ctrl-C", todo=todo) from None
    except DiskError:
        raise
    except GenreError as error:
        kind = JobError if isinstance(error, JobError) else InputError
        todo = "; ".join(filter(None, (error.todo, "finished folds are kept")))
        raise kind(f"fold {number} failed: {error.what}", got=error.got, expected=error.expected, todo=todo) from None
    report = {
        "fold": number,
        "users": int(len(np.unique(log.user_codes[assembly.split.part == TEST]))),
        "metrics": {name: own for name, (own, _) in results.items()},
        "baselines": {name: others for name, (_, others) in results.items()},
        "validation": [_finite(row) for row in state.history],
        **{"seconds": round(state.seconds, 3), "tokens": state.tokens, "skipped": assembly.skipped},
    }
    write_json(root / RESULT, report)
    shutil.rmtree(root / "checkpoints", ignore_errors=True)


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without metrics that have no value, which JSON cannot express."""
    return {name: value for name, value in row.items() if math.isfinite(value)}


def _size(log: Interactions, split: Split) -> str:
    users = len(np.unique(log.user_codes[split.part == TEST]))
    return f"{split.counts['train']:,} training events, {split.counts['test']:,} test events of {users:,} other users"


def _line(metrics: Mapping[str, Metrics]) -> str:
    shown = [f"{task}.{name} {entry['value']:.4f}" for task, own in metrics.items() for name, entry in list(own.items())[:1]]
    return ", ".join(shown)
