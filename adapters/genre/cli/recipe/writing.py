"""A starting recipe as YAML: a line per key, with what the key means.

Owns: the form of the file, the comments. Ignores: which values a recipe gets.

    sequence:                                   # what the model reads of each event
      item: token                               # text, token (one learned token) or both
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

COLUMN = 44
"""Where comments begin, unless a line is longer."""

_SPLIT = {
    "kind": "temporal (by time), last_n (each user's last events), group, user, …",
    "n": "events of each user for validation, and as many for the test",
    "valid": "share for validation, which chooses the best epoch",
    "test": "share for the test, which is read once",
}
COMMENTS: dict[str, str] = {
    "name": "the adapter's name in the registry",
    "data": "the data set, and how it is divided",
    "data.path": "a data set folder, or the name of a packaged data set",
    "data.split": "the parts of this recipe",
    **{f"data.split.{key}": text for key, text in _SPLIT.items()},
    "data.hold_out": "also kept out of training: the other tasks' parts, so that all can share an encoder",
    **{f"data.hold_out.{key}": text for key, text in _SPLIT.items()},
    "base": "the frozen language model",
    "base.name": "a prepared base, a folder or a hub id",
    "base.depth": "only its first layers: fewer is faster; null takes all",
    "sequence": "what the model reads",
    "sequence.item": "text, token (one learned token an item) or both",
    "sequence.text": "the columns of an item's text, or of a text",
    "sequence.feedback": "the column that is read after each item; none reads items alone",
    "sequence.instruction": "text before the first event; {column} is replaced by the user's column",
    "sequence.max_tokens": "longer texts are cut",
    "sequence.terms": "n-grams that the heads read beside the text; 0 for none",
    "encoder": "makes item vectors; tasks of one data set can share one",
    "encoder.use": "auto (the registry's, or a new one), fit (a new one), none, or a reference",
    "encoder.text": "item vectors know the items' texts, so that new items have one too",
    "encoder.factors": "dimensions of factors from which users had which items; 0 for none",
    "encoder.whiten": "whiten the texts' vectors, against vectors that are all alike",
    "encoder.taste": "dimensions of the co-occurrence term of next-item heads; 0 for none",
    "encoder.neighbours": "neighbours of each item in next-item heads; 0 for none",
    "tasks": "what is learned; several tasks make a joint adapter",
    "tasks.name": "the task's name in requests and metrics",
    "tasks.kind": "feedback (of an item), next_item (a ranking of all) or text (a labelled text)",
    "tasks.label": "a column, or a comparison: rating > 3",
    "tasks.head": "how a score is made: binary, scalar, pooled, catalogue, …",
    "tasks.loss": "log_loss, mse or cross_entropy; others: docs/training.md",
    "tasks.metrics": "the first one chooses the best epoch",
    "tasks.seen": "items of the history are masked or kept in a ranking",
    "adapter": "the small trained part of the base",
    "adapter.kind": "lora, rslora or head_only",
    "adapter.rank": "higher learns more and costs more",
    "adapter.alpha": "its scale: alpha / rank",
    "train": "AdamW with early stopping",
    "train.epochs": "passes over the training events, at most",
    "train.learning_rate": "its peak, after a warm-up",
    "train.batch_tokens": "tokens of a step: less takes less memory",
    "train.average": "decay of the moving average of the weights, which is what is published; 0 for none",
    "train.dropout": "on what the heads read, against learning by heart",
}


def write(path: Path, sections: Mapping[str, Any], reasons: Mapping[str, str] | None = None) -> None:
    """Write a recipe, a line per key.

    Args:
        path: The file, which appears whole.
        sections: The recipe.
        reasons: Comments of keys, by dotted name, that are about this data set; they take the place of the usual ones.

    Raises:
        RecipeError: The schema refuses it, for example its name; nothing is written.
    """
    from genre.files import write_text
    from genre.recipe import Recipe

    Recipe.parse(sections)
    head = "# Every key, with its default: docs/recipes.md. One run may change a key: --set train.epochs=1\n"
    lines = _lines(sections, "", 0, COMMENTS | dict(reasons or {}))
    write_text(path, head + "".join(f"{line}\n" for line in lines))


def _lines(values: Mapping[str, Any], path: str, indent: int, comments: Mapping[str, str]) -> Iterator[str]:
    for key, value in values.items():
        name = f"{path}{key}"
        if isinstance(value, Mapping):
            yield _line(indent, f"{key}:", comments[name])
            yield from _lines(value, f"{name}.", indent + 2, comments)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            yield _line(indent, f"{key}:", comments[name])
            for each in value:
                first, *rest = _lines(each, f"{name}.", indent + 4, comments)
                yield from (f"{' ' * (indent + 2)}- {first.lstrip()}", *rest)
        else:
            yield _line(indent, f"{key}: {_flow(value)}", comments[name])


def _line(indent: int, text: str, comment: str) -> str:
    return f"{' ' * indent + text:<{COLUMN - 2}}  # {' '.join(comment.split())}"


def _flow(value: Any) -> str:
    import yaml

    shown = yaml.safe_dump({"it": value}, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
    return shown.strip()[len("{it: ") : -1]
