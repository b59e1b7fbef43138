"""Events to rows: token ids, soft tokens, positions, masked spans, and the tokens that tasks read.

Owns: the layout of slots and branches, the feedback vocabulary. Ignores: task names, models, files, batches.

One user who rated two items, and two candidates after them, as soft tokens (I an item, F a feedback, C a candidate):

    index      0 1 2   3 4 5 6   7 8
    content    w w w   I F I F   C C
    position   0 1 2   3 4 5 6   7 7      branches restart at the history's end
    masked     -       -         - 7      the second candidate does not see the first

A feedback task reads I (or C), a next-item task reads F (or the last w). Events of one impression are laid out as
branches too: their items see the history and themselves only, while their feedback slots see everything before them.

Without a feedback slot an event is its item alone, I I after the words. Then a next-item task reads the I before; items of one
impression are not branches, since what comes after them is read from the last one, which has to see all of them.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from genre.data.sequences.control import ControlTokens, describe_rule, recorded_rule, token_ids
from genre.data.sequences.described import LogLayout, check_described
from genre.data.sequences.drawn import DrawnItems
from genre.data.sequences.instruction import fill
from genre.data.sequences.windows import WindowRule, first_in_window
from genre.errors import DataError

MOST_KEPT, LONGEST_KEPT = 100_000, 512
"""Texts whose tokens are remembered at most, and the characters of one of them at most."""
_PLAIN = ("item", "instruction", "max_item_tokens", "max_events", "soft_feedback")
"""Fields of a layout that a manifest holds as they are."""


def _none(dtype: type = np.int32) -> Any:
    return field(default_factory=lambda: np.empty(0, dtype=dtype))


@dataclass(frozen=True)
class Sequence:
    """One row: events of one user, then branches. T tokens, E events, C candidates; no tensors.

    Attributes:
        tokens: (T,) int32 token id, 0 at a soft token.
        items: (T,) int32 catalogue code of an item's soft token, else -1.
        feedback: (T,) int32 feedback code of a feedback's soft token, else -1.
        positions: (T,) int32.
        masked_spans: (T, 2) int32: token t does not see the tokens from masked_spans[t, 0] up to masked_spans[t, 1].
        event_starts: (E,) int32, first token of each event's item slot; an event ends at the next one, or at the prefix's end.
        item_reads: (E,) int32, last token of each event's item slot: what a feedback task reads.
        next_reads: (E,) int32, last token before each event (before its impression): what a next-item task reads.
        item_codes: (E,) int32 catalogue code of each event's item, whatever its slot holds.
        feedback_codes: (E,) int32 feedback code of each event, whatever its slot holds.
        history_lengths: (E,) int32, events before each event's impression.
        events: (E,) int64 the caller's number of each event (a row of the log), -1 if it has none.
        targets: (E,) bool, the events that are supervised or scored in this row.
        prefix_length: Tokens before the first branch.
        candidates: (C,) int32 catalogue codes.
        candidate_reads: (C,) int32.
        candidate_events: (C,) int64, -1 if it has none.
        candidate_times: (C,) int32, events that come before it in time; fewer than all in transductive scoring only.
        cut: Item texts that were longer than the limit.
        spans: (E,) int32, tokens up to `item_reads` that a feedback task reads the mean of; None for that token alone.
        code_tokens: (T,) int32, the token of an item's code (`genre.data.sequences.code_branches`), else -1; None in a row that
            has none of them.
        code_starts: (E,) int32, the first token of the branch with each event's codes, which a task that generates items reads.
        code_lengths: (E,) int32, the tokens of that branch.
        drawn: For each task that compares items, those that were drawn for its events.
    """

    tokens: np.ndarray
    items: np.ndarray
    feedback: np.ndarray
    positions: np.ndarray
    masked_spans: np.ndarray
    event_starts: np.ndarray
    item_reads: np.ndarray
    next_reads: np.ndarray
    item_codes: np.ndarray
    feedback_codes: np.ndarray
    history_lengths: np.ndarray
    events: np.ndarray
    targets: np.ndarray
    prefix_length: int
    candidates: np.ndarray = _none()
    candidate_reads: np.ndarray = _none()
    candidate_events: np.ndarray = _none(np.int64)
    candidate_times: np.ndarray = _none()
    cut: int = 0
    spans: np.ndarray | None = None
    code_tokens: np.ndarray | None = None
    code_starts: np.ndarray | None = None
    code_lengths: np.ndarray | None = None
    drawn: Mapping[str, DrawnItems] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def branches(self) -> bool:
        """True if the row needs a mask beyond the causal one."""
        return bool((self.masked_spans[:, 1] > self.masked_spans[:, 0]).any())

    def after(self, tokens: int) -> "Sequence":
        """The row without its first tokens, part of the prefix; heads read its events as before.

        Indices count from the first token that is left, below 0 for what is left out; what a masked span has of that is left out.
        """
        left = slice(tokens, None)
        moved = ("event_starts", "item_reads", "next_reads", "prefix_length", "candidate_reads")
        return replace(
            self,
            tokens=self.tokens[left],
            items=self.items[left],
            feedback=self.feedback[left],
            positions=self.positions[left],
            masked_spans=np.maximum(self.masked_spans[left] - tokens, 0),
            code_tokens=None if self.code_tokens is None else self.code_tokens[left],
            code_starts=None if self.code_starts is None else self.code_starts - tokens,
            **{name: getattr(self, name) - tokens for name in moved},
        )


@dataclass(frozen=True)
class FeedbackVocabulary:
    """The values that a feedback slot can hold, as codes and words.

    Attributes:
        column: The log's feedback column.
        values: Its values in order; numbers between two values go to the nearer one. Code 0 is "missing or unknown", code
            i + 1 is `values[i]`.
    """

    column: str
    values: tuple[float, ...] | tuple[str, ...]

    @classmethod
    def fit(cls, column: str, observed: np.ndarray, *, most: int = 20) -> "FeedbackVocabulary":
        """Take every distinct value, or `most` quantiles of a numeric column that has more.

        Raises:
            DataError: The column holds no value, or more than 1,000 different texts.
        """
        if observed.dtype == object:
            texts = sorted({value for value in observed if value is not None})
            if len(texts) > 1000:
                raise DataError(f"feedback column {column!r} is free text", got=f"{len(texts)} values", expected="at most 1000")
            values: tuple[Any, ...] = tuple(texts)
        else:
            numbers = np.unique(observed[~np.isnan(observed)].astype(np.float64))
            if len(numbers) > most:
                numbers = np.unique(np.quantile(observed[~np.isnan(observed)], np.linspace(0, 1, most)))
            values = tuple(float(number) for number in numbers)
        if not values:
            what = f"feedback column {column!r} has no value in the training events"
            raise DataError(what, todo="choose another sequence.feedback")
        return cls(column, values)

    @classmethod
    def restore(cls, column: str | None, values: Rows[Any]) -> "FeedbackVocabulary | None":
        """Return what a file describes; None if it names no column."""
        return None if column is None else cls(column, tuple(values))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Encode raw values: (n,) float with NaN or object with None → (n,) int32."""
        if values.dtype == object:
            code = {value: i + 1 for i, value in enumerate(self.values)}
            return np.array([code.get(value, 0) for value in values], dtype=np.int32)
        steps = np.asarray(self.values, dtype=np.float64)
        middles = (steps[1:] + steps[:-1]) / 2
        return np.where(np.isnan(values), 0, np.searchsorted(middles, np.nan_to_num(values)) + 1).astype(np.int32)

    @property
    def size(self) -> int:
        """Number of codes, the missing one included."""
        return len(self.values) + 1

    def word(self, code: int) -> str:
        """Return the words of a text slot for a code."""
        if code == 0:
            return " ?"
        value = self.values[code - 1]
        return f" {value:g}" if isinstance(value, float) else f" {value}"


@dataclass
class Layout:
    """A layout of events as rows, for one tokenizer.

    Attributes:
        tokenize: Text to token ids, without special tokens.
        item: Item slots as `text`, `token` (soft) or `both`.
        feedback: The feedback vocabulary; its slots are soft tokens if `soft_feedback`, else words. None for events without such
            a slot.
        instruction: Token ids before the first event are made from it; `{column}` takes the user's column.
        start: Token ids that open every row (the base's begin token).
        max_item_tokens: Longer texts are cut.
        max_events: Events of one row, the one that is asked for included; longer histories lose their oldest events.
        window: The rule for how many of them (`genre.data.sequences.windows`).
        control_tokens: The rule for control tokens in titles, instructions, user columns and feedback.
    """

    tokenize: Any
    item: Literal["text", "token", "both"]
    text: tuple[str, ...]
    feedback: FeedbackVocabulary | None
    instruction: str
    start: tuple[int, ...] = ()
    max_item_tokens: int = 24
    max_events: int = 100
    soft_feedback: bool = True
    control_tokens: ControlTokens = "text"
    window: WindowRule = "sliding"
    _texts: dict[str, tuple[np.ndarray, bool]] = field(default_factory=dict, repr=False)
    _words: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    _prefixes: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def feedback_column(self) -> str | None:
        """The column that fills the feedback slots; None for events without such a slot."""
        return None if self.feedback is None else self.feedback.column

    def latest(self, count: int) -> slice:
        """Those of a history's `count` events that a row reads before the one that is asked for."""
        return slice(first_in_window(count, self.max_events, self.window), None)

    def describe(self) -> dict[str, Any]:
        """Return what a manifest records: everything that decides how an event becomes tokens."""
        values = [] if self.feedback is None else list(self.feedback.values)
        feedback = {"feedback": self.feedback_column, "values": values}
        rules = describe_rule(self.control_tokens) | ({} if self.window == "sliding" else {"window": self.window})
        plain = {name: getattr(self, name) for name in _PLAIN} | rules
        return plain | {"text": list(self.text)} | feedback

    @classmethod
    def restore(cls, tokenizer: Any, described: Mapping[str, Any]) -> "Layout":
        """Return the layout that `describe` recorded, on the same tokenizer.

        Raises:
            ManifestError: A field is of another kind than was recorded.
            DataError: The instruction cannot be read.
        """
        check_described(described, LogLayout)
        vocabulary = FeedbackVocabulary.restore(described["feedback"], described["values"])
        plain = {name: described[name] for name in _PLAIN}
        rules: Any = {"control_tokens": recorded_rule(described), "window": described.get("window", "sliding")}
        return cls.make(tokenizer, text=tuple(described["text"]), feedback=vocabulary, **rules, **plain)

    @classmethod
    def make(cls, tokenizer: Any, *, control_tokens: ControlTokens = "text", **fields: Any) -> "Layout":
        """Return a layout on a transformers tokenizer, opened by its begin token if it has one."""

        def tokenize(text: str) -> list[int]:
            return token_ids(tokenizer, text, control_tokens)

        start = () if tokenizer.bos_token_id is None else (int(tokenizer.bos_token_id),)
        return cls(tokenize=tokenize, start=start, control_tokens=control_tokens, **fields)

    def prefix(self, user: Mapping[str, Any] | None = None) -> np.ndarray:
        """Return the token ids of the instruction for one user's columns, (P,) int32.

        Raises:
            DataError: The instruction cannot be read, or names a column that users do not have.
        """
        text = fill(self.instruction, user or {})
        found = self._prefixes.get(text)
        if found is None:
            found = np.array([*self.start, *self.tokenize(text)] or [0], dtype=np.int32)
            _keep(self._prefixes, text, found)
        return found

    def item_tokens(self, text: str) -> tuple[np.ndarray, bool]:
        """Return the token ids of one item's text slot, and whether it was cut."""
        found = self._texts.get(text)  # once: another thread may clear it
        if found is None:
            ids = self.tokenize("\n" + text)
            kept = ids[: self.max_item_tokens]
            end = self.tokenize(":") if self.item == "text" else []
            found = np.array([*kept, *end], dtype=np.int32), len(kept) < len(ids)
            _keep(self._texts, text, found)
        return found

    def build(
        self,
        prefix: np.ndarray,
        items: np.ndarray,
        feedback: np.ndarray,
        *,
        texts: Rows[str] | None = None,
        groups: np.ndarray | None = None,
        events: np.ndarray | None = None,
        targets: np.ndarray | None = None,
        candidates: np.ndarray | None = None,
        candidate_events: np.ndarray | None = None,
        candidate_times: np.ndarray | None = None,
    ) -> Sequence:
        """Lay out one row.

        Args:
            prefix: (P,) token ids from `prefix`.
            items: (E,) catalogue codes in order.
            feedback: (E,) feedback codes; zeros for a layout without feedback slots.
            texts: Text of every catalogue code; needed unless items are `token`.
            groups: (E,) impression of each event, -1 for none; neighbours with the same one are siblings.
            events: (E,) the caller's number of each event.
            targets: (E,) bool, all if None.
            candidates: (C,) catalogue codes, each a branch after the last event.
            candidate_events: (C,) the caller's number of each candidate.
            candidate_times: (C,) events that come before each candidate in time, all if None.
        """
        count = len(items)
        branches = np.empty(0, dtype=np.int32) if candidates is None else np.asarray(candidates, dtype=np.int32)
        cut = 0
        item_lengths = np.ones(count + len(branches), dtype=np.int64)
        feedback_lengths = np.full(count, self.feedback is not None, dtype=np.int64)
        slots: list[np.ndarray] = []
        if self.item != "token":
            if texts is None:
                raise ValueError("text slots need texts")
            for index, code in enumerate(np.concatenate([items, branches])):
                ids, was_cut = self.item_tokens(texts[code])
                slots.append(ids)
                cut += was_cut
                item_lengths[index] = len(ids) + (self.item == "both")
        words = [] if self.soft_feedback or self.feedback is None else [self._word(int(code)) for code in feedback]
        if words:
            feedback_lengths[:] = [len(word) for word in words]
        ends = len(prefix) + np.cumsum(item_lengths[:count] + feedback_lengths)
        starts = ends - item_lengths[:count] - feedback_lengths
        shared = int(ends[-1]) if count else len(prefix)
        branch_ends = shared + np.cumsum(item_lengths[count:])
        total = int(branch_ends[-1]) if len(branches) else shared

        tokens = np.zeros(total, dtype=np.int32)
        tokens[: len(prefix)] = prefix
        item_codes = np.full(total, -1, dtype=np.int32)
        feedback_codes = np.full(total, -1, dtype=np.int32)
        slot_starts = np.concatenate([starts, branch_ends - item_lengths[count:]])
        reads = slot_starts + item_lengths - 1
        for start, ids in zip(slot_starts, slots, strict=False):
            tokens[start : start + len(ids)] = ids
        if self.item != "text":
            item_codes[reads] = np.concatenate([items, branches])
        if self.soft_feedback and self.feedback is not None:
            feedback_codes[ends - 1] = feedback
        for end, word in zip(ends, words, strict=False):
            tokens[end - len(word) : end] = word

        hide = self.feedback is not None
        positions, masked, before, lengths = _arrange(len(prefix), starts, ends, item_lengths[:count], groups, total, hide=hide)
        restart = int(positions[:shared].max() if count and groups is not None else positions[shared - 1]) + 1
        for start, end in zip(slot_starts[count:], branch_ends, strict=True):
            positions[start:end] = restart + np.arange(end - start)
            masked[start:end] = (shared, start)
        return Sequence(
            tokens=tokens,
            items=item_codes,
            feedback=feedback_codes,
            positions=positions,
            masked_spans=masked,
            event_starts=starts.astype(np.int32),
            item_reads=reads[:count].astype(np.int32),
            next_reads=before,
            item_codes=np.asarray(items, dtype=np.int32),
            feedback_codes=np.asarray(feedback, dtype=np.int32),
            history_lengths=lengths,
            events=np.full(count, -1) if events is None else np.asarray(events, dtype=np.int64),
            targets=np.ones(count, dtype=bool) if targets is None else np.asarray(targets, dtype=bool),
            prefix_length=shared,
            candidates=branches,
            candidate_reads=reads[count:].astype(np.int32),
            candidate_events=_filled(candidate_events, len(branches), -1).astype(np.int64),
            candidate_times=_filled(candidate_times, len(branches), count).astype(np.int32),
            cut=cut,
        )

    def _word(self, code: int) -> np.ndarray:
        assert self.feedback is not None
        if code not in self._words:
            self._words[code] = np.array(self.tokenize(self.feedback.word(code)), dtype=np.int32)
        return self._words[code]


def _keep(memo: dict[str, Any], text: str, found: Any) -> None:
    """Remember the tokens of a text, unless it is long: a service sees new titles for ever."""
    if len(text) <= LONGEST_KEPT:
        if len(memo) > MOST_KEPT:
            memo.clear()
        memo[text] = found


def _filled(values: np.ndarray | None, count: int, filling: int) -> np.ndarray:
    return np.full(count, filling) if values is None else np.asarray(values)


def _arrange(
    prefix: int,
    starts: np.ndarray,
    ends: np.ndarray,
    item_lengths: np.ndarray,
    groups: np.ndarray | None,
    total: int,
    *,
    hide: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return positions, masked spans, and the read and number of events before each event.

    With `hide`, siblings are laid out side by side, and their items do not see each other.
    """
    positions = np.arange(total, dtype=np.int32)
    masked = np.zeros((total, 2), dtype=np.int32)
    before = (starts - 1).astype(np.int32)
    lengths = np.arange(len(starts), dtype=np.int32)
    if groups is None or len(starts) < 2:
        return positions, masked, before, lengths
    group = np.asarray(groups)
    last, until = {int(number): event for event, number in enumerate(group)}, -1
    sibling = np.zeros(len(group), dtype=bool)  # impressions that interleave share one span, so that no sibling is seen
    for event, number in enumerate(group):
        sibling[event] = event <= until
        until = max(until, last[int(number)]) if number >= 0 else until
    if not sibling.any():
        return positions, masked, before, lengths
    restart, first, earlier, longest = prefix, 0, 0, 0
    for event, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if not sibling[event]:
            restart, first, earlier, longest = restart + longest, int(start), event, 0
        if hide:
            positions[start:end] = restart + np.arange(end - start)
            longest = max(longest, int(end - start))
            masked[start : start + item_lengths[event]] = (first, start)
        before[event], lengths[event] = first - 1, earlier
    return positions, masked, before, lengths
