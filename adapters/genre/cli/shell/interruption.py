"""Ctrl-C: one line that says what is left and how to go on, and exit code 1.

Owns: the words for every command, the signal's handler for the time of a command. Ignores: what a job does to stop well; one
that has more to say raises `InterruptedJobError` itself. Imports nothing slow, so that it holds from the first moment on.

    with Interruption().noted() as interruption:
        ...
    interruption.requested      # whether the user pressed Ctrl-C, even if a library swallowed it
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

_NOTHING = "nothing was changed; the same command starts over"
_SET = "a data set appears whole or not at all; the same command starts over"
_FOLDER = "a folder appears whole or not at all; the same command starts over"
_ALIAS = "an alias moves at once or not at all: genre registry history NAME shows it"
_VERSION = "a version is published whole or not at all: genre registry list shows it; the same command starts over"
_RUN = "the run folder stays; the same command with --resume goes on from its last checkpoint, if it has one"
_FILE = "the file appears whole or not at all; the same command starts over"

LEFT = {
    "data prepare": _SET,
    "data import": _SET,
    "data describe": _NOTHING,
    "data forget": "the folder is as it was or made anew as a whole; the same command starts over",
    "base prepare": "a base is prepared whole or not at all; the same command starts over",
    "base list": _NOTHING,
    "recipe new": _FILE,
    "recipe check": _NOTHING,
    "registry list": _NOTHING,
    "registry show": _NOTHING,
    "registry diff": _NOTHING,
    "registry verify": _NOTHING,
    "registry promote": _ALIAS,
    "registry rollback": _ALIAS,
    "registry history": _NOTHING,
    "registry export": _FOLDER,
    "registry import": _VERSION,
    "registry delete": "the version is gone or whole: genre registry list shows it; the same command deletes it",
    "registry check-server": _NOTHING,
    "registry keygen": "both keys appear or none; the same command starts over",
    "registry sign": "signatures that were written stay, each whole; the same command writes the rest",
    "registry checkpoint": _FILE,
    "registry gc": "what was removed was unused, the rest is whole; the same command removes it",
    "train": _RUN,
    "federated": "the run folder stays, with the tensors of its last whole round; the same command starts over",
    "evaluate": "the registry is unchanged; the same command starts over",
    "recommend": "the registry is unchanged; the same command starts over, with --resume after the last user of --output",
    "score": "rows that were written stay; the same command with --resume goes on after the last whole one",
    "merge": _VERSION,
    "tune": "finished trials are kept; the same command goes on",
    "crossval": "finished folds are kept; the same command goes on",
    "compare": _NOTHING,
    "bench": "finished runs are kept; the same command goes on",
    "refresh": "the alias moves at the end or not at all: genre registry history NAME shows it; the same command starts over",
    "explain": _NOTHING,
    "report": _FILE,
    "audit": "the registry is unchanged; checks that ended are in the report, the same command starts over",
    "doctor": _NOTHING,
    "serve": "the registry is unchanged; the same command starts the service",
}
"""What is left of a command that was interrupted, by its words; commands that are not listed change nothing."""


class Interruption:
    """The user's request to stop.

    Attributes:
        requested: True once Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def noted(self) -> Iterator["Interruption"]:
        """A block in which Ctrl-C is noted and raises KeyboardInterrupt; where it is ignored (nohup), it stays so."""
        default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if not default or threading.current_thread() is not threading.main_thread():
            yield self
            return
        signal.signal(signal.SIGINT, self._note)
        hook = sys.unraisablehook
        sys.unraisablehook = self._again(hook)
        try:
            yield self
        finally:
            sys.unraisablehook = hook
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _again(self, hook: Callable[["sys.UnraisableHookArgs"], object]) -> Callable[["sys.UnraisableHookArgs"], None]:
        """A hook that sends the signal again where it fell into a finalizer or a weak reference's callback, which end errors."""

        def send() -> None:
            if signal.getsignal(signal.SIGINT) == self._note:  # the command has not ended meanwhile
                os.kill(os.getpid(), signal.SIGINT)

        def take(unraisable: "sys.UnraisableHookArgs") -> None:
            if not isinstance(unraisable.exc_value, KeyboardInterrupt):
                hook(unraisable)
                return
            timer = threading.Timer(0.05, send)  # once the callback has returned
            timer.daemon = True
            timer.start()

        return take

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        raise KeyboardInterrupt


def report_interruption(arguments: Sequence[str] | None, *, done: bool = False) -> int:
    """Print the line of an interrupted command and return the exit code.

    Args:
        arguments: The command line without the program; by default that of this process.
        done: The command had ended well, since the signal came too late.
    """
    words = [word for word in (sys.argv[1:] if arguments is None else arguments) if not word.startswith("-")]
    left = LEFT.get(" ".join(words[:2])) or LEFT.get("".join(words[:1]), _NOTHING)
    print(f"genre: interrupted: {'the work was done already' if done else left}", file=sys.stderr)
    exec("")  # CPython ends by the signal where Ctrl-C fell into the exec of a text, as dataclasses use it, until another exec
    return 1
