"""From windows of a log to rows for a model.

Owns: the one place where a log, a layout and a split meet. Ignores: tensors, devices, training.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from genre.data.interactions import Interactions
from genre.data.sequences.batches import Slot
from genre.data.sequences.layout import Layout, Sequence
from genre.data.sequences.windows import Window, chosen_windows, evaluation_windows, training_windows
from genre.data.splits import Split
from genre.tasks import Task


class EventColumns(Mapping[str, np.ndarray]):
    """A log's event columns by name, each made when it is asked for."""

    def __init__(self, log: Interactions) -> None:
        self.log = log

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.log.event_columns:
            raise KeyError(name)
        return self.log.column(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.log.event_columns)

    def __len__(self) -> int:
        return len(self.log.event_columns)


@dataclass
class RowBuilder:
    """Builds rows of one log for one layout.

    Attributes:
        log: The log.
        layout: How events become tokens.
        cut: Item texts that were cut so far.
    """

    log: Interactions
    layout: Layout
    cut: int = 0
    _prefixes: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @cached_property
    def feedback(self) -> np.ndarray:
        """(n,) int32 feedback code of every event."""
        return self.layout.feedback.encode(self.log.column(self.layout.feedback.column))

    @cached_property
    def texts(self) -> list[str] | None:
        """Text of every catalogue item; None where items are soft tokens only."""
        return None if self.layout.item == "token" else self.log.catalogue.texts(list(self.layout.text))

    def prefix(self, user: int) -> np.ndarray:
        """Token ids of the instruction for a user."""
        if user not in self._prefixes:
            columns: dict[str, Any] = self.log.users.row(user, named=True) if self.log.users is not None else {}
            self._prefixes[user] = self.layout.prefix(columns)
        return self._prefixes[user]

    def row(self, window: Window) -> Sequence:
        """One window laid out."""
        events = window.events
        row = self.layout.build(
            self.prefix(window.user), self.log.item_codes[events], self.feedback[events], texts=self.texts,
            groups=self.impressions(events), events=events, targets=window.targets,
            candidates=self.log.item_codes[window.branches], candidate_events=window.branches,
            candidate_stands=np.searchsorted(events, window.branches),
        )  # fmt: skip
        self.cut += row.cut
        return row

    def training_rows(
        self, usable: np.ndarray, supervised: np.ndarray | None = None, *, max_events: int, min_events: int, shift: float = 0.0
    ) -> tuple[list[Sequence], int]:
        """Rows that supervise every usable event, or the chosen ones of them, once; see `windows`.

        Returns:
            The rows, and how many events were left out because their user has fewer than `min_events`.
        """
        if supervised is None:
            windows, skipped = training_windows(self.log, usable, max_events=max_events, min_events=min_events, shift=shift)
        else:
            windows, skipped = chosen_windows(self.log, usable, supervised, max_events=max_events, min_events=min_events)
        return [self.row(window) for window in windows], skipped

    def evaluation_rows(self, split: Split, part: int, *, max_events: int) -> list[Sequence]:
        """Rows in which every event of a part is a target once."""
        return [self.row(window) for window in evaluation_windows(self.log, split, part, max_events=max_events)]

    def owners(self, events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The user codes and the item codes of some events."""
        return self.log.user_codes[events], self.log.item_codes[events]

    def impressions(self, events: np.ndarray) -> np.ndarray | None:
        """The impressions of some events, int64; None if the log has none."""
        return None if self.log.impressions is None else self.log.impressions[events]

    @property
    def catalogue_size(self) -> int:
        """N, the items that a ranking is over."""
        return self.log.catalogue.size

    def supervise(self, tasks: list[Task]) -> dict[str, tuple[Slot, np.ndarray]]:
        """For each task its slot and its label of every event: float with NaN, or item codes with -1 where there is none."""
        columns = EventColumns(self.log)
        found: dict[str, tuple[Slot, np.ndarray]] = {}
        for task in tasks:
            if task.kind == "feedback":
                labels = task.labels(columns)
                if task.loss == "cross_entropy":
                    labels = np.where(np.isnan(labels), -1, labels).astype(np.int64)
                found[task.name] = ("item", labels)
            else:
                codes = self.log.item_codes.astype(np.int64)
                if task.label is not None:
                    codes = np.where(np.nan_to_num(task.labels(columns)) > 0, codes, -1)
                found[task.name] = ("feedback", codes)
        return found
