"""The command line: one module per group of commands; `main` is the entry point.

Commands are imported by `main`, so that Ctrl-C during the imports ends in a line too.
"""

from typing import TYPE_CHECKING, Any

from genre.cli.shell.interruption import Interruption, report_interruption

if TYPE_CHECKING:
    from genre.cli.root import app as app

__all__ = ["app", "main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; errors are one line on standard error and exit code 1 (failed job, Ctrl-C) or 2 (wrong input)."""
    interruption = Interruption()
    try:
        with interruption.noted():
            from genre.cli.root import run

            code = run(arguments)
    except KeyboardInterrupt:
        return report_interruption(arguments)
    except Exception:
        if not interruption.requested:  # else a library turned it into an error of its own, as imports of extensions do
            raise
        return report_interruption(arguments)
    return report_interruption(arguments, done=True) if interruption.requested and not code else code


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'genre.cli' has no attribute {name!r}")
    from genre.cli.root import app

    return app
