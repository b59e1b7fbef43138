"""Labelled texts to rows for a model.

Owns: the tokens of a text, those that its state is read from, truncation. Ignores: tensors, devices, training.

One review for an encoder (pooled over all of its tokens) and for a causal base (pooled at the last one):

    encoder   [CLS] soft dress ; i love it [SEP]      mean of the states of all eight tokens, or `first`: that of [CLS]
    causal    <s> soft dress ; i love it </s>         the state of </s>, which has seen all others

A row is one text, so a batch's rows are independent of each other, and one pass serves all tasks of a joint adapter.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from genre.data.dataset import KIND_NAMES, Dataset
from genre.data.interactions import Interactions
from genre.data.sequences.control import ControlTokens, batch_token_ids, describe_rule, recorded_rule
from genre.data.sequences.described import TextsLayout, check_described
from genre.data.sequences.layout import Layout, Sequence
from genre.data.sequences.rows import RowBuilder
from genre.data.sequences.windows import WindowRule
from genre.data.splits import Split
from genre.data.texts.dataset import Texts
from genre.errors import DataError, InputError, RecipeError

Pool = Literal["mean", "first", "last"]

_PLAIN = ("instruction", "max_tokens", "pool")
"""Fields of a layout that a manifest holds as they are."""


@dataclass(frozen=True)
class TextLayout:
    """A layout of a text as a row, for one tokenizer.

    Attributes:
        tokenize: Texts to token ids, without special tokens.
        text: The columns that make the text, joined in this order.
        instruction: Precedes every text.
        max_tokens: Tokens of a row, special ones included; longer texts lose their end.
        pool: The states that make the text's: their `mean`, or that of the `first` or `last` token.
        start, end: Token ids that open and close a row.
        control_tokens: The rule for control tokens in texts and instruction.
    """

    tokenize: Any
    text: tuple[str, ...]
    instruction: str
    max_tokens: int
    pool: Pool
    start: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    control_tokens: ControlTokens = "text"
    max_events = 0
    """A row has no events."""
    window: ClassVar[WindowRule] = "sliding"

    @classmethod
    def make(
        cls,
        base: Any,
        *,
        text: Rows[str],
        instruction: str,
        max_tokens: int,
        pool: Literal["auto", "mean", "first", "last"],
        control_tokens: ControlTokens = "text",
    ) -> "TextLayout":
        """Return a layout on a base's tokenizer.

        Raises:
            RecipeError: The base has no positions for rows that long, or a causal base is to be read at the first token.
        """
        if base.max_tokens is not None and max_tokens > base.max_tokens:
            expected = f"at most {base.max_tokens}"
            raise RecipeError("sequence.max_tokens is more than the base has positions for", got=max_tokens, expected=expected)
        if pool == "auto":
            pool = "mean" if base.bidirectional else "last"
        if pool == "first" and not base.bidirectional:
            raise RecipeError(
                "sequence.pool first reads nothing on a causal base", got="its first token sees no other", expected="last or mean"
            )
        tokenizer = base.tokenizer

        def tokenize(texts: list[str]) -> list[list[int]]:
            return batch_token_ids(tokenizer, texts, control_tokens)

        start, end = special_tokens(tokenizer, bidirectional=base.bidirectional)
        return cls(tokenize, tuple(text), instruction, max_tokens, pool, start, end, control_tokens)

    @classmethod
    def restore(cls, base: Any, described: Mapping[str, Any]) -> "TextLayout":
        """Return the layout that `describe` recorded, on the same base; raises as `check_described` and `make` do."""
        check_described(described, TextsLayout)
        plain = {name: described[name] for name in _PLAIN}
        return cls.make(base, text=described["text"], control_tokens=recorded_rule(described), **plain)

    def describe(self) -> dict[str, Any]:
        """Return what a manifest records: everything that decides how a text becomes tokens and a state."""
        plain = {name: getattr(self, name) for name in _PLAIN} | describe_rule(self.control_tokens)
        return {"text": list(self.text)} | plain

    def rows(self, texts: Rows[str], numbers: Rows[int] | np.ndarray) -> list[Sequence]:
        """Lay out texts.

        Args:
            texts: The texts.
            numbers: The caller's number of each.

        Raises:
            RecipeError: The instruction leaves no room for a text.
        """
        (before,) = self.tokenize([self.instruction]) if self.instruction else ([],)
        room = self.max_tokens - len(before) - len(self.start) - len(self.end)
        if room < 1:
            expected = f"fewer than sequence.max_tokens {self.max_tokens}"
            what, todo = "sequence.instruction leaves no room for a text", "shorten it, or raise max_tokens"
            raise RecipeError(what, got=f"{len(before)} tokens", expected=expected, todo=todo)
        return [
            self._row([*self.start, *before, *ids[:room], *self.end], int(number), cut=len(ids) > room)
            for ids, number in zip(self.tokenize(list(texts)), numbers, strict=True)
        ]

    def _row(self, tokens: list[int], number: int, *, cut: bool) -> Sequence:
        tokens = tokens or [0]
        count = len(tokens)
        index, span = (0, 1) if self.pool == "first" else (count - 1, count if self.pool == "mean" else 1)
        read, zero, none = (np.array([value], dtype=np.int32) for value in (index, 0, -1))
        return Sequence(
            tokens=np.array(tokens, dtype=np.int32),
            items=np.full(count, -1, dtype=np.int32),
            feedback=np.full(count, -1, dtype=np.int32),
            positions=np.arange(count, dtype=np.int32),
            masked_spans=np.zeros((count, 2), dtype=np.int32),
            event_starts=zero,
            item_reads=read,
            next_reads=read,
            item_codes=none,
            feedback_codes=zero,
            history_lengths=zero,
            events=np.array([number], dtype=np.int64),
            targets=np.ones(1, dtype=bool),
            prefix_length=count,
            cut=int(cut),
            spans=np.array([span], dtype=np.int32),
        )


def special_tokens(tokenizer: Any, *, bidirectional: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the tokens that open and close a text: an encoder's as its tokenizer puts them, a causal base's begin and end."""
    if not bidirectional:
        begin, close = tokenizer.bos_token_id, tokenizer.eos_token_id
        return (() if begin is None else (int(begin),)), (() if close is None else (int(close),))
    whole, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    first = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    return tuple(whole[:first]), tuple(whole[first + len(bare) :])


@dataclass
class TextRows:
    """Builds rows of labelled texts for one layout; the counterpart of `RowBuilder`.

    Attributes:
        data: The texts.
        layout: How a text becomes tokens.
        cut: Texts that were cut so far; each is counted once.
    """

    data: Texts
    layout: TextLayout
    cut: int = 0

    @cached_property
    def all_rows(self) -> list[Sequence]:
        """Every text laid out, in order; made once.

        Raises:
            DataError: A column is missing.
        """
        rows = self.layout.rows(self.data.join(self.layout.text), range(len(self.data)))
        self.cut = sum(row.cut for row in rows)
        return rows

    def training_rows(self, train: np.ndarray, target: np.ndarray | None = None, **_: Any) -> tuple[list[Sequence], int]:
        """Return a row per text that trains, and how many were left out: none."""
        return [self.all_rows[row] for row in np.flatnonzero(train if target is None else train & target)], 0

    def evaluation_rows(self, split: Split, part: int, **_: Any) -> list[Sequence]:
        """Return a row per text of a part."""
        return [self.all_rows[row] for row in np.flatnonzero(split.part == part)]

    def check_columns(self) -> None:
        """Check that the layout's columns hold texts.

        Raises:
            DataError: One is missing or is a label, or there are none, or no row has a word in them.
        """
        for name in self.layout.text:
            if name in self.data.label_columns:
                todo = "a text that holds a label of its own says the answer"
                expected = ", ".join(self.data.text_columns)
                raise DataError(f"sequence.text names the label {name!r}", got=name, expected=expected, todo=todo)
        if not any(self.data.join(self.layout.text)):
            got, expected = ", ".join(self.layout.text) or "no columns", ", ".join(self.data.text_columns)
            raise DataError("sequence.text names no column with words", got=got, expected=expected)


Builder: TypeAlias = RowBuilder | TextRows
"""The source of rows of a loop, a scoring pass or a gate, of either kind of data."""


def rows_of(data: Dataset, layout: Layout | TextLayout) -> Builder:
    """Return a builder of rows of some data under a layout.

    Raises:
        InputError: The layout reads the other kind of data.
    """
    if isinstance(data, Texts) and isinstance(layout, TextLayout):
        return TextRows(data, layout)
    if isinstance(data, Interactions) and isinstance(layout, Layout):
        return RowBuilder(data, layout)
    wanted = "texts.parquet" if isinstance(layout, TextLayout) else "interactions.parquet"
    raise InputError("the adapter reads other data", got=KIND_NAMES[data.kind], expected=f"a folder with {wanted}")
