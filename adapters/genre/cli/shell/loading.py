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

from genre.distributed import process_rank
from genre.progress import Reporter

SLOW = "torch"
LINE = "loading PyTorch"


class _Announcer(MetaPathFinder):
    """Finds no module; reports that one is looked for, once."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._done = False

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == SLOW and not self._done:
            self._done = True
            self._report(LINE)


@contextmanager
def announced_import() -> Iterator[None]:
    """A block in which the first import of PyTorch is a line on standard error, unless `--quiet` is given."""
    if SLOW in sys.modules or process_rank() > 0:
        yield
        return
    announcer = _Announcer(Reporter.for_terminal().line)
    sys.meta_path.insert(0, announcer)
    try:
        yield
    finally:
        sys.meta_path.remove(announcer)
