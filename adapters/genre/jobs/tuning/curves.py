"""Learning curves: one recipe trained on ever more users, beside its controls and the tuned baselines on the same users.

Owns: the runs at each size, who is compared with whom, the sentence that follows from the intervals. Ignores: printing, plots
(`genre.jobs.report.curves`), how a run is trained (`genre.jobs.tuning.bench`).

    found = learning_curve(recipe, Path("runs/next_item/curve"), sizes=[100, 1000, None], cold=0.2)
    found["scopes"]["all"]["conclusion"]       # "ids beat text from 1,000 users (5,020 training events) on; …"

Users are drawn by `data.split.users`, nested, and the test events stay those of all users, so every size is asked the same. What
learns from the log learns from the drawn users alone: adapters, encoders, baselines and the choice of their settings.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from genre.data.interactions import Interactions
from genre.data.splits import SplitConfig, split, training_events
from genre.errors import InputError, JobError
from genre.evaluation.metrics import bootstrap
from genre.files import write_json
from genre.jobs.compare import compare
from genre.jobs.folders import environment
from genre.jobs.loading import check_data, open_log
from genre.jobs.predictions import BASELINES, Scored, baselines_of_run, from_run, resampled_metrics
from genre.jobs.train import METRICS
from genre.jobs.tuning.bench import keep_recipe, run
from genre.jobs.tuning.trials import refuse_private
from genre.modules.base.source import find
from genre.progress import Reporter
from genre.recipe import Recipe
from genre.registry import Registry
from genre.tasks import Task
from genre.training.assembly import needs_encoder

CONTROLS: dict[str, dict[str, Any]] = {
    "adapter": {},
    "head_only": {"adapter.kind": "head_only"},
    "no_base": {"adapter.kind": "no_base"},
}
"""What is trained at each size: the recipe's own adapter; heads on the frozen base; heads without the base."""
BY_ID = ("popularity", "transitions", "item_neighbours", "ease")
TEXT, BOTH, BEST_BY_ID = "text_neighbours", "ease_text", "best_by_id"
METHODS = (*CONTROLS, BEST_BY_ID, TEXT, BOTH)


@dataclass(frozen=True)
class Point:
    """Every method at one size, on the same targets.

    Attributes:
        users: Whose training events were learnt from.
        events: So many they are.
        scored: The methods of `METHODS` that there are.
        best_by_id: The baseline by id that is best on the targets.
    """

    users: int
    events: int
    scored: Mapping[str, Scored]
    best_by_id: str

    @property
    def words(self) -> str:
        """The size as a reader would say it."""
        return f"{self.users:,} users ({self.events:,} training events)"

    def take(self, chosen: np.ndarray) -> "Point":
        """The point on some targets, (n,) bool."""
        rows = np.flatnonzero(chosen)
        some = {
            name: replace(each, targets=each.targets.take(rows), scores=each.scores[rows]) for name, each in self.scored.items()
        }
        return replace(self, scored=some)


def learning_curve(
    recipe: Recipe,
    folder: Path,
    *,
    sizes: Sequence[int | None] = (None,),
    cold: float | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train a next-item recipe and its controls on so many users at a time, and compare them with each other and the baselines.

    Args:
        recipe: The recipe, with a next-item task.
        folder: For the runs; one with finished runs of this recipe is resumed.
        sizes: Numbers of training users; None for all.
        cold: The share of the items to hold out of training; their test events are then a scope of their own.
        reporter: Receives progress; the runs report their own.

    Returns:
        JSON values, also in the folder's `curve.json`: `scopes` has, for all targets and for those on items held out, the points
        (each method's figure with its interval, and the paired differences), and the conclusion.

    Raises:
        InputError: No task ranks items, a size or share is out of range, or the folder holds runs of another recipe.
        RecipeError: The recipe is private.
        InterruptedJobError: Interrupted; the same command resumes.
        JobError: A run failed.
    """
    reporter = reporter or Reporter.silent()
    task = _ranking_task(recipe)
    refuse_private(recipe)
    if cold is not None and not 0 < cold < 1:
        raise InputError("the share of items to hold out is out of range", got=cold, expected="above 0 and below 1, such as 0.2")
    log = open_log(recipe.data.path)
    if cold is not None:
        recipe = recipe.with_values({"data.split.cold_items": cold})
    check_data(recipe, log)
    find(recipe.base.name)
    plan = _plan(recipe, split(log, recipe.data.split), log, sizes, reporter)
    keep_recipe(recipe, folder)
    points = [_point(each, task, log, folder / name, reporter) for name, each in plan.items()]
    scopes = {"all": points}
    if cold is not None:
        held = held_out_items(log, recipe.data.split)[points[0].scored["adapter"].targets.item]
        if held.any():
            scopes["held_out"] = [each.take(held) for each in points]
    metric = resampled_metrics(task)[0]
    found: dict[str, Any] = {"recipe": recipe.name, "task": task.name, "metric": metric, "cold": cold}
    found |= {"seed": recipe.train.seed, "environment": environment()}
    found["scopes"] = {name: described(each, metric) for name, each in scopes.items()}
    write_json(folder / "curve.json", found)
    return found


def _ranking_task(recipe: Recipe) -> Task:
    for task in recipe.tasks:
        if task.kind == "next_item" and resampled_metrics(task):
            return task
    got = ", ".join(f"{task.name}: {task.kind}" for task in recipe.tasks)
    raise InputError("a learning curve is of a next-item task with a metric of ranks", got=got, expected="kind: next_item")


def _plan(recipe: Recipe, whole: Any, log: Interactions, sizes: Sequence[int | None], reporter: Reporter) -> dict[str, Recipe]:
    """The recipe at each size, by the name of its folder, smallest first; sizes beyond the log are all users."""
    most = len(np.unique(log.user_codes[whole.mask("train")]))
    if bad := [size for size in sizes if size is not None and size < 1]:
        raise InputError("a learning curve needs users", got=bad[0], expected="1 or more")
    if not sizes:
        raise InputError("a learning curve needs a size", got="none", expected="such as 100,1000,all")
    for size in sizes:
        if size is not None and size > most:
            reporter.line(f"{size:,} users are more than the {most:,} with training events: all of them train")
    own = {"encoder.use": "fit"} if needs_encoder(recipe) else {}
    below = sorted({size for size in sizes if size is not None and size < most})
    plan = {str(size): recipe.with_values(own | {"data.split.users": size}) for size in below}
    return plan | ({} if len(below) == len(set(sizes)) else {"all": recipe.with_values(own)})


def _point(recipe: Recipe, task: Task, log: Interactions, folder: Path, reporter: Reporter) -> Point:
    """Train what is trained at one size, and gather everything that was scored there."""
    for way, values in CONTROLS.items():
        reporter.line(f"{folder.name} users: {way.replace('_', ' ')}")
        place = folder / way
        which = "all" if way == "adapter" else "none"
        if which == "all" and not (place / BASELINES).is_file():  # interrupted among the baselines: its checkpoint is the last
            (place / METRICS).unlink(missing_ok=True)
        if error := run(recipe.with_values(values), place, Registry(folder / "registry"), which):
            raise JobError(f"{way} on {folder.name} users could not be trained", got=error, todo="the same command goes on")
        shutil.rmtree(place / "checkpoints", ignore_errors=True)
    scored = {way: replace(from_run(folder / way)[task.name], name=way) for way in CONTROLS}
    baselines = baselines_of_run(folder / "adapter")[task.name]
    metric = resampled_metrics(task)[0]
    best = max((name for name in BY_ID if name in baselines), key=lambda name: _figure(baselines[name], metric, 0)["value"])
    scored |= {BEST_BY_ID: replace(baselines[best], name=BEST_BY_ID)}
    scored |= {name: baselines[name] for name in (TEXT, BOTH) if name in baselines}
    train = split(log, recipe.data.split).mask("train")
    return Point(len(np.unique(log.user_codes[train])), int(train.sum()), scored, best)


def held_out_items(log: Interactions, config: SplitConfig) -> np.ndarray:
    """Return bool[N]: items with training events of which the split's `cold_items` leaves none."""
    plain = config.model_copy(update={"cold_items": None, "cold_seed": None})
    return (training_events(log, split(log, plain).part) > 0) & (training_events(log, split(log, config).part) == 0)


def _figure(scored: Scored, metric: str, resamples: int = 1000) -> dict[str, Any]:
    return bootstrap(metric, scored.targets.user, None, scored.scores, resamples=resamples).as_dict()


def described(points: Sequence[Point], metric: str) -> dict[str, Any]:
    """The points' figures and paired differences, and the conclusion from them, as JSON values."""
    rows = []
    for point in points:
        scored = point.scored
        figures = {name: _figure(scored[name], metric) for name in METHODS if name in scored}
        others = [name for name in (BEST_BY_ID, TEXT, BOTH) if name in scored]
        best = max(others, key=lambda name: figures[name]["value"])
        asked = {"ids minus text": (BEST_BY_ID, TEXT), "adapter minus best baseline": ("adapter", best)}
        asked |= {"adapter minus head_only": ("adapter", "head_only"), "adapter minus no_base": ("adapter", "no_base")}
        pairs = {what: (scored[a], scored[b]) for what, (a, b) in asked.items() if a in scored and b in scored}
        compared = {what: compare(a, b, metrics=[metric])[0] for what, (a, b) in pairs.items()}
        row = {"users": point.users, "events": point.events, "n": len(scored["adapter"].targets), "words": point.words}
        row |= {"figures": figures, "best_by_id": point.best_by_id, "best_baseline": best}
        rows.append(row | {"differences": {what: each.as_dict() for what, each in compared.items()}})
    return {"points": rows, "conclusion": conclude(rows)}


def conclude(rows: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on where ids beat text, and one on where the adapter and its base are worth it, from the outcomes alone."""
    ids = _ids_against_text(rows)

    def where(*differences: str) -> list[str]:
        return [row["words"] for row in rows if all(row["differences"][name]["outcome"] == "better" for name in differences)]

    ahead, base = where("adapter minus best baseline"), where("adapter minus no_base")
    worth = where("adapter minus best baseline", "adapter minus no_base")
    told = f"the adapter is ahead of the best baseline at {_listed(ahead, rows)}"
    told += f", of the same without the base at {_listed(base, rows)}"
    return f"{ids}; {told}: the LLM is shown to be worth it at {_listed(worth, rows)}"


def _ids_against_text(rows: Sequence[Mapping[str, Any]]) -> str:
    outcomes = [row["differences"].get("ids minus text", {}).get("outcome") for row in rows]
    if None in outcomes:
        return "no item text is read, so ids have no text to beat"
    since = len(rows)
    while since and outcomes[since - 1] == "better":
        since -= 1
    if since < len(rows):
        return f"ids beat text {'at every size, ' if since == 0 and len(rows) > 1 else ''}from {rows[since]['words']} on"
    if outcomes[-1] == "worse":
        everywhere = all(outcome == "worse" for outcome in outcomes)
        return f"text beats ids {'at every size, ' if everywhere and len(rows) > 1 else ''}up to {rows[-1]['words']}"
    return f"ids and text are not told apart at {rows[-1]['words']}"


def _listed(sizes: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    if not sizes:
        return "no size"
    return "every size" if len(sizes) == len(rows) > 1 else " and ".join(sizes)
