"""`genre recipe new|check`: write a starting recipe, check one against its data.

Owns: the two commands. Ignores: training.
"""

import json
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genre.errors import InputError, RecipeError
from genre.files import disk_errors

if TYPE_CHECKING:
    import numpy as np

    from genre.interactions import Interactions
    from genre.recipe import Recipe

app = typer.Typer(no_args_is_help=True)

_TASKS: dict[str, dict[str, Any]] = {
    "like": {"kind": "feedback", "label": "", "head": "binary", "loss": "log_loss", "metrics": ["auc", "gauc", "log_loss"]},
    "rating": {"kind": "feedback", "label": "", "head": "scalar", "loss": "mse", "metrics": ["rmse", "mae"]},
    "next_item": {"kind": "next_item", "seen": "masked"},
}
_SPLITS = {"next_item": {"kind": "last_n", "n": 1}}
_TEMPORAL = {"kind": "temporal", "valid": 0.1, "test": 0.1}


@app.command()
def new(
    task: Annotated[str, typer.Argument(metavar="TASK", help="like, rating or next_item.")],
    data: Annotated[str, typer.Option("--data", metavar="DIR", help="A data set folder.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The file to write; by default TASK.yaml.")] = None,
    base: Annotated[str, typer.Option(help="A base's name, folder or hub id.")] = "smollm2-135m",
) -> None:
    """Write a working recipe for a data set."""
    if task not in _TASKS:
        raise InputError("unknown kind of task", got=task, expected=", ".join(_TASKS))
    path = out or Path(f"{task}.yaml")
    if path.exists():
        raise InputError("the file exists", got=path, expected="a new file", todo="name another with --out")
    from genre.jobs import open_log, write_text

    log = open_log(data)
    column = _column(log, numeric=task == "rating")
    about = dict(_TASKS[task])
    if task != "next_item":
        about["label"] = column if task == "rating" else _like(column, log.column(column))
    text = ["title"] if "title" in log.catalogue.frame.columns else []
    sections = {
        "name": task,
        "data": {"path": data, "split": _SPLITS.get(task, _TEMPORAL)},
        "base": {"name": base, "depth": 4},
        "sequence": {"item": "token", "text": text, "feedback": column},
        "encoder": {"use": "auto", "text": bool(text)},
        "tasks": [{"name": task, **about}],
        "adapter": {"kind": "lora", "rank": 8, "alpha": 16},
        "train": {"epochs": 3, "learning_rate": 0.001, "batch_tokens": 2048},
    }
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(_line(key, value) for key, value in sections.items()))
    print(f"wrote {path}; next: genre recipe check {path}, then genre train {path}")


def _line(key: str, value: Any) -> str:
    import yaml

    shown = yaml.safe_dump({"it": value}, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return f"{key}: {shown.strip()[len('{it: ') : -1]}\n"


def _column(log: "Interactions", *, numeric: bool) -> str:
    """The feedback column that a task is about: rating, click or behaviour, in this order."""
    known = [name for name in ("rating", "click", "behaviour") if name in log.event_columns]
    known = [name for name in known if not numeric or log.column(name).dtype != object]
    if not known:
        what = "feedback column of numbers" if numeric else "feedback column"
        got = ", ".join(log.event_columns) or "none"
        raise RecipeError(f"the log has no {what}", got=got, todo="import it with --map rating=THEIRS")
    return known[0]


def _like(column: str, values: "np.ndarray") -> str:
    """A comparison that cuts the events as near to halves as it can."""
    import numpy as np

    if values.dtype == object:
        texts = [str(value) for value in values if value is not None]
        counts = {value: texts.count(value) for value in dict.fromkeys(texts)}
        if len(counts) > 1:
            return f"{column} == {min(counts, key=lambda value: abs(counts[value] - len(texts) / 2))!r}"
    else:
        numbers = np.sort(values[~np.isnan(values)])
        cuts, first = np.unique(numbers, return_index=True)
        if len(cuts) > 1:
            return f"{column} > {float(cuts[np.abs(first[1:] - len(numbers) / 2).argmin()]):.6g}"
    raise RecipeError(
        f"column {column!r} tells no likes from dislikes", got="one value in every event", expected="at least two values",
        todo="write a recipe for next_item, or import another feedback column",
    )  # fmt: skip


@app.command()
def check(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: train.epochs=1; may be repeated.")
    ] = None,
) -> None:
    """Check a recipe against its schema and its data: columns, labels, split."""
    from genre.recipe import Recipe

    wanted = Recipe.read(recipe, overrides or [])
    from genre.assembly import usable_events
    from genre.jobs import open_log

    log = open_log(wanted.data.path)
    _check_columns(wanted, log)
    _check_base(wanted.base.name, wanted.base.depth)
    chosen, usable = usable_events(log, wanted)
    columns = {name: log.column(name) for name in log.event_columns}
    valid, test = (chosen.part == 1).sum(), (chosen.part == 2).sum()
    print(f"{recipe}: {len(log):,} events; {usable.sum():,} train, {valid:,} validate, {test:,} test")
    for task in wanted.tasks:
        if task.label is None:
            print(f"task {task.name}: next item among {log.catalogue.size:,}, seen items {task.seen}")
            continue
        labels = task.labels(columns)[usable]
        labels = labels[labels == labels]
        if not len(labels) or labels.min() == labels.max():
            raise RecipeError(
                f"task {task.name!r}: label {task.label!r} tells no two training events apart",
                got="no label" if not len(labels) else f"{labels[0]:g} for every event", todo="change the label",
            )  # fmt: skip
        print(f"task {task.name}: {len(labels):,} training labels, mean {labels.mean():.4f}")
    print("the recipe is fine")


def _check_columns(recipe: "Recipe", log: "Interactions") -> None:
    """Every column that the recipe names is there: feedback, item texts, dense columns, the instruction's user columns."""
    column = recipe.sequence.feedback
    if column is not None and column not in log.event_columns:
        raise RecipeError(
            f"sequence.feedback {column!r} is no column of the log", got=", ".join(log.event_columns) or "none",
            todo="set sequence.feedback to one of them",
        )  # fmt: skip
    log.catalogue.texts(list(recipe.sequence.text))
    for name in recipe.encoder.dense:
        log.catalogue.dense(name)
    users = [] if log.users is None else log.users.columns
    for _, field, _, _ in Formatter().parse(recipe.sequence.instruction):
        if field is not None and field not in users:
            raise RecipeError(
                f"sequence.instruction needs the user column {field!r}", got=", ".join(users) or "no user columns",
                todo="take {" + field + "} out of it, or import the log with --users",
            )  # fmt: skip


def _check_base(name: str, depth: int | None) -> None:
    """Look at what a base says of itself; nothing is loaded or fetched."""
    from genre import sources
    from genre.base import find

    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.count("/") == 1 and not name.startswith((".", "/", "~")):
            return  # a hub id
        folder = (sources.prepared_path(name) if name in sources.BASES else find(name)) or folder
    file = folder / "config.json"
    layers = json.loads(file.read_text(encoding="utf-8")).get("num_hidden_layers") if file.is_file() else None
    if depth is not None and layers is not None and depth > layers:
        raise RecipeError("base.depth is out of range", got=depth, expected=f"1 to {layers} for base {name!r}")
