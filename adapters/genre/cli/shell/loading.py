"""A line before PyTorch is imported, which takes seconds in which nothing else is said.

Owns: noticing the import, in whatever command it happens. Ignores: what is imported after it, which is loaded by phases that
commands report.

    with announced_import():
        from genre.engine import Engine      # loading PyTorch
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from types import ModuleType

from genre.progress import Reporter

SLOW = "torch"
LINE = "loading PyTorch"


class _Announcer(MetaPathFinder):
    """Finds nothing, and reports once that a part of the slow module is looked for: the module itself is being executed then.

    Libraries look for the module itself, too, only to know whether it is there.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._reported = False

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if not self._reported and fullname.startswith(f"{SLOW}."):
            self._reported = True
            self._report(LINE)


@contextmanager
def announced_import() -> Iterator[None]:
    """A block in which the first import of PyTorch is a line on standard error, unless `--quiet` is given."""
    if SLOW in sys.modules:
        yield
        return
    announcer = _Announcer(Reporter.for_terminal().line)
    sys.meta_path.insert(0, announcer)
    try:
        yield
    finally:
        sys.meta_path.remove(announcer)
