"""Ctrl-C that waits for the end of a step.

Owns: the signal while a run trains. Ignores: what is done about it.

    with Interrupts() as interrupts:
        for step in run:
            step()
            if interrupts.asked:            # between two steps everything is consistent, and can be saved
                save()
"""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupts:
    """Notes the first Ctrl-C of a block; the second one raises KeyboardInterrupt at once.

    Only the main thread of a process gets signals; in any other thread nothing is noted.

    Attributes:
        asked: Whether the user wants to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None
        self._here = False

    def __enter__(self) -> "Interrupts":
        self._here = threading.current_thread() is threading.main_thread()
        if self._here:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._here:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
