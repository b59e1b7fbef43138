"""What one row will look like to the model, in words.

Owns: the picture of a row of a log and of a labelled text. Ignores: commands, weights.

    one training row: user 196, 39 events, 88 tokens
        "<|endoftext|>Items and feedback of one user, in order:"    → next_item = 242 Kolya (1996)
     1  ‹item 242 Kolya (1996)›    → like = 0
        ‹rating 3›    → next_item = 393 Mrs. Doubtfire (1993)
     …  38 more events

    one training row: text 2 (group 1077), 112 tokens of at most 128
        "[CLS] some major design flaws ; i had such high hopes … [SEP]"
        the mean of all tokens' states, and up to 20,000 counted terms    → recommended = 0, rating = 3
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
"""Events of a row that are shown."""

LOOKED_AT = 2000
"""Texts that are tokenized to say how many are cut."""


def picture_of_events(recipe: "Recipe", log: "Interactions", usable: np.ndarray, face: "BaseDescription") -> list[str]:
    """The first training row of a log as lines: its slots in order, and what each task reads where.

    Raises:
        DataError: No user has enough training events, or the feedback column fits no vocabulary.
    """
    from genre.data.sequences.layout import FeedbackVocabulary, Layout
    from genre.data.sequences.rows import RowBuilder
    from genre.data.sequences.windows import training_windows
    from genre.errors import DataError
    from genre.training.assembly import feedback_column, needs_encoder

    column, sequence = feedback_column(recipe, log), recipe.sequence
    layout = Layout.make(
        face.tokenizer, item=sequence.item, text=sequence.text,
        feedback=FeedbackVocabulary.fit(column, log.column(column)[usable]), instruction=sequence.instruction,
        max_item_tokens=sequence.max_item_tokens, max_events=recipe.data.max_events, soft_feedback=needs_encoder(recipe),
    )  # fmt: skip
    builder = RowBuilder(log, layout)
    windows, _ = training_windows(log, usable, max_events=recipe.data.max_events, min_events=recipe.data.min_events)
    if not windows:
        raise DataError("no user has enough training events", expected=f"data.min_events {recipe.data.min_events} or more")
    window = next((each for each in windows if len(each.events) > EVENTS), windows[0])
    row = builder.row(window)
    named = _Named(builder)
    said = _what_is_read(recipe, builder, row, named)
    lines = [f"one training row: user {log.user_ids[window.user]}, {len(window.events)} events, {len(row)} tokens"]
    start = int(row.event_starts[0])
    lines.append(f"    {_content(named, face, row, 0, start)}{said.get(start - 1, '')}")
    for event in range(min(EVENTS, len(row.events))):
        read = int(row.item_reads[event])
        end = int(row.event_starts[event + 1]) if event + 1 < len(row.event_starts) else row.prefix_length
        alone = "" if row.masked_spans[read, 0] == row.masked_spans[read, 1] else "    (its siblings stay hidden)"
        lines.append(f"{event + 1:2}  {_content(named, face, row, start, read + 1)}{said.get(read, '')}{alone}")
        lines.append(f"    {_content(named, face, row, read + 1, end)}{said.get(end - 1, '')}")
        start = end
    more = len(row.events) - EVENTS
    return lines + ([f" …  {more:,} more event{'s' * (more > 1)}"] if more > 0 else [])


class _Named:
    """Items and feedback of a log, by their names."""

    def __init__(self, builder: "RowBuilder") -> None:
        self.ids, self.titles = builder.data.catalogue.item_ids, builder.data.catalogue.titles()
        self.vocabulary = builder.layout.feedback

    def item(self, code: int) -> str:
        """Its id and its title."""
        return self.ids[code] if self.titles[code] in ("", self.ids[code]) else f"{self.ids[code]} {self.titles[code]}"

    def feedback(self, code: int) -> str:
        """Its column and its value."""
        value: Any = self.vocabulary.values[code - 1] if code else "unknown"
        return f"{self.vocabulary.column} {value if isinstance(value, str) else f'{value:g}'}"


def _content(named: _Named, face: "BaseDescription", row: "Sequence", start: int, stop: int) -> str:
    """Tokens of a row from `start` up to `stop`: words in quotes, soft tokens in ‹›."""
    parts: list[str] = []
    words: list[int] = []
    for place in range(start, stop):
        item, code = int(row.items[place]), int(row.feedback[place])
        if item < 0 and code < 0:
            words.append(int(row.tokens[place]))
            continue
        parts += _quoted(face, words)
        words = []
        parts.append(f"‹item {named.item(item)}›" if item >= 0 else f"‹{named.feedback(code)}›")
    return " ".join(parts + _quoted(face, words))


def _quoted(face: "BaseDescription", words: list[int]) -> list[str]:
    return [json.dumps(face.tokenizer.decode(words), ensure_ascii=False)] if words else []


def _what_is_read(recipe: "Recipe", builder: "RowBuilder", row: "Sequence", named: _Named) -> dict[int, str]:
    """For each token that a task reads, the tasks and the labels that they are to give there."""
    found: dict[int, list[str]] = {}
    for name, (slot, labels) in builder.data.supervise(list(recipe.tasks)).items():
        places = row.item_reads if slot == "item" else row.next_reads
        for place, event in zip(places[:EVENTS].tolist(), row.events[:EVENTS].tolist(), strict=True):
            label = labels[event]
            if slot == "feedback":
                shown = named.item(int(label)) if label >= 0 else "nothing"
            else:
                shown = "nothing" if label != label or (labels.dtype.kind != "f" and label < 0) else f"{label:g}"
            found.setdefault(place, []).append(f"{name} = {shown}")
    return {place: f"    → {', '.join(dict.fromkeys(said))}" for place, said in found.items()}


def picture_of_text(recipe: "Recipe", builder: "TextRows", usable: np.ndarray, face: "BaseDescription") -> list[str]:
    """The first training text as lines: its tokens, what is read of them, its labels; then how many texts are cut."""
    from genre.errors import DataError

    texts, layout = builder.data, builder.layout
    places = np.flatnonzero(usable)[:LOOKED_AT]
    joined = texts.join(layout.text)
    rows = layout.rows([joined[place] for place in places], places)
    row, place = next(((row, place) for row, place in zip(rows, places, strict=True) if joined[place]), (rows[0], places[0]))
    if not joined[place]:
        raise DataError("the training texts have no words", got=", ".join(layout.text), expected="columns with words")
    labels = []
    for task in recipe.tasks:
        label = texts.labels_of(task)[place]
        missing = label != label or (task.loss == "cross_entropy" and label < 0)
        value: Any = task.classes[int(label)] if task.classes and not missing else label
        labels.append(f"{task.name} = {'nothing' if missing else value if isinstance(value, str) else f'{value:g}'}")
    states = {"mean": "the mean of all tokens' states", "first": "the first token's state", "last": "the last token's state"}
    terms = f", and at most {recipe.sequence.terms:,} counted terms" if recipe.sequence.terms else ""
    cut = sum(each.cut for each in rows)
    return [
        f"one training row: text {texts.text_ids[place]} (group {texts.frame['group_id'][int(place)]}), {len(row)} tokens of "
        f"at most {layout.max_tokens}",
        f"    {_quoted(face, row.tokens.tolist())[0]}",
        f"    {states[layout.pool]}{terms}    → {', '.join(labels)}",
        f"{cut:,} of the first {len(rows):,} training texts are longer than sequence.max_tokens and lose their end",
    ]
