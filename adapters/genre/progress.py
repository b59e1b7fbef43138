"""Progress of a long job: bars on a terminal and in a notebook, plain lines otherwise, never more than ten seconds of silence.

Owns: the form of progress, the time left of a job. Ignores: what is being done.

    reporter = Reporter.for_terminal()
    with reporter.bar("epoch 1/5", 120) as bar:
        bar.advance(1, loss=0.61, tokens=4000)      # epoch 1/5 ━━━━ 12/120  loss 0.610  1,950 tokens/s  0:01:32 left
    with reporter.phase("fitting the encoder"):
        ...                                         # fitting the encoder  0:00:20
    with reporting(Verbosity.NORMAL), never_silent("genre compare"):
        ...                                         # genre compare  0:00:09
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum
from html import escape
from typing import TYPE_CHECKING, Any, TextIO

from genre.display import Area, in_notebook

if TYPE_CHECKING:
    from rich.console import Console

EVERY_S = 9.0
"""Seconds between two plain lines: with what a tick may be late, below the ten that users are promised."""
TICKS = 10
"""How often in that time a thread looks whether a line is due."""


class Verbosity(Enum):
    """How much reporters for a terminal report: nothing; progress; every phase and line with the time of day, without bars."""

    QUIET = "quiet"
    NORMAL = "normal"
    VERBOSE = "verbose"


class _Shown:
    """What the reporters of a command have shown: the time of the last line, and how many phases and bars are open."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self.open = 0
        self._lock = threading.Lock()

    @contextmanager
    def opened(self) -> Iterator[None]:
        """A block in which a phase or a bar is shown, which keeps its own time."""
        with self._lock:
            self.open += 1
        try:
            yield
        finally:
            with self._lock:
                self.open -= 1


_verbosity = ContextVar("verbosity", default=Verbosity.NORMAL)
_shown: ContextVar[_Shown | None] = ContextVar("shown", default=None)


def verbosity() -> Verbosity:
    """How much is reported now."""
    return _verbosity.get()


@contextmanager
def reporting(level: Verbosity) -> Iterator[None]:
    """A block in which reporters for a terminal are made with this verbosity, and know of each other's lines."""
    token, shown = _verbosity.set(level), _shown.set(_Shown())
    try:
        yield
    finally:
        _verbosity.reset(token)
        _shown.reset(shown)


@contextmanager
def never_silent(label: str) -> Iterator[None]:
    """A block in which a line with the time comes whenever reporters for a terminal have shown nothing for `EVERY_S` seconds."""
    reporter, begun = Reporter.for_terminal(), time.perf_counter()
    if reporter.silenced:
        yield
        return
    shown = reporter.shown

    def check() -> None:
        if not shown.open and time.perf_counter() - shown.last >= EVERY_S:
            reporter.write(f"{label}  {_clock(time.perf_counter() - begun)}")

    with _ticking(check, EVERY_S / TICKS):
        yield


Later = Callable[[float], Mapping[str, float]]
"""From the seconds of a step of the present phase to the seconds of each phase after it, by name."""


class Bar:
    """Progress through steps; `show` is called at most every `every_s` seconds.

    Args:
        label: The activity.
        total: How many steps there are; None if that is not known.
        show: Shows the bar.
        every_s: Seconds between two calls of it.
        share: Returns the fraction done where the total is unknown, or None.
        done: Steps that were done before.
        later: The phases of the job after this one; the time left is that of all.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        show: Callable[["Bar"], None],
        every_s: float,
        *,
        share: Callable[[], float | None] | None = None,
        done: int = 0,
        later: Later | None = None,
    ) -> None:
        self.later = later
        self.label = label
        self.total = total
        self.show = show
        self.every_s = every_s
        self.done = done
        self.before = done
        self.skipped = 0
        self.tokens = 0
        self._share = share or (lambda: None)
        self.loss: float | None = None
        self.begun = self.shown = time.perf_counter()

    def advance(self, steps: int, *, loss: float | None = None, tokens: int = 0) -> None:
        """Count steps that were done (or, without tokens and loss at the start, that a resumed run skips)."""
        self.done += steps
        if loss is None and tokens == 0:
            self.skipped += steps
        elif loss is not None:
            self.loss = loss if self.loss is None else 0.95 * self.loss + 0.05 * loss
        self.tokens += tokens
        now = time.perf_counter()
        if now - self.shown >= self.every_s or (self.total is not None and self.done >= self.total):
            self.show_now()

    def remind(self) -> None:
        """Show the bar if that was not done for a while, as while one step takes long."""
        if time.perf_counter() - self.shown >= self.every_s:
            self.show_now()

    def show_now(self) -> None:
        """Show the bar."""
        self.shown = time.perf_counter()
        self.show(self)

    def text(self) -> str:
        """Steps, loss, tokens per second and time left."""
        seconds = max(time.perf_counter() - self.begun, 1e-9)
        if self.total is None:
            return self._open_ended(seconds)
        parts = [f"{self.label}  {self.done}/{self.total}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if self.tokens:
            parts.append(f"{self.tokens / seconds:,.0f} tokens/s")
        fresh = self.done - self.before - (self.skipped if self.loss is not None else 0)
        if fresh > 0:
            step = seconds / fresh
            after = self.later(step) if self.later is not None else {}
            left = f"{_clock(step * (self.total - self.done) + sum(after.values()))} left"
            parts.append(f"{left} in all, with {', '.join(after)}" if after else left)
        return "  ".join(parts)

    @property
    def share(self) -> float | None:
        """Fraction done, 0 to 1; None if unknown."""
        return self.done / self.total if self.total else self._share()

    def _open_ended(self, seconds: float) -> str:
        """Steps, steps per second, and the share and time left if the share is known."""
        fresh, share = self.done - self.before, self.share
        parts = [f"{self.label}  {self.done:,} rows", f"{fresh / seconds:,.1f} rows/s"]
        if share:
            parts.insert(1, f"{share:.0%}")
            if fresh:
                parts.append(f"{_clock(seconds / fresh * self.done * (1 - share) / share)} left")
        return "  ".join(parts)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


@contextmanager
def _ticking(call: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call a function every so many seconds for the time of the block, from a thread: one call of a library may take long."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(every_s):
            call()

    thread = threading.Thread(target=run, name="progress", daemon=True)
    try:
        thread.start()  # Ctrl-C may come before it returns
        yield
    finally:
        ended.set()
        if thread.ident is not None:
            thread.join()


class Reporter:
    """A sink for the lines and bars of a job."""

    def __init__(
        self, write: Callable[[str], None], *, live: bool = False, stream: TextIO | None = None, every_phase: bool = False
    ) -> None:
        self.silenced = False
        self.every_phase = every_phase
        self.live = live
        self.stream = stream
        self.area: Callable[[], Area] | None = None
        self.shown = _Shown()
        self._write = write

    @classmethod
    def silent(cls) -> "Reporter":
        """Discard everything."""
        reporter = cls(lambda text: None)
        reporter.silenced = True
        return reporter

    @classmethod
    def for_terminal(cls, stream: TextIO | None = None) -> "Reporter":
        """Bars on standard error (or another stream) if it is a terminal, a plain line every ten seconds otherwise.

        See `reporting` for less and for more.
        """
        if verbosity() is Verbosity.QUIET:
            return cls.silent()
        if verbosity() is Verbosity.VERBOSE:
            reporter = cls(
                lambda text: print(f"{time.strftime('%H:%M:%S')} {text}", file=stream or sys.stderr, flush=True), every_phase=True
            )
        else:
            live = (stream or sys.stderr).isatty()
            reporter = cls(lambda text: print(text, file=stream or sys.stderr, flush=True), live=live, stream=stream)
        reporter.shown = _shown.get() or reporter.shown
        return reporter

    @classmethod
    def here(cls) -> "Reporter":
        """Bars in a notebook, silence in a script: what a call from Python reports to unless it is told otherwise."""
        if not in_notebook():
            return cls.silent()
        reporter = cls(lambda text: print(text, flush=True))
        reporter.area = Area
        return reporter

    def write(self, text: str) -> None:
        """Write a line."""
        self.shown.last = time.perf_counter()
        self._write(text)

    def line(self, text: str) -> None:
        """One line of its own."""
        self.write(text)

    @contextmanager
    def _unless_silent(self, call: Callable[[], None]) -> Iterator[None]:
        """Call a function in the block whenever no plain line was written for `EVERY_S` seconds, by whatever part of the job."""

        def check() -> None:
            if time.perf_counter() - self.shown.last >= EVERY_S:
                call()

        with self.shown.opened(), _ticking(check, EVERY_S / TICKS):
            yield

    @contextmanager
    def _live(self) -> Iterator["Console"]:
        """The terminal for the time in which something moves on it."""
        from rich.console import Console

        with self.shown.opened():
            yield Console(file=self.stream) if self.stream else Console(stderr=True)
        self.shown.last = time.perf_counter()

    @contextmanager
    def phase(self, label: str, *, at_once: bool = True) -> Iterator[None]:
        """A block whose length is not known: its name, at once or if it takes long, then the time that it has taken."""
        begun = time.perf_counter()
        if self.silenced:
            yield
            return
        if self.area is not None:
            with self._drawn(lambda: f"{label}  {_clock(time.perf_counter() - begun)}", lambda: None):
                yield
            return
        if not self.live:
            if at_once or self.every_phase:
                self.write(label)
            with self._unless_silent(lambda: self.write(f"{label}  {_clock(time.perf_counter() - begun)}")):
                yield
            return
        with self._live() as console:
            status = console.status(label)
            with status, _ticking(lambda: status.update(f"{label}  {_clock(time.perf_counter() - begun)}"), 1.0):
                yield

    @contextmanager
    def bar(
        self,
        label: str,
        total: int | None,
        *,
        share: Callable[[], float | None] | None = None,
        done: int = 0,
        later: Later | None = None,
    ) -> Iterator[Bar]:
        """A bar for the time of the block; see `Bar`."""
        if self.area is not None:
            bar = Bar(label, total, lambda bar: None, EVERY_S, share=share, done=done, later=later)
            with self._drawn(bar.text, lambda: bar.share):
                yield bar
            return
        if not self.live:
            plain = Bar(label, total, lambda bar: self.write(bar.text()), EVERY_S, share=share, done=done, later=later)
            if self.silenced:
                yield plain
                return
            with self._unless_silent(plain.show_now):
                yield plain
            return
        from rich.progress import BarColumn, Progress, TextColumn

        columns: list[Any] = [BarColumn(bar_width=24), TextColumn("{task.description}")]
        with self._live() as console, Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(label, total=None)

            def show(bar: Bar) -> None:
                known = bar.share is not None
                progress.update(task, completed=bar.share or 0.0, total=1.0 if known else None, description=bar.text())

            bar = Bar(label, total, show, 0.1, share=share, done=done, later=later)
            with _ticking(bar.remind, 0.5):
                yield bar

    @contextmanager
    def _drawn(self, text: Callable[[], str], share: Callable[[], float | None]) -> Iterator[None]:
        """Draw a text and a bar below the notebook's cell, twice a second, for the time of the block."""
        assert self.area is not None
        area = self.area()

        def draw() -> None:
            known = share()
            value = "" if known is None else f' value="{known:.4f}"'
            area.show(f"<progress{value}></progress> <code>{escape(text())}</code>")

        try:
            draw()
            with _ticking(draw, 0.5):
                yield
        finally:
            area.close()
