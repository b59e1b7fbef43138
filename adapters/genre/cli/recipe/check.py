"""`genre recipe new|check`: write a starting recipe, check one against its data and base.

Owns: the two commands. Ignores: training; the keys of a starting recipe (`new`) and their comments (`writing`); the picture of a
row (`row`).
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genre.cli.options import RegistryOption, SetOption, data_option
from genre.cli.output import check_file
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
    data: Annotated[str, data_option("A data set folder.")],
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="like, rating or next_item; text for labelled texts.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="A column, or a comparison: 'stars > 3'; one or more for texts.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="A text column of the items, or of the texts.")] = None,
    feedback: Annotated[str | None, typer.Option(metavar="COLUMN", help="Logs: the feedback column, or none.")] = None,
    name: Annotated[str | None, typer.Option(help="The adapter's name; by default the task's, or the label's.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The file to write; by default NAME.yaml.")] = None,
    base: Annotated[str | None, typer.Option(help="A base's name, folder or hub id.")] = None,
) -> None:
    """Write a working recipe for a data set; on a terminal, asks for what the options leave open."""
    from genre.cli.recipe.new import Wanted, for_events, for_texts
    from genre.cli.recipe.writing import write

    if task is not None and task not in TASKS:
        raise InputError("unknown kind of task", got=task, expected=", ".join(TASKS))
    check_file(out, "--out")
    if out is not None and out.exists():
        raise InputError("the file exists", got=out, expected="a new file", todo="name another with --out")
    from genre.data.interactions import need_log
    from genre.data.texts.dataset import Texts
    from genre.jobs.loading import open_data

    found = open_data(data)
    wanted = Wanted(data, task, tuple(label or ()), tuple(text or ()), feedback, name, base)
    draft = for_texts(wanted, found) if isinstance(found, Texts) else for_events(wanted, need_log(found))
    path = out or Path(f"{draft.sections['name']}.yaml")
    if path.exists():
        raise InputError("the file exists", got=path, expected="a new file", todo="name another with --out")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write(path, draft.sections, draft.reasons)
    for note in draft.notes:
        print(note)
    print(f"wrote {path}; next: genre recipe check {path}, then genre train {path}")


@app.command()
def check(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="Recipe files; several may share an encoder.")],
    overrides: SetOption = None,
    registry: RegistryOption = "registry",
) -> None:
    """Check recipes against schema, data and base; show one row as the model sees it, and where the encoder comes from."""
    from genre.recipe import Recipe

    wanted = [Recipe.read(recipe, overrides or []) for recipe in recipes]
    for file, recipe in zip(recipes, wanted, strict=True):
        _check_one(file, recipe, registry)
    by_data: dict[str, list[tuple[str, Recipe]]] = {}
    for file, recipe in zip(recipes, wanted, strict=True):
        if recipe.reads == "log":
            by_data.setdefault(recipe.data.path, []).append((str(file), recipe))
    for path, some in by_data.items():
        if len(some) > 1:
            from genre.jobs.encoders import foresee_sharing
            from genre.jobs.loading import open_log

            print("\n".join(foresee_sharing(some, open_log(path))))


def _check_one(recipe: Path, wanted: "Recipe", registry: str) -> None:
    from genre.data.interactions import need_log
    from genre.data.texts.dataset import Texts
    from genre.jobs.loading import check_data, open_data
    from genre.modules.base.source import BaseDescription

    found = open_data(wanted.data.path, wanted.reads)
    check_data(wanted, found)
    base = BaseDescription.read(wanted.base.name)
    if base is not None:
        _check_base(wanted, base)
    if isinstance(found, Texts):
        lines = _check_texts(recipe, wanted, found, base)
    else:
        lines = _check_log(recipe, wanted, need_log(found), base)
        from genre.jobs.encoders import foresee_encoder
        from genre.registry import Registry

        lines.append(foresee_encoder(wanted, need_log(found), Registry(registry)))
    print("\n".join(lines))
    if base is None:
        how = "" if "/" in wanted.base.name else f" (genre base prepare {wanted.base.name} downloads it)"
        print(f"no row is shown: base {wanted.base.name} is not on this machine yet{how}")
    print("the recipe is fine")


def _check_base(recipe: "Recipe", base: "BaseDescription") -> None:
    if recipe.reads == "log":
        base.need_causal(f"recipe {recipe.name!r}, whose rows are a user's events with many targets,")
    depth, layers = recipe.base.depth, base.full_depth
    if depth is not None and layers is not None and depth > layers:
        raise RecipeError("base.depth is out of range", got=depth, expected=f"1 to {layers} for base {base.name!r}")


def _check_log(path: Path, recipe: "Recipe", log: "Interactions", base: "BaseDescription | None") -> list[str]:
    from genre.cli.recipe.row import picture_of_events
    from genre.training.assembly import training_split

    _check_columns(recipe, log)
    split, usable = training_split(recipe, log)
    valid, test = (split.part == 1).sum(), (split.part == 2).sum()
    lines = [f"{path}: {len(log):,} events; {usable.sum():,} train, {valid:,} validate, {test:,} test"]
    for task in recipe.tasks:
        if task.label is None:
            lines.append(f"task {task.name}: next item among {log.catalogue.size:,}, seen items {task.seen}")
            continue
        lines.append(_describe_labels(task.name, task.label, task.labels(log.labels)[usable], "event"))
    return lines + ([] if base is None else picture_of_events(recipe, log, usable, base))


def _check_texts(path: Path, recipe: "Recipe", texts: "Texts", base: "BaseDescription | None") -> list[str]:
    from genre.cli.recipe.row import picture_of_text
    from genre.data.sequences.text_rows import TextLayout, TextRows
    from genre.evaluation.labels import check_labels
    from genre.training.assembly import training_split

    recipe = recipe.model_copy(update={"tasks": tuple(task.with_classes(texts.labels) for task in recipe.tasks)})
    split, usable = training_split(recipe, texts)
    valid, test = (split.part == 1).sum(), (split.part == 2).sum()
    counts = f"{usable.sum():,} train, {valid:,} validate, {test:,} test, no group on two sides"
    lines = [f"{path}: {len(texts):,} texts in {texts.group_codes.max() + 1:,} groups; {counts}"]
    sequence = recipe.sequence
    shape: dict[str, Any] = {name: getattr(sequence, name) for name in ("text", "instruction", "max_tokens", "control_tokens")}
    make = partial(TextLayout, None, pool="mean") if base is None else partial(TextLayout.make, base, pool=sequence.pool)
    builder = TextRows(texts, make(**shape))
    builder.check_columns()
    for task in recipe.tasks:
        labels = texts.labels_of(task)
        check_labels(task, labels, texts, usable)
        lines.append(_describe_labels(task.name, task.label or "", labels[usable], "text", classes=task.classes))
    return lines + ([] if base is None else picture_of_text(recipe, builder, usable, base))


def _describe_labels(
    name: str, label: str, labels: "np.ndarray", what: str, *, classes: tuple[float | str, ...] | None = None
) -> str:
    """Describe a task's training labels in a line.

    Raises:
        RecipeError: All of them are equal.
    """
    known = labels[labels == labels]
    known = known[known >= 0] if classes is not None else known
    if not len(known) or known.min() == known.max():
        got = f"{known[0]:g} for every {what}" if len(known) else "no label"
        what = f"task {name!r}: label {label!r} does not distinguish the training {what}s"
        raise RecipeError(what, got=got, todo="change the label")
    if classes is None:
        return f"task {name}: {len(known):,} training labels, mean {known.mean():.4f}"
    names = [value if isinstance(value, str) else f"{value:g}" for value in classes[:10]]
    shares = ", ".join(f"{value} {(known == code).mean():.1%}" for code, value in enumerate(names))
    more = f" and {len(classes) - 10} more" if len(classes) > 10 else ""
    return f"task {name}: {len(known):,} training labels, classes {shares}{more}"


def _check_columns(recipe: "Recipe", log: "Interactions") -> None:
    """Check the columns that the recipe names: feedback, item texts, dense columns, the instruction's user columns."""
    from genre.data.sequences.instruction import fields_of
    from genre.training.assembly import feedback_column

    feedback_column(recipe, log)
    log.catalogue.texts(list(recipe.sequence.text))
    for name in recipe.encoder.dense:
        log.catalogue.dense(name)
    users = [] if log.users is None else log.users.columns
    for field in fields_of(recipe.sequence.instruction):
        if field not in users:
            what, got = f"sequence.instruction needs the user column {field!r}", ", ".join(users) or "no user columns"
            todo = "take {" + field + "} out of it, or import the log with --users"
            raise RecipeError(what, got=got, todo=todo)
