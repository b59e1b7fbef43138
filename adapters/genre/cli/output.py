"""How commands speak.

Owns: a spinner on a terminal, plain lines otherwise; a console that does not wrap when piped; tables of figures and of
recommended items; JSON files of results. Ignores how what is said came about.

    with say_steps("preparing ml-100k") as say:
        say("downloading recbole 1.2.1 (2 MB)")
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genre.errors import InputError
from genre.files import check_writable

if TYPE_CHECKING:
    from rich.console import Console

    from genre.jobs.score.results import Results


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


def show_figures(tasks: dict[str, Any]) -> None:
    """A table per task: a row per metric, the adapter with its interval, every baseline beside it."""
    show_table(tasks, "adapter, 95 % interval", _with_interval, _value)


def show_table(
    tasks: dict[str, Any], heading: str, own: Callable[[dict[str, Any]], str], other: Callable[[dict[str, Any] | None], str]
) -> None:
    """A table per task: a row per metric; how the adapter's and the baselines' figures read is the caller's."""
    from rich.table import Table

    for name, found in tasks.items():
        table = Table(title=f"task {name}", title_justify="left")
        table.add_column("metric", no_wrap=True)
        table.add_column("n", justify="right", no_wrap=True)
        table.add_column(heading, justify="right", no_wrap=True)
        for baseline in found["baselines"]:
            table.add_column(baseline.replace("_", " "), justify="right")
        for metric, figure in found["adapter"].items():
            others = (other(figures.get(metric)) for figures in found["baselines"].values())
            table.add_row(metric, f"{figure['n']:,}", own(figure), *others)
        console().print(table)


def _value(figure: dict[str, Any] | None) -> str:
    return "–" if figure is None else f"{figure['value']:.4f}"


def _with_interval(figure: dict[str, Any]) -> str:
    if figure.get("interval") is None:
        return _value(figure)
    low, high = figure["interval"]
    return f"{figure['value']:.4f} [{low:.3f}, {high:.3f}]"


def show_list(ref: str, response: Any, titles: dict[str, str]) -> None:
    """A table of one response's items, best first."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{ref} ({response.digest[:12]})", title_justify="left")
    table.add_column("#", justify="right")
    table.add_column("item")
    table.add_column("title")
    table.add_column("score", justify="right", no_wrap=True)
    for place, item in enumerate(response.results, 1):
        table.add_row(str(place), escape(item.item_id), escape(titles.get(item.item_id, "")), f"{item.score:.4f}")
    console().print(table)
    if not response.results:
        print("nothing is left to recommend: the user has seen every item")


def check_file(path: Path | None, option: str) -> None:
    """Refuse what cannot be written as a file, before the work begins.

    Raises:
        InputError: It is a folder or a device, lies in a file, or in a folder that takes no new files.
    """
    if path is None:
        return
    if path.exists() and not path.is_file():
        raise InputError(f"{option} is {'a folder' if path.is_dir() else 'no file'}", got=path, expected="a file to write")
    check_writable(path, option)


def write_result(path: Path | None, value: Any) -> None:
    """Write what a command found as JSON, if a file was asked for."""
    if path is None:
        return
    from genre.files import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def say_written(results: "Results") -> None:
    """How much was written; beside rows on standard output it goes to standard error."""
    where = sys.stderr if results.path is None else sys.stdout
    earlier = f" ({results.earlier} from before)" if results.earlier else ""
    print(f"{results.rows} rows in {results}{earlier}, {results.errors} of them errors", file=where)
