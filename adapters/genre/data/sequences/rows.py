"""From windows of a log to rows for a model.

Owns: the one place where a log, a layout and a split meet. Ignores: tensors, devices, training.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from genre.data.interactions import Interactions
from genre.data.sequences.code_branches import CodeBranches
from genre.data.sequences.layout import Layout, Sequence
from genre.data.sequences.windows import Window, chosen_windows, evaluation_windows, training_windows
from genre.data.splits import Split


@dataclass
class RowBuilder:
    """Builds rows of one log for one layout.

    Attributes:
        data: The log.
        layout: How events become tokens.
        cut: Item texts that were cut so far.
        branches: What adds the targets' codes to training rows; None where no task generates items.
    """

    data: Interactions
    layout: Layout
    cut: int = 0
    branches: CodeBranches | None = None
    _prefixes: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    @cached_property
    def feedback(self) -> np.ndarray:
        """Feedback code of every event, (n,) int32; zeros for a layout without feedback slots."""
        vocabulary = self.layout.feedback
        if vocabulary is None:
            return np.zeros(len(self.data), dtype=np.int32)
        return vocabulary.encode(self.data.column(vocabulary.column))

    @cached_property
    def texts(self) -> list[str] | None:
        """Text of every catalogue item; None where items are soft tokens only."""
        return None if self.layout.item == "token" else self.data.catalogue.texts(list(self.layout.text))

    def prefix(self, user: int) -> np.ndarray:
        """Token ids of the instruction for a user."""
        if user not in self._prefixes:
            columns: dict[str, Any] = self.data.users.row(user, named=True) if self.data.users is not None else {}
            self._prefixes[user] = self.layout.prefix(columns)
        return self._prefixes[user]

    def row(self, window: Window) -> Sequence:
        """Lay out one window."""
        events = window.events
        shown = self.data.impressions
        row = self.layout.build(
            self.prefix(window.user),
            self.data.item_codes[events],
            self.feedback[events],
            texts=self.texts,
            groups=None if shown is None else shown[events],
            events=events,
            targets=window.targets,
            candidates=self.data.item_codes[window.branches],
            candidate_events=window.branches,
            candidate_times=np.searchsorted(events, window.branches),
        )
        self.cut += row.cut
        return row

    def training_rows(
        self, train: np.ndarray, target: np.ndarray | None = None, *, max_events: int, min_events: int, shift: float = 0.0
    ) -> tuple[list[Sequence], int]:
        """Return rows that supervise every training event, or the targets among them, once; see `windows`.

        Args:
            train: (n,) bool train mask.
            target: (n,) bool target mask; None for all training events.
            max_events: Events of one row.
            min_events: Users with fewer training events give no row.
            shift: Moves the cuts between windows, see `training_windows`.

        Returns:
            The rows, and how many events were left out because their user has fewer than `min_events`.
        """
        limits: Any = {"max_events": max_events, "min_events": min_events, "rule": self.layout.window}
        if target is None:
            windows, skipped = training_windows(self.data, train, shift=shift, **limits)
        else:
            windows, skipped = chosen_windows(self.data, train, target, **limits)
        rows = [self.row(window) for window in windows]
        return rows if self.branches is None else [self.branches.extend(row) for row in rows], skipped

    def evaluation_rows(self, split: Split, part: int, *, max_events: int) -> list[Sequence]:
        """Return rows in which every event of a part is a target once."""
        windows = evaluation_windows(self.data, split, part, max_events=max_events, rule=self.layout.window)
        return [self.row(window) for window in windows]
