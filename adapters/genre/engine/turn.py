"""The turn of a base: its forward passes one at a time, first come, first served, and how fast they are.

Owns: the lock, the measured speed. Ignores: what is computed.

    turn = ForwardTurn()
    with turn:                                  # other threads wait, in the order in which they came
        …
    turn.record(1000, 0.1)                      # tokens and seconds of a pass
    turn.tokens_in(0.05, least=64, most=8192)   #  ->  500

A lock of `threading` goes to whoever is awake when it is free. A thread of many passes in a row would take it again and again,
while one that waits for its only pass is still being woken.
"""

import threading
from collections import deque

KEPT = 0.9
"""The weight of what was measured before, at each further pass."""


class ForwardTurn:
    """A fair lock, which the thread that has it may enter again, with a memory of how fast passes are."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[tuple[int, threading.Lock]] = deque()
        self._owner: int | None = None
        self._depth = 0
        self._tokens = 0.0
        self._seconds = 0.0

    def __enter__(self) -> "ForwardTurn":
        me = threading.get_ident()
        with self._guard:
            if self._owner in (None, me):  # nobody waits for a free one: it is handed over, never just let go
                self._owner = me
                self._depth += 1
                return self
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append((me, gate))
        try:
            gate.acquire()  # by whoever hands over
        except BaseException:
            self._give_up(me, gate)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._leave()

    def record(self, tokens: int, seconds: float) -> None:
        """Remember a pass: its padded tokens, and its seconds without the wait for the turn."""
        with self._guard:
            self._tokens = KEPT * self._tokens + tokens
            self._seconds = KEPT * self._seconds + seconds

    def tokens_in(self, seconds: float, *, least: int, most: int) -> int:
        """Tokens that a pass computes in so many seconds, as measured lately; `most` before anything was measured."""
        with self._guard:
            if not self._seconds:
                return most
            return max(min(least, most), min(most, int(self._tokens / self._seconds * seconds)))

    def _leave(self) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._owner = None
        if self._waiting:
            self._owner, gate = self._waiting.popleft()
            self._depth = 1
            gate.release()

    def _give_up(self, me: int, gate: threading.Lock) -> None:
        """Leave the queue, or the turn that was handed over meanwhile."""
        with self._guard:
            if (me, gate) in self._waiting:
                self._waiting.remove((me, gate))
            else:
                self._leave()
