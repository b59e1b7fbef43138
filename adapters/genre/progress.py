"""What a long job tells: a bar on a terminal, plain lines otherwise.

Owns: the form of progress. Ignores: what is being done.

    reporter = Reporter.for_terminal()
    with reporter.bar("epoch 1/5", 120) as bar:
        bar.advance(1, loss=0.61, tokens=4000)      # epoch 1/5 ━━━━ 12/120  loss 0.610  1,950 tokens/s  0:01:32 left
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Bar:
    """Progress through a known number of steps; `show` is called at most every `every_s` seconds."""

    def __init__(self, label: str, total: int, show: Callable[["Bar"], None], every_s: float) -> None:
        self.label, self.total, self.show, self.every_s = label, total, show, every_s
        self.done, self.skipped, self.tokens = 0, 0, 0
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
        if now - self.shown >= self.every_s or self.done >= self.total:
            self.shown = now
            self.show(self)

    def text(self) -> str:
        """Steps, loss, tokens per second and time left."""
        seconds = max(time.perf_counter() - self.begun, 1e-9)
        parts = [f"{self.label}  {self.done}/{self.total}"]
        if self.loss is not None:
            parts.append(f"loss {self.loss:.4f}")
        if self.tokens:
            parts.append(f"{self.tokens / seconds:,.0f} tokens/s")
        fresh = self.done - self.skipped if self.loss is not None else self.done
        if fresh > 0:
            left = int(seconds / fresh * (self.total - self.done))
            parts.append(f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left")
        return "  ".join(parts)


class Reporter:
    """Where a job's lines and bars go."""

    def __init__(self, write: Callable[[str], None], *, live: bool = False) -> None:
        self.write, self.live = write, live

    @classmethod
    def silent(cls) -> "Reporter":
        """Tells nothing."""
        return cls(lambda text: None)

    @classmethod
    def for_terminal(cls) -> "Reporter":
        """Bars on standard error if it is a terminal, a plain line every ten seconds otherwise."""
        return cls(lambda text: print(text, file=sys.stderr, flush=True), live=sys.stderr.isatty())

    def line(self, text: str) -> None:
        """One line of its own."""
        self.write(text)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Bar]:
        """A bar for the time of the block."""
        if not self.live:
            yield Bar(label, total, lambda bar: self.write(bar.text()), every_s=10.0)
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns: list[Any] = [BarColumn(bar_width=24), TextColumn("{task.description}")]
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(label, total=total)
            yield Bar(label, total, lambda bar: progress.update(task, completed=bar.done, description=bar.text()), every_s=0.1)
