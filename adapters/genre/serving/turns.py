"""A queue in turns: nobody's work delays another's by more than a quantum.

Owns: the order in which rows leave. Ignores: what rows are, and how much of them may wait.

    turns = Turns(8192)
    turns.push(("10.0.0.7", call), row, 300)     # a caller, and one of its calls
    turns.pop()                                  #  ->  row

Fair queueing on two levels: callers have turns, and so have the calls of one caller. Every line has a clock that goes on by the
work that it has given; whose clock is behind is next, in steps of a quantum, within which the line that came first is. So calls
of little work leave whole and in order, and a large one leaves in parts between them. A line that comes (again) begins at the
time that all of them have reached, or where it left. Source: Demers, Keshav and Shenker, "Analysis and simulation of a fair
queueing algorithm" (1989).
"""

import heapq
import itertools
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_T = TypeVar("_T")
FEW = 64


@dataclass(eq=False)
class _Line(Generic[_T]):
    """The rows under one key: those of a call, or the calls of a caller (`inner`)."""

    clock: float
    inner: "Turns[_T] | None" = None
    rows: deque[tuple[_T, int]] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self.rows) if self.inner is None else len(self.inner)

    def first(self) -> tuple[_T, int]:
        return self.rows[0] if self.inner is None else self.inner.first()

    def pop(self) -> tuple[_T, int]:
        return self.rows.popleft() if self.inner is None else self.inner.pop()


class Turns(Generic[_T]):
    """Rows that wait, by keys; every operation takes the logarithm of the number of keys.

    Args:
        quantum: Work of one line before it goes behind the others.
    """

    def __init__(self, quantum: int) -> None:
        self._quantum = quantum
        self._lines: dict[Hashable, _Line[_T]] = {}
        self._order: list[tuple[int, int, Hashable]] = []  # a heap of step, arrival, key
        self._arrival = itertools.count()
        self._clock = 0.0
        self._left: dict[Hashable, float] = {}  # clocks of lines that are empty now and had more than their share
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def under(self, key: Hashable) -> int:
        """The number of rows under a key of the first level."""
        line = self._lines.get(key)
        return 0 if line is None else len(line)

    @property
    def keys(self) -> int:
        """The number of keys of the first level."""
        return len(self._lines)

    def push(self, path: Sequence[Hashable], row: _T, work: int) -> None:
        """Add a row of so much work (at least 1 is counted) at the end of its line.

        Args:
            path: The keys of its line, outermost first; always as many.
            row: The row.
            work: In the quantum's unit.
        """
        key = path[0]
        line = self._lines.get(key)
        if line is None:
            inner: Turns[_T] | None = Turns(self._quantum) if len(path) > 1 else None
            line = self._lines[key] = _Line(max(self._clock, self._left.pop(key, 0.0)), inner)
            heapq.heappush(self._order, (self._step(line), next(self._arrival), key))
        if line.inner is None:
            line.rows.append((row, max(work, 1)))
        else:
            line.inner.push(path[1:], row, work)
        self._size += 1

    def first(self) -> tuple[_T, int]:
        """The row that `pop` would give, and its work; IndexError where none waits."""
        return self._lines[self._order[0][2]].first()

    def pop(self) -> tuple[_T, int]:
        """Take the next row, and its work; IndexError where none waits."""
        step, _, key = self._order[0]
        line = self._lines[key]
        row, work = line.pop()
        self._size -= 1
        self._clock += work / len(self._lines)
        line.clock += work
        if not line:
            heapq.heappop(self._order)
            del self._lines[key]
            self._leave(key, line.clock)
        elif self._step(line) > step:
            heapq.heapreplace(self._order, (self._step(line), next(self._arrival), key))
        return row, work

    def _step(self, line: _Line[_T]) -> int:
        return int(line.clock // self._quantum)

    def _leave(self, key: Hashable, clock: float) -> None:
        self._left[key] = clock
        if not self._lines:
            self._left.clear()
            self._clock = 0.0
        elif len(self._left) > 2 * len(self._lines) + FEW:
            self._left = {key: clock for key, clock in self._left.items() if clock > self._clock}
