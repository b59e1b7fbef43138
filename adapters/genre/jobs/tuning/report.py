"""What a study leaves beside its journal: the best recipe, its trials as lines, plots.

Owns: the form of these files. Ignores: how trials came about.

    best.yaml  trials.jsonl  plots/{history,curves,slices,importance}.png
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genre.jobs.inputs import write_text
from genre.jobs.tuning.study import Study
from genre.recipe import Recipe

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


def rows(study: Study) -> list[dict[str, Any]]:
    """A row per finished trial, JSON values; trials are numbered from 1."""
    found = []
    for trial in study.finished():
        value = trial.value if trial.state.name == "COMPLETE" else None
        facts = {name: trial.user_attrs[name] for name in ("seconds", "tokens", "same_as", "reason") if name in trial.user_attrs}
        found.append(
            {
                "trial": trial.number + 1, "state": STATES[trial.state.name], "value": value,
                "parameters": study.space.values(trial.params),
                "by_epoch": {str(epoch): each for epoch, each in sorted(trial.intermediate_values.items())}, **facts,
            }
        )  # fmt: skip
    return found


def write_files(folder: Path, study: Study, recipe: Recipe, objective: str) -> list[dict[str, Any]]:
    """Write the trials and the best recipe so far; the rows."""
    found = rows(study)
    write_text(folder / "trials.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
    best = study.best
    if best is not None:
        count = len(found)
        head = f"# The best of {count} trials, number {best.number + 1}: {objective} {best.value:.6g} on the validation part.\n"
        write_text(folder / "best.yaml", head + study.space.recipe(recipe, best.params).dump())
    return found


def importance(study: Study) -> dict[str, float]:
    """Each key's share in being among the better trials (PED-ANOVA), largest first; empty where it cannot be told."""
    complete = [trial for trial in study.finished() if trial.state.name == "COMPLETE"]
    if len(complete) < 4 or len({trial.value for trial in complete}) < 2:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    keys = [each.key for each in study.space.parameters if len({trial.params[each.key] for trial in complete}) > 1]
    if not keys:
        return {}
    try:
        found: Mapping[str, float] = get_param_importances(study.study, evaluator=PedAnovaImportanceEvaluator(), params=keys)
    except (RuntimeError, ValueError):  # the trials are too alike for an estimate
        return {}
    shares = {key: float(share) for key, share in found.items()}
    return shares if all(map(math.isfinite, shares.values())) else {}


def said(parameters: Mapping[str, Any]) -> str:
    """A point in a line."""
    return ", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in parameters.items())
