"""Events to rows: token ids, soft-token places, positions, what may see what, and where tasks read.

Owns: the layout of slots, feedback vocabulary, branches, batches by token budget. Ignores: task names, models, files.

One user who rated two items, and two candidates after them, as soft tokens (I an item, F a feedback, C a candidate):

    index      0 1 2   3 4 5 6   7 8
    content    w w w   I F I F   C C
    position   0 1 2   3 4 5 6   7 7      branches restart at the history's end
    hides      -       -         - 7      the second candidate does not see the first

A feedback task reads I (or C), a next-item task reads F (or the last w). Events of one impression are laid out as
branches too: their items see the history and themselves only, while their feedback slots see everything before them.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from genre.errors import DataError

Slot = Literal["item", "feedback"]


@dataclass(frozen=True)
class FeedbackVocabulary:
    """Which values a feedback slot can hold.

    Attributes:
        column: The log's feedback column.
        values: Its values in order; numbers between two values go to the nearer one. Code 0 is "missing or unknown", code
            i + 1 is `values[i]`.
    """

    column: str
    values: tuple[float, ...] | tuple[str, ...]

    @classmethod
    def fit(cls, column: str, observed: np.ndarray, *, most: int = 20) -> "FeedbackVocabulary":
        """Every distinct value, or `most` quantiles of a numeric column that has more.

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
            raise DataError(
                f"feedback column {column!r} has no value in the training events",
                todo="choose another sequence.feedback",
            )
        return cls(column, values)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Codes of raw values: (n,) float with NaN or object with None → (n,) int32."""
        if values.dtype == object:
            code = {value: i + 1 for i, value in enumerate(self.values)}
            return np.array([code.get(value, 0) for value in values], dtype=np.int32)
        known = np.asarray(self.values, dtype=np.float64)
        middles = (known[1:] + known[:-1]) / 2
        return np.where(np.isnan(values), 0, np.searchsorted(middles, np.nan_to_num(values)) + 1).astype(np.int32)

    @property
    def size(self) -> int:
        """Number of codes, the missing one included."""
        return len(self.values) + 1

    def word(self, code: int) -> str:
        """What a text slot says for a code."""
        if code == 0:
            return " ?"
        value = self.values[code - 1]
        return f" {value:g}" if isinstance(value, float) else f" {value}"


@dataclass(frozen=True)
class Sequence:
    """One row: events of one user, then branches. T tokens, E events, C candidates; no tensors.

    Attributes:
        tokens: (T,) int32 token id, 0 where a soft token stands.
        items: (T,) int32 catalogue code where an item's soft token stands, else -1.
        feedback: (T,) int32 feedback code where a feedback's soft token stands, else -1.
        positions: (T,) int32.
        hide: (T, 2) int32: token t does not see the tokens from hide[t, 0] up to, not including, hide[t, 1].
        begins: (E,) int32, first token of each event's item slot; an event ends where the next one begins, or the trunk does.
        item_reads: (E,) int32, last token of each event's item slot: what a feedback task reads.
        next_reads: (E,) int32, last token before each event (before its impression): what a next-item task reads.
        candidate_reads: (C,) int32.
        codes: (E,) int32 catalogue code of each event's item, whatever its slot holds.
        given: (E,) int32 feedback code of each event, whatever its slot holds.
        seen: (E,) int32 how many events lie before each event's impression.
        events: (E,) int64 the caller's number of each event (a row of the log), -1 if it has none.
        targets: (E,) bool, whether the event is supervised or scored in this row.
        candidates: (C,) int32 catalogue codes.
        candidate_events: (C,) int64, -1 if it has none.
        candidate_stands: (C,) int32, how many of the events come before it in time; fewer than all in transductive scoring only.
        trunk: Tokens before the first branch.
        cut: Item texts that were longer than the limit.
        spans: (E,) int32, how many tokens up to `item_reads` a feedback task reads the mean of; None for that token alone.
    """

    tokens: np.ndarray
    items: np.ndarray
    feedback: np.ndarray
    positions: np.ndarray
    hide: np.ndarray
    begins: np.ndarray
    item_reads: np.ndarray
    next_reads: np.ndarray
    candidate_reads: np.ndarray
    codes: np.ndarray
    given: np.ndarray
    seen: np.ndarray
    events: np.ndarray
    targets: np.ndarray
    candidates: np.ndarray
    candidate_events: np.ndarray
    candidate_stands: np.ndarray
    trunk: int
    cut: int = 0
    spans: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def branches(self) -> bool:
        """Whether a mask is needed beyond the causal one."""
        return bool((self.hide[:, 1] > self.hide[:, 0]).any())


@dataclass
class Layout:
    """How events become rows, for one tokenizer.

    Attributes:
        tokenize: Text to token ids, without special tokens.
        item: Item slots as `text`, `token` (soft) or `both`.
        feedback: The feedback vocabulary; its slots are soft tokens if `soft_feedback`, else words.
        instruction: Token ids before the first event are made from it; `{column}` takes the user's column.
        start: Token ids that open every row (the base's begin token).
        max_item_tokens: Longer texts are cut.
        max_events: Events of one row, the one that is asked for included; longer histories lose their oldest events.
    """

    tokenize: Any
    item: Literal["text", "token", "both"]
    text: tuple[str, ...]
    feedback: FeedbackVocabulary
    instruction: str
    start: tuple[int, ...] = ()
    max_item_tokens: int = 24
    max_events: int = 100
    soft_feedback: bool = True
    _texts: dict[str, tuple[np.ndarray, bool]] = field(default_factory=dict, repr=False)
    _words: dict[int, np.ndarray] = field(default_factory=dict, repr=False)
    _prefixes: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def describe(self) -> dict[str, Any]:
        """What a manifest records: everything that decides how an event becomes tokens."""
        return {
            "item": self.item, "text": list(self.text), "feedback": self.feedback.column,
            "values": list(self.feedback.values), "instruction": self.instruction,
            "max_item_tokens": self.max_item_tokens, "max_events": self.max_events,
            "soft_feedback": self.soft_feedback,
        }  # fmt: skip

    @classmethod
    def restore(cls, tokenizer: Any, described: Mapping[str, Any]) -> "Layout":
        """The layout that `describe` recorded, on the same tokenizer."""
        vocabulary = FeedbackVocabulary(described["feedback"], tuple(described["values"]))
        return cls.make(
            tokenizer, item=described["item"], text=tuple(described["text"]), feedback=vocabulary,
            instruction=described["instruction"], max_item_tokens=described["max_item_tokens"],
            max_events=described["max_events"], soft_feedback=described["soft_feedback"],
        )  # fmt: skip

    @classmethod
    def make(cls, tokenizer: Any, **fields: Any) -> "Layout":
        """A layout on a transformers tokenizer, opened by its begin token if it has one."""

        def tokenize(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False)["input_ids"]

        start = () if tokenizer.bos_token_id is None else (int(tokenizer.bos_token_id),)
        return cls(tokenize=tokenize, start=start, **fields)

    def prefix(self, user: Mapping[str, Any] | None = None) -> np.ndarray:
        """Token ids of the instruction for one user's columns, (P,) int32.

        Raises:
            DataError: The instruction names a column that users do not have.
        """
        known = {key: "unknown" if value is None else value for key, value in (user or {}).items()}
        try:
            text = self.instruction.format(**known)
        except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
            raise DataError(
                f"the instruction needs the user column {error}",
                got=", ".join(sorted(known)) or "no user columns",
                todo="change sequence.instruction or give users.parquet that column",
            ) from None
        if text not in self._prefixes:
            if len(self._prefixes) > 100_000:
                self._prefixes.clear()
            self._prefixes[text] = np.array([*self.start, *self.tokenize(text)] or [0], dtype=np.int32)
        return self._prefixes[text]

    def item_tokens(self, text: str) -> tuple[np.ndarray, bool]:
        """Token ids of one item's text slot and whether it was cut."""
        if text not in self._texts:
            if len(self._texts) > 100_000:  # a service sees new titles for ever
                self._texts.clear()
            ids = self.tokenize("\n" + text)
            kept = ids[: self.max_item_tokens]
            end = self.tokenize(":") if self.item == "text" else []
            self._texts[text] = (np.array([*kept, *end], dtype=np.int32), len(kept) < len(ids))
        return self._texts[text]

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
        candidate_stands: np.ndarray | None = None,
    ) -> Sequence:
        """Lay out one row.

        Args:
            prefix: (P,) token ids from `prefix`.
            items: (E,) catalogue codes in order.
            feedback: (E,) feedback codes.
            texts: Text of every catalogue code; needed unless items are `token`.
            groups: (E,) impression of each event, -1 for none; neighbours with the same one are siblings.
            events: (E,) the caller's number of each event.
            targets: (E,) bool, all if None.
            candidates: (C,) catalogue codes, each a branch after the last event.
            candidate_events: (C,) the caller's number of each candidate.
            candidate_stands: (C,) how many of the events come before each candidate in time, all if None.
        """
        count = len(items)
        branches = np.empty(0, dtype=np.int32) if candidates is None else np.asarray(candidates, dtype=np.int32)
        cut = 0
        item_lengths = np.ones(count + len(branches), dtype=np.int64)
        feedback_lengths = np.ones(count, dtype=np.int64)
        slots: list[np.ndarray] = []
        if self.item != "token":
            if texts is None:
                raise ValueError("text slots need texts")
            for place, code in enumerate(np.concatenate([items, branches])):
                ids, was_cut = self.item_tokens(texts[code])
                slots.append(ids)
                cut += was_cut
                item_lengths[place] = len(ids) + (self.item == "both")
        words = [] if self.soft_feedback else [self._word(int(code)) for code in feedback]
        if words:
            feedback_lengths[:] = [len(word) for word in words]
        ends = len(prefix) + np.cumsum(item_lengths[:count] + feedback_lengths)
        begins = ends - item_lengths[:count] - feedback_lengths
        trunk = int(ends[-1]) if count else len(prefix)
        branch_ends = trunk + np.cumsum(item_lengths[count:])
        total = int(branch_ends[-1]) if len(branches) else trunk

        tokens = np.zeros(total, dtype=np.int32)
        tokens[: len(prefix)] = prefix
        item_codes = np.full(total, -1, dtype=np.int32)
        feedback_codes = np.full(total, -1, dtype=np.int32)
        starts = np.concatenate([begins, branch_ends - item_lengths[count:]])
        reads = starts + item_lengths - 1
        for start, ids in zip(starts, slots, strict=False):
            tokens[start : start + len(ids)] = ids
        if self.item != "text":
            item_codes[reads] = np.concatenate([items, branches])
        if self.soft_feedback:
            feedback_codes[ends - 1] = feedback
        for end, word in zip(ends, words, strict=False):
            tokens[end - len(word) : end] = word

        positions, hide, before, seen = _arrange(len(prefix), begins, ends, item_lengths[:count], groups, total)
        here = int(positions[trunk - 1]) + 1
        if count and groups is not None:
            here = int(positions[:trunk].max()) + 1
        for start, end in zip(starts[count:], branch_ends, strict=True):
            positions[start:end] = here + np.arange(end - start)
            hide[start:end] = (trunk, start)
        asked = np.full(len(branches), -1) if candidate_events is None else candidate_events
        stands = np.full(len(branches), count) if candidate_stands is None else candidate_stands
        return Sequence(
            tokens=tokens, items=item_codes, feedback=feedback_codes, positions=positions, hide=hide,
            begins=begins.astype(np.int32), item_reads=reads[:count].astype(np.int32), next_reads=before,
            candidate_reads=reads[count:].astype(np.int32), codes=np.asarray(items, dtype=np.int32),
            given=np.asarray(feedback, dtype=np.int32), seen=seen, candidates=branches,
            events=np.full(count, -1) if events is None else np.asarray(events, dtype=np.int64),
            targets=np.ones(count, dtype=bool) if targets is None else np.asarray(targets, dtype=bool),
            candidate_events=np.asarray(asked, dtype=np.int64), candidate_stands=np.asarray(stands, dtype=np.int32),
            trunk=trunk, cut=cut,
        )  # fmt: skip

    def _word(self, code: int) -> np.ndarray:
        if code not in self._words:
            self._words[code] = np.array(self.tokenize(self.feedback.word(code)), dtype=np.int32)
        return self._words[code]


def _arrange(
    prefix: int, begins: np.ndarray, ends: np.ndarray, item_lengths: np.ndarray, groups: np.ndarray | None, total: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Positions, hidden spans, the read and the number of events before each event, siblings of an impression side by side."""
    positions = np.arange(total, dtype=np.int32)
    hide = np.zeros((total, 2), dtype=np.int32)
    before = (begins - 1).astype(np.int32)
    seen = np.arange(len(begins), dtype=np.int32)
    if groups is None or len(begins) < 2:
        return positions, hide, before, seen
    group = np.asarray(groups)
    last, until = {int(number): event for event, number in enumerate(group)}, -1
    same = np.zeros(len(group), dtype=bool)  # impressions that interleave share one span, so that no sibling is seen
    for event, number in enumerate(group):
        same[event] = event <= until
        until = max(until, last[int(number)]) if number >= 0 else until
    if not same.any():
        return positions, hide, before, seen
    here, first, earlier, longest = prefix, 0, 0, 0
    for event, (start, end) in enumerate(zip(begins, ends, strict=True)):
        if not same[event]:
            here, first, earlier, longest = here + longest, int(start), event, 0
        positions[start:end] = here + np.arange(end - start)
        longest = max(longest, int(end - start))
        hide[start : start + item_lengths[event]] = (first, start)
        before[event], seen[event] = first - 1, earlier
    return positions, hide, before, seen


@dataclass(frozen=True)
class Reads:
    """Where one task reads a batch, n targets.

    Attributes:
        rows: (n,) int64 row of the batch.
        places: (n,) int64 token of the row.
        seen: (n,) int64 events of the row that the target may see.
        stands: (n,) int64, how many of them come before it in time.
        items: (n,) int64 item code of the target.
        labels: (n,) float32 or int64.
        events: (n,) int64 the caller's numbers.
        spans: (n,) int64, of how many tokens up to `places` the mean is read; None for that token alone.
    """

    rows: Tensor
    places: Tensor
    seen: Tensor
    stands: Tensor
    items: Tensor
    labels: Tensor
    events: Tensor
    spans: Tensor | None = None

    def to(self, device: torch.device) -> "Reads":
        """The same on another device (events stay)."""
        return Reads(
            self.rows.to(device),
            self.places.to(device),
            self.seen.to(device),
            self.stands.to(device),
            self.items.to(device),
            self.labels.to(device),
            self.events,
            None if self.spans is None else self.spans.to(device),
        )

    def of(self, hidden: Tensor) -> Tensor:
        """(n, D) states to read of (B, T, D) hidden states."""
        if self.spans is None:
            return hidden[self.rows, self.places]
        return span_means(hidden[self.rows], self.places, self.spans)


@dataclass(frozen=True)
class Batch:
    """B rows of at most T tokens, right-padded; a lane per row.

    Attributes:
        tokens: (B, T) int64.
        items, feedback: (B, T) int64 codes, -1 where there is none.
        positions: (B, T) int64, or None where every row simply counts up.
        mask: (B, 1, T, T) bool, or None for plain causal attention.
        lanes: (B,) int64.
        history: (B, E) int64 item codes of the events, -1 where a row has fewer.
        given: (B, E) int64 their feedback codes, 0 there.
        reads: What each task reads.
        used: Tokens that are no padding.
        lengths: (B,) int64, the same of each row.
    """

    tokens: Tensor
    items: Tensor
    feedback: Tensor
    positions: Tensor | None
    mask: Tensor | None
    lanes: Tensor
    history: Tensor
    given: Tensor
    reads: dict[str, Reads]
    used: int
    lengths: Tensor

    def to(self, device: torch.device | str) -> "Batch":
        """The same on another device."""
        place = torch.device(device)

        def move(tensor: Tensor | None) -> Any:
            return None if tensor is None else tensor.to(place)

        return Batch(
            move(self.tokens), move(self.items), move(self.feedback), move(self.positions), move(self.mask),
            move(self.lanes), move(self.history), move(self.given),
            {name: reads.to(place) for name, reads in self.reads.items()}, self.used, move(self.lengths),
        )  # fmt: skip


def collate(rows: Rows[Sequence], supervise: Mapping[str, tuple[Slot, np.ndarray]], lanes: Rows[int] | None = None) -> Batch:
    """Pad rows to one batch and gather what each task reads.

    Args:
        rows: At least one sequence.
        supervise: For each task, its slot and its label per event number: (n,) float with NaN where there is none, or
            int (item codes; -1 where there is none).
        lanes: A lane per row, 0 if None.
    """
    longest = max(len(row) for row in rows)
    shape = (len(rows), longest)
    tokens, items, feedback = np.zeros(shape, np.int64), np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
    history = np.full((len(rows), max(len(row.codes) for row in rows)), -1, np.int64)
    given = np.zeros_like(history)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = row.tokens
        items[place, : len(row)] = row.items
        feedback[place, : len(row)] = row.feedback
        history[place, : len(row.codes)], given[place, : len(row.codes)] = row.codes, row.given
    positions = mask = None
    if any(row.branches for row in rows):
        positions, mask = _masked(rows, longest)
    return Batch(
        torch.from_numpy(tokens), torch.from_numpy(items), torch.from_numpy(feedback), positions, mask,
        torch.as_tensor(list(lanes) if lanes is not None else [0] * len(rows)), torch.from_numpy(history),
        torch.from_numpy(given),
        {name: _reads(rows, slot, labels) for name, (slot, labels) in supervise.items()},
        sum(len(row) for row in rows), torch.tensor([len(row) for row in rows]),
    )  # fmt: skip


def padded(values: Rows[np.ndarray], filling: int) -> Tensor:
    """(B, T) int64 from B arrays, filled up at the right."""
    found = np.full((len(values), max(map(len, values))), filling, dtype=np.int64)
    for place, own in enumerate(values):
        found[place, : len(own)] = own
    return torch.from_numpy(found)


def span_means(hidden: Tensor, ends: Tensor, spans: Tensor) -> Tensor:
    """The mean state of a span of each row: (n, T, D), the last token (n,) and the number of tokens (n,) → (n, D) float32."""
    step = torch.arange(hidden.shape[1], device=hidden.device)
    inside = (step <= ends[:, None]) & (step > (ends - spans)[:, None])
    return torch.bmm((inside / spans[:, None]).unsqueeze(1), hidden.float()).squeeze(1)


def _masked(rows: Rows[Sequence], longest: int) -> tuple[Tensor, Tensor]:
    positions = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.ones(longest, longest, dtype=torch.bool).tril_().expand(len(rows), 1, longest, longest).clone()
    keys = torch.arange(longest)
    for place, row in enumerate(rows):
        positions[place, : len(row)] = torch.from_numpy(row.positions).long()
        hide = torch.from_numpy(row.hide)
        inside = (keys >= hide[:, :1]) & (keys < hide[:, 1:])
        mask[place, 0, : len(row)] &= ~inside
    return positions, mask


def _reads(rows: Rows[Sequence], slot: Slot, labels: np.ndarray) -> Reads:
    columns: list[np.ndarray] = []  # row, place, span, seen, stand, item and event of each
    spanned = slot == "item" and any(row.spans is not None for row in rows)
    for owner, row in enumerate(rows):
        inside, asked = row.targets & (row.events >= 0), row.candidate_events >= 0
        places = (row.item_reads if slot == "item" else row.next_reads)[inside]
        ends = row.candidate_reads[asked] if slot == "item" else np.full(int(asked.sum()), row.trunk - 1)
        place = np.concatenate([places, ends])
        span = np.ones(len(place)) if row.spans is None else np.concatenate([row.spans[inside], np.ones(len(ends))])
        seen = np.concatenate([row.seen[inside], np.full(len(ends), len(row.codes))])
        stand = np.concatenate([row.seen[inside], row.candidate_stands[asked]])
        event = np.concatenate([row.events[inside], row.candidate_events[asked]])
        item = np.concatenate([row.codes[inside], row.candidates[asked]])
        columns.append(np.stack([np.full(len(place), owner), place, span, seen, stand, item, event]).astype(np.int64))
    owner_of, place_of, span_of, seen_of, stand_of, item_of, event_of = np.concatenate(columns, axis=1)
    label = labels[event_of]
    known = ~np.isnan(label) if label.dtype.kind == "f" else label >= 0
    kind = np.float32 if label.dtype.kind == "f" else np.int64
    owners, reads, spans, before, stands, items, events = (
        torch.from_numpy(column[known]) for column in (owner_of, place_of, span_of, seen_of, stand_of, item_of, event_of)
    )
    truth = torch.from_numpy(label[known].astype(kind))
    return Reads(owners, reads, before, stands, items, truth, events, spans if spanned else None)


def plan_batches(lengths: np.ndarray, budget: int, order: np.ndarray | None = None, *, pool: int = 2048) -> Iterator[np.ndarray]:
    """Groups of rows whose padded size stays within a token budget.

    Args:
        lengths: (n,) tokens of each row.
        budget: Padded tokens of one batch; a single longer row is a batch of its own.
        order: (n,) the order to take rows in (shuffled for training); by length if None.
        pool: Rows that are sorted by length together, so that padding stays small and the order stays random.

    Yields:
        Indices of the rows of one batch.
    """
    rows = np.argsort(lengths, kind="stable") if order is None else np.asarray(order)
    for start in range(0, len(rows), pool if order is not None else max(len(rows), 1)):
        part = rows[start : start + pool] if order is not None else rows
        part = part[np.argsort(lengths[part], kind="stable")]
        batch: list[int] = []
        for row in part:
            if batch and (len(batch) + 1) * lengths[row] > budget:
                yield np.array(batch)
                batch = []
            batch.append(int(row))
        if batch:
            yield np.array(batch)
