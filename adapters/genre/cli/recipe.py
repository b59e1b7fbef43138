"""`genre recipe new|check`: write a starting recipe, check one against its data and base.

Owns: the two commands. Ignores: training; which keys a starting recipe has (`cli_recipe_new`); how a row is shown
(`cli_recipe_row`).
"""

from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, Annotated

import typer

from genre.errors import InputError, RecipeError
from genre.files import disk_errors

if TYPE_CHECKING:
    import numpy as np

    from genre.data.interactions import Interactions
    from genre.data.texts.dataset import Texts
    from genre.modules.base.source import BaseDescription
    from genre.recipe import Recipe

app = typer.Typer(no_args_is_help=True)

TASKS = ("like", "rating", "next_item", "text")


@app.command()
def new(
    data: Annotated[str, typer.Option("--data", metavar="DIR", help="A data set folder.")],
    task: Annotated[str | None, typer.Argument(metavar="[TASK]", help="like, rating or next_item of a log; text.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="A column, or a comparison: 'stars > 3'; of texts, one or more.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="A text column: of the items, or of the texts.")
    ] = None,
    feedback: Annotated[str | None, typer.Option(metavar="COLUMN", help="Of a log: the column of the feedback slot.")] = None,
    name: Annotated[str | None, typer.Option(help="The adapter's name; by default the task's, or the label's.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The file to write; by default NAME.yaml.")] = None,
    base: Annotated[str | None, typer.Option(help="A base's name, folder or hub id.")] = None,
) -> None:
    """Write a working recipe for a data set; on a terminal, asks for what the options leave open."""
    from genre.cli.recipe_new import Wanted, for_events, for_texts, write

    if task is not None and task not in TASKS:
        raise InputError("unknown kind of task", got=task, expected=", ".join(TASKS))
    if out is not None and out.exists():
        raise InputError("the file exists", got=out, expected="a new file", todo="name another with --out")
    from genre.data.interactions import need_log
    from genre.data.texts.dataset import Texts
    from genre.jobs.loading import open_data

    found = open_data(data)
    wanted = Wanted(data, task, tuple(label or ()), tuple(text or ()), feedback, name, base)
    sections = for_texts(wanted, found) if isinstance(found, Texts) else for_events(wanted, need_log(found))
    path = out or Path(f"{sections['name']}.yaml")
    if path.exists():
        raise InputError("the file exists", got=path, expected="a new file", todo="name another with --out")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write(path, sections)
    print(f"wrote {path}; next: genre recipe check {path}, then genre train {path}")


@app.command()
def check(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: train.epochs=1; may be repeated.")
    ] = None,
) -> None:
    """Check a recipe against its schema, its data and its base, and show what one row is to the model."""
    from genre.recipe import Recipe

    wanted = Recipe.read(recipe, overrides or [])
    from genre.data.interactions import need_log
    from genre.data.texts.dataset import Texts
    from genre.jobs.loading import check_data, open_data
    from genre.modules.base.source import BaseDescription

    found = open_data(wanted.data.path, wanted.reads)
    check_data(wanted, found)
    face = BaseDescription.read(wanted.base.name)
    if face is not None:
        _check_base(wanted, face)
    lines = (
        _check_texts(recipe, wanted, found, face)
        if isinstance(found, Texts)
        else _check_log(recipe, wanted, need_log(found), face)
    )
    for line in lines:
        print(line)
    if face is None:
        how = "" if "/" in wanted.base.name else f" (genre base prepare {wanted.base.name} gets it)"
        print(f"a row is not shown: base {wanted.base.name} is not on this machine yet{how}")
    print("the recipe is fine")


def _check_base(recipe: "Recipe", face: "BaseDescription") -> None:
    if recipe.reads == "log":
        face.need_causal(f"recipe {recipe.name!r}, whose rows are a user's events with many targets,")
    depth, layers = recipe.base.depth, face.full_depth
    if depth is not None and layers is not None and depth > layers:
        raise RecipeError("base.depth is out of range", got=depth, expected=f"1 to {layers} for base {face.name!r}")


def _check_log(path: Path, recipe: "Recipe", log: "Interactions", face: "BaseDescription | None") -> list[str]:
    from genre.cli.recipe_row import picture_of_events
    from genre.training.assembly import training_split

    _check_columns(recipe, log)
    chosen, usable = training_split(recipe, log)
    valid, test = (chosen.part == 1).sum(), (chosen.part == 2).sum()
    lines = [f"{path}: {len(log):,} events; {usable.sum():,} train, {valid:,} validate, {test:,} test"]
    for task in recipe.tasks:
        if task.label is None:
            lines.append(f"task {task.name}: next item among {log.catalogue.size:,}, seen items {task.seen}")
            continue
        lines.append(_said_of(task.name, task.label, task.labels(log.labels)[usable], "event"))
    return lines + ([] if face is None else picture_of_events(recipe, log, usable, face))


def _check_texts(path: Path, recipe: "Recipe", texts: "Texts", face: "BaseDescription | None") -> list[str]:
    from genre.cli.recipe_row import picture_of_text
    from genre.data.sequences.text_rows import TextLayout, TextRows
    from genre.evaluation.labels import check_labels
    from genre.training.assembly import training_split

    recipe = recipe.model_copy(update={"tasks": tuple(task.with_classes(texts.labels) for task in recipe.tasks)})
    chosen, usable = training_split(recipe, texts)
    valid, test = (chosen.part == 1).sum(), (chosen.part == 2).sum()
    lines = [
        f"{path}: {len(texts):,} texts in {texts.group_codes.max() + 1:,} groups; {usable.sum():,} train, {valid:,} validate, "
        f"{test:,} test, no group on two sides"
    ]
    sequence = recipe.sequence
    layout = (
        TextLayout(None, sequence.text, sequence.instruction, sequence.max_tokens, "mean") if face is None
        else TextLayout.make(face, text=sequence.text, instruction=sequence.instruction, max_tokens=sequence.max_tokens,
                             pool=sequence.pool)
    )  # fmt: skip
    builder = TextRows(texts, layout)
    builder.check_columns()
    for task in recipe.tasks:
        labels = texts.labels_of(task)
        check_labels(task, labels, texts, usable)
        lines.append(_said_of(task.name, task.label or "", labels[usable], "text", classes=task.classes))
    return lines + ([] if face is None else picture_of_text(recipe, builder, usable, face))


def _said_of(name: str, label: str, labels: "np.ndarray", what: str, *, classes: tuple[float | str, ...] | None = None) -> str:
    """A line on a task's training labels.

    Raises:
        RecipeError: They tell no two events or texts apart.
    """
    known = labels[labels == labels]
    known = known[known >= 0] if classes is not None else known
    if not len(known) or known.min() == known.max():
        raise RecipeError(
            f"task {name!r}: label {label!r} tells no two training {what}s apart",
            got="no label" if not len(known) else f"{known[0]:g} for every {what}", todo="change the label",
        )  # fmt: skip
    if classes is None:
        return f"task {name}: {len(known):,} training labels, mean {known.mean():.4f}"
    shares = ", ".join(f"{value if isinstance(value, str) else f'{value:g}'} {(known == code).mean():.1%}"
                       for code, value in enumerate(classes[:10]))  # fmt: skip
    more = f" and {len(classes) - 10} more" if len(classes) > 10 else ""
    return f"task {name}: {len(known):,} training labels, classes {shares}{more}"


def _check_columns(recipe: "Recipe", log: "Interactions") -> None:
    """Every column that the recipe names is there: feedback, item texts, dense columns, the instruction's user columns."""
    from genre.training.assembly import feedback_column

    feedback_column(recipe, log)
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
