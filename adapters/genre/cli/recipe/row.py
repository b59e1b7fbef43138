"""One row in words, as the model sees it.

Owns: the picture of a row of a log and of a labelled text. Ignores: commands, weights.

    one training row: user 196, 39 events, 88 tokens
        "<|endoftext|>Items and feedback of one user, in order:"    → next_item = 242 Kolya (1996)
     1  ‹item 242 Kolya (1996)›    → like = 0
        ‹rating 3›    → next_item = 393 Mrs. Doubtfire (1993)
     …  38 more events

    one training row: text 2 (group 1077), 112 tokens of at most 128
        "[CLS] some major design flaws ; i had such high hopes … [SEP]"
        the mean of all tokens' states, and up to 20,000 TF-IDF n-grams    → recommended = 0, rating = 3
"""

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from genre.data.interactions import Interactions
    from genre.data.sequences.layout import Sequence
    from genre.data.sequences.rows import RowBuilder
    from genre.data.sequences.text_rows import TextRows
    from genre.modules.base.source import BaseDescription
    from genre.recipe import Recipe

EVENTS = 3
"""The number of events shown."""

LOOKED_AT = 2000
"""The number of texts tokenized to count those that are cut."""


def picture_of_events(recipe: "Recipe", log: "Interactions", usable: np.ndarray, base: "BaseDescription") -> list[str]:
    """Describe the first training row of a log in lines: its slots in order, and the targets of each task.

    Raises:
        DataError: No user has enough training events, or the feedback column fits no vocabulary.
    """
    from genre.data.sequences.layout import Layout
    from genre.data.sequences.rows import RowBuilder
    from genre.data.sequences.windows import training_windows
    from genre.errors import DataError
    from genre.training.assembly import feedback_column, fit_vocabulary, needs_encoder

    sequence = recipe.sequence
    layout = Layout.make(
        base.tokenizer,
        item=sequence.item,
        text=sequence.text,
        feedback=fit_vocabulary(feedback_column(recipe, log), log, usable),
        instruction=sequence.instruction,
        max_item_tokens=sequence.max_item_tokens,
        max_events=recipe.data.max_events,
        soft_feedback=needs_encoder(recipe),
        control_tokens=sequence.control_tokens,
        window=sequence.window,
    )
    builder = RowBuilder(log, layout)
    limits: Any = {"max_events": recipe.data.max_events, "min_events": recipe.data.min_events, "rule": sequence.window}
    windows, _ = training_windows(log, usable, **limits)
    if not windows:
        raise DataError("no user has enough training events", expected=f"data.min_events {recipe.data.min_events} or more")
    window = next((each for each in windows if len(each.events) > EVENTS), windows[0])
    row = builder.row(window)
    named = _Named(builder)
    targets = _targets(recipe, builder, row, named)
    lines = [f"one training row: user {log.user_ids[window.user]}, {len(window.events)} events, {len(row)} tokens"]
    start = int(row.event_starts[0])
    lines.append(f"    {_content(named, base, row, 0, start)}{targets.get(start - 1, '')}")
    for event in range(min(EVENTS, len(row.events))):
        read = int(row.item_reads[event])
        end = int(row.event_starts[event + 1]) if event + 1 < len(row.event_starts) else row.prefix_length
        alone = "" if row.masked_spans[read, 0] == row.masked_spans[read, 1] else "    (its siblings stay hidden)"
        lines.append(f"{event + 1:2}  {_content(named, base, row, start, read + 1)}{targets.get(read, '')}{alone}")
        if end > read + 1:
            lines.append(f"    {_content(named, base, row, read + 1, end)}{targets.get(end - 1, '')}")
        start = end
    more = len(row.events) - EVENTS
    return lines + ([f" …  {more:,} more event{'s' * (more > 1)}"] if more > 0 else [])


class _Named:
    """Items and feedback of a log, by their names."""

    def __init__(self, builder: "RowBuilder") -> None:
        self.ids = builder.data.catalogue.item_ids
        self.titles = builder.data.catalogue.titles()
        self.vocabulary = builder.layout.feedback

    def item(self, code: int) -> str:
        """Its id and its title."""
        return self.ids[code] if self.titles[code] in ("", self.ids[code]) else f"{self.ids[code]} {self.titles[code]}"

    def feedback(self, code: int) -> str:
        """Its column and its value."""
        assert self.vocabulary is not None
        value: Any = self.vocabulary.values[code - 1] if code else "unknown"
        return f"{self.vocabulary.column} {value if isinstance(value, str) else f'{value:g}'}"


def _content(named: _Named, base: "BaseDescription", row: "Sequence", start: int, stop: int) -> str:
    """Tokens of a row from `start` up to `stop`: words in quotes, soft tokens in ‹›."""
    parts: list[str] = []
    words: list[int] = []
    for position in range(start, stop):
        item, code = int(row.items[position]), int(row.feedback[position])
        if item < 0 and code < 0:
            words.append(int(row.tokens[position]))
            continue
        parts += _quoted(base, words)
        words = []
        parts.append(f"‹item {named.item(item)}›" if item >= 0 else f"‹{named.feedback(code)}›")
    return " ".join(parts + _quoted(base, words))


def _quoted(base: "BaseDescription", words: list[int]) -> list[str]:
    return [json.dumps(base.tokenizer.decode(words), ensure_ascii=False)] if words else []


def _targets(recipe: "Recipe", builder: "RowBuilder", row: "Sequence", named: _Named) -> dict[int, str]:
    """For each token position that a task reads, the tasks with their targets there."""
    found: dict[int, list[str]] = {}
    for name, (slot, labels) in builder.data.supervise(list(recipe.tasks)).items():
        positions = row.item_reads if slot == "item" else row.next_reads
        for position, event in zip(positions[:EVENTS].tolist(), row.events[:EVENTS].tolist(), strict=True):
            label = labels[event]
            if slot == "feedback":
                shown = named.item(int(label)) if label >= 0 else "nothing"
            else:
                shown = "nothing" if label != label or (labels.dtype.kind != "f" and label < 0) else f"{label:g}"
            found.setdefault(position, []).append(f"{name} = {shown}")
    return {position: f"    → {', '.join(dict.fromkeys(targets))}" for position, targets in found.items()}


def picture_of_text(recipe: "Recipe", builder: "TextRows", usable: np.ndarray, base: "BaseDescription") -> list[str]:
    """Describe the first training text in lines: its tokens, the states that are read, its labels; then count the cut texts."""
    from genre.errors import DataError

    texts, layout = builder.data, builder.layout
    indices = np.flatnonzero(usable)[:LOOKED_AT]
    joined = texts.join(layout.text)
    rows = layout.rows([joined[index] for index in indices], indices)
    pairs = list(zip(rows, indices, strict=True))
    row, index = next(((row, index) for row, index in pairs if joined[index]), pairs[0])
    if not joined[index]:
        raise DataError("the training texts have no words", got=", ".join(layout.text), expected="columns with words")
    labels = []
    for task in recipe.tasks:
        label = texts.labels_of(task)[index]
        missing = label != label or (task.loss == "cross_entropy" and label < 0)
        value: Any = task.classes[int(label)] if task.classes and not missing else label
        labels.append(f"{task.name} = {'nothing' if missing else value if isinstance(value, str) else f'{value:g}'}")
    states = {"mean": "the mean of all tokens' states", "first": "the first token's state", "last": "the last token's state"}
    terms = f", and at most {recipe.sequence.terms:,} counted terms" if recipe.sequence.terms else ""
    cut = sum(each.cut for each in rows)
    return [
        f"one training row: text {texts.text_ids[index]} (group {texts.frame['group_id'][int(index)]}), {len(row)} tokens of "
        f"at most {layout.max_tokens}",
        f"    {_quoted(base, row.tokens.tolist())[0]}",
        f"    {states[layout.pool]}{terms}    → {', '.join(labels)}",
        f"{cut:,} of the first {len(rows):,} training texts are longer than sequence.max_tokens and lose their end",
    ]
