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
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from genre.distributed import process_rank
from genre.progress import Reporter

SLOW = "torch"
LINE = "loading PyTorch"


class _Announcer(MetaPathFinder):
    """Finds the slow module as Python does, and reports when it is executed: libraries look whether it is there, too."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != SLOW or (spec := PathFinder.find_spec(fullname, path, target)) is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def announced(module: ModuleType) -> None:
            self._report(LINE)
            execute(module)

        spec.loader.exec_module = announced  # type: ignore[method-assign]
        return spec


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
