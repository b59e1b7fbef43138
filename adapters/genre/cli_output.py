"""How commands speak.

Owns: a spinner on a terminal, plain lines otherwise; a console that does not wrap when piped. Ignores what is said.

    with say_steps("preparing ml-100k") as say:
        say("downloading recbole 1.2.1 (2 MB)")
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def console(*, stderr: bool = False) -> "Console":
    """Return a console; piped output is as wide as it needs to be, so that no line is broken."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 200, soft_wrap=not stream.isatty())


@contextmanager
def say_steps(title: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that is told of each step of a long job; it speaks on stderr."""
    err = console(stderr=True)
    if not err.is_terminal:
        yield lambda step: err.print(f"{title}: {step}", highlight=False, markup=False)
        return
    with err.status(title) as status:
        yield lambda step: status.update(f"{title}: {step}")
