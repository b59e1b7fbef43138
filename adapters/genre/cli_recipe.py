"""`genre recipe new|check`: write a starting recipe, check one against its data.

Owns: the two commands. Ignores: training.
"""

from pathlib import Path
from typing import Annotated

import typer

from genre.errors import InputError, RecipeError

app = typer.Typer(no_args_is_help=True)

_TASKS = {
    "like": "{name: like, kind: feedback, label: 'LABEL', head: binary, loss: log_loss, metrics: [auc, gauc, log_loss]}",
    "rating": "{name: rating, kind: feedback, label: COLUMN, head: scalar, loss: mse, metrics: [rmse, mae]}",
    "next_item": "{name: next_item, kind: next_item, seen: masked}",
}
_SPLITS = {"next_item": "{kind: last_n, n: 1}"}


@app.command()
def new(
    task: Annotated[str, typer.Argument(help="like, rating or next_item.")],
    data: Annotated[str, typer.Option("--data", help="A data set folder.")],
    out: Annotated[Path | None, typer.Option(help="The file to write; by default NAME.yaml.")] = None,
    base: Annotated[str, typer.Option(help="A base.")] = "smollm2-135m",
) -> None:
    """Write a working recipe for a data set."""
    from genre.jobs import open_log

    if task not in _TASKS:
        raise InputError("unknown kind of task", got=task, expected=", ".join(_TASKS))
    log = open_log(data)
    column = next(iter(log.event_columns), None)
    if column is None:
        raise RecipeError("the log has no feedback column", todo="import it with --map rating=THEIRS")
    values = log.column(column)
    label = f"{column} == '{values[0]}'" if values.dtype == object else f"{column} > {float(values.mean()):.3g}"
    text = ["title"] if "title" in log.catalogue.frame.columns else []
    lines = [
        f"name: {task}",
        f"data: {{path: {data}, split: {_SPLITS.get(task, '{kind: temporal, valid: 0.1, test: 0.1}')}}}",
        f"base: {{name: {base}, depth: 4}}",
        f"sequence: {{item: token, text: [{', '.join(text)}], feedback: {column}}}",
        f"encoder: {{use: auto, text: {'true' if text else 'false'}}}",
        f"tasks: [{_TASKS[task].replace('LABEL', label).replace('COLUMN', column)}]",
        "adapter: {kind: lora, rank: 8, alpha: 16}",
        "train: {epochs: 3, learning_rate: 1.0e-3, batch_tokens: 2048}",
    ]
    path = out or Path(f"{task}.yaml")
    if path.exists():
        raise InputError("the file exists", got=path, todo="name another with --out")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {path}; next: genre recipe check {path}, then genre train {path}")


@app.command()
def check(
    recipe: Annotated[Path, typer.Argument(help="A recipe file.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a key: a.b=c; may be repeated.")] = None,
) -> None:
    """Check a recipe against its schema and its data: columns, labels, split."""
    from genre.recipe import Recipe

    wanted = Recipe.read(recipe, overrides or [])
    from genre.assembly import usable_events
    from genre.jobs import open_log

    log = open_log(wanted.data.path)
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
        print(f"task {task.name}: {len(labels):,} training labels, mean {labels.mean():.4f}")
    log.catalogue.texts(list(wanted.sequence.text))
    for name in wanted.encoder.dense:
        log.catalogue.dense(name)
    print("the recipe is fine")
