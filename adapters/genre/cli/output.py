"""The output of commands.

Owns: a spinner on a terminal, plain lines otherwise; a console that does not wrap when piped; tables of metrics and of
recommended items; JSON files of results. Ignores: how results come about.

    with step_reporter("preparing ml-100k") as report:
        report("downloading recbole 1.2.1 (2 MB)")
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genre.errors import InputError, JobError, visible
from genre.files import check_writable, write_json
from genre.progress import Reporter

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from genre.jobs.score.results import Results

BASELINES = 4
"""Columns of baselines in a table, the best so many."""


def console(*, stderr: bool = False) -> "Console":
    """Return a console; piped output is as wide as it needs to be, so that no line is broken."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 200, soft_wrap=not stream.isatty())


@contextmanager
def step_reporter(title: str) -> Iterator[Callable[[str], None]]:
    """Yield a function that reports each step of a long job on standard error."""
    reporter = Reporter.for_terminal()
    if not reporter.live:
        yield lambda step: reporter.line(f"{title}: {step}")
        return
    with reporter.shown.opened(), console(stderr=True).status(title) as status:
        yield lambda step: status.update(f"{title}: {step}")


def show_metrics(tasks: dict[str, Any]) -> None:
    """Print a table per task: a row per metric, the adapter with its interval, every baseline beside it."""
    show_table(tasks, "adapter, 95 % interval", _with_interval, format_value)


def show_table(
    tasks: dict[str, Any], heading: str, own: Callable[[dict[str, Any]], str], other: Callable[[dict[str, Any] | None], str]
) -> None:
    """Print a table per task, a row per metric; `own` and `other` format the adapter's and the best baselines' entries."""
    for name, found in tasks.items():
        table = make_table(f"task {name}", {"metric": "left", "n": "right", heading: "right"})
        best, rest = _best_first(found)
        for baseline in best:
            table.add_column(plain(baseline.replace("_", " ")), justify="right")
        for metric, entry in found["adapter"].items():
            others = (other(found["baselines"][baseline].get(metric)) for baseline in best)
            table.add_row(plain(metric), "" if entry["n"] is None else f"{entry['n']:,}", own(entry), *others)
        console().print(table)
        if rest:
            names = ", ".join(each.replace("_", " ") for each in rest)
            print(visible(f"weaker baselines, with figures in the JSON: {names}"))


def _best_first(found: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The best baselines of a task by its first metric, best first, and the others; all in their order if few enough."""
    from genre.evaluation.metrics.by_name import metric

    names = list(found["baselines"])
    if len(names) <= BASELINES or not found["adapter"]:
        return names, []
    first = metric(next(iter(found["adapter"])))
    sign = -1 if first.direction == "higher" else 1
    values = {name: figures.get(first.name, {}).get("value") for name, figures in found["baselines"].items()}
    names.sort(key=lambda name: float("inf") if values[name] is None else sign * values[name])
    return names[:BASELINES], names[BASELINES:]


def make_table(title: str, columns: Mapping[str, Any]) -> "Table":
    """Make a table of columns that are never wrapped, by name with their justification."""
    from rich.table import Table

    table = Table(title=plain(title), title_justify="left")
    for name, justify in columns.items():
        table.add_column(plain(name), justify=justify, no_wrap=True)
    return table


def show_rows(columns: list[str], rows: list[tuple[Any, ...]]) -> None:
    """Print a table of facts; nothing is cut."""
    from rich.table import Table

    table = Table()
    for column in columns:
        table.add_column(plain(column), overflow="fold")  # a digest that is cut cannot be copied
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console().print(table)


def _cell(value: object) -> str:
    return "" if value is None else plain(f"{value:,}" if isinstance(value, int) and value > 9999 else value)


def plain(text: object) -> str:
    """Return a text of somebody else's for a table or a console's line: neither its markup nor its controls mean anything."""
    from rich.markup import escape

    return escape(visible(str(text)))


def counted(count: int, unit: str) -> str:
    """A number of things in words, such as "1 user" or "1,200 users"."""
    return f"{count:,} {unit}{'' if count == 1 else 's'}"


def format_size(count: int) -> str:
    """A number of bytes as people read it."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 2**10:,.0f} KiB"


def format_value(entry: dict[str, Any] | None) -> str:
    """A metric's value, or a dash where there is none."""
    return "–" if entry is None else f"{entry['value']:.4f}"


def format_percent(share: float) -> str:
    """A share from 0 to 1 in percent, with about three figures."""
    if 0 < share < 1e-4:
        return "< 0.01 %"
    return f"{share * 100:.{1 if share >= 0.0995 else 2}f} %"


def _with_interval(entry: dict[str, Any]) -> str:
    if entry.get("interval") is None:
        return format_value(entry)
    low, high = entry["interval"]
    return f"{entry['value']:.4f} [{low:.3f}, {high:.3f}]"


def show_list(ref: str, response: Any, titles: dict[str, str]) -> None:
    """Print a table of one response's items, best first; a ranking's logits say nothing by themselves, their shares do."""
    from rich.table import Table

    name = f"{ref} ({response.digest[:12]})"
    if not response.results:
        print(f"{name}: there is nothing left to recommend: {response.note}")
        return
    table = Table(title=name, title_justify="left")
    table.add_column("#", justify="right")
    table.add_column("item")
    table.add_column("title")
    ranking = any(item.probability is not None for item in response.results)
    table.add_column("chance to be next" if ranking else "score", justify="right", no_wrap=True)
    for rank, item in enumerate(response.results, 1):
        shown = f"{item.score:.4f}" if item.probability is None else format_percent(item.probability)
        table.add_row(str(rank), plain(item.item_id), plain(titles.get(item.item_id, "")), shown)
    console().print(table)


def check_file(path: Path | None, option: str) -> None:
    """Refuse a path that cannot be written, before the work begins.

    Raises:
        InputError: It is a folder or a device, lies in a file, or in a folder that takes no new files.
    """
    if path is None:
        return
    if path.exists() and not path.is_file():
        raise InputError(f"{option} is {'a folder' if path.is_dir() else 'not a file'}", got=path, expected="a file to write")
    check_writable(path, option)


def write_result(path: Path | None, value: Any) -> None:
    """Write the result of a command as JSON, if a file is named."""
    if path is None:
        return

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)


def show_written(results: "Results", *, strict: bool = False) -> None:
    """Print the number of rows written; to standard error if the rows are on standard output.

    Raises:
        JobError: Rows failed, and that is not to pass (`strict`).
    """
    where = sys.stderr if results.path is None else sys.stdout
    earlier = f" ({results.earlier} from before)" if results.earlier else ""
    print(f"{results.rows} rows in {results}{earlier}, {results.errors} of them errors", file=where)
    if strict and results.errors:
        raise JobError(f"{results.errors} of {results.rows} rows failed", todo="their lines in the output say why")
