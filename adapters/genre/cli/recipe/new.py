"""A starting recipe for a user's own data.

Owns: the columns that it reads, asked for on a terminal and taken from options otherwise; its sections. Ignores: commands.

    for_texts(Wanted("data/reviews", labels=("stars",)), texts).sections["tasks"]
    # [{"name": "stars", "kind": "text", "label": "stars", "head": "pooled", "loss": "cross_entropy", …}]
"""

import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from genre.errors import GenreError, InputError, RecipeError

if TYPE_CHECKING:
    import numpy as np

    from genre.data.interactions import Interactions
    from genre.data.texts.dataset import Texts

_FEEDBACK_TASKS: dict[str, dict[str, Any]] = {
    "like": {"kind": "feedback", "label": "", "head": "binary", "loss": "log_loss", "metrics": ["auc", "gauc", "log_loss"]},
    "rating": {"kind": "feedback", "label": "", "head": "scalar", "loss": "mse", "metrics": ["rmse", "mae"]},
    "next_item": {"kind": "next_item", "seen": "masked"},
}
_ITEMS_ONLY = {"instruction": "Items of one user, in order:"}
_LAST = {"kind": "last_n", "n": 1}
_TEMPORAL = {"kind": "temporal", "valid": 0.1, "test": 0.1}
_LEAST = 0.5
"""Share of a recipe's training events that must be left when the other kind's evaluated events are held out."""
_METRICS = {
    "log_loss": ["auc", "f1", "log_loss"],
    "cross_entropy": ["accuracy", "macro_f1"],
    "mse": ["rmse", "mae"],
}
FEW_EVENTS = 20
"""Users with fewer events, in the median, make a sparse log."""
MOSTLY_REPEATED = 0.5
"""Above this share of last items that are repeats, a ranking keeps items of the history."""
MOST_CLASSES = 20
"""A label with more distinct numbers is a regression target."""


@dataclass(frozen=True)
class Wanted:
    """The options of the command; None or empty where they leave something open."""

    data: str
    task: str | None = None
    labels: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    feedback: str | None = None
    name: str | None = None
    base: str | None = None


@dataclass(frozen=True)
class Draft:
    """A starting recipe.

    Attributes:
        sections: The recipe.
        reasons: Why keys have their values, by dotted name.
        notes: What is worth saying besides, in lines.
    """

    sections: dict[str, Any]
    reasons: dict[str, str]
    notes: tuple[str, ...] = ()


def on_terminal() -> bool:
    """Return whether there is somebody to ask."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def ask(question: str, default: str, check: Callable[[str], Any]) -> Any:
    """Ask until an answer passes `check`, and return its result; without a terminal the default is the answer."""
    if not on_terminal():
        return check(default)
    import typer

    while True:
        answer = typer.prompt(question, default=default, show_default=bool(default))
        try:
            return check(str(answer).strip())
        except GenreError as error:
            print(error)


def _base(wanted: Wanted) -> dict[str, Any]:
    """The base of a recipe for a log: its first four layers, or all where it has fewer.

    Raises:
        BaseModelError: There is no such base.
    """
    layers = None if wanted.base is None else _layers(wanted.base)
    return {"name": wanted.base or "smollm2-135m", "depth": 4 if layers is None else min(4, layers)}


def _layers(base: str) -> int | None:
    """The number of layers of a base; None where it has none, or has to be fetched first."""
    from genre.modules.base.source import BaseDescription

    found = BaseDescription.read(base)
    return None if found is None else found.full_depth


def for_events(wanted: Wanted, log: "Interactions") -> Draft:
    """A recipe for a log.

    Raises:
        InputError, RecipeError: The task, a column or a label does not fit the log.
    """
    from genre.recipe import NO_FEEDBACK

    if wanted.task is None and not on_terminal():
        raise InputError("no task is named", got="a log", expected=", ".join(_FEEDBACK_TASKS))
    task = wanted.task or ask(f"task ({', '.join(_FEEDBACK_TASKS)})", "next_item", _one_of(tuple(_FEEDBACK_TASKS), "task"))
    if task not in _FEEDBACK_TASKS:
        raise InputError(f"a task of kind {task} reads labelled texts", got="a log", expected=", ".join(_FEEDBACK_TASKS))
    if len(wanted.labels) > 1 or (wanted.labels and task == "next_item"):
        got = f"{len(wanted.labels)} labels" if len(wanted.labels) > 1 else wanted.labels[0]
        raise InputError(f"task {task} takes {'no label' if task == 'next_item' else 'one label'}", got=got)
    columns = [name for name in _told_columns(log, wanted) if task != "rating" or log.column(name).dtype != object]
    column = _feedback(wanted, log, columns, task)
    about = dict(_FEEDBACK_TASKS[task])
    if task != "next_item":
        labels = _usual_column(columns) if column == NO_FEEDBACK else column
        usual = labels if task == "rating" else _like(labels, log.column(labels))
        check = _label_check({"name": task, **about}, {name: log.column(name) for name in log.event_columns}, "feedback")
        about["label"] = check(wanted.labels[0]) if wanted.labels else ask("label", usual, check)
    texts, reasons, notes = _texts_of_items(wanted, log)
    ranks = task == "next_item"
    encoder: dict[str, Any] = {}
    if ranks:
        encoder, whys = _ranking(log, bool(texts))
        about["seen"], whys["tasks.seen"] = _seen(log)
        reasons |= whys
    sections = {
        "name": wanted.name or task,
        "data": {"path": wanted.data, **_splits(task, log)},
        "base": _base(wanted),
        "sequence": {"item": "token", "text": texts, "feedback": column} | (_ITEMS_ONLY if column == NO_FEEDBACK else {}),
        "encoder": {"use": "auto", "text": bool(texts), **encoder},
        "tasks": [{"name": task, **about}],
        "adapter": {"kind": "lora", "rank": 8, "alpha": 16},
        "train": {"epochs": 3, "learning_rate": 0.001, "batch_tokens": 2048, **({"average": 0.995} if ranks else {})},
    }
    return Draft(sections, reasons, notes)


def _ranking(log: "Interactions", has_texts: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """What an encoder and a next-item head know of co-occurrence: neighbours where users have few events, else factors."""
    import numpy as np

    usual = float(np.median(np.diff(log.user_offsets)))
    events = f"the median user has {usual:g} events"
    if usual >= FEW_EVENTS:
        return {"factors": 64}, {"encoder.factors": f"factors from which users had which items: {events}"}
    reasons = {
        "encoder.neighbours": f"neighbours of each item, of full rank: {events}",
        "encoder.taste": "none, since there are neighbours",
    }
    if has_texts:
        reasons["encoder.whiten"] = "so that items have neighbours by text, new items too"
    return {"whiten": has_texts, "taste": 0, "neighbours": 100}, reasons


def _seen(log: "Interactions") -> tuple[str, str]:
    """Whether items of the history take part in a ranking, and why: they do where most users come back to one."""
    from genre.data.hazards import repeated_share

    share = repeated_share(log)
    if share > MOSTLY_REPEATED:
        return "kept", f"kept: {share:.0%} of users' last items are ones that they had before"
    return "masked", f"masked (or kept): {share:.0%} of users' last items are ones that they had before"


def _told_columns(log: "Interactions", wanted: Wanted) -> list[str]:
    """Columns that tell something of an event: its place in the order does not, unless it is feedback, or named."""
    from genre.data.schema import FEEDBACK

    return [name for name in log.event_columns if name != log.info.order or name in (*FEEDBACK, wanted.feedback)]


def _splits(task: str, log: "Interactions") -> dict[str, Any]:
    """The split of a task, and the other kind's as `hold_out`, so that recipes of one log can share an encoder.

    What comes next is the one kind of task of a log without feedback, and learns from all other events there.
    """
    from genre.data.schema import FEEDBACK
    from genre.data.splits import TRAIN, SplitConfig
    from genre.errors import DataError

    if task == "next_item" and not FEEDBACK.keys() & set(log.event_columns):
        return {"split": _LAST}
    own, other = (_LAST, _TEMPORAL) if task == "next_item" else (_TEMPORAL, _LAST)
    try:
        parts = [log.split(SplitConfig.model_validate(each)).part == TRAIN for each in (own, other)]
    except DataError:  # too few events for one of them; recipe check says so if it is this task's
        return {"split": own}
    enough = (parts[0] & parts[1]).sum() >= _LEAST * parts[0].sum()
    return {"split": own, "hold_out": [other]} if enough else {"split": own}


def _feedback(wanted: Wanted, log: "Interactions", columns: Sequence[str], task: str) -> str:
    """The feedback column, or `none`: the one named, or rating, click or behaviour; what comes next needs none."""
    from genre.data.schema import FEEDBACK
    from genre.recipe import NO_FEEDBACK

    if not columns and task != "next_item":
        what = "feedback column of numbers" if task == "rating" else "feedback column"
        got = ", ".join(log.event_columns) or "none"
        todo = "import it with --map rating=THEIRS, or take the task next_item, which needs none"
        raise RecipeError(f"the log has no {what}", got=got, todo=todo)
    known = (*columns, NO_FEEDBACK)
    check = _one_of(known, "feedback column")
    if wanted.feedback is not None:
        return str(check(wanted.feedback))
    needless = task == "next_item" and not FEEDBACK.keys() & set(columns)
    usual = NO_FEEDBACK if needless else _usual_column(columns)
    return str(ask(f"feedback column ({', '.join(known)})", usual, check) if len(columns) > 1 else usual)


def _usual_column(columns: Sequence[str]) -> str:
    """Rating, click or behaviour, or else the first one."""
    from genre.data.schema import FEEDBACK

    return next((name for name in FEEDBACK if name in columns), columns[0])


def _texts_of_items(wanted: Wanted, log: "Interactions") -> tuple[list[str], dict[str, str], tuple[str, ...]]:
    """The item columns to read, those named or those that hold text; the reasons; a line on every column."""
    import polars as pl

    from genre.data.item_texts import item_texts

    frame = log.catalogue.frame
    vectors = [name for name, kind in frame.schema.items() if isinstance(kind, pl.List | pl.Array) and kind.inner.is_numeric()]
    known = tuple(name for name in frame.columns if name != "item_id" and name not in vectors)
    check = _some_of(known, "item column")
    if wanted.text:
        return list(check(wanted.text)), {}, ()
    judged = item_texts(frame)
    usual = [each.name for each in judged if each.reads]
    question = f"item columns to read ({', '.join(known)})"
    chosen = list(ask(question, ", ".join(usual), lambda one: check(_parts(one)))) if known else []
    if chosen != usual or not chosen:
        return chosen, {}, tuple(f"item column {each}" for each in judged)
    why = ", ".join(f"{each.name} ({each.why.partition(',')[0]})" for each in judged[:3] if each.reads)
    more = " …" if len(usual) > 3 else ""
    return chosen, {"sequence.text": f"by what they hold: {why}{more}"}, tuple(f"item column {each}" for each in judged)


def for_texts(wanted: Wanted, texts: "Texts") -> Draft:
    """A recipe for labelled texts.

    Raises:
        InputError, RecipeError: The task, a column or a label does not fit the texts.
    """
    if wanted.task not in (None, "text"):
        raise InputError(f"task {wanted.task} reads a log", got="labelled texts", expected="text, or no task")
    if wanted.feedback is not None:
        raise InputError("--feedback is for logs", got=wanted.feedback, expected="--text and --label")
    if not texts.label_columns:
        raise RecipeError("the texts have no label column", got="none", todo="import them with --label COLUMN")
    columns = _some_of(texts.text_columns, "text column")
    usual = ", ".join(texts.text_columns)
    chosen = columns(wanted.text) if wanted.text else ask(f"text columns ({usual})", usual, lambda one: columns(_parts(one)))
    known = ", ".join(texts.label_columns)

    def check(labels: Sequence[str]) -> list[dict[str, Any]]:
        tasks: dict[str, dict[str, Any]] = {}
        if not labels:
            raise _none_named("label")
        for label in labels:
            task = _text_task(label, texts)
            if task["name"] in tasks:
                got, todo = f"{label!r} and {tasks[task['name']]['label']!r}", "write the second task into the recipe"
                raise RecipeError("two labels give tasks of one name", got=got, expected="labels of different columns", todo=todo)
            tasks[task["name"]] = task
        return list(tasks.values())

    first = texts.label_columns[0]
    tasks = check(wanted.labels) if wanted.labels else ask(f"labels ({known})", first, lambda one: check(_parts(one)))
    if wanted.base is not None:
        _layers(wanted.base)  # it is there
    base = wanted.base or "minilm"
    sections = {
        "name": wanted.name or tasks[0]["name"],
        "data": {"path": wanted.data, "split": {"kind": "group", "valid": 0.1, "test": 0.1}},
        "base": {"name": base} | ({"depth": 8} if base == "smollm2-135m" else {}),
        "sequence": {"text": chosen, "max_tokens": _max_tokens(texts, chosen), "terms": 20000},
        "tasks": tasks,
        "adapter": {"kind": "lora", "rank": 8, "alpha": 16},
        "train": {"epochs": 2, "learning_rate": 0.001, "batch_tokens": 2048, "dropout": 0.1},
    }
    return Draft(sections, {})


def _text_task(label: str, texts: "Texts") -> dict[str, Any]:
    """The task of a label: binary for a comparison or 0 and 1, classes for few numbers or words, else regression."""
    import numpy as np

    from genre.tasks import parse_label

    column, comparison, _ = parse_label(label)
    if column not in texts.label_columns:
        raise RecipeError(f"the texts have no label column {column!r}", got=", ".join(texts.label_columns))
    values = texts.labels[column]
    loss = "cross_entropy"
    if comparison is not None:
        loss = "log_loss"
    elif values.dtype != object:
        found = np.unique(values[~np.isnan(values)])
        whole = bool((found == np.floor(found)).all())
        loss = "log_loss" if set(found) <= {0.0, 1.0} else "cross_entropy" if whole and len(found) <= MOST_CLASSES else "mse"
    about = {"kind": "text", "label": label, "head": "pooled", "loss": loss, "metrics": _METRICS[loss]}
    _label_check(about, texts.labels, "text")(label)
    return {"name": _name(label), **about}


def _label_check(about: dict[str, Any], columns: dict[str, "np.ndarray"], kind: str) -> Callable[[str], str]:
    """Make a check that a label fits its columns and distinguishes at least two events or texts."""

    def check(label: str) -> str:
        import numpy as np

        from genre.recipe import Recipe

        raw = {"name": "task", **about, "kind": kind, "label": label}
        (task,) = Recipe.parse({"name": "task", "data": {"path": "data"}, "tasks": [raw]}).tasks
        labels = task.with_classes(columns).labels(columns)
        if len(np.unique(labels[~np.isnan(labels)])) < 2:
            rows = "texts" if kind == "text" else "events"
            raise RecipeError(f"label {label!r} does not distinguish the {rows}", got="one value")
        return label

    return check


def _name(label: str) -> str:
    """A task's name: its label's column in lower-case letters, digits and underscores."""
    from genre.tasks import parse_label

    name = re.sub(r"[^a-z0-9_]+", "_", parse_label(label)[0].lower())[:48]
    return name if name[0].isalpha() else f"label{name}"


def _max_tokens(texts: "Texts", columns: Sequence[str]) -> int:
    """Room for 90 % of the texts at 1.5 tokens a word, in steps of 32, from 32 to 256."""
    import numpy as np
    import polars as pl

    words = pl.Series(texts.join(columns)).str.count_matches(r"\S+").to_numpy()
    return int(np.clip(-(-1.5 * np.quantile(words, 0.9) // 32) * 32, 32, 256))


def _like(column: str, values: "np.ndarray") -> str:
    """The comparison that splits the events most evenly."""
    import numpy as np

    if values.dtype == object:
        texts = [str(value) for value in values if value is not None]
        counts = Counter(texts)
        if len(counts) > 1:
            return f"{column} == {min(counts, key=lambda value: abs(counts[value] - len(texts) / 2))!r}"
    else:
        numbers = np.sort(values[~np.isnan(values)])
        cuts, first = np.unique(numbers, return_index=True)
        if len(cuts) > 1:
            return f"{column} > {float(cuts[np.abs(first[1:] - len(numbers) / 2).argmin()]):.6g}"
    todo = "write a recipe for next_item, or import another feedback column"
    what = f"column {column!r} does not distinguish likes"
    raise RecipeError(what, got="one value in every event", expected="at least two values", todo=todo)


def _one_of(known: tuple[str, ...], what: str) -> Callable[[str], str]:
    def check(answer: str) -> str:
        if answer not in known:
            raise RecipeError(f"no such {what}", got=answer or "nothing", expected=", ".join(known))
        return answer

    return check


def _some_of(known: tuple[str, ...], what: str) -> Callable[[Sequence[str]], list[str]]:
    def check(names: Sequence[str]) -> list[str]:
        if not names and what != "item column":
            raise _none_named(what)
        return list(dict.fromkeys(_one_of(known, what)(name) for name in names))

    return check


def _none_named(what: str) -> RecipeError:
    return RecipeError(f"no {what} is named", got="nothing", expected="one or more, with commas between them")


def _parts(answer: str) -> list[str]:
    """Split an answer at its commas."""
    return [part.strip() for part in answer.split(",") if part.strip()]
